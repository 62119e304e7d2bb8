//! A group's log in the node's log file, as openraft wants to see it.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use futures::channel::oneshot;
use meridian_storage::{LogMeta, LogStore, StorageError, TabletId};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::types::{Entry, LogId, RaftTypes, Vote};
use crate::codec::{decode, encode, to_io};

/// One group's part of a node's [`LogStore`].
#[derive(Clone, Debug)]
pub(crate) struct GroupLog {
    store: LogStore,
    group: TabletId,
    /// How far the log is committed, if the disk doesn't know it yet.
    committed: Option<Bytes>,
}

impl GroupLog {
    pub(crate) fn new(store: LogStore, group: TabletId) -> Self {
        Self { store, group, committed: None }
    }

    /// Runs one operation of the store and waits until it is durable.
    fn durably(
        &self,
        operation: impl FnOnce(&LogStore, TabletId, meridian_storage::Done),
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let (done, durable) = oneshot::channel();
        operation(
            &self.store,
            self.group,
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        async move {
            match durable.await {
                Ok(result) => result.map_err(to_io),
                Err(oneshot::Canceled) => Err(io::Error::other("the log's writer has stopped")),
            }
        }
    }

    fn meta<T: serde::de::DeserializeOwned>(&self, meta: LogMeta) -> io::Result<Option<T>> {
        match self.store.meta(self.group, meta) {
            Some(bytes) => decode(&bytes).map(Some),
            None => Ok(None),
        }
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> std::ops::Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&index) => index,
        Bound::Excluded(&index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&index) => index.saturating_add(1),
        Bound::Excluded(&index) => index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

/// As much as one message to a follower should carry.
const MAX_READ_BYTES: usize = 1 << 20;

impl RaftLogReader<RaftTypes> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let entries = self.store.entries(self.group, bounds(&range)).map_err(to_io)?;
        entries.iter().map(|(_, bytes)| decode(bytes)).collect()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.meta(LogMeta::Vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let entries = self.store.entries(self.group, start..end).map_err(to_io)?;
        let mut bytes_read = 0;
        let mut decoded = Vec::with_capacity(entries.len());
        for (_, bytes) in &entries {
            // At least one, or replication would stand still.
            if bytes_read >= MAX_READ_BYTES {
                break;
            }
            bytes_read += bytes.len();
            decoded.push(decode(bytes)?);
        }
        Ok(decoded)
    }
}

impl RaftLogStorage<RaftTypes> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<RaftTypes>, io::Error> {
        let last_purged_log_id: Option<LogId> = self.meta(LogMeta::Purged)?;
        let last_log_id = match self.store.bounds(self.group) {
            Some((_, last)) => {
                let entries = self.store.entries(self.group, last..last + 1).map_err(to_io)?;
                let Some((_, bytes)) = entries.first() else {
                    return Err(io::Error::other("the log's last entry is missing"));
                };
                Some(decode::<Entry>(bytes)?.log_id())
            }
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = encode(vote)?;
        self.durably(|store, group, done| store.put_meta(group, LogMeta::Vote, vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // Only a hint for a restart, which may find an older one: nobody waits for it, and it
        // reaches the disk with the next append.
        self.committed = committed.as_ref().map(encode).transpose()?;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.meta(LogMeta::Committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<RaftTypes>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded: Vec<(u64, Bytes)> = Vec::new();
        for entry in entries {
            encoded.push((entry.log_id().index, encode(&entry)?));
        }
        let done = Box::new(move |result: Result<(), StorageError>| {
            callback.io_completed(result.map_err(to_io));
        });
        let committed = self.committed.take().map(|committed| (LogMeta::Committed, committed));
        self.store.append_with(self.group, encoded, committed, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let keep_through = last_log_id.map(|id| id.index);
        self.durably(|store, group, done| store.truncate_after(group, keep_through, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        // The purge point first: a log that starts later than it says has a hole.
        let purged = encode(&log_id)?;
        let noted =
            self.durably(|store, group, done| store.put_meta(group, LogMeta::Purged, purged, done));
        let through = log_id.index;
        let gone = self.durably(|store, group, done| store.purge_through(group, through, done));
        noted.await?;
        gone.await
    }
}
