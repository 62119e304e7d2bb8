//! The directory: which tablet covers a key.
//!
//! The directory is rows of the system tablet, one per tablet, and every node keeps a copy of them
//! that may lag, as the rows themselves may lag behind the tablets' own descriptors. Nothing relies
//! on either being right: a tablet refuses keys that it doesn't cover and says what it knows of
//! those who might; a node that is refused learns that, and reads the rows again.
//!
//! A row is written by the tablet's leader whenever the descriptor has changed, and never replaced
//! by one of an older generation. A tablet that is no more leaves a row that says so, for ever: what
//! isn't in the directory may be about to enter it, but what is gone stays gone. A tablet that was
//! split from one whose table was dropped meanwhile never enters it (its leader retires it): whoever
//! dropped the table knew only the other, or the one that had absorbed that.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use meridian_replication::{Generation, Placement, TabletDescriptor};
use meridian_storage::{KeyBuilder, KeyRange, KeyReader, NodeId, TabletId, prefix_end};
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

use crate::command::{Mutation, decode, encode};
use crate::error::TxnError;

/// The tablet that holds the catalog and the directory; it exists from the beginning.
pub const SYSTEM_TABLET: TabletId = TabletId::new(1);

/// Root table ids below this belong to the system tablet.
pub const FIRST_USER_TABLE: u64 = 100;

/// The root table id of the directory's rows.
const DIRECTORY: u64 = 99;

/// The root table id of the counter of tablet ids.
const TABLET_IDS: u64 = 98;

/// The key of the counter of tablet ids: the next that is free.
pub(crate) fn tablet_counter_key() -> Vec<u8> {
    KeyBuilder::new().table(TABLET_IDS).finish()
}

/// The keys whose root table is `table`.
#[must_use]
pub fn table_range(table: u64) -> KeyRange {
    let start = KeyBuilder::new().table(table).finish();
    let end = prefix_end(&start);
    KeyRange { start, end }
}

/// The range of the root table in which `range` begins.
pub(crate) fn table_of(range: &KeyRange) -> KeyRange {
    match KeyReader::new(&range.start).table() {
        Ok(table) => table_range(table),
        Err(_) => range.clone(),
    }
}

/// The system tablet of a cluster whose first nodes are `voters`.
pub(crate) fn system_tablet(voters: Vec<NodeId>) -> TabletDescriptor {
    let preferred_leader = voters.first().copied().unwrap_or(NodeId::new(1));
    TabletDescriptor {
        id: SYSTEM_TABLET,
        generation: Generation::FIRST,
        range: KeyRange {
            start: Vec::new(),
            end: Some(KeyBuilder::new().table(FIRST_USER_TABLE).finish()),
        },
        sticky: false,
        root_key: Vec::new(),
        placement: Placement {
            voters: u8::try_from(voters.len()).unwrap_or(u8::MAX),
            ..Placement::default()
        },
        voters,
        read_only: Vec::new(),
        preferred_leader,
    }
}

pub(crate) fn directory_range() -> KeyRange {
    table_range(DIRECTORY)
}

pub(crate) fn directory_key(tablet: TabletId) -> Vec<u8> {
    KeyBuilder::new().table(DIRECTORY).table(tablet.get()).finish()
}

/// A row of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "nearly all rows are of tablets that live")]
pub enum DirectoryRow {
    /// The tablet as it was when its leader entered it.
    Live(TabletDescriptor),
    /// The tablet is no more.
    Gone {
        /// The tablet.
        tablet: TabletId,
        /// Which absorbed it; none if its table was dropped.
        into: Option<TabletId>,
    },
}

impl DirectoryRow {
    /// A row's value as it is stored.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(value: &[u8]) -> Result<Self, TxnError> {
        decode(value)
    }
}

/// The mutation of the system tablet that enters a tablet into the directory.
///
/// # Errors
/// When the descriptor can't be encoded.
pub fn directory_put(descriptor: &TabletDescriptor) -> Result<Mutation, TxnError> {
    let row = DirectoryRow::Live(descriptor.clone());
    Ok(Mutation::Put { key: directory_key(descriptor.id), value: encode(&row)? })
}

/// The mutation of the system tablet that says that a tablet's table was dropped.
///
/// # Errors
/// When the row can't be encoded.
pub fn directory_delete(tablet: TabletId) -> Result<Mutation, TxnError> {
    directory_gone(tablet, None)
}

/// The mutation of the system tablet that says that a tablet is gone, absorbed by another if that is
/// named.
pub(crate) fn directory_gone(
    tablet: TabletId,
    into: Option<TabletId>,
) -> Result<Mutation, TxnError> {
    let row = DirectoryRow::Gone { tablet, into };
    Ok(Mutation::Put { key: directory_key(tablet), value: encode(&row)? })
}

/// The directory's rows as they were at one moment.
#[derive(Clone, Debug)]
pub struct DirectoryRead {
    /// That moment.
    pub at: Timestamp,
    /// The keys that were read: a write whose read set has them fails if any tablet enters or
    /// changes in between.
    pub rows: KeyRange,
    /// The tablets that are there.
    pub tablets: Vec<TabletDescriptor>,
}

/// A node's copy of the directory.
#[derive(Debug)]
pub(crate) struct Directory {
    tablets: Mutex<Arc<Vec<TabletDescriptor>>>,
    /// Each with the tablet that absorbed it, unless its table was dropped.
    gone: Mutex<BTreeMap<TabletId, Option<TabletId>>>,
}

impl Directory {
    pub(crate) fn new(system: TabletDescriptor) -> Self {
        Self { tablets: Mutex::new(Arc::new(vec![system])), gone: Mutex::default() }
    }

    /// All tablets in the order of their ranges.
    pub(crate) fn all(&self) -> Arc<Vec<TabletDescriptor>> {
        Arc::clone(&self.tablets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a tablet is known to be no more.
    pub(crate) fn is_gone(&self, tablet: TabletId) -> bool {
        self.absorber(tablet).is_some()
    }

    /// What became of a tablet that is known to be no more: another absorbed it, or its table was
    /// dropped.
    pub(crate) fn absorber(&self, tablet: TabletId) -> Option<Option<TabletId>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).get(&tablet).copied()
    }

    /// Takes in what was read from the rows, or what a tablet said. Of two descriptors of one
    /// tablet, or of two tablets whose ranges overlap, the one of the older generation is dropped;
    /// that may leave a gap, which is filled when somebody knows more.
    pub(crate) fn learn(&self, rows: impl IntoIterator<Item = DirectoryRow>) {
        let mut current = self.tablets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::clone(&current);
        for row in rows {
            match row {
                DirectoryRow::Live(descriptor) => all.push(descriptor),
                DirectoryRow::Gone { tablet, into } => {
                    gone.insert(tablet, into);
                }
            }
        }
        all.retain(|descriptor| !gone.contains_key(&descriptor.id));
        all.sort_by_key(|descriptor| (Reverse(descriptor.generation), descriptor.id));
        let mut seen = BTreeSet::new();
        let mut kept: BTreeMap<Vec<u8>, TabletDescriptor> = BTreeMap::new();
        for descriptor in all {
            // What begins last before this one ends is the only one that can overlap it, for those
            // kept don't overlap each other.
            let before = match &descriptor.range.end {
                Some(end) => kept.range::<Vec<u8>, _>(..end).next_back(),
                None => kept.iter().next_back(),
            };
            let overlaps = before.is_some_and(|(_, other)| other.range.overlaps(&descriptor.range));
            if seen.insert(descriptor.id) && !overlaps {
                kept.insert(descriptor.range.start.clone(), descriptor);
            }
        }
        *current = Arc::new(kept.into_values().collect());
    }

    /// Whether any tablet is known that has keys of `range`.
    pub(crate) fn touches(&self, range: &KeyRange) -> bool {
        self.all().iter().any(|descriptor| descriptor.range.overlaps(range))
    }

    pub(crate) fn get(&self, tablet: TabletId) -> Option<TabletDescriptor> {
        self.all().iter().find(|descriptor| descriptor.id == tablet).cloned()
    }

    /// The tablets that overlap `range`, in order; `None` unless they cover all of it.
    pub(crate) fn covering(&self, range: &KeyRange) -> Option<Vec<TabletDescriptor>> {
        let all = self.all();
        let mut found: Vec<TabletDescriptor> = Vec::new();
        let mut next = Some(range.start.clone());
        for descriptor in all.iter() {
            let Some(start) = &next else { break };
            if range.end.as_ref().is_some_and(|end| start >= end) {
                break;
            }
            if descriptor.range.contains(start) {
                next.clone_from(&descriptor.range.end);
                found.push(descriptor.clone());
            }
        }
        let covered = match (&next, &range.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(next), Some(end)) => next >= end,
        };
        covered.then_some(found)
    }
}
