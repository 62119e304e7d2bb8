//! Three nodes in three processes over gRPC on loopback, in real time, with folders as disks. The
//! test is a fourth node without replicas; its binary starts itself again for the others.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use meridian_replication::Timing;
use meridian_replication::net::{GrpcTransport, Registry, grpc};
use meridian_storage::{FolderDisk, NodeId, SimulatedDisk, Storage, StorageOptions, TabletId};
use meridian_truetime::{Env, EnvironmentExt, SystemClock, World};
use meridian_txn::{Member, Node, NodeOptions, PlacementChange, SplitOptions, TxnError};
use tokio::net::TcpListener;

use crate::cluster::{create_tablet, insert, value};

const NODE: &str = "MERIDIAN_TEST_NODE";
const FOLDER: &str = "MERIDIAN_TEST_FOLDER";
const ADDRESS: &str = "MERIDIAN_TEST_ADDRESS";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// A node over gRPC; the first three of four are the replicas of everything.
async fn node(id: u64, addresses: BTreeMap<NodeId, String>, folder: Option<&Path>) -> Arc<Node> {
    let env: Env = World::real(id).node(id);
    let options = StorageOptions::default();
    let storage = match folder {
        Some(folder) => {
            let disk = FolderDisk::open(folder).expect("a folder");
            Storage::open(Arc::clone(&env), Arc::new(disk), options)
        }
        None => Storage::open(Arc::clone(&env), Arc::new(SimulatedDisk::new()), options),
    };
    let id = NodeId::new(id);
    let registry = Registry::new();
    let transport = GrpcTransport::new(id, addresses, Arc::clone(&env), registry.clone());
    let member = |number: u64| Member {
        id: NodeId::new(number),
        region: format!("r{number}"),
        round_trip: Duration::ZERO,
    };
    let node = Node::start(NodeOptions {
        id,
        members: (1..=4).map(member).collect(),
        env,
        clock: Arc::new(SystemClock::new(Duration::from_millis(1))),
        storage: storage.expect("opens"),
        transport: Arc::new(transport),
        registry,
        timing: Timing::for_round_trip(Duration::ZERO),
        voters: 3,
        placement: PlacementChange::default(),
        splits: SplitOptions::default(),
        retention: meridian_txn::DEFAULT_RETENTION,
    });
    node.await.expect("starts")
}

/// Not a test of its own, but what runs in the other processes.
#[test]
fn node_process() {
    let Ok(id) = std::env::var(NODE) else { return };
    let id: u64 = id.parse().expect("a number");
    let folder = std::env::var(FOLDER).expect("a folder");
    let address = std::env::var(ADDRESS).expect("an address");
    runtime().block_on(async {
        let listener = TcpListener::bind(&address).await.expect("a free port");
        println!("listening {}", listener.local_addr().expect("bound"));
        let mut peers = String::new();
        std::io::stdin().read_line(&mut peers).expect("the peers' addresses");
        exit_with_parent();
        let node = node(id, parse_peers(&peers), Some(folder.as_ref())).await;
        let (registry, env) = (node.registry().clone(), Arc::clone(node.env()));
        let serving = grpc::serve(listener, node.id(), registry, env, std::future::pending());
        let claim = async {
            node.claim_leadership().await;
            std::future::pending::<()>().await;
        };
        let (served, ()) = futures::join!(serving, claim);
        served.expect("it serves");
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
    fn start(id: u64, folder: &Path, address: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "processes::node_process", "--nocapture"])
            .env(NODE, id.to_string())
            .env(FOLDER, folder)
            .env(ADDRESS, address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let stdin = child.stdin.take().expect("piped");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = loop {
            let line = lines.next().expect("the node ended early").expect("text");
            if let Some((_, address)) = line.split_once("listening ") {
                break address.to_owned();
            }
        };
        Self { child, stdin, address }
    }

    fn tell(&mut self, peers: &str) {
        writeln!(self.stdin, "{peers}").expect("it listens");
    }
}

impl Drop for Process {
    /// SIGKILL.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn three_processes_serve_and_survive_the_death_of_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |id: u64| folder.path().join(format!("node{id}"));
    let mut processes: BTreeMap<u64, Process> =
        (1..=3).map(|id| (id, Process::start(id, &place(id), "127.0.0.1:0"))).collect();
    let peers: String =
        processes.iter().map(|(id, process)| format!("{id}={} ", process.address)).collect();
    processes.values_mut().for_each(|process| process.tell(&peers));
    runtime().block_on(async {
        let gateway = node(4, parse_peers(&peers), None).await;
        gateway.ready().await.expect("the cluster serves");
        let mut tablet = gateway
            .new_tablet(
                TabletId::new(2),
                meridian_txn::table_range(crate::cluster::TABLE),
                vec![(meridian_storage::KeyType::Int, meridian_storage::Order::Asc)],
                PlacementChange::default(),
            )
            .expect("can be placed");
        tablet.voters = (1..=3).map(NodeId::new).collect();
        tablet.preferred_leader = NodeId::new(2);
        create_tablet(&gateway, &tablet).await;

        let mut acknowledged = Vec::new();
        let mut next = 0;
        for victim in 1..=3 {
            for round in 0..20 {
                if round == 5 {
                    processes.remove(&victim);
                }
                match gateway.write(insert(next, "x")).await {
                    Ok(_) => acknowledged.push(next),
                    Err(TxnError::Unknown { .. } | TxnError::Unavailable { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                next += 1;
            }
            let address = peers
                .split_whitespace()
                .find_map(|peer| peer.strip_prefix(&format!("{victim}=")))
                .expect("it has one");
            let mut process = Process::start(victim, &place(victim), address);
            process.tell(&peers);
            processes.insert(victim, process);
            // The next one may die only when this one has caught up.
            gateway.env().sleep(Duration::from_secs(2)).await;
        }
        assert!(acknowledged.len() >= 50, "only {} of 60", acknowledged.len());
        for k in acknowledged {
            assert!(value(&gateway, k).await.expect("read").is_some(), "lost row {k}");
        }
    });
}
