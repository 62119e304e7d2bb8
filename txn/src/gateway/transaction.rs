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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::{Env, Moment, Timestamp};

use super::Effect;
use super::buffer::{Changes, Savepoint, WriteBuffer, changes_within, row_of};
use crate::command::{Request, Row, ScanRequest, ScanResult, TxnLock};
use crate::commit::{CommitProtocol, CommitReport};
use crate::error::TxnError;
use crate::locks::{Age, Hold, Mode, Stamp, TxnId};
use crate::node::Node;

/// How often a read looks for the tablets that cover it, after they were split or merged.
const ROUTES: u32 = 20;

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long to wait for a lock that another transaction holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Until it is granted.
    #[default]
    Forever,
    /// So long; not at all, if that is zero.
    For(Duration),
}

impl Wait {
    fn until(self, env: &Env) -> Option<Moment> {
        match self {
            Self::Forever => None,
            Self::For(wait) => Some(env.moment().plus(wait)),
        }
    }
}

/// The tablets in which a transaction has asked for locks, and those that it was granted first. If a
/// tablet ever grants others, the first were lost.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<BTreeMap<TabletId, Option<Hold>>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TabletId, Option<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all(&self) -> BTreeSet<TabletId> {
        self.lock().keys().copied().collect()
    }

    pub(super) fn granted(&self) -> BTreeMap<TabletId, Hold> {
        let held = self.lock();
        held.iter().filter_map(|(tablet, hold)| Some((*tablet, (*hold)?))).collect()
    }
}

/// A read-write transaction. Dropped, it is rolled back.
#[derive(Debug)]
pub struct Transaction {
    pub(super) node: Arc<Node>,
    pub(super) stamp: Stamp,
    pub(super) protocol: CommitProtocol,
    state: Mutex<State>,
    pub(super) held: Arc<Held>,
}

#[derive(Debug)]
pub(super) struct State {
    /// The commit timestamp lies above this: what the session, and this transaction, has seen.
    pub(super) after: Timestamp,
    pub(super) schema: BTreeMap<u64, u64>,
    pub(super) writes: WriteBuffer,
    /// How long its commit waits for locks.
    pub(super) wait: Wait,
    /// It has ended, or the commit was asked for.
    pub(super) over: bool,
    pub(super) report: CommitReport,
}

/// A request for locks in one tablet.
#[derive(Debug)]
pub struct Locking {
    env: Env,
    stamp: Stamp,
    mode: Mode,
    tablet: TabletId,
    held: Arc<Held>,
    until: Option<Moment>,
}

impl Locking {
    /// What to send to the tablet.
    #[must_use]
    pub fn lock(&self) -> TxnLock {
        let held = self.held.lock().get(&self.tablet).copied().flatten();
        let (stamp, mode) = (self.stamp, self.mode);
        let wait = self.until.map_or(FOR_EVER, |until| until.since(self.env.moment()));
        TxnLock { stamp, mode, held, wait }
    }

    /// Whether to ask again after this error: another has the locks, and there is time left.
    #[must_use]
    pub fn goes_on(&self, error: &TxnError) -> bool {
        *error == TxnError::Locked && self.until.is_none_or(|until| self.env.moment() < until)
    }
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
        let state = State {
            after,
            schema: BTreeMap::new(),
            writes: WriteBuffer::default(),
            wait: Wait::Forever,
            over: false,
            report: CommitReport::default(),
        };
        Transaction {
            node: Arc::clone(self),
            stamp,
            protocol,
            state: Mutex::new(state),
            held: Arc::default(),
        }
    }
}

impl Transaction {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

    /// Everything that it has seen was committed up to here.
    #[must_use]
    pub fn seen(&self) -> Timestamp {
        self.state().after
    }

    /// It was planned under this version of a table's schema.
    ///
    /// # Errors
    /// [`TxnError::SchemaChanged`] if an earlier part of it was planned under another.
    pub fn planned_under(&self, table: u64, version: u64) -> Result<(), TxnError> {
        match *self.state().schema.entry(table).or_insert(version) {
            before if before == version => Ok(()),
            _ => Err(TxnError::SchemaChanged { table }),
        }
    }

    /// How long its commit waits for the locks that it hasn't got yet.
    pub fn set_wait(&self, wait: Wait) {
        self.state().wait = wait;
    }

    /// Its changes so far; later ones are not seen there.
    #[must_use]
    pub fn changes(&self) -> Arc<Changes> {
        Arc::clone(self.state().writes.changes())
    }

    /// About how many bytes its changes take.
    #[must_use]
    pub fn size(&self) -> usize {
        self.state().writes.size()
    }

    /// A place to go back to.
    pub fn savepoint(&self) -> Savepoint {
        self.state().writes.savepoint()
    }

    /// Takes back all changes since; its locks stay.
    pub fn roll_back_to(&self, savepoint: Savepoint) {
        self.state().writes.roll_back(savepoint);
    }

    /// Prepares to ask for locks in a tablet; from here on it is one that this transaction concerns.
    /// What comes of it is to be told by [`Transaction::granted`].
    ///
    /// # Errors
    /// [`TxnError::Conflict`] when it is over.
    pub fn locking(&self, tablet: TabletId, mode: Mode, wait: Wait) -> Result<Locking, TxnError> {
        if self.state().over {
            return Err(TxnError::Conflict);
        }
        {
            let mut held = self.held.lock();
            if held.is_empty() {
                self.node.transactions().insert(self.stamp.id, Arc::downgrade(&self.held));
            }
            held.entry(tablet).or_default();
        }
        Ok(self.request(tablet, mode, wait))
    }

    /// A request for the locks that a commit needs.
    pub(super) fn last_locks(&self, tablet: TabletId, wait: Wait) -> Locking {
        self.request(tablet, Mode::Exclusive, wait)
    }

    fn request(&self, tablet: TabletId, mode: Mode, wait: Wait) -> Locking {
        let env = Arc::clone(self.node.env());
        let (until, held) = (wait.until(&env), Arc::clone(&self.held));
        Locking { env, stamp: self.stamp, mode, tablet, held, until }
    }

    /// A tablet has granted locks, and answered what it had then.
    ///
    /// # Errors
    /// [`TxnError::Conflict`] when those that it granted before are lost.
    pub fn granted(
        &self,
        locking: &Locking,
        at: Timestamp,
        hold: Option<Hold>,
    ) -> Result<(), TxnError> {
        let hold = hold.ok_or_else(|| TxnError::Internal("a read without locks".to_owned()))?;
        let mut state = self.state();
        state.after = state.after.max(at);
        let first = *self.held.lock().entry(locking.tablet).or_default().get_or_insert(hold);
        if first == hold { Ok(()) } else { Err(TxnError::Conflict) }
    }

    /// Asks a tablet for something under locks.
    async fn ask_locked<T, F>(
        &self,
        tablet: TabletId,
        mode: Mode,
        wait: Wait,
        request: F,
    ) -> Result<T, TxnError>
    where
        T: serde::de::DeserializeOwned + Send,
        F: Fn(TxnLock) -> Request + Send,
    {
        let locking = self.locking(tablet, mode, wait)?;
        loop {
            let request = request(locking.lock());
            let asked = self.node.ask_leader(tablet, request, Effect::Repeatable).await;
            match asked {
                Err(error) if locking.goes_on(&error) => {}
                Err(error) => return Err(error),
                Ok(((at, hold), answer)) => {
                    self.granted(&locking, at, hold)?;
                    return Ok(answer);
                }
            }
        }
    }

    /// Reads rows by their keys, its own changes included; nobody else writes them until it ends. With
    /// [`Mode::Update`] for those that it is about to change.
    ///
    /// # Errors
    /// [`TxnError::Conflict`] when it has lost its locks: begin anew.
    pub async fn get(
        &self,
        keys: Vec<Vec<u8>>,
        mode: Mode,
        wait: Wait,
    ) -> Result<Vec<Option<Row>>, TxnError> {
        let mut found: BTreeMap<Vec<u8>, Option<Row>> = BTreeMap::new();
        let own = self.changes();
        for key in &keys {
            if let Some(mutation) = own.get(key) {
                found.insert(key.clone(), row_of(mutation));
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
            let reads = by_tablet.into_iter().map(|(tablet, keys)| async move {
                let request = |lock| Request::LockedGet { tablet, lock, keys: keys.clone() };
                let rows: Vec<Option<Row>> = self.ask_locked(tablet, mode, wait, request).await?;
                Ok((keys, rows))
            });
            for read in join_all(reads).await {
                match read {
                    Ok((keys, rows)) => found.extend(keys.into_iter().zip(rows)),
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
    pub async fn scan(
        &self,
        range: KeyRange,
        mode: Mode,
        wait: Wait,
    ) -> Result<Vec<Row>, TxnError> {
        let own = self.changes();
        let mut rows: BTreeMap<Vec<u8>, Row> = BTreeMap::new();
        let mut rest = range.clone();
        let mut attempts = 0;
        while !rest.is_empty() {
            let tablets = self.node.tablets(&rest).await?;
            let Some(first) = tablets.first() else { break };
            let (tablet, part) = (first.id, rest.intersect(&first.range));
            let request = |lock| {
                let read = crate::command::ReadAt::Exact(Timestamp::MAX);
                let (limit, reverse) = (u64::MAX, false);
                let scan = ScanRequest { range: part.clone(), at: read, limit, reverse };
                Request::LockedScan { tablet, lock, scan }
            };
            let page: ScanResult = match self.ask_locked(tablet, mode, wait, request).await {
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
            let last = page.rows.last().map(|row| row.key.clone());
            rows.extend(page.rows.into_iter().map(|row| (row.key.clone(), row)));
            rest.start = match (page.more, last, part.end) {
                (true, Some(last), _) => [&last[..], &[0]].concat(),
                (_, _, Some(end)) => end,
                (_, _, None) => break,
            };
        }
        for (key, mutation) in changes_within(&own, &range) {
            match row_of(mutation) {
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
    pub fn insert(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), TxnError> {
        self.state().writes.insert(key, value)
    }

    /// Adds or replaces a row.
    pub fn put(&self, key: Vec<u8>, value: Vec<u8>) {
        self.state().writes.put(key, value);
    }

    /// Removes a row, if it exists.
    pub fn delete(&self, key: Vec<u8>) {
        self.state().writes.delete(key);
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.roll_back();
        self.node.transactions().remove(&self.stamp.id);
    }
}
