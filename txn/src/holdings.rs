//! Which rows of a node's data file belong to which of its replicas.
//!
//! The keys of rows say nothing of tablets, so two replicas on one node must never both cover a
//! key: an image that one of them receives would wipe the other's rows. Ranges of different tablets
//! don't overlap at any one moment of the cluster, but a replica may lag. One that has not applied
//! a split yet still holds what belongs to the new tablet elsewhere; the new tablet's replica here
//! then has to wait until it has (and is born by that), before it may take an image.
//!
//! One that lags may also come to cover what another replica here has already: when it absorbs a
//! neighbour that was split off again later, and the new tablet came here by an image before. What
//! it writes there is there already. But those rows aren't its own: they belong to the replica that
//! is ahead, of the later generation; and what is old there may be collected by now, so it leaves
//! them alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use meridian_replication::{Generation, TabletDescriptor};
use meridian_storage::{KeyRange, TabletId};

/// The rows are another replica's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{holder}, which lags, still holds these rows here")]
pub(crate) struct Overlap {
    pub(crate) holder: TabletId,
}

#[derive(Clone, Debug, Default)]
struct Claim {
    /// What the replica's state covers, in which generation; none for a blank one.
    held: Option<(KeyRange, Generation)>,
    /// What an image that it was offered covers.
    offered: Option<KeyRange>,
}

/// The claims of a node's replicas.
#[derive(Debug, Default)]
pub(crate) struct Holdings(Mutex<Claims>);

#[derive(Debug, Default)]
struct Claims {
    all: BTreeMap<TabletId, Claim>,
    /// Replicas whose rows were taken over by another's; they are about to be removed.
    over: BTreeSet<TabletId>,
    /// Some key is held by two.
    shared: bool,
}

impl Claims {
    /// What a tablet holds has changed.
    fn look(&mut self, changed: TabletId) {
        let held = |claim: &Claim| claim.held.as_ref().map(|(range, _)| range.clone());
        if self.shared {
            let mut all: Vec<KeyRange> = self.all.values().filter_map(held).collect();
            all.sort_unstable();
            self.shared = all.windows(2).any(|pair| pair[0].overlaps(&pair[1]));
        } else if let Some(range) = self.all.get(&changed).and_then(held) {
            let others = self.all.iter().filter(|(tablet, _)| **tablet != changed);
            let mut held = others.filter_map(|(_, claim)| claim.held.as_ref());
            self.shared = held.any(|(other, _)| other.overlaps(&range));
        }
    }
}

impl Holdings {
    /// The replica covers what the descriptor says from now on, or nothing yet.
    pub(crate) fn hold(&self, tablet: TabletId, descriptor: Option<&TabletDescriptor>) {
        let held = descriptor.map(|descriptor| (descriptor.range.clone(), descriptor.generation));
        let mut claims = self.lock();
        claims.all.insert(tablet, Claim { held, offered: None });
        claims.look(tablet);
    }

    /// The part of what a tablet covers that is held by a replica here that is ahead of it. Nearly
    /// always there is none.
    pub(crate) fn foreign(&self, descriptor: &TabletDescriptor) -> Vec<KeyRange> {
        let claims = self.lock();
        if !claims.shared {
            return Vec::new();
        }
        let ahead = claims.all.values().filter_map(|claim| claim.held.as_ref());
        let ahead = ahead
            .filter(|(range, of)| *of > descriptor.generation && range.overlaps(&descriptor.range));
        ahead.map(|(range, _)| range.intersect(&descriptor.range)).collect()
    }

    /// The part of what a tablet covers that isn't held by a replica here that is ahead of it.
    pub(crate) fn own(&self, descriptor: &TabletDescriptor) -> Vec<KeyRange> {
        own(&self.lock().all, &descriptor.range, descriptor.generation)
    }

    /// Claims `range` for a replica that is about to be born or to get an image, of a tablet that has
    /// absorbed others: those may still be there.
    pub(crate) fn offer(
        &self,
        tablet: TabletId,
        range: KeyRange,
        absorbed: &BTreeSet<TabletId>,
    ) -> Result<(), Overlap> {
        let mut claims = self.lock();
        free(&claims.all, tablet, &range, absorbed)?;
        claims.all.entry(tablet).or_default().offered = Some(range);
        Ok(())
    }

    /// The replicas of these tablets that are here, each with what it alone holds.
    pub(crate) fn here(&self, tablets: &BTreeSet<TabletId>) -> Vec<(TabletId, Vec<KeyRange>)> {
        let claims = self.lock();
        let here = claims.all.iter().filter(|(tablet, _)| tablets.contains(tablet));
        let owned = |claim: &Claim| {
            let held = claim.held.as_ref();
            held.map_or_else(Vec::new, |(range, of)| own(&claims.all, range, *of))
        };
        here.map(|(tablet, claim)| (*tablet, owned(claim))).collect()
    }

    /// Another replica has taken over what these held.
    pub(crate) fn end(&self, tablets: &[TabletId]) {
        let mut claims = self.lock();
        for tablet in tablets {
            claims.all.remove(tablet);
            claims.over.insert(*tablet);
            claims.look(*tablet);
        }
    }

    /// Whether another replica has taken over what this one held.
    pub(crate) fn is_over(&self, tablet: TabletId) -> bool {
        self.lock().over.contains(&tablet)
    }

    /// The replica is gone.
    pub(crate) fn release(&self, tablet: TabletId) {
        let mut claims = self.lock();
        claims.all.remove(&tablet);
        claims.over.remove(&tablet);
        claims.look(tablet);
    }

    fn lock(&self) -> MutexGuard<'_, Claims> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn own(
    claims: &BTreeMap<TabletId, Claim>,
    range: &KeyRange,
    generation: Generation,
) -> Vec<KeyRange> {
    let mut parts = vec![range.clone()];
    for (ahead, of) in claims.values().filter_map(|claim| claim.held.as_ref()) {
        if *of > generation {
            parts = parts.iter().flat_map(|part| part.without(ahead)).collect();
        }
    }
    parts
}

fn free(
    claims: &BTreeMap<TabletId, Claim>,
    tablet: TabletId,
    range: &KeyRange,
    absorbed: &BTreeSet<TabletId>,
) -> Result<(), Overlap> {
    let overlaps = |claim: &Claim| {
        let held = claim.held.as_ref().map(|(range, _)| range);
        held.into_iter().chain(&claim.offered).any(|claimed| claimed.overlaps(range))
    };
    let other = claims
        .iter()
        .find(|(other, claim)| **other != tablet && !absorbed.contains(other) && overlaps(claim));
    match other {
        Some((&holder, _)) => Err(Overlap { holder }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use meridian_replication::Placement;

    use super::*;

    fn range(start: u8, end: u8) -> KeyRange {
        KeyRange { start: vec![start], end: Some(vec![end]) }
    }

    const PARENT: TabletId = TabletId::new(2);
    const CHILD: TabletId = TabletId::new(3);

    fn tablet(id: TabletId, start: u8, end: u8, splits: u64) -> TabletDescriptor {
        TabletDescriptor {
            id,
            generation: Generation::from(splits),
            range: range(start, end),
            sticky: false,
            root_key: Vec::new(),
            voters: Vec::new(),
            read_only: Vec::new(),
            preferred_leader: meridian_storage::NodeId::new(1),
            placement: Placement::default(),
        }
    }

    #[test]
    fn what_a_replica_that_is_ahead_holds_is_not_owned_by_one_that_lags() {
        let (holdings, none) = (Holdings::default(), BTreeSet::new());
        holdings.hold(PARENT, Some(&tablet(PARENT, 0, 3, 6)));
        // The child came by an image, split and shortened by then.
        holdings.offer(CHILD, range(3, 5), &none).expect("nobody's");
        let child = tablet(CHILD, 3, 5, 11);
        holdings.hold(CHILD, Some(&child));
        // The parent absorbs what the child was split from.
        let parent = tablet(PARENT, 0, 9, 7);
        holdings.hold(PARENT, Some(&parent));
        assert_eq!(holdings.own(&parent), [range(0, 3), range(5, 9)]);
        assert_eq!(holdings.own(&child), [range(3, 5)]);
        assert_eq!(holdings.foreign(&parent), [range(3, 5)]);
        assert_eq!(holdings.foreign(&child), []);
        assert_eq!(holdings.here(&BTreeSet::from([PARENT])), [(PARENT, holdings.own(&parent))]);
        let parent = tablet(PARENT, 0, 3, 8);
        holdings.hold(PARENT, Some(&parent));
        assert_eq!(holdings.foreign(&parent), []);
        assert!(!holdings.lock().shared);
    }

    #[test]
    fn a_child_waits_for_a_parent_that_lags() {
        let (holdings, none) = (Holdings::default(), BTreeSet::new());
        holdings.hold(PARENT, Some(&tablet(PARENT, 0, 9, 1)));
        holdings.hold(CHILD, None);
        assert_eq!(holdings.offer(CHILD, range(5, 9), &none), Err(Overlap { holder: PARENT }));
        // An image behind the split makes room as well as the split itself does.
        holdings.offer(PARENT, range(0, 5), &none).expect("its own rows");
        assert!(holdings.offer(CHILD, range(5, 9), &none).is_err(), "the image is not there yet");
        holdings.hold(PARENT, Some(&tablet(PARENT, 0, 5, 1)));
        holdings.offer(CHILD, range(5, 9), &none).expect("nobody's");
        assert_eq!(holdings.offer(PARENT, range(0, 9), &none), Err(Overlap { holder: CHILD }));
        holdings.release(CHILD);
        holdings.offer(PARENT, range(0, 9), &none).expect("nobody's again");
    }

    #[test]
    fn what_was_absorbed_makes_room() {
        let (holdings, none) = (Holdings::default(), BTreeSet::new());
        let absorbed = BTreeSet::from([CHILD]);
        holdings.hold(PARENT, Some(&tablet(PARENT, 0, 5, 1)));
        holdings.hold(CHILD, Some(&tablet(CHILD, 5, 9, 1)));
        assert!(holdings.offer(PARENT, range(0, 9), &none).is_err());
        holdings.offer(PARENT, range(0, 9), &absorbed).expect("the child is no more");
        assert_eq!(holdings.here(&absorbed), [(CHILD, vec![range(5, 9)])]);
        holdings.end(&[CHILD]);
        assert!(holdings.is_over(CHILD) && !holdings.is_over(PARENT));
        holdings.release(CHILD);
        assert!(!holdings.is_over(CHILD));
    }
}
