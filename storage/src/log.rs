//! The Raft logs of all of a node's tablets, in one file.
//!
//! One file, because a durable write costs the same whoever it is for: the entries of every group
//! that are waiting go to disk in one commit (see `writer`).
//!
//! A write changes the picture in memory first, and is readable on return: Raft sends an entry to
//! the followers while the leader's own disk is still writing it. What memory holds is each
//! group's bounds and metadata, and its *tail*: entries not yet durable, and before them, as far
//! as a limit for the whole store allows, the most recent ones, since those are what followers
//! read. Older entries are read from the file.
//!
//! ```text
//!            purged      in the file only      in the file and in memory    not yet durable
//! index   ...... 40 | 41 42 43 ......... 90 | 91 92 ................. 99 | 100 101 102
//!                     first                   first of the tail                     last
//! ```
//!
//! # Guarantees
//!
//! - `Done(Ok)` means durable, and everything submitted earlier is durable too, whatever its group.
//! - After a crash a log is what it was after some prefix of the submitted writes, at least all
//!   that were answered `Ok`; never a part of one write.
//! - After a failed write the store refuses everything, reads included: memory may show what the
//!   disk will never hold.
//!
//! # Caveats
//!
//! The queue is not bounded; Raft bounds what it has in flight. Entries are checked to continue
//! their log, because a hole would surface only after a crash.

mod file;
mod memory;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_truetime::Env;
use serde::{Deserialize, Serialize};

use self::file::LogFile;
pub(crate) use self::file::{LOG_FILE, create_tables};
use self::memory::LogMemory;
use crate::error::StorageError;
use crate::ids::TabletId;
use crate::writer::{Done, Sink, Writer};

/// What a group keeps beside its entries; the numbers are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum LogMeta {
    /// The term, and whom the replica voted for.
    Vote = 1,
    /// How far the log is known to be committed.
    Committed = 2,
    /// What Raft wants to know of the last purged entry.
    Purged = 3,
    /// The members of the group.
    Membership = 4,
    /// What Raft wants to know of the last snapshot.
    Snapshot = 5,
}

impl LogMeta {
    const ALL: [Self; 5] =
        [Self::Vote, Self::Committed, Self::Purged, Self::Membership, Self::Snapshot];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|meta| *meta as u8 == number)
    }
}

/// A change of one group's log.
#[derive(Clone, Debug)]
enum Change {
    /// Entries, and metadata that goes with them.
    Append(Vec<(u64, Bytes)>, Option<(LogMeta, Bytes)>),
    Truncate(Option<u64>),
    Purge(u64),
    PutMeta(LogMeta, Bytes),
    Remove,
}

/// A change on its way to the file, numbered in the order of submission.
#[derive(Debug)]
struct Operation {
    sequence: u64,
    group: TabletId,
    change: Change,
}

/// The logs. Clones are handles of the same store.
#[derive(Clone, Debug)]
pub struct LogStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Dropped first: it finishes what is waiting, then gives the file back.
    writer: Writer<Operation>,
    memory: Arc<Mutex<LogMemory>>,
    file: Arc<LogFile>,
}

impl LogStore {
    pub(crate) fn open(
        env: &Env,
        database: redb::Database,
        tail_bytes: usize,
    ) -> Result<Self, StorageError> {
        let file = Arc::new(LogFile::new(database));
        let memory = Arc::new(Mutex::new(LogMemory::new(file.load()?, tail_bytes)));
        let sink = LogSink { file: Arc::clone(&file), memory: Arc::clone(&memory) };
        let writer = Writer::start(env, "log writer", sink)?;
        Ok(Self { shared: Arc::new(Shared { writer, memory, file }) })
    }

    /// Appends entries, which must continue the group's log without a hole. Creates the group if
    /// there is none. No entries: `done` is called when everything submitted before is durable.
    pub fn append(&self, group: TabletId, entries: Vec<(u64, Bytes)>, done: Done) {
        self.append_with(group, entries, None, done);
    }

    /// Appends entries and stores a piece of metadata with them, both or neither.
    pub fn append_with(
        &self,
        group: TabletId,
        entries: Vec<(u64, Bytes)>,
        meta: Option<(LogMeta, Bytes)>,
        done: Done,
    ) {
        self.submit(group, Change::Append(entries, meta), done);
    }

    /// Removes the entries behind `keep_through`, or all of them.
    pub fn truncate_after(&self, group: TabletId, keep_through: Option<u64>, done: Done) {
        self.submit(group, Change::Truncate(keep_through), done);
    }

    /// Removes the entries up to and including `index`, which may lie behind the last, and
    /// remembers it: the log goes on above it.
    pub fn purge_through(&self, group: TabletId, index: u64, done: Done) {
        self.submit(group, Change::Purge(index), done);
    }

    /// Stores a piece of the group's metadata in place of what was there.
    pub fn put_meta(&self, group: TabletId, meta: LogMeta, value: Bytes, done: Done) {
        self.submit(group, Change::PutMeta(meta, value), done);
    }

    /// Removes the group with everything that it keeps, but for its vote: a replica that comes back
    /// must not vote twice in one term.
    pub fn remove_group(&self, group: TabletId, done: Done) {
        self.submit(group, Change::Remove, done);
    }

    /// Those of the entries in `range` that the log has.
    ///
    /// # Errors
    /// When the file can't be read or lacks an entry, or the store has stopped.
    pub fn entries(
        &self,
        group: TabletId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let (older, reader, recent) = {
            let memory = self.memory();
            memory.check()?;
            let (older, recent) = memory.entries(group, range);
            // Begun under the lock: what memory says is in the file can't be removed before.
            let reader = if older.is_empty() { None } else { Some(self.shared.file.reader()?) };
            (older, reader, recent)
        };
        let Some(reader) = reader else { return Ok(recent) };
        let mut entries = reader.entries(group, older)?;
        entries.extend(recent);
        Ok(entries)
    }

    /// The first and the last index of the group's log; `None` if it has no entries.
    #[must_use]
    pub fn bounds(&self, group: TabletId) -> Option<(u64, u64)> {
        self.memory().group(group)?.bounds()
    }

    /// The highest index up to which the group's log was purged.
    #[must_use]
    pub fn purged(&self, group: TabletId) -> Option<u64> {
        self.memory().group(group)?.purged()
    }

    /// A piece of the group's metadata.
    #[must_use]
    pub fn meta(&self, group: TabletId, meta: LogMeta) -> Option<Bytes> {
        self.memory().group(group)?.meta(meta)
    }

    /// The groups, in order.
    #[must_use]
    pub fn groups(&self) -> Vec<TabletId> {
        self.memory().groups()
    }

    fn submit(&self, group: TabletId, change: Change, done: Done) {
        let submitted = {
            let mut memory = self.memory();
            match memory.apply(group, &change) {
                // Handed over under the lock, so that the file gets the changes in memory's order.
                Ok(sequence) => {
                    let operation = Operation { sequence, group, change };
                    match self.shared.writer.submit(operation, done) {
                        None => return,
                        Some(done) => (done, StorageError::Closed),
                    }
                }
                Err(error) => (done, error),
            }
        };
        let (done, error) = submitted;
        done(Err(error));
    }

    fn memory(&self) -> MutexGuard<'_, LogMemory> {
        lock(&self.shared.memory)
    }
}

fn lock(memory: &Mutex<LogMemory>) -> MutexGuard<'_, LogMemory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

struct LogSink {
    file: Arc<LogFile>,
    memory: Arc<Mutex<LogMemory>>,
}

impl Sink for LogSink {
    type Operation = Operation;

    fn weight(operation: &Operation) -> usize {
        match &operation.change {
            Change::Append(entries, _) => entries.iter().map(|(_, entry)| entry.len()).sum(),
            Change::PutMeta(_, value) => value.len(),
            Change::Truncate(_) | Change::Purge(_) | Change::Remove => 0,
        }
    }

    fn commit_batch(&mut self, group: Vec<Operation>) -> Result<(), StorageError> {
        self.file.commit_batch(&group)?;
        if let Some(last) = group.last() {
            lock(&self.memory).durable(last.sequence);
        }
        Ok(())
    }

    fn stop(&mut self, cause: &StorageError) {
        lock(&self.memory).stop(cause);
    }
}
