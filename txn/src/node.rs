//! A node: replicas of tablets, what serves them, and a gateway to all tablets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_replication::net::{Registry, Transport};
use meridian_replication::{
    Generation, Host, Placement, PlacementChange, TabletDescriptor, Timing,
};
use meridian_storage::{KeyRange, KeyType, NodeId, Order, Storage, TabletId};
use meridian_truetime::{Env, EnvironmentExt, TrueTime};

use crate::command::ReadAt;
use crate::directory::{Directory, SYSTEM_TABLET, system_tablet};
use crate::error::TxnError;
use crate::service::{SERVICE, TabletService};
use crate::tablet::{Tablet, TabletMachine, TabletRead, removal, stored_tablets};

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
    /// How many replicas of a new tablet vote, and of the system tablet.
    pub default_voters: usize,
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
    default_voters: usize,
    host: Host,
    system: TabletDescriptor,
    directory: Directory,
    tablets: Mutex<BTreeMap<TabletId, Tablet>>,
    leader_hints: Mutex<BTreeMap<TabletId, NodeId>>,
    /// One replica is opened or removed at a time.
    opening: tokio::sync::Mutex<()>,
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
            default_voters,
        } = options;
        let system_replicas: Vec<NodeId> =
            members.iter().take(default_voters).map(|member| member.id).collect();
        let system = system_tablet(system_replicas);
        let host = Host::new(
            id,
            Arc::clone(&env),
            storage.clone(),
            Arc::clone(&transport),
            &registry,
            timing,
        );
        let node = Arc::new(Self {
            id,
            members,
            env,
            clock,
            storage,
            transport,
            registry,
            timing,
            default_voters,
            host,
            directory: Directory::new(system.clone()),
            system,
            tablets: Mutex::default(),
            leader_hints: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
        });
        node.registry.register(SERVICE, Arc::new(TabletService(Arc::downgrade(&node))));
        let stored = stored_tablets(&node.storage.data.snapshot()?)?;
        for descriptor in &stored {
            node.open_tablet(descriptor, false).await?;
        }
        if node.system.voters.contains(&id) {
            node.open_tablet(&node.system, false).await?;
        }
        let weak = Arc::downgrade(&node);
        node.env.spawn(crate::reconcile::run(weak));
        Ok(node)
    }

    /// Stands for election in every tablet that this node should lead, without waiting for a
    /// timeout. Groups that hear from a leader refuse. To be called when the other nodes of a
    /// cluster have started, as far as one knows.
    ///
    /// # Errors
    /// When a replica has stopped.
    pub async fn claim_leadership(&self) -> Result<(), TxnError> {
        for tablet in self.open_tablets() {
            if tablet.machine().state().descriptor.preferred_leader != self.id {
                continue;
            }
            if tablet.replica().is_initialized().await {
                tablet.replica().stand().await;
            } else if tablet.id() == SYSTEM_TABLET {
                self.open_tablet(&self.system, true).await?;
            }
        }
        Ok(())
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

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(crate) fn system(&self) -> &TabletDescriptor {
        &self.system
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
        Placement {
            voters: u8::try_from(self.default_voters).unwrap_or(u8::MAX),
            ..Placement::default()
        }
    }

    /// A new tablet, led from this node, with replicas on the nearest nodes of other regions (or of
    /// this one where there are too few).
    #[must_use]
    pub fn new_tablet(
        &self,
        id: TabletId,
        range: KeyRange,
        root_key: Vec<(KeyType, Order)>,
        change: PlacementChange,
    ) -> Result<TabletDescriptor, TxnError> {
        let placement = self.default_placement().with(change);
        let mut replicas = vec![self.id];
        let mut regions: Vec<&str> = self
            .members
            .iter()
            .filter(|member| member.id == self.id)
            .map(|member| member.region.as_str())
            .collect();
        let mut others: Vec<&Member> =
            self.members.iter().filter(|member| member.id != self.id).collect();
        others.sort_by_key(|member| (member.round_trip, member.id));
        for elsewhere in [true, false] {
            for member in &others {
                let new_region = !regions.contains(&member.region.as_str());
                if replicas.len() < usize::from(placement.voters)
                    && new_region == elsewhere
                    && !replicas.contains(&member.id)
                {
                    replicas.push(member.id);
                    regions.push(&member.region);
                }
            }
        }
        let generation = Generation::FIRST;
        Ok(TabletDescriptor {
            id,
            generation,
            range,
            root_key,
            voters: replicas,
            read_only: Vec::new(),
            preferred_leader: self.id,
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

    /// Opens this node's replica of a tablet unless it is open; with `lead`, makes the replicas the
    /// group's members and stands for election, unless the group has members.
    pub(crate) async fn open_tablet(
        &self,
        descriptor: &TabletDescriptor,
        lead: bool,
    ) -> Result<(), TxnError> {
        let _one_at_a_time = self.opening.lock().await;
        let tablet = match self.tablet(descriptor.id) {
            Ok(tablet) => tablet,
            Err(_) => self.open_replica(descriptor).await?,
        };
        if lead {
            let initialized = tablet.replica().initialize(&descriptor.voters).await;
            initialized.map_err(|error| TxnError::Internal(error.to_string()))?;
        }
        Ok(())
    }

    async fn open_replica(&self, descriptor: &TabletDescriptor) -> Result<Tablet, TxnError> {
        let view = self.storage.data.snapshot()?;
        let machine = Arc::new(TabletMachine::open(descriptor, &view)?);
        drop(view);
        self.storage.data.commit(machine.creation()?)?;
        let replica = self
            .host
            .open(descriptor.id, Arc::clone(&machine) as Arc<_>)
            .await
            .map_err(|error| TxnError::Internal(error.to_string()))?;
        let tablet = Tablet::start(
            Arc::clone(&self.env),
            Arc::clone(&self.clock),
            self.storage.data.clone(),
            replica,
            machine,
        );
        lock(&self.tablets).insert(descriptor.id, tablet.clone());
        Ok(tablet)
    }

    /// Closes this node's replica of a tablet that was retired and deletes its data.
    pub(crate) async fn remove_tablet(&self, tablet: TabletId) -> Result<(), TxnError> {
        if tablet == SYSTEM_TABLET {
            return Err(TxnError::Internal("the system tablet can't be removed".into()));
        }
        let _one_at_a_time = self.opening.lock().await;
        let removed = lock(&self.tablets).remove(&tablet);
        let Some(removed) = removed else { return Ok(()) };
        let removed_log = self.host.remove(tablet).await;
        removed_log.map_err(|error| TxnError::Internal(error.to_string()))?;
        let descriptor = removed.machine().state().descriptor;
        let batch = removal(&descriptor, &self.storage.data.snapshot()?)?;
        self.storage.data.commit(batch)?;
        Ok(())
    }
}
