//! A cluster in one process: all nodes over a simulated network, in real or in virtual time.
//!
//! The demo, the tests and the experiments use the same one. What differs is in the options: the
//! world, and where the disks are. A node that is stopped is gone as far as the others can tell; what
//! it has when it starts again is what its disk has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_replication::Timing;
use meridian_replication::net::{Registry, SimulatedNetwork, Topology, TopologyError};
use meridian_sql::{Engine, SqlError};
use meridian_storage::{
    Disk, FolderDisk, NodeId, SimulatedDisk, Storage, StorageError, StorageOptions,
};
use meridian_truetime::{
    ClockError, ClockSettings, Env, EnvironmentExt, NodeEnvironment, SimulatedClock, Timestamp,
    TrueTime, World,
};
use meridian_txn::{
    CommitProtocol, Member, Node, NodeOptions, PlacementChange, SplitOptions, TxnError,
};

use crate::config::{DataPlace, NodeConfig};

pub(crate) mod view;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Regions and round trips.
    pub topology: Topology,
    /// The nodes.
    pub nodes: Vec<NodeConfig>,
    /// How every node's clock behaves at first.
    pub clock: ClockSettings,
    /// Where the data is.
    pub data: DataPlace,
    /// Where replicas go when a table asks for nothing.
    pub placement: PlacementChange,
    /// When tablets split and merge by themselves.
    pub splits: SplitOptions,
    /// How transactions commit, where a session says nothing.
    pub protocol: CommitProtocol,
    /// For how long old versions are kept.
    pub retention: Duration,
}

/// Why a cluster or a node can't start or stop.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A node's region isn't in the topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The clock's settings contradict themselves.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// A node's disk can't be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A node doesn't come up.
    #[error("node {node} does not start: {error}")]
    Start {
        /// The node.
        node: u64,
        /// Why.
        error: TxnError,
    },
    /// A node's SQL engine can't be set up.
    #[error("node {node} can't serve SQL: {error}")]
    Engine {
        /// The node.
        node: u64,
        /// Why.
        error: SqlError,
    },
    /// There is no such node.
    #[error("there is no node {node}")]
    NoSuchNode {
        /// The number asked for.
        node: u64,
        /// The greatest number that there is.
        nodes: usize,
    },
    /// Nobody would be left to resume the others.
    #[error("node {node} is the last one that isn't paused")]
    LastAwake {
        /// The node.
        node: u64,
    },
}

/// A node that runs.
#[derive(Debug)]
struct Running {
    env: Arc<NodeEnvironment>,
    node: Arc<Node>,
    engine: Arc<Engine>,
    started: Timestamp,
    /// Counts its pauses and their ends, so that the timer of one doesn't end another.
    pauses: u64,
}

/// A node's place, whether it runs or not.
#[derive(Debug)]
struct Slot {
    place: NodeConfig,
    clock: Arc<SimulatedClock>,
    /// In memory, it outlives the node.
    memory: Option<Arc<SimulatedDisk>>,
    /// How often the node was started.
    incarnation: u64,
    running: Option<Running>,
}

/// A cluster in one process.
#[derive(Debug)]
pub struct Cluster {
    world: World,
    options: ClusterOptions,
    network: SimulatedNetwork,
    /// Timers of the cluster's own, beside those of its nodes.
    env: Env,
    slots: Mutex<BTreeMap<u64, Slot>>,
    /// One node is started or stopped at a time.
    changing: tokio::sync::Mutex<()>,
    itself: std::sync::Weak<Cluster>,
}

/// How many replicas a tablet has where nothing else is asked for.
pub(crate) const DEFAULT_VOTERS: usize = 3;

/// The cluster's label among the world's environments, apart from any node's.
const LABEL: u64 = u64::MAX - 2;

/// How long a disk may stay in use by the remains of a node that was stopped.
const RELEASE: Duration = Duration::from_secs(5);

impl Cluster {
    /// Starts all nodes and waits until the cluster serves.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start(world: World, options: ClusterOptions) -> Result<Arc<Self>, ClusterError> {
        let network = SimulatedNetwork::new(&world, options.topology.clone());
        let mut slots = BTreeMap::new();
        for place in &options.nodes {
            let clock = Arc::new(SimulatedClock::new(world.clone(), options.clock)?);
            let memory =
                (options.data == DataPlace::Memory).then(|| Arc::new(SimulatedDisk::new()));
            let place = place.clone();
            let number = place.number;
            slots.insert(number, Slot { place, clock, memory, incarnation: 0, running: None });
        }
        let env: Env = world.node(LABEL);
        let cluster = Arc::new_cyclic(|itself| Self {
            env,
            world,
            options,
            network,
            slots: Mutex::new(slots),
            changing: tokio::sync::Mutex::new(()),
            itself: std::sync::Weak::clone(itself),
        });
        for number in cluster.numbers() {
            cluster.start_one(number).await?;
        }
        for number in cluster.numbers() {
            cluster.claim(number).await?;
        }
        if let Some((number, node)) = cluster.running().into_iter().next() {
            node.ready().await.map_err(|error| ClusterError::Start { node: number, error })?;
        }
        Ok(cluster)
    }

    /// The nodes' numbers.
    #[must_use]
    pub fn numbers(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    /// A node's SQL engine, while the node runs.
    #[must_use]
    pub fn engine(&self, number: u64) -> Option<Arc<Engine>> {
        let slots = self.lock();
        slots.get(&number)?.running.as_ref().map(|running| Arc::clone(&running.engine))
    }

    /// A node, while it runs.
    #[must_use]
    pub fn node(&self, number: u64) -> Option<Arc<Node>> {
        let slots = self.lock();
        slots.get(&number)?.running.as_ref().map(|running| Arc::clone(&running.node))
    }

    /// A node's environment, while it runs.
    #[must_use]
    pub fn env(&self, number: u64) -> Option<Env> {
        let slots = self.lock();
        slots.get(&number)?.running.as_ref().map(|running| Arc::clone(&running.env) as Env)
    }

    /// A node's clock.
    #[must_use]
    pub fn clock(&self, number: u64) -> Option<Arc<SimulatedClock>> {
        self.lock().get(&number).map(|slot| Arc::clone(&slot.clock))
    }

    /// The network between the nodes.
    #[must_use]
    pub fn network(&self) -> &SimulatedNetwork {
        &self.network
    }

    /// The world that the cluster lives in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Stops a node as an operator would: it finishes what it has begun to write, and is gone.
    /// False if it doesn't run.
    ///
    /// # Errors
    /// [`ClusterError::NoSuchNode`].
    pub async fn stop_node(&self, number: u64) -> Result<bool, ClusterError> {
        let _one_at_a_time = self.changing.lock().await;
        let Some(running) = self.take(number)? else { return Ok(false) };
        self.network.stop_node(NodeId::new(number));
        // Paused, it couldn't finish anything.
        running.env.resume();
        running.node.shutdown().await;
        running.env.halt();
        Ok(true)
    }

    /// Crashes a node: its network is cut and its disk fails at the same moment, and of what wasn't
    /// synced, `seed` decides what is lost. Only for disks in memory; another node is stopped.
    ///
    /// # Errors
    /// [`ClusterError::NoSuchNode`].
    pub async fn crash_node(&self, number: u64, seed: u64) -> Result<(), ClusterError> {
        let _one_at_a_time = self.changing.lock().await;
        let memory = self.lock().get(&number).and_then(|slot| slot.memory.clone());
        let Some(running) = self.take(number)? else { return Ok(()) };
        self.network.stop_node(NodeId::new(number));
        if let Some(disk) = &memory {
            // What was open is dead from here on.
            disk.crash(seed);
        }
        running.env.halt();
        running.node.shutdown().await;
        Ok(())
    }

    /// Starts a node that was stopped. False if it runs.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start_node(&self, number: u64) -> Result<bool, ClusterError> {
        let _one_at_a_time = self.changing.lock().await;
        if self.node(number).is_some() {
            return Ok(false);
        }
        self.start_one(number).await?;
        self.claim(number).await?;
        Ok(true)
    }

    /// Pauses a node as SIGSTOP does a process (see [`NodeEnvironment::pause`]), until it is
    /// resumed or for as long as is said; a paused node's pause gets another end. False if it was
    /// paused or doesn't run.
    ///
    /// # Errors
    /// [`ClusterError::NoSuchNode`]; [`ClusterError::LastAwake`] for a pause without an end that
    /// would leave no node to end it from.
    pub fn pause_node(&self, number: u64, pause: Option<Duration>) -> Result<bool, ClusterError> {
        let mut slots = self.lock();
        let awake = |slot: &Slot| slot.running.as_ref().is_some_and(|r| !r.env.is_paused());
        let others = slots.iter().any(|(other, slot)| *other != number && awake(slot));
        let Some(running) = Self::find(&mut slots, number)?.running.as_mut() else {
            return Ok(false);
        };
        if pause.is_none() && !others {
            return Err(ClusterError::LastAwake { node: number });
        }
        let changed = running.env.pause();
        running.pauses += 1;
        if let Some(pause) = pause {
            let (env, pauses) = (Arc::clone(&running.env), running.pauses);
            let (cluster, over) = (std::sync::Weak::clone(&self.itself), self.env.sleep(pause));
            self.env.spawn(async move {
                over.await;
                let Some(cluster) = cluster.upgrade() else { return };
                let mut slots = cluster.lock();
                let slot = slots.get_mut(&number).and_then(|slot| slot.running.as_mut());
                // It may have been resumed, or started again, and paused once more since.
                if slot.is_some_and(|r| Arc::ptr_eq(&r.env, &env) && r.pauses == pauses) {
                    env.resume();
                }
            });
        }
        Ok(changed)
    }

    /// Lets a paused node go on. False if it wasn't paused.
    ///
    /// # Errors
    /// [`ClusterError::NoSuchNode`].
    pub fn resume_node(&self, number: u64) -> Result<bool, ClusterError> {
        let mut slots = self.lock();
        let Some(running) = Self::find(&mut slots, number)?.running.as_mut() else {
            return Ok(false);
        };
        running.pauses += 1;
        Ok(running.env.resume())
    }

    /// Stops all nodes.
    pub async fn shutdown(&self) {
        for number in self.numbers() {
            // Only an unknown number fails.
            let _ = self.stop_node(number).await;
        }
    }

    fn running(&self) -> Vec<(u64, Arc<Node>)> {
        let slots = self.lock();
        let running = slots.iter().filter_map(|(number, slot)| {
            slot.running.as_ref().map(|running| (*number, Arc::clone(&running.node)))
        });
        running.collect()
    }

    fn take(&self, number: u64) -> Result<Option<Running>, ClusterError> {
        Ok(Self::find(&mut self.lock(), number)?.running.take())
    }

    fn find(slots: &mut BTreeMap<u64, Slot>, number: u64) -> Result<&mut Slot, ClusterError> {
        let nodes = slots.len();
        slots.get_mut(&number).ok_or(ClusterError::NoSuchNode { node: number, nodes })
    }

    async fn claim(&self, number: u64) -> Result<(), ClusterError> {
        let Some(node) = self.node(number) else { return Ok(()) };
        node.claim_leadership().await;
        Ok(())
    }

    async fn start_one(&self, number: u64) -> Result<(), ClusterError> {
        let (place, clock, memory, incarnation) = {
            let mut slots = self.lock();
            let slot = Self::find(&mut slots, number)?;
            slot.incarnation += 1;
            (slot.place.clone(), Arc::clone(&slot.clock), slot.memory.clone(), slot.incarnation)
        };
        let env = self.world.node(number | (incarnation << 32));
        let as_env: Env = Arc::clone(&env) as Env;
        let storage = self.open_storage(&as_env, number, memory).await?;
        let id = NodeId::new(number);
        let registry = Registry::new();
        let region = self.region_of(&place);
        let transport = self.network.add_node(id, region, Arc::clone(&as_env), registry.clone())?;
        let options = NodeOptions {
            id,
            members: self.members(&place),
            env: Arc::clone(&as_env),
            clock: clock as Arc<dyn TrueTime>,
            storage,
            transport,
            registry,
            timing: self.timing(),
            voters: DEFAULT_VOTERS.min(self.options.nodes.len()),
            placement: self.options.placement.clone(),
            splits: self.options.splits,
            retention: self.options.retention,
        };
        let started = Node::start(options).await;
        let node = started.map_err(|error| ClusterError::Start { node: number, error })?;
        let view = Arc::new(view::View::new(std::sync::Weak::clone(&self.itself)));
        let engine = Engine::new(Arc::clone(&node), view, self.options.protocol)
            .map_err(|error| ClusterError::Engine { node: number, error })?;
        if let Some(slot) = self.lock().get_mut(&number) {
            let started = self.world.true_time();
            slot.running = Some(Running { env, node, engine, started, pauses: 0 });
        }
        Ok(())
    }

    async fn open_storage(
        &self,
        env: &Env,
        number: u64,
        memory: Option<Arc<SimulatedDisk>>,
    ) -> Result<Storage, ClusterError> {
        let give_up = env.moment().plus(RELEASE);
        loop {
            let disk: Result<Arc<dyn Disk>, StorageError> = match (&self.options.data, &memory) {
                (DataPlace::Folder(folder), None) => {
                    let disk = FolderDisk::open(folder.join(format!("node{number}")));
                    disk.map(|disk| Arc::new(disk) as Arc<dyn Disk>)
                }
                (_, Some(disk)) => Ok(Arc::clone(disk) as Arc<dyn Disk>),
                (DataPlace::Memory, None) => Ok(Arc::new(SimulatedDisk::new())),
            };
            let options = StorageOptions::default();
            let opened = disk.and_then(|disk| Storage::open(Arc::clone(env), disk, options));
            match opened {
                Err(StorageError::InUse { .. })
                    if env.moment() < give_up && self.was_started_before(number) =>
                {
                    env.sleep(Duration::from_millis(20)).await;
                }
                opened => return Ok(opened?),
            }
        }
    }

    /// Raft's timeouts, which follow from the topology that the cluster began with.
    fn timing(&self) -> Timing {
        Timing::for_round_trip(self.options.topology.longest_round_trip())
    }

    fn was_started_before(&self, number: u64) -> bool {
        self.lock().get(&number).is_some_and(|slot| slot.incarnation > 1)
    }

    /// The members of the cluster, as the node `here` sees them.
    fn members(&self, here: &NodeConfig) -> Vec<Member> {
        let topology = &self.options.topology;
        let members = self.options.nodes.iter().map(|there| Member {
            id: NodeId::new(there.number),
            region: self.region_of(there).to_owned(),
            round_trip: topology.round_trip(here.region, there.region),
        });
        members.collect()
    }

    fn region_of(&self, place: &NodeConfig) -> &str {
        self.options.topology.regions().get(place.region).map_or("", String::as_str)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
