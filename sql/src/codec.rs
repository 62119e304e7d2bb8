//! A table's description as the row codec needs it, and keys for people.

use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::ScalarValue;
use meridian_storage::{KeyBuilder, KeyReader, KeyType, Order};

use crate::catalog::{CatalogSnapshot, ColumnInfo, TableInfo};
use crate::error::SqlError;
use crate::row::{KeyColumn, RowCodec, RowColumn, RowSchema, key_type};
use crate::types::{PgType, SessionFormat, text};

/// The codec of a table's rows.
///
/// # Errors
/// When the table has a column of a type that isn't stored.
pub(crate) fn row_codec(table: &TableInfo) -> Result<RowCodec, SqlError> {
    let column = |column: &ColumnInfo| RowColumn {
        id: column.id,
        name: column.name.clone(),
        pg_type: column.pg_type,
        nullable: column.nullable,
    };
    let key = |&position: &usize| KeyColumn { position, order: Order::Asc };
    RowCodec::new(RowSchema {
        root: table.root,
        table: table.id,
        columns: table.columns.iter().map(column).collect(),
        key: table.primary_key.iter().map(key).collect(),
        root_key_columns: table.root_key_columns(),
    })
}

/// Arrow's schema of a table.
pub(crate) fn schema(table: &TableInfo) -> SchemaRef {
    let all: Vec<usize> = (0..table.columns.len()).collect();
    projected_schema(table, &all)
}

/// Arrow's schema of some of a table's columns.
pub(crate) fn projected_schema(table: &TableInfo, projection: &[usize]) -> SchemaRef {
    let field = |&position: &usize| {
        let column = &table.columns[position];
        column.pg_type.field(&column.name, column.nullable)
    };
    Arc::new(Schema::new(projection.iter().map(field).collect::<Vec<_>>()))
}

/// The types of a root table's key columns, as its tablets have to know them.
pub(crate) fn root_key(table: &TableInfo) -> Vec<(KeyType, Order)> {
    let columns = table.key_columns();
    columns.filter_map(|column| key_type(column.pg_type).map(|of| (of, Order::Asc))).collect()
}

/// What all keys of a table begin with: its root's id. Tables interleaved in the same root share it.
pub(crate) fn key_prefix(table: &TableInfo) -> Vec<u8> {
    KeyBuilder::new().table(table.root).finish()
}

/// The bytes of columns of a table's key, one by one.
pub(crate) struct KeyParts<'t> {
    table: &'t TableInfo,
    codec: RowCodec,
}

impl<'t> KeyParts<'t> {
    /// # Errors
    /// As [`row_codec`].
    pub(crate) fn new(table: &'t TableInfo) -> Result<Self, SqlError> {
        Ok(Self { table, codec: row_codec(table)? })
    }

    /// The bytes of one column; `None` where the value isn't one of the column's type.
    pub(crate) fn part(&self, place: usize, value: &ScalarValue) -> Option<Vec<u8>> {
        let column = self.table.key_columns().nth(place)?;
        self.codec.key_part(place, &fitting(column, value)?).ok()
    }

    /// What a key has between the columns before `place` and the one there: the table's own id
    /// behind the root's columns, else nothing. `place` may be the end of the key.
    pub(crate) fn before(&self, place: usize) -> Vec<u8> {
        if place == self.table.root_key_columns() { own_id(self.table) } else { Vec::new() }
    }
}

fn own_id(table: &TableInfo) -> Vec<u8> {
    KeyBuilder::new().table(table.id).finish()
}

/// The same value in the column's Arrow type, if there is one.
fn fitting(column: &ColumnInfo, value: &ScalarValue) -> Option<ScalarValue> {
    let target = column.pg_type.arrow_type();
    let own = value.data_type();
    if own == target {
        return Some(value.clone());
    }
    let cast = value.cast_to(&target).ok()?;
    (cast.cast_to(&own).ok()? == *value).then_some(cast)
}

/// As many of a key's columns as its bytes hold, written out.
#[derive(Debug, Default)]
pub(crate) struct PartialKey {
    /// The values, quoted where SQL quotes them.
    pub(crate) values: Vec<String>,
    /// Whether all bytes were understood.
    pub(crate) complete: bool,
}

impl PartialKey {
    /// The columns at the beginning of a key.
    pub(crate) fn read(table: &TableInfo, key: &[u8]) -> Self {
        let Ok(codec) = row_codec(table) else {
            return Self::default();
        };
        let Ok(values) = codec.decode_key(key) else {
            return Self::default();
        };
        // What was decoded must be all there is. A bound may end before the table's own id.
        let again = codec.key_of(&values).unwrap_or_default();
        let complete = again == key || again.strip_suffix(own_id(table).as_slice()) == Some(key);
        let values =
            table.key_columns().zip(&values).map(|(c, value)| quoted(value, c.pg_type)).collect();
        Self { values, complete }
    }

    /// The columns of a bound, and whether the bound lies just behind everything that begins with
    /// them (`<= 5`, `> 5`) rather than just before it (`< 5`, `>= 5`).
    pub(crate) fn read_end(table: &TableInfo, key: &[u8]) -> (Self, bool) {
        if let Some((last, rest)) = key.split_last()
            && let Some(before) = last.checked_sub(1)
        {
            let inside = Self::read(table, &[rest, &[before]].concat());
            if inside.complete {
                return (inside, true);
            }
        }
        (Self::read(table, key), false)
    }
}

/// The id of the root table that a key begins with.
pub(crate) fn root_of(key: &[u8]) -> Option<u64> {
    KeyReader::new(key).table().ok()
}

/// The table that a key, or as much of one as a bound has, belongs to: its root table, unless it
/// goes on with the id of a table interleaved in that.
pub(crate) fn table_of<'s>(
    snapshot: &'s CatalogSnapshot,
    key: &[u8],
) -> Option<&'s Arc<TableInfo>> {
    let root = snapshot.table_by_id(root_of(key)?).filter(|table| table.root == table.id)?;
    let own = row_codec(root).and_then(|codec| codec.table_of(key)).ok();
    own.and_then(|id| snapshot.table_by_id(id)).filter(|own| own.root == root.id).or(Some(root))
}

fn quoted(value: &ScalarValue, pg_type: PgType) -> String {
    let text = display(value, pg_type);
    if pg_type.is_number() || pg_type == PgType::Bool || value.is_null() {
        text
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// A value as PostgreSQL writes it in the details of its messages.
pub(crate) fn display(value: &ScalarValue, pg_type: PgType) -> String {
    if value.is_null() {
        return "null".to_owned();
    }
    let format = SessionFormat::default();
    text::format_scalar(value, pg_type, &format).unwrap_or_else(|_| value.to_string())
}
