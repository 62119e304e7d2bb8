//! CREATE TABLE and DROP TABLE.
//!
//! Each is one write to the system tablet: the catalog's rows and the directory's entry of the
//! table's first tablet change together. What makes concurrent changes by several gateways safe is
//! that write's validation: the row of the name must not exist (CREATE), must still be what was
//! read (DROP), and the counter of ids must not have moved.

use std::time::Duration;

use datafusion::common::TableReference;
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast;
use meridian_truetime::EnvironmentExt;
use meridian_txn::{
    Mutation, PlacementChange, ReadAt, ReadSet, TabletDescriptor, TxnError, WriteRequest,
    directory_delete, directory_put, table_range,
};

use crate::catalog::bootstrap::{FIRST_USER_TABLE, SCHEMA};
use crate::catalog::{ColumnInfo, TableInfo, store};
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::plan::errors::{sql_error, txn_error};
use crate::plan::names::fold;
use crate::plan::parse::parse_expression;
use crate::plan::planner::Scope;
use crate::session::{Notice, Outcome, Session};
use crate::tablets::SYSTEM_TABLET;
use crate::types::PgType;

/// How often a change is tried again because another came first.
const ATTEMPTS: u32 = 20;
/// The pause after the first.
const PAUSE: Duration = Duration::from_millis(2);
/// PostgreSQL's limit.
const MAX_COLUMNS: usize = 1_600;
/// PostgreSQL's limit on the columns of an index.
const MAX_KEY_COLUMNS: usize = 32;
/// Names are cut to this length by PostgreSQL, in bytes; here longer ones are refused.
const MAX_NAME: usize = 63;

pub(crate) async fn create_table(
    session: &mut Session,
    create: &ast::CreateTable,
) -> Result<Outcome, SqlError> {
    let done = || Ok(Outcome::Done { tag: "CREATE TABLE".to_owned() });
    refuse_options(create)?;
    let scope = session.scope();
    let (schema, name) = new_name(&scope, &create.name)?;
    let (columns, primary_key) = columns(create)?;
    check_defaults(&scope, &columns)?;
    let mut table = TableInfo { id: 0, schema, name, version: 1, root: 0, columns, primary_key };
    let mut pause = PAUSE;
    for _ in 0..ATTEMPTS {
        if taken(session, &table) {
            if create.if_not_exists {
                let message = format!("relation \"{}\" already exists, skipping", table.name);
                session.notice(Notice::new(SqlState::DUPLICATE_TABLE, message));
                return done();
            }
            return Err(duplicate_table(&table));
        }
        match try_create(session, &mut table).await {
            Ok(descriptor) => {
                session.engine().catalog.refresh().await?;
                let served = session.engine().tablets.ensure_tablet(&descriptor).await;
                served.map_err(|error| txn_error(&error))?;
                return done();
            }
            Err(TxnError::DuplicateKey { key }) if key == store::name_row_key(&table)? => {
                session.engine().catalog.refresh().await?;
            }
            Err(TxnError::Conflict | TxnError::DuplicateKey { .. }) => {
                session.engine().tablets.env().sleep(pause).await;
                pause *= 2;
            }
            Err(error) => return Err(txn_error(&error)),
        }
    }
    Err(txn_error(&TxnError::Conflict))
}

fn taken(session: &Session, table: &TableInfo) -> bool {
    session.engine().catalog.snapshot().table(&table.schema, &table.name).is_some()
}

fn duplicate_table(table: &TableInfo) -> SqlError {
    let message = format!("relation \"{}\" already exists", table.name);
    SqlError::new(SqlState::DUPLICATE_TABLE, message)
}

/// One write with everything that the new table needs.
async fn try_create(
    session: &Session,
    table: &mut TableInfo,
) -> Result<TabletDescriptor, TxnError> {
    let tablets = &session.engine().tablets;
    let tablet = tablets.new_tablet_id().await?;
    let table_counter = "table";
    let keys = vec![store::counter_key(table_counter).map_err(internal)?];
    let (at, rows) = tablets.get(SYSTEM_TABLET, keys.clone(), ReadAt::Unconfirmed).await?;
    let counter = |position: usize, first: u64| match rows.get(position) {
        Some(Some(row)) => store::counter_value(&row.key, &row.value).map_err(internal),
        _ => Ok(first),
    };
    table.id = counter(0, FIRST_USER_TABLE)?;
    table.root = table.id;
    let versions = rows.iter().map(|row| row.as_ref().map(|row| row.ts));
    let reads = ReadSet { at, keys: keys.into_iter().zip(versions).collect(), ranges: vec![] };
    let descriptor = tablets.new_tablet(
        tablet,
        table_range(table.id),
        codec::root_key(table),
        PlacementChange::default(),
    )?;
    let mut mutations = store::create(table).map_err(internal)?;
    mutations.push(store::set_counter(table_counter, table.id + 1).map_err(internal)?);
    mutations.push(directory_put(&descriptor)?);
    write(session, reads, mutations).await?;
    Ok(descriptor)
}

async fn write(
    session: &Session,
    reads: ReadSet,
    mutations: Vec<Mutation>,
) -> Result<(), TxnError> {
    let request = WriteRequest {
        tablet: SYSTEM_TABLET,
        schema: Vec::new(),
        reads,
        mutations,
        after: session.high_water().get(),
    };
    let at = session.engine().tablets.write(request).await?;
    session.high_water().raise(at);
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: SqlError) -> TxnError {
    TxnError::Internal(error.to_string())
}

/// Where a new table's name belongs.
fn new_name(scope: &Scope, name: &ast::ObjectName) -> Result<(String, String), SqlError> {
    let reference =
        object_name_to_table_reference(name.clone(), true).map_err(|e| sql_error(&e))?;
    let (schema, name) = match &reference {
        TableReference::Bare { table } => {
            let Some(schema) = scope.current_schema() else {
                let message = "no schema has been selected to create in";
                return Err(SqlError::new(SqlState::INVALID_SCHEMA_NAME, message));
            };
            (schema.to_owned(), table.to_string())
        }
        TableReference::Partial { schema, table } | TableReference::Full { schema, table, .. } => {
            (schema.to_string(), table.to_string())
        }
    };
    check_name(&name)?;
    match schema.as_str() {
        "public" => Ok((schema, name)),
        SCHEMA | "pg_catalog" | "information_schema" => {
            let message = format!("permission denied for schema {schema}");
            Err(SqlError::new(SqlState::INSUFFICIENT_PRIVILEGE, message)
                .detail("The schema belongs to the database itself."))
        }
        _ => {
            let message = format!("schema \"{schema}\" does not exist");
            Err(SqlError::new(SqlState::INVALID_SCHEMA_NAME, message))
        }
    }
}

fn check_name(name: &str) -> Result<(), SqlError> {
    if name.len() > MAX_NAME {
        let message = format!("identifier \"{name}\" is longer than {MAX_NAME} bytes");
        return Err(SqlError::new(SqlState::NAME_TOO_LONG, message));
    }
    Ok(())
}

/// The columns, and the positions of those of the primary key.
fn columns(create: &ast::CreateTable) -> Result<(Vec<ColumnInfo>, Vec<usize>), SqlError> {
    let table = create.name.0.last().map(ToString::to_string).unwrap_or_default();
    if create.columns.len() > MAX_COLUMNS {
        let message = format!("tables can have at most {MAX_COLUMNS} columns");
        return Err(SqlError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    let mut columns: Vec<ColumnInfo> = Vec::new();
    let mut keys: Vec<Vec<usize>> = Vec::new();
    for (definition, id) in create.columns.iter().zip(1..) {
        let (column, is_key) = column(definition, id)?;
        if columns.iter().any(|other| other.name == column.name) {
            let message = format!("column \"{}\" specified more than once", column.name);
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        if is_key {
            keys.push(vec![columns.len()]);
        }
        columns.push(column);
    }
    for constraint in &create.constraints {
        keys.push(table_constraint(constraint, &columns)?);
    }
    if keys.len() > 1 {
        let message = format!("multiple primary keys for table \"{table}\" are not allowed");
        return Err(SqlError::new(SqlState::INVALID_TABLE_DEFINITION, message));
    }
    let Some(key) = keys.pop() else {
        return Err(SqlError::unsupported("a table without a primary key is not supported").hint(
            "Rows are stored in the order of their primary key: PRIMARY KEY (column, ...).",
        ));
    };
    if key.len() > MAX_KEY_COLUMNS {
        let message = format!("cannot use more than {MAX_KEY_COLUMNS} columns in an index");
        return Err(SqlError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    for &position in &key {
        let column = &mut columns[position];
        column.nullable = false;
        if column.pg_type == PgType::Jsonb {
            let message = format!("column \"{}\" of type jsonb in a primary key", column.name);
            return Err(SqlError::unsupported(format!("{message} is not supported")));
        }
    }
    Ok((columns, key))
}

fn column(definition: &ast::ColumnDef, id: u32) -> Result<(ColumnInfo, bool), SqlError> {
    let name = fold(&definition.name);
    check_name(&name)?;
    let type_name = definition.data_type.to_string().to_lowercase();
    if type_name.ends_with("serial") || type_name.starts_with("serial") {
        return Err(SqlError::unsupported(format!("type {type_name} is not supported"))
            .detail("There are no sequences."));
    }
    let pg_type = PgType::column_from_sql(&definition.data_type)?;
    let mut column = ColumnInfo { id, name, pg_type, nullable: true, default: None };
    let (mut is_key, mut null) = (false, None);
    for option in &definition.options {
        match &option.option {
            ast::ColumnOption::Null => null = Some(true),
            ast::ColumnOption::NotNull => {
                column.nullable = false;
                null = null.or(Some(false));
            }
            ast::ColumnOption::Default(expr) => column.default = Some(expr.to_string()),
            ast::ColumnOption::PrimaryKey(_) => is_key = true,
            other => return Err(unsupported_option(other)),
        }
    }
    if null == Some(true) && (!column.nullable || is_key) {
        let message =
            format!("conflicting NULL/NOT NULL declarations for column \"{}\"", column.name);
        return Err(SqlError::syntax(message));
    }
    Ok((column, is_key))
}

fn unsupported_option(option: &ast::ColumnOption) -> SqlError {
    let feature = match option {
        ast::ColumnOption::Unique(_) => "UNIQUE constraints are".to_owned(),
        ast::ColumnOption::ForeignKey(_) => "FOREIGN KEY constraints are".to_owned(),
        ast::ColumnOption::Check(_) => "CHECK constraints are".to_owned(),
        ast::ColumnOption::Generated { .. } | ast::ColumnOption::Identity(_) => {
            "generated columns are".to_owned()
        }
        ast::ColumnOption::Collation(_) => "COLLATE is".to_owned(),
        other => format!("{other} is"),
    };
    SqlError::unsupported(format!("{feature} not supported"))
}

/// The positions of the primary key's columns.
fn table_constraint(
    constraint: &ast::TableConstraint,
    columns: &[ColumnInfo],
) -> Result<Vec<usize>, SqlError> {
    let key = match constraint {
        ast::TableConstraint::PrimaryKey(key) => key,
        ast::TableConstraint::Unique(_) => {
            return Err(SqlError::unsupported("UNIQUE constraints are not supported"));
        }
        ast::TableConstraint::ForeignKey(_) => {
            return Err(SqlError::unsupported("FOREIGN KEY constraints are not supported"));
        }
        ast::TableConstraint::Check(_) => {
            return Err(SqlError::unsupported("CHECK constraints are not supported"));
        }
        other => return Err(SqlError::unsupported(format!("{other} is not supported"))),
    };
    let mut positions = Vec::new();
    for column in &key.columns {
        let ast::Expr::Identifier(ident) = &column.column.expr else {
            return Err(SqlError::syntax("a primary key consists of columns"));
        };
        let name = fold(ident);
        let Some(position) = columns.iter().position(|c| c.name == name) else {
            let message = format!("column \"{name}\" named in key does not exist");
            return Err(SqlError::new(SqlState::UNDEFINED_COLUMN, message));
        };
        if positions.contains(&position) {
            let message = format!("column \"{name}\" appears twice in primary key constraint");
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        positions.push(position);
    }
    Ok(positions)
}

/// A default must be an expression without columns, and fit its column if it is a constant.
fn check_defaults(scope: &Scope, columns: &[ColumnInfo]) -> Result<(), SqlError> {
    let schema = datafusion::common::DFSchema::empty();
    for column in columns {
        let Some(default) = &column.default else {
            continue;
        };
        let expr = parse_expression(default)?;
        let has_column = |error: &SqlError| error.sqlstate == SqlState::UNDEFINED_COLUMN;
        let planned = match scope.plan_expression(expr, &schema, &[]) {
            Err(error) if has_column(&error) => {
                return Err(SqlError::unsupported(
                    "cannot use column reference in DEFAULT expression",
                ));
            }
            planned => planned?,
        };
        if planned.any_column_refs() {
            return Err(SqlError::unsupported("cannot use column reference in DEFAULT expression"));
        }
        crate::dml::check_default(scope, default, column)?;
    }
    Ok(())
}

fn refuse_options(create: &ast::CreateTable) -> Result<(), SqlError> {
    let has_options = !matches!(create.table_options, ast::CreateTableOptions::None);
    let unsupported = [
        (create.query.is_some(), "CREATE TABLE AS"),
        (create.like.is_some() || create.clone.is_some(), "CREATE TABLE LIKE"),
        (create.temporary || create.transient || create.volatile, "a temporary table"),
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.external, "an external table"),
        (create.inherits.is_some(), "INHERITS"),
        (create.partition_by.is_some() || create.partition_of.is_some(), "PARTITION BY"),
        (has_options, "WITH (...)"),
        (create.on_commit.is_some(), "ON COMMIT"),
        (create.comment.is_some() || create.strict || create.without_rowid, "this table option"),
        (create.order_by.is_some() || create.cluster_by.is_some(), "this table option"),
    ];
    match unsupported.iter().find(|(there, _)| *there) {
        Some((_, feature)) => Err(SqlError::unsupported(format!("{feature} is not supported"))),
        None => Ok(()),
    }
}

pub(crate) async fn drop(
    session: &mut Session,
    statement: &ast::Statement,
) -> Result<Outcome, SqlError> {
    let ast::Statement::Drop { object_type, if_exists, names, cascade: _, .. } = statement else {
        return Err(SqlError::internal("not a DROP"));
    };
    if !matches!(object_type, ast::ObjectType::Table) {
        return Err(SqlError::unsupported(format!("DROP {object_type} is not supported")));
    }
    for _ in 0..ATTEMPTS {
        let done = || Ok(Outcome::Done { tag: "DROP TABLE".to_owned() });
        let tables = tables_to_drop(session, names, *if_exists).await?;
        if tables.is_empty() {
            return done();
        }
        match try_drop(session, &tables).await {
            Ok(descriptors) => {
                session.engine().catalog.refresh().await?;
                for descriptor in &descriptors {
                    let retired = session.engine().tablets.retire_tablet(descriptor).await;
                    if let Err(error) = retired {
                        // The directory no longer lists it: nodes retire it when they see that.
                        tracing::warn!(tablet = %descriptor.id, %error, "not retired yet");
                    }
                }
                return done();
            }
            Err(TxnError::Conflict | TxnError::NoSuchTablet { .. }) => {
                session.engine().catalog.refresh().await?;
            }
            Err(error) => return Err(txn_error(&error)),
        }
    }
    Err(txn_error(&TxnError::Conflict))
}

/// The tables, all of which exist; those that needn't are left out with a notice.
async fn tables_to_drop(
    session: &mut Session,
    names: &[ast::ObjectName],
    if_exists: bool,
) -> Result<Vec<TableInfo>, SqlError> {
    let mut refreshed = false;
    let mut tables: Vec<TableInfo> = Vec::new();
    let mut notices = Vec::new();
    for name in names {
        let reference =
            object_name_to_table_reference(name.clone(), true).map_err(|e| sql_error(&e))?;
        let mut found = session.scope().table_named(&reference);
        if found.is_none() && !refreshed {
            session.engine().catalog.refresh().await?;
            refreshed = true;
            found = session.scope().table_named(&reference);
        }
        match found {
            Some(table) if table.is_system() => {
                let message = format!("permission denied: \"{}\" is a system catalog", table.name);
                return Err(SqlError::new(SqlState::INSUFFICIENT_PRIVILEGE, message));
            }
            Some(table) if tables.iter().any(|other| other.id == table.id) => {}
            Some(table) => tables.push(TableInfo::clone(&table)),
            None if if_exists => {
                let message = format!("table \"{}\" does not exist, skipping", reference.table());
                notices.push(Notice::new(SqlState::SUCCESSFUL_COMPLETION, message));
            }
            None => {
                let message = format!("table \"{}\" does not exist", reference.table());
                return Err(SqlError::new(SqlState::UNDEFINED_TABLE, message));
            }
        }
    }
    for notice in notices {
        session.notice(notice);
    }
    Ok(tables)
}

/// One write that takes everything of these tables away.
async fn try_drop(
    session: &Session,
    tables: &[TableInfo],
) -> Result<Vec<TabletDescriptor>, TxnError> {
    let engine = session.engine();
    let mut names = Vec::new();
    let mut mutations = Vec::new();
    let mut descriptors = Vec::new();
    for table in tables {
        names.push(store::name_row_key(table).map_err(internal)?);
        mutations.extend(store::drop(table).map_err(internal)?);
        descriptors.extend(engine.tablets.tablets(&table_range(table.id)).await?);
    }
    for descriptor in &descriptors {
        mutations.push(directory_delete(descriptor.id)?);
    }
    let (at, rows) = engine.tablets.get(SYSTEM_TABLET, names.clone(), ReadAt::Unconfirmed).await?;
    // The name must still be that of the same table.
    for (table, row) in tables.iter().zip(&rows) {
        let same = match row {
            Some(row) => store::named_table(&row.key, &row.value).map_err(internal)? == table.id,
            None => false,
        };
        if !same {
            return Err(TxnError::Conflict);
        }
    }
    let versions = rows.iter().map(|row| row.as_ref().map(|row| row.ts));
    let reads = ReadSet { at, keys: names.into_iter().zip(versions).collect(), ranges: vec![] };
    write(session, reads, mutations).await?;
    Ok(descriptors)
}
