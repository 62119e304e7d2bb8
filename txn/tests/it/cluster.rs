//! Three nodes over a simulated network, with disks in memory.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use meridian_replication::Timing;
use meridian_replication::net::{Registry, SimulatedNetwork, Topology};
use meridian_storage::{
    KeyBuilder, KeyType, NodeId, Order, SimulatedDisk, Storage, StorageOptions, TabletId,
};
use meridian_truetime::{
    ClockSettings, CostModel, Env, NodeEnvironment, SimulatedClock, Timestamp, World,
};
use meridian_txn::{
    Member, Mutation, Node, NodeOptions, ReadAt, ReadSet, SYSTEM_TABLET, TabletDescriptor,
    TxnError, WriteRequest, directory_put, table_range,
};

/// A table for tests.
pub const TABLE: u64 = 100;

pub struct Cluster {
    pub world: World,
    pub network: SimulatedNetwork,
    topology: Topology,
    epsilon: Duration,
    disks: BTreeMap<u64, SimulatedDisk>,
    nodes: BTreeMap<u64, (Arc<NodeEnvironment>, Arc<Node>)>,
    starts: u64,
}

/// Runs a scenario on a cluster of one node per region.
pub fn run<F, T>(seed: u64, topology: &str, epsilon: Duration, scenario: F) -> T::Output
where
    F: FnOnce(Cluster) -> T,
    T: Future,
{
    let topology = Topology::load(topology).expect("shipped");
    World::run_virtual(seed, CostModel::default(), |world| async move {
        let network = SimulatedNetwork::new(&world, topology.clone());
        let disks = (1..=3).map(|number| (number, SimulatedDisk::new())).collect();
        let mut cluster =
            Cluster { world, network, topology, epsilon, disks, nodes: BTreeMap::new(), starts: 0 };
        for number in 1..=3 {
            cluster.open(number).await;
        }
        for number in 1..=3 {
            cluster.node(number).claim_leadership().await;
        }
        cluster.node(1).ready().await.expect("serves");
        scenario(cluster).await
    })
}

impl Cluster {
    async fn open(&mut self, number: u64) {
        self.starts += 1;
        let env = self.world.node(number + self.starts * 100);
        let as_env: Env = Arc::clone(&env) as Env;
        let disk = Arc::new(self.disks[&number].clone());
        let storage = Storage::open(Arc::clone(&as_env), disk, StorageOptions::default())
            .expect("the disk is good");
        let place = usize::try_from(number - 1).expect("small");
        let region = &self.topology.regions()[place];
        let registry = Registry::new();
        let id = NodeId::new(number);
        let transport = self
            .network
            .add_node(id, region, Arc::clone(&as_env), registry.clone())
            .expect("the region exists");
        let settings = ClockSettings::constant(self.epsilon);
        let clock = SimulatedClock::new(self.world.clone(), settings).expect("valid");
        let members = (1..=3).zip(self.topology.regions()).map(|(other, region)| Member {
            id: NodeId::new(other),
            region: region.clone(),
            round_trip: self.topology.round_trip(place, usize::try_from(other - 1).expect("small")),
        });
        let node = Node::start(NodeOptions {
            id,
            members: members.collect(),
            env: as_env,
            clock: Arc::new(clock),
            storage,
            transport,
            registry,
            timing: Timing::for_round_trip(self.topology.longest_round_trip()),
            default_voters: 3,
        });
        self.nodes.insert(number, (env, node.await.expect("starts")));
    }

    pub fn node(&self, number: u64) -> Arc<Node> {
        Arc::clone(&self.nodes[&number].1)
    }

    /// What wasn't synced is lost or not, as the seed will have it.
    pub async fn crash(&mut self, number: u64, seed: u64) {
        let (env, node) = self.nodes.remove(&number).expect("it runs");
        self.network.stop_node(NodeId::new(number));
        self.disks[&number].crash(seed);
        env.halt();
        node.shutdown().await;
    }

    pub async fn restart(&mut self, number: u64) {
        self.open(number).await;
        self.node(number).claim_leadership().await;
    }

    /// A tablet for [`TABLE`], led from that node.
    pub async fn create_tablet(&self, number: u64) -> TabletDescriptor {
        let node = self.node(number);
        let descriptor = node
            .new_tablet(
                TabletId::new(2),
                table_range(TABLE),
                vec![(KeyType::Int, Order::Asc)],
                meridian_txn::PlacementChange::default(),
            )
            .expect("can be placed");
        create_tablet(&node, &descriptor).await;
        descriptor
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
    WriteRequest { tablet: TabletId::new(2), schema, reads, mutations, after: Timestamp::MIN }
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
