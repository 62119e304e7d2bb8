//! DROP TABLE.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use meridian_txn::{TabletDescriptor, TxnError, directory_delete, table_range};

use super::{ATTEMPTS, CatalogRows, internal, reference, remark_failure, write};
use crate::catalog::{CatalogSnapshot, TableInfo, store};
use crate::error::{SqlError, SqlState};
use crate::plan::errors::txn_error;
use crate::session::{Notice, Outcome, Session};

pub(crate) async fn drop(
    session: &mut Session,
    statement: &ast::Statement,
) -> Result<Outcome, SqlError> {
    let ast::Statement::Drop { object_type, if_exists, names, cascade, .. } = statement else {
        return Err(SqlError::internal("not a DROP"));
    };
    if !matches!(object_type, ast::ObjectType::Table) {
        return Err(SqlError::unsupported(format!("DROP {object_type} is not supported")));
    }
    let mut fresh = false;
    for _ in 0..ATTEMPTS {
        let done = || Ok(Outcome::Done { tag: "DROP TABLE".to_owned() });
        let (named, mut notices) = named_tables(session, names, *if_exists, &mut fresh).await?;
        let snapshot = session.engine().catalog.snapshot();
        let dependent = dependent_tables(&snapshot, &named);
        if !dependent.is_empty() && !cascade {
            if !fresh {
                // Another gateway may have dropped them.
                session.engine().catalog.refresh().await?;
                fresh = true;
                continue;
            }
            return Err(still_needed(&snapshot, &named, &dependent));
        }
        notices.extend(cascades(&dependent));
        let tables: Vec<_> = named.into_iter().chain(dependent).collect();
        let dropped = if tables.is_empty() { Ok(vec![]) } else { try_drop(session, &tables).await };
        match dropped {
            Ok(descriptors) => {
                for notice in notices {
                    session.notice(notice);
                }
                if !tables.is_empty() {
                    let refreshed = session.engine().catalog.refresh().await;
                    remark_failure(session, refreshed.map(|_| ()));
                    close(session, &tables, &descriptors).await;
                }
                return done();
            }
            Err(TxnError::Conflict | TxnError::NoSuchTablet { .. }) => {
                session.engine().catalog.refresh().await?;
                fresh = true;
            }
            Err(error) => return Err(txn_error(&error)),
        }
    }
    Err(txn_error(&TxnError::Conflict))
}

/// The tables, all of which exist; those that needn't are left out with a notice.
async fn named_tables(
    session: &Session,
    names: &[ast::ObjectName],
    if_exists: bool,
    fresh: &mut bool,
) -> Result<(Vec<Arc<TableInfo>>, Vec<Notice>), SqlError> {
    let mut tables: Vec<Arc<TableInfo>> = Vec::new();
    let mut notices = Vec::new();
    for name in names {
        let reference = reference(name)?;
        let mut found = session.scope().table_named(&reference);
        if found.is_none() && !*fresh {
            session.engine().catalog.refresh().await?;
            *fresh = true;
            found = session.scope().table_named(&reference);
        }
        match found {
            Some(table) if table.is_system() => {
                let message = format!("permission denied: \"{}\" is a system catalog", table.name);
                return Err(SqlError::new(SqlState::INSUFFICIENT_PRIVILEGE, message));
            }
            Some(table) if tables.iter().any(|other| other.id == table.id) => {}
            Some(table) => tables.push(table),
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
    Ok((tables, notices))
}

/// The tables below those named that aren't named themselves, each before those below it.
fn dependent_tables(snapshot: &CatalogSnapshot, named: &[Arc<TableInfo>]) -> Vec<Arc<TableInfo>> {
    let mut dependent: Vec<Arc<TableInfo>> = Vec::new();
    for table in named.iter().flat_map(|table| snapshot.descendants(table.id)) {
        if !named.iter().chain(&dependent).any(|other| other.id == table.id) {
            dependent.push(Arc::clone(table));
        }
    }
    dependent
}

/// `2BP01` with the tables that depend on those named.
fn still_needed(
    snapshot: &CatalogSnapshot,
    named: &[Arc<TableInfo>],
    dependent: &[Arc<TableInfo>],
) -> SqlError {
    let depends = |table: &Arc<TableInfo>| {
        let parent = snapshot.parent(table).map_or("", |parent| parent.name.as_str());
        format!("table {} depends on table {parent}", table.name)
    };
    let message = match named {
        [table] => format!("cannot drop table {} because other objects depend on it", table.name),
        _ => "cannot drop desired object(s) because other objects depend on them".to_owned(),
    };
    let detail: Vec<_> = dependent.iter().map(depends).collect();
    SqlError::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message)
        .detail(detail.join("\n"))
        .hint("Use DROP ... CASCADE to drop the dependent objects too.")
}

/// What PostgreSQL says of what CASCADE drops.
fn cascades(dependent: &[Arc<TableInfo>]) -> Option<Notice> {
    let line = |table: &Arc<TableInfo>| format!("drop cascades to table {}", table.name);
    let notice = |message| Notice::new(SqlState::SUCCESSFUL_COMPLETION, message);
    match dependent {
        [] => None,
        [table] => Some(notice(line(table))),
        tables => {
            let lines: Vec<_> = tables.iter().map(line).collect();
            let message = format!("drop cascades to {} other objects", tables.len());
            Some(notice(message).detail(lines.join("\n")))
        }
    }
}

/// One write that takes everything of these tables away; the tablets that are left over.
async fn try_drop(
    session: &Session,
    tables: &[Arc<TableInfo>],
) -> Result<Vec<TabletDescriptor>, TxnError> {
    let engine = session.engine();
    let mut keys = Vec::new();
    let mut mutations = Vec::new();
    let mut roots = Vec::new();
    let mut descriptors: Vec<TabletDescriptor> = Vec::new();
    for table in tables {
        // A table that is created below this one changes the second.
        keys.push(store::name_row_key(table).map_err(internal)?);
        keys.push(store::table_row_key(table).map_err(internal)?);
        mutations.extend(store::drop(table).map_err(internal)?);
        if table.interleaved.is_none() {
            roots.push(table_range(table.id));
        }
    }
    let mut rows = CatalogRows::read(session, keys).await?;
    if !roots.is_empty() {
        // No tablet may enter the directory between this and the write.
        let directory = engine.tablets.directory().await?;
        let dropped =
            |tablet: &TabletDescriptor| roots.iter().any(|root| root.contains_range(&tablet.range));
        descriptors.extend(directory.tablets.into_iter().filter(dropped));
        rows.reads.at = rows.reads.at.min(directory.at);
        rows.reads.ranges.push(directory.rows);
    }
    for descriptor in &descriptors {
        mutations.push(directory_delete(descriptor.id)?);
    }
    for (position, table) in tables.iter().enumerate() {
        // The name must still be that of the same table.
        let same = match rows.get(2 * position) {
            Some((key, value)) => store::named_table(key, value).map_err(internal)? == table.id,
            None => false,
        };
        if !same || !rows.is_present(2 * position + 1, table)? {
            return Err(TxnError::Conflict);
        }
    }
    write(session, rows.reads, mutations).await?;
    Ok(descriptors)
}

/// Tells the tablets of tables that are gone.
async fn close(session: &Session, tables: &[Arc<TableInfo>], descriptors: &[TabletDescriptor]) {
    let engine = session.engine();
    for descriptor in descriptors {
        if let Err(error) = engine.tablets.retire_tablet(descriptor).await {
            // The directory no longer lists it: nodes retire it when they see that.
            tracing::warn!(tablet = %descriptor.id, %error, "not retired yet");
        }
    }
    for table in tables {
        if tables.iter().any(|other| other.id == table.root) {
            continue;
        }
        let fenced = engine.tablets.fence_table(&table_range(table.root), table.id, u64::MAX).await;
        if let Err(error) = fenced {
            // Whoever still knows the table may write rows to it that nobody sees.
            tracing::warn!(table = table.name, %error, "a dropped table is not fenced");
        }
    }
}
