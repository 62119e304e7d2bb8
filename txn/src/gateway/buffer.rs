//! What a transaction is about to write: kept at its gateway until the commit, read back by the
//! transaction itself, and taken back as far as a savepoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_storage::KeyRange;
use meridian_truetime::Timestamp;

use crate::command::{Mutation, Row};
use crate::error::TxnError;

/// Changes by key, at most one each.
pub type Changes = BTreeMap<Vec<u8>, Mutation>;

/// A place in a transaction to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(usize);

/// The changes of one transaction.
#[derive(Debug, Default)]
pub struct WriteBuffer {
    /// Shared with those who read them; they go on to see what was there when they began.
    changes: Arc<Changes>,
    size: usize,
    /// What was there before each change, since the first savepoint.
    undo: Option<Vec<(Vec<u8>, Option<Mutation>)>>,
}

/// The row that a change leaves.
#[must_use]
pub fn row_of(mutation: &Mutation) -> Option<Row> {
    match mutation {
        Mutation::Insert { key, value } | Mutation::Put { key, value } => {
            Some(Row { key: key.clone(), ts: Timestamp::MAX, value: value.clone() })
        }
        Mutation::Delete { .. } => None,
    }
}

/// The changes in a range.
pub fn changes_within<'c>(
    changes: &'c Changes,
    range: &'c KeyRange,
) -> impl Iterator<Item = (&'c Vec<u8>, &'c Mutation)> {
    changes.range(range.start.clone()..).take_while(|(key, _)| range.contains(key))
}

impl WriteBuffer {
    /// The changes so far.
    #[must_use]
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// About how many bytes they take.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`TxnError::DuplicateKey`] if there is one of its own.
    pub fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), TxnError> {
        let new = match self.changes.get(&key) {
            None => Mutation::Insert { key: key.clone(), value },
            Some(Mutation::Delete { .. }) => Mutation::Put { key: key.clone(), value },
            Some(_) => return Err(TxnError::DuplicateKey { key }),
        };
        self.change(key, Some(new));
        Ok(())
    }

    /// Adds or replaces a row. What was inserted stays to be inserted.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let inserted = matches!(self.changes.get(&key), Some(Mutation::Insert { .. }));
        let new = if inserted {
            Mutation::Insert { key: key.clone(), value }
        } else {
            Mutation::Put { key: key.clone(), value }
        };
        self.change(key, Some(new));
    }

    /// Removes a row, if it exists.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.change(key.clone(), Some(Mutation::Delete { key }));
    }

    fn change(&mut self, key: Vec<u8>, new: Option<Mutation>) {
        let changes = Arc::make_mut(&mut self.changes);
        self.size += new.as_ref().map_or(0, Mutation::size);
        let old = match new {
            Some(new) => changes.insert(key.clone(), new),
            None => changes.remove(&key),
        };
        self.size -= old.as_ref().map_or(0, Mutation::size);
        if let Some(undo) = &mut self.undo {
            undo.push((key, old));
        }
    }

    /// Where the transaction stands.
    pub fn savepoint(&mut self) -> Savepoint {
        Savepoint(self.undo.get_or_insert_default().len())
    }

    /// Takes back what was changed since.
    pub fn roll_back(&mut self, to: Savepoint) {
        let since = match &mut self.undo {
            Some(undo) if undo.len() > to.0 => undo.split_off(to.0),
            _ => return,
        };
        let undo = self.undo.take();
        for (key, old) in since.into_iter().rev() {
            self.change(key, old);
        }
        self.undo = undo;
    }

    /// Everything, to be committed.
    pub fn take(&mut self) -> Changes {
        let Self { changes, .. } = std::mem::take(self);
        Arc::try_unwrap(changes).unwrap_or_else(|shared| Changes::clone(&shared))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(k: u8) -> Vec<u8> {
        vec![k]
    }

    #[test]
    fn a_row_that_is_new_stays_to_be_inserted_and_one_that_was_there_is_replaced() {
        let mut buffer = WriteBuffer::default();
        buffer.insert(key(1), vec![1]).expect("new");
        buffer.put(key(1), vec![2]);
        let own = buffer.insert(key(1), vec![3]);
        assert_eq!(own, Err(TxnError::DuplicateKey { key: key(1) }));
        buffer.delete(key(2));
        buffer.insert(key(2), vec![4]).expect("its own deletion came first");
        let changes: Vec<_> = buffer.take().into_values().collect();
        assert_eq!(
            changes,
            [
                Mutation::Insert { key: key(1), value: vec![2] },
                Mutation::Put { key: key(2), value: vec![4] },
            ]
        );
    }

    #[test]
    fn what_comes_after_a_savepoint_is_taken_back() {
        let mut buffer = WriteBuffer::default();
        buffer.put(key(1), vec![1]);
        let (size, before) = (buffer.size(), Arc::clone(buffer.changes()));
        let first = buffer.savepoint();
        buffer.put(key(1), vec![2, 2]);
        buffer.delete(key(3));
        let second = buffer.savepoint();
        buffer.put(key(3), vec![3]);
        buffer.roll_back(second);
        assert_eq!(buffer.changes().get(&key(3)), Some(&Mutation::Delete { key: key(3) }));
        buffer.put(key(4), vec![4]);
        buffer.roll_back(first);
        buffer.roll_back(first);
        assert_eq!((buffer.changes(), buffer.size()), (&before, size));
    }

    #[test]
    fn who_reads_the_changes_sees_none_that_come_later() {
        let mut buffer = WriteBuffer::default();
        buffer.put(key(1), vec![1]);
        let seen = Arc::clone(buffer.changes());
        buffer.put(key(2), vec![2]);
        assert_eq!(seen.len(), 1);
        let all = KeyRange { start: Vec::new(), end: Some(key(2)) };
        assert_eq!(changes_within(buffer.changes(), &all).count(), 1);
    }
}
