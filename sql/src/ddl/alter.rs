//! ALTER TABLE ... SET (...) and RESET (...): where a table's rows are kept.

use datafusion::sql::sqlparser::ast::{self, AlterTableOperation};
use meridian_storage::TabletId;
use meridian_txn::{PlacementChange, table_range};

use super::options::TableOptions;
use super::reference;
use crate::catalog::TableInfo;
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::plan::errors::txn_error;
use crate::session::{Notice, Outcome, Session};

pub(crate) async fn alter_table(
    session: &mut Session,
    alter: &ast::AlterTable,
) -> Result<Outcome, SqlError> {
    let done = || Ok(Outcome::Done { tag: "ALTER TABLE".to_owned() });
    let mut options = TableOptions::default();
    for operation in &alter.operations {
        match operation {
            // The grammar puts RESET (...) here, as options without a value.
            AlterTableOperation::SetOptionsParens { options: given } => options.change(given)?,
            _ => return Err(unsupported()),
        }
    }
    if options.parent.is_some() || options.on_delete.is_some() {
        let message = "a table can't be interleaved otherwise than it was created";
        return Err(SqlError::new(SqlState::INVALID_TABLE_DEFINITION, message)
            .hint("Create another table and copy the rows."));
    }
    // The name may mean another table by now.
    session.engine().catalog.refresh().await?;
    let name = reference(&alter.name)?;
    let scope = session.scope();
    let table = match scope.table_named(&name) {
        Some(table) => table,
        None if alter.if_exists && scope.resolve(&name).is_err() => {
            let message = format!("relation \"{}\" does not exist, skipping", name.table());
            session.notice(Notice::new(SqlState::SUCCESSFUL_COMPLETION, message));
            return done();
        }
        None => {
            scope.resolve(&name)?;
            let message = format!("\"{}\" is not a table", name.table());
            return Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, message));
        }
    };
    if table.is_system() {
        let message = format!("permission denied: \"{}\" is a system catalog", table.name);
        return Err(SqlError::new(SqlState::INSUFFICIENT_PRIVILEGE, message));
    }
    let Some(option) = options.placed.first() else {
        return done();
    };
    if let Some(parent) = scope.snapshot.parent(&table) {
        let top = scope.snapshot.table_by_id(table.root).unwrap_or(parent);
        let message = format!("\"{}\" is interleaved in \"{}\"", table.name, parent.name);
        return Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, message)
            .detail("Its rows lie where those of its parent are.")
            .hint(format!("Set \"{option}\" on \"{}\".", top.name)));
    }
    let change = change(session, &table, &options)?;
    let placed = session.engine().tablets.place(&table_range(table.id), change).await;
    placed.map_err(|error| txn_error(&error))?;
    done()
}

/// What was given, and what the cluster does by itself for what was reset.
fn change(
    session: &Session,
    table: &TableInfo,
    options: &TableOptions,
) -> Result<PlacementChange, SqlError> {
    let mut change = options.placement.clone();
    if options.resets_voters {
        // As a new table of its own accord.
        let (id, range) = (TabletId::new(0), table_range(table.id));
        let (key, nothing) = (codec::root_key(table), PlacementChange::default());
        let new = session.engine().tablets.new_tablet(id, range, key, nothing);
        change.voters = Some(new.map_err(|error| txn_error(&error))?.placement.voters);
    }
    Ok(change)
}

fn unsupported() -> SqlError {
    SqlError::unsupported("ALTER TABLE is not supported but for options")
        .hint("ALTER TABLE ... SET (option = value) and RESET (option) change a table's place.")
}
