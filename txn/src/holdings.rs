//! Which rows of a node's data file belong to which of its replicas.
//!
//! The keys of rows say nothing of tablets, so two replicas on one node must never both cover a
//! key: an image that one of them receives would wipe the other's rows. Ranges of different tablets
//! don't overlap at any one moment of the cluster, but a replica may lag. One that has not applied
//! a split yet still holds what belongs to the new tablet elsewhere; the new tablet's replica here
//! then has to wait until it has (and is born by that), before it may take an image.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meridian_storage::{KeyRange, TabletId};

/// The rows are another replica's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{holder}, which lags, still holds these rows here")]
pub(crate) struct Overlap {
    pub(crate) holder: TabletId,
}

#[derive(Clone, Debug, Default)]
struct Claim {
    /// What the replica's state covers; none for a blank one.
    held: Option<KeyRange>,
    /// What an image that it was offered covers.
    offered: Option<KeyRange>,
}

/// The claims of a node's replicas.
#[derive(Debug, Default)]
pub(crate) struct Holdings(Mutex<BTreeMap<TabletId, Claim>>);

impl Holdings {
    /// The replica covers `range` from now on.
    pub(crate) fn hold(&self, tablet: TabletId, range: Option<KeyRange>) {
        self.lock().insert(tablet, Claim { held: range, offered: None });
    }

    /// Claims `range` for an image that is to come.
    pub(crate) fn offer(&self, tablet: TabletId, range: KeyRange) -> Result<(), Overlap> {
        let mut claims = self.lock();
        free(&claims, tablet, &range)?;
        claims.entry(tablet).or_default().offered = Some(range);
        Ok(())
    }

    /// Whether a replica could be opened that will cover `range`.
    pub(crate) fn is_free(&self, tablet: TabletId, range: &KeyRange) -> Result<(), Overlap> {
        free(&self.lock(), tablet, range)
    }

    /// One replica's range became two.
    pub(crate) fn split(
        &self,
        parent: TabletId,
        parents: KeyRange,
        child: TabletId,
        childs: KeyRange,
    ) {
        let mut claims = self.lock();
        claims.insert(parent, Claim { held: Some(parents), offered: None });
        claims.insert(child, Claim { held: Some(childs), offered: None });
    }

    /// The replica is gone.
    pub(crate) fn release(&self, tablet: TabletId) {
        self.lock().remove(&tablet);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TabletId, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn free(
    claims: &BTreeMap<TabletId, Claim>,
    tablet: TabletId,
    range: &KeyRange,
) -> Result<(), Overlap> {
    let overlaps = |claim: &Claim| {
        [&claim.held, &claim.offered].into_iter().flatten().any(|claimed| claimed.overlaps(range))
    };
    let other = claims.iter().find(|(other, claim)| **other != tablet && overlaps(claim));
    match other {
        Some((&holder, _)) => Err(Overlap { holder }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u8, end: u8) -> KeyRange {
        KeyRange { start: vec![start], end: Some(vec![end]) }
    }

    const PARENT: TabletId = TabletId::new(2);
    const CHILD: TabletId = TabletId::new(3);

    #[test]
    fn a_child_waits_for_a_parent_that_lags() {
        let holdings = Holdings::default();
        holdings.hold(PARENT, Some(range(0, 9)));
        holdings.hold(CHILD, None);
        assert_eq!(holdings.offer(CHILD, range(5, 9)), Err(Overlap { holder: PARENT }));
        assert_eq!(holdings.is_free(CHILD, &range(5, 9)), Err(Overlap { holder: PARENT }));
        // An image behind the split makes room as well as the split itself does.
        holdings.offer(PARENT, range(0, 5)).expect("its own rows");
        assert!(holdings.offer(CHILD, range(5, 9)).is_err(), "the image is not there yet");
        holdings.hold(PARENT, Some(range(0, 5)));
        holdings.offer(CHILD, range(5, 9)).expect("nobody's");
        assert_eq!(holdings.offer(PARENT, range(0, 9)), Err(Overlap { holder: CHILD }));
        holdings.release(CHILD);
        holdings.offer(PARENT, range(0, 9)).expect("nobody's again");
    }
}
