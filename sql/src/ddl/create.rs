//! CREATE TABLE: roots, and tables interleaved in another.

use datafusion::common::TableReference;
use datafusion::sql::sqlparser::ast;
use meridian_truetime::EnvironmentExt;
use meridian_txn::{PlacementChange, TabletDescriptor, TxnError, directory_put, table_range};

use super::columns::{check_defaults, columns};
use super::options::TableOptions;
use super::{ATTEMPTS, CatalogRows, PAUSE, check_name, internal, reference, remark_failure, write};
use crate::catalog::bootstrap::{FIRST_USER_TABLE, SCHEMA};
use crate::catalog::{CatalogSnapshot, Interleaved, OnDelete, TableInfo, store};
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::plan::errors::txn_error;
use crate::plan::planner::Scope;
use crate::session::{Notice, Outcome, Session};

/// The name of the counter of ids.
const TABLE_IDS: &str = "table";
/// A table is interleaved in at most so many others: what recurses over them stays shallow.
const MAX_LEVELS: usize = 16;

/// Where the rows of a new table go.
enum Place {
    /// Into tablets of its own.
    Root(PlacementChange),
    /// Below the rows of another table.
    Below(TableReference, OnDelete),
}

pub(crate) async fn create_table(
    session: &mut Session,
    create: &ast::CreateTable,
) -> Result<Outcome, SqlError> {
    let done = || Ok(Outcome::Done { tag: "CREATE TABLE".to_owned() });
    refuse_options(create)?;
    let place = place(create)?;
    let scope = session.scope();
    let (schema, name) = new_name(&scope, &create.name)?;
    let (columns, primary_key) = columns(create)?;
    check_defaults(&scope, &columns)?;
    let (version, root, interleaved) = (1, 0, None);
    let mut table =
        TableInfo { id: 0, schema, name, version, root, interleaved, columns, primary_key };
    let mut pause = PAUSE;
    for _ in 0..ATTEMPTS {
        if matches!(place, Place::Below(..)) || taken(session, &table) {
            // What is said of the parent has to hold now, and another gateway may have dropped what
            // has the name.
            session.engine().catalog.refresh().await?;
        }
        if taken(session, &table) {
            if create.if_not_exists {
                let message = format!("relation \"{}\" already exists, skipping", table.name);
                session.notice(Notice::new(SqlState::DUPLICATE_TABLE, message));
                return done();
            }
            return Err(duplicate_table(&table));
        }
        let created = match &place {
            Place::Root(placement) => create_root(session, &mut table, placement).await.map(Some),
            Place::Below(parent, on_delete) => {
                let scope = session.scope();
                let parent = parent_table(&scope, parent)?;
                let above = below(&scope.snapshot, &mut table, &parent, *on_delete)?;
                create_below(session, &mut table, &above).await.map(|()| None)
            }
        };
        match created {
            Ok(descriptor) => {
                let refreshed = session.engine().catalog.refresh().await;
                remark_failure(session, refreshed.map(drop));
                if let Some(descriptor) = descriptor {
                    let served = session.engine().tablets.ensure_tablet(&descriptor).await;
                    remark_failure(session, served.map_err(|error| txn_error(&error)));
                }
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

/// What the statement says of the place of the table's rows.
fn place(create: &ast::CreateTable) -> Result<Place, SqlError> {
    let options = match &create.table_options {
        ast::CreateTableOptions::With(options) => TableOptions::read(options)?,
        _ => TableOptions::default(),
    };
    let invalid = |message: String| SqlError::new(SqlState::INVALID_TABLE_DEFINITION, message);
    match (options.parent, options.on_delete) {
        (None, Some(_)) => Err(invalid("ON DELETE needs a parent".to_owned())
            .hint("Name the table above: INTERLEAVE IN PARENT, or interleave_in_parent.")),
        (None, None) => Ok(Place::Root(options.placement)),
        (Some(parent), on_delete) => match options.placed.first() {
            Some(option) => {
                let message = format!("option \"{option}\" of a table that is interleaved");
                Err(invalid(message)
                    .detail("Its rows lie where those of its parent are.")
                    .hint(format!("Set \"{option}\" on the table at the top.")))
            }
            None => Ok(Place::Below(parent, on_delete.unwrap_or_default())),
        },
    }
}

fn taken(session: &Session, table: &TableInfo) -> bool {
    session.engine().catalog.snapshot().table(&table.schema, &table.name).is_some()
}

fn duplicate_table(table: &TableInfo) -> SqlError {
    let message = format!("relation \"{}\" already exists", table.name);
    SqlError::new(SqlState::DUPLICATE_TABLE, message)
}

fn counter(rows: &CatalogRows, position: usize, first: u64) -> Result<u64, TxnError> {
    match rows.get(position) {
        Some((key, value)) => store::counter_value(key, value).map_err(internal),
        None => Ok(first),
    }
}

/// One write with everything that a table with tablets of its own needs.
async fn create_root(
    session: &Session,
    table: &mut TableInfo,
    placement: &PlacementChange,
) -> Result<TabletDescriptor, TxnError> {
    let tablet = session.engine().tablets.new_tablet_id().await?;
    let keys = vec![store::counter_key(TABLE_IDS).map_err(internal)?];
    let rows = CatalogRows::read(session, keys).await?;
    table.id = counter(&rows, 0, FIRST_USER_TABLE)?;
    table.root = table.id;
    let descriptor = session.engine().tablets.new_tablet(
        tablet,
        table_range(table.id),
        codec::root_key(table),
        placement.clone(),
    )?;
    let mut mutations = store::create(table).map_err(internal)?;
    mutations.push(store::set_counter(TABLE_IDS, table.id + 1).map_err(internal)?);
    mutations.push(directory_put(&descriptor)?);
    write(session, rows.reads, mutations).await?;
    Ok(descriptor)
}

/// One write with everything that an interleaved table needs; `above` are the tables above it.
async fn create_below(
    session: &Session,
    table: &mut TableInfo,
    above: &[TableInfo],
) -> Result<(), TxnError> {
    let mut keys = vec![store::counter_key(TABLE_IDS).map_err(internal)?];
    for ancestor in above {
        keys.push(store::table_row_key(ancestor).map_err(internal)?);
    }
    let rows = CatalogRows::read(session, keys).await?;
    table.id = counter(&rows, 0, FIRST_USER_TABLE)?;
    let mut mutations = store::create(table).map_err(internal)?;
    mutations.push(store::set_counter(TABLE_IDS, table.id + 1).map_err(internal)?);
    for (position, ancestor) in above.iter().enumerate() {
        if !rows.is_present(position + 1, ancestor)? {
            return Err(TxnError::Conflict);
        }
        mutations.push(store::raise_version(ancestor).map_err(internal)?);
    }
    write(session, rows.reads, mutations).await
}

/// The table to be interleaved in.
fn parent_table(scope: &Scope, name: &TableReference) -> Result<TableInfo, SqlError> {
    let wrong_kind = |what: &str| {
        let message = format!("\"{}\" is {what}", name.table());
        SqlError::new(SqlState::WRONG_OBJECT_TYPE, message)
            .detail("Only tables that users created have tables interleaved in them.")
    };
    match scope.table_named(name) {
        Some(table) if table.is_system() => Err(wrong_kind("a table of the catalog")),
        Some(table) => Ok(TableInfo::clone(&table)),
        // Says that it doesn't exist, if so.
        None => scope.resolve(name).and_then(|_| Err(wrong_kind("not a table"))),
    }
}

/// Places a table below another, if their keys fit; all tables that are above it then.
fn below(
    snapshot: &CatalogSnapshot,
    table: &mut TableInfo,
    parent: &TableInfo,
    on_delete: OnDelete,
) -> Result<Vec<TableInfo>, SqlError> {
    let mut above = vec![parent.clone()];
    above.extend(snapshot.ancestors(parent).map(|ancestor| TableInfo::clone(ancestor)));
    if above.len() > MAX_LEVELS {
        let message = format!("tables can be interleaved at most {MAX_LEVELS} levels deep");
        return Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
    }
    check_key(table, parent)?;
    table.root = parent.root;
    table.interleaved = Some(Interleaved {
        parent: parent.id,
        on_delete,
        parent_key: parent.primary_key.len(),
        root_key: parent.root_key_columns(),
    });
    Ok(above)
}

/// The key must begin with the parent's: as many columns, of the same types. Their names may
/// differ, as those of a foreign key may: a key's place is what counts, and the tables of TPC-C have
/// a name of their own for each column. The types may not, not even in their length or scale, which
/// Spanner demands as well: a value that one of the columns can't hold would have no row above it.
fn check_key(table: &TableInfo, parent: &TableInfo) -> Result<(), SqlError> {
    let refuse = |detail: String| {
        let columns: Vec<_> =
            parent.key_columns().map(|c| format!("{} {}", c.name, c.pg_type)).collect();
        let message = format!(
            "the primary key of \"{}\" must begin with that of its parent \"{}\"",
            table.name, parent.name
        );
        Err(SqlError::new(SqlState::INVALID_TABLE_DEFINITION, message).detail(detail).hint(
            format!(
                "The parent's key is ({}). Begin the key with columns of the same types.",
                columns.join(", ")
            ),
        ))
    };
    let (own, wanted) = (table.primary_key.len(), parent.primary_key.len());
    if own < wanted {
        return refuse(format!("Its key has {own} of the {wanted} columns."));
    }
    for (place, (own, wanted)) in table.key_columns().zip(parent.key_columns()).enumerate() {
        if own.pg_type != wanted.pg_type {
            return refuse(format!(
                "Column {} of its key is \"{}\" of type {}; the parent's is \"{}\" of type {}.",
                place + 1,
                own.name,
                own.pg_type,
                wanted.name,
                wanted.pg_type
            ));
        }
    }
    Ok(())
}

/// Where a new table's name belongs.
fn new_name(scope: &Scope, name: &ast::ObjectName) -> Result<(String, String), SqlError> {
    let reference = reference(name)?;
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

fn refuse_options(create: &ast::CreateTable) -> Result<(), SqlError> {
    use ast::CreateTableOptions::{None as Nothing, With};
    let other_options = !matches!(create.table_options, Nothing | With(_));
    let unsupported = [
        (create.query.is_some(), "CREATE TABLE AS"),
        (create.like.is_some() || create.clone.is_some(), "CREATE TABLE LIKE"),
        (create.temporary || create.transient || create.volatile, "a temporary table"),
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.external, "an external table"),
        (create.inherits.is_some(), "INHERITS"),
        (create.partition_by.is_some() || create.partition_of.is_some(), "PARTITION BY"),
        (other_options, "this table option"),
        (create.on_commit.is_some(), "ON COMMIT"),
        (create.comment.is_some() || create.strict || create.without_rowid, "this table option"),
        (create.order_by.is_some() || create.cluster_by.is_some(), "this table option"),
    ];
    match unsupported.iter().find(|(there, _)| *there) {
        Some((_, feature)) => Err(SqlError::unsupported(format!("{feature} is not supported"))),
        None => Ok(()),
    }
}
