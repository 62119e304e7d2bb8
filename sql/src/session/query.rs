//! Running queries, and the reading parts of writes.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::sql::sqlparser::ast;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use meridian_storage::TabletId;
use meridian_truetime::Timestamp;
use meridian_txn::{CommitProtocol, ReadAt, TxnError, Wait};

use super::locking::Locking;
use super::skip_locked;
use super::staleness::ReadStaleness;
use super::{
    ColumnDescription, Outcome, Parameters, Session, catalog_may_lag, computing, panicked,
};
use crate::error::{SqlError, SqlState};
use crate::meridian_schema;
use crate::pg_catalog;
use crate::plan::cache::{CachedPlan, PlanKey};
use crate::plan::dialect;
use crate::plan::errors::{sql_error, txn_cause, txn_error};
use crate::plan::names::name_columns;
use crate::plan::planner::Scope;
use crate::scan::{Modes, Reads, ScanExec, StatementContext, TabletTable, Under};

/// How often a query is planned again because the catalog or the directory had moved on.
const ATTEMPTS: usize = 4;

/// Runs a query. With its text, its plan is kept for the next time.
pub(super) async fn select(
    session: &Session,
    sql: Option<Arc<str>>,
    query: &ast::Query,
    parameters: &Parameters,
    as_of: Option<Timestamp>,
) -> Result<Outcome, SqlError> {
    let mut attempt = 1;
    loop {
        let catalog = session.engine.catalog.snapshot().version;
        let error = match try_select(session, sql.clone(), query, parameters, as_of).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        if attempt == ATTEMPTS {
            return Err(error.sql);
        }
        attempt += 1;
        match error.staleness {
            Staleness::No => return Err(error.sql),
            Staleness::Possible => {
                if !session.refresh_if_older(catalog).await? {
                    return Err(error.sql);
                }
            }
            Staleness::Certain => {
                session.engine.catalog.refresh().await?;
            }
        }
    }
}

/// An error, and whether it may be gone after reading the catalog again.
pub(crate) struct QueryError {
    pub(crate) sql: SqlError,
    pub(crate) staleness: Staleness,
}

/// Whether an error comes from a catalog that lags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Staleness {
    No,
    /// If the catalog does lag.
    Possible,
    Certain,
}

impl From<SqlError> for QueryError {
    fn from(sql: SqlError) -> Self {
        let possible = catalog_may_lag(&sql);
        let staleness = if possible { Staleness::Possible } else { Staleness::No };
        Self { sql, staleness }
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        match txn_cause(&error) {
            Some(cause) => cause.clone().into(),
            None => sql_error(&error).into(),
        }
    }
}

impl From<TxnError> for QueryError {
    fn from(error: TxnError) -> Self {
        let old = matches!(error, TxnError::NoSuchTablet { .. } | TxnError::SchemaChanged { .. });
        let staleness = if old { Staleness::Certain } else { Staleness::No };
        Self { sql: txn_error(&error), staleness }
    }
}

async fn try_select(
    session: &Session,
    sql: Option<Arc<str>>,
    query: &ast::Query,
    parameters: &Parameters,
    as_of: Option<Timestamp>,
) -> Result<Outcome, QueryError> {
    let mut scope = session.scope();
    let locking = Locking::of(session, &scope, query)?;
    let query = &locking.query;
    let mut planned = plan(session, &scope, sql.clone(), query, parameters)?;
    if shows_catalog(&planned)? {
        // What is shown has to be there for every gateway, also what another has just created.
        let fresh = session.engine.catalog.refresh().await?;
        if fresh.version != scope.snapshot.version {
            scope = session.scope();
            planned = plan(session, &scope, sql, query, parameters)?;
        }
    }
    let plan = planned;
    let columns = ColumnDescription::of_schema(plan.schema());
    let physical = physical_plan(&scope, &plan).await?;
    let statement = match &locking.skipping {
        None => session.reading(physical.as_ref(), locking.modes, locking.wait, as_of).await?,
        Some(skipping) => {
            // Alone, it holds its locks until its rows are read.
            let txn = session.block_txn().cloned().unwrap_or_else(|| session.begin_alone(None));
            let keys =
                skip_locked::lock(session, &scope, query, parameters, skipping, &txn).await?;
            let under = Under::new(&txn, locking.modes, locking.wait).only(&skipping.table, keys);
            let reads = Reads::Under(under);
            Arc::new(StatementContext::new(reads, session.high_water.clone()))
        }
    };
    let mut batches = start(session, &scope, physical, statement)?;
    // With the first batch the query is on its way; until then it can begin again.
    let first = batches.try_next().await?;
    let rest = futures::stream::iter(first.map(Ok)).chain(batches);
    let rest = AssertUnwindSafe(rest.map_err(|e: DataFusionError| sql_error(&e))).catch_unwind();
    let batches = rest.map(|batch| batch.unwrap_or_else(|panic| Err(panicked(&*panic)))).boxed();
    Ok(Outcome::Rows { columns, batches, tag: "SELECT", counted: true })
}

/// A query's optimized plan with its parameters in place.
pub(crate) fn plan(
    session: &Session,
    scope: &Scope,
    sql: Option<Arc<str>>,
    query: &ast::Query,
    parameters: &Parameters,
) -> Result<LogicalPlan, SqlError> {
    let CachedPlan { plan, optimized } =
        template(session, scope, sql, query, &parameters.fields())?;
    let plan = bind(LogicalPlan::clone(&plan), &parameters.values)?;
    if optimized { Ok(plan) } else { scope.optimize(&plan) }
}

/// A query's plan with placeholders. With the statement's text it is kept for the next time.
pub(super) fn template(
    session: &Session,
    scope: &Scope,
    sql: Option<Arc<str>>,
    query: &ast::Query,
    fields: &[Option<FieldRef>],
) -> Result<CachedPlan, SqlError> {
    let key = sql.map(|sql| PlanKey {
        sql,
        context: format!(
            "{fields:?} {:?} {} {}",
            scope.search_path,
            session.settings.time_zone(),
            session.database
        ),
        catalog: scope.snapshot.version,
    });
    if let Some(cached) = key.as_ref().and_then(|key| session.engine.plans.get(key)) {
        return Ok(cached);
    }
    let plan = scope.plan_query(rewritten(query)?, fields)?;
    // What the optimizer would replace by its value must be optimized at each execution.
    let optimized = !calls_stable(&plan)?;
    let plan = Arc::new(if optimized { scope.optimize(&plan)? } else { plan });
    let made = CachedPlan { plan, optimized };
    if let Some(key) = key
        && sharable(session, &made.plan)?
    {
        session.engine.plans.put(key, made.clone());
    }
    Ok(made)
}

/// The query as DataFusion understands it.
pub(crate) fn rewritten(query: &ast::Query) -> Result<ast::Query, SqlError> {
    let mut query = query.clone();
    // Whoever runs it sees to them.
    query.locks.clear();
    name_columns(&mut query);
    dialect::rewrite(&mut query);
    pg_catalog::rewrite_query(&mut query)?;
    Ok(query)
}

/// Puts the parameters' values in place.
pub(crate) fn bind(plan: LogicalPlan, values: &[ScalarValue]) -> Result<LogicalPlan, SqlError> {
    if values.is_empty() {
        return Ok(plan);
    }
    let values = ParamValues::from(values.to_vec());
    plan.replace_params_with_values(&values).map_err(|e| sql_error(&e))
}

/// Whether the plan calls functions whose value is the statement's.
fn calls_stable(plan: &LogicalPlan) -> Result<bool, SqlError> {
    let is_stable = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Stable,
        _ => false,
    };
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found |= expr.exists(|e| Ok(is_stable(e)))?;
            Ok(TreeNodeRecursion::Continue)
        })
    })
    .map_err(|e| sql_error(&e))?;
    Ok(found)
}

/// Whether the plan reads relations that are made of the catalog: those that no tablet holds, but
/// for views of the cluster, which are there to be looked at when no tablet can be read.
fn shows_catalog(plan: &LogicalPlan) -> Result<bool, SqlError> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found |= tablet_table(&scan.source).is_none()
                && !meridian_schema::shows_the_cluster(&scan.source);
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })
    .map_err(|e| sql_error(&e))?;
    Ok(found)
}

/// Whether other sessions may use the plan: it reads tables only, with functions that all have.
fn sharable(session: &Session, plan: &LogicalPlan) -> Result<bool, SqlError> {
    let mut sharable = true;
    let functions = session.engine.base.scalar_functions();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            sharable &= tablet_table(&scan.source).is_some();
        }
        node.apply_expressions(|expr| {
            sharable &= !expr.exists(|e| {
                Ok(match e {
                    Expr::ScalarFunction(call) => {
                        functions.get(call.func.name()).is_none_or(|known| known != &call.func)
                    }
                    _ => false,
                })
            })?;
            Ok(TreeNodeRecursion::Continue)
        })
    })
    .map_err(|e| sql_error(&e))?;
    Ok(sharable)
}

/// The table behind a scan, if tablets hold it.
pub(crate) fn tablet_table(
    source: &Arc<dyn datafusion::logical_expr::TableSource>,
) -> Option<Arc<crate::catalog::TableInfo>> {
    let provider = datafusion::datasource::source_as_provider(source).ok()?;
    provider.downcast_ref::<TabletTable>().map(|table| Arc::clone(table.table()))
}

pub(crate) async fn physical_plan(
    scope: &Scope,
    plan: &LogicalPlan,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    scope.state.query_planner().create_physical_plan(plan, &scope.state).await
}

impl Session {
    /// How the scans of a query read: in a transaction, or at a timestamp.
    pub(crate) async fn reading(
        &self,
        plan: &dyn ExecutionPlan,
        modes: Modes,
        wait: Wait,
        as_of: Option<Timestamp>,
    ) -> Result<Arc<StatementContext>, TxnError> {
        let reads = match (self.block_txn(), self.block_reads(), as_of) {
            (Some(txn), ..) => Reads::Under(Under::new(txn, modes, wait)),
            (None, Some(reads), _) => reads,
            (None, None, Some(at)) => Reads::Stale(at),
            (None, None, None) => self.lone_reads(plan).await?,
        };
        Ok(Arc::new(StatementContext::new(reads, self.high_water.clone())))
    }

    /// The timestamp of a strong read of several tablets: what was acknowledged before lies below it,
    /// or, without commit wait, where clocks agree.
    pub(super) fn strong(&self) -> Timestamp {
        let now = self.engine.tablets.now();
        match self.settings.protocol() {
            CommitProtocol::CommitWait => now.latest,
            CommitProtocol::TwoPhase => now.middle(),
        }
    }

    /// How a query alone reads.
    async fn lone_reads(&self, plan: &dyn ExecutionPlan) -> Result<Reads, TxnError> {
        let tablets = &self.engine.tablets;
        let now = tablets.now().earliest;
        Ok(match self.settings.read_staleness() {
            ReadStaleness::Strong => Reads::At(read_at(self, plan)),
            ReadStaleness::Exact(by) => Reads::Stale(now.minus(by)),
            ReadStaleness::Max(by) => {
                let mut read = Vec::new();
                survey(plan, &mut read, &mut false);
                let safe = tablets.safe_time_near(&read).await?.min(now.prev());
                let at = safe.max(now.minus(by)).max(self.high_water.get());
                self.high_water.raise(at);
                Reads::Stale(at)
            }
        })
    }
}

/// A lone scan of one tablet leaves the timestamp to its leader; else all scans read at one that
/// is chosen here.
pub(super) fn read_at(session: &Session, plan: &dyn ExecutionPlan) -> ReadAt {
    let (mut read, mut repeats) = (Vec::new(), false);
    survey(plan, &mut read, &mut repeats);
    let min = session.high_water.get();
    if read.len() <= 1 && !repeats {
        ReadAt::Strong { min }
    } else {
        ReadAt::Exact(session.strong().max(min))
    }
}

/// The tablets that are read, one by one.
fn survey(plan: &dyn ExecutionPlan, read: &mut Vec<TabletId>, repeats: &mut bool) {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        read.extend(scan.scan().parts.iter().map(|part| part.tablet.id));
    }
    *repeats |= plan.is::<RecursiveQueryExec>();
    for child in plan.children() {
        survey(child.as_ref(), read, repeats);
    }
}

pub(crate) fn start(
    session: &Session,
    scope: &Scope,
    physical: Arc<dyn ExecutionPlan>,
    statement: Arc<StatementContext>,
) -> Result<BoxStream<'static, Result<RecordBatch, DataFusionError>>, DataFusionError> {
    let config = scope.state.config().clone().with_extension(statement);
    let context = TaskContext::default()
        .with_session_config(config)
        .with_runtime(Arc::clone(&session.engine.runtime));
    let batches = execute_stream(Arc::clone(&physical), Arc::new(context))?;
    let long = computes(physical.as_ref());
    Ok(if long {
        computing::stream(session.engine.tablets.env(), batches)
    } else {
        batches.boxed()
    })
}

/// Whether a plan does more than to pass on rows as they come, and so may compute for long before
/// its next batch.
fn computes(plan: &dyn ExecutionPlan) -> bool {
    let passes_on = plan.is::<ScanExec>()
        || plan.is::<FilterExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<GlobalLimitExec>()
        || plan.is::<LocalLimitExec>()
        || plan.is::<PlaceholderRowExec>()
        || plan.is::<EmptyExec>();
    !passes_on || plan.children().into_iter().any(|child| computes(child.as_ref()))
}

/// The rows that a write is computed from.
pub(crate) struct Reading {
    pub(crate) batches: Vec<RecordBatch>,
}

impl Reading {
    /// Runs the reading part of a write to completion, holding at most `limit` bytes.
    pub(crate) async fn run(
        session: &Session,
        scope: &Scope,
        plan: &LogicalPlan,
        under: Under,
        limit: usize,
    ) -> Result<Self, QueryError> {
        let physical = physical_plan(scope, plan).await?;
        let high_water = session.high_water.clone();
        let statement = Arc::new(StatementContext::new(Reads::Under(under), high_water));
        let mut stream = start(session, scope, physical, statement)?;
        let (mut batches, mut size) = (Vec::new(), 0);
        while let Some(batch) = stream.try_next().await? {
            size += batch.get_array_memory_size();
            if size > limit {
                let message = "the statement reads more than it may write at once";
                return Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
                    .hint("Split the statement into several.")
                    .into());
            }
            batches.push(batch);
        }
        Ok(Self { batches })
    }
}
