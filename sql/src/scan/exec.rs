//! The leaf of a physical plan that reads a table.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{
    AcrossPartitions, ConstExpr, EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr,
    PhysicalSortExpr,
};
use datafusion::physical_plan::coop::cooperative;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::Timestamp;
use meridian_txn::{ReadAt, TabletDescriptor, TxnError, Wait};

use super::own::Own;
use super::provider::locate;
use super::statement::{Reads, StatementContext, Under};
use crate::catalog::TableInfo;
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::fragment::{Access, Fragment};
use crate::tablets::{FragmentRead, ReadError, Tablets, Visit};

/// The ranges of one tablet that a scan reads.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) tablet: TabletDescriptor,
    pub(crate) ranges: Vec<KeyRange>,
}

/// What a scan reads, and how.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    pub(crate) table: Arc<TableInfo>,
    pub(crate) parts: Vec<Part>,
    pub(crate) projection: Vec<usize>,
    pub(crate) filters: Vec<Expr>,
    pub(crate) limit: Option<usize>,
    pub(crate) reverse: bool,
}

/// Reads the parts of a table, in the order of the primary key.
#[derive(Clone, Debug)]
pub(crate) struct ScanExec {
    scan: Scan,
    tablets: Arc<dyn Tablets>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    visits: Visits,
}

/// The tablets that were visited so far, and what it took.
pub(crate) type Visits = Arc<Mutex<Vec<(TabletId, Visit)>>>;

impl ScanExec {
    pub(crate) fn new(scan: Scan, tablets: Arc<dyn Tablets>) -> Self {
        let schema = codec::projected_schema(&scan.table, &scan.projection);
        let mut equivalences = EquivalenceProperties::new(Arc::clone(&schema));
        if let Some(ordering) = LexOrdering::new(ordering(&scan)) {
            equivalences.add_ordering(ordering);
        }
        let constants = scan.projection.iter().enumerate().filter_map(|(place, &position)| {
            let name = &scan.table.columns[position].name;
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, place));
            is_fixed(&scan, name).then(|| ConstExpr::new(column, AcrossPartitions::default()))
        });
        // Fails only for expressions that aren't columns.
        let _ = equivalences.add_constants(constants.collect::<Vec<_>>());
        let properties = PlanProperties::new(
            equivalences,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        let metrics = ExecutionPlanMetricsSet::new();
        let (properties, visits) = (Arc::new(properties), Visits::default());
        Self { scan, tablets, schema, properties, metrics, visits }
    }

    pub(crate) fn visits(&self) -> Vec<(TabletId, Visit)> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn scan(&self) -> &Scan {
        &self.scan
    }

    fn with_scan(&self, change: impl FnOnce(&mut Scan)) -> Self {
        let mut scan = self.scan.clone();
        change(&mut scan);
        Self::new(scan, Arc::clone(&self.tablets))
    }
}

/// The order of the rows: by the key's columns, as far as they are all in the projection. A column
/// whose encoded order isn't Arrow's ends it.
fn ordering(scan: &Scan) -> Vec<PhysicalSortExpr> {
    let options = SortOptions { descending: scan.reverse, nulls_first: scan.reverse };
    let mut ordering = Vec::new();
    for &position in &scan.table.primary_key {
        let column = &scan.table.columns[position];
        let fixed = is_fixed(scan, &column.name);
        let Some(place) = scan.projection.iter().position(|&p| p == position) else {
            // Where all rows have the same value, the order is that of the columns behind.
            if fixed {
                continue;
            }
            break;
        };
        if matches!(column.pg_type.arrow_type(), DataType::Interval(_)) {
            break;
        }
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(&column.name, place));
        ordering.push(PhysicalSortExpr::new(column, options));
    }
    ordering
}

/// Whether the filters let only one value of the column pass.
fn is_fixed(scan: &Scan, name: &str) -> bool {
    let fixes = |filter: &Expr| match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            matches!((left.as_ref(), right.as_ref()),
                (Expr::Column(c), Expr::Literal(..)) | (Expr::Literal(..), Expr::Column(c))
                    if c.name == name)
        }
        _ => false,
    };
    scan.filters.iter().flat_map(split_conjunction).any(fixes)
}

/// How many parts are opened at once. Each leader then filters its rows and sends what its stream
/// has room for, while the rows before them are being read.
const AT_ONCE: usize = 16;

/// How often a part whose tablet has changed is looked for again.
const ATTEMPTS: u32 = 20;

pub(crate) type Batches = BoxStream<'static, Result<datafusion::arrow::record_batch::RecordBatch>>;

/// Opens the parts, several at once unless a limit may make most of them needless; their rows come
/// in the order of the parts.
pub(crate) fn read(
    scan: Scan,
    tablets: Arc<dyn Tablets>,
    statement: Arc<StatementContext>,
    visits: Visits,
) -> Batches {
    let mut parts = scan.parts.clone();
    if scan.reverse {
        parts.reverse();
    }
    let limit = scan.limit;
    let at_once = if limit.is_some() { 1 } else { AT_ONCE };
    let scan = Arc::new(scan);
    let opened = futures::stream::iter(parts).map(move |part| {
        let (scan, tablets) = (Arc::clone(&scan), Arc::clone(&tablets));
        open(scan, part, tablets, Arc::clone(&statement), Arc::clone(&visits))
    });
    let batches = opened.buffered(at_once).try_flatten();
    match limit {
        None => batches.boxed(),
        Some(limit) => limited(batches.boxed(), limit),
    }
}

/// Opens a part wherever its keys are by now: its tablet may have been split or merged since the
/// statement was planned.
async fn open(
    scan: Arc<Scan>,
    part: Part,
    tablets: Arc<dyn Tablets>,
    statement: Arc<StatementContext>,
    visits: Visits,
) -> Result<Batches> {
    let mut reads = statement.reads().clone();
    let mut waiting = VecDeque::from([part]);
    let mut opened: Vec<Batches> = Vec::new();
    let mut attempts = 0;
    while let Some(part) = waiting.pop_front() {
        let read = match open_in(&scan, &part, tablets.as_ref(), &reads).await {
            Ok(read) => read,
            Err(ReadError::Txn(TxnError::Moved { .. } | TxnError::NoSuchTablet { .. }))
                if attempts < ATTEMPTS =>
            {
                attempts += 1;
                let located = locate(tablets.as_ref(), part.ranges).await;
                let mut parts = located.map_err(|error| external(ReadError::Txn(error)))?;
                if let Reads::At(ReadAt::Strong { min }) = reads
                    && parts.len() > 1
                {
                    // One leader can't pick the timestamp for another. Nothing was read so far: a
                    // statement that leaves it to a leader has one part.
                    reads = Reads::At(ReadAt::Exact(tablets.now().latest.max(min)));
                }
                if scan.reverse {
                    parts.reverse();
                }
                for part in parts.into_iter().rev() {
                    waiting.push_front(part);
                }
                continue;
            }
            Err(error) => return Err(external(error)),
        };
        statement.saw(read.at);
        let visit = (part.tablet.id, read.visit);
        visits.lock().unwrap_or_else(PoisonError::into_inner).push(visit);
        opened.push(read.batches.map_err(external).boxed());
    }
    Ok(futures::stream::iter(opened).flatten().boxed())
}

/// Opens a part in its tablet.
async fn open_in(
    scan: &Scan,
    part: &Part,
    tablets: &dyn Tablets,
    reads: &Reads,
) -> std::result::Result<FragmentRead, ReadError> {
    let mut fragment = Fragment {
        table: Arc::clone(&scan.table),
        ranges: part.ranges.clone(),
        projection: scan.projection.clone(),
        filters: scan.filters.clone(),
        limit: scan.limit,
        reverse: scan.reverse,
        access: Access::At(ReadAt::Exact(Timestamp::MIN)),
    };
    let tablet = part.tablet.id;
    let Under { txn, modes, wait, own, only } = match reads {
        Reads::At(at) => {
            fragment.access = Access::At(*at);
            return tablets.fragment(tablet, fragment).await;
        }
        Reads::Stale(at) => {
            fragment.access = Access::Stale(*at);
            return tablets.fragment_near(tablet, fragment).await;
        }
        Reads::Under(under) => under,
    };
    let table = &scan.table;
    if let Some((_, keys)) = only.as_ref().filter(|(of, _)| *of == table.id) {
        fragment.ranges = points(&part.ranges, keys);
        if fragment.ranges.is_empty() {
            let node = tablets.leader(&part.tablet);
            let visit = Visit { node, round_trips: 0, lock_wait: Duration::ZERO };
            let batches = futures::stream::empty().boxed();
            return Ok(FragmentRead { at: Timestamp::MIN, hold: None, visit, batches });
        }
    }
    txn.planned_under(table.id, table.version)?;
    let own = Own::over(&mut fragment, own, tablets.env()).await?;
    let read = txn.fragment(tablet, fragment, modes.of(table.id), *wait).await;
    let read = read.map_err(|error| match error {
        ReadError::Txn(TxnError::Locked) if *wait == Wait::For(Duration::ZERO) => {
            let message = format!("could not obtain lock on row in relation \"{}\"", table.name);
            SqlError::new(SqlState::LOCK_NOT_AVAILABLE, message).into()
        }
        error => error,
    })?;
    Ok(match own {
        None => read,
        Some(own) => {
            let FragmentRead { at, hold, visit, batches } = read;
            FragmentRead { at, hold, visit, batches: own.lay(batches) }
        }
    })
}

/// The keys that lie in these ranges.
fn points(ranges: &[KeyRange], keys: &BTreeSet<Vec<u8>>) -> Vec<KeyRange> {
    let inside = |key: &&Vec<u8>| ranges.iter().any(|range| range.contains(key));
    keys.iter().filter(inside).map(|key| KeyRange::point(key.clone())).collect()
}

fn limited(
    batches: BoxStream<'static, Result<datafusion::arrow::record_batch::RecordBatch>>,
    limit: usize,
) -> BoxStream<'static, Result<datafusion::arrow::record_batch::RecordBatch>> {
    futures::stream::try_unfold((batches, limit), |(mut batches, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(batch) = batches.try_next().await? else {
            return Ok(None);
        };
        let batch = if batch.num_rows() > left { batch.slice(0, left) } else { batch };
        let left = left - batch.num_rows();
        Ok(Some((batch, (batches, left))))
    })
    .boxed()
}

/// Carries an error through DataFusion; [`sql_error`](crate::plan::errors) finds it again.
pub(crate) fn external(error: ReadError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::explain::scan_line(&self.scan, f)
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &'static str {
        "TabletScan"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let statement = context.session_config().get_extension::<StatementContext>();
        let Some(statement) = statement else {
            return datafusion::common::internal_err!("a scan outside of a statement");
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let batches =
            read(self.scan.clone(), Arc::clone(&self.tablets), statement, Arc::clone(&self.visits));
        let env = Arc::clone(self.tablets.env());
        let mut last = env.moment();
        let ended = futures::stream::once(futures::future::ready(None));
        let counted = batches.map(Some).chain(ended).filter_map(move |batch| {
            let now = env.moment();
            metrics.elapsed_compute().add_duration(now.since(std::mem::replace(&mut last, now)));
            if let Some(Ok(batch)) = &batch {
                metrics.record_output(batch.num_rows());
            }
            futures::future::ready(batch)
        });
        let stream = RecordBatchStreamAdapter::new(Arc::clone(&self.schema), counted);
        Ok(Box::pin(cooperative(stream)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn supports_limit_pushdown(&self) -> bool {
        false
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(self.with_scan(|scan| scan.limit = limit)))
    }

    fn fetch(&self) -> Option<usize> {
        self.scan.limit
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
    ) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        // The limit of a scan is a limit of its order, so it can't be turned round under one.
        if self.scan.limit.is_some() {
            return Ok(SortOrderPushdownResult::Unsupported);
        }
        for reverse in [self.scan.reverse, !self.scan.reverse] {
            let candidate = self.with_scan(|scan| scan.reverse = reverse);
            if candidate.properties.eq_properties.ordering_satisfy(order.iter().cloned())? {
                return Ok(SortOrderPushdownResult::Exact { inner: Arc::new(candidate) });
            }
        }
        Ok(SortOrderPushdownResult::Unsupported)
    }
}
