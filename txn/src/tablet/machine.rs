//! The replicated state machine of a tablet.
//!
//! # What is promised
//!
//! A write is applied whole or not at all, and the same way on every replica: whether it is refused
//! depends only on the request and on what was applied before. It is refused when the tablet was
//! retired, when a schema version is older than the table's fence, when its timestamp isn't above the last one (a leader
//! that was deposed meanwhile), when anything that it was computed from has changed, or when a key
//! to be inserted exists. This is optimistic concurrency control with backward validation (Kung and
//! Robinson, 1981), in one tablet; locks take its place when transactions span tablets.
//!
//! A write that is applied raises the fences of the tables that it names to the versions that it
//! names: a tablet learns of a newer schema from the first write that was planned under it, and
//! from then on refuses what was planned under an older one.
//!
//! # Caveats
//!
//! Validating a range costs as much as reading it did, on every replica.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_replication::{Position, StateMachine, TabletDescriptor};
use meridian_storage::{DataSnapshot, KeyRange, StorageError, TabletId, WriteBatch};
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

use crate::command::{Command, Mutation, Outcome, WriteRequest, decode, encode};
use crate::error::TxnError;

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
}

/// The prefix of the names of all tablets' records.
const RECORDS: &[u8] = b"tablet/";

/// The prefix of the names of one tablet's records.
fn records(tablet: TabletId) -> Vec<u8> {
    let mut name = RECORDS.to_vec();
    name.extend_from_slice(&tablet.get().to_be_bytes());
    name.push(b'/');
    name
}

fn state_record(tablet: TabletId) -> Vec<u8> {
    let mut name = records(tablet);
    name.extend_from_slice(b"state");
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

/// The batch that removes a tablet's rows and records from a data file.
pub(crate) fn removal(
    descriptor: &TabletDescriptor,
    view: &DataSnapshot,
) -> Result<WriteBatch, TxnError> {
    let mut batch = WriteBatch::default();
    batch.clear_range(descriptor.range.clone());
    for record in view.records(&records(descriptor.id))? {
        batch.delete_record(record?.0);
    }
    Ok(batch)
}

/// A tablet's state machine on one node.
#[derive(Debug)]
pub(crate) struct TabletMachine {
    id: TabletId,
    state: Mutex<Versions>,
}

#[derive(Debug)]
struct Versions {
    /// As of the last committed batch.
    committed: State,
    /// As of the batch that is being committed.
    next: State,
}

impl TabletMachine {
    /// The machine as the data file has it, or a new one.
    pub(crate) fn open(
        descriptor: &TabletDescriptor,
        view: &DataSnapshot,
    ) -> Result<Self, TxnError> {
        let state = match view.record(&state_record(descriptor.id))? {
            Some(bytes) => decode(&bytes)?,
            None => State {
                descriptor: descriptor.clone(),
                last_write: Timestamp::MIN,
                fences: BTreeMap::new(),
                retired: false,
            },
        };
        let versions = Versions { committed: state.clone(), next: state };
        Ok(Self { id: descriptor.id, state: Mutex::new(versions) })
    }

    /// The batch that makes a new replica known to the data file.
    pub(crate) fn creation(&self) -> Result<WriteBatch, TxnError> {
        let mut batch = WriteBatch::default();
        batch.put_record(state_record(self.id), encode(&self.lock().committed)?);
        Ok(batch)
    }

    /// The state as of the last applied command.
    pub(crate) fn state(&self) -> State {
        self.lock().committed.clone()
    }

    /// The timestamp of the last applied write.
    pub(crate) fn last_write(&self) -> Timestamp {
        self.lock().committed.last_write
    }

    /// Whether the tablet serves no longer.
    pub(crate) fn is_retired(&self) -> bool {
        self.lock().committed.retired
    }

    fn lock(&self) -> MutexGuard<'_, Versions> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `request` may be written at `at` in `state`; an I/O error is neither.
fn validate(
    state: &State,
    at: Timestamp,
    request: &WriteRequest,
    view: &DataSnapshot,
) -> Result<Outcome, StorageError> {
    let id = state.descriptor.id;
    let range = &state.descriptor.range;
    if state.retired || !request.mutations.iter().all(|m| range.contains(m.key())) {
        return Ok(Err(TxnError::NoSuchTablet { tablet: id }));
    }
    for (table, version) in &request.schema {
        if state.fences.get(table).is_some_and(|oldest| version < oldest) {
            return Ok(Err(TxnError::SchemaChanged { table: *table }));
        }
    }
    if at <= state.last_write {
        return Ok(Err(TxnError::Conflict));
    }
    for (key, seen) in &request.reads.keys {
        let current = view.get(key, Timestamp::MAX)?.filter(|version| version.value.is_some());
        if current.map(|version| version.ts) != *seen {
            return Ok(Err(TxnError::Conflict));
        }
    }
    for range in &request.reads.ranges {
        if view.changed_since(range, request.reads.at)? {
            return Ok(Err(TxnError::Conflict));
        }
    }
    for mutation in &request.mutations {
        if let Mutation::Insert { key, .. } = mutation {
            let current = view.get(key, Timestamp::MAX)?;
            if current.is_some_and(|version| version.value.is_some()) {
                return Ok(Err(TxnError::DuplicateKey { key: key.clone() }));
            }
        }
    }
    Ok(Ok(at))
}

fn raise(fences: &mut BTreeMap<u64, u64>, table: u64, version: u64) {
    let oldest = fences.entry(table).or_default();
    *oldest = version.max(*oldest);
}

impl StateMachine for TabletMachine {
    fn apply(
        &self,
        _position: Position,
        command: &[u8],
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Bytes {
        // A replica that skipped what another applied would diverge: better that it stops.
        let command: Command = decode(command).expect("a replica understands its log");
        let mut state = self.lock();
        let outcome = match command {
            Command::Write { at, request } => {
                let outcome = validate(&state.committed, at, &request, view)
                    .expect("a replica can read its data");
                if outcome.is_ok() {
                    for mutation in request.mutations {
                        match mutation {
                            Mutation::Insert { key, value } | Mutation::Put { key, value } => {
                                batch.put(key, at, Some(value));
                            }
                            Mutation::Delete { key } => batch.put(key, at, None),
                        }
                    }
                    for (table, version) in request.schema {
                        raise(&mut state.next.fences, table, version);
                    }
                    state.next.last_write = at;
                }
                outcome
            }
            Command::Fence { table, version } => {
                raise(&mut state.next.fences, table, version);
                Ok(state.next.last_write)
            }
            Command::Retire => {
                state.next.retired = true;
                Ok(state.next.last_write)
            }
        };
        let record = encode(&state.next).expect("a state can be encoded");
        batch.put_record(state_record(self.id), record);
        encode(&outcome).expect("an outcome can be encoded").into()
    }

    fn committed(&self) {
        let mut state = self.lock();
        state.committed = state.next.clone();
    }

    fn range(&self) -> KeyRange {
        self.lock().committed.descriptor.range.clone()
    }

    fn records(&self) -> Vec<u8> {
        records(self.id)
    }

    fn restore(&self, view: &DataSnapshot) -> io::Result<()> {
        let record = view.record(&state_record(self.id)).map_err(io::Error::other)?;
        if let Some(bytes) = record {
            let restored: State = decode(&bytes).map_err(io::Error::other)?;
            *self.lock() = Versions { committed: restored.clone(), next: restored };
        }
        Ok(())
    }
}
