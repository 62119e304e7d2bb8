//! The table that a statement writes to, and its columns.

use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast;

use crate::catalog::TableInfo;
use crate::error::{SqlError, SqlState};
use crate::plan::errors::sql_error;
use crate::plan::names::fold;
use crate::plan::planner::Scope;
use crate::scan::TabletTable;

/// The table of that name, if it may be written to.
pub(super) fn table(scope: &Scope, name: &ast::ObjectName) -> Result<Arc<TableInfo>, SqlError> {
    let reference =
        object_name_to_table_reference(name.clone(), true).map_err(|e| sql_error(&e))?;
    let provider = scope.resolve(&reference)?;
    let Some(table) = provider.downcast_ref::<TabletTable>() else {
        return Err(read_only(&reference));
    };
    if table.table().is_system() {
        return Err(read_only(&reference));
    }
    Ok(Arc::clone(table.table()))
}

fn read_only(name: &TableReference) -> SqlError {
    let message = format!("permission denied for table {}", name.table());
    SqlError::new(SqlState::INSUFFICIENT_PRIVILEGE, message)
        .detail("Only the database itself writes to its catalog.")
}

/// The positions of the named columns.
pub(super) fn columns(table: &TableInfo, names: &[ast::Ident]) -> Result<Vec<usize>, SqlError> {
    let mut positions = Vec::with_capacity(names.len());
    for name in names {
        let position = column(table, name)?;
        if positions.contains(&position) {
            let message = format!("column \"{}\" specified more than once", fold(name));
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        positions.push(position);
    }
    Ok(positions)
}

/// The position of a named column.
pub(super) fn column(table: &TableInfo, name: &ast::Ident) -> Result<usize, SqlError> {
    let folded = fold(name);
    table.position(&folded).ok_or_else(|| {
        let message = format!("column \"{folded}\" of relation \"{}\" does not exist", table.name);
        SqlError::new(SqlState::UNDEFINED_COLUMN, message)
    })
}

/// The last part of a column's name as it is written in a statement.
pub(super) fn last_ident(name: &ast::ObjectName) -> Result<&ast::Ident, SqlError> {
    match name.0.last() {
        Some(ast::ObjectNamePart::Identifier(ident)) => Ok(ident),
        _ => Err(SqlError::syntax("a column's name is expected")),
    }
}
