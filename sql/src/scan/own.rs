//! What a transaction has written itself, laid over what it reads from a tablet.
//!
//! The tablet's leader knows nothing of a transaction's changes before the commit. So where a scan
//! meets some, the gateway runs the same fragment over them (the same filters, the same code), asks
//! the leader for the key's columns too, and merges both by the key: a key that the transaction has
//! changed is taken from its changes, or left out. Elsewhere nothing of this happens.

use std::cmp::Ordering;
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::record_batch::RecordBatch;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use meridian_storage::KeyRange;
use meridian_truetime::Env;
use meridian_txn::{Changes, Row, changes_within, row_of};

use crate::codec;
use crate::error::SqlError;
use crate::fragment::{self, Fragment, RowView, first_rows};
use crate::plan::errors::sql_error;
use crate::row::RowCodec;
use crate::tablets::ReadError;

type Batches = BoxStream<'static, Result<RecordBatch, ReadError>>;

/// The changes of a transaction as rows.
struct OwnView(Arc<Changes>);

impl RowView for OwnView {
    fn read(
        &self,
        range: &KeyRange,
        reverse: bool,
        rows: usize,
        bytes: usize,
    ) -> Result<(Vec<Row>, bool), SqlError> {
        let own = changes_within(&self.0, range).filter_map(|(_, change)| row_of(change));
        // The keys of a range can't be walked backwards without knowing where it ends.
        if reverse {
            let own: Vec<Row> = own.collect();
            return first_rows(own.into_iter().rev().map(Ok), rows, bytes);
        }
        first_rows(own.map(Ok), rows, bytes)
    }
}

/// The changes that a fragment meets, and what it takes to lay them over its rows.
pub(super) struct Own {
    changes: Arc<Changes>,
    codec: RowCodec,
    reverse: bool,
    /// How many columns were asked for; behind them are those that only the key needs.
    columns: usize,
    /// Where the key's columns are.
    key: Vec<usize>,
    /// The transaction's own rows that pass the filters, with their keys, in the order of the scan,
    /// the next one last.
    rows: Vec<(Vec<u8>, RecordBatch)>,
}

impl Own {
    /// Makes a fragment one that own changes can be laid over, if it meets any.
    pub(super) async fn over(
        fragment: &mut Fragment,
        changes: &Arc<Changes>,
        env: &Env,
    ) -> Result<Option<Self>, ReadError> {
        let met: usize =
            fragment.ranges.iter().map(|range| changes_within(changes, range).count()).sum();
        if met == 0 {
            return Ok(None);
        }
        let codec = codec::row_codec(&fragment.table)?;
        let columns = fragment.projection.len();
        let mut key = Vec::new();
        for position in &fragment.table.primary_key {
            let place = fragment.projection.iter().position(|column| column == position);
            key.push(place.unwrap_or(fragment.projection.len()));
            if place.is_none() {
                fragment.projection.push(*position);
            }
        }
        // As many of the leader's rows may be gone.
        fragment.limit = fragment.limit.map(|limit| limit.saturating_add(met));
        let reverse = fragment.reverse;
        let view = Arc::new(OwnView(Arc::clone(changes)));
        let own = Fragment { limit: None, ..fragment.clone() };
        let mut batches = fragment::run(own, view, Arc::clone(env))?;
        let changes = Arc::clone(changes);
        let mut this = Self { changes, codec, reverse, columns, key, rows: Vec::new() };
        while let Some(batch) = batches.try_next().await? {
            let keys = this.keys_of(&batch)?;
            let rows = keys.into_iter().enumerate();
            this.rows.extend(rows.map(|(row, key)| (key, batch.slice(row, 1))));
        }
        this.rows.reverse();
        Ok(Some(this))
    }

    fn keys_of(&self, batch: &RecordBatch) -> Result<Vec<Vec<u8>>, SqlError> {
        let columns: Vec<ArrayRef> =
            self.key.iter().map(|place| Arc::clone(batch.column(*place))).collect();
        self.codec.keys_of(&columns)
    }

    /// Lays the changes over the batches of the leader.
    pub(super) fn lay(self, batches: Batches) -> Batches {
        let state = Some((self, batches));
        let laid = stream::try_unfold(state, |state| async move {
            let Some((mut own, mut batches)) = state else { return Ok(None) };
            match batches.try_next().await? {
                Some(batch) => {
                    let batch = own.merge(&batch)?;
                    Ok::<_, ReadError>(Some((batch, Some((own, batches)))))
                }
                None => Ok(own.rest()?.map(|batch| (batch, None))),
            }
        });
        laid.boxed()
    }

    fn merge(&mut self, batch: &RecordBatch) -> Result<RecordBatch, SqlError> {
        let mut pieces = Vec::new();
        // The leader's rows from here on are still to be taken.
        let mut from = 0;
        for (row, key) in self.keys_of(batch)?.into_iter().enumerate() {
            let comes_first = |own: &(Vec<u8>, RecordBatch)| {
                let order = own.0.cmp(&key);
                order == if self.reverse { Ordering::Greater } else { Ordering::Less }
            };
            while self.rows.last().is_some_and(comes_first) {
                pieces.push(batch.slice(from, row - from));
                from = row;
                pieces.extend(self.rows.pop().map(|(_, own)| own));
            }
            if self.changes.contains_key(&key) {
                pieces.push(batch.slice(from, row - from));
                from = row + 1;
            }
        }
        if pieces.is_empty() {
            return self.shown(batch);
        }
        pieces.push(batch.slice(from, batch.num_rows() - from));
        self.joined(batch, &pieces)
    }

    /// Own rows behind the leader's last.
    fn rest(&mut self) -> Result<Option<RecordBatch>, SqlError> {
        let pieces: Vec<_> =
            std::mem::take(&mut self.rows).into_iter().rev().map(|(_, own)| own).collect();
        pieces.first().map(|first| self.joined(first, &pieces)).transpose()
    }

    fn joined(&self, like: &RecordBatch, pieces: &[RecordBatch]) -> Result<RecordBatch, SqlError> {
        let batch = concat_batches(like.schema_ref(), pieces).map_err(|e| sql_error(&e.into()))?;
        self.shown(&batch)
    }

    /// Without the columns that only the key needed.
    fn shown(&self, batch: &RecordBatch) -> Result<RecordBatch, SqlError> {
        let columns: Vec<usize> = (0..self.columns).collect();
        batch.project(&columns).map_err(|e| sql_error(&e.into()))
    }
}
