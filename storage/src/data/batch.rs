//! A group of changes that is applied as one.

use meridian_truetime::Timestamp;
use redb::{Table, WriteTransaction};

use super::estimate::{Sizes, weight};
use super::rowkey::{RowKey, encode_into, split};
use super::scan::bounds;
use super::{RECORDS, ROWS};
use crate::range::KeyRange;

/// Changes to rows and records, applied in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Put { key: Vec<u8>, ts: Timestamp, value: Option<Vec<u8>> },
    PutRecord { name: Vec<u8>, value: Vec<u8> },
    DeleteRecord { name: Vec<u8> },
    ClearRange(KeyRange),
    CollectGarbage { range: KeyRange, horizon: Timestamp },
}

type Rows<'a> = Table<'a, RowKey, Option<&'static [u8]>>;

impl WriteBatch {
    /// No changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Adds a version of a row; `None` is a tombstone. A version of the same timestamp is replaced.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, ts: Timestamp, value: Option<Vec<u8>>) {
        self.changes.push(Change::Put { key: key.into(), ts, value });
    }

    /// Stores a record in place of what was there.
    pub fn put_record(&mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push(Change::PutRecord { name: name.into(), value: value.into() });
    }

    /// Removes a record, if it is there.
    pub fn delete_record(&mut self, name: impl Into<Vec<u8>>) {
        self.changes.push(Change::DeleteRecord { name: name.into() });
    }

    /// Removes every version of every key of the range.
    pub fn clear_range(&mut self, range: KeyRange) {
        self.changes.push(Change::ClearRange(range));
    }

    /// Removes the versions of the range that no read at or above `horizon` can see: of each key,
    /// those below the newest one at or below the horizon, and that one too if it is a tombstone.
    pub fn collect_garbage(&mut self, range: KeyRange, horizon: Timestamp) {
        self.changes.push(Change::CollectGarbage { range, horizon });
    }

    /// What the batch does to the sizes of ranges.
    pub(super) fn counted(&self) -> Counted {
        let mut counted = Counted::default();
        for change in &self.changes {
            match change {
                Change::Put { key, value, .. } => {
                    counted.added.push((key.clone(), weight(key, value.as_deref())));
                }
                Change::ClearRange(range) | Change::CollectGarbage { range, .. } => {
                    counted.removed.push(range.clone());
                }
                Change::PutRecord { .. } | Change::DeleteRecord { .. } => {}
            }
        }
        counted
    }

    pub(super) fn apply(self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let mut rows = transaction.open_table(ROWS)?;
        let mut records = None;
        let mut buffer = Vec::new();
        for change in self.changes {
            match change {
                Change::Put { key, ts, value } => {
                    encode_into(&mut buffer, &key, ts);
                    rows.insert(buffer.as_slice(), value.as_deref())?;
                }
                Change::ClearRange(range) => retain(&mut rows, &range, |_, _, _| false)?,
                Change::CollectGarbage { range, horizon } => {
                    collect_garbage(&mut rows, &range, horizon)?;
                }
                Change::PutRecord { name, value } => {
                    let records = open_once(&mut records, || transaction.open_table(RECORDS))?;
                    records.insert(name.as_slice(), value.as_slice())?;
                }
                Change::DeleteRecord { name } => {
                    let records = open_once(&mut records, || transaction.open_table(RECORDS))?;
                    records.remove(name.as_slice())?;
                }
            }
        }
        Ok(())
    }
}

/// How a batch changes the sizes of ranges.
#[derive(Debug, Default)]
pub(super) struct Counted {
    added: Vec<(Vec<u8>, u64)>,
    removed: Vec<KeyRange>,
}

impl Counted {
    /// Passes it on, once the batch is committed.
    pub(super) fn tell(self, sizes: &Sizes) {
        sizes.added(&self.added);
        for range in &self.removed {
            sizes.forget(range);
        }
    }
}

/// Most batches touch few tables; opening one costs a look-up.
fn open_once<T, E>(slot: &mut Option<T>, open: impl FnOnce() -> Result<T, E>) -> Result<&mut T, E> {
    match slot {
        Some(table) => Ok(table),
        None => Ok(slot.insert(open()?)),
    }
}

fn collect_garbage(
    rows: &mut Rows<'_>,
    range: &KeyRange,
    horizon: Timestamp,
) -> Result<(), redb::Error> {
    // The key whose newest version at or below the horizon has passed by: the rest is garbage.
    let mut settled: Option<Vec<u8>> = None;
    retain(rows, range, move |key, ts, is_tombstone| {
        if ts > horizon {
            return true;
        }
        if settled.as_deref() == Some(key) {
            return false;
        }
        let buffer = settled.get_or_insert_default();
        buffer.clear();
        buffer.extend_from_slice(key);
        !is_tombstone
    })
}

/// Removes the versions of a range that `keep` refuses; it sees them by key, the newest first.
fn retain(
    rows: &mut Rows<'_>,
    range: &KeyRange,
    mut keep: impl FnMut(&[u8], Timestamp, bool) -> bool,
) -> Result<(), redb::Error> {
    let (start, end) = bounds(range);
    let range = (start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
    rows.retain_in::<&[u8], _>(range, |position, value| {
        let (key, ts) = split(position);
        keep(key, ts, value.is_none())
    })?;
    Ok(())
}
