//! What a tablet's replicas agree on besides its rows, and the records that keep it.

use std::collections::{BTreeMap, BTreeSet};

use meridian_replication::{Generation, Members, TabletDescriptor, birth, death};
use meridian_storage::{DataSnapshot, KeyRange, KeyReader, NodeId, TabletId, WriteBatch};
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

use crate::command::{Content, decode, encode};
use crate::error::TxnError;
use crate::locks::TxnId;

/// The replicas that a tablet is to have, while it doesn't have them yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) voters: Vec<NodeId>,
    pub(crate) read_only: Vec<NodeId>,
}

impl Target {
    /// The replicas that there are.
    pub(crate) fn of(descriptor: &TabletDescriptor) -> Self {
        Self { voters: descriptor.voters.clone(), read_only: descriptor.read_only.clone() }
    }

    /// Whether the replicas are those.
    pub(crate) fn is_met_by(&self, descriptor: &TabletDescriptor) -> bool {
        same_nodes(&self.voters, &descriptor.voters)
            && same_nodes(&self.read_only, &descriptor.read_only)
    }
}

/// Whether both name the same nodes, each once, in whatever order.
pub(crate) fn same_nodes(a: &[NodeId], b: &[NodeId]) -> bool {
    a.len() == b.len() && a.iter().all(|node| b.contains(node))
}

/// The neighbours that are to be merged, as they were when that was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unchanged {
    pub(crate) left: Generation,
    pub(crate) right: Generation,
}

/// A tablet that serves nothing, because a neighbour is to absorb it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frozen {
    pub(crate) into: TabletId,
    /// It absorbs it in this generation or not at all; in any, if none is given.
    pub(crate) left: Option<Generation>,
}

/// What a tablet's replicas agree on besides its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) descriptor: TabletDescriptor,
    /// The timestamp of the last applied write.
    pub(crate) last_write: Timestamp,
    /// The oldest version of each table's schema that may still write: the newest that a write or a
    /// fence has named. A table that isn't here was never written.
    pub(crate) fences: BTreeMap<u64, u64>,
    /// Serves nothing any more.
    pub(crate) retired: bool,
    /// The tablet that this one was split from; it is in the directory only while that is.
    pub(crate) parent: Option<TabletId>,
    /// What was split from this one last: a hint for those who ask for it here.
    pub(crate) last_child: Option<TabletDescriptor>,
    /// The members are on their way to this. Every leader goes on where the one before it stopped.
    pub(crate) target: Option<Target>,
    /// Two configurations of members are in force.
    pub(crate) joint: bool,
    /// It is to be absorbed.
    pub(crate) frozen: Option<Frozen>,
    /// The tablets that it has absorbed, and those that they had: replicas of them that are still
    /// somewhere hold nothing any more.
    pub(crate) absorbed: BTreeSet<TabletId>,
    /// Below this, old versions may have been collected.
    pub(crate) horizon: Timestamp,
    /// How many transactions are prepared. While there are any, the tablet isn't split or merged.
    pub(crate) prepared: u64,
}

impl State {
    /// The state that a tablet is born with.
    pub(super) fn born(descriptor: TabletDescriptor) -> Self {
        Self {
            descriptor,
            last_write: Timestamp::MIN,
            fences: BTreeMap::new(),
            retired: false,
            parent: None,
            last_child: None,
            target: None,
            joint: false,
            frozen: None,
            absorbed: BTreeSet::new(),
            horizon: Timestamp::MIN,
            prepared: 0,
        }
    }

    /// Refuses what must wait for a merge to end.
    pub(crate) fn check_frozen(&self) -> Result<(), TxnError> {
        match self.frozen {
            None => Ok(()),
            Some(Frozen { into, .. }) => Err(TxnError::Unavailable {
                tablet: self.descriptor.id,
                reason: format!("it is being merged into {into}"),
            }),
        }
    }

    /// Refuses a read of versions that may be gone.
    pub(crate) fn check_horizon(&self, at: Timestamp) -> Result<(), TxnError> {
        if at >= self.horizon {
            return Ok(());
        }
        Err(TxnError::TooOld { tablet: self.descriptor.id, horizon: self.horizon })
    }

    /// Refuses what must wait for transactions to end.
    pub(crate) fn check_prepared(&self) -> Result<(), TxnError> {
        if self.prepared == 0 {
            return Ok(());
        }
        let reason = format!("{} transactions are prepared in it", self.prepared);
        Err(TxnError::Unavailable { tablet: self.descriptor.id, reason })
    }

    /// Why a request for something that the tablet doesn't cover is refused, and where to go.
    pub(crate) fn moved(&self) -> TxnError {
        let known = [Some(&self.descriptor), self.last_child.as_ref()];
        TxnError::Moved {
            tablet: self.descriptor.id,
            known: known.into_iter().flatten().cloned().collect(),
        }
    }

    pub(super) fn members(&self) -> Members {
        Members {
            voters: self.descriptor.voters.clone(),
            learners: self.descriptor.read_only.clone(),
            joint: self.joint,
        }
    }
}

/// What the node has to know of what its replicas have applied.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A tablet was split from another.
    Born { parent: TabletId, child: Box<TabletDescriptor> },
    /// Something that the directory or the leader's plans depend on is different.
    Changed(TabletId),
    /// Another tablet has taken over what this one held.
    Over(TabletId),
}

/// The prefix of the names of all tablets' records.
const RECORDS: &[u8] = b"tablet/";

/// The prefix of the names of one tablet's records.
pub(super) fn records(tablet: TabletId) -> Vec<u8> {
    let mut name = RECORDS.to_vec();
    name.extend_from_slice(&tablet.get().to_be_bytes());
    name.push(b'/');
    name
}

/// The prefix of the names of the parts that are staged in a tablet.
pub(super) fn stage_records(tablet: TabletId) -> Vec<u8> {
    let mut name = records(tablet);
    name.extend_from_slice(b"stage/");
    name
}

/// The prefix of those that hold this content.
pub(super) fn content_records(tablet: TabletId, content: Content) -> Vec<u8> {
    let mut name = stage_records(tablet);
    name.extend_from_slice(&content.tablet.get().to_be_bytes());
    name.extend_from_slice(&content.generation.get().to_be_bytes());
    name.extend_from_slice(&content.last_write.as_nanos().to_be_bytes());
    name
}

pub(super) fn stage_record(tablet: TabletId, content: Content, part: u64) -> Vec<u8> {
    let mut name = content_records(tablet, content);
    name.extend_from_slice(&part.to_be_bytes());
    name
}

fn txn_record(mut name: Vec<u8>, txn: TxnId) -> Vec<u8> {
    name.extend_from_slice(&txn.gateway.get().to_be_bytes());
    name.extend_from_slice(&txn.number.to_be_bytes());
    name
}

/// The prefix of the names of what is prepared in a tablet.
pub(super) fn prepared_records(tablet: TabletId) -> Vec<u8> {
    let mut name = records(tablet);
    name.extend_from_slice(b"prepared/");
    name
}

pub(super) fn prepared_record(tablet: TabletId, txn: TxnId) -> Vec<u8> {
    txn_record(prepared_records(tablet), txn)
}

/// The prefix of the names of the outcomes that a tablet remembers.
pub(super) fn outcome_records(tablet: TabletId) -> Vec<u8> {
    let mut name = records(tablet);
    name.extend_from_slice(b"outcome/");
    name
}

pub(super) fn outcome_record(tablet: TabletId, txn: TxnId) -> Vec<u8> {
    txn_record(outcome_records(tablet), txn)
}

pub(super) fn state_record(tablet: TabletId) -> Vec<u8> {
    let mut name = records(tablet);
    name.extend_from_slice(b"state");
    name
}

/// Where a node remembers as of which generation a leader wanted its replica of a tablet.
pub(crate) fn wanted_record(tablet: TabletId) -> Vec<u8> {
    let mut name = b"wanted/".to_vec();
    name.extend_from_slice(&tablet.get().to_be_bytes());
    name
}

/// The tablets of which a data file holds a replica.
pub(crate) fn stored_tablets(view: &DataSnapshot) -> Result<Vec<TabletDescriptor>, TxnError> {
    let mut found = Vec::new();
    for record in view.records(RECORDS)? {
        let (name, value) = record?;
        if name.ends_with(b"/state") {
            found.push(decode::<State>(&value)?.descriptor);
        }
    }
    Ok(found)
}

/// Whether a data file holds a replica of the tablet that isn't blank.
pub(crate) fn is_stored(view: &DataSnapshot, tablet: TabletId) -> Result<bool, TxnError> {
    Ok(view.record(&state_record(tablet))?.is_some())
}

/// The batch that makes a new tablet known to a node that is one of its first members.
pub(crate) fn creation(descriptor: &TabletDescriptor) -> Result<WriteBatch, TxnError> {
    let mut batch = WriteBatch::default();
    bear(&State::born(descriptor.clone()), &mut batch)?;
    Ok(batch)
}

pub(super) fn bear(state: &State, batch: &mut WriteBatch) -> Result<(), TxnError> {
    let id = state.descriptor.id;
    batch.put_record(state_record(id), encode(state)?);
    birth(id, &state.members(), batch).map_err(|error| TxnError::Internal(error.to_string()))
}

/// The batch that removes a tablet's rows and records from a data file.
pub(crate) fn removal(
    tablet: TabletId,
    rows: Vec<KeyRange>,
    view: &DataSnapshot,
) -> Result<WriteBatch, TxnError> {
    let mut batch = WriteBatch::default();
    for range in rows {
        batch.clear_range(range);
    }
    for record in view.records(&records(tablet))? {
        batch.delete_record(record?.0);
    }
    batch.delete_record(wanted_record(tablet));
    death(tablet, &mut batch);
    Ok(batch)
}

/// Whether a directory can begin at `key`: it is a root table's id and at least one of its key's
/// columns, with nothing behind. (With fewer than all of them, several directories lie behind it.)
pub(crate) fn directory_begins(key: &[u8], descriptor: &TabletDescriptor) -> bool {
    let mut reader = KeyReader::new(key);
    if reader.table().is_err() {
        return false;
    }
    for &(kind, order) in &descriptor.root_key {
        if reader.value(kind, order).is_err() {
            return false;
        }
        if reader.is_empty() {
            return true;
        }
    }
    false
}
