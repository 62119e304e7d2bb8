//! Transactions, as a gateway runs them: reads take locks where they read, writes wait here until the
//! commit (Corbett et al., *Spanner*, OSDI 2012, section 4.2.1).
//!
//! A transaction that concerns one tablet commits with one entry of its log; one that writes to several
//! or reads elsewhere by two-phase commit (`crate::commit`); one that writes nothing asks every tablet
//! that it has read from whether its locks held. While it lasts, its gateway tells those tablets that
//! it lives; when that is silent, the locks go.
//!
//! # Caveats
//!
//! * A scan locks all of the range that it asks for.
//! * A tablet that is split, merged or led by another node takes away the locks of those that have not
//!   voted yet: they end with [`TxnError::Conflict`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp};

use super::{Effect, PATIENCE, PAUSE};
use crate::command::{
    Mutation, Request, Row, ScanRequest, ScanResult, TxnLock, WholeTxn, WriteRequest,
};
use crate::commit::{Anchor, Commit, CommitProtocol, Decided, Fate, Part, Prepare, Vote};
use crate::error::TxnError;
use crate::locks::{Age, Mode, Stamp, TxnId};
use crate::node::Node;

/// How often tablets hear that a transaction lives.
const ALIVE: Duration = Duration::from_secs(1);

/// How often a node looks after the transactions of the tablets that it leads, while there are some
/// and while there are none.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// A coordinator decides nothing later than so long after the commit was asked for.
const EXPIRES: Duration = Duration::from_secs(10);

/// How often a read looks for the tablets that cover it, after they were split or merged.
const ROUTES: u32 = 20;

/// Where a transaction has locks.
type Held = Arc<Mutex<BTreeSet<TabletId>>>;

/// A read-write transaction. Dropped, it is rolled back.
#[derive(Debug)]
pub struct Transaction {
    node: Arc<Node>,
    stamp: Stamp,
    protocol: CommitProtocol,
    /// The commit timestamp lies above this: what the session, and this transaction, has seen.
    after: Timestamp,
    schema: BTreeMap<u64, u64>,
    held: Held,
    /// The changes so far; at most one per key.
    writes: BTreeMap<Vec<u8>, Mutation>,
    /// It has ended, or the commit was asked for.
    over: bool,
}

impl Node {
    /// Who a new transaction is.
    pub(crate) fn new_stamp(&self) -> Stamp {
        let id = self.next_txn();
        Stamp { id, age: Age { began: self.clock().now().latest, first: id } }
    }

    /// Begins a transaction, as old as `age` says if it is another attempt at one that has failed.
    /// Its commit timestamp will lie above `after`.
    pub fn begin(
        self: &Arc<Self>,
        age: Option<Age>,
        protocol: CommitProtocol,
        after: Timestamp,
    ) -> Transaction {
        let mut stamp = self.new_stamp();
        stamp.age = age.unwrap_or(stamp.age);
        let held = Held::default();
        let (weak, alive) = (Arc::downgrade(self), Arc::downgrade(&held));
        self.env().spawn(keep_alive(weak, stamp.id, alive));
        Transaction {
            node: Arc::clone(self),
            stamp,
            protocol,
            after,
            schema: BTreeMap::new(),
            held,
            writes: BTreeMap::new(),
            over: false,
        }
    }

    pub(crate) fn send_vote(
        &self,
        coordinator: TabletId,
        txn: TxnId,
        by: TabletId,
        vote: Vote,
    ) -> BoxFuture<'_, Result<(), TxnError>> {
        let request = Request::Vote { tablet: coordinator, txn, by, vote };
        Box::pin(self.ask_leader(coordinator, request, Effect::Repeatable))
    }

    /// Tells participants the outcome of a transaction; whether all know it now.
    pub(crate) fn tell_outcome(
        &self,
        txn: TxnId,
        participants: Vec<TabletId>,
        commit: Option<Timestamp>,
        protocol: CommitProtocol,
    ) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let tell = participants.into_iter().map(|tablet| async move {
                let request = Request::Finish { tablet, txn, commit, protocol };
                let told = self.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
                // What is gone had nothing prepared when it went.
                told.is_ok() || self.directory().is_gone(tablet)
            });
            join_all(tell).await.into_iter().all(|told| told)
        })
    }

    /// The outcome of a transaction, from the tablet that holds its anchor by now.
    async fn outcome_of(&self, txn: TxnId, anchor: &Anchor) -> Result<Fate, TxnError> {
        let tablet = self.tablet_of(anchor).await?.id;
        let request = Request::Inquire { tablet, txn, anchor: anchor.clone() };
        self.ask_leader(tablet, request, Effect::Repeatable).await
    }
}

/// Tells tablets that a transaction lives, for as long as it does.
async fn keep_alive(node: Weak<Node>, txn: TxnId, held: Weak<Mutex<BTreeSet<TabletId>>>) {
    loop {
        let Some(pause) = node.upgrade().map(|node| node.env().sleep(ALIVE)) else { return };
        pause.await;
        let (Some(node), Some(held)) = (node.upgrade(), held.upgrade()) else { return };
        let tablets = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        drop(held);
        for tablet in tablets {
            let telling = Arc::clone(&node);
            node.env().spawn(async move {
                let request = Request::Alive { tablet, txns: vec![txn] };
                let _ = telling.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
            });
        }
    }
}

/// Looks after the transactions of the tablets that are led here, for as long as the node lives.
pub(crate) async fn look_after(node: Weak<Node>) {
    let mut pause = LOOK.1;
    loop {
        let Some(pausing) = node.upgrade().map(|node| node.env().sleep(pause)) else { return };
        pausing.await;
        let Some(node) = node.upgrade() else { return };
        pause = LOOK.1;
        for tablet in node.open_tablets() {
            let Some(chores) = tablet.look_after() else { continue };
            pause = LOOK.0;
            for doubt in chores.doubts {
                let (node, tablet) = (Arc::clone(&node), tablet.clone());
                node.env().clone().spawn(async move {
                    if doubt.pressed {
                        let (tablet, txn) = (doubt.coordinator, doubt.txn);
                        let press = Request::Press { tablet, txn };
                        let _ = node.ask_leader::<()>(tablet, press, Effect::Repeatable).await;
                    }
                    if !doubt.overdue {
                        return;
                    }
                    let commit = match node.outcome_of(doubt.txn, &doubt.anchor).await {
                        Ok(Fate::Committed(at)) => Some(at),
                        Ok(Fate::Aborted) => None,
                        Ok(Fate::Pending) | Err(_) => return,
                    };
                    // Under which protocol isn't asked: to wait is always right.
                    let _ = tablet.settle(doubt.txn, commit, CommitProtocol::CommitWait).await;
                });
            }
            for Decided { txn, commit, participants, protocol, .. } in chores.tell {
                let (telling, tablet) = (Arc::clone(&node), tablet.clone());
                node.env().spawn(async move {
                    let all = telling.tell_outcome(txn, participants, commit, protocol).await;
                    tablet.told(txn, all);
                });
            }
            if !chores.forget.is_empty() {
                let tablet = tablet.clone();
                node.env().spawn(async move {
                    let _ = tablet.forget(chores.forget).await;
                });
            }
        }
    }
}

fn row(mutation: &Mutation) -> Option<Row> {
    match mutation {
        Mutation::Insert { key, value } | Mutation::Put { key, value } => {
            Some(Row { key: key.clone(), ts: Timestamp::MAX, value: value.clone() })
        }
        Mutation::Delete { .. } => None,
    }
}

impl Transaction {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.stamp.id
    }

    /// How old it is; for another attempt.
    #[must_use]
    pub fn age(&self) -> Age {
        self.stamp.age
    }

    /// It was planned under this version of a table's schema.
    pub fn planned_under(&mut self, table: u64, version: u64) {
        self.schema.insert(table, version);
    }

    fn holds(&self, tablet: TabletId) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&tablet)
    }

    /// Asks for locks in a tablet; from here on it is one that this transaction concerns.
    fn lock(&self, tablet: TabletId, mode: Mode) -> TxnLock {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        TxnLock { stamp: self.stamp, mode, begun: !held.insert(tablet) }
    }

    /// Reads rows by their keys, its own changes included; nobody else writes them until it ends. With
    /// [`Mode::Update`] for those that it is about to change.
    ///
    /// # Errors
    /// [`TxnError::Conflict`] when it has lost its locks: begin anew.
    pub async fn get(
        &mut self,
        keys: Vec<Vec<u8>>,
        mode: Mode,
    ) -> Result<Vec<Option<Row>>, TxnError> {
        let mut found: BTreeMap<Vec<u8>, Option<Row>> = BTreeMap::new();
        for key in &keys {
            if let Some(mutation) = self.writes.get(key) {
                found.insert(key.clone(), row(mutation));
            }
        }
        for _ in 0..ROUTES {
            let mut by_tablet: BTreeMap<TabletId, Vec<Vec<u8>>> = BTreeMap::new();
            for key in keys.iter().filter(|key| !found.contains_key(*key)) {
                let tablet = self.node.tablet_of(key).await?.id;
                by_tablet.entry(tablet).or_default().push(key.clone());
            }
            if by_tablet.is_empty() {
                return Ok(keys.iter().map(|key| found.get(key).cloned().flatten()).collect());
            }
            let reads = by_tablet.into_iter().map(|(tablet, keys)| {
                let lock = self.lock(tablet, mode);
                let request = Request::LockedGet { tablet, lock, keys: keys.clone() };
                let node = Arc::clone(&self.node);
                async move {
                    let read = node.ask_leader(tablet, request, Effect::Repeatable).await;
                    read.map(|(at, rows): (Timestamp, Vec<Option<Row>>)| (at, keys, rows))
                }
            });
            for read in join_all(reads).await {
                match read {
                    Ok((at, keys, rows)) => {
                        self.after = self.after.max(at);
                        found.extend(keys.into_iter().zip(rows));
                    }
                    Err(TxnError::Moved { .. } | TxnError::NoSuchTablet { .. }) => {
                        self.node.refresh_directory().await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Err(TxnError::Conflict)
    }

    /// Reads the rows of a range in the order of their keys, its own changes included; nobody else
    /// writes there until it ends.
    ///
    /// # Errors
    /// [`TxnError::Conflict`] when it has lost its locks: begin anew.
    pub async fn scan(&mut self, range: KeyRange, mode: Mode) -> Result<Vec<Row>, TxnError> {
        let mut rows: BTreeMap<Vec<u8>, Row> = BTreeMap::new();
        let mut rest = range.clone();
        let mut attempts = 0;
        while !rest.is_empty() {
            let tablets = self.node.tablets(&rest).await?;
            let Some(first) = tablets.first() else { break };
            let part = rest.intersect(&first.range);
            let read = crate::command::ReadAt::Exact(Timestamp::MAX);
            let scan =
                ScanRequest { range: part.clone(), at: read, limit: u64::MAX, reverse: false };
            let request =
                Request::LockedScan { tablet: first.id, lock: self.lock(first.id, mode), scan };
            let page = self.node.ask_leader(first.id, request, Effect::Repeatable).await;
            let page: ScanResult = match page {
                Ok(page) => page,
                Err(TxnError::Moved { .. } | TxnError::NoSuchTablet { .. })
                    if attempts < ROUTES =>
                {
                    attempts += 1;
                    self.node.refresh_directory().await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.after = self.after.max(page.at);
            let last = page.rows.last().map(|row| row.key.clone());
            rows.extend(page.rows.into_iter().map(|row| (row.key.clone(), row)));
            rest.start = match (page.more, last, part.end) {
                (true, Some(last), _) => [&last[..], &[0]].concat(),
                (_, _, Some(end)) => end,
                (_, _, None) => break,
            };
        }
        for (key, mutation) in self.writes.range(range.start.clone()..) {
            if !range.contains(key) {
                break;
            }
            match row(mutation) {
                Some(row) => drop(rows.insert(key.clone(), row)),
                None => drop(rows.remove(key)),
            }
        }
        Ok(rows.into_values().collect())
    }

    /// Adds a row. If the key exists when the transaction commits, that fails with
    /// [`TxnError::DuplicateKey`].
    ///
    /// # Errors
    /// [`TxnError::DuplicateKey`] if this transaction has written such a row already.
    pub fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), TxnError> {
        let new = match self.writes.get(&key) {
            None => Mutation::Insert { key: key.clone(), value },
            Some(Mutation::Delete { .. }) => Mutation::Put { key: key.clone(), value },
            Some(_) => return Err(TxnError::DuplicateKey { key }),
        };
        self.writes.insert(key, new);
        Ok(())
    }

    /// Adds or replaces a row.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let inserted = matches!(self.writes.get(&key), Some(Mutation::Insert { .. }));
        let new = if inserted {
            Mutation::Insert { key: key.clone(), value }
        } else {
            Mutation::Put { key: key.clone(), value }
        };
        self.writes.insert(key, new);
    }

    /// Removes a row, if it exists.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.writes.insert(key.clone(), Mutation::Delete { key });
    }

    /// Commits; the commit timestamp. It is [`Timestamp::MIN`] if nothing was written.
    ///
    /// # Errors
    /// [`TxnError::Unknown`] when it may have been committed; otherwise it was not, and
    /// [`TxnError::Conflict`] says that it is worth another attempt.
    pub async fn commit(mut self) -> Result<Timestamp, TxnError> {
        self.over = true;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut parts: BTreeMap<TabletId, Vec<Mutation>> =
            held.iter().map(|tablet| (*tablet, Vec::new())).collect();
        for (key, mutation) in std::mem::take(&mut self.writes) {
            let routed = self.node.tablet_of(&key).await;
            let tablet = match routed {
                Ok(descriptor) => descriptor.id,
                Err(error) => {
                    self.release(&held);
                    return Err(error);
                }
            };
            parts.entry(tablet).or_default().push(mutation);
        }
        let writers = parts.values().filter(|mutations| !mutations.is_empty()).count();
        let outcome = match (parts.len(), writers) {
            (_, 0) => return self.confirm(&held).await,
            (1, _) => self.commit_in_one(parts).await,
            _ => self.commit_in_many(parts).await,
        };
        if let Err(error) = &outcome
            && !matches!(error, TxnError::Unknown { .. })
        {
            self.release(&held);
        }
        match outcome {
            // It was split or merged since.
            Err(TxnError::Moved { .. } | TxnError::NoSuchTablet { .. }) => Err(TxnError::Conflict),
            outcome => outcome,
        }
    }

    /// Ends a transaction that has written nothing: all that it has read was so at one time, if its
    /// locks are all there still.
    async fn confirm(&self, held: &BTreeSet<TabletId>) -> Result<Timestamp, TxnError> {
        let floor = self.after;
        let ends = held.iter().map(|tablet| {
            let request = Request::End { tablet: *tablet, txn: self.stamp.id, held: true, floor };
            self.node.ask_leader::<()>(*tablet, request, Effect::Once)
        });
        for end in join_all(ends).await {
            if end.is_err() {
                self.release(held);
                return Err(TxnError::Conflict);
            }
        }
        Ok(Timestamp::MIN)
    }

    async fn commit_in_one(
        &self,
        parts: BTreeMap<TabletId, Vec<Mutation>>,
    ) -> Result<Timestamp, TxnError> {
        let Some((tablet, mutations)) = parts.into_iter().next() else {
            return Err(TxnError::Internal("a commit of nothing".to_owned()));
        };
        let txn =
            WholeTxn { stamp: self.stamp, begun: self.holds(tablet), protocol: self.protocol };
        self.node
            .write(WriteRequest {
                tablet,
                schema: self.schema.clone().into_iter().collect(),
                reads: crate::command::ReadSet::default(),
                mutations,
                after: self.after,
                txn: Some(txn),
            })
            .await
    }

    async fn commit_in_many(
        &self,
        parts: BTreeMap<TabletId, Vec<Mutation>>,
    ) -> Result<Timestamp, TxnError> {
        let node = &self.node;
        let expires = node.clock().now().latest.plus(EXPIRES);
        let writes = |part: &(&TabletId, &Vec<Mutation>)| !part.1.is_empty();
        // The nearest of those that write: the answer comes from there.
        let near = |tablet: TabletId| {
            let leader = node.leader_hint(tablet);
            let known = node.members().iter().find(|member| Some(member.id) == leader);
            known.map_or(Duration::MAX, |member| {
                if member.id == node.id() { Duration::ZERO } else { member.round_trip }
            })
        };
        let coordinator = parts.iter().filter(writes).map(|(tablet, _)| *tablet);
        let Some(coordinator) = coordinator.min_by_key(|tablet| (near(*tablet), *tablet)) else {
            return Err(TxnError::Internal("a commit of nothing".to_owned()));
        };
        let anchor: Anchor = parts[&coordinator][0].key().to_vec();
        let participants: Vec<TabletId> =
            parts.keys().copied().filter(|tablet| *tablet != coordinator).collect();
        let schema: Vec<(u64, u64)> = self.schema.clone().into_iter().collect();
        let mut parts: BTreeMap<TabletId, Part> = parts
            .into_iter()
            .map(|(tablet, mutations)| {
                let (begun, schema) = (self.holds(tablet), schema.clone());
                (tablet, Part { tablet, txn: self.stamp, begun, schema, mutations })
            })
            .collect();
        let Some(part) = parts.remove(&coordinator) else {
            return Err(TxnError::Internal("a coordinator of nothing".to_owned()));
        };
        let prepares = parts.into_iter().map(|(tablet, part)| {
            let prepare = Prepare { part, coordinator, anchor: anchor.clone() };
            async move {
                let request = Request::Prepare(prepare);
                let asked = node.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
                if asked.is_err() {
                    // Nobody waits for it then.
                    let vote = Err(TxnError::Conflict);
                    let _ = node.send_vote(coordinator, self.stamp.id, tablet, vote).await;
                }
            }
        });
        let commit = Commit {
            part,
            anchor: anchor.clone(),
            participants,
            protocol: self.protocol,
            after: self.after,
            expires,
        };
        let commit = node.ask_leader(coordinator, Request::Commit(commit), Effect::Once);
        let prepares = std::pin::pin!(join_all(prepares));
        let commit = std::pin::pin!(commit);
        // The answer may come without all of them: when one refuses.
        let outcome = match futures::future::select(commit, prepares).await {
            futures::future::Either::Left((outcome, _)) => outcome,
            futures::future::Either::Right((_, commit)) => commit.await,
        };
        match outcome {
            Err(TxnError::Unknown { reason }) => self.learn(&anchor, reason).await,
            outcome => outcome,
        }
    }

    /// What became of it, if that can be learned.
    async fn learn(&self, anchor: &Anchor, reason: String) -> Result<Timestamp, TxnError> {
        let node = &self.node;
        let give_up = node.env().moment().plus(PATIENCE * 2);
        while node.env().moment() < give_up {
            match node.outcome_of(self.stamp.id, anchor).await {
                Ok(Fate::Committed(at)) => return Ok(at),
                Ok(Fate::Aborted) => return Err(TxnError::Conflict),
                Ok(Fate::Pending) | Err(_) => node.env().sleep(PAUSE.1).await,
            }
        }
        Err(TxnError::Unknown { reason })
    }

    /// Gives the locks up that have not been voted on.
    fn release(&self, held: &BTreeSet<TabletId>) {
        for tablet in held.iter().copied() {
            let (node, txn) = (Arc::clone(&self.node), self.stamp.id);
            self.node.env().spawn(async move {
                let floor = Timestamp::MIN;
                let request = Request::End { tablet, txn, held: false, floor };
                let _ = node.ask_leader::<()>(tablet, request, Effect::Repeatable).await;
            });
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.over {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.release(&held);
        }
    }
}
