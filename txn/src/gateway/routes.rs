//! Which tablets there are: this node's copy of the directory, and what to do where it falls short.

use meridian_replication::TabletDescriptor;
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::Timestamp;

use super::{PATIENCE, PAUSE};
use crate::command::{Mutation, ReadAt, ReadSet, ScanRequest, decode, encode};
use crate::directory::{
    DirectoryRead, DirectoryRow, SYSTEM_TABLET, directory_range, table_of, tablet_counter_key,
};
use crate::error::TxnError;
use crate::node::Node;

impl Node {
    /// The tablets that cover `range`, in the order of their keys. Asks the directory when this
    /// node's copy of it leaves a gap, for as long as there is one: a tablet that was just split off
    /// is entered a moment later.
    ///
    /// # Errors
    /// [`TxnError::NoSuchTablet`] when the table has no tablet at all, or the directory can't be
    /// read.
    pub async fn tablets(&self, range: &KeyRange) -> Result<Vec<TabletDescriptor>, TxnError> {
        let deadline = self.env().moment().plus(PATIENCE);
        let mut pause = PAUSE.0;
        loop {
            if let Some(found) = self.directory().covering(range) {
                return Ok(found);
            }
            self.refresh_directory().await?;
            if let Some(found) = self.directory().covering(range) {
                return Ok(found);
            }
            let gap = TxnError::NoSuchTablet { tablet: TabletId::new(0) };
            if !self.directory().touches(&table_of(range)) {
                return Err(gap);
            }
            self.pause(pause, deadline, gap).await?;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Reads the directory's rows into this node's copy.
    ///
    /// # Errors
    /// When the system tablet can't be read.
    pub async fn refresh_directory(&self) -> Result<(), TxnError> {
        let (_, rows) = self.directory_rows().await?;
        self.directory().learn(rows);
        Ok(())
    }

    /// Reads the directory.
    ///
    /// # Errors
    /// When the system tablet can't be read.
    pub async fn read_directory(&self) -> Result<DirectoryRead, TxnError> {
        let (at, rows) = self.directory_rows().await?;
        let live = |row| match row {
            DirectoryRow::Live(descriptor) => Some(descriptor),
            DirectoryRow::Gone { .. } => None,
        };
        let tablets = rows.into_iter().filter_map(live).collect();
        Ok(DirectoryRead { at, rows: directory_range(), tablets })
    }

    async fn directory_rows(&self) -> Result<(Timestamp, Vec<DirectoryRow>), TxnError> {
        let mut range = directory_range();
        let mut rows = Vec::new();
        let mut at = ReadAt::Strong { min: Timestamp::MIN };
        loop {
            let scan = ScanRequest { range: range.clone(), at, limit: u64::MAX, reverse: false };
            let page = self.scan(SYSTEM_TABLET, scan).await?;
            for row in &page.rows {
                rows.push(DirectoryRow::decode(&row.value)?);
            }
            let Some(last) = page.rows.last().filter(|_| page.more) else {
                return Ok((page.at, rows));
            };
            range.start.clone_from(&last.key);
            range.start.push(0);
            at = ReadAt::Exact(page.at);
        }
    }

    /// Takes a tablet id that was never used.
    ///
    /// # Errors
    /// When the system tablet can't be written.
    pub async fn new_tablet_id(&self) -> Result<TabletId, TxnError> {
        let deadline = self.env().moment().plus(PATIENCE);
        let key = tablet_counter_key();
        let mut pause = PAUSE.0;
        loop {
            let (at, rows) =
                self.get(SYSTEM_TABLET, vec![key.clone()], ReadAt::Unconfirmed).await?;
            let row = rows.into_iter().next().flatten();
            let next = match &row {
                Some(row) => decode::<u64>(&row.value)?,
                None => SYSTEM_TABLET.get() + 1,
            };
            let seen = (key.clone(), row.map(|row| row.ts));
            let reads = ReadSet { at, keys: vec![seen], ranges: Vec::new() };
            let taken = Mutation::Put { key: key.clone(), value: encode(&(next + 1))? };
            match self.write_system(reads, vec![taken]).await {
                Ok(_) => return Ok(TabletId::new(next)),
                // An id that was perhaps taken is lost.
                Err(error @ (TxnError::Conflict | TxnError::Unknown { .. })) => {
                    self.pause(pause, deadline, error).await?;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The one tablet that holds `key`.
    pub(super) async fn tablet_of(&self, key: &[u8]) -> Result<TabletDescriptor, TxnError> {
        let found = self.tablets(&KeyRange::point(key)).await?;
        found.into_iter().next().ok_or(TxnError::NoSuchTablet { tablet: TabletId::new(0) })
    }
}
