//! The `meridian` command.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use meridian_server::cli::Cli;
use meridian_server::config::DemoConfig;
use meridian_server::demo::{self, DemoError};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Cli::parse().into_demo();
    if let Err(error) = log_to_stderr(args.log.as_deref()) {
        return failure(&error, Some("filters look like info or warn,meridian_sql=debug"));
    }
    let config = match DemoConfig::from_args(args) {
        Ok(config) => config,
        Err(error) => return failure(&error.to_string(), None),
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error.to_string(), error.hint()),
    }
}

fn run(config: DemoConfig) -> Result<(), DemoError> {
    let runtime = |name: &str| {
        tokio::runtime::Builder::new_multi_thread()
            .thread_name(name)
            .thread_stack_size(meridian_sql::STACK)
            .enable_all()
            .build()
    };
    // What queries compute keeps nothing else waiting: neither heartbeats nor other sessions.
    let (runtime, computing) = (runtime("node")?, runtime("query")?);
    let result = runtime.block_on(demo::run(config, computing.handle().clone()));
    // What still runs has had its chance.
    runtime.shutdown_background();
    computing.shutdown_background();
    result
}

/// Structured logs on stderr: what `--log` says, else `RUST_LOG`, else warnings.
fn log_to_stderr(filter: Option<&str>) -> Result<(), String> {
    let variable = std::env::var("RUST_LOG").ok();
    let filter = filter.or(variable.as_deref()).filter(|filter| !filter.trim().is_empty());
    let filter = EnvFilter::try_new(filter.unwrap_or("warn,openraft=off"))
        .map_err(|error| format!("invalid log filter: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .try_init()
        .map_err(|error| error.to_string())
}

fn failure(message: &str, hint: Option<&str>) -> ExitCode {
    eprintln!("error: {message}");
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}
