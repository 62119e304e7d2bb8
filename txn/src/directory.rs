//! The directory: which tablet covers a key.
//!
//! The directory is rows of the system tablet, one per tablet, and every node keeps a copy of them
//! that may lag. Nothing relies on the copy being right: a tablet refuses keys that it doesn't
//! cover, and a node that is refused reads the rows again.

use std::sync::{Arc, Mutex, PoisonError};

use meridian_replication::{Generation, Placement, TabletDescriptor};
use meridian_storage::{KeyBuilder, KeyRange, NodeId, TabletId, prefix_end};

use crate::command::{Mutation, decode, encode};
use crate::error::TxnError;

/// The tablet that holds the catalog and the directory; it exists from the beginning.
pub const SYSTEM_TABLET: TabletId = TabletId::new(1);

/// Root table ids below this belong to the system tablet.
pub const FIRST_USER_TABLE: u64 = 100;

/// The root table id of the directory's rows.
const DIRECTORY: u64 = 99;

/// The keys whose root table is `table`.
#[must_use]
pub fn table_range(table: u64) -> KeyRange {
    let start = KeyBuilder::new().table(table).finish();
    let end = prefix_end(&start);
    KeyRange { start, end }
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

fn directory_key(tablet: TabletId) -> Vec<u8> {
    KeyBuilder::new().table(DIRECTORY).table(tablet.get()).finish()
}

/// The mutation of the system tablet that enters a tablet into the directory.
///
/// # Errors
/// When the descriptor can't be encoded.
pub fn directory_put(descriptor: &TabletDescriptor) -> Result<Mutation, TxnError> {
    Ok(Mutation::Put { key: directory_key(descriptor.id), value: encode(descriptor)? })
}

/// The mutation of the system tablet that takes a tablet out of the directory.
#[must_use]
pub fn directory_delete(tablet: TabletId) -> Mutation {
    Mutation::Delete { key: directory_key(tablet) }
}

pub(crate) fn directory_row(value: &[u8]) -> Result<TabletDescriptor, TxnError> {
    decode(value)
}

/// A node's copy of the directory.
#[derive(Debug)]
pub(crate) struct Directory {
    tablets: Mutex<Arc<Vec<TabletDescriptor>>>,
}

impl Directory {
    pub(crate) fn new(system: TabletDescriptor) -> Self {
        Self { tablets: Mutex::new(Arc::new(vec![system])) }
    }

    /// All tablets in the order of their ranges.
    pub(crate) fn all(&self) -> Arc<Vec<TabletDescriptor>> {
        Arc::clone(&self.tablets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn replace(&self, mut tablets: Vec<TabletDescriptor>) {
        tablets.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        *self.tablets.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tablets);
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
