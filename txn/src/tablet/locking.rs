//! The lock table of a tablet under one leader, and those who wait for its locks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meridian_storage::KeyRange;
use meridian_truetime::Moment;
use tokio::sync::oneshot;

use crate::error::TxnError;
use crate::locks::{Effect, LockTable, Mode, Patience, RequestId, Stamp, TxnId};

/// The locks of one leadership. They end with it.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    table: LockTable,
    waiting: BTreeMap<RequestId, (TxnId, oneshot::Sender<()>)>,
    /// When each transaction was last heard of.
    heard: BTreeMap<TxnId, Moment>,
    /// Pinned transactions that older ones wait for.
    pressed: Vec<TxnId>,
    /// The leadership is over.
    closed: bool,
}

impl State {
    fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Granted(request) => {
                    if let Some((_, granted)) = self.waiting.remove(&request) {
                        let _ = granted.send(());
                    }
                }
                Effect::Wounded { victim, .. } => self.gone(victim),
                Effect::Pressed { pinned, .. } => self.pressed.push(pinned),
                Effect::Refused(..) => {}
            }
        }
    }

    /// A transaction ends here.
    fn end(&mut self, txn: TxnId) {
        self.gone(txn);
        let effects = self.table.release(txn);
        self.follow(effects);
    }

    /// A transaction has lost its locks here: its requests will not be granted.
    fn gone(&mut self, txn: TxnId) {
        self.waiting.retain(|_, (owner, _)| *owner != txn);
        self.heard.remove(&txn);
    }
}

/// Takes a request back when nobody waits for it any more.
struct Waiting<'l> {
    locks: &'l Locks,
    request: RequestId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.locks.lock();
        if state.waiting.remove(&self.request).is_some() {
            let effects = state.table.cancel(self.request);
            state.follow(effects);
        }
    }
}

impl Locks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a lock. [`TxnError::Conflict`] if the transaction is wounded meanwhile,
    /// [`TxnError::Locked`] if it has no patience and another has it.
    pub(crate) async fn acquire(
        &self,
        now: Moment,
        stamp: Stamp,
        range: KeyRange,
        mode: Mode,
        patience: Patience,
    ) -> Result<(), TxnError> {
        let (request, granted) = {
            let mut state = self.lock();
            if state.closed {
                return Err(TxnError::Conflict);
            }
            state.heard.insert(stamp.id, now);
            let (request, effects) =
                state.table.request(stamp.id, stamp.age, range, mode, patience);
            if let [Effect::Refused(..)] = effects[..] {
                return Err(TxnError::Locked);
            }
            let (grant, granted) = oneshot::channel();
            state.waiting.insert(request, (stamp.id, grant));
            state.follow(effects);
            (request, granted)
        };
        let _waiting = Waiting { locks: self, request };
        granted.await.map_err(|_| TxnError::Conflict)
    }

    /// Whether nobody holds or wants anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().heard.is_empty()
    }

    /// Whether a transaction holds anything.
    pub(crate) fn knows(&self, txn: TxnId) -> bool {
        self.lock().table.knows(txn)
    }

    /// A transaction promises to commit: it isn't wounded any more. False if it holds nothing.
    pub(crate) fn pin(&self, txn: TxnId) -> bool {
        self.lock().table.pin(txn)
    }

    /// Gives a prepared transaction its locks back.
    pub(crate) fn restore(&self, stamp: Stamp, keys: impl Iterator<Item = Vec<u8>>) {
        let keys = keys.map(KeyRange::point).collect();
        self.lock().table.restore(stamp.id, stamp.age, keys);
    }

    /// A transaction ends.
    pub(crate) fn release(&self, txn: TxnId) {
        self.lock().end(txn);
    }

    /// Whoever holds or wants locks outside of `range`, and isn't pinned, loses all.
    pub(crate) fn shrink(&self, range: &KeyRange) {
        let mut state = self.lock();
        for victim in state.table.outside(range) {
            state.end(victim);
        }
    }

    /// The gateways of these transactions live.
    pub(crate) fn heard(&self, now: Moment, txns: &[TxnId]) {
        let mut state = self.lock();
        for txn in txns {
            if let Some(heard) = state.heard.get_mut(txn) {
                *heard = now;
            }
        }
    }

    /// Releases what transactions hold that were last heard of before `since`, but for pinned ones.
    pub(crate) fn sweep(&self, since: Moment) {
        let mut state = self.lock();
        let silent: Vec<TxnId> = {
            let heard = |txn: &TxnId| state.heard.get(txn).is_some_and(|at| *at >= since);
            let owners = state.table.owners().filter(|(txn, pinned)| !pinned && !heard(txn));
            owners.map(|(txn, _)| txn).collect()
        };
        for txn in silent {
            state.end(txn);
        }
        let State { heard, table, .. } = &mut *state;
        heard.retain(|txn, at| *at >= since || table.knows(*txn));
    }

    /// The pinned transactions that older ones wait for, since this was last asked.
    pub(crate) fn take_pressed(&self) -> Vec<TxnId> {
        std::mem::take(&mut self.lock().pressed)
    }

    /// The leadership is over: nobody gets anything any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
    }
}
