//! Keys of rows, and ranges of them.

use std::ops::Bound;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::common::ScalarValue;
use meridian_storage::{
    KeyBuilder, KeyError, KeyRange, KeyReader, KeyType, KeyValue, Order, prefix_end,
};

use super::column::Column;
use super::{KeyColumn, RowCodec, RowSchema};
use crate::error::SqlError;
use crate::types::{PgType, SessionFormat, text};

/// What a column of the type is in a key; `None` if it can't be in one.
#[must_use]
pub fn key_type(pg_type: PgType) -> Option<KeyType> {
    Some(match pg_type {
        PgType::Bool => KeyType::Bool,
        PgType::Int2 | PgType::Int4 | PgType::Int8 => KeyType::Int,
        PgType::Float4 | PgType::Float8 => KeyType::Float,
        PgType::Numeric { .. } => KeyType::Decimal,
        PgType::Text | PgType::Varchar(_) | PgType::Char(_) => KeyType::Text,
        PgType::Bytea => KeyType::Bytes,
        PgType::Date => KeyType::Date,
        PgType::Time => KeyType::Time,
        PgType::Timestamp | PgType::Timestamptz => KeyType::Timestamp,
        PgType::Interval => KeyType::Interval,
        PgType::Uuid => KeyType::Uuid,
        _ => return None,
    })
}

/// Whether a key of the type may not give back the very value.
pub(super) const fn loses(pg_type: PgType) -> bool {
    matches!(pg_type, PgType::Float4 | PgType::Float8 | PgType::Interval)
}

/// The key of the first columns of the primary key: as many as there are values. The table's own
/// id follows the root's last column.
pub(super) fn encode(schema: &RowSchema, values: impl Iterator<Item = KeyValue>) -> Vec<u8> {
    let mut builder = KeyBuilder::new().table(schema.root);
    if schema.root_key_columns == 0 {
        builder = builder.table(schema.table);
    }
    for (index, (column, value)) in schema.key.iter().zip(values).enumerate() {
        builder = builder.value(&value, column.order);
        if index + 1 == schema.root_key_columns {
            builder = builder.table(schema.table);
        }
    }
    builder.finish()
}

pub(super) fn corrupted(error: &KeyError) -> SqlError {
    SqlError::corrupted(format!("a stored row's key is malformed: {error}"))
}

/// A key in three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeySplit<'k> {
    /// What the keys of the row's directory begin with: the root's id and primary key.
    pub directory: &'k [u8],
    /// The id of the table that the row belongs to.
    pub table: u64,
    /// The columns behind the root's.
    pub rest: &'k [u8],
}

impl KeySplit<'_> {
    /// What the keys of a table's rows in this directory begin with.
    pub fn of(&self, table: u64) -> Vec<u8> {
        KeyBuilder::from_prefix(self.directory).table(table).finish()
    }
}

/// What a key tells of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KeyStep {
    pub kind: KeyType,
    pub order: Order,
    /// Whether the table's own id comes before it.
    pub own_id: bool,
}

/// How to read the key's columns.
pub(super) fn steps(schema: &RowSchema) -> Vec<KeyStep> {
    schema
        .key
        .iter()
        .enumerate()
        .map(|(index, column)| KeyStep {
            // The codec was made of types that are keys.
            kind: key_type(schema.columns[column.position].pg_type).unwrap_or(KeyType::Bytes),
            order: column.order,
            own_id: index == schema.root_key_columns,
        })
        .collect()
}

impl RowCodec {
    /// What all keys of the root table begin with.
    #[must_use]
    pub fn root_prefix(&self) -> Vec<u8> {
        KeyBuilder::new().table(self.schema.root).finish()
    }

    /// The range of all rows of the root table and what is interleaved in it.
    #[must_use]
    pub fn root_range(&self) -> KeyRange {
        KeyRange::prefix(self.root_prefix())
    }

    /// The key of a row whose primary key has these values, in the key's order; of fewer values,
    /// what all keys with them begin with.
    ///
    /// # Errors
    /// `XX000` if a value isn't of its column's type.
    pub fn key_of(&self, values: &[ScalarValue]) -> Result<Vec<u8>, SqlError> {
        let values = values
            .iter()
            .enumerate()
            .map(|(index, value)| self.key_value(index, value))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(encode(&self.schema, values.into_iter()))
    }

    /// The keys of rows, from an array per column of the primary key, in the key's order.
    ///
    /// # Errors
    /// `XX000` if the arrays are not those.
    pub(crate) fn keys_of(&self, columns: &[ArrayRef]) -> Result<Vec<Vec<u8>>, SqlError> {
        if columns.len() != self.schema.key.len() {
            return Err(SqlError::internal(
                "a key with another number of columns than its table's",
            ));
        }
        let of_key = |(key, array): (&KeyColumn, _)| {
            let array: &ArrayRef = array;
            Column::new(array.as_ref(), self.schema.columns[key.position].pg_type)
        };
        let rows = columns.first().map_or(0, Array::len);
        let columns: Vec<_> =
            self.schema.key.iter().zip(columns).map(of_key).collect::<Result<_, _>>()?;
        let key = |row| encode(&self.schema, columns.iter().map(|column| column.key_value(row)));
        Ok((0..rows).map(key).collect())
    }

    /// The bytes of one column of the key.
    ///
    /// # Errors
    /// `XX000` if the value isn't of its column's type.
    pub fn key_part(&self, index: usize, value: &ScalarValue) -> Result<Vec<u8>, SqlError> {
        let value = self.key_value(index, value)?;
        let order = self.schema.key.get(index).map_or(Order::Asc, |column| column.order);
        Ok(KeyBuilder::new().value(&value, order).finish())
    }

    fn key_value(&self, index: usize, value: &ScalarValue) -> Result<KeyValue, SqlError> {
        let column = self.schema.key.get(index);
        let column = column.ok_or_else(|| SqlError::internal("more values than key columns"))?;
        if value.is_null() {
            return Ok(KeyValue::Null);
        }
        let array = value.to_array().map_err(|error| SqlError::internal(error.to_string()))?;
        let pg_type = self.schema.columns[column.position].pg_type;
        Ok(Column::new(array.as_ref(), pg_type)?.key_value(0))
    }

    /// The keys whose first columns have the values of `prefix` (a NULL means IS NULL) and whose
    /// next column lies between two bounds, in the order of values whatever the column's direction.
    /// A bound excludes NULLs; without any the range holds them.
    ///
    /// # Errors
    /// `XX000` if a value isn't of its column's type.
    pub fn key_range(
        &self,
        prefix: &[ScalarValue],
        lower: Bound<&ScalarValue>,
        upper: Bound<&ScalarValue>,
    ) -> Result<KeyRange, SqlError> {
        let base = self.key_of(prefix)?;
        if let (Bound::Unbounded, Bound::Unbounded) = (lower, upper) {
            return Ok(KeyRange::prefix(base));
        }
        let index = prefix.len();
        let order = self.schema.key.get(index).map(|column| column.order);
        let order = order.ok_or_else(|| SqlError::internal("a bound behind the key's columns"))?;
        let key = |value: &KeyValue| KeyBuilder::from_prefix(&base).value(value, order).finish();
        let bound = |bound: Bound<&ScalarValue>| {
            Ok::<_, SqlError>(match bound {
                Bound::Included(value) => Bound::Included(key(&self.key_value(index, value)?)),
                Bound::Excluded(value) => Bound::Excluded(key(&self.key_value(index, value)?)),
                Bound::Unbounded => Bound::Unbounded,
            })
        };
        let nulls = key(&KeyValue::Null);
        // NULLs come after all values of an ascending column, before those of a descending one.
        let (first, last, open_start, open_end) = match order {
            Order::Asc => (bound(lower)?, bound(upper)?, Some(base.clone()), Some(nulls)),
            Order::Desc => (bound(upper)?, bound(lower)?, prefix_end(&nulls), prefix_end(&base)),
        };
        let start = match first {
            Bound::Included(key) => Some(key),
            Bound::Excluded(key) => prefix_end(&key),
            Bound::Unbounded => open_start,
        };
        let end = match last {
            Bound::Included(key) => prefix_end(&key),
            Bound::Excluded(key) => Some(key),
            Bound::Unbounded => open_end,
        };
        // Keys begin with a table's id, so there is a key behind each.
        let start = start.unwrap_or(base);
        let end = end.map(|end| end.max(start.clone()));
        Ok(KeyRange { start, end })
    }

    /// Whether a key is that of a row of this table, and not of one interleaved beside it.
    ///
    /// # Errors
    /// `XX001`
    pub fn owns(&self, key: &[u8]) -> Result<bool, SqlError> {
        let mut reader = KeyReader::new(key);
        if reader.table().map_err(|error| corrupted(&error))? != self.schema.root {
            return Ok(false);
        }
        Ok(self.split(key)?.table == self.schema.table)
    }

    /// The id of the table that the row of a key belongs to: this one, or another of its root's.
    ///
    /// # Errors
    /// `XX001`
    pub fn table_of(&self, key: &[u8]) -> Result<u64, SqlError> {
        Ok(self.split(key)?.table)
    }

    /// Takes the key of a row of any table of the root apart.
    ///
    /// # Errors
    /// `XX001`
    pub(crate) fn split<'k>(&self, key: &'k [u8]) -> Result<KeySplit<'k>, SqlError> {
        let mut reader = KeyReader::new(key);
        reader.table().map_err(|error| corrupted(&error))?;
        for (kind, order) in self.root_key.iter() {
            reader.value(*kind, *order).map_err(|error| corrupted(&error))?;
        }
        let directory = reader.consumed();
        let table = reader.table().map_err(|error| corrupted(&error))?;
        Ok(KeySplit { directory, table, rest: reader.remaining() })
    }

    /// The key of the row that a row of this table lies below, in the table `ancestor` whose
    /// primary key has as many columns as given.
    ///
    /// # Errors
    /// `XX001`
    pub(crate) fn key_above(
        &self,
        key: &[u8],
        ancestor: u64,
        columns: usize,
    ) -> Result<Vec<u8>, SqlError> {
        let split = self.split(key)?;
        let mut reader = KeyReader::new(split.rest);
        let own = steps(&self.schema);
        for step in own.iter().take(columns).skip(self.schema.root_key_columns) {
            reader.value(step.kind, step.order).map_err(|error| corrupted(&error))?;
        }
        Ok([&split.of(ancestor), reader.consumed()].concat())
    }

    /// What the keys of all rows of the table `descendant` begin with that lie below a row of this
    /// one.
    ///
    /// # Errors
    /// `XX001`
    pub(crate) fn prefix_below(&self, key: &[u8], descendant: u64) -> Result<Vec<u8>, SqlError> {
        let split = self.split(key)?;
        Ok([&split.of(descendant), split.rest].concat())
    }

    /// The values of the primary key's columns, in the key's order, as far as the key tells them;
    /// of a part of a key, such as a tablet's boundary, the columns that it holds.
    ///
    /// # Errors
    /// `XX001`
    pub fn decode_key(&self, key: &[u8]) -> Result<Vec<ScalarValue>, SqlError> {
        let mut reader = KeyReader::new(key);
        let mut values = Vec::new();
        reader.table().map_err(|error| corrupted(&error))?;
        for (step, column) in steps(&self.schema).iter().zip(&self.schema.key) {
            if reader.is_empty() {
                break;
            }
            if step.own_id {
                let own = reader.table().map_err(|error| corrupted(&error))?;
                if own != self.schema.table {
                    return Err(SqlError::corrupted("a key of another table"));
                }
                if reader.is_empty() {
                    break;
                }
            }
            let value = reader.value(step.kind, step.order).map_err(|error| corrupted(&error))?;
            values.push(scalar(value, self.schema.columns[column.position].pg_type)?);
        }
        Ok(values)
    }

    /// The primary key of a row for people, as PostgreSQL puts it: `(a, b)=(1, x)`.
    ///
    /// # Errors
    /// `XX001`
    pub fn describe_key(&self, key: &[u8], session: &SessionFormat) -> Result<String, SqlError> {
        self.describe_values(&self.decode_key(key)?, session)
    }

    /// The first columns of the primary key with these values, likewise.
    ///
    /// # Errors
    /// `XX000` if a value isn't of its column's type.
    pub(crate) fn describe_values(
        &self,
        values: &[ScalarValue],
        session: &SessionFormat,
    ) -> Result<String, SqlError> {
        let mut names = Vec::new();
        let mut shown = Vec::new();
        for (value, column) in values.iter().zip(&self.schema.key) {
            let column = &self.schema.columns[column.position];
            names.push(column.name.as_str());
            shown.push(if value.is_null() {
                "null".to_owned()
            } else {
                text::format_scalar(value, column.pg_type, session)?
            });
        }
        Ok(format!("({})=({})", names.join(", "), shown.join(", ")))
    }
}

/// A key's value as a scalar of its column's type.
fn scalar(value: KeyValue, pg_type: PgType) -> Result<ScalarValue, SqlError> {
    let mut builder = super::decode::Builder::new(pg_type, 1);
    builder.append_key(value)?;
    ScalarValue::try_from_array(&builder.finish(), 0)
        .map_err(|error| SqlError::internal(error.to_string()))
}
