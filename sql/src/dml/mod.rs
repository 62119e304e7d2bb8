//! INSERT, UPDATE and DELETE: a reading part that DataFusion runs, and mutations of our own.
//!
//! The reading part asks the tablet's leader for what it has, unconfirmed. The mutations computed
//! from it go to the same tablet in one request, with the ranges that were read; the tablet applies
//! all of them, or none if anything in those ranges changed in between. Then the whole statement is
//! run again. So a statement is atomic and serializable without locks, as long as it keeps to one
//! tablet; one that doesn't is refused before anything is written. Where tables are interleaved,
//! the rows above and below those that change belong to what is read (`interleave`).

mod insert;
mod interleave;
mod target;
mod update;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::sqlparser::ast;
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::EnvironmentExt;
use meridian_txn::{Mutation, ReadSet, TxnError, WriteRequest};

pub(crate) use insert::infer as infer_insert;
pub(crate) use update::{infer_delete, infer_update};

use crate::catalog::{ColumnInfo, TableInfo};
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::plan::errors::{sql_error, txn_error};
use crate::plan::planner::Scope;
use crate::row::RowCodec;
use crate::scan::Scanned;
use crate::session::{Outcome, Parameters, QueryError, Session, Staleness, tablet_table};
use crate::types::SessionFormat;

/// How long a statement is run again and again because others came first.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause before it is, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));
/// The largest statement: `meridian.max_transaction_size`.
const MAX_BYTES: usize = 256 << 20;

/// A statement that writes.
enum Dml<'a> {
    Insert(&'a ast::Insert),
    Update(&'a ast::Update),
    Delete(&'a ast::Delete),
}

pub(crate) async fn insert(
    session: &Session,
    insert: &ast::Insert,
    parameters: &Parameters,
) -> Result<Outcome, SqlError> {
    run(session, &Dml::Insert(insert), parameters).await
}

pub(crate) async fn update(
    session: &Session,
    update: &ast::Update,
    parameters: &Parameters,
) -> Result<Outcome, SqlError> {
    run(session, &Dml::Update(update), parameters).await
}

pub(crate) async fn delete(
    session: &Session,
    delete: &ast::Delete,
    parameters: &Parameters,
) -> Result<Outcome, SqlError> {
    run(session, &Dml::Delete(delete), parameters).await
}

/// What a statement is about to write.
struct Write {
    table: Arc<TableInfo>,
    changes: Changes,
    scanned: Vec<Scanned>,
    /// Rows, as the command tag counts them.
    count: u64,
}

async fn run(
    session: &Session,
    statement: &Dml<'_>,
    parameters: &Parameters,
) -> Result<Outcome, SqlError> {
    let env = session.engine().tablets.env();
    let deadline = env.moment().plus(PATIENCE);
    let mut pause = PAUSE.0;
    loop {
        let catalog = session.engine().catalog.snapshot().version;
        let error = match attempt(session, statement, parameters).await {
            Ok(count) => return Ok(Outcome::Done { tag: statement.tag(count) }),
            Err(error) => error,
        };
        let sql = match error {
            Failure::Final(error) => return Err(error),
            Failure::Suspect(error) => {
                // Only a newer catalog could make a difference.
                if !session.refresh_if_older(catalog).await? {
                    return Err(error);
                }
                continue;
            }
            Failure::Stale(error) => {
                session.engine().catalog.refresh().await?;
                error
            }
            Failure::Conflict => txn_error(&TxnError::Conflict),
        };
        if env.moment().plus(pause) > deadline {
            return Err(sql);
        }
        // A random part keeps two statements from meeting again and again.
        let jitter = u32::try_from(env.random() % 1_000).unwrap_or(0);
        env.sleep(pause / 2 + pause * jitter / 1_000).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Why an attempt came to nothing.
enum Failure {
    /// The client is told.
    Final(SqlError),
    /// The client is told, unless the catalog has changed since.
    Suspect(SqlError),
    /// To be tried again with a fresh catalog.
    Stale(SqlError),
    /// To be tried again.
    Conflict,
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        match error.staleness {
            Staleness::No => Self::Final(error.sql),
            Staleness::Possible => Self::Suspect(error.sql),
            Staleness::Certain => Self::Stale(error.sql),
        }
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        QueryError::from(error).into()
    }
}

async fn attempt(
    session: &Session,
    statement: &Dml<'_>,
    parameters: &Parameters,
) -> Result<u64, Failure> {
    let scope = session.scope();
    let write = match statement {
        Dml::Insert(insert) => insert::plan(session, &scope, insert, parameters).await?,
        Dml::Update(update) => update::plan_update(session, &scope, update, parameters).await?,
        Dml::Delete(delete) => update::plan_delete(session, &scope, delete, parameters).await?,
    };
    let table = Arc::clone(&write.table);
    let count = write.count;
    let cascade = matches!(statement, Dml::Delete(_));
    let Some((request, violation)) = request(session, &scope, write, cascade).await? else {
        return Ok(count);
    };
    match session.engine().tablets.write(request).await {
        Ok(at) => {
            session.high_water().raise(at);
            violation.map_or(Ok(count), |violation| Err(Failure::Final(violation)))
        }
        Err(TxnError::Conflict | TxnError::Moved { .. }) => Err(Failure::Conflict),
        // Nothing was to be written.
        Err(TxnError::Unknown { .. }) if violation.is_some() => Err(Failure::Conflict),
        Err(error @ (TxnError::SchemaChanged { .. } | TxnError::NoSuchTablet { .. })) => {
            Err(Failure::Stale(txn_error(&error)))
        }
        Err(TxnError::DuplicateKey { key }) => Err(Failure::Final(duplicate_key(&table, &key))),
        Err(error) => Err(Failure::Final(txn_error(&error))),
    }
}

/// The request to the one tablet concerned; none if nothing was read and nothing is written. With
/// reads alone it still goes out: only apply can say that what was read holds. That is also how one
/// goes out that comes with an error, to be told if the request is carried out.
async fn request(
    session: &Session,
    scope: &Scope,
    write: Write,
    cascade: bool,
) -> Result<Option<(WriteRequest, Option<SqlError>)>, Failure> {
    let Write { table, mut changes, scanned, .. } = write;
    let Some(tablet) = destination(session, &changes, &scanned).await? else {
        return Ok(None);
    };
    let place = interleave::Place { session, snapshot: &scope.snapshot, table: &table, tablet };
    let around = interleave::look(&place, &mut changes, cascade).await?;
    let mut schema = vec![(table.id, table.version)];
    schema.extend(around.schema);
    let at = scanned.iter().map(|scanned| scanned.at).chain(around.at).min().unwrap_or_default();
    let mut ranges: Vec<_> = scanned.into_iter().flat_map(|scanned| scanned.ranges).collect();
    ranges.extend(around.ranges);
    let mutations = if around.violation.is_some() { Vec::new() } else { changes.finish() };
    let request = WriteRequest {
        tablet,
        schema,
        reads: ReadSet { at, keys: around.keys, ranges },
        mutations,
        after: session.high_water().get(),
        txn: None,
    };
    Ok(Some((request, around.violation)))
}

/// The one tablet that a statement reads from and writes to; none if it does neither.
async fn destination(
    session: &Session,
    changes: &Changes,
    scanned: &[Scanned],
) -> Result<Option<TabletId>, Failure> {
    let hull = match changes.hull() {
        Some(hull) => hull,
        None => match scanned.first().and_then(|scanned| scanned.ranges.first()) {
            Some(range) => range.clone(),
            None => return Ok(None),
        },
    };
    let tablets = session.engine().tablets.tablets(&hull).await;
    let tablets = tablets.map_err(|error| match error {
        TxnError::NoSuchTablet { .. } => Failure::Stale(txn_error(&error)),
        error => Failure::Final(txn_error(&error)),
    })?;
    let mut concerned = tablets.iter().filter(|tablet| {
        changes.by_key.is_empty() || changes.by_key.keys().any(|key| tablet.range.contains(key))
    });
    let Some(tablet) = concerned.next() else {
        return Err(Failure::Stale(txn_error(&TxnError::NoSuchTablet {
            tablet: crate::tablets::SYSTEM_TABLET,
        })));
    };
    if concerned.next().is_some()
        || scanned
            .iter()
            .flat_map(|scanned| &scanned.ranges)
            .any(|range| !tablet.range.contains_range(range))
    {
        return Err(Failure::Final(several_tablets()));
    }
    Ok(Some(tablet.id))
}

fn several_tablets() -> SqlError {
    SqlError::unsupported("a statement that writes must keep to one tablet")
        .detail("Transactions over several tablets are not there yet.")
        .hint("Write to the rows of one tablet at a time; meridian.tablets shows the tablets.")
}

/// Refuses a reading part that reads other tables than the one written.
fn only_reads(plan: &LogicalPlan, table: &TableInfo) -> Result<(), SqlError> {
    let mut foreign = None;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(read) = tablet_table(&scan.source)
            && read.root != table.root
        {
            foreign = Some(read.name.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(|e| sql_error(&e))?;
    match foreign {
        None => Ok(()),
        Some(name) => Err(SqlError::unsupported(format!(
            "a statement that writes to \"{}\" cannot read from \"{name}\" yet",
            table.name
        ))
        .detail("Transactions over several tablets are not there yet.")),
    }
}

/// The mutations of a statement, at most one per key.
#[derive(Default)]
struct Changes {
    by_key: BTreeMap<Vec<u8>, Change>,
    bytes: usize,
}

/// What becomes of a key.
struct Change {
    /// The statement read it and takes it away.
    removed: bool,
    /// The statement puts this row there.
    row: Option<Vec<u8>>,
}

impl Changes {
    /// Takes away a row that was read.
    fn remove(&mut self, key: Vec<u8>) -> Result<(), SqlError> {
        self.grow(key.len())?;
        self.by_key.entry(key).or_insert(Change { removed: false, row: None }).removed = true;
        Ok(())
    }

    /// Adds a row; its key must not be there, unless this statement removes it.
    fn add(&mut self, table: &TableInfo, key: Vec<u8>, row: Vec<u8>) -> Result<(), SqlError> {
        self.grow(key.len() + row.len())?;
        let change = self.by_key.entry(key);
        let change = match change {
            std::collections::btree_map::Entry::Occupied(entry) => {
                if entry.get().row.is_some() {
                    return Err(duplicate_key(table, entry.key()));
                }
                entry.into_mut()
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Change { removed: false, row: None })
            }
        };
        change.row = Some(row);
        Ok(())
    }

    fn grow(&mut self, by: usize) -> Result<(), SqlError> {
        self.bytes += by;
        if self.bytes <= MAX_BYTES { Ok(()) } else { Err(too_large()) }
    }

    /// The range from the first key to the last.
    fn hull(&self) -> Option<KeyRange> {
        let (first, last) = (self.by_key.keys().next()?, self.by_key.keys().next_back()?);
        Some(KeyRange { start: first.clone(), end: Some([last.as_slice(), &[0]].concat()) })
    }

    /// The keys where there is no row any more.
    fn gone(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.by_key.iter().filter(|(_, c)| c.removed && c.row.is_none()).map(|(key, _)| key)
    }

    /// The keys where there was no row.
    fn added(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.by_key.iter().filter(|(_, c)| !c.removed && c.row.is_some()).map(|(key, _)| key)
    }

    /// In the order of the keys.
    fn finish(self) -> Vec<Mutation> {
        self.by_key
            .into_iter()
            .filter_map(|(key, change)| match (change.removed, change.row) {
                (true, Some(value)) => Some(Mutation::Put { key, value }),
                (false, Some(value)) => Some(Mutation::Insert { key, value }),
                (true, None) => Some(Mutation::Delete { key }),
                (false, None) => None,
            })
            .collect()
    }
}

fn too_large() -> SqlError {
    let message = format!("the statement writes more than {} MiB", MAX_BYTES >> 20);
    SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .hint("Split the statement into several.")
}

/// `23505` with all that clients look at.
fn duplicate_key(table: &TableInfo, key: &[u8]) -> SqlError {
    let constraint = table.primary_key_name();
    let error = SqlError::unique(&table.schema, &table.name, &constraint);
    let described = codec::row_codec(table)
        .and_then(|codec| codec.describe_key(key, &SessionFormat::default()));
    match described {
        Ok(described) => error.detail(format!("Key {described} already exists.")),
        Err(_) => error,
    }
}

/// `23502` with the row that fails.
fn null_value(table: &TableInfo, position: usize, columns: &[ArrayRef], row: usize) -> SqlError {
    let cell = |(column, array): (&ColumnInfo, &ArrayRef)| {
        let value = ScalarValue::try_from_array(array, row).unwrap_or(ScalarValue::Null);
        codec::display(&value, column.pg_type)
    };
    let values: Vec<_> = table.columns.iter().zip(columns).map(cell).collect();
    SqlError::not_null(&table.schema, &table.name, &table.columns[position].name)
        .detail(format!("Failing row contains ({}).", values.join(", ")))
}

/// Checks complete rows, all columns in the table's order, and adds them.
fn add_rows(
    table: &TableInfo,
    codec: &RowCodec,
    columns: &[ArrayRef],
    changes: &mut Changes,
) -> Result<(), SqlError> {
    let first_null = |(position, array): (usize, &ArrayRef)| {
        let required = !table.columns[position].nullable && array.null_count() > 0;
        let row = required.then(|| (0..array.len()).find(|&row| array.is_null(row)))??;
        Some((row, position))
    };
    if let Some((row, position)) = columns.iter().enumerate().filter_map(first_null).min() {
        return Err(null_value(table, position, columns, row));
    }
    let encoder = codec.encoder(columns)?;
    for row in 0..columns.first().map_or(0, Array::len) {
        changes.add(table, encoder.key(row), encoder.value(row))?;
    }
    Ok(())
}

impl Dml<'_> {
    fn tag(&self, count: u64) -> String {
        match self {
            Self::Insert(_) => format!("INSERT 0 {count}"),
            Self::Update(_) => format!("UPDATE {count}"),
            Self::Delete(_) => format!("DELETE {count}"),
        }
    }
}

/// Finds out whether a default can be evaluated and fits its column.
pub(crate) fn check_default(
    scope: &Scope,
    default: &str,
    column: &ColumnInfo,
) -> Result<(), SqlError> {
    let none = Parameters { types: Vec::new(), values: Vec::new() };
    let expr = crate::plan::parse::parse_expression(default)?;
    values::Evaluator::new(scope, &none).value(&expr, column).map(|_| ())
}

/// What EXPLAIN says of a write: a title, and the physical plan of the reading part.
pub(crate) async fn explain(
    session: &Session,
    statement: &ast::Statement,
    parameters: &Parameters,
) -> Result<(String, Option<Arc<dyn ExecutionPlan>>), SqlError> {
    let scope = session.scope();
    let (verb, table, plan) = match statement {
        ast::Statement::Insert(insert) => {
            let (table, plan) = insert::reading(&scope, insert, parameters)?;
            ("Insert", table, plan)
        }
        ast::Statement::Update(update) => {
            let (table, plan) = update::reading_of_update(&scope, update, parameters)?;
            ("Update", table, Some(plan))
        }
        ast::Statement::Delete(delete) => {
            let (table, plan) = update::reading_of_delete(&scope, delete, parameters)?;
            ("Delete", table, Some(plan))
        }
        _ => return Err(SqlError::internal("not a write")),
    };
    let physical = match plan {
        Some(plan) => {
            let physical = crate::session::physical_plan(&scope, &plan).await;
            Some(physical.map_err(|e| sql_error(&e))?)
        }
        None => None,
    };
    Ok((format!("{verb} on {}.{}", table.schema, table.name), physical))
}

/// Plans the reading part of a write and binds its parameters.
fn reading_plan(
    scope: &Scope,
    table: &TableInfo,
    query: &ast::Query,
    parameters: &Parameters,
) -> Result<LogicalPlan, SqlError> {
    let query = crate::session::rewritten(query)?;
    let plan = scope.plan_query(query, &parameters.fields())?;
    only_reads(&plan, table)?;
    let plan = crate::session::bind(plan, &parameters.values)?;
    scope.optimize(&plan)
}
