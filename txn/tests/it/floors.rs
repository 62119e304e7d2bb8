//! What commits and reads take, and what they have to take: the floors.
//!
//! Clocks are right but declare a constant uncertainty ε; work takes no time, the log write included;
//! nobody else is about. Then an operation takes what its messages and its commit wait do. With
//! `d(x,y)` one way and `R(x,y)` there and back, both 0 within a node, `Q` the round trip from a leader
//! to the nearest others that make a majority with it, `cl` the gateway, `c` the coordinator's leader
//! and `p` a participant's:
//!
//! | what | floor |
//! |---|---|
//! | one tablet, `two_phase` | `R(cl,c) + Q` |
//! | one tablet, `commit_wait` | `R(cl,c) + max(Q, 2ε)`: the timestamp is ε ahead when it is taken, and has certainly passed ε after it; the log is written meanwhile |
//! | several, `two_phase` | `T + Q_c + d(c,cl)`, where `T = max(d(cl,c), max over p of (d(cl,p) + Q_p + d(p,c)))` is when the last vote is in, and `Q_p = 0` for who only reads |
//! | several, `commit_wait` | `max(T + Q_c, d(cl,c) + 2ε) + d(c,cl)`: the timestamp is taken as of when the request came |
//! | nothing was written | `max over p of R(cl,p)` |
//! | strong read | `max over the tablets of R(cl,leader)`, whatever is being committed in one tablet |
//! | stale read | `max over the tablets of R(cl,nearest replica)` |
//!
//! The coordinator is the nearest to the gateway of those that are written to.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join, join_all};
use meridian_replication::net::Topology;
use meridian_storage::{KeyBuilder, KeyType, Order, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp};
use meridian_txn::locks::Mode;
use meridian_txn::{CommitProtocol, Node, PlacementChange, ReadAt, Transaction, Wait, table_range};

use crate::cluster::{Cluster, Setup, TABLE, create_tablet, run_setup};

/// Where tablets and gateways are. There is one node in each region of the topology.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    pub topology: &'static str,
    /// The regions of the tablets' replicas; the first one leads.
    pub tablets: [[&'static str; 3]; 3],
    pub gateways: [&'static str; 3],
}

pub const US_EU_3: Scene = Scene {
    topology: "us-eu-3",
    tablets: [
        ["us-east", "us-west", "eu-west"],
        ["us-west", "us-east", "eu-west"],
        ["eu-west", "us-east", "us-west"],
    ],
    gateways: ["us-east", "us-west", "eu-west"],
};

pub const METRO_3: Scene = Scene {
    topology: "metro-3",
    tablets: [
        ["dal-1", "dal-2", "dal-3"],
        ["dal-2", "dal-1", "dal-3"],
        ["dal-3", "dal-1", "dal-2"],
    ],
    gateways: ["dal-1", "dal-2", "dal-3"],
};

/// How old what a stale read reads is: longer than a timestamp takes to be closed everywhere.
const AGO: Duration = Duration::from_secs(2);

/// Tablets, by their places in [`Scene::tablets`].
type Tablets = &'static [usize];

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The commit of a transaction that has read from these tablets and writes to those.
    Commit { protocol: CommitProtocol, reads: Tablets, writes: Tablets },
    /// A strong read of these tablets.
    Read(Tablets),
    /// A strong read of what is being written in a transaction of one tablet.
    ReadWhileWritten(usize),
    /// A read of these tablets as they were a while ago.
    StaleRead(Tablets),
}

impl Operation {
    /// All that are measured.
    pub fn all() -> Vec<Self> {
        let commits: [(Tablets, Tablets); 6] = [
            (&[], &[0]),
            (&[0, 1], &[0, 1]),
            (&[], &[0, 1, 2]),
            (&[1], &[0]),
            (&[2], &[0, 1]),
            (&[1, 2], &[0]),
        ];
        let mut all = Vec::new();
        for protocol in [CommitProtocol::TwoPhase, CommitProtocol::CommitWait] {
            all.extend(commits.map(|(reads, writes)| Self::Commit { protocol, reads, writes }));
        }
        let (protocol, reads) = (CommitProtocol::CommitWait, &[0, 1, 2]);
        all.push(Self::Commit { protocol, reads, writes: &[] });
        all.extend([Self::Read(&[0]), Self::ReadWhileWritten(0), Self::Read(&[0, 1, 2])]);
        all.extend([Self::StaleRead(&[0]), Self::StaleRead(&[0, 1, 2])]);
        all
    }
}

fn names(tablets: &[usize]) -> String {
    tablets.iter().map(|tablet| ["A", "B", "C"][*tablet]).collect()
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit { writes: [], reads, .. } => {
                write!(f, "commit of nothing, reads {}", names(reads))
            }
            Self::Commit { protocol, reads, writes } => {
                let protocol = match protocol {
                    CommitProtocol::CommitWait => "commit_wait",
                    CommitProtocol::TwoPhase => "two_phase",
                };
                write!(f, "{protocol}, writes {}", names(writes))?;
                if reads.is_empty() { Ok(()) } else { write!(f, ", reads {}", names(reads)) }
            }
            Self::Read(tablets) => write!(f, "strong read of {}", names(tablets)),
            Self::StaleRead(tablets) => write!(f, "stale read of {}", names(tablets)),
            Self::ReadWhileWritten(tablet) => {
                write!(f, "strong read of {0} while {0} commits", names(&[*tablet]))
            }
        }
    }
}

/// Where things are, by the regions' places in the topology.
struct Map {
    topology: Topology,
    tablets: Vec<Vec<usize>>,
}

impl Map {
    fn of(scene: Scene) -> Self {
        let topology = Topology::load(scene.topology).expect("shipped");
        let regions = |tablet: &[&str; 3]| {
            tablet.map(|region| topology.region(region).expect("it exists")).to_vec()
        };
        Self { tablets: scene.tablets.iter().map(regions).collect(), topology }
    }

    fn gateway(&self, region: &str) -> usize {
        self.topology.region(region).expect("it exists")
    }

    /// The number of the node in a region.
    fn node(region: usize) -> u64 {
        region as u64 + 1
    }

    fn leader(&self, tablet: usize) -> usize {
        self.tablets[tablet][0]
    }

    fn way(&self, from: usize, to: usize) -> Duration {
        if from == to { Duration::ZERO } else { self.topology.one_way(from, to) }
    }

    fn there_and_back(&self, from: usize, to: usize) -> Duration {
        self.way(from, to) + self.way(to, from)
    }

    /// From a tablet's leader to a majority and back.
    fn quorum(&self, tablet: usize) -> Duration {
        let (leader, others) = self.tablets[tablet].split_first().expect("it has replicas");
        let mut trips: Vec<Duration> =
            others.iter().map(|other| self.there_and_back(*leader, *other)).collect();
        trips.sort_unstable();
        // The leader is one of the majority.
        trips[self.tablets[tablet].len() / 2 - 1]
    }

    fn floor(&self, gateway: usize, operation: Operation, epsilon: Duration) -> Duration {
        let trip = |tablet: &usize| self.there_and_back(gateway, self.leader(*tablet));
        let farthest = |tablets: &[usize]| tablets.iter().map(trip).max().expect("one at least");
        let (protocol, reads, writes) = match operation {
            Operation::Read(tablets) => return farthest(tablets),
            Operation::ReadWhileWritten(tablet) => return trip(&tablet),
            Operation::StaleRead(tablets) => {
                let nearest = |tablet: &usize| {
                    let replicas = self.tablets[*tablet].iter();
                    replicas.map(|replica| self.there_and_back(gateway, *replica)).min()
                };
                return tablets.iter().filter_map(nearest).max().expect("one at least");
            }
            Operation::Commit { writes: [], reads, .. } => return farthest(reads),
            Operation::Commit { protocol, reads, writes } => (protocol, reads, writes),
        };
        let coordinator = *writes.iter().min_by_key(|tablet| trip(tablet)).expect("one at least");
        let c = self.leader(coordinator);
        let others = reads.iter().chain(writes).filter(|tablet| **tablet != coordinator);
        let votes = others.map(|tablet| {
            let p = self.leader(*tablet);
            let logged =
                if writes.contains(tablet) { self.quorum(*tablet) } else { Duration::ZERO };
            self.way(gateway, p) + logged + self.way(p, c)
        });
        let asked = self.way(gateway, c);
        let all_voted = votes.max().unwrap_or_default().max(asked);
        let logged = all_voted + self.quorum(coordinator);
        let done = match protocol {
            CommitProtocol::TwoPhase => logged,
            CommitProtocol::CommitWait => logged.max(asked + 2 * epsilon),
        };
        done + self.way(c, gateway)
    }
}

/// What an operation took at a gateway.
#[derive(Clone, Debug)]
pub struct Latency {
    pub gateway: &'static str,
    pub operation: Operation,
    pub floor: Duration,
    /// In ascending order.
    pub took: Vec<Duration>,
}

impl Latency {
    pub fn median(&self) -> Duration {
        self.took[self.took.len() / 2]
    }

    /// At most 2 % or 0.2 ms above the floor.
    pub fn is_close(&self) -> bool {
        let most = (self.floor * 102 / 100).max(self.floor + Duration::from_micros(200));
        (self.floor..=most).contains(&self.median())
    }
}

/// Measures operations at every gateway of a scene, so many times each.
pub fn measure(
    scene: Scene,
    epsilon: Duration,
    operations: Vec<Operation>,
    times: usize,
) -> Vec<Latency> {
    let map = Map::of(scene);
    let nodes = map.topology.regions().len() as u64;
    let setup = Setup { topology: scene.topology, nodes, epsilon, ..Setup::default() };
    run_setup(setup, |cluster| async move {
        let tablets = create_tablets(&cluster, scene, &map).await;
        let mut latencies = Vec::new();
        for operation in operations {
            for gateway in scene.gateways {
                let floor = map.floor(map.gateway(gateway), operation, epsilon);
                let at = Measuring {
                    cluster: &cluster,
                    map: &map,
                    tablets: &tablets,
                    gateway: map.gateway(gateway),
                };
                let mut took = Vec::new();
                for _ in 0..times {
                    at.rest().await;
                    took.push(at.time(operation).await);
                }
                took.sort_unstable();
                latencies.push(Latency { gateway, operation, floor, took });
            }
        }
        latencies
    })
}

/// Each is a table of its own.
async fn create_tablets(cluster: &Cluster, scene: Scene, map: &Map) -> Vec<TabletId> {
    let mut tablets = Vec::new();
    for (table, regions) in (TABLE..).zip(scene.tablets) {
        let node = cluster.node(Map::node(map.gateway(regions[0])));
        let id = node.new_tablet_id().await.expect("an id");
        let change = PlacementChange {
            regions: Some(regions.map(str::to_owned).to_vec()),
            leader_region: Some(Some(regions[0].to_owned())),
            ..PlacementChange::default()
        };
        let root_key = vec![(KeyType::Int, Order::Asc)];
        let descriptor = node.new_tablet(id, table_range(table), root_key, change);
        create_tablet(&node, &descriptor.expect("can be placed")).await;
        tablets.push(id);
    }
    for number in cluster.running() {
        let node = cluster.node(number);
        node.refresh_directory().await.expect("read");
        // It knows the leaders from here on.
        let txn = begin(&node, CommitProtocol::CommitWait);
        (0..tablets.len()).for_each(|tablet| txn.put(row_of(tablet), vec![0]));
        txn.commit().await.expect("nobody else is about");
        node.env().sleep(Duration::from_secs(3)).await;
    }
    tablets
}

fn begin(node: &Arc<Node>, protocol: CommitProtocol) -> Transaction {
    node.begin(None, protocol, Timestamp::MIN)
}

/// The key of a tablet's only row.
fn row_of(tablet: usize) -> Vec<u8> {
    KeyBuilder::new().table(TABLE + tablet as u64).table(1).finish()
}

struct Measuring<'a> {
    cluster: &'a Cluster,
    map: &'a Map,
    tablets: &'a [TabletId],
    gateway: usize,
}

impl Measuring<'_> {
    fn node(&self, region: usize) -> Arc<Node> {
        self.cluster.node(Map::node(region))
    }

    /// Until the last transaction is over everywhere, and out of step with whatever happens in
    /// intervals.
    async fn rest(&self) {
        let env = Arc::clone(self.node(self.gateway).env());
        let out_of_step = Duration::from_micros(env.random() % 1_000_000);
        env.sleep(Duration::from_secs(2) + out_of_step).await;
    }

    async fn time(&self, operation: Operation) -> Duration {
        match operation {
            Operation::Commit { protocol, reads, writes } => {
                self.commit(self.gateway, protocol, reads, writes).await.0
            }
            Operation::Read(tablets) => {
                let at = match tablets {
                    [_] => ReadAt::Strong { min: Timestamp::MIN },
                    _ => ReadAt::Exact(self.node(self.gateway).clock().now().latest),
                };
                self.read(tablets, at).await.0
            }
            Operation::ReadWhileWritten(tablet) => self.read_while_written(tablet).await,
            Operation::StaleRead(tablets) => self.stale_read(tablets).await,
        }
    }

    async fn commit(
        &self,
        gateway: usize,
        protocol: CommitProtocol,
        reads: &[usize],
        writes: &[usize],
    ) -> (Duration, Timestamp) {
        let txn = begin(&self.node(gateway), protocol);
        if !reads.is_empty() {
            let keys = reads.iter().map(|tablet| row_of(*tablet)).collect();
            txn.get(keys, Mode::Shared, Wait::Forever).await.expect("nobody else is about");
        }
        writes.iter().for_each(|tablet| txn.put(row_of(*tablet), vec![1]));
        let (took, committed) = self.cluster.time(txn.commit()).await;
        (took, committed.expect("nobody else is about"))
    }

    /// Also the highest timestamp at which it was read.
    async fn read(&self, tablets: &[usize], at: ReadAt) -> (Duration, Timestamp) {
        let node = self.node(self.gateway);
        let reads = tablets.iter().map(|tablet| {
            let id = self.tablets[*tablet];
            node.get(id, vec![row_of(*tablet)], at)
        });
        let (took, read) = self.cluster.time(join_all(reads)).await;
        let at = read.into_iter().map(|read| read.expect("read").0).max();
        (took, at.expect("one at least"))
    }

    async fn stale_read(&self, tablets: &[usize]) -> Duration {
        let node = self.node(self.gateway);
        let at = node.clock().now().earliest.minus(AGO);
        let reads = tablets.iter().map(|tablet| {
            let id = self.tablets[*tablet];
            node.get_stale(id, vec![row_of(*tablet)], at)
        });
        let (took, read) = self.cluster.time(join_all(reads)).await;
        read.into_iter().for_each(|read| drop(read.expect("read")));
        took
    }

    /// The write begins beside the leader, and the read comes there before the write is over.
    async fn read_while_written(&self, tablet: usize) -> Duration {
        let (env, leader) = (Arc::clone(self.node(self.gateway).env()), self.map.leader(tablet));
        let lasts = self.map.quorum(tablet).max(2 * self.cluster.setup.epsilon);
        let lasts = u64::try_from(lasts.as_micros()).expect("short");
        let (write_at, read_at) = (self.map.way(self.gateway, leader), env.random() % lasts);
        let write = self.after(write_at, async {
            self.commit(leader, CommitProtocol::CommitWait, &[], &[tablet]).await.1
        });
        let read = self.after(Duration::from_micros(read_at), async {
            self.read(&[tablet], ReadAt::Strong { min: Timestamp::MIN }).await
        });
        let (written, (took, read)) = join(write, read).await;
        assert!(read < written, "it doesn't see what is being written");
        took
    }

    async fn after<T>(&self, pause: Duration, work: impl Future<Output = T>) -> T {
        self.node(self.gateway).env().sleep(pause).await;
        work.await
    }
}
