//! The `meridian` command.

use std::future::Future;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use meridian_server::cli::{Cli, Command, DemoArgs, StartArgs, StatusArgs};
use meridian_server::config::DemoConfig;
use meridian_server::memory::configure_allocator;
use meridian_server::node::config::StartConfig;
use meridian_server::{demo, node, status};
use tokio::runtime::{Handle, Runtime};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    configure_allocator();
    let done = match Cli::parse().into_command() {
        Command::Demo(args) => run_demo(*args),
        Command::Start(args) => run_start(args),
        Command::Status(args) => run_status(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.message);
            if let Some(hint) = failure.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What a user is told when a command ends in failure.
struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    fn new(message: impl ToString, hint: Option<impl Into<String>>) -> Self {
        Self { message: message.to_string(), hint: hint.map(Into::into) }
    }
}

fn run_demo(args: DemoArgs) -> Result<(), Failure> {
    log_to_stderr(args.log.as_deref())?;
    let config = DemoConfig::from_args(args).map_err(|error| Failure::new(&error, error.hint()))?;
    serve(|computing| demo::run(config, computing))?
        .map_err(|error| Failure::new(&error, error.hint()))
}

fn run_start(args: StartArgs) -> Result<(), Failure> {
    let config = StartConfig::load(&args.config)
        .map_err(|error| Failure::new(error, Some("The folder examples has commented samples.")))?;
    log_to_stderr(args.log.as_deref().or(config.log.as_deref()))?;
    serve(|computing| node::run(config, computing))?
        .map_err(|error| Failure::new(&error, error.hint()))
}

fn run_status(args: StatusArgs) -> Result<(), Failure> {
    log_to_stderr(None)?;
    let runtime = runtime("status")?;
    let done = runtime.block_on(status::run(args));
    runtime.shutdown_background();
    done.map_err(|error| Failure::new(&error, error.hint()))
}

/// Runs a server to its end.
fn serve<T, F: Future<Output = T>>(run: impl FnOnce(Handle) -> F) -> Result<T, Failure> {
    // What queries compute keeps nothing else waiting: neither heartbeats nor other sessions.
    let (runtime, computing) = (runtime("node")?, runtime("query")?);
    let result = runtime.block_on(run(computing.handle().clone()));
    // What still runs has had its chance.
    runtime.shutdown_background();
    computing.shutdown_background();
    Ok(result)
}

fn runtime(name: &str) -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .thread_stack_size(meridian_sql::STACK)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(error, None::<String>))
}

/// Structured logs on stderr: what `--log` says, else `RUST_LOG`, else warnings.
fn log_to_stderr(filter: Option<&str>) -> Result<(), Failure> {
    let variable = std::env::var("RUST_LOG").ok();
    let filter = filter.or(variable.as_deref()).filter(|filter| !filter.trim().is_empty());
    let hint = Some("filters look like info or warn,meridian_sql=debug");
    let filter = EnvFilter::try_new(filter.unwrap_or("warn,openraft=off"))
        .map_err(|error| Failure::new(format_args!("invalid log filter: {error}"), hint))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init()
        .map_err(|error| Failure::new(error, hint))
}
