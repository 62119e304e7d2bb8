//! The real binary, started, driven and stopped.

mod processes;
mod psql;
mod raw;
mod server;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meridian_truetime::{EnvironmentExt, Moment, NodeEnvironment, World};
use tokio_postgres::{Client, NoTls};

pub use processes::Processes;
pub use psql::psql;
pub use raw::{Raw, cstr, field, frame, kinds};
pub use server::{Server, Usage, free_ports, run_to_end};

/// How long anything may take before the test is given up. Not a claim about speed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The workspace's folder. Asked for when a test runs: what was compiled may come from a cache that
/// another clone shares.
pub fn workspace() -> PathBuf {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    PathBuf::from(folder).parent().expect("a parent").to_owned()
}

/// Logs to stderr what `RUST_LOG` names, if it is set: for following one seed.
pub fn log_if_asked() {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let _ = log.with_ansi(false).without_time().try_init();
    }
}

/// The line with the trace that a test of this binary prints, alone in a process of its own, for the
/// seed that it finds in `variable`.
pub fn trace_in_a_fresh_process(test: &str, variable: &str, seed: u64) -> String {
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(variable, seed.to_string())
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {seed}: {text}{error}");
    let trace = text.lines().find(|line| line.contains("trace "));
    trace.unwrap_or_else(|| panic!("seed {seed} printed no trace: {text}")).to_owned()
}

/// Time and timers of the real world. Needs a runtime.
pub fn real_time() -> Arc<NodeEnvironment> {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World::real(0)).node(0)
}

/// Tries until it succeeds; an error that lasts is the test's failure.
pub async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    use meridian_truetime::Environment;
    let env = real_time();
    let give_up: Moment = env.moment().plus(PATIENCE);
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if env.moment() > give_up => panic!("{what}: {error:?}"),
            Err(_) => env.sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A session at a port of this machine.
///
/// # Errors
/// When nobody serves there.
pub async fn connect(port: u16) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("tester").dbname("meridian");
    let (client, connection) = config.connect(NoTls).await?;
    real_time().spawn(async move {
        // An error here is an error of the client's next statement.
        let _ = connection.await;
    });
    Ok(client)
}
