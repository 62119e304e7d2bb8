//! A node: replicas of tablets, what serves them, and a gateway to all tablets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use meridian_replication::net::{Registry, Transport};
use meridian_replication::{
    Generation, Host, Placement, PlacementChange, TabletDescriptor, Timing,
};
use meridian_storage::{KeyRange, KeyType, NodeId, Order, Storage, TabletId, WriteBatch};
use meridian_truetime::{Env, EnvironmentExt, Timestamp, TrueTime};
use tokio::sync::mpsc::{self, UnboundedSender};

use crate::autosplit::{SplitOptions, drive};
use crate::command::{ReadAt, TxnLock};
use crate::directory::{Directory, SYSTEM_TABLET, system_tablet};
use crate::error::TxnError;
use crate::gateway::attending;
use crate::gateway::stale::Silent;
use crate::gateway::transaction::Held;
use crate::holdings::Holdings;
use crate::locks::TxnId;
use crate::once::Once;
use crate::placement::{Current, allocate, default_placement};
use crate::safe_time;
use crate::safe_time::drive::{ClosedService, SafeTime};
use crate::service::{SERVICE, TabletService};
use crate::tablet::{
    Event, Tablet, TabletMachine, TabletParts, TabletRead, creation, is_stored, removal,
    stored_tablets, wanted_record,
};
use crate::tend::is_stray;

/// A member of the cluster, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub id: NodeId,
    /// Where it is.
    pub region: String,
    /// How far it is from the node that has this list.
    pub round_trip: Duration,
}

/// What a node is made of.
#[derive(Debug)]
pub struct NodeOptions {
    /// Its identity.
    pub id: NodeId,
    /// All nodes of the cluster with itself, in the same order on every node. The first ones are
    /// the replicas of the system tablet.
    pub members: Vec<Member>,
    /// Timers, tasks, chance.
    pub env: Env,
    /// Its clock.
    pub clock: Arc<dyn TrueTime>,
    /// Its disk.
    pub storage: Storage,
    /// Its way to the others.
    pub transport: Arc<dyn Transport>,
    /// Its services.
    pub registry: Registry,
    /// Raft's timeouts.
    pub timing: Timing,
    /// How many replicas of the system tablet vote, and of other tablets where nothing else is asked
    /// for.
    pub voters: usize,
    /// What else is asked for where a table asks for nothing.
    pub placement: PlacementChange,
    /// When its tablets are split and merged by themselves.
    pub splits: SplitOptions,
    /// For how long old versions are kept, at least: [`DEFAULT_RETENTION`](crate::DEFAULT_RETENTION).
    /// Each node has its own; they should be equal.
    pub retention: Duration,
}

/// One node of a cluster.
pub struct Node {
    id: NodeId,
    members: Vec<Member>,
    env: Env,
    clock: Arc<dyn TrueTime>,
    storage: Storage,
    transport: Arc<dyn Transport>,
    registry: Registry,
    timing: Timing,
    default_placement: Placement,
    host: Host,
    directory: Directory,
    tablets: Mutex<BTreeMap<TabletId, Tablet>>,
    leader_hints: Mutex<BTreeMap<TabletId, NodeId>>,
    /// One replica is opened or removed at a time.
    opening: tokio::sync::Mutex<()>,
    holdings: Arc<Holdings>,
    safe_time: SafeTime,
    silent: Silent,
    pub(crate) once: Once,
    /// Told by the replicas' state machines.
    events: UnboundedSender<Event>,
    /// Tablets that somebody sees to at present.
    pub(crate) tending: Mutex<BTreeSet<TabletId>>,
    /// The number of the last transaction that was begun here.
    numbers: AtomicU64,
    /// Those that have locks.
    transactions: Mutex<BTreeMap<TxnId, Weak<Held>>>,
    this: Weak<Self>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Starts a node: opens the replicas that its disk has, and the system tablet's if it is one of
    /// its nodes.
    ///
    /// # Errors
    /// When the disk can't be read.
    pub async fn start(options: NodeOptions) -> Result<Arc<Self>, TxnError> {
        let NodeOptions {
            id,
            members,
            env,
            clock,
            storage,
            transport,
            registry,
            timing,
            voters,
            placement,
            splits,
            retention,
        } = options;
        let system_replicas: Vec<NodeId> =
            members.iter().take(voters).map(|member| member.id).collect();
        let system = system_tablet(system_replicas);
        let default_placement = default_placement(voters, placement, &members)?;
        let host = Host::new(
            id,
            Arc::clone(&env),
            Arc::clone(&clock),
            storage.clone(),
            Arc::clone(&transport),
            &registry,
            timing,
        );
        let (events, occurred) = mpsc::unbounded_channel();
        let first = env.random();
        let node = Arc::new_cyclic(|this| Self {
            id,
            members,
            env,
            clock,
            storage,
            transport,
            registry,
            timing,
            default_placement,
            host,
            directory: Directory::new(system.clone()),
            tablets: Mutex::default(),
            leader_hints: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
            holdings: Arc::default(),
            safe_time: SafeTime::default(),
            silent: Silent::default(),
            once: Once::default(),
            events,
            tending: Mutex::default(),
            numbers: AtomicU64::new(first),
            transactions: Mutex::default(),
            this: Weak::clone(this),
        });
        node.registry.register(SERVICE, Arc::new(TabletService(Arc::downgrade(&node))));
        let closed = ClosedService(Arc::downgrade(&node));
        node.registry.register(safe_time::drive::SERVICE, Arc::new(closed));
        let stored = stored_tablets(&node.storage.data.snapshot()?)?;
        // All of them before any is opened: one that absorbs another when its log is replayed must
        // know that the other is here.
        for descriptor in &stored {
            node.holdings.hold(descriptor.id, Some(descriptor));
        }
        for descriptor in &stored {
            match node.open_tablet(descriptor, false).await {
                Err(_) if node.holdings.is_over(descriptor.id) => {}
                opened => opened?,
            }
        }
        if system.voters.contains(&id) {
            node.open_tablet(&system, false).await?;
        }
        let weak = Arc::downgrade(&node);
        node.env.spawn(crate::tend::follow_events(Weak::clone(&weak), occurred));
        node.env.spawn(crate::reconcile::run(Weak::clone(&weak)));
        node.env.spawn(attending::look_after(Weak::clone(&weak)));
        node.env.spawn(attending::keep_alive(Weak::clone(&weak)));
        node.env.spawn(safe_time::drive::run(Weak::clone(&weak)));
        // They read much now and then.
        node.env.compute(crate::collect::run(Weak::clone(&weak), retention));
        node.env.compute(drive::run(weak, splits));
        Ok(node)
    }

    /// Stands for election in every tablet that this node should lead, without waiting for a
    /// timeout. Groups that hear from a leader refuse. To be called when the other nodes of a
    /// cluster have started, as far as one knows.
    pub async fn claim_leadership(&self) {
        for tablet in self.open_tablets() {
            if tablet.descriptor().preferred_leader == self.id {
                tablet.replica().stand().await;
            }
        }
    }

    /// Waits until the system tablet serves.
    ///
    /// # Errors
    /// When it doesn't within several elections.
    pub async fn ready(&self) -> Result<(), TxnError> {
        self.refresh_directory().await
    }

    /// Stops serving and ends the replicas' tasks. What was acknowledged is on disk.
    pub async fn shutdown(&self) {
        self.host.shutdown().await;
        lock(&self.tablets).clear();
    }

    /// The node's identity.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The cluster's nodes.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The node's timers, tasks and chance.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The node's clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn TrueTime> {
        &self.clock
    }

    /// The node's way to the others.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// The node's services, for those of the layers above.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Raft's timeouts.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// The node itself, unless it is about to go.
    pub(crate) fn this(&self) -> Result<Arc<Self>, TxnError> {
        let stopped = || TxnError::Internal("the node has stopped".to_owned());
        self.this.upgrade().ok_or_else(stopped)
    }

    /// A number that no other transaction of this node's has.
    pub(crate) fn next_txn(&self) -> TxnId {
        TxnId { gateway: self.id, number: self.numbers.fetch_add(1, Ordering::Relaxed) }
    }

    /// The transactions that were begun here and have locks.
    pub(crate) fn transactions(&self) -> MutexGuard<'_, BTreeMap<TxnId, Weak<Held>>> {
        lock(&self.transactions)
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn closed_timestamps(&self) -> &SafeTime {
        &self.safe_time
    }

    pub(crate) fn silent(&self) -> &Silent {
        &self.silent
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(crate) fn open_tablets(&self) -> Vec<Tablet> {
        lock(&self.tablets).values().cloned().collect()
    }

    /// This node's replica of a tablet.
    pub(crate) fn tablet(&self, tablet: TabletId) -> Result<Tablet, TxnError> {
        lock(&self.tablets).get(&tablet).cloned().ok_or(TxnError::NoSuchTablet { tablet })
    }

    /// Who led a tablet when it was last asked.
    #[must_use]
    pub fn leader_hint(&self, tablet: TabletId) -> Option<NodeId> {
        lock(&self.leader_hints).get(&tablet).copied()
    }

    pub(crate) fn set_leader_hint(&self, tablet: TabletId, leader: NodeId) {
        lock(&self.leader_hints).insert(tablet, leader);
    }

    /// The placement of a table for which none is asked for.
    #[must_use]
    pub fn default_placement(&self) -> Placement {
        self.default_placement.clone()
    }

    /// A new tablet: where its replicas go follows from the cluster's default placement with a
    /// change made to it, and from this node, which leads unless the placement says otherwise.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when the nodes can't satisfy it.
    pub fn new_tablet(
        &self,
        id: TabletId,
        range: KeyRange,
        root_key: Vec<(KeyType, Order)>,
        change: PlacementChange,
    ) -> Result<TabletDescriptor, TxnError> {
        let placement = self.default_placement().with(change);
        let current = Current { voters: &[], read_only: &[], preferred_leader: self.id };
        let (target, preferred_leader) = allocate(&placement, &self.members, current)?;
        Ok(TabletDescriptor {
            id,
            generation: Generation::FIRST,
            range,
            sticky: false,
            root_key,
            voters: target.voters,
            read_only: target.read_only,
            preferred_leader,
            placement,
        })
    }

    /// A view of `range` of a tablet that this node leads, for services that run beside it.
    ///
    /// # Errors
    /// [`TxnError::NotLeader`] when another node leads it.
    pub async fn open_read(
        &self,
        tablet: TabletId,
        at: ReadAt,
        range: &KeyRange,
    ) -> Result<TabletRead, TxnError> {
        self.tablet(tablet)?.read(at, range).await
    }

    /// A view of what is committed in these ranges of a tablet that this node leads, under locks.
    ///
    /// # Errors
    /// [`TxnError::Locked`] when another transaction has them for too long.
    pub async fn open_locked(
        &self,
        tablet: TabletId,
        lock: TxnLock,
        ranges: Vec<KeyRange>,
    ) -> Result<TabletRead, TxnError> {
        self.tablet(tablet)?.read_locked(lock, ranges).await
    }

    /// Opens this node's replica of a tablet unless it is open: as the data file has it; or born, if
    /// this node is one of the tablet's first members; or else blank, to be filled by the leader.
    /// With `lead`, stands for election.
    pub(crate) async fn open_tablet(
        &self,
        descriptor: &TabletDescriptor,
        lead: bool,
    ) -> Result<(), TxnError> {
        let _one_at_a_time = self.opening.lock().await;
        let tablet = match self.tablet(descriptor.id) {
            Ok(tablet) => {
                self.want(&tablet, descriptor.generation).await?;
                tablet
            }
            Err(_) => self.open_replica(descriptor, None, Timestamp::MIN).await?,
        };
        if lead {
            tablet.replica().stand().await;
        }
        Ok(())
    }

    /// Remembers as of which generation a leader wants the replica that is here. It counts on what
    /// the replica holds; and the directory may still say that there should be none.
    async fn want(&self, tablet: &Tablet, generation: Generation) -> Result<(), TxnError> {
        if generation <= tablet.wanted() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        batch.put_record(wanted_record(tablet.id()), generation.get().to_be_bytes().to_vec());
        self.storage.data.commit(batch)?;
        self.host.flush().await.map_err(|error| TxnError::Internal(error.to_string()))?;
        tablet.set_wanted(generation);
        Ok(())
    }

    /// Opens the replica of a tablet that was just split from one here.
    pub(crate) async fn open_child(
        &self,
        parent: TabletId,
        child: &TabletDescriptor,
    ) -> Result<(), TxnError> {
        let _one_at_a_time = self.opening.lock().await;
        if self.tablet(child.id).is_ok() {
            return Ok(());
        }
        // Its log must not remember what the data file has forgotten: what makes the split again may
        // be gone by then.
        self.host.flush().await.map_err(|error| TxnError::Internal(error.to_string()))?;
        let open = self.tablet(parent).ok();
        let floor = open.as_ref().and_then(Tablet::floor);
        let inherited = floor.unwrap_or(Timestamp::MIN);
        let opened = self.open_replica(child, Some(parent), inherited).await?;
        if let (Some(parent), Some(_)) = (open, floor) {
            // The followers open theirs when they have applied the split, too.
            parent.replica().announce().await;
            self.env.spawn(async move { opened.stand_until_led().await });
        }
        Ok(())
    }

    async fn open_replica(
        &self,
        descriptor: &TabletDescriptor,
        split_from: Option<TabletId>,
        inherited: Timestamp,
    ) -> Result<Tablet, TxnError> {
        let id = descriptor.id;
        let internal = |error: std::io::Error| TxnError::Internal(error.to_string());
        if self.directory.is_gone(id) {
            return Err(TxnError::NoSuchTablet { tablet: id });
        }
        let stored = is_stored(&self.storage.data.snapshot()?, id)?;
        if !stored {
            let claimed = self.holdings.offer(id, descriptor.range.clone(), &BTreeSet::new());
            claimed.map_err(|overlap| TxnError::Unavailable {
                tablet: id,
                reason: overlap.to_string(),
            })?;
            // Of an earlier replica here, whose removal was interrupted.
            self.host.forget(id).await.map_err(internal)?;
            let first_member = descriptor.replicas().any(|node| node == self.id);
            let born = descriptor.generation == Generation::FIRST && first_member;
            let mut batch = if born { creation(descriptor)? } else { WriteBatch::default() };
            batch.put_record(wanted_record(id), descriptor.generation.get().to_be_bytes().to_vec());
            self.storage.data.commit(batch)?;
            // The log must not remember what the data file has forgotten.
            self.host.flush().await.map_err(internal)?;
        }
        // Alone: another replica, which replays its log, may be about to take over its rows.
        let machine = self.host.alone(|| {
            if self.holdings.is_over(id) {
                return Err(TxnError::NoSuchTablet { tablet: id });
            }
            let view = self.storage.data.snapshot()?;
            TabletMachine::open(id, &view, Arc::clone(&self.holdings), self.events.clone())
        });
        let machine = Arc::new(machine?);
        let replica = self.host.open(id, Arc::clone(&machine) as Arc<_>, split_from).await;
        let replica = replica.map_err(internal)?;
        let wanted = self.storage.data.snapshot()?.record(&wanted_record(id))?;
        let wanted = wanted.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        let tablet = Tablet::start(TabletParts {
            wanted: Generation::from(wanted.map_or(0, u64::from_be_bytes)),
            env: Arc::clone(&self.env),
            clock: Arc::clone(&self.clock),
            data: self.storage.data.clone(),
            replica,
            machine,
            opened_as: descriptor.clone(),
            inherited,
        });
        lock(&self.tablets).insert(id, tablet.clone());
        Ok(tablet)
    }

    /// Closes this node's replica of a tablet that is gone, or elsewhere now, and deletes its data.
    pub(crate) async fn remove_tablet(&self, tablet: TabletId) -> Result<(), TxnError> {
        if tablet == SYSTEM_TABLET {
            return Err(TxnError::Internal("the system tablet can't be removed".into()));
        }
        let _one_at_a_time = self.opening.lock().await;
        self.remove_replica(tablet).await
    }

    /// The same, if the directory says so and no leader has wanted the replica meanwhile.
    pub(crate) async fn remove_stray(&self, tablet: TabletId) -> Result<(), TxnError> {
        let _one_at_a_time = self.opening.lock().await;
        if self.tablet(tablet).is_ok_and(|tablet| is_stray(self, &tablet)) {
            tracing::info!(node = %self.id, %tablet, "removes a replica");
            self.remove_replica(tablet).await?;
        }
        Ok(())
    }

    async fn remove_replica(&self, tablet: TabletId) -> Result<(), TxnError> {
        let removed = lock(&self.tablets).remove(&tablet);
        if removed.is_none() && !self.holdings.is_over(tablet) {
            return Ok(());
        }
        let internal = |error: std::io::Error| TxnError::Internal(error.to_string());
        if let Some(removed) = removed.as_ref().filter(|_| self.holdings.is_over(tablet)) {
            removed.set_absorbed();
        }
        self.host.close(tablet).await;
        // Alone: another tablet may be about to take over what this one held.
        self.host.alone(|| {
            if !self.holdings.is_over(tablet) {
                let state = removed.as_ref().and_then(|removed| removed.machine().state());
                let own = state.map(|state| self.holdings.own(&state.descriptor));
                let batch =
                    removal(tablet, own.unwrap_or_default(), &self.storage.data.snapshot()?)?;
                self.storage.data.commit(batch)?;
            }
            self.holdings.release(tablet);
            Ok::<(), TxnError>(())
        })?;
        // The data file must not come back, after a crash, without the log.
        self.host.flush().await.map_err(internal)?;
        self.host.forget(tablet).await.map_err(internal)
    }
}
