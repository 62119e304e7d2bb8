//! A demo cluster in a process of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meridian_truetime::{Environment, EnvironmentExt};
use tempfile::TempDir;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Client;

use super::{PATIENCE, connect, eventually, real_time};

/// What is printed last when a cluster is up.
const READY: &str = "Press Ctrl-C to stop.";

/// The binary under test: `$MERIDIAN_BINARY`, or the one beside this test. `cargo test --workspace`
/// builds it, because the server's own integration tests need it.
pub(super) fn binary() -> PathBuf {
    if let Some(given) = std::env::var_os("MERIDIAN_BINARY") {
        return PathBuf::from(given);
    }
    let test = std::env::current_exe().expect("this test's path");
    // target/<profile>/deps/<test>
    let binary = test.ancestors().nth(2).expect("a target folder").join("meridian");
    assert!(binary.exists(), "no {}: run cargo test --workspace", binary.display());
    binary
}

/// The first of `count` consecutive ports that are free right now, below those that the system
/// gives to clients.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let of_process = u16::try_from(std::process::id() % 1_000).expect("small") * 16;
    for _ in 0..1_000 {
        let first = 15_000 + (of_process + NEXT.fetch_add(16, Ordering::Relaxed)) % 16_000;
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first + count).all(free) {
            return first;
        }
    }
    panic!("no {count} consecutive ports are free")
}

/// A demo cluster. It is killed when it is dropped.
pub struct Server {
    /// The process; none stands for a PostgreSQL server that runs anyway.
    child: Option<Child>,
    /// The first node's port.
    pub port: u16,
    /// What it was started with, but the port.
    options: Vec<String>,
    /// What it prints, and its data unless the options say otherwise.
    folder: Arc<TempDir>,
    _turn: OwnedSemaphorePermit,
}

impl Server {
    /// Starts a cluster with data of its own, and waits until it says that it is up.
    pub async fn start(options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let folder = Arc::new(TempDir::new().expect("a temporary folder"));
        Self::start_in(folder, options).await
    }

    /// Three nodes in one place, without latency or clock uncertainty.
    ///
    /// With `$MERIDIAN_TEST_POSTGRES` set to a port, the PostgreSQL server there instead (users
    /// `tester` and `raw`, database `meridian`): how one finds out whether a test expects what
    /// PostgreSQL does.
    pub async fn local() -> Self {
        let Ok(port) = std::env::var("MERIDIAN_TEST_POSTGRES") else {
            return Self::start(&["--topology", "local", "--epsilon", "0ms"]).await;
        };
        let folder = Arc::new(TempDir::new().expect("a temporary folder"));
        let port = port.parse().expect("a port");
        Self { child: None, port, options: Vec::new(), folder, _turn: turn().await }
    }

    /// Starts it again after it has ended, with the same data.
    pub async fn start_again(self) -> Self {
        let (folder, options) = (Arc::clone(&self.folder), self.options.clone());
        drop(self);
        Self::start_in(folder, options).await
    }

    async fn start_in(folder: Arc<TempDir>, options: Vec<String>) -> Self {
        let turn = turn().await;
        let port = free_ports(9);
        let file = |name| File::create(folder.path().join(name)).expect("a file");
        let mut command = Command::new(binary());
        command.args(&options).arg("--port").arg(port.to_string());
        command.arg("--data-dir").arg(folder.path().join("data"));
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child = Some(command.spawn().expect("the binary starts"));
        let mut server = Self { child, port, options, folder, _turn: turn };
        eventually("the cluster comes up", async || {
            if let Some(status) = server.process().try_wait().expect("a child") {
                panic!("it ended with {status}: {}", server.stderr());
            }
            if server.stdout().contains(READY) { Ok(()) } else { Err("not yet") }
        })
        .await;
        server
    }

    /// What it has printed.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.folder.path().join("stdout")).unwrap_or_default()
    }

    /// What it has complained about.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// The folder with its data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The port of a node, counted from 1.
    pub fn port_of(&self, node: u16) -> u16 {
        if self.child.is_some() { self.port + node - 1 } else { self.port }
    }

    /// A session at a node.
    pub async fn connect(&self, node: u16) -> Client {
        eventually("a session", async || self.try_connect(node).await).await
    }

    /// A session at a node, if it lets one in.
    pub async fn try_connect(&self, node: u16) -> Result<Client, tokio_postgres::Error> {
        connect(self.port_of(node)).await
    }

    /// What the process has used of the machine.
    pub fn usage(&self) -> Usage {
        Usage::of(self.child.as_ref().expect("a process of its own").id())
    }

    fn process(&mut self) -> &mut Child {
        self.child.as_mut().expect("a process of its own")
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.process().kill().expect("a child can be killed");
        self.process().wait().expect("a child can be waited for");
    }

    /// Sends it a signal: `INT`, `TERM`.
    pub fn signal(&mut self, name: &str) {
        let pid = self.process().id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(status.success(), "no process to signal");
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let process = self.process();
        eventually("the process ends", async || process.try_wait().expect("a child").ok_or("no"))
            .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's stdout\n{}", self.stdout());
            eprintln!("--- the server's stderr\n{}", self.stderr());
            if let Some(child) = &self.child {
                eprintln!("--- what its threads wait for\n{}", threads(child.id()));
            }
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Each thread's name, the kernel's function that it waits in, and the time it has run.
fn threads(pid: u32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return String::new() };
    let lines = tasks.filter_map(Result::ok).map(|task| {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        format!("{} {} {}\n", read("comm").trim(), read("wchan").trim(), read("schedstat").trim())
    });
    lines.collect()
}

/// What a process has used of the machine, from Linux's `/proc`.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Time on the processors, in all.
    pub cpu: Duration,
    /// Memory that is its own, not files that others can use too, in bytes.
    pub memory: u64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("/proc");
        let stat = read("stat");
        // After the name in parentheses; user and system time are the 14th and 15th of all.
        let after = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = after.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let status = read("status");
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = anonymous.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        // Linux counts a hundred ticks in a second on every machine of today.
        Self { cpu: Duration::from_millis(ticks * 10), memory: kibibytes.unwrap_or(0) * 1_024 }
    }
}

/// Few clusters at a time: each is a lot of work for the machine.
pub(super) async fn turn() -> OwnedSemaphorePermit {
    static TURNS: OnceLock<Arc<Semaphore>> = OnceLock::new();
    let turns = Arc::clone(TURNS.get_or_init(|| Arc::new(Semaphore::new(2))));
    turns.acquire_owned().await.expect("never closed")
}

/// Runs the binary to its end and returns its exit code, stdout and stderr.
pub async fn run_to_end(options: &[&str]) -> (Option<i32>, String, String) {
    let folder = TempDir::new().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let file = |name| File::create(path(name)).expect("a file");
    let mut command = Command::new(binary());
    command.args(options).current_dir(folder.path());
    command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
    let mut child = command.spawn().expect("the binary starts");
    let env = real_time();
    let give_up = env.moment().plus(PATIENCE);
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if env.moment() > give_up {
            let _ = child.kill();
            panic!("meridian {options:?} doesn't end");
        }
        env.sleep(Duration::from_millis(20)).await;
    };
    let read = |name| fs::read_to_string(path(name)).expect("readable");
    (status.code(), read("stdout"), read("stderr"))
}
