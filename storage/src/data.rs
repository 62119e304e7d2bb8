//! Multi-version rows: the applied state of all of a node's tablets, in one file.
//!
//! A row is never overwritten. Every write adds a *version*, named by its commit timestamp; a
//! delete adds a version without a value, a *tombstone*. A read is always at a timestamp and sees,
//! of each key, the newest version at or below it:
//!
//! ```text
//!            key a    key b    key c
//!   ts 30                      c30          a read at 25 sees  a20, b10
//!   ts 20    a20               x (deleted)
//!   ts 10    a10      b10      c10          a read at 10 sees  a10, b10, c10
//! ```
//!
//! In the file a version's key is the row's key followed by the timestamp, compared as key
//! ascending, then timestamp *descending*. So the version that a read looks for is the first
//! entry at or behind `(key, at)`, one descent of the tree, and a scan meets each key's newest
//! version first. (The two parts are compared one after the other, not as one string: a key may
//! be a prefix of another.)
//!
//! Beside the rows there are *records*: named values without versions, in which the layers above
//! keep what must change in step with the rows (a tablet's descriptor, how far its log is
//! applied).
//!
//! # Guarantees
//!
//! - A batch is atomic, in memory and on disk.
//! - [`DataStore::commit`] is visible when it returns, and not yet durable. [`DataStore::flush`]
//!   makes everything committed so far durable. After a crash the store is what it was after some
//!   commit at or behind the last flush that was answered: the Raft log replays the rest.
//! - A snapshot doesn't change, and blocks nobody.
//!
//! # Caveats
//!
//! A flush holds back commits for as long as the disk takes: redb has one writer. Pages that a
//! snapshot can see are not reused while it lives, so a long-lived one lets the file grow. What
//! is read is not checked for flipped bits; the file's checksums are checked only when it is
//! recovered after a crash.

mod batch;
mod estimate;
mod rowkey;
mod scan;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use meridian_truetime::{Env, Timestamp};
use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition,
};

pub use self::batch::WriteBatch;
use self::estimate::Sizes;
use self::rowkey::{RowKey, encode, split};
pub use self::scan::{Direction, Records, Scan, Versions};
use crate::error::StorageError;
use crate::range::KeyRange;
use crate::writer::{Done, Sink, Writer};

/// The name of the file.
pub(crate) const DATA_FILE: &str = "data.redb";

/// Versions of rows; `None` is a tombstone.
const ROWS: TableDefinition<RowKey, Option<&[u8]>> = TableDefinition::new("rows");
/// Records by name.
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");

/// A version of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// When it was committed.
    pub ts: Timestamp,
    /// The row; `None`: it was deleted.
    pub value: Option<Vec<u8>>,
}

/// A row that exists at the timestamp of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: Vec<u8>,
    /// When the version was committed.
    pub ts: Timestamp,
    /// The row.
    pub value: Vec<u8>,
}

/// The rows and records. Clones are handles of the same store.
#[derive(Clone, Debug)]
pub struct DataStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Dropped first: it finishes what is waiting, then gives the file back.
    writer: Writer<()>,
    file: Arc<DataFile>,
}

#[derive(Debug)]
struct DataFile {
    database: Database,
    /// Whether something was committed since the last flush began.
    dirty: AtomicBool,
    sizes: Arc<Sizes>,
    stopped: OnceLock<StorageError>,
}

fn failed(error: impl Into<redb::Error>) -> StorageError {
    StorageError::engine(DATA_FILE, error)
}

/// Creates the tables of a new file.
pub(crate) fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(ROWS)?;
    transaction.open_table(RECORDS)?;
    transaction.commit()?;
    Ok(())
}

impl DataStore {
    pub(crate) fn open(env: &Env, database: Database) -> Result<Self, StorageError> {
        let file = Arc::new(DataFile {
            database,
            dirty: AtomicBool::new(false),
            sizes: Arc::new(Sizes::new()),
            stopped: OnceLock::new(),
        });
        let writer = Writer::start(env, "data writer", FlushSink(Arc::clone(&file)))?;
        Ok(Self { shared: Arc::new(Shared { writer, file }) })
    }

    /// Applies a batch: all of it is visible when this returns, or nothing ever. Not durable
    /// until the next flush.
    ///
    /// # Errors
    /// When the file can't be read or written. Then the store has stopped.
    pub fn commit(&self, batch: WriteBatch) -> Result<(), StorageError> {
        let file = &self.shared.file;
        file.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let counted = batch.counted();
        file.commit(batch).map_err(failed).inspect_err(|error| file.stop(error))?;
        counted.tell(&file.sizes);
        file.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes everything that was committed so far durable, then calls `done`.
    pub fn flush(&self, done: Done) {
        if let Some(done) = self.shared.writer.submit((), done) {
            done(Err(StorageError::Closed));
        }
    }

    /// The store as it is now. Cheap.
    ///
    /// # Errors
    /// When the file can't be read, or the store has stopped.
    pub fn snapshot(&self) -> Result<DataSnapshot, StorageError> {
        let file = &self.shared.file;
        file.check()?;
        let transaction = file.database.begin_read().map_err(failed)?;
        let rows = transaction.open_table(ROWS).map_err(failed)?;
        let sizes = Arc::clone(&file.sizes);
        Ok(DataSnapshot { inner: Arc::new(Snapshot { rows, transaction, sizes }) })
    }
}

impl DataFile {
    fn check(&self) -> Result<(), StorageError> {
        self.stopped.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn stop(&self, cause: &StorageError) {
        let _ = self.stopped.set(cause.stopped());
    }

    fn commit(&self, batch: WriteBatch) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        batch.apply(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// A durable commit of nothing makes the ones before it durable. It also saves the free
    /// lists (`quick_repair`), so that after a crash the file need not be walked.
    fn flush(&self) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        transaction.commit()?;
        Ok(())
    }
}

struct FlushSink(Arc<DataFile>);

impl Sink for FlushSink {
    type Operation = ();

    fn weight((): &()) -> usize {
        0
    }

    fn commit_batch(&mut self, _: Vec<()>) -> Result<(), StorageError> {
        self.0.check()?;
        if self.0.dirty.swap(false, Ordering::AcqRel) {
            self.0.flush().map_err(failed)?;
        }
        Ok(())
    }

    fn stop(&mut self, cause: &StorageError) {
        self.0.stop(cause);
    }
}

/// The store at one moment. Clones share it.
#[derive(Clone, Debug)]
pub struct DataSnapshot {
    inner: Arc<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    rows: ReadOnlyTable<RowKey, Option<&'static [u8]>>,
    transaction: ReadTransaction,
    sizes: Arc<Sizes>,
}

impl DataSnapshot {
    /// The newest version of a key at or below `at`, be it a tombstone.
    ///
    /// # Errors
    /// When the file can't be read; likewise below.
    pub fn get(&self, key: &[u8], at: Timestamp) -> Result<Option<Version>, StorageError> {
        let start = encode(key, at);
        let mut cursor =
            self.inner.rows.lower_bound(Bound::Included(start.as_slice())).map_err(failed)?;
        let Some((found, value)) = cursor.next().map_err(failed)? else { return Ok(None) };
        let (found, ts) = split(found.value());
        Ok((found == key).then(|| Version { ts, value: value.value().map(<[u8]>::to_vec) }))
    }

    /// The timestamp of a key's newest version, tombstones included.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn newest(&self, key: &[u8]) -> Result<Option<Timestamp>, StorageError> {
        let start = encode(key, Timestamp::MAX);
        let mut cursor =
            self.inner.rows.lower_bound(Bound::Included(start.as_slice())).map_err(failed)?;
        let Some((found, _)) = cursor.next().map_err(failed)? else { return Ok(None) };
        let (found, ts) = split(found.value());
        Ok((found == key).then_some(ts))
    }

    /// The rows of a range that exist at `at`, in the order of their keys or against it.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn scan(
        &self,
        range: &KeyRange,
        at: Timestamp,
        direction: Direction,
    ) -> Result<Scan, StorageError> {
        Scan::new(self.clone(), range, at, direction)
    }

    /// Every version of every key of a range: by key, the newest first, tombstones included.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn versions(&self, range: &KeyRange) -> Result<Versions, StorageError> {
        Versions::new(self, range)
    }

    /// Whether any key of the range has a version newer than `ts`, tombstones included.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn changed_since(&self, range: &KeyRange, ts: Timestamp) -> Result<bool, StorageError> {
        scan::changed_since(self, range, ts)
    }

    /// A record.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn record(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let table = self.inner.transaction.open_table(RECORDS).map_err(failed)?;
        let value = table.get(name).map_err(failed)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// The records whose names begin with `prefix`, by name.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn records(&self, prefix: &[u8]) -> Result<Records, StorageError> {
        let table = self.inner.transaction.open_table(RECORDS).map_err(failed)?;
        Records::new(&table, prefix)
    }

    /// About how many bytes of keys and values the range holds, old versions included. The first
    /// question about a part of the key space after the store was opened reads that part; later
    /// ones read little or nothing.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn size_of(&self, range: &KeyRange) -> Result<u64, StorageError> {
        loop {
            if let Some(size) = self.size_or_measure(range)? {
                return Ok(size);
            }
        }
    }

    /// As [`DataSnapshot::size_of`] if that needs nothing to be read; otherwise reads a mebibyte
    /// or two of what must be, for whoever asks next, and answers `None`.
    ///
    /// # Errors
    /// As for [`DataSnapshot::get`].
    pub fn size_or_measure(&self, range: &KeyRange) -> Result<Option<u64>, StorageError> {
        self.inner.sizes.of(self, range)
    }
}
