//! Three nodes in three processes on loopback. The test starts its own binary again for each of
//! them, with the node's number in the environment, and talks to all as a fourth node.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meridian_replication::net::{
    GrpcTransport, Incoming, NetError, Outgoing, Registry, STREAM_WINDOW, Service, ServiceError,
    Transport, grpc,
};
use meridian_storage::NodeId;
use meridian_truetime::World;
use meridian_truetime::env::{Env, EnvironmentExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const NODE: &str = "MERIDIAN_TEST_NODE";
const ADDRESS: &str = "MERIDIAN_TEST_ADDRESS";
const SECOND: Duration = Duration::from_secs(1);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// A node's service. A call "2 hello" is passed on to node 2, anything else is answered with the
/// node's number in front. A stream counts up to the number that is its first message, then
/// echoes.
struct Relay {
    id: NodeId,
    transport: OnceLock<Arc<dyn Transport>>,
}

#[async_trait]
impl Service for Relay {
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        let text = String::from_utf8(request.to_vec()).map_err(ServiceError::new)?;
        let Some((to, rest)) = text.split_once(' ') else {
            return Ok(Bytes::from(format!("{from}>{}: {text}", self.id)));
        };
        let to = NodeId::new(to.parse().map_err(ServiceError::new)?);
        let transport = self.transport.get().ok_or_else(|| ServiceError::new("not ready"))?;
        let passed_on = transport.call(to, "relay", Bytes::from(rest.to_owned()), 5 * SECOND).await;
        passed_on.map_err(ServiceError::new)
    }

    async fn stream(
        &self,
        _: NodeId,
        mut incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<(), ServiceError> {
        let Some(Ok(first)) = incoming.next().await else { return Ok(()) };
        let first = String::from_utf8_lossy(&first).into_owned();
        for number in 0..first.parse::<u32>().map_err(ServiceError::new)? {
            outgoing.send(padded(number)).await.map_err(ServiceError::new)?;
        }
        while let Some(Ok(message)) = incoming.next().await {
            outgoing.send(message).await.map_err(ServiceError::new)?;
        }
        Ok(())
    }
}

/// A number in ten thousand bytes.
fn padded(number: u32) -> Bytes {
    Bytes::from(format!("{number:010000}"))
}

/// Not a test of its own, but what runs in the other processes: a node that says where it listens,
/// reads where the others do, and serves until its standard input ends.
#[test]
fn node_process() {
    let Ok(id) = std::env::var(NODE) else { return };
    let id = NodeId::new(id.parse().expect("a number"));
    let address = std::env::var(ADDRESS).expect("an address");
    runtime().block_on(async {
        let env: Env = World::real(id.get()).node(id.get());
        let listener = TcpListener::bind(&address).await.expect("a free port");
        println!("listening {}", listener.local_addr().expect("bound"));
        let mut peers = String::new();
        std::io::stdin().read_line(&mut peers).expect("the peers' addresses");
        let relay = Arc::new(Relay { id, transport: OnceLock::new() });
        let registry = Registry::new();
        registry.register("relay", relay.clone());
        let transport = GrpcTransport::new(id, parse_peers(&peers), env.clone(), registry.clone());
        let _ = relay.transport.set(Arc::new(transport));
        exit_with_parent();
        let serving = grpc::serve(listener, id, registry, env, std::future::pending());
        serving.await.expect("it serves");
    });
}

/// Ends the process when its standard input ends, lest it outlive a test that was killed.
#[expect(clippy::disallowed_methods, reason = "a thread of a process of its own")]
fn exit_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

fn parse_peers(line: &str) -> BTreeMap<NodeId, String> {
    let peer = |entry: &str| {
        let (id, address) = entry.split_once('=').expect("id=address");
        (NodeId::new(id.parse().expect("a number")), address.to_owned())
    };
    line.split_whitespace().map(peer).collect()
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    address: String,
}

impl Process {
    /// Starts a node and waits until it listens.
    fn start(id: u64, address: &str) -> Self {
        let binary = std::env::current_exe().expect("this binary");
        let mut child = Command::new(binary)
            .args(["--exact", "node_process", "--nocapture"])
            .env(NODE, id.to_string())
            .env(ADDRESS, address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let stdin = child.stdin.take().expect("piped");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = loop {
            let line = lines.next().expect("the node ended early").expect("text");
            // libtest may have begun the line.
            if let Some((_, address)) = line.split_once("listening ") {
                break address.to_owned();
            }
        };
        Self { child, stdin, address }
    }

    fn introduce(&mut self, peers: &str) {
        writeln!(self.stdin, "{peers}").expect("the node reads");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Cluster {
    processes: BTreeMap<u64, Process>,
    peers: String,
    transport: GrpcTransport,
    env: Env,
}

impl Cluster {
    fn start() -> Self {
        let mut processes: BTreeMap<u64, Process> =
            (1..=3).map(|id| (id, Process::start(id, "127.0.0.1:0"))).collect();
        let peers: Vec<String> =
            processes.iter().map(|(id, process)| format!("{id}={}", process.address)).collect();
        let peers = peers.join(" ");
        for process in processes.values_mut() {
            process.introduce(&peers);
        }
        let env: Env = World::real(4).node(4);
        let id = NodeId::new(4);
        let transport = GrpcTransport::new(id, parse_peers(&peers), env.clone(), Registry::new());
        Self { processes, peers, transport, env }
    }

    /// kill -9.
    fn kill(&mut self, id: u64) -> String {
        self.processes.remove(&id).expect("it runs").address.clone()
    }

    fn restart(&mut self, id: u64, address: &str) {
        let mut process = Process::start(id, address);
        process.introduce(&self.peers);
        self.processes.insert(id, process);
    }

    async fn call(&self, to: u64, request: &str) -> Result<String, NetError> {
        let request = Bytes::from(request.to_owned());
        let answer = self.transport.call(NodeId::new(to), "relay", request, 10 * SECOND).await?;
        Ok(String::from_utf8(answer.to_vec()).expect("text"))
    }

    /// Calls until the error says that node 3 is unreachable. The call that finds out that the
    /// connection broke can't know that yet.
    async fn call_until_unreachable(&self, to: u64, request: &str) -> NetError {
        for _ in 0..10 {
            let error = self.call(to, request).await.expect_err("node 3 is dead");
            if error.to_string().contains("node n3 is unreachable") {
                return error;
            }
            assert!(error.to_string().contains("connection to node n3 broke"), "{error}");
            self.env.sleep(SECOND / 10).await;
        }
        panic!("a dead node goes on breaking connections")
    }

    /// Calls until it works; a connection that broke may cost a call or two.
    async fn call_until_served(&self, to: u64, request: &str) -> String {
        for _ in 0..100 {
            match self.call(to, request).await {
                Ok(answer) => return answer,
                Err(_) => self.env.sleep(SECOND / 10).await,
            }
        }
        panic!("node {to} doesn't recover")
    }
}

#[test]
fn three_processes_call_each_other_stream_fail_and_recover() {
    runtime().block_on(async {
        let mut cluster = Cluster::start();
        for via in 1..=3 {
            for to in (1..=3).filter(|to| *to != via) {
                let answer = cluster.call(via, &format!("{to} hello")).await;
                assert_eq!(answer.expect("served"), format!("n{via}>n{to}: hello"));
            }
        }

        // Twenty windows of answers: the writer waits for the reader, and nothing is lost.
        let messages = u32::try_from(20 * STREAM_WINDOW / 10_000).expect("small");
        let node = NodeId::new(3);
        let (outgoing, mut incoming) = cluster.transport.open(node, "relay").await.expect("open");
        outgoing.send(Bytes::from(messages.to_string())).await.expect("sent");
        cluster.env.sleep(SECOND / 2).await;
        for number in 0..messages {
            assert!(incoming.next().await.expect("no end").expect("no error") == padded(number));
        }

        let address = cluster.kill(3);
        let broken = incoming.next().await.expect("no end").expect_err("it is dead");
        assert!(matches!(broken, NetError::Broken { .. }), "{broken}");
        assert!(outgoing.send(Bytes::new()).await.is_err());
        let error = cluster.call_until_unreachable(3, "hello").await;
        assert!(error.certainly_not_executed(), "{error}");
        // Node 1 says so of node 3.
        let error = cluster.call_until_unreachable(1, "3 hello").await;
        assert!(matches!(error, NetError::Remote { .. }), "{error}");
        assert_eq!(cluster.call(1, "2 hello").await.expect("served"), "n1>n2: hello");

        cluster.restart(3, &address);
        assert_eq!(cluster.call_until_served(3, "1 hello").await, "n3>n1: hello");
        assert_eq!(cluster.call_until_served(2, "3 hello").await, "n2>n3: hello");
    });
}
