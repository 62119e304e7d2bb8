//! What a write is validated against, and what it leaves.
//!
//! Whether it is refused depends only on the request and on what was applied before: when the tablet
//! was retired or no longer covers what it touches, when a schema version is older than the table's
//! fence, when its timestamp isn't above the last one (a leader that was deposed meanwhile), when
//! anything that it was computed from has changed, or when a key to be inserted exists. This is
//! optimistic concurrency control with backward validation (Kung and Robinson, 1981), in one tablet;
//! for what the system tablet's rows are computed from; transactions have locks in its place.
//!
//! What there was under a key is read as of just before the write: a replica that lags behind another
//! one on its node may find rows there that were written later.
//!
//! A write that is applied raises the fences of the tables that it names to the versions that it
//! names: a tablet learns of a newer schema from the first write that was planned under it, and
//! from then on refuses what was planned under an older one.
//!
//! # Caveats
//!
//! Validating a range costs as much as reading it did, on every replica; and whether it has changed
//! is asked of the present, so it is for tablets that are never split or merged.
//!
//! What lies just before a write may have been collected in rows that are ahead of it by more than the
//! retention period.

use std::collections::BTreeMap;

use meridian_storage::{DataSnapshot, KeyRange, StorageError, WriteBatch};
use meridian_truetime::Timestamp;

use crate::command::{Mutation, Outcome, ReadSet};
use crate::error::TxnError;
use crate::tablet::state::State;

/// What is to be validated and written.
pub(super) struct Change<'c> {
    pub(super) at: Timestamp,
    pub(super) schema: &'c [(u64, u64)],
    pub(super) mutations: &'c [Mutation],
}

/// Whether a change may be made in `state`, if it was computed from these reads; an I/O error is
/// neither.
pub(super) fn validate(
    state: &State,
    change: &Change<'_>,
    reads: &ReadSet,
    view: &DataSnapshot,
) -> Result<Outcome, StorageError> {
    let range = &state.descriptor.range;
    let Change { at, schema, mutations } = *change;
    if state.retired {
        return Ok(Err(TxnError::NoSuchTablet { tablet: state.descriptor.id }));
    }
    let covered = mutations.iter().all(|m| range.contains(m.key()))
        && reads.keys.iter().all(|(key, _)| range.contains(key))
        && reads.ranges.iter().all(|read| range.contains_range(read));
    if !covered {
        return Ok(Err(state.moved()));
    }
    if let Err(frozen) = state.check_frozen() {
        return Ok(Err(frozen));
    }
    for (table, version) in schema {
        if state.fences.get(table).is_some_and(|oldest| version < oldest) {
            return Ok(Err(TxnError::SchemaChanged { table: *table }));
        }
    }
    if at <= state.last_write {
        return Ok(Err(TxnError::Conflict));
    }
    if !reads.ranges.is_empty() && reads.at < state.horizon {
        return Ok(Err(TxnError::Conflict));
    }
    let before = |key: &[u8]| -> Result<_, StorageError> {
        Ok(view.get(key, at.prev())?.filter(|version| version.value.is_some()))
    };
    for (key, seen) in &reads.keys {
        if before(key)?.map(|version| version.ts) != *seen {
            return Ok(Err(TxnError::Conflict));
        }
    }
    for range in &reads.ranges {
        if view.changed_since(range, reads.at)? {
            return Ok(Err(TxnError::Conflict));
        }
    }
    for mutation in mutations {
        if let Mutation::Insert { key, .. } = mutation
            && before(key)?.is_some()
        {
            return Ok(Err(TxnError::DuplicateKey { key: key.clone() }));
        }
    }
    Ok(Ok(at))
}

/// Makes a change, but for keys that are another replica's.
pub(super) fn write(
    state: &mut State,
    at: Timestamp,
    (schema, mutations): (Vec<(u64, u64)>, Vec<Mutation>),
    foreign: &[KeyRange],
    batch: &mut WriteBatch,
) {
    let own = |m: &Mutation| !foreign.iter().any(|part| part.contains(m.key()));
    for mutation in mutations.into_iter().filter(own) {
        match mutation {
            Mutation::Insert { key, value } | Mutation::Put { key, value } => {
                batch.put(key, at, Some(value));
            }
            Mutation::Delete { key } => batch.put(key, at, None),
        }
    }
    for (table, version) in schema {
        raise(&mut state.fences, table, version);
    }
    state.last_write = at.max(state.last_write);
}

pub(super) fn raise(fences: &mut BTreeMap<u64, u64>, table: u64, version: u64) {
    let oldest = fences.entry(table).or_default();
    *oldest = version.max(*oldest);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meridian_storage::{NodeId, SimulatedDisk, Storage, StorageOptions};
    use meridian_truetime::{CostModel, Env, World};

    use super::*;
    use crate::directory::system_tablet;

    const KEY: &[u8] = b"k";

    fn ts(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    /// Another replica on the node, of a tablet that was split from this one, is ahead.
    #[test]
    fn what_was_written_later_is_no_reason_to_refuse_a_write() {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let (env, disk): (Env, _) = (world.node(1), Arc::new(SimulatedDisk::new()));
            let data = Storage::open(env, disk, StorageOptions::default()).expect("it opens").data;
            let mut batch = WriteBatch::default();
            batch.put(KEY.to_vec(), ts(100), Some(b"row".to_vec()));
            data.commit(batch).expect("committed");
            let view = data.snapshot().expect("readable");
            let mut state = State::born(system_tablet(vec![NodeId::new(1)]));
            state.descriptor.range = KeyRange { start: Vec::new(), end: None };
            let insert = [Mutation::Insert { key: KEY.to_vec(), value: Vec::new() }];
            let outcome = |at, seen| {
                let keys = vec![(b"k".to_vec(), seen)];
                let reads = ReadSet { keys, ..ReadSet::default() };
                let change = Change { at, schema: &[], mutations: &insert };
                validate(&state, &change, &reads, &view).expect("readable")
            };
            assert_eq!(outcome(ts(50), None), Ok(ts(50)));
            assert_eq!(outcome(ts(100), None), Ok(ts(100)), "applied again");
            assert_eq!(outcome(ts(50), Some(ts(100))), Err(TxnError::Conflict));
            let exists = TxnError::DuplicateKey { key: KEY.to_vec() };
            assert_eq!(outcome(ts(101), Some(ts(100))), Err(exists));
            assert_eq!(outcome(ts(101), None), Err(TxnError::Conflict));
        });
    }
}
