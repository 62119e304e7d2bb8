//! psql, as a user would run it.

use std::io::Write;
use std::process::{Command, Stdio};

/// What psql answered.
#[derive(Debug)]
pub struct Psql {
    /// Its exit code: 0, or 3 when a statement failed.
    pub code: Option<i32>,
    /// Results.
    pub out: String,
    /// Errors and notices.
    pub err: String,
}

/// Whether psql can be run. Without it a test is skipped, but in CI that is a failure.
pub fn available() -> bool {
    let found = Command::new("psql").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "psql is missing, and this is CI");
    if !found {
        println!("skipped: psql is not installed");
    }
    found
}

/// Feeds a script to psql at a port: unaligned output, no headers, stop at the first error.
/// `None` if there is no psql.
pub fn psql(port: u16, script: &str) -> Option<Psql> {
    if !available() {
        return None;
    }
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-d", "meridian"]);
    command.env_remove("PGUSER").env_remove("PGPASSWORD").env("PGCONNECT_TIMEOUT", "60");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("psql starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(script.as_bytes()).expect("psql reads");
    drop(input);
    let output = child.wait_with_output().expect("psql ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Some(Psql { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) })
}
