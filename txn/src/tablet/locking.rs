//! The lock table of a tablet under one leader, and those who wait for its locks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meridian_storage::KeyRange;
use meridian_truetime::Moment;
use tokio::sync::oneshot;

use crate::error::TxnError;
use crate::locks::{Effect, Hold, Lock, LockTable, Mode, Patience, RequestId, Stamp, TxnId};

/// The locks of one leadership. They end with it.
#[derive(Debug)]
pub(crate) struct Locks(Mutex<State>);

#[derive(Debug)]
struct State {
    table: LockTable,
    waiting: BTreeMap<RequestId, (TxnId, oneshot::Sender<()>)>,
    /// When each transaction was last heard of, and what it holds.
    heard: BTreeMap<TxnId, (Moment, Hold)>,
    /// The next one.
    next: Hold,
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

    fn holds(&self, txn: TxnId, hold: Hold) -> bool {
        self.heard.get(&txn).is_some_and(|(_, held)| *held == hold) && self.table.knows(txn)
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
    /// No locks. What is held will be numbered from `first` on; drawn at random, so that no two
    /// leaders use the same numbers.
    pub(crate) fn new(first: u64) -> Self {
        Self(Mutex::new(State {
            table: LockTable::new(),
            waiting: BTreeMap::new(),
            heard: BTreeMap::new(),
            next: Hold(first),
            pressed: Vec::new(),
            closed: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a lock, beside those that the transaction has already. [`TxnError::Conflict`] if it
    /// has them no more, or is wounded meanwhile; [`TxnError::Locked`] if it has no patience and
    /// another has the lock.
    pub(crate) async fn acquire(
        &self,
        now: Moment,
        (stamp, held): (Stamp, Option<Hold>),
        range: KeyRange,
        mode: Mode,
        patience: Patience,
    ) -> Result<Hold, TxnError> {
        let (request, hold, granted) = {
            let mut state = self.lock();
            let known = state.heard.get(&stamp.id).map(|(_, hold)| *hold);
            if state.closed || (held.is_some() && held != known) {
                return Err(TxnError::Conflict);
            }
            let hold = known.unwrap_or(state.next);
            state.next = Hold(state.next.0.wrapping_add(u64::from(known.is_none())));
            state.heard.insert(stamp.id, (now, hold));
            let (request, effects) =
                state.table.request(stamp.id, stamp.age, range, mode, patience);
            if let [Effect::Refused(..)] = effects[..] {
                return Err(TxnError::Locked);
            }
            let (grant, granted) = oneshot::channel();
            state.waiting.insert(request, (stamp.id, grant));
            state.follow(effects);
            (request, hold, granted)
        };
        let _waiting = Waiting { locks: self, request };
        granted.await.map_err(|_| TxnError::Conflict)?;
        Ok(hold)
    }

    /// All locks, held and wanted.
    pub(crate) fn all(&self) -> Vec<Lock> {
        self.lock().table.locks()
    }

    /// Whether nobody holds or wants anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().heard.is_empty()
    }

    /// Whether a transaction has these locks still.
    pub(crate) fn holds(&self, txn: TxnId, hold: Hold) -> bool {
        self.lock().holds(txn, hold)
    }

    /// A transaction promises to commit: it isn't wounded any more. False if it has lost these locks.
    pub(crate) fn pin(&self, txn: TxnId, hold: Hold) -> bool {
        let mut state = self.lock();
        state.holds(txn, hold) && state.table.pin(txn)
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
            if let Some((heard, _)) = state.heard.get_mut(txn) {
                *heard = now;
            }
        }
    }

    /// Releases what transactions hold that were last heard of before `since`, but for pinned ones.
    pub(crate) fn sweep(&self, since: Moment) {
        let mut state = self.lock();
        let silent: Vec<TxnId> = {
            let heard = |txn: &TxnId| state.heard.get(txn).is_some_and(|(at, _)| *at >= since);
            let owners = state.table.owners().filter(|(txn, pinned)| !pinned && !heard(txn));
            owners.map(|(txn, _)| txn).collect()
        };
        for txn in silent {
            state.end(txn);
        }
        let State { heard, table, .. } = &mut *state;
        heard.retain(|txn, (at, _)| *at >= since || table.knows(*txn));
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use meridian_storage::NodeId;
    use meridian_truetime::Timestamp;

    use super::*;
    use crate::locks::Age;

    fn stamp(number: u64) -> Stamp {
        let id = TxnId { gateway: NodeId::new(1), number };
        Stamp { id, age: Age { began: Timestamp::from_nanos(number), first: id } }
    }

    fn acquire(
        locks: &Locks,
        txn: u64,
        held: Option<Hold>,
        key: u8,
    ) -> Option<Result<Hold, TxnError>> {
        let range = KeyRange::point(vec![key]);
        let asking = (stamp(txn), held);
        locks.acquire(Moment::START, asking, range, Mode::Exclusive, Patience::Wait).now_or_never()
    }

    #[test]
    fn what_a_transaction_holds_has_one_name_until_it_is_lost() {
        let locks = Locks::new(u64::MAX);
        let first = acquire(&locks, 2, None, 1).expect("at once").expect("granted");
        assert_eq!(acquire(&locks, 2, None, 2), Some(Ok(first)), "as if asked at the same time");
        assert_eq!(acquire(&locks, 2, Some(first), 3), Some(Ok(first)));

        // An older one takes a key away; then a copy of the first request comes late.
        let wounds = acquire(&locks, 1, None, 1).expect("at once").expect("granted");
        assert_ne!(wounds, first);
        assert!(!locks.holds(stamp(2).id, first));
        let late = acquire(&locks, 2, None, 2).expect("at once").expect("granted");
        assert_ne!(late, first);

        // What was read under the first locks may have changed.
        assert_eq!(acquire(&locks, 2, Some(first), 2), Some(Err(TxnError::Conflict)));
        assert!(!locks.pin(stamp(2).id, first));
        assert!(locks.pin(stamp(2).id, late));
    }
}
