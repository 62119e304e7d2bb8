//! Serving a tablet where it is led.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_replication::{
    ConfirmError, Generation, ProposeError, Replica, Submitted, TabletDescriptor,
};
use meridian_storage::{DataSnapshot, DataStore, KeyRange, NodeId, TabletId};
use meridian_truetime::{Env, EnvironmentExt, Moment, Timestamp, TrueTime, wait_until_after};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, oneshot, watch};

use super::commit::patience;
use super::locking::Locks;
use super::machine::TabletMachine;
use crate::autosplit::Standing;
use crate::autosplit::load::Meter;
use crate::command::{Absorb, Command, Outcome, ReadAt, WholeTxn, WriteRequest, decode, encode};
use crate::commit::{Anchor, Ballot, CommitProtocol, Committed, Decided, Interval, Phases};
use crate::error::TxnError;
use crate::locks::{Hold, TxnId};
use crate::oracle::Oracle;

/// One entry of the log takes at most so many bytes.
const MAX_WRITE_BYTES: usize = 64 << 20;

/// How often a new tablet's first leader stands, and the pause between: its followers may not have
/// applied the split yet.
const STANDS: u32 = 40;
const STAND_PAUSE: Duration = Duration::from_millis(50);

/// How long one waits for a lease, and how often one looks.
const UNLEASED: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long a split, or another schema, waits for transactions that are about to commit.
const ALONE: Duration = Duration::from_secs(3);

/// How long a replica may take to take over.
const TRANSFER: Duration = Duration::from_secs(3);

/// How far ahead of the clock a timestamp to read at may lie: to there nothing is written any more.
const AHEAD: Duration = Duration::from_secs(10);

fn stopped() -> TxnError {
    TxnError::Unknown { reason: "the leader has stopped".into() }
}

/// A view of a tablet's rows at one timestamp.
#[derive(Debug)]
pub struct TabletRead {
    /// The timestamp: versions above it are not to be seen.
    pub at: Timestamp,
    /// Under which locks, if any.
    pub hold: Option<Hold>,
    /// So long it has waited for them.
    pub lock_wait: Duration,
    /// The node's data as of now; read it at `at`.
    pub snapshot: DataSnapshot,
}

/// What exists while this replica leads, for one term.
#[derive(Debug)]
pub(super) struct Leadership {
    pub(super) term: u64,
    oracle: Mutex<Oracle>,
    /// The last write of earlier leaders.
    pub(super) inherited: Timestamp,
    /// Sends whenever writes were released.
    released: watch::Sender<Timestamp>,
    /// Held from assigning a timestamp until the write is in the log: the log's order is the order
    /// of timestamps.
    pub(super) log_order: tokio::sync::Mutex<()>,
    /// The locks of transactions.
    pub(super) locks: Locks,
    /// Held by whatever is about to commit; the tablet is split or merged by who has it alone.
    pub(super) gate: Arc<RwLock<()>>,
    /// Transactions whose votes are under way.
    pub(super) preparing: Mutex<BTreeSet<TxnId>>,
    /// Transactions that have voted to commit here.
    pub(super) in_doubt: Mutex<BTreeMap<TxnId, InDoubt>>,
    /// Those that are coordinated here.
    pub(super) ballots: Mutex<BTreeMap<TxnId, Arc<Open>>>,
    /// Their outcomes, as long as somebody may ask.
    pub(super) outcomes: Mutex<BTreeMap<TxnId, Remembered>>,
}

/// An outcome that is remembered.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) decided: Decided,
    /// Who has to be told is being told.
    pub(super) telling: bool,
    /// Everybody was told.
    pub(super) told: bool,
}

/// A transaction that has voted to commit, until its outcome is applied and visible.
#[derive(Debug)]
pub(super) struct InDoubt {
    pub(super) vote: Interval,
    /// What it is to write.
    pub(super) keys: BTreeSet<Vec<u8>>,
    pub(super) coordinator: TabletId,
    pub(super) anchor: Anchor,
    pub(super) since: Moment,
    pub(super) _open: OwnedRwLockReadGuard<()>,
}

/// Votes that are collected.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) ballot: Mutex<Ballot>,
    pub(super) changed: Notify,
    pub(super) since: Moment,
    /// Its commit was asked for.
    pub(super) asked: AtomicBool,
}

pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leadership {
    fn new(term: u64, oracle: Oracle, last_write: Timestamp, locks: Locks) -> Self {
        Self {
            term,
            oracle: Mutex::new(oracle),
            inherited: last_write,
            released: watch::Sender::new(last_write.prev()),
            log_order: tokio::sync::Mutex::new(()),
            locks,
            gate: Arc::default(),
            preparing: Mutex::default(),
            in_doubt: Mutex::default(),
            ballots: Mutex::default(),
            outcomes: Mutex::default(),
        }
    }

    /// The transactions in doubt that may write to `range` at or below `at`.
    fn in_doubt(&self, range: &KeyRange, at: Timestamp) -> BTreeSet<TxnId> {
        let writes = |txn: &InDoubt| {
            let from = (Bound::Included(range.start.as_slice()), Bound::Unbounded);
            let next = txn.keys.range::<[u8], _>(from).next();
            txn.vote.min <= at && next.is_some_and(|key| range.contains(key))
        };
        let in_doubt = guard(&self.in_doubt);
        in_doubt.iter().filter(|(_, txn)| writes(txn)).map(|(id, _)| *id).collect()
    }

    /// A transaction is in doubt no more.
    pub(super) fn settled(&self, txn: TxnId) {
        guard(&self.in_doubt).remove(&txn);
        self.locks.release(txn);
        let visible = self.oracle().visible();
        self.released.send_replace(visible);
    }

    pub(super) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn release(&self, at: Timestamp) {
        let visible = {
            let mut oracle = self.oracle();
            oracle.release(at);
            oracle.visible()
        };
        self.released.send_replace(visible);
    }
}

/// A node's replica of a tablet.
#[derive(Clone, Debug)]
pub(crate) struct Tablet {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) id: TabletId,
    pub(super) env: Env,
    pub(super) clock: Arc<dyn TrueTime>,
    pub(super) data: DataStore,
    pub(super) replica: Replica,
    pub(super) machine: Arc<TabletMachine>,
    /// As the tablet was when this replica was opened: all that is known of a blank one.
    opened_as: TabletDescriptor,
    /// Promised to readers by the leader of the tablet that this one was split from, when that was
    /// on this node: the first leadership here assigns nothing at or below it.
    inherited: Timestamp,
    /// The generation as of which a leader wanted this replica.
    wanted: Mutex<Generation>,
    meter: Meter,
    /// Another tablet has taken over what this one held.
    absorbed: AtomicBool,
    /// The generation that this node is sure the directory has.
    entered: Mutex<Option<Generation>>,
    pub(super) leadership: watch::Sender<Option<Arc<Leadership>>>,
}

/// What a replica of a tablet is made of.
pub(crate) struct TabletParts {
    pub(crate) env: Env,
    pub(crate) clock: Arc<dyn TrueTime>,
    pub(crate) data: DataStore,
    pub(crate) replica: Replica,
    pub(crate) machine: Arc<TabletMachine>,
    pub(crate) opened_as: TabletDescriptor,
    pub(crate) inherited: Timestamp,
    pub(crate) wanted: Generation,
}

impl Tablet {
    /// Starts watching who leads, and serves whenever it is this replica.
    pub(crate) fn start(parts: TabletParts) -> Self {
        let TabletParts { env, clock, data, replica, machine, opened_as, inherited, wanted } =
            parts;
        let id = replica.group();
        let leadership = watch::Sender::new(None);
        let inner = Arc::new(Inner {
            id,
            env,
            clock,
            data,
            replica,
            machine,
            opened_as,
            inherited,
            wanted: Mutex::new(wanted),
            meter: Meter::default(),
            absorbed: AtomicBool::default(),
            entered: Mutex::default(),
            leadership,
        });
        let tablet = Self { inner };
        let follower = tablet.clone();
        tablet.inner.env.spawn(async move { follower.follow_leadership().await });
        tablet
    }

    pub(crate) fn id(&self) -> TabletId {
        self.inner.id
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.inner.replica
    }

    pub(crate) fn machine(&self) -> &TabletMachine {
        &self.inner.machine
    }

    /// Another tablet has taken over what this one held; its replica is about to end.
    pub(crate) fn set_absorbed(&self) {
        self.inner.absorbed.store(true, Ordering::Release);
    }

    /// Counts the requests that are served here.
    pub(crate) fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    /// The tablet's descriptor as this replica has it, or as it was told.
    pub(crate) fn descriptor(&self) -> TabletDescriptor {
        self.inner.machine.state().map_or_else(|| self.inner.opened_as.clone(), |s| s.descriptor)
    }

    /// The highest timestamp that was assigned or promised here, while this replica leads.
    pub(crate) fn floor(&self) -> Option<Timestamp> {
        let leadership = self.inner.leadership.borrow().clone();
        leadership.map(|leadership| leadership.oracle().floor())
    }

    /// The generation as of which a leader wanted this replica, for all that this node knows: what
    /// descriptors up to it say of the replica is history.
    pub(crate) fn wanted(&self) -> Generation {
        *self.inner.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_wanted(&self, generation: Generation) {
        *self.inner.wanted.lock().unwrap_or_else(PoisonError::into_inner) = generation;
    }

    /// The generation that the directory certainly has.
    pub(crate) fn entered(&self) -> Option<Generation> {
        *self.inner.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_entered(&self, generation: Generation) {
        let mut entered = self.inner.entered.lock().unwrap_or_else(PoisonError::into_inner);
        *entered = (*entered).max(Some(generation));
    }

    pub(super) fn not_leader(&self, leader: Option<NodeId>) -> TxnError {
        TxnError::NotLeader { tablet: self.inner.id, leader }
    }

    fn unconfirmed(&self, error: ConfirmError) -> TxnError {
        match error {
            ConfirmError::NotLeader { leader } => self.not_leader(leader),
            ConfirmError::Unavailable(reason) => {
                TxnError::Unavailable { tablet: self.inner.id, reason }
            }
        }
    }

    /// Sets up an oracle at the beginning of each term that this replica leads, once everything of
    /// earlier terms is applied, and takes it down at the end.
    async fn follow_leadership(&self) {
        let inner = &self.inner;
        let mut seen = None;
        while let Some(leads) = inner.replica.leadership_changed(seen).await {
            seen = leads;
            if let Some(over) = inner.leadership.send_replace(None) {
                over.locks.close();
            }
            let Some(term) = leads else { continue };
            let began = loop {
                match inner.replica.begin(term).await {
                    Ok(above) => break Some(above),
                    Err(_) if inner.replica.leads() != seen => break None,
                    Err(_) => inner.env.sleep(Duration::from_millis(50)).await,
                }
            };
            let Some(above) = began else { continue };
            let last_write = inner.machine.last_write();
            let mut oracle = Oracle::new(last_write);
            oracle.promise(above.max(inner.inherited));
            let leadership =
                Arc::new(Leadership::new(term, oracle, last_write, Locks::new(inner.env.random())));
            if let Err(error) = self.take_up(&leadership) {
                tracing::error!(tablet = %inner.id, %error, "can't take up what is prepared");
                continue;
            }
            inner.leadership.send_replace(Some(Arc::clone(&leadership)));
            tracing::info!(tablet = %inner.id, term, "leads");
            inner.machine.notify();
            let (env, clock) = (Arc::clone(&inner.env), Arc::clone(&inner.clock));
            inner.env.spawn(async move {
                wait_until_after(&*env, &*clock, last_write).await;
                leadership.release(last_write);
            });
        }
    }

    /// The leadership of the present term; waits while it is being set up.
    pub(super) async fn leadership(&self) -> Result<Arc<Leadership>, TxnError> {
        let mut changes = self.inner.leadership.subscribe();
        loop {
            let Some(term) = self.inner.replica.leads() else {
                if self.inner.replica.handed_over().await {
                    continue;
                }
                return Err(self.not_leader(self.inner.replica.probable_leader()));
            };
            let current = changes.borrow_and_update().clone();
            if let Some(leadership) = current.filter(|leadership| leadership.term == term) {
                return Ok(leadership);
            }
            if changes.changed().await.is_err() {
                return Err(self.not_leader(None));
            }
        }
    }

    /// The same for what takes locks: not while leadership is being handed over, for they would end
    /// with it, nor while nothing could be committed.
    pub(super) async fn lasting_leadership(&self) -> Result<Arc<Leadership>, TxnError> {
        let leadership = self.leadership().await?;
        let replica = &self.inner.replica;
        if let Some(to) = replica.hands_over(leadership.term) {
            return Err(self.not_leader(Some(to)));
        }
        if replica.is_isolated() {
            let reason = "its leader reaches no majority".to_owned();
            return Err(TxnError::Unavailable { tablet: self.inner.id, reason });
        }
        Ok(leadership)
    }

    /// Waits until `ready` holds, looking again whenever writes were released. False when the
    /// leadership ended before: what was pending then is never released.
    pub(super) async fn wait(
        &self,
        leadership: &Leadership,
        mut ready: impl FnMut(&Oracle) -> bool + Send,
    ) -> bool {
        let mut released = leadership.released.subscribe();
        let mut leaderships = self.inner.leadership.subscribe();
        loop {
            if ready(&leadership.oracle()) {
                return true;
            }
            let current = leaderships.borrow_and_update().as_ref().map(|current| current.term);
            if current != Some(leadership.term) {
                return false;
            }
            let release = std::pin::pin!(released.changed());
            let change = std::pin::pin!(leaderships.changed());
            futures::future::select(release, change).await;
        }
    }

    /// Opens a view of `range`.
    pub(crate) async fn read(&self, at: ReadAt, range: &KeyRange) -> Result<TabletRead, TxnError> {
        let inner = &self.inner;
        let leadership = self.leadership().await?;
        inner.machine.check(range)?;
        inner.meter.count(|| range.clone());
        if let ReadAt::Strong { .. } = at {
            // Some of them may be acknowledged by now.
            let before = leadership.in_doubt(range, Timestamp::MAX);
            let gone = || before.is_disjoint(&leadership.in_doubt(range, Timestamp::MAX));
            if !before.is_empty() && !self.wait(&leadership, |_| gone()).await {
                return Err(self.not_leader(inner.replica.probable_leader()));
            }
        }
        let exact = matches!(at, ReadAt::Exact(_));
        if let ReadAt::Exact(at) = at
            && at > inner.clock.now().latest.plus(AHEAD)
        {
            return Err(TxnError::in_the_future());
        }
        let at = {
            let mut oracle = leadership.oracle();
            match at {
                ReadAt::Strong { min } => oracle.strong_read(min),
                ReadAt::Unconfirmed => oracle.strong_read(Timestamp::MIN),
                ReadAt::Exact(at) => {
                    oracle.promise(at);
                    at
                }
            }
        };
        self.take(&leadership, at).await?;
        let known =
            |oracle: &Oracle| !oracle.must_wait(at) && leadership.in_doubt(range, at).is_empty();
        if !self.wait(&leadership, known).await {
            return Err(self.not_leader(inner.replica.probable_leader()));
        }
        let snapshot = inner.data.snapshot()?;
        // Part of the range may have been split off meanwhile, and what is written there since then
        // is no business of this tablet's timestamps. (What was promised before the split is
        // inherited by the new tablet.)
        inner.machine.check(range)?;
        if exact {
            inner.machine.check_horizon(at)?;
        }
        Ok(TabletRead { at, hold: None, lock_wait: Duration::ZERO, snapshot })
    }

    /// Takes a timestamp within the lease of a leadership; the lease's end. Waits a little where
    /// there is none.
    pub(super) async fn take(
        &self,
        leadership: &Leadership,
        at: Timestamp,
    ) -> Result<Timestamp, TxnError> {
        let Inner { replica, env, .. } = &*self.inner;
        let give_up = env.moment().plus(UNLEASED);
        loop {
            if let Some(end) = replica.take(leadership.term, at) {
                return Ok(end);
            }
            if replica.leads() != Some(leadership.term) {
                return Err(self.not_leader(replica.probable_leader()));
            }
            if let Some(to) = replica.hands_over(leadership.term) {
                return Err(self.not_leader(Some(to)));
            }
            if env.moment() > give_up {
                let reason = "its leader has no lease, or none that lasts so long".to_owned();
                return Err(TxnError::Unavailable { tablet: self.inner.id, reason });
            }
            env.sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether this replica leads and a majority agrees.
    pub(crate) async fn confirm(&self) -> Result<(), TxnError> {
        self.leadership().await?;
        self.inner.replica.confirm().await.map(drop).map_err(|error| self.unconfirmed(error))
    }

    /// The present descriptor, and the tablets that were absorbed.
    pub(crate) async fn describe(
        &self,
    ) -> Result<(TabletDescriptor, BTreeSet<TabletId>), TxnError> {
        self.confirm().await?;
        match self.inner.machine.state() {
            Some(state) if !state.retired => Ok((state.descriptor, state.absorbed)),
            _ => Err(TxnError::NoSuchTablet { tablet: self.inner.id }),
        }
    }

    /// Whether a node's replica is a member, or is to be one.
    pub(crate) async fn wants(&self, on: NodeId) -> Result<bool, TxnError> {
        let (descriptor, _) = self.describe().await?;
        let target = self.inner.machine.state().and_then(|state| state.target);
        let is_target = target
            .is_some_and(|target| target.voters.iter().chain(&target.read_only).any(|n| *n == on));
        let replicates = self.inner.replica.status().matched.contains_key(&on);
        Ok(is_target || replicates || descriptor.replicas().any(|member| member == on))
    }

    /// The present descriptor, and how large and how hot the tablet is.
    pub(crate) async fn measured(&self) -> Result<(TabletDescriptor, Standing), TxnError> {
        let (descriptor, _) = self.describe().await?;
        match self.inner.meter.standing() {
            Some(standing) => Ok((descriptor, standing)),
            None => Err(TxnError::Unavailable {
                tablet: self.inner.id,
                reason: "it was not measured yet".to_owned(),
            }),
        }
    }

    /// Validates and carries out a write; answers when it is visible.
    ///
    /// The write goes on when the caller stops waiting: what was handed to the log can't be called
    /// back.
    pub(crate) async fn write(&self, request: WriteRequest) -> Result<Committed, TxnError> {
        let size = request.size();
        if size > MAX_WRITE_BYTES {
            return Err(TxnError::TooLarge { size, limit: MAX_WRITE_BYTES });
        }
        let (done, outcome) = oneshot::channel();
        let tablet = self.clone();
        self.inner.env.spawn(async move {
            let _ = done.send(tablet.write_through(request).await);
        });
        outcome.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn write_through(&self, request: WriteRequest) -> Result<Committed, TxnError> {
        let inner = &self.inner;
        let began = inner.env.moment();
        let leadership = self.lasting_leadership().await?;
        inner.meter.count(|| request.span());
        let Some(txn) = request.txn else {
            return Err(TxnError::Internal("a write of no transaction".to_owned()));
        };
        let WholeTxn { stamp, held, protocol, wait } = txn;
        let reads = &request.reads;
        let keys = reads.keys.iter().map(|(key, _)| KeyRange::point(key.clone()));
        let shared = keys.chain(reads.ranges.iter().cloned()).collect();
        let mutations = &request.mutations;
        let locks = self.lock_all(&leadership, stamp, held, shared, mutations, patience(wait));
        let outcome = match self.patiently(wait, locks).await {
            // The gateway may ask again, or else it releases them.
            Err(TxnError::Locked) => return Err(TxnError::Locked),
            Ok(hold) => {
                let locks = inner.env.moment().since(began);
                let mut phases = Phases { locks, ..Phases::default() };
                let whole = (stamp.id, hold, protocol);
                let written = self.write_locked(&leadership, whole, request, &mut phases);
                written.await.map(|at| Committed { at, phases })
            }
            Err(error) => Err(error),
        };
        leadership.locks.release(stamp.id);
        outcome
    }

    /// Writes what a transaction has all locks for.
    async fn write_locked(
        &self,
        leadership: &Leadership,
        (txn, hold, protocol): (TxnId, Hold, CommitProtocol),
        request: WriteRequest,
        phases: &mut Phases,
    ) -> Outcome {
        let inner = &self.inner;
        let _open = leadership.gate.read().await;
        if !leadership.locks.pin(txn, hold) {
            return Err(TxnError::Conflict);
        }
        let after = request.after.next();
        let (at, submitted) = {
            let _in_order = leadership.log_order.lock().await;
            let at = leadership.oracle().assign(self.lowest(protocol).max(after));
            if let Err(error) = self.take(leadership, at).await {
                leadership.release(at);
                return Err(error);
            }
            let submitted = match encode(&Command::Write { at, request }) {
                Ok(command) => inner.replica.submit(leadership.term, command.into()).await,
                Err(error) => {
                    leadership.release(at);
                    return Err(error);
                }
            };
            (at, submitted)
        };
        self.finish(leadership, at, submitted, protocol, phases).await
    }

    /// The lowest timestamp that a commit may get that is asked for now.
    pub(super) fn lowest(&self, protocol: CommitProtocol) -> Timestamp {
        let now = self.inner.clock.now();
        match protocol {
            CommitProtocol::CommitWait => now.latest,
            CommitProtocol::TwoPhase => now.middle(),
        }
    }

    /// Waits until what was logged at `at` is applied and visible; the outcome.
    pub(super) async fn finish(
        &self,
        leadership: &Leadership,
        at: Timestamp,
        submitted: Result<Submitted, ProposeError>,
        protocol: CommitProtocol,
        phases: &mut Phases,
    ) -> Outcome {
        let inner = &self.inner;
        let began = inner.env.moment();
        let answer = match submitted {
            Ok(submitted) => submitted.outcome().await,
            Err(error) => Err(error),
        };
        let outcome = match answer {
            Ok(answer) => decode::<Outcome>(&answer)?,
            Err(ProposeError::NotLeader { leader }) => {
                leadership.release(at);
                return Err(self.not_leader(leader));
            }
            // It may be applied yet: this leadership never shows anything from here on. The term is
            // over or the replica has stopped.
            Err(ProposeError::Unknown(reason)) => {
                return Err(self.unanswered(leadership.term, reason));
            }
        };
        let applied = inner.env.moment();
        phases.replicate = applied.since(began);
        if outcome.is_ok() && protocol == CommitProtocol::CommitWait {
            wait_until_after(&*inner.env, &*inner.clock, at).await;
        }
        leadership.release(at);
        // A committed write stays committed when the leadership ends: the next leader shows nothing
        // before its timestamp has passed.
        self.wait(leadership, |oracle| oracle.visible() >= at).await;
        phases.wait = inner.env.moment().since(applied);
        outcome
    }

    /// Stands for election until some replica leads, or long enough.
    pub(crate) async fn stand_until_led(&self) {
        let inner = &self.inner;
        for _ in 0..STANDS {
            if inner.replica.leader().is_some() {
                return;
            }
            inner.replica.stand().await;
            inner.env.sleep(STAND_PAUSE).await;
        }
    }

    /// Hands leadership to the replica on `to`, and waits until this one follows it.
    pub(crate) async fn transfer(&self, to: NodeId) -> Result<(), TxnError> {
        self.leadership().await?;
        let replica = &self.inner.replica;
        if to == replica.node() {
            return Ok(());
        }
        let give_up = self.inner.env.moment().plus(TRANSFER);
        replica.transfer_leader(to).await;
        while replica.leader() != Some(to) {
            if self.inner.env.moment() > give_up {
                let reason = format!("{to} did not take over");
                return Err(TxnError::Unavailable { tablet: self.inner.id, reason });
            }
            self.inner.env.sleep(STAND_PAUSE / 5).await;
        }
        Ok(())
    }

    /// Takes in the right neighbour, which is frozen and whose rows are staged here.
    pub(crate) async fn absorb(&self, absorb: Absorb) -> Outcome {
        // Whoever asks may stop waiting; what was assigned has to be released all the same.
        let (done, outcome) = oneshot::channel();
        let tablet = self.clone();
        self.inner.env.spawn(async move {
            let _ = done.send(tablet.absorb_through(absorb).await);
        });
        outcome.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn absorb_through(&self, mut absorb: Absorb) -> Outcome {
        let inner = &self.inner;
        let leadership = self.leadership().await?;
        let (at, submitted) = {
            let _in_order = leadership.log_order.lock().await;
            let at_least = inner.clock.now().latest.max(absorb.at.next());
            let at = leadership.oracle().absorb(at_least);
            if let Err(error) = self.take(&leadership, at).await {
                leadership.release(at);
                return Err(error);
            }
            absorb.at = at;
            let submitted = match encode(&Command::Absorb(absorb)) {
                Ok(command) => inner.replica.submit(leadership.term, command.into()).await,
                Err(error) => {
                    leadership.release(at);
                    return Err(error);
                }
            };
            (at, submitted)
        };
        let (protocol, mut phases) = (CommitProtocol::CommitWait, Phases::default());
        let outcome = self.finish(&leadership, at, submitted, protocol, &mut phases).await;
        self.recollect(&leadership)?;
        outcome
    }

    /// What becomes of a command that was logged in `term` and not answered. A leader answers what it
    /// applies, in the log's order. So if it was still the leader when the replica ended because the
    /// tablet was retired or absorbed, the command comes after what had kept others out before that,
    /// and does nothing.
    fn unanswered(&self, term: u64, reason: String) -> TxnError {
        let inner = &self.inner;
        let leads = inner.leadership.borrow().as_ref().map(|leadership| leadership.term);
        let retired = inner.machine.state().is_some_and(|state| state.retired);
        if leads == Some(term) && (retired || inner.absorbed.load(Ordering::Acquire)) {
            return TxnError::NoSuchTablet { tablet: inner.id };
        }
        TxnError::Unknown { reason }
    }

    /// Logs a command that writes no row.
    pub(crate) async fn command(&self, command: Command) -> Outcome {
        let leadership = self.leadership().await?;
        let alone = matches!(
            command,
            Command::Split { .. } | Command::Freeze { .. } | Command::Fence { .. }
        );
        if !alone {
            return self.log(&leadership, &command).await;
        }
        // Whoever is about to commit goes first, and nobody begins to; who has locks on what goes
        // away must begin anew.
        let alone = Box::pin(leadership.gate.write());
        let Ok(_alone) = self.inner.env.timeout(ALONE, alone).await else {
            let reason = "transactions are prepared in it".to_owned();
            return Err(TxnError::Unavailable { tablet: self.inner.id, reason });
        };
        let outcome = self.log(&leadership, &command).await;
        let state = self.inner.machine.state();
        let left = state.filter(|state| state.frozen.is_none()).map(|state| state.descriptor.range);
        let nothing = KeyRange { start: Vec::new(), end: Some(Vec::new()) };
        leadership.locks.shrink(&left.unwrap_or(nothing));
        outcome
    }

    /// Logs a command.
    pub(super) async fn log(&self, leadership: &Leadership, command: &Command) -> Outcome {
        let command = encode(command)?;
        let submitted = self.inner.replica.submit(leadership.term, command.into()).await;
        self.answered(leadership, submitted).await
    }

    /// Waits until a command is applied.
    pub(super) async fn answered(
        &self,
        leadership: &Leadership,
        submitted: Result<Submitted, ProposeError>,
    ) -> Outcome {
        let answer = match submitted {
            Ok(submitted) => submitted.outcome().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => decode::<Outcome>(&answer)?,
            Err(ProposeError::NotLeader { leader }) => Err(self.not_leader(leader)),
            Err(ProposeError::Unknown(reason)) => Err(self.unanswered(leadership.term, reason)),
        }
    }
}
