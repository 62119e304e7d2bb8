//! Three nodes over a simulated network, with disks in memory.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use meridian_replication::Timing;
use meridian_replication::net::{Registry, SimulatedNetwork, Topology};
use meridian_storage::{
    KeyBuilder, KeyRange, KeyType, NodeId, Order, SimulatedDisk, Storage, StorageError,
    StorageOptions, TabletId,
};
use meridian_truetime::{
    ClockSettings, CostModel, Env, EnvironmentExt, NodeEnvironment, SimulatedClock, Timestamp,
    World,
};
use meridian_txn::{
    Member, Mutation, Node, NodeOptions, PlacementChange, ReadAt, ReadSet, SYSTEM_TABLET,
    SplitOptions, TabletDescriptor, TxnError, WriteRequest, directory_put, table_range,
};

/// A table for tests.
pub const TABLE: u64 = 100;

/// How a test's cluster is made.
#[derive(Clone, Copy)]
pub struct Setup {
    pub seed: u64,
    pub topology: &'static str,
    /// They are spread over the topology's regions in turn.
    pub nodes: u64,
    pub epsilon: Duration,
    /// Every other clock is ahead of the true time by the uncertainty, the rest as far behind.
    pub skewed: bool,
    /// So many entries are kept in a log for those who lag; by default thousands.
    pub log_keep: Option<u64>,
    pub splits: SplitOptions,
    pub retention: Duration,
    /// What it takes to handle a message or to apply an entry.
    pub request: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        let splits = SplitOptions::virtual_time();
        let epsilon = Duration::ZERO;
        Self {
            seed: 1,
            topology: "local",
            nodes: 3,
            epsilon,
            skewed: false,
            log_keep: None,
            splits,
            retention: meridian_txn::DEFAULT_RETENTION,
            request: Duration::ZERO,
        }
    }
}

pub struct Cluster {
    pub world: World,
    pub network: SimulatedNetwork,
    pub setup: Setup,
    topology: Topology,
    disks: BTreeMap<u64, SimulatedDisk>,
    nodes: Mutex<BTreeMap<u64, Running>>,
    starts: AtomicU64,
}

#[derive(Clone)]
struct Running {
    env: Arc<NodeEnvironment>,
    node: Arc<Node>,
    storage: Storage,
}

/// Runs a scenario on a cluster of one node per region.
pub fn run<F, T>(seed: u64, topology: &'static str, epsilon: Duration, scenario: F) -> T::Output
where
    F: FnOnce(Arc<Cluster>) -> T,
    T: Future,
{
    run_setup(Setup { seed, topology, epsilon, ..Setup::default() }, scenario)
}

pub fn run_setup<F, T>(setup: Setup, scenario: F) -> T::Output
where
    F: FnOnce(Arc<Cluster>) -> T,
    T: Future,
{
    let topology = Topology::load(setup.topology).expect("shipped");
    let costs = CostModel { request: setup.request, ..CostModel::default() };
    World::run_virtual(setup.seed, costs, |world| async move {
        let network = SimulatedNetwork::new(&world, topology.clone());
        let disks = (1..=setup.nodes).map(|number| (number, SimulatedDisk::new())).collect();
        let (nodes, starts) = (Mutex::default(), AtomicU64::default());
        let cluster = Cluster { world, network, setup, topology, disks, nodes, starts };
        let cluster = Arc::new(cluster);
        for number in 1..=setup.nodes {
            cluster.open(number).await;
        }
        for number in 1..=setup.nodes {
            cluster.node(number).claim_leadership().await;
        }
        cluster.node(1).ready().await.expect("serves");
        scenario(cluster).await
    })
}

impl Cluster {
    fn region(&self, number: u64) -> usize {
        usize::try_from(number - 1).expect("small") % self.topology.regions().len()
    }

    async fn open(&self, number: u64) {
        let starts = self.starts.fetch_add(1, Ordering::Relaxed) + 1;
        let env = self.world.node(number + starts * 100);
        let as_env: Env = Arc::clone(&env) as Env;
        let disk = Arc::new(self.disks[&number].clone());
        // A client may still hold what is left of the node that was stopped.
        let storage = loop {
            let disk = Arc::clone(&disk);
            match Storage::open(Arc::clone(&as_env), disk, StorageOptions::default()) {
                Err(StorageError::InUse { .. }) => as_env.sleep(Duration::from_millis(100)).await,
                opened => break opened.expect("the disk is good"),
            }
        };
        let place = self.region(number);
        let region = &self.topology.regions()[place];
        let registry = Registry::new();
        let id = NodeId::new(number);
        let transport = self
            .network
            .add_node(id, region, Arc::clone(&as_env), registry.clone())
            .expect("the region exists");
        let mut settings = ClockSettings::constant(self.setup.epsilon);
        if self.setup.skewed {
            // As far apart as the bound allows.
            let off = i64::try_from(self.setup.epsilon.as_nanos()).expect("short");
            settings.offset_nanos = if number.is_multiple_of(2) { off } else { -off };
        }
        let clock = SimulatedClock::new(self.world.clone(), settings).expect("valid");
        let members = (1..=self.setup.nodes).map(|other| Member {
            id: NodeId::new(other),
            region: self.topology.regions()[self.region(other)].clone(),
            round_trip: self.topology.round_trip(place, self.region(other)),
        });
        let mut timing = Timing::for_round_trip(self.topology.longest_round_trip());
        timing.log_keep = self.setup.log_keep.unwrap_or(timing.log_keep);
        let node = Node::start(NodeOptions {
            id,
            members: members.collect(),
            env: as_env,
            clock: Arc::new(clock),
            storage: storage.clone(),
            transport,
            registry,
            timing,
            voters: 3,
            placement: PlacementChange::default(),
            splits: self.setup.splits,
            retention: self.setup.retention,
        });
        let node = node.await.expect("starts");
        self.lock().insert(number, Running { env, node, storage });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.nodes.lock().expect("no test panics while it holds the lock")
    }

    pub fn node(&self, number: u64) -> Arc<Node> {
        Arc::clone(&self.lock()[&number].node)
    }

    /// The numbers of the nodes that run.
    pub fn running(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    /// What wasn't synced is lost or not, as the seed will have it.
    pub async fn crash(&self, number: u64, seed: u64) {
        let Running { env, node, storage } = self.lock().remove(&number).expect("it runs");
        self.network.stop_node(NodeId::new(number));
        self.disks[&number].crash(seed);
        env.halt();
        node.shutdown().await;
        drop(storage);
    }

    /// What was written is on the disk.
    pub async fn stop(&self, number: u64) {
        let Running { env, node, storage } = self.lock().remove(&number).expect("it runs");
        self.network.stop_node(NodeId::new(number));
        node.shutdown().await;
        env.halt();
        drop(storage);
    }

    pub async fn restart(&self, number: u64) {
        self.open(number).await;
        self.node(number).claim_leadership().await;
    }

    /// A tablet for [`TABLE`], led from that node.
    pub async fn create_tablet(&self, number: u64) -> TabletDescriptor {
        let node = self.node(number);
        let id = node.new_tablet_id().await.expect("an id");
        assert_eq!(id, TabletId::new(2), "the first that is free");
        let descriptor = node
            .new_tablet(
                id,
                table_range(TABLE),
                vec![(KeyType::Int, Order::Asc)],
                PlacementChange::default(),
            )
            .expect("can be placed");
        create_tablet(&node, &descriptor).await;
        descriptor
    }

    /// How many versions a node has of the keys of a range.
    pub fn versions(&self, number: u64, range: &KeyRange) -> usize {
        let view = self.lock()[&number].storage.data.snapshot().expect("readable");
        view.versions(range).expect("readable").count()
    }

    /// Between two nodes.
    pub fn round_trip(&self, a: u64, b: u64) -> Duration {
        self.topology.round_trip(self.region(a), self.region(b))
    }

    /// The simulated time that `work` takes.
    pub async fn time<T>(&self, work: impl Future<Output = T>) -> (Duration, T) {
        let began = self.world.moment();
        let result = work.await;
        (self.world.moment().since(began), result)
    }
}

/// Enters a tablet into the directory and waits until it serves.
pub async fn create_tablet(node: &Node, descriptor: &TabletDescriptor) {
    let entered = node.write(WriteRequest {
        tablet: SYSTEM_TABLET,
        schema: Vec::new(),
        reads: ReadSet::default(),
        mutations: vec![directory_put(descriptor).expect("encodes")],
        after: Timestamp::MIN,
        txn: None,
    });
    entered.await.expect("entered");
    node.ensure_tablet(descriptor).await.expect("serves");
}

pub fn key(k: u64) -> Vec<u8> {
    KeyBuilder::new().table(TABLE).table(k).finish()
}

/// A write to the test's tablet.
pub fn write(reads: ReadSet, mutations: Vec<Mutation>) -> WriteRequest {
    let schema = vec![(TABLE, 1)];
    WriteRequest {
        tablet: TabletId::new(2),
        schema,
        reads,
        mutations,
        after: Timestamp::MIN,
        txn: None,
    }
}

pub fn insert(k: u64, value: &str) -> WriteRequest {
    let mutation = Mutation::Insert { key: key(k), value: value.into() };
    write(ReadSet::default(), vec![mutation])
}

/// The value of a key, as strong reads see it.
pub async fn value(node: &Node, k: u64) -> Result<Option<String>, TxnError> {
    let at = ReadAt::Strong { min: Timestamp::MIN };
    let (_, rows) = node.get(TabletId::new(2), vec![key(k)], at).await?;
    let row = rows.into_iter().next().flatten();
    Ok(row.map(|row| String::from_utf8(row.value).expect("text")))
}
