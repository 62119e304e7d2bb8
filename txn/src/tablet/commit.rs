//! Transactions in a tablet, where it is led: locks, votes and outcomes (`crate::commit` has the
//! rules).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{Either, select};
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp, wait_until_after};
use tokio::sync::{Notify, OwnedRwLockReadGuard, oneshot};

use super::leader::{InDoubt, Leadership, Open, Remembered, Tablet, TabletRead, guard};
use crate::command::{Command, Mutation, TxnLock, encode};
use crate::commit::{
    Anchor, Ballot, Commit, CommitProtocol, Committed, Decided, Fate, Interval, Part, Phases,
    Prepare, Prepared, Tally, Vote,
};
use crate::error::TxnError;
use crate::locks::{Hold, Lock, Mode, Patience, Stamp, TxnId};

/// Transactions whose gateway is silent for so long are over; it is heard of four times as often
/// (`crate::gateway::attending`).
const SILENCE: Duration = Duration::from_secs(2);

/// Nobody asks for a commit any more so long after it could first have been asked for: the gateway's
/// patience is over, and copies on the network are gone.
const LATE: Duration = Duration::from_secs(20);

/// So long a request waits for a lock before the gateway is told; it asks again.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// Who is in doubt for longer asks the coordinator.
const DOUBT: Duration = Duration::from_secs(1);

/// For so many keys one lock is taken on all that lies between them.
const MANY: usize = 1_000;

fn remembered(decided: Decided) -> Remembered {
    Remembered { decided, telling: false, told: false }
}

/// Whoever doesn't wait doesn't wound either.
pub(super) fn patience(wait: Duration) -> Patience {
    if wait.is_zero() { Patience::None } else { Patience::Wait }
}

/// What others are told of a vote that was refused.
fn refusal(error: TxnError) -> TxnError {
    match error {
        TxnError::DuplicateKey { .. }
        | TxnError::SchemaChanged { .. }
        | TxnError::TooLarge { .. }
        | TxnError::Internal(_) => error,
        _ => TxnError::Conflict,
    }
}

/// What there is to do for the transactions of a tablet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chores {
    pub(crate) doubts: Vec<Doubt>,
    /// To be told to their participants.
    pub(crate) tell: Vec<Decided>,
    pub(crate) forget: Vec<TxnId>,
}

/// A question to the coordinator of a transaction that is in doubt here.
#[derive(Clone, Debug)]
pub(crate) struct Doubt {
    pub(crate) txn: TxnId,
    pub(crate) coordinator: TabletId,
    pub(crate) anchor: Anchor,
    /// An older transaction waits for it.
    pub(crate) pressed: bool,
    /// It is time to ask for the outcome.
    pub(crate) overdue: bool,
}

impl Leadership {
    /// The votes on a transaction.
    fn ballot(&self, tablet: &Tablet, txn: TxnId) -> Arc<Open> {
        let since = tablet.inner.env.moment();
        let mut ballots = guard(&self.ballots);
        let open = ballots.entry(txn).or_insert_with(|| {
            Arc::new(Open {
                ballot: Mutex::new(Ballot::default()),
                changed: Notify::new(),
                since,
                asked: AtomicBool::new(false),
            })
        });
        Arc::clone(open)
    }
}

impl Tablet {
    /// Takes up what earlier leaders have left: who is prepared has its locks again.
    pub(super) fn take_up(&self, leadership: &Leadership) -> Result<(), TxnError> {
        let inner = &self.inner;
        for prepared in inner.machine.prepared(&inner.data.snapshot()?)? {
            let keys: BTreeSet<Vec<u8>> =
                prepared.mutations.iter().map(|m| m.key().to_vec()).collect();
            leadership.locks.restore(prepared.txn, keys.iter().cloned());
            let gate = Arc::clone(&leadership.gate);
            let Ok(open) = gate.try_read_owned() else {
                return Err(TxnError::Internal("a new gate is open".to_owned()));
            };
            let in_doubt = InDoubt {
                // It has voted before, or never will.
                vote: Interval { min: prepared.min, until: Timestamp::MIN },
                keys,
                coordinator: prepared.coordinator,
                anchor: prepared.anchor,
                since: inner.env.moment(),
                _open: open,
            };
            guard(&leadership.in_doubt).insert(prepared.txn.id, in_doubt);
        }
        self.recollect(leadership)
    }

    /// Reads which outcomes are remembered here.
    pub(super) fn recollect(&self, leadership: &Leadership) -> Result<(), TxnError> {
        let view = self.inner.data.snapshot()?;
        let mut outcomes = guard(&leadership.outcomes);
        for decided in self.inner.machine.outcomes(&view)? {
            outcomes.entry(decided.txn).or_insert(remembered(decided));
        }
        Ok(())
    }

    /// Takes locks beside those that a transaction has, one after the other.
    async fn lock(
        &self,
        leadership: &Leadership,
        (stamp, mut held): (Stamp, Option<Hold>),
        wanted: Vec<(KeyRange, Mode)>,
        patience: Patience,
    ) -> Result<Hold, TxnError> {
        for (range, mode) in wanted {
            let now = self.inner.env.moment();
            let acquired = leadership.locks.acquire(now, (stamp, held), range, mode, patience);
            held = Some(acquired.await?);
        }
        held.filter(|hold| leadership.locks.holds(stamp.id, *hold)).ok_or(TxnError::Conflict)
    }

    /// Lets a request wait for its locks, so long at most, and no longer than the gateway waits for an
    /// answer; [`TxnError::Locked`] when that is over. What it has by then, it keeps, for the gateway
    /// may ask again.
    pub(super) async fn patiently<T: Send>(
        &self,
        wait: Duration,
        locks: impl Future<Output = Result<T, TxnError>> + Send,
    ) -> Result<T, TxnError> {
        self.inner.env.timeout(wait.min(LOCK_WAIT), locks).await.unwrap_or(Err(TxnError::Locked))
    }

    /// Takes the locks that a transaction needs to write these, and to have read those.
    pub(super) async fn lock_all(
        &self,
        leadership: &Leadership,
        stamp: Stamp,
        held: Option<Hold>,
        shared: Vec<KeyRange>,
        mutations: &[Mutation],
        patience: Patience,
    ) -> Result<Hold, TxnError> {
        let mut wanted: Vec<(KeyRange, Mode)> =
            shared.into_iter().map(|range| (range, Mode::Shared)).collect();
        let keys: BTreeSet<&[u8]> = mutations.iter().map(Mutation::key).collect();
        if let (Some(first), Some(last), true) = (keys.first(), keys.last(), keys.len() > MANY) {
            let hull = KeyRange { start: first.to_vec(), end: Some([last, &[0][..]].concat()) };
            wanted.push((hull, Mode::Exclusive));
        } else {
            let points = keys.into_iter().map(|key| KeyRange::point(key.to_vec()));
            wanted.extend(points.map(|point| (point, Mode::Exclusive)));
        }
        self.lock(leadership, (stamp, held), wanted, patience).await
    }

    /// A view of what is committed in these ranges, which stays so while the locks are held.
    pub(crate) async fn read_locked(
        &self,
        lock: TxnLock,
        ranges: Vec<KeyRange>,
    ) -> Result<TabletRead, TxnError> {
        let inner = &self.inner;
        let leadership = self.lasting_leadership().await?;
        let TxnLock { stamp, mode, held, wait } = lock;
        // What an earlier leader wrote last may not have passed yet, and nobody holds locks on it.
        self.wait(&leadership, |oracle| oracle.visible() >= leadership.inherited).await;
        for range in &ranges {
            inner.machine.check(range)?;
        }
        let wanted = ranges.iter().map(|range| (range.clone(), mode)).collect();
        let asked = inner.env.moment();
        let locks = self.lock(&leadership, (stamp, held), wanted, patience(wait));
        let hold = Some(self.patiently(wait, locks).await?);
        let lock_wait = inner.env.moment().since(asked);
        // All that has committed here is at or below it.
        let at = leadership.oracle().floor();
        let snapshot = inner.data.snapshot()?;
        for range in &ranges {
            inner.machine.check(range)?;
        }
        Ok(TabletRead { at, hold, lock_wait, snapshot })
    }

    /// Whether this replica leads, as far as it knows, and goes on to.
    pub(crate) async fn check_leads(&self) -> Result<(), TxnError> {
        self.lasting_leadership().await.map(drop)
    }

    /// A participant's vote. What was voted for lasts until [`Tablet::settle`]. None if the same was
    /// asked before and is under way: its vote isn't certain before it is logged.
    pub(crate) async fn prepare(&self, prepare: Prepare) -> Option<Vote> {
        let leadership = match self.leadership().await {
            Ok(leadership) => leadership,
            Err(error) => return Some(Err(error)),
        };
        let txn = prepare.part.txn.id;
        if !guard(&leadership.preparing).insert(txn) {
            return None;
        }
        let before = guard(&leadership.in_doubt).get(&txn).map(|in_doubt| in_doubt.vote);
        let vote = match before {
            Some(vote) => Ok(vote),
            None => {
                let vote = self.try_to_prepare(&leadership, prepare).await;
                if vote.is_err() {
                    leadership.settled(txn);
                }
                vote
            }
        };
        guard(&leadership.preparing).remove(&txn);
        Some(vote)
    }

    async fn try_to_prepare(&self, leadership: &Leadership, prepare: Prepare) -> Vote {
        let inner = &self.inner;
        let Prepare { part, coordinator, anchor } = prepare;
        let Part { txn, held, schema, mutations, .. } = part;
        let locks = self.lock_all(leadership, txn, held, Vec::new(), &mutations, Patience::Wait);
        let hold = locks.await?;
        let open = Arc::clone(&leadership.gate).read_owned().await;
        if !leadership.locks.pin(txn.id, hold) {
            return Err(TxnError::Conflict);
        }
        let keys: BTreeSet<Vec<u8>> = mutations.iter().map(|m| m.key().to_vec()).collect();
        let writes = !keys.is_empty();
        let (vote, submitted) = {
            let _in_order = leadership.log_order.lock().await;
            let min = {
                // Together: whoever reads at `min` or above from here on waits for the outcome.
                let mut oracle = leadership.oracle();
                let min = oracle.vote();
                let vote = Interval { min, until: Timestamp::MIN };
                let (anchor, since) = (anchor.clone(), inner.env.moment());
                let in_doubt = InDoubt { vote, keys, coordinator, anchor, since, _open: open };
                guard(&leadership.in_doubt).insert(txn.id, in_doubt);
                min
            };
            let until = self.take(leadership, min).await?;
            if held.is_some() {
                // What it has read stays as it is until then, under a leader that takes over, too.
                self.take(leadership, until.prev()).await?;
            }
            let vote = Interval { min, until };
            if let Some(in_doubt) = guard(&leadership.in_doubt).get_mut(&txn.id) {
                in_doubt.vote = vote;
            }
            if !writes {
                return Ok(vote);
            }
            let prepared = Prepared { txn, min, coordinator, anchor, schema, mutations };
            let command = encode(&Command::Prepare(prepared))?;
            (vote, inner.replica.submit(leadership.term, command.into()).await)
        };
        self.answered(leadership, submitted).await.map(|_| vote)
    }

    /// A vote on a transaction that is coordinated here.
    pub(crate) async fn vote(&self, txn: TxnId, by: TabletId, vote: Vote) -> Result<(), TxnError> {
        let leadership = self.leadership().await?;
        let open = leadership.ballot(self, txn);
        guard(&open.ballot).vote(by, vote);
        open.changed.notify_one();
        Ok(())
    }

    /// An older transaction waits for one that is coordinated here.
    pub(crate) async fn press(&self, txn: TxnId) -> Result<(), TxnError> {
        let leadership = self.leadership().await?;
        let open = guard(&leadership.ballots).get(&txn).cloned();
        if let Some(open) = open {
            guard(&open.ballot).press();
            open.changed.notify_one();
        }
        Ok(())
    }

    /// What the log says became of a transaction, if it is remembered: told when it is visible, for
    /// whoever hears of it may tell a client.
    async fn decided(
        &self,
        leadership: &Leadership,
        txn: TxnId,
    ) -> Result<Option<Option<Timestamp>>, TxnError> {
        let inner = &self.inner;
        let Some(decided) = inner.machine.outcome(txn, &inner.data.snapshot()?)? else {
            return Ok(None);
        };
        let at = decided.commit.unwrap_or(Timestamp::MIN);
        if self.wait(leadership, |oracle| oracle.visible() >= at).await {
            Ok(Some(decided.commit))
        } else {
            Err(self.not_leader(inner.replica.probable_leader()))
        }
    }

    /// Coordinates a transaction; answers when it is visible, or certainly never will be. Then the
    /// participants are to be told, but for an unknown outcome: they will ask.
    pub(crate) async fn coordinate(
        &self,
        commit: Commit,
        decided: oneshot::Sender<Option<Timestamp>>,
    ) -> Result<Committed, TxnError> {
        let lowest = self.lowest(commit.protocol).max(commit.after.next());
        let leadership = self.leadership().await?;
        let txn = commit.part.txn.id;
        // The request may have come before, to another leader.
        if let Some(commit) = self.decided(&leadership, txn).await? {
            let at = commit.ok_or(TxnError::Conflict)?;
            return Ok(Committed { at, phases: Phases::default() });
        }
        let open = leadership.ballot(self, txn);
        open.asked.store(true, Ordering::Relaxed);
        let mut tell = Some(decided);
        let outcome = self.decide(&leadership, &open, commit, lowest, &mut tell).await;
        leadership.locks.release(txn);
        guard(&leadership.ballots).remove(&txn);
        if let (Err(error), Some(tell)) = (&outcome, tell)
            && !matches!(error, TxnError::Unknown { .. })
        {
            let _ = tell.send(None);
        }
        outcome
    }

    async fn decide(
        &self,
        leadership: &Leadership,
        open: &Open,
        commit: Commit,
        lowest: Timestamp,
        tell: &mut Option<oneshot::Sender<Option<Timestamp>>>,
    ) -> Result<Committed, TxnError> {
        let inner = &self.inner;
        let mut phases = Phases::default();
        let mut last = inner.env.moment();
        let mut lap = || {
            let now = inner.env.moment();
            now.since(std::mem::replace(&mut last, now))
        };
        let Commit { part, anchor, participants, protocol, expires, .. } = commit;
        let Part { txn, held, schema, mutations, .. } = part;
        let hold = {
            let (shared, wait) = (Vec::new(), Patience::Wait);
            let locks = self.lock_all(leadership, txn, held, shared, &mutations, wait);
            let refused = self.votes(leadership, open, expires, Ballot::refused);
            match select(std::pin::pin!(locks), std::pin::pin!(refused)).await {
                Either::Left((locked, _)) => locked?,
                Either::Right((refused, _)) => return Err(refusal(refused?)),
            }
        };
        let _gate: OwnedRwLockReadGuard<()> = Arc::clone(&leadership.gate).read_owned().await;
        if !leadership.locks.pin(txn.id, hold) {
            return Err(TxnError::Conflict);
        }
        phases.locks = lap();
        let tally = |ballot: &Ballot| match ballot.tally(&participants) {
            Tally::Agreed(interval) => Some(Ok(interval)),
            Tally::Refused(error) => Some(Err(refusal(error))),
            Tally::Open => None,
        };
        let agreed = self.votes(leadership, open, expires, tally).await??;
        phases.prepare = lap();
        let mut memory;
        let (at, submitted) = {
            let _in_order = leadership.log_order.lock().await;
            let at = leadership.oracle().assign(lowest.max(agreed.min));
            let late = at >= agreed.until || inner.clock.now().latest > expires;
            if late || self.take(leadership, at).await.is_err() {
                leadership.release(at);
                return Err(TxnError::Conflict);
            }
            let commit = Some(at);
            let decided = Decided { txn: txn.id, anchor, commit, participants, protocol, expires };
            memory = remembered(decided.clone());
            let submitted = match encode(&Command::Decide { decided, schema, mutations }) {
                Ok(command) => inner.replica.submit(leadership.term, command.into()).await,
                Err(error) => {
                    leadership.release(at);
                    return Err(error);
                }
            };
            (at, submitted)
        };
        match self.answered(leadership, submitted).await {
            Ok(first) => {
                phases.replicate = lap();
                if let Some(tell) = tell.take() {
                    let _ = tell.send(Some(first));
                }
                memory.telling = true;
                guard(&leadership.outcomes).entry(txn.id).or_insert(memory);
                if protocol == CommitProtocol::CommitWait {
                    wait_until_after(&*inner.env, &*inner.clock, at.max(first)).await;
                }
                leadership.release(at);
                self.wait(leadership, |oracle| oracle.visible() >= at).await;
                phases.wait = lap();
                Ok(Committed { at: first, phases })
            }
            // It may be applied yet: this leadership never shows anything from here on.
            Err(error @ TxnError::Unknown { .. }) => Err(error),
            Err(error) => {
                leadership.release(at);
                // Nobody else has the votes.
                Err(refusal(error))
            }
        }
    }

    /// Waits until `said` has something to say of the votes.
    ///
    /// # Errors
    /// [`TxnError::Conflict`] when nothing can be decided any more.
    async fn votes<T>(
        &self,
        leadership: &Leadership,
        open: &Open,
        expires: Timestamp,
        said: impl Fn(&Ballot) -> Option<T>,
    ) -> Result<T, TxnError> {
        let inner = &self.inner;
        loop {
            let changed = open.changed.notified();
            if let Some(said) = said(&guard(&open.ballot)) {
                return Ok(said);
            }
            let leads = inner.replica.leads() == Some(leadership.term);
            if !leads || inner.clock.now().earliest > expires {
                return Err(TxnError::Conflict);
            }
            let look_again = inner.env.sleep(DOUBT);
            select(std::pin::pin!(changed), look_again).await;
        }
    }

    /// The outcome of a transaction that is, or may have been, coordinated here. If nothing is known
    /// of it, it is aborted before that is said.
    pub(crate) async fn inquire(&self, txn: TxnId, anchor: Anchor) -> Result<Fate, TxnError> {
        let inner = &self.inner;
        let leadership = self.leadership().await?;
        let asked = |open: &Arc<Open>| open.asked.load(Ordering::Relaxed);
        if guard(&leadership.ballots).get(&txn).is_some_and(asked) {
            return Ok(Fate::Pending);
        }
        let commit = match self.decided(&leadership, txn).await? {
            Some(commit) => commit,
            None => {
                // Whoever asked for the commit could have done so until then.
                let expires = inner.clock.now().latest.plus(LATE);
                let participants = Vec::new();
                let protocol = CommitProtocol::default();
                let decided =
                    Decided { txn, anchor, commit: None, participants, protocol, expires };
                let (schema, mutations) = Default::default();
                let memory = remembered(decided.clone());
                let decide = Command::Decide { decided, schema, mutations };
                let commit = match self.log(&leadership, &decide).await {
                    Ok(at) => Some(at),
                    Err(TxnError::Conflict) => None,
                    Err(error) => return Err(error),
                };
                guard(&leadership.outcomes).entry(txn).or_insert(memory);
                commit
            }
        };
        Ok(commit.map_or(Fate::Aborted, Fate::Committed))
    }

    /// The outcome of a transaction that has voted here, or was about to. Returns when it is applied;
    /// its locks go when it is visible.
    pub(crate) async fn settle(
        &self,
        txn: TxnId,
        commit: Option<Timestamp>,
        protocol: CommitProtocol,
    ) -> Result<(), TxnError> {
        let inner = &self.inner;
        let leadership = self.leadership().await?;
        let wrote = guard(&leadership.in_doubt).get(&txn).map(|txn| !txn.keys.is_empty());
        match wrote {
            None => leadership.locks.release(txn),
            Some(wrote) => {
                let submitted = {
                    let _in_order = leadership.log_order.lock().await;
                    // What is logged from here on comes later.
                    leadership.oracle().promise(commit.unwrap_or(Timestamp::MIN));
                    let finish = encode(&Command::Finish { txn, commit })?;
                    if wrote {
                        Some(inner.replica.submit(leadership.term, finish.into()).await)
                    } else {
                        None
                    }
                };
                if let Some(submitted) = submitted {
                    self.answered(&leadership, submitted).await?;
                }
                let Some(at) = commit else {
                    leadership.settled(txn);
                    return Ok(());
                };
                if wrote {
                    leadership.oracle().learn(at);
                }
                if protocol == CommitProtocol::TwoPhase {
                    leadership.settled(txn);
                    return Ok(());
                }
                let tablet = self.clone();
                inner.env.spawn(async move {
                    // As long as its coordinator does.
                    wait_until_after(&*tablet.inner.env, &*tablet.inner.clock, at).await;
                    leadership.settled(txn);
                });
            }
        }
        Ok(())
    }

    /// A transaction ends that writes nothing here. With `held`, its locks must be there still; then
    /// nothing is written at or below `floor` any more.
    pub(crate) async fn end(
        &self,
        txn: TxnId,
        held: Option<Hold>,
        floor: Timestamp,
    ) -> Result<(), TxnError> {
        let leadership = self.leadership().await?;
        if guard(&leadership.in_doubt).contains_key(&txn) {
            // It has voted; its coordinator says what becomes of it.
            return Ok(());
        }
        if let Some(hold) = held {
            if !leadership.locks.holds(txn, hold) {
                return Err(TxnError::Conflict);
            }
            leadership.oracle().promise(floor);
            self.take(&leadership, floor).await?;
        }
        leadership.locks.release(txn);
        Ok(())
    }

    /// The locks here, if this replica leads.
    pub(crate) fn locks(&self) -> Vec<Lock> {
        let leadership = self.inner.leadership.borrow().clone();
        leadership.map(|leadership| leadership.locks.all()).unwrap_or_default()
    }

    /// The gateways of these transactions live.
    pub(crate) async fn alive(&self, txns: &[TxnId]) -> Result<(), TxnError> {
        let leadership = self.leadership().await?;
        leadership.locks.heard(self.inner.env.moment(), txns);
        Ok(())
    }

    /// Everybody was told of these outcomes, or not.
    pub(crate) fn told(&self, txn: TxnId, all: bool) {
        let leadership = self.inner.leadership.borrow().clone();
        if let Some(leadership) = leadership
            && let Some(memory) = guard(&leadership.outcomes).get_mut(&txn)
        {
            (memory.telling, memory.told) = (false, all);
        }
    }

    /// Looks after the transactions of a tablet that is led here; `None` if there are none.
    pub(crate) fn look_after(&self) -> Option<Chores> {
        let inner = &self.inner;
        let leadership = inner.leadership.borrow().clone()?;
        let idle = leadership.locks.is_empty()
            && guard(&leadership.in_doubt).is_empty()
            && guard(&leadership.ballots).is_empty()
            && guard(&leadership.outcomes).is_empty();
        if idle {
            return None;
        }
        let now = inner.env.moment();
        let ago = |by: Duration| {
            let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
            meridian_truetime::Moment::from_nanos(now.as_nanos().saturating_sub(nanos))
        };
        leadership.locks.sweep(ago(SILENCE));
        let stale = |open: &Open| !open.asked.load(Ordering::Relaxed) && open.since < ago(LATE);
        guard(&leadership.ballots).retain(|_, open| !stale(open));
        let pressed: BTreeSet<TxnId> = leadership.locks.take_pressed().into_iter().collect();
        let doubts = {
            let in_doubt = guard(&leadership.in_doubt);
            let doubt = |(id, txn): (&TxnId, &InDoubt)| Doubt {
                txn: *id,
                coordinator: txn.coordinator,
                anchor: txn.anchor.clone(),
                pressed: pressed.contains(id),
                overdue: txn.since <= ago(DOUBT),
            };
            in_doubt.iter().map(doubt).filter(|doubt| doubt.pressed || doubt.overdue).collect()
        };
        let earliest = inner.clock.now().earliest;
        let mut chores = Chores { doubts, ..Chores::default() };
        for (txn, memory) in guard(&leadership.outcomes).iter_mut() {
            let Decided { commit, participants, expires, .. } = &memory.decided;
            let all_know = memory.told || commit.is_none() || participants.is_empty();
            if all_know && earliest > *expires {
                chores.forget.push(*txn);
            } else if !all_know && !memory.telling {
                memory.telling = true;
                chores.tell.push(memory.decided.clone());
            }
        }
        Some(chores)
    }
}

impl Tablet {
    /// Forgets outcomes that nobody asks for any more.
    pub(crate) async fn forget(&self, txns: Vec<TxnId>) -> Result<(), TxnError> {
        let leadership = self.leadership().await?;
        self.log(&leadership, &Command::Forget { txns: txns.clone() }).await?;
        guard(&leadership.outcomes).retain(|txn, _| !txns.contains(txn));
        Ok(())
    }
}
