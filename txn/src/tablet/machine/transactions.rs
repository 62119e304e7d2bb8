//! What transactions over several tablets leave in this one: what is prepared, and outcomes
//! (`crate::commit` has the rules).

use meridian_storage::{DataSnapshot, StorageError, WriteBatch};
use meridian_truetime::Timestamp;

use super::change::{Change, validate, write};
use super::{TabletMachine, record};
use crate::command::{Mutation, Outcome, ReadSet, decode};
use crate::commit::{Decided, Prepared};
use crate::error::TxnError;
use crate::locks::TxnId;
use crate::tablet::state::{
    State, outcome_record, outcome_records, prepared_record, prepared_records,
};

/// The records of a tablet whose names begin with `prefix`.
fn decoded<T: serde::de::DeserializeOwned>(
    prefix: &[u8],
    view: &DataSnapshot,
) -> Result<Vec<T>, TxnError> {
    view.records(prefix)?.map(|record| decode(&record?.1)).collect()
}

impl TabletMachine {
    /// Remembers what a transaction is to write, if it may; the timestamp that it votes with.
    pub(super) fn prepare(
        &self,
        state: &mut State,
        prepared: Prepared,
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<Outcome, StorageError> {
        let name = prepared_record(self.id, prepared.txn.id);
        if let Some(bytes) = view.record(&name)? {
            let already: Prepared = decode(&bytes).expect("a replica understands its records");
            return Ok(Ok(already.min));
        }
        let Prepared { min, schema, mutations, .. } = &prepared;
        let change = Change { at: *min, schema, mutations };
        let outcome = validate(state, &change, &ReadSet::default(), view)?;
        if outcome.is_ok() {
            batch.put_record(name, record(&prepared));
            state.prepared += 1;
        }
        Ok(outcome)
    }

    /// The outcome of a transaction that was prepared here; it may be known already.
    pub(super) fn finish(
        &self,
        state: &mut State,
        txn: TxnId,
        commit: Option<Timestamp>,
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        let name = prepared_record(self.id, txn);
        let Some(bytes) = view.record(&name)? else { return Ok(()) };
        let Prepared { schema, mutations, .. } =
            decode(&bytes).expect("a replica understands its records");
        if let Some(at) = commit {
            let foreign = self.holdings.foreign(&state.descriptor);
            write(state, at, (schema, mutations), &foreign, batch);
        }
        batch.delete_record(name);
        state.prepared -= 1;
        Ok(())
    }

    /// The outcome of a transaction: the first one that was decided.
    pub(super) fn decide(
        &self,
        state: &mut State,
        mut decided: Decided,
        (schema, mutations): (Vec<(u64, u64)>, Vec<Mutation>),
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<Outcome, StorageError> {
        let name = outcome_record(self.id, decided.txn);
        if let Some(bytes) = view.record(&name)? {
            let first: Decided = decode(&bytes).expect("a replica understands its records");
            return Ok(first.commit.ok_or(TxnError::Conflict));
        }
        let covered = state.descriptor.range.contains(&decided.anchor);
        let outcome = match decided.commit {
            _ if !covered || state.retired => return Ok(Err(state.moved())),
            _ if state.frozen.is_some() => {
                return Ok(state.check_frozen().map(|()| state.last_write));
            }
            None => Err(TxnError::Conflict),
            Some(at) => {
                let change = Change { at, schema: &schema, mutations: &mutations };
                validate(state, &change, &ReadSet::default(), view)?
            }
        };
        match &outcome {
            Ok(at) => {
                let foreign = self.holdings.foreign(&state.descriptor);
                write(state, *at, (schema, mutations), &foreign, batch);
            }
            Err(_) => decided.commit = None,
        }
        batch.put_record(name, record(&decided));
        Ok(outcome)
    }

    /// What is prepared here, as of the last applied command.
    pub(crate) fn prepared(&self, view: &DataSnapshot) -> Result<Vec<Prepared>, TxnError> {
        decoded(&prepared_records(self.id), view)
    }

    /// The outcomes that are remembered here.
    pub(crate) fn outcomes(&self, view: &DataSnapshot) -> Result<Vec<Decided>, TxnError> {
        decoded(&outcome_records(self.id), view)
    }

    /// The outcome of a transaction, if it is remembered here.
    pub(crate) fn outcome(
        &self,
        txn: TxnId,
        view: &DataSnapshot,
    ) -> Result<Option<Decided>, TxnError> {
        let record = view.record(&outcome_record(self.id, txn))?;
        record.map(|bytes| decode(&bytes)).transpose()
    }
}
