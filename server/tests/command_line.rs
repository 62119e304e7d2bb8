//! The command's answers that need no cluster. (As a test of this package it also makes cargo
//! build the binary that the tests in `tests/` drive.)

use std::process::Command;

fn meridian(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_meridian")).args(args).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_and_version_go_to_stdout() {
    let (code, out, error) = meridian(&["--help"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    for part in ["demo", "start", "status", "--topology", "us-eu-3", "5433", "RUST_LOG"] {
        assert!(out.contains(part), "{part} is missing:\n{out}");
    }
    let (code, out, _) = meridian(&["--version"]);
    assert_eq!((code, out.trim()), (Some(0), concat!("meridian ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn mistakes_go_to_stderr_with_their_exit_codes() {
    for (args, code, part) in [
        (&["--nodes", "10"][..], 2, "--nodes"),
        (&["--log", "a=b=c"], 1, "log filter"),
        (&["--topology", "mars"], 1, "mars"),
        (&["--port", "65535"], 1, "--port"),
        (&["start"], 2, "--config"),
        (&["start", "--config", "nowhere.toml"], 1, "nowhere.toml: it can't be read"),
        (&["status", "--connect", "127.0.0.1:1"], 1, "127.0.0.1:1 can't be reached"),
    ] {
        let (ended, out, error) = meridian(args);
        assert_eq!((ended, out.as_str()), (Some(code), ""), "{args:?}: {error}");
        assert!(error.contains(part), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}: {error}");
    }
}
