//! The logs on disk.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use bytes::Bytes;
use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition,
    WriteTransaction,
};

use super::memory::Group;
use super::{Change, LogMeta, Operation};
use crate::error::StorageError;
use crate::ids::TabletId;

/// The name of the file.
pub(crate) const LOG_FILE: &str = "log.redb";

/// (group, index) to entry.
const ENTRIES: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("entries");
/// (group, number of the [`LogMeta`]) to its value.
const META: TableDefinition<(u64, u8), &[u8]> = TableDefinition::new("meta");
/// Group to the highest purged index.
const PURGED: TableDefinition<u64, u64> = TableDefinition::new("purged");

/// Bounds, purge point and metadata of a group.
type GroupParts = (Option<(u64, u64)>, Option<u64>, BTreeMap<LogMeta, Bytes>);

#[derive(Debug)]
pub(super) struct LogFile {
    database: Database,
}

fn failed(error: impl Into<redb::Error>) -> StorageError {
    StorageError::engine(LOG_FILE, error)
}

/// Creates the tables of a new file.
pub(crate) fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(META)?;
    transaction.open_table(PURGED)?;
    transaction.commit()?;
    Ok(())
}

impl LogFile {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// What every group's log holds.
    pub(super) fn load(&self) -> Result<BTreeMap<TabletId, Group>, StorageError> {
        let reader = self.reader()?;
        let mut groups: BTreeMap<TabletId, GroupParts> = BTreeMap::new();
        for (group, bounds) in reader.bounds().map_err(failed)? {
            groups.entry(group).or_default().0 = Some(bounds);
        }
        let purged = reader.0.open_table(PURGED).map_err(failed)?;
        for row in purged.iter().map_err(failed)? {
            let (group, index) = row.map_err(failed)?;
            groups.entry(TabletId::new(group.value())).or_default().1 = Some(index.value());
        }
        let meta = reader.0.open_table(META).map_err(failed)?;
        for row in meta.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let (group, number) = key.value();
            let Some(meta) = LogMeta::from_number(number) else {
                let detail = format!("unknown metadata {number} of group {group}");
                return Err(StorageError::damaged(LOG_FILE, detail));
            };
            let value = Bytes::copy_from_slice(value.value());
            groups.entry(TabletId::new(group)).or_default().2.insert(meta, value);
        }
        let group = |(bounds, purged, meta)| Group::new(bounds, purged, meta);
        Ok(groups.into_iter().map(|(id, parts)| (id, group(parts))).collect())
    }

    /// The file as it is now, for as long as the reader lives.
    pub(super) fn reader(&self) -> Result<LogReader, StorageError> {
        self.database.begin_read().map(LogReader).map_err(failed)
    }

    /// Makes the changes durable, in order, all or none.
    pub(super) fn commit_batch(&self, operations: &[Operation]) -> Result<(), StorageError> {
        self.try_commit(operations).map_err(failed)
    }

    fn try_commit(&self, operations: &[Operation]) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut tables = Tables::open(&transaction)?;
            for operation in operations {
                tables.apply(operation.group.get(), &operation.change)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

struct Tables<'a> {
    entries: Table<'a, (u64, u64), &'static [u8]>,
    meta: Table<'a, (u64, u8), &'static [u8]>,
    purged: Table<'a, u64, u64>,
}

impl<'a> Tables<'a> {
    fn open(transaction: &'a WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            entries: transaction.open_table(ENTRIES)?,
            meta: transaction.open_table(META)?,
            purged: transaction.open_table(PURGED)?,
        })
    }

    fn apply(&mut self, group: u64, change: &Change) -> Result<(), redb::Error> {
        match change {
            Change::Append(entries, with) => {
                for (index, entry) in entries {
                    self.entries.insert((group, *index), &entry[..])?;
                }
                if let Some((meta, value)) = with {
                    self.meta.insert((group, *meta as u8), &value[..])?;
                }
            }
            Change::Truncate(keep_through) => {
                let start = match keep_through {
                    Some(index) => Bound::Excluded((group, *index)),
                    None => Bound::Included((group, 0)),
                };
                self.remove(start, (group, u64::MAX))?;
            }
            Change::Purge(index) => {
                self.remove(Bound::Included((group, 0)), (group, *index))?;
                let before = self.purged.get(group)?.map(|purged| purged.value());
                if before < Some(*index) {
                    self.purged.insert(group, *index)?;
                }
            }
            Change::PutMeta(meta, value) => {
                self.meta.insert((group, *meta as u8), &value[..])?;
            }
            Change::Remove => {
                self.remove(Bound::Included((group, 0)), (group, u64::MAX))?;
                let vote = LogMeta::Vote as u8;
                let all = (group, u8::MIN)..=(group, u8::MAX);
                self.meta.retain_in(all, |(_, meta), _| meta == vote)?;
                self.purged.remove(group)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, start: Bound<(u64, u64)>, last: (u64, u64)) -> Result<(), redb::Error> {
        self.entries.retain_in((start, Bound::Included(last)), |_, _| false)?;
        Ok(())
    }
}

/// The file at one moment.
pub(super) struct LogReader(ReadTransaction);

impl LogReader {
    /// The entries of a range that the file is known to hold.
    pub(super) fn entries(
        &self,
        group: TabletId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let table = self.0.open_table(ENTRIES).map_err(failed)?;
        let id = group.get();
        let rows = table.range((id, range.start)..(id, range.end)).map_err(failed)?;
        let mut entries = Vec::new();
        for (row, expected) in rows.zip(range.clone()) {
            let (key, value) = row.map_err(failed)?;
            if key.value() != (id, expected) {
                break;
            }
            entries.push((expected, Bytes::copy_from_slice(value.value())));
        }
        let missing = range.start + entries.len() as u64;
        if missing < range.end {
            let detail = format!("the log of {group} lacks entry {missing}");
            return Err(StorageError::damaged(LOG_FILE, detail));
        }
        Ok(entries)
    }

    /// Every group's first and last index, by two look-ups for each.
    fn bounds(&self) -> Result<Vec<(TabletId, (u64, u64))>, redb::Error> {
        let table = self.0.open_table(ENTRIES)?;
        let mut found = Vec::new();
        let mut from = Bound::Included((0, 0));
        while let Some((key, _)) = table.lower_bound(from)?.next()? {
            let (group, first) = key.value();
            let end = (group, u64::MAX);
            let last = table.upper_bound(Bound::Included(end))?.prev()?;
            let last = last.map_or(first, |(key, _)| key.value().1);
            found.push((TabletId::new(group), (first, last)));
            from = Bound::Excluded(end);
        }
        Ok(found)
    }
}
