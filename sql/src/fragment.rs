//! The part of a plan that runs beside its tablet: read key ranges, filter, project, limit.
//!
//! A fragment carries all that its leader needs (the table's description, expressions in
//! DataFusion's own encoding), so a leader runs it without a catalog. The work is done chunk by
//! chunk: read a bounded number of rows from the snapshot, decode the columns that are needed,
//! filter, send. Nothing is held between two chunks but the snapshot and a key to go on from.
//!
//! The ranges may hold rows of tables interleaved with this one. In each directory a table's own
//! rows lie together, so where a row of another table turns up, the reader leaps to the next place
//! where own rows can be: a scan of a root table costs a seek per directory, however many rows lie
//! below its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use datafusion::arrow::array::BooleanArray;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::common::cast::as_boolean_array;
use datafusion::execution::TaskContext;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_proto::bytes::Serializeable;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use meridian_storage::KeyRange;
use meridian_truetime::{Env, Timestamp, Work};
use meridian_txn::{ReadAt, Row, TxnLock};
use serde::{Deserialize, Serialize};

use crate::catalog::TableInfo;
use crate::codec;
use crate::error::SqlError;
use crate::plan::errors::sql_error;
use crate::plan::strip_qualifiers;
use crate::row::{Owned, RowCodec};
use crate::session::panicked;
use crate::tablets::ReadError;

/// The most rows read from the snapshot before a batch is sent or another task may run.
const CHUNK_ROWS: usize = 2_048;
/// The most bytes of rows likewise.
const CHUNK_BYTES: usize = 1 << 20;
/// How many rows are read at once after a leap: most may be another table's again.
const AFTER_LEAP: usize = 16;

/// What is read from one tablet.
#[derive(Clone, Debug)]
pub struct Fragment {
    /// The table.
    pub table: Arc<TableInfo>,
    /// The keys, in order and disjoint.
    pub ranges: Vec<KeyRange>,
    /// The columns to send, by position.
    pub projection: Vec<usize>,
    /// All must be true of a row for it to be sent.
    pub filters: Vec<Expr>,
    /// At most so many rows.
    pub limit: Option<usize>,
    /// From the end of the last range.
    pub reverse: bool,
    /// Which versions.
    pub access: Access,
}

/// Which versions a fragment reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Those of a timestamp.
    At(ReadAt),
    /// The present ones, under locks of a transaction.
    Locked(TxnLock),
    /// Those of a timestamp, at any replica that has them all.
    Stale(Timestamp),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    table: TableInfo,
    ranges: Vec<KeyRange>,
    projection: Vec<u32>,
    filters: Vec<Vec<u8>>,
    limit: Option<u64>,
    reverse: bool,
    access: Access,
}

impl Fragment {
    /// As bytes, for another node.
    ///
    /// # Errors
    /// When an expression has no encoding.
    pub fn encode(&self) -> Result<Vec<u8>, SqlError> {
        let filters: Result<Vec<_>, SqlError> = self
            .filters
            .iter()
            .map(|filter| Ok(filter.to_bytes().map_err(|e| sql_error(&e))?.to_vec()))
            .collect();
        let wire = Wire {
            table: TableInfo::clone(&self.table),
            ranges: self.ranges.clone(),
            projection: self.projection.iter().map(|&p| u32::try_from(p).unwrap_or(0)).collect(),
            filters: filters?,
            limit: self.limit.map(|limit| limit as u64),
            reverse: self.reverse,
            access: self.access,
        };
        postcard::to_stdvec(&wire).map_err(|e| SqlError::internal(e.to_string()))
    }

    /// From another node's bytes; `functions` knows those that the expressions call.
    ///
    /// # Errors
    /// When the bytes are no fragment, or name a function that doesn't exist here.
    pub fn decode(bytes: &[u8], functions: &TaskContext) -> Result<Self, SqlError> {
        let wire: Wire =
            postcard::from_bytes(bytes).map_err(|e| SqlError::internal(e.to_string()))?;
        let filters: Result<Vec<_>, SqlError> = wire
            .filters
            .iter()
            .map(|filter| Expr::from_bytes_with_ctx(filter, functions).map_err(|e| sql_error(&e)))
            .collect();
        let columns = wire.table.columns.len();
        let projection: Vec<usize> = wire.projection.iter().map(|&p| p as usize).collect();
        if projection.iter().any(|&position| position >= columns) {
            return Err(SqlError::internal("a fragment names a column that its table hasn't"));
        }
        Ok(Self {
            table: Arc::new(wire.table),
            ranges: wire.ranges,
            projection,
            filters: filters?,
            limit: wire.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
            reverse: wire.reverse,
            access: wire.access,
        })
    }
}

/// The versions of a tablet's rows as of one timestamp.
pub(crate) trait RowView: Send + Sync {
    /// Rows of the range in order (from its end if `reverse`): at most `rows` of them, and no more
    /// once they have `bytes` together. Whether any are left.
    fn read(
        &self,
        range: &KeyRange,
        reverse: bool,
        rows: usize,
        bytes: usize,
    ) -> Result<(Vec<Row>, bool), SqlError>;
}

/// The first of these rows, as [`RowView::read`] returns them.
pub(crate) fn first_rows(
    all: impl Iterator<Item = Result<Row, SqlError>>,
    rows: usize,
    bytes: usize,
) -> Result<(Vec<Row>, bool), SqlError> {
    let (mut found, mut size) = (Vec::new(), 0);
    for row in all {
        if found.len() == rows || size >= bytes {
            return Ok((found, true));
        }
        let row = row?;
        size += row.key.len() + row.value.len();
        found.push(row);
    }
    Ok((found, false))
}

/// Runs the fragment over the view, a batch at a time, as the stream is polled.
///
/// # Errors
/// When the fragment contradicts itself.
pub(crate) fn run(
    fragment: Fragment,
    view: Arc<dyn RowView>,
    env: Env,
) -> Result<BoxStream<'static, Result<RecordBatch, ReadError>>, SqlError> {
    let run = Run::new(fragment, view)?;
    let batches = stream::try_unfold((run, env), |(mut run, env)| async move {
        while !run.done() {
            let step = std::panic::catch_unwind(AssertUnwindSafe(|| run.step()));
            let (batch, rows) = step.unwrap_or_else(|panic| Err(panicked(&*panic)))?;
            env.work(Work::Read(rows)).await;
            if batch.num_rows() > 0 {
                return Ok(Some((batch, (run, env))));
            }
            tokio::task::yield_now().await;
        }
        Ok(None)
    });
    Ok(batches.boxed())
}

struct Run {
    fragment: Fragment,
    view: Arc<dyn RowView>,
    codec: RowCodec,
    /// The columns that are decoded: those of the projection, then those that only filters need.
    columns: Vec<usize>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    output: SchemaRef,
    left: usize,
    /// Tells own rows from others.
    owned: Owned,
    /// How many rows are read at once.
    window: usize,
}

impl Run {
    fn new(mut fragment: Fragment, view: Arc<dyn RowView>) -> Result<Self, SqlError> {
        let table = &fragment.table;
        let mut columns = fragment.projection.clone();
        let mut filter = None;
        if let Some(condition) = conjunction(fragment.filters.iter().map(strip_qualifiers)) {
            for column in condition.column_refs() {
                let position = table.position(&column.name).ok_or_else(|| {
                    SqlError::internal(format!("a filter names no column: {column}"))
                })?;
                if !columns.contains(&position) {
                    columns.push(position);
                }
            }
            columns[fragment.projection.len()..].sort_unstable();
            let schema = DFSchema::try_from(codec::projected_schema(table, &columns))
                .map_err(|e| sql_error(&e))?;
            let props = ExecutionProps::new();
            let compiled = create_physical_expr(
                &condition,
                &schema,
                &props,
                &PhysicalPlanningContext::default(),
            )
            .map_err(|e| sql_error(&e))?;
            filter = Some(crate::plan::checked::checked(compiled).map_err(|e| sql_error(&e))?);
        }
        let output = codec::projected_schema(table, &fragment.projection);
        let left = fragment.limit.unwrap_or(usize::MAX);
        if !fragment.reverse {
            // Ranges are taken from the back.
            fragment.ranges.reverse();
        }
        let codec = codec::row_codec(&fragment.table)?;
        let (owned, window) = (codec.owned(fragment.reverse), CHUNK_ROWS);
        Ok(Self { fragment, view, codec, columns, filter, output, left, owned, window })
    }

    fn done(&self) -> bool {
        self.left == 0 || self.fragment.ranges.is_empty()
    }

    /// The next chunk: what of it passes, and how many rows were read for it.
    fn step(&mut self) -> Result<(RecordBatch, u64), SqlError> {
        let want = match self.filter {
            None => self.left.min(CHUNK_ROWS),
            Some(_) => CHUNK_ROWS,
        };
        let mut decoder = self.codec.decoder(&self.columns, want.min(256));
        let (mut count, mut size) = (0, 0);
        while decoder.len() < want && count < CHUNK_ROWS && size < CHUNK_BYTES {
            let Some(range) = self.fragment.ranges.last_mut() else {
                break;
            };
            let reverse = self.fragment.reverse;
            let rows = self.window.min(want - decoder.len()).min(CHUNK_ROWS - count);
            let (rows, more) = self.view.read(range, reverse, rows, CHUNK_BYTES - size)?;
            match rows.last() {
                Some(last) if more && reverse => range.end = Some(last.key.clone()),
                Some(last) if more => range.start = [last.key.as_slice(), &[0]].concat(),
                // With it ends the range.
                _ => range.end = Some(range.start.clone()),
            }
            let mut leapt = false;
            for row in &rows {
                size += row.key.len() + row.value.len();
                if self.owned.has(&row.key)? {
                    decoder.push(&row.key, &row.value)?;
                } else {
                    leapt = true;
                }
            }
            count += rows.len();
            self.window = if leapt { AFTER_LEAP } else { self.window.saturating_mul(4) };
            self.owned.leap(range);
            if range.is_empty() {
                self.fragment.ranges.pop();
            }
        }
        let batch = self.finish(decoder.finish()?)?;
        self.left -= batch.num_rows();
        Ok((batch, count as u64))
    }

    fn finish(&self, batch: RecordBatch) -> Result<RecordBatch, SqlError> {
        let arrow = |e| sql_error(&e);
        let mut batch = batch;
        if let Some(filter) = &self.filter {
            let value = filter.evaluate(&batch).map_err(|e| sql_error(&e))?;
            let array = value.into_array(batch.num_rows()).map_err(|e| sql_error(&e))?;
            let keep: &BooleanArray = as_boolean_array(&array).map_err(|e| sql_error(&e))?;
            batch = filter_record_batch(&batch, keep).map_err(|e| arrow(e.into()))?;
        }
        if batch.num_rows() > self.left {
            batch = batch.slice(0, self.left);
        }
        let wanted: Vec<usize> = (0..self.fragment.projection.len()).collect();
        if wanted.len() < self.columns.len() {
            batch = batch.project(&wanted).map_err(|e| arrow(e.into()))?;
        }
        batch.with_schema(Arc::clone(&self.output)).map_err(|e| arrow(e.into()))
    }
}
