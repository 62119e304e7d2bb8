//! All groups that a node holds a replica of.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use meridian_storage::{NodeId, Storage, TabletId};
use meridian_truetime::{Env, EnvironmentExt, TrueTime};

use super::handover::Handing;
use super::heart::{self, Heart, HeartService, Pulse};
use super::log::GroupLog;
use super::machine::Machine;
use super::network::{Network, SERVICE};
use super::replica::Replica;
use super::service::RaftService;
use super::timing::Timing;
use super::types::Raft;
use crate::codec::to_io;
use crate::feed::{Applier, flush};
use crate::net::{Registry, Transport};
use crate::state_machine::StateMachine;

pub(crate) type Replicas = Mutex<BTreeMap<TabletId, Replica>>;

/// Opens, finds and closes a node's replicas.
#[derive(Debug)]
pub struct Host {
    node: NodeId,
    env: Env,
    storage: Storage,
    transport: Arc<dyn Transport>,
    timing: Timing,
    /// Held alone while what concerns several groups is applied.
    applying: Arc<RwLock<()>>,
    replicas: Arc<Replicas>,
    heart: Arc<Heart>,
    handing: Arc<Handing>,
}

pub(crate) fn lock(replicas: &Replicas) -> MutexGuard<'_, BTreeMap<TabletId, Replica>> {
    replicas.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// A host without replicas, reachable by its peers through `registry`.
    #[must_use]
    pub fn new(
        node: NodeId,
        env: Env,
        clock: Arc<dyn TrueTime>,
        storage: Storage,
        transport: Arc<dyn Transport>,
        registry: &Registry,
        timing: Timing,
    ) -> Self {
        let replicas = Arc::new(Replicas::default());
        let heart = Heart::new(
            node,
            Arc::clone(&env),
            clock,
            Arc::clone(&transport),
            timing,
            Arc::clone(&replicas),
            !storage.logs.groups().is_empty(),
        );
        let heart = Arc::new(heart);
        let handing = Handing {
            env: Arc::clone(&env),
            transport: Arc::clone(&transport),
            timing,
            heart: Arc::downgrade(&heart),
        };
        let service = RaftService::new(Arc::clone(&replicas), Arc::clone(&heart), Arc::clone(&env));
        registry.register(SERVICE, Arc::new(service));
        registry.register(heart::SERVICE, Arc::new(HeartService(Arc::clone(&heart))));
        env.spawn(Heart::run(Arc::downgrade(&heart)));
        Self {
            node,
            env,
            storage,
            transport,
            timing,
            applying: Arc::default(),
            replicas,
            heart,
            handing: Arc::new(handing),
        }
    }

    /// Starts this node's replica of `group`, new or as its files have it. If it was just split from
    /// another, it goes on as the replica of that one: bound to the same leader.
    ///
    /// # Errors
    /// When the files can't be read.
    pub async fn open(
        &self,
        group: TabletId,
        machine: Arc<dyn StateMachine>,
        split_from: Option<TabletId>,
    ) -> io::Result<Replica> {
        if let Some(replica) = self.replica(group) {
            return Ok(replica);
        }
        let env = Arc::clone(&self.env);
        let (data, applying) = (self.storage.data.clone(), Arc::clone(&self.applying));
        let pulse = Arc::new(Pulse::default());
        if let Some(parent) = split_from.and_then(|parent| self.replica(parent)) {
            pulse.inherit(&parent.pulse);
        }
        let applier = Applier::open(group, data, Arc::clone(&machine), applying)?;
        let adapter = Machine::new(env, applier, self.storage.logs.clone(), Arc::clone(&pulse));
        let log = GroupLog::new(self.storage.logs.clone(), group);
        let network = Network {
            env: Arc::clone(&self.env),
            group,
            transport: Arc::clone(&self.transport),
            timing: self.timing,
            heart: Arc::downgrade(&self.heart),
            pulse: Arc::clone(&pulse),
        };
        let config = self.timing.config(&*self.env).validate().map_err(io::Error::other)?;
        let patience = Duration::from_millis(self.env.tokio_millis(self.timing.election_max));
        let raft = Raft::new(self.node.get(), Arc::new(config), network, log, adapter)
            .await
            .map_err(io::Error::other)?;
        let replica = Replica {
            group,
            node: self.node,
            raft,
            machine,
            pulse,
            handing: Arc::clone(&self.handing),
            patience,
        };
        lock(&self.replicas).insert(group, replica.clone());
        Ok(replica)
    }

    /// Keeps everything from being applied on this node while `change` runs.
    pub fn alone<T>(&self, change: impl FnOnce() -> T) -> T {
        let _alone = self.applying.write().unwrap_or_else(PoisonError::into_inner);
        change()
    }

    /// Waits until everything that was applied or recorded so far is durable.
    ///
    /// # Errors
    /// When the data file can't be written.
    pub async fn flush(&self) -> io::Result<()> {
        flush(&self.storage.data).await
    }

    /// This node's replica of `group`.
    #[must_use]
    pub fn replica(&self, group: TabletId) -> Option<Replica> {
        lock(&self.replicas).get(&group).cloned()
    }

    /// Every replica, in the order of their groups.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        lock(&self.replicas).values().cloned().collect()
    }

    /// Ends a replica, if it is open. What it has on disk is left.
    pub async fn close(&self, group: TabletId) {
        let replica = lock(&self.replicas).remove(&group);
        if let Some(replica) = replica {
            self.heart.ended(&replica);
            replica.shutdown().await;
        }
    }

    /// Removes what the log has of a group, but for its vote. What the data file has of it must be
    /// gone before, durably: a crash must not bring back a replica that has forgotten what it
    /// acknowledged.
    ///
    /// # Errors
    /// When the log can't be written.
    pub async fn forget(&self, group: TabletId) -> io::Result<()> {
        if self.storage.logs.bounds(group).is_none() && self.storage.logs.purged(group).is_none() {
            return Ok(());
        }
        let (done, durable) = futures::channel::oneshot::channel();
        self.storage.logs.remove_group(
            group,
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        durable.await.map_err(io::Error::other)?.map_err(to_io)
    }

    /// Stops every replica, as for a clean end or after a crash was simulated.
    pub async fn shutdown(&self) {
        let replicas = std::mem::take(&mut *lock(&self.replicas));
        for replica in replicas.values() {
            replica.shutdown().await;
        }
    }
}
