//! A tablet's locks: which transactions may read and write which keys until they end.
//!
//! Strict two-phase locking with wound-wait (Corbett et al., *Spanner*, OSDI 2012, section 4.2.1;
//! Rosenkrantz, Stearns and Lewis, *System Level Concurrency Control for Distributed Database
//! Systems*, TODS 1978). A pure state machine: requests, pins and releases go in, effects come out.
//!
//! # What is promised
//!
//! * No two transactions hold conflicting locks on a common key:
//!
//!   | held, wanted | shared | update | exclusive |
//!   |---|---|---|---|
//!   | shared    | yes | yes | no |
//!   | update    | yes | no  | no |
//!   | exclusive | no  | no  | no |
//!
//!   A lock on a range is one on every key in it, whether there is a row or not: no phantoms.
//! * A transaction that finds a younger one in its way wounds it: that one's locks here are gone at
//!   once, and it will be retried. It waits only for older ones, and for *pinned* ones, which have
//!   promised to commit here and can't be wounded. So waiting never closes a circle, but through
//!   pinned ones: who waits for one is told, so that its coordinator can be asked to abort it unless
//!   all its votes are in.
//! * Nobody overtakes an older transaction that waits for a conflicting lock. With ages that survive
//!   a retry, everybody is the oldest some day, and nobody starves.
//! * Locks are kept until they are released all together.
//!
//! # Caveats
//!
//! * The table knows nothing of what becomes of a wounded transaction: whoever asks for it again
//!   here under the same id begins anew.
//! * A request looks at all range locks that begin before its end, and at all older ones that wait.
//!   A release does so for each that waits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meridian_storage::{KeyRange, NodeId};
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

/// The locks that a transaction has in one tablet, from its first request there until they go, all at
/// once. Who has lost them and asks again, or whose request comes a second time, gets others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold(pub(crate) u64);

/// A transaction: a number that its gateway has drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    /// The gateway.
    pub gateway: NodeId,
    /// Its number there.
    pub number: u64,
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.gateway.get(), self.number)
    }
}

/// How old a transaction is: the smaller, the older. A retry has the age of its first attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Age {
    /// When the first attempt began, by its gateway's clock.
    pub began: Timestamp,
    /// The first attempt: no two transactions are of one age.
    pub first: TxnId,
}

/// Who asks: a transaction and its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The transaction.
    pub id: TxnId,
    /// Its age.
    pub age: Age,
}

/// What a lock permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mode {
    /// To read.
    Shared,
    /// To read, by one that may write: no two of those.
    Update,
    /// To write.
    Exclusive,
}

impl Mode {
    /// Whether two transactions may hold such locks on one key.
    #[must_use]
    pub fn conflicts(self, other: Self) -> bool {
        use Mode::{Shared, Update};
        !matches!((self, other), (Shared, Shared | Update) | (Update, Shared))
    }
}

/// What a request does when it can't be granted at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Patience {
    /// It wounds and waits.
    Wait,
    /// It is refused: NOWAIT, SKIP LOCKED.
    None,
}

/// A request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(u64);

/// What comes of what went in, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The lock is held.
    Granted(RequestId),
    /// It can't be had at once, because of that transaction; the request is forgotten.
    Refused(RequestId, TxnId),
    /// A transaction has lost its locks, and its requests are forgotten: an older one needs them.
    Wounded {
        /// It.
        victim: TxnId,
        /// The older one.
        by: TxnId,
    },
    /// A transaction waits for a younger one that is pinned.
    Pressed {
        /// That one.
        pinned: TxnId,
        /// Who waits.
        by: TxnId,
    },
}

#[derive(Clone, Debug)]
struct Owner {
    age: Age,
    pinned: bool,
    /// The keys with locks of their own.
    keys: Vec<Vec<u8>>,
    /// Locks on ranges.
    ranges: Vec<(KeyRange, Mode)>,
}

#[derive(Clone, Debug)]
struct Held {
    owner: TxnId,
    mode: Mode,
    end: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Waiting {
    owner: TxnId,
    range: KeyRange,
    mode: Mode,
}

/// A lock, held or wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// By whom.
    pub owner: TxnId,
    /// How old that is.
    pub age: Age,
    /// It has promised to commit here.
    pub pinned: bool,
    /// On which keys.
    pub range: KeyRange,
    /// To do what.
    pub mode: Mode,
    /// Whether it is held.
    pub held: bool,
    /// Whom it waits for, if it isn't.
    pub waits_for: BTreeSet<TxnId>,
}

/// The locks of one tablet.
#[derive(Clone, Debug, Default)]
pub struct LockTable {
    owners: BTreeMap<TxnId, Owner>,
    /// Locks on single keys.
    keys: BTreeMap<Vec<u8>, Vec<Held>>,
    /// Locks on ranges, by their first keys.
    ranges: BTreeMap<Vec<u8>, Vec<Held>>,
    /// The oldest first, and each one's requests in their order.
    waiting: BTreeMap<(Age, RequestId), Waiting>,
    requests: u64,
}

fn is_key(range: &KeyRange) -> bool {
    range.end.as_deref().is_some_and(|end| end.strip_prefix(range.start.as_slice()) == Some(&[0]))
}

fn remove(
    index: &mut BTreeMap<Vec<u8>, Vec<Held>>,
    starts: impl IntoIterator<Item = Vec<u8>>,
    owner: TxnId,
) {
    for start in starts {
        if let Some(here) = index.get_mut(&start) {
            here.retain(|held| held.owner != owner);
            if here.is_empty() {
                index.remove(&start);
            }
        }
    }
}

fn overlap(a: &KeyRange, b: &KeyRange) -> bool {
    !a.intersect(b).is_empty()
}

impl LockTable {
    /// No locks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for a lock on a range of keys, or on one ([`KeyRange::point`]), for a transaction of
    /// that age. A lock that it has already, it gets at once.
    pub fn request(
        &mut self,
        owner: TxnId,
        age: Age,
        range: KeyRange,
        mode: Mode,
        patience: Patience,
    ) -> (RequestId, Vec<Effect>) {
        self.requests += 1;
        let request = RequestId(self.requests);
        let mut effects = Vec::new();
        if self.has(owner, &range, mode) {
            return (request, vec![Effect::Granted(request)]);
        }
        if patience == Patience::None {
            let in_the_way = self.holders(owner, &range, mode).into_iter().next();
            if let Some(other) = in_the_way.or_else(|| self.older(owner, age, &range, mode)) {
                effects.push(Effect::Refused(request, other));
            } else {
                self.grant(owner, age, range, mode);
                effects.push(Effect::Granted(request));
            }
            return (request, effects);
        }
        for other in self.holders(owner, &range, mode) {
            let Some(holder) = self.owners.get(&other) else { continue };
            if holder.age < age {
                continue;
            }
            if holder.pinned {
                effects.push(Effect::Pressed { pinned: other, by: owner });
            } else {
                self.forget(other);
                effects.push(Effect::Wounded { victim: other, by: owner });
            }
        }
        self.waiting.insert((age, request), Waiting { owner, range, mode });
        self.grant_waiting(&mut effects);
        (request, effects)
    }

    /// Takes a request back that was not granted: its transaction waits no more.
    pub fn cancel(&mut self, request: RequestId) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.waiting.retain(|(_, waiting), _| *waiting != request);
        self.grant_waiting(&mut effects);
        effects
    }

    /// A transaction promises to commit here: it can't be wounded any more. False if it holds
    /// nothing, for it was wounded.
    pub fn pin(&mut self, owner: TxnId) -> bool {
        self.owners.get_mut(&owner).is_some_and(|owner| {
            owner.pinned = true;
            true
        })
    }

    /// Gives a prepared transaction the locks back that an earlier leader's log says it has.
    pub fn restore(&mut self, owner: TxnId, age: Age, ranges: Vec<KeyRange>) {
        for range in ranges {
            self.grant(owner, age, range, Mode::Exclusive);
        }
        self.pin(owner);
    }

    /// A transaction ends: everything that it holds and wants is released.
    pub fn release(&mut self, owner: TxnId) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.forget(owner);
        self.grant_waiting(&mut effects);
        effects
    }

    /// Whether a transaction holds a lock that permits as much, on all of the range.
    #[must_use]
    pub fn has(&self, owner: TxnId, range: &KeyRange, mode: Mode) -> bool {
        let on_key = is_key(range)
            && self.keys.get(&range.start).is_some_and(|held| {
                held.iter().any(|held| held.owner == owner && held.mode >= mode)
            });
        let covers = |(held, at): &(KeyRange, Mode)| *at >= mode && held.contains_range(range);
        on_key || self.owners.get(&owner).is_some_and(|owner| owner.ranges.iter().any(covers))
    }

    /// Whether a transaction holds anything.
    #[must_use]
    pub fn knows(&self, owner: TxnId) -> bool {
        self.owners.contains_key(&owner)
    }

    /// The transactions that hold anything, and whether they are pinned.
    pub fn owners(&self) -> impl Iterator<Item = (TxnId, bool)> {
        self.owners.iter().map(|(id, owner)| (*id, owner.pinned))
    }

    /// The transactions that hold or want a lock outside of `range`, but for pinned ones.
    #[must_use]
    pub fn outside(&self, range: &KeyRange) -> BTreeSet<TxnId> {
        let outside = |owner: &Owner| {
            owner.keys.iter().any(|key| !range.contains(key))
                || owner.ranges.iter().any(|(held, _)| !range.contains_range(held))
        };
        let held = self.owners.iter().filter(|(_, owner)| outside(owner)).map(|(id, _)| *id);
        let wanted = self.waiting.values().filter(|wanted| !range.contains_range(&wanted.range));
        let pinned = |id: &TxnId| self.owners.get(id).is_some_and(|owner| owner.pinned);
        held.chain(wanted.map(|wanted| wanted.owner)).filter(|id| !pinned(id)).collect()
    }

    /// All locks, held and wanted.
    #[must_use]
    pub fn locks(&self) -> Vec<Lock> {
        let held = self.owners.iter().flat_map(|(id, owner)| {
            let (age, pinned) = (owner.age, owner.pinned);
            let lock = |range, mode| {
                let waits_for = BTreeSet::new();
                Lock { owner: *id, age, pinned, range, mode, held: true, waits_for }
            };
            let ranges = owner.ranges.iter().map(|(range, mode)| lock(range.clone(), *mode));
            let mode = |key: &Vec<u8>| {
                let held = self.keys.get(key).into_iter().flatten();
                held.filter(|held| held.owner == *id).map(|held| held.mode).max()
            };
            let on_key = |key| Some(lock(KeyRange::point(Vec::clone(key)), mode(key)?));
            owner.keys.iter().filter_map(on_key).chain(ranges).collect::<Vec<_>>()
        });
        let wanted = self.waiting.iter().map(|((age, _), waiting)| {
            let Waiting { owner, range, mode } = waiting;
            let mut waits_for = self.holders(*owner, range, *mode);
            waits_for.extend(self.older(*owner, *age, range, *mode));
            let pinned = self.owners.get(owner).is_some_and(|owner| owner.pinned);
            let (owner, age, range, mode) = (*owner, *age, range.clone(), *mode);
            Lock { owner, age, pinned, range, mode, held: false, waits_for }
        });
        held.chain(wanted).collect()
    }

    /// The others that hold what conflicts.
    fn holders(&self, owner: TxnId, range: &KeyRange, mode: Mode) -> BTreeSet<TxnId> {
        let mut holders = BTreeSet::new();
        let mut look = |held: &Held| {
            if held.owner != owner && held.mode.conflicts(mode) {
                holders.insert(held.owner);
            }
        };
        if is_key(range) {
            self.keys.get(&range.start).into_iter().flatten().for_each(&mut look);
        } else {
            let keys = self.keys.range(range.start.clone()..);
            let within = keys.take_while(|(key, _)| range.contains(key));
            within.flat_map(|(_, held)| held).for_each(&mut look);
        }
        let begin_before = self
            .ranges
            .iter()
            .take_while(|(start, _)| range.end.as_ref().is_none_or(|end| *start < end));
        let reach = |held: &&Held| held.end.as_ref().is_none_or(|end| range.start < *end);
        begin_before.flat_map(|(_, held)| held).filter(reach).for_each(&mut look);
        holders
    }

    /// An older transaction that waits for what conflicts.
    fn older(&self, owner: TxnId, age: Age, range: &KeyRange, mode: Mode) -> Option<TxnId> {
        let before = self.waiting.range(..(age, RequestId(0)));
        let mut in_the_way = before.filter(|(_, waiting)| {
            waiting.owner != owner && waiting.mode.conflicts(mode) && overlap(&waiting.range, range)
        });
        in_the_way.next().map(|(_, waiting)| waiting.owner)
    }

    fn grant(&mut self, owner: TxnId, age: Age, range: KeyRange, mode: Mode) {
        let new = Owner { age, pinned: false, keys: Vec::new(), ranges: Vec::new() };
        let here = self.owners.entry(owner).or_insert(new);
        if !is_key(&range) {
            let held = Held { owner, mode, end: range.end.clone() };
            self.ranges.entry(range.start.clone()).or_default().push(held);
            here.ranges.push((range, mode));
            return;
        }
        let on_key = self.keys.entry(range.start.clone()).or_default();
        if let Some(held) = on_key.iter_mut().find(|held| held.owner == owner) {
            held.mode = held.mode.max(mode);
        } else {
            on_key.push(Held { owner, mode, end: range.end });
            here.keys.push(range.start);
        }
    }

    fn forget(&mut self, owner: TxnId) {
        self.waiting.retain(|_, waiting| waiting.owner != owner);
        let Some(Owner { keys, ranges, .. }) = self.owners.remove(&owner) else { return };
        let ranges = ranges.into_iter().map(|(range, _)| range.start);
        remove(&mut self.keys, keys, owner);
        remove(&mut self.ranges, ranges, owner);
    }

    /// Grants what nothing is in the way of, the oldest first.
    fn grant_waiting(&mut self, effects: &mut Vec<Effect>) {
        let mut next = self.waiting.first_key_value().map(|(at, _)| *at);
        while let Some(at @ (age, request)) = next {
            let free = self.waiting.get(&at).filter(|waiting| {
                let Waiting { owner, range, mode } = waiting;
                self.holders(*owner, range, *mode).is_empty()
                    && self.older(*owner, age, range, *mode).is_none()
            });
            if free.is_some()
                && let Some(Waiting { owner, range, mode }) = self.waiting.remove(&at)
            {
                self.grant(owner, age, range, mode);
                effects.push(Effect::Granted(request));
            }
            let after = (std::ops::Bound::Excluded(at), std::ops::Bound::Unbounded);
            next = self.waiting.range(after).next().map(|(at, _)| *at);
        }
    }
}

#[cfg(test)]
mod tests;
