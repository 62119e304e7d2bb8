//! A simulated network: the links between the nodes of one process, in real or virtual time.
//!
//! Every ordered pair of nodes has a link with [`LinkSettings`] of its own, which follow from the
//! [`Topology`] and can be changed while the network runs. All chance comes from the world's seed,
//! in a sequence per link, and deliveries due at the same instant happen in the order in which they
//! were sent: in virtual time, the same seed and the same nodes give the same deliveries.
//!
//! ```text
//!   n1: call ──────── latency of (n1, n2) ────────▶ n2: a task of n2's environment
//!                                                       runs the service
//!   n1: answer ◀───── latency of (n2, n1) ────────── n2
//! ```
//!
//! One task, the driver, sleeps until the next thing is due and lets it happen; what is due at once
//! happens without it. What happens is decided by a state machine without tasks or clocks
//! (`wire.rs`); what a node then does runs in that node's environment, so that a halted node does
//! nothing.
//!
//! # How faults show
//!
//! | fault | a call | a stream |
//! |---|---|---|
//! | loss | [`NetError::DeadlineExceeded`] | the message is late (two round trips, at least 200 ms), and all behind it |
//! | duplication | is executed twice, if at all | none |
//! | reordering | overtaken by later ones | late |
//! | clogged | late | stalls; breaks after the patience |
//! | cut | [`NetError::DeadlineExceeded`] | stalls; breaks after the patience |
//! | node stopped | [`NetError::Broken`] if it was executing, else [`NetError::Unreachable`] after a round trip | breaks, one way later |
//! | node paused | late | stalls |
//!
//! A stopped node answers like a machine whose process was killed: its kernel refuses connections
//! and resets those that there were. A machine that vanished is a node with its links cut.
//!
//! A paused node ([`NodeEnvironment::pause`](meridian_truetime::NodeEnvironment::pause)) sends
//! nothing. What arrives there is kept for it, as a kernel keeps it for a process under SIGSTOP.
//! Raft's own tasks are not the environment's and go on counting time, but what they send and what
//! they hear waits here, so that to everybody else the whole node stands still.
//!
//! # Caveats
//!
//! - A link has latency but no bandwidth; a window's credit returns to the sender at once.
//! - Links carry messages, not connections: calls and streams between two nodes don't delay each
//!   other, as they would behind one lost packet of a shared TCP connection.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use meridian_storage::NodeId;
use meridian_truetime::World;
use meridian_truetime::env::{Env, EnvironmentExt, Moment, Work};
use tokio::sync::{Notify, oneshot};

use super::local::{self, Home};
use super::stream::{self, Inlet, Outlet};
use super::{
    Incoming, NetError, Outgoing, Registry, ServiceName, Topology, TopologyError, Transport,
    check_size,
};

mod lane;
mod link;
mod wire;

use lane::{Item, Opening, Side};
pub use link::{LinkSettings, LinkView};
use wire::{Job, Wire};

/// How long a stream outlives a stalled link, unless set otherwise: about what the gRPC side's
/// keep-alives allow.
const PATIENCE: Duration = Duration::from_secs(5);

/// The network's label among the world's environments, apart from any node's.
const LABEL: u64 = u64::MAX - 1;

/// A simulated network and the nodes on it; a clone is the same network.
///
/// A network and its running nodes hold each other. Stop the nodes to let go of both.
#[derive(Clone)]
pub struct SimulatedNetwork(Arc<Shared>);

struct Shared {
    env: Env,
    wire: Mutex<Wire>,
    /// Wakes the driver for something earlier than it sleeps for.
    changed: Arc<Notify>,
}

impl SimulatedNetwork {
    /// A network without nodes. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(world: &World, topology: Topology) -> Self {
        let env: Env = world.node(LABEL);
        let wire = Wire::new(topology, PATIENCE, env.random(), world.is_virtual());
        let changed = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            env: Arc::clone(&env),
            wire: Mutex::new(wire),
            changed: Arc::clone(&changed),
        });
        let driver = drive(Arc::downgrade(&shared), Arc::clone(&env), changed);
        env.spawn(driver);
        Self(shared)
    }

    /// The topology that links begin with.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.0.lock().topology.clone()
    }

    /// Starts a node, for the first time or again, and gives it its way to the others. A node that
    /// is running under this number is stopped first. Links that there are already stay as they
    /// are.
    ///
    /// # Errors
    /// If the topology has no such region.
    pub fn add_node(
        &self,
        id: NodeId,
        region: &str,
        env: Env,
        registry: Registry,
    ) -> Result<Arc<dyn Transport>, TopologyError> {
        self.stop_node(id);
        let home = Home { id, env, registry };
        let theirs = home.clone();
        let incarnation = self.0.act(|wire, _| {
            let region = wire.topology.region(region)?;
            Ok(wire.start(theirs, region))
        })?;
        Ok(Arc::new(SimulatedTransport { network: Arc::clone(&self.0), home, incarnation }))
    }

    /// Stops a node, if it is running. From this moment on it sends nothing and receives nothing;
    /// all of its calls and streams break; its registry is cleared.
    ///
    /// To crash a node, stop it here first and then halt its environment: the other way round,
    /// what its ending tasks drop could still be seen by others as if done on purpose.
    pub fn stop_node(&self, id: NodeId) {
        if let Some(home) = self.0.act(|wire, now| wire.stop(now, id)) {
            home.registry.clear();
        }
    }

    /// Whether a node is running.
    #[must_use]
    pub fn is_running(&self, id: NodeId) -> bool {
        self.0.lock().home(id).is_some()
    }

    /// Every link, ordered by its sending and its receiving node.
    #[must_use]
    pub fn links(&self) -> Vec<LinkView> {
        self.0.lock().views()
    }

    /// Sets how the link from one node to another treats messages from now on.
    pub fn set_link(&self, from: NodeId, to: NodeId, settings: LinkSettings) {
        self.0.act(|wire, now| wire.set_link(now, (from, to), settings));
    }

    /// Changes something about the link from one node to another, if there is one.
    pub fn update_link(&self, from: NodeId, to: NodeId, change: impl FnOnce(&mut LinkSettings)) {
        self.0.act(|wire, now| {
            if let Some(mut settings) = wire.links.get(&(from, to)).map(|link| link.settings) {
                change(&mut settings);
                wire.set_link(now, (from, to), settings);
            }
        });
    }

    /// Sets the round trip between two nodes.
    pub fn set_round_trip(&self, a: NodeId, b: NodeId, round_trip: Duration) {
        let there = round_trip / 2;
        self.update_link(a, b, |link| link.latency = there);
        self.update_link(b, a, |link| link.latency = round_trip.saturating_sub(there));
    }

    /// Cuts the links between two nodes, both ways. From this moment on nothing arrives, not even
    /// what is under way.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts the link from one node to another.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.update_link(from, to, |link| link.cut = true);
    }

    /// Clogs the link from one node to another: it holds everything back until it is drained.
    pub fn clog(&self, from: NodeId, to: NodeId) {
        self.update_link(from, to, |link| link.clogged = true);
    }

    /// Lets a clogged link carry again, beginning with what it held back.
    pub fn drain(&self, from: NodeId, to: NodeId) {
        self.update_link(from, to, |link| link.clogged = false);
    }

    /// Ends every fault on every link. Latency and jitter stay.
    pub fn heal(&self) {
        for link in self.links() {
            self.update_link(link.from, link.to, |settings| *settings = settings.healed());
        }
    }

    /// Sets how long streams outlive a stalled link, for stalls that begin from now on.
    pub fn set_stream_patience(&self, patience: Duration) {
        self.0.act(|wire, _| wire.patience = patience);
    }

    /// A hash of everything delivered so far (when, from whom, to whom, what). It tells whether
    /// two runs were the same; kept in virtual worlds only.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.0.lock().trace.hash()
    }
}

impl fmt::Debug for SimulatedNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedNetwork").field("links", &self.links()).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets something happen to the network now, and what is due in consequence, so that without
    /// latency nobody waits for the driver.
    fn act<T>(self: &Arc<Self>, happening: impl FnOnce(&mut Wire, Moment) -> T) -> T {
        let mut wire = self.lock();
        let now = self.env.moment();
        let result = happening(&mut wire, now);
        if wire.catching_up {
            return result;
        }
        if wire.agenda.is_due(now) {
            wire = self.catch_up(wire);
        }
        if wire.agenda.driver_oversleeps() {
            self.changed.notify_one();
        }
        result
    }

    /// Lets everything happen that is due. Nodes' code starts outside of the lock.
    fn catch_up<'a>(self: &'a Arc<Self>, mut wire: MutexGuard<'a, Wire>) -> MutexGuard<'a, Wire> {
        wire.catching_up = true;
        while let Some(job) = wire.step(self.env.moment()) {
            if let Some(job) = job {
                drop(wire);
                self.start(job);
                wire = self.lock();
            }
        }
        wire.catching_up = false;
        wire
    }

    /// The driver's turn: what is due, and then how long to sleep. While someone else is catching
    /// up it sleeps until that one wakes it.
    fn drive(self: &Arc<Self>) -> Option<Moment> {
        let mut wire = self.lock();
        if wire.catching_up {
            wire.agenda.driver_waits();
            return None;
        }
        wire = self.catch_up(wire);
        wire.agenda.driver_sleeps()
    }

    fn start(self: &Arc<Self>, job: Job) {
        match job {
            Job::Stream(opening) => self.serve(opening),
            Job::Call { home, incarnation, service, from, call, request } => {
                let reply = Reply {
                    network: Arc::clone(self),
                    here: (home.id, incarnation),
                    from,
                    call,
                    answer: Err(local::gave_up(home.id)),
                };
                let work = home.env.work(Work::Request);
                home.env.spawn(async move {
                    work.await;
                    let (here, _) = reply.here;
                    reply.give(local::execute(&*service, here, from, request).await);
                });
            }
        }
    }

    fn serve(self: &Arc<Self>, opening: Opening) {
        let Opening { stream, home, service, from, incoming, outgoing, outlet, last_word } =
            opening;
        home.env.spawn(carry_for_service(Arc::clone(self), stream, outlet));
        home.env.spawn(local::serve(service, home.id, from, incoming, outgoing, last_word));
    }
}

/// The driver. It doesn't keep the network alive.
async fn drive(network: Weak<Shared>, env: Env, changed: Arc<Notify>) {
    while let Some(network) = network.upgrade() {
        let next = network.drive();
        drop(network);
        let changed = std::pin::pin!(changed.notified());
        match next {
            Some(at) => drop(select(changed, env.sleep_until(at)).await),
            None => changed.await,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Answers a call when it is dropped, whatever its service came to.
struct Reply {
    network: Arc<Shared>,
    here: (NodeId, u64),
    from: NodeId,
    call: u64,
    answer: Result<Bytes, NetError>,
}

impl Reply {
    fn give(mut self, answer: Result<Bytes, NetError>) {
        self.answer = answer;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let answer = std::mem::replace(&mut self.answer, Ok(Bytes::new()));
        self.network.act(|wire, now| wire.answer(now, self.here, self.from, self.call, answer));
    }
}

/// Brings what the opener sends to its lane, and cancels the stream when the opener stops reading.
async fn carry_for_opener(network: Arc<Shared>, id: u64, mut outlet: Outlet, reader: Inlet) {
    loop {
        let sent = std::pin::pin!(outlet.next());
        let unread = std::pin::pin!(reader.closed());
        match select(sent, unread).await {
            Either::Left((Some(Ok(frame)), _)) => {
                network.act(|wire, now| wire.push(now, id, Side::Opener, Item::Frame(frame)));
            }
            Either::Left((None | Some(Err(_)), _)) => break,
            Either::Right(_) => return network.act(|wire, now| wire.cancel(now, id)),
        }
    }
    network.act(|wire, now| wire.push(now, id, Side::Opener, Item::End));
    let over = std::pin::pin!(outlet.gate.shut_down());
    let unread = std::pin::pin!(reader.closed());
    if let Either::Right(_) = select(over, unread).await {
        network.act(|wire, now| wire.cancel(now, id));
    }
}

/// Brings what the service sends to its lane, and its last word.
async fn carry_for_service(network: Arc<Shared>, id: u64, mut outlet: Outlet) {
    let mut last = Item::End;
    while let Some(sent) = outlet.next().await {
        match sent {
            Ok(frame) => {
                network.act(|wire, now| wire.push(now, id, Side::Service, Item::Frame(frame)));
            }
            Err(error) => {
                last = Item::Reset(error);
                break;
            }
        }
    }
    network.act(|wire, now| wire.push(now, id, Side::Service, last));
}

/// A node's end of the simulated network, for one life of that node.
struct SimulatedTransport {
    network: Arc<Shared>,
    home: Home,
    incarnation: u64,
}

impl SimulatedTransport {
    /// Waits while this node is paused.
    async fn awake(&self) {
        while let Some(resumed) = self.home.env.paused() {
            resumed.await;
        }
    }

    /// Refuses what can't even be sent.
    fn check(&self, wire: &Wire, to: NodeId) -> Result<(), NetError> {
        if !wire.is_current(self.home.id, self.incarnation) {
            Err(NetError::unreachable(to, "this node has stopped"))
        } else if !wire.knows(to) {
            Err(NetError::unreachable(to, "there is no such node"))
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for SimulatedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedTransport").field("node", &self.home.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for SimulatedTransport {
    async fn call(
        &self,
        to: NodeId,
        service: ServiceName,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        self.awake().await;
        if to == self.home.id {
            return self.home.call(service, request, deadline).await;
        }
        check_size(&request)?;
        let (reply, answer) = oneshot::channel();
        let call = self.network.act(|wire, now| {
            self.check(wire, to)?;
            Ok(wire.call(now, [self.home.id, to], service, request, reply))
        })?;
        let _pending = Pending { network: &self.network, call };
        let answer = local::await_answer(&self.home.env, to, deadline, answer).await;
        self.awake().await;
        answer
    }

    async fn open(
        &self,
        to: NodeId,
        service: ServiceName,
    ) -> Result<(Outgoing, Incoming), NetError> {
        self.awake().await;
        if to == self.home.id {
            return self.home.open(service);
        }
        let (outgoing, outlet, _) = stream::outgoing(to);
        let (inlet, incoming) = stream::incoming(to);
        let reader = inlet.clone();
        let gate = Arc::clone(&outlet.gate);
        let id = self.network.act(|wire, now| {
            self.check(wire, to)?;
            Ok(wire.open(now, [self.home.id, to], service, gate, inlet))
        })?;
        let carry = carry_for_opener(Arc::clone(&self.network), id, outlet, reader);
        self.home.env.spawn(carry);
        Ok((outgoing, incoming))
    }
}

/// A call that someone waits for.
struct Pending<'a> {
    network: &'a Shared,
    call: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.network.lock().forget(self.call);
    }
}

#[cfg(test)]
mod tests;
