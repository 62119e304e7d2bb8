//! INSERT, UPDATE and DELETE: a reading part that DataFusion runs, and mutations of our own.
//!
//! A statement belongs to a read-write transaction: that of the session's block, or one of its own. Its
//! reading part reads under locks, those for writing on the table that it changes; where tables are
//! interleaved, the rows above and below those that change belong to what is read (`interleave`). The
//! mutations computed from it go to the transaction all together at the end, so that a statement that
//! fails has changed nothing.
//!
//! A row that is added must be new. In a block that is looked at there and then; a statement that
//! comes alone leaves it to the commit, which finds out anyway, and saves a round trip.

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
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::sqlparser::ast;
use meridian_truetime::EnvironmentExt;
use meridian_txn::locks::Mode;
use meridian_txn::{Mutation, TxnError};

pub(crate) use insert::infer as infer_insert;
pub(crate) use update::{infer_delete, infer_update};

use crate::catalog::{CatalogSnapshot, ColumnInfo, TableInfo};
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::plan::errors::{sql_error, txn_error};
use crate::plan::planner::Scope;
use crate::row::RowCodec;
use crate::scan::{Modes, Under};
use crate::session::{Outcome, Parameters, QueryError, Session, Staleness};
use crate::tablets::Transaction;
use crate::types::SessionFormat;

/// How long a statement that comes alone is run again and again because others came first.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause before it is, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));
/// How often a statement of a block is planned again because the catalog had moved on.
const PLANS: u32 = 4;
/// The largest transaction: `meridian.max_transaction_size`.
const MAX_BYTES: usize = 256 << 20;
/// How many keys are looked up with one request.
const LOOKUPS: usize = 1_000;

/// A statement that writes.
pub(crate) enum Dml<'a> {
    Insert(&'a ast::Insert),
    Update(&'a ast::Update),
    Delete(&'a ast::Delete),
}

/// What a statement is about to write.
struct Write {
    table: Arc<TableInfo>,
    changes: Changes,
    /// Rows, as the command tag counts them.
    count: u64,
}

/// The transaction that a statement runs in.
struct Work<'w> {
    session: &'w Session,
    scope: &'w Scope,
    txn: &'w Arc<dyn Transaction>,
}

impl Work<'_> {
    /// How the reading part reads, with the locks that writing to a table needs.
    fn under(&self, table: &TableInfo) -> Under {
        let mut modes = Modes::default();
        modes.set(table.id, Mode::Update);
        Under::new(self.txn, modes, self.session.lock_wait())
    }

    fn planned_under(&self, table: &TableInfo) -> Result<(), QueryError> {
        self.txn.planned_under(table.id, table.version).map_err(QueryError::from)
    }
}

/// Runs a statement, in the session's block if there is one.
pub(crate) async fn run(
    session: &mut Session,
    statement: &Dml<'_>,
    parameters: &Parameters,
) -> Result<Outcome, SqlError> {
    let count = match session.block_txn() {
        Some(txn) => {
            let txn = Arc::clone(txn);
            run_in(session, &txn, statement, parameters).await?
        }
        None => run_alone(session, statement, parameters).await?,
    };
    Ok(Outcome::Done { tag: statement.tag(count) })
}

/// Runs a statement of a transaction.
async fn run_in(
    session: &Session,
    txn: &Arc<dyn Transaction>,
    statement: &Dml<'_>,
    parameters: &Parameters,
) -> Result<u64, SqlError> {
    let mut plans = 1;
    loop {
        let catalog = session.engine().catalog.snapshot().version;
        let error = match attempt(session, txn, statement, parameters, false).await {
            Ok(count) => return Ok(count),
            Err(error) => error,
        };
        plans += 1;
        match error.staleness {
            _ if plans > PLANS => return Err(error.sql),
            Staleness::No => return Err(error.sql),
            Staleness::Possible => {
                if !session.refresh_if_older(catalog).await? {
                    return Err(error.sql);
                }
            }
            Staleness::Certain => {
                session.engine().catalog.refresh().await?;
            }
        }
    }
}

/// Runs a statement as a transaction of its own, as often as it takes.
async fn run_alone(
    session: &mut Session,
    statement: &Dml<'_>,
    parameters: &Parameters,
) -> Result<u64, SqlError> {
    let env = Arc::clone(session.engine().tablets.env());
    let deadline = env.moment().plus(PATIENCE);
    let mut pause = PAUSE.0;
    let mut age = None;
    loop {
        let catalog = session.engine().catalog.snapshot().version;
        let txn = session.begin_alone(age);
        age = Some(txn.age());
        let error = match attempt(session, &txn, statement, parameters, true).await {
            Ok(count) => match session.commit_txn(&*txn).await {
                Ok(()) => return Ok(count),
                Err(TxnError::DuplicateKey { key }) => {
                    return Err(duplicate(&session.engine().catalog.snapshot(), &key));
                }
                Err(error) => QueryError::from(error),
            },
            Err(error) => {
                txn.roll_back();
                error
            }
        };
        match error.staleness {
            Staleness::Possible => {
                // Only a newer catalog could make a difference.
                if !session.refresh_if_older(catalog).await? {
                    return Err(error.sql);
                }
                continue;
            }
            Staleness::Certain => {
                session.engine().catalog.refresh().await?;
            }
            Staleness::No if error.sql.sqlstate == SqlState::SERIALIZATION_FAILURE => {}
            Staleness::No => return Err(error.sql),
        }
        if env.moment().plus(pause) > deadline {
            return Err(error.sql);
        }
        // A random part keeps two statements from meeting again and again.
        let jitter = u32::try_from(env.random() % 1_000).unwrap_or(0);
        env.sleep(pause / 2 + pause * jitter / 1_000).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Computes what a statement changes, and hands it to the transaction.
async fn attempt(
    session: &Session,
    txn: &Arc<dyn Transaction>,
    statement: &Dml<'_>,
    parameters: &Parameters,
    alone: bool,
) -> Result<u64, QueryError> {
    let scope = session.scope();
    let work = Work { session, scope: &scope, txn };
    let write = match statement {
        Dml::Insert(insert) => insert::plan(&work, insert, parameters).await?,
        Dml::Update(update) => update::plan_update(&work, update, parameters).await?,
        Dml::Delete(delete) => update::plan_delete(&work, delete, parameters).await?,
    };
    let Write { table, mut changes, count } = write;
    work.planned_under(&table)?;
    let cascade = matches!(statement, Dml::Delete(_));
    let place = interleave::Place { work: &work, snapshot: &scope.snapshot, table: &table };
    interleave::look(&place, &mut changes, cascade).await?;
    if !alone {
        check_new(&work, &table, &changes).await?;
    }
    if txn.size() + changes.bytes > MAX_BYTES {
        return Err(too_large().into());
    }
    for mutation in changes.finish() {
        match mutation {
            Mutation::Insert { key, value } => {
                txn.insert(key.clone(), value).map_err(|_| duplicate_key(&table, &key))?;
            }
            Mutation::Put { key, value } => txn.put(key, value),
            Mutation::Delete { key } => txn.delete(key),
        }
    }
    Ok(count)
}

/// Looks whether the rows that are added are new.
async fn check_new(
    work: &Work<'_>,
    table: &TableInfo,
    changes: &Changes,
) -> Result<(), QueryError> {
    let added: Vec<_> = changes.added().cloned().collect();
    for keys in added.chunks(LOOKUPS) {
        let rows = work.txn.get(keys.to_vec(), Mode::Update, work.session.lock_wait()).await;
        let rows = rows.map_err(QueryError::from)?;
        if let Some(row) = rows.into_iter().flatten().next() {
            return Err(duplicate_key(table, &row.key).into());
        }
    }
    Ok(())
}

/// `23505` for a key of some table.
fn duplicate(snapshot: &CatalogSnapshot, key: &[u8]) -> SqlError {
    match codec::table_of(snapshot, key) {
        Some(table) => duplicate_key(table, key),
        None => txn_error(&TxnError::DuplicateKey { key: key.to_vec() }),
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
    let message = format!("the transaction writes more than {} MiB", MAX_BYTES >> 20);
    SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .hint("Split it into several transactions.")
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

impl<'a> Dml<'a> {
    /// What a statement is, if it writes.
    pub(crate) fn of(statement: &'a ast::Statement) -> Result<Self, SqlError> {
        match statement {
            ast::Statement::Insert(insert) => Ok(Self::Insert(insert)),
            ast::Statement::Update(update) => Ok(Self::Update(update)),
            ast::Statement::Delete(delete) => Ok(Self::Delete(delete)),
            _ => Err(SqlError::internal("not a write")),
        }
    }

    /// As its tag begins.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Insert(_) => "INSERT",
            Self::Update(_) => "UPDATE",
            Self::Delete(_) => "DELETE",
        }
    }

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
    query: &ast::Query,
    parameters: &Parameters,
) -> Result<LogicalPlan, SqlError> {
    let query = crate::session::rewritten(query)?;
    let plan = scope.plan_query(query, &parameters.fields())?;
    let plan = crate::session::bind(plan, &parameters.values)?;
    scope.optimize(&plan)
}
