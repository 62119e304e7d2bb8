//! Tables by their names, and keys of them from a call's values.

use std::sync::Arc;

use datafusion::common::{ScalarValue, TableReference};
use meridian_storage::KeyRange;
use meridian_txn::table_range;

use super::arguments::{Given, is_null};
use crate::catalog::{CatalogSnapshot, ColumnInfo, TableInfo};
use crate::codec::{self, KeyParts};
use crate::error::{SqlError, SqlState};
use crate::meridian_schema::functions::{Function, Parameter};
use crate::pg_catalog::identifiers;
use crate::plan::planner::Scope;
use crate::scan::TabletTable;
use crate::types::{PgType, SessionFormat, assign, text};

/// The table of that name, as `regclass` would read it, if tablets of its own hold it.
pub(super) fn table(scope: &Scope, name: &str) -> Result<Arc<TableInfo>, SqlError> {
    let parts = identifiers(name)?;
    let reference = match parts.as_slice() {
        [table] => TableReference::bare(table.as_str()),
        [schema, table] => TableReference::partial(schema.as_str(), table.as_str()),
        [database, schema, table] => {
            TableReference::full(database.as_str(), schema.as_str(), table.as_str())
        }
        _ => return Err(SqlError::new(SqlState::INVALID_NAME, "invalid name syntax")),
    };
    let provider = scope.resolve(&reference)?;
    let Some(table) = provider.downcast_ref::<TabletTable>() else {
        let message = format!("\"{}\" is not a table", reference.table());
        return Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, message));
    };
    let table = table.table();
    if table.is_system() {
        let message = format!("permission denied for table {}", table.name);
        return Err(SqlError::new(SqlState::INSUFFICIENT_PRIVILEGE, message)
            .detail("The tablet of the database's own tables stays as it is."));
    }
    Ok(Arc::clone(table))
}

/// The key of a root table, by which its tablets are divided.
pub(super) struct RootKey<'a> {
    root: Arc<TableInfo>,
    /// What the statement named: the root, or a table interleaved under it.
    named: &'a TableInfo,
    format: &'a SessionFormat,
}

impl<'a> RootKey<'a> {
    pub(super) fn of(
        snapshot: &CatalogSnapshot,
        named: &'a TableInfo,
        format: &'a SessionFormat,
    ) -> Result<Self, SqlError> {
        let root = snapshot.table_by_id(named.root).cloned();
        let root =
            root.ok_or_else(|| SqlError::internal("a table's root is not in the catalog"))?;
        Ok(Self { root, named, format })
    }

    fn is_root(&self) -> bool {
        self.named.id == self.root.id
    }

    /// All keys of the table. Those of an interleaved one are among its root's.
    pub(super) fn range(&self) -> Result<KeyRange, SqlError> {
        if self.is_root() {
            return Ok(table_range(self.root.id));
        }
        let (named, root) = (&self.named.name, &self.root.name);
        let message = format!("table \"{named}\" is interleaved in \"{root}\"");
        Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
            .detail("Its rows lie with those of the table that it is interleaved in.")
            .hint(format!("Place \"{root}\".")))
    }

    /// What all keys with these values in the first columns begin with.
    pub(super) fn prefix(
        &self,
        values: &[&Given],
        function: &Function,
        parameter: &Parameter,
    ) -> Result<Vec<u8>, SqlError> {
        let columns: Vec<&ColumnInfo> = self.root.key_columns().collect();
        if values.len() > columns.len() {
            return Err(self.too_long(values.len(), &columns));
        }
        let parts = KeyParts::new(&self.root)?;
        let mut key = codec::key_prefix(&self.root);
        for (place, (given, column)) in values.iter().zip(&columns).enumerate() {
            if **given == Given::Null {
                return Err(is_null(function, parameter));
            }
            let value = self.column_value(given, column)?;
            let part = parts.part(place, &value);
            key.extend(part.ok_or_else(|| SqlError::internal("a key value without bytes"))?);
        }
        Ok(key)
    }

    /// A value as INSERT would take it for the column.
    fn column_value(&self, given: &Given, column: &ColumnInfo) -> Result<ScalarValue, SqlError> {
        let of = column.pg_type;
        match given {
            Given::Null => Err(SqlError::internal("a NULL in a key")),
            Given::Text(literal) => text::parse(of, literal, self.format),
            Given::Value(value, source) => {
                assign::assign(value, *source, of, &column.name, self.format)
            }
            Given::Array(_) | Given::Row(_) => {
                assign::check(PgType::Record, of, &column.name)?;
                Err(SqlError::internal("a row in place of a value"))
            }
        }
    }

    fn too_long(&self, values: usize, columns: &[&ColumnInfo]) -> SqlError {
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let names = names.join(", ");
        let code = SqlState::INVALID_PARAMETER_VALUE;
        let root = &self.root.name;
        if self.is_root() {
            let message = format!("{values} values for a key of {} columns", columns.len());
            return SqlError::new(code, message)
                .detail(format!("The key of \"{root}\" is ({names})."));
        }
        let message = format!("a key of {values} values lies inside a directory of \"{root}\"");
        SqlError::new(code, message)
            .detail("A directory, a row with all that is interleaved under it, is never divided.")
            .hint(format!("Give values for ({names}) at most."))
    }
}
