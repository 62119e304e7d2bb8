//! Rows to bytes and back.

use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::ScalarValue;
use meridian_storage::{KeyBuilder, KeyReader, KeyType, KeyValue, Order};

use crate::catalog::{ColumnInfo, TableInfo};
use crate::error::SqlError;
use crate::types::{PgType, SessionFormat, text};

pub(crate) fn schema(table: &TableInfo) -> SchemaRef {
    let all: Vec<usize> = (0..table.columns.len()).collect();
    projected_schema(table, &all)
}

pub(crate) fn projected_schema(table: &TableInfo, projection: &[usize]) -> SchemaRef {
    let fields: Vec<_> = projection
        .iter()
        .map(|&position| {
            let column = &table.columns[position];
            column.pg_type.field(&column.name, column.nullable)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

pub(crate) fn key_prefix(table: &TableInfo) -> Vec<u8> {
    KeyBuilder::new().table(table.root).finish()
}

/// A complete key: after the root's columns comes the table's own id.
pub(crate) fn complete_key(table: &TableInfo, prefix: Vec<u8>) -> Vec<u8> {
    KeyBuilder::from_prefix(&prefix).table(table.id).finish()
}

/// The bytes of one column of a key; `None` where the value isn't of the column's type.
pub(crate) fn key_component(column: &ColumnInfo, value: &ScalarValue) -> Option<Vec<u8>> {
    let target = column.pg_type.arrow_type();
    let value = if value.data_type() == target {
        value.clone()
    } else {
        let cast = value.cast_to(&target).ok()?;
        if cast.cast_to(&value.data_type()).ok()? != *value {
            return None;
        }
        cast
    };
    Some(KeyBuilder::new().value(&to_key(column.pg_type, &value)?, Order::Asc).finish())
}

pub(crate) fn encode_key(table: &TableInfo, key: &[ScalarValue]) -> Result<Vec<u8>, SqlError> {
    let mut builder = KeyBuilder::new().table(table.root);
    for (column, value) in table.key_columns().zip(key) {
        let value = to_key(column.pg_type, value).ok_or_else(bad)?;
        builder = builder.value(&value, Order::Asc);
    }
    Ok(builder.table(table.id).finish())
}

pub(crate) fn encode_row(
    table: &TableInfo,
    values: &[ScalarValue],
) -> Result<(Vec<u8>, Vec<u8>), SqlError> {
    let key: Vec<_> = table.primary_key.iter().map(|&p| values[p].clone()).collect();
    let mut value = KeyBuilder::new();
    for (position, column) in table.columns.iter().enumerate() {
        if !table.is_key_column(position) {
            let v = to_key(column.pg_type, &values[position]).ok_or_else(bad)?;
            value = value.value(&v, Order::Asc);
        }
    }
    Ok((encode_key(table, &key)?, value.finish()))
}

pub(crate) fn decode_key(table: &TableInfo, key: &[u8]) -> Result<Vec<ScalarValue>, SqlError> {
    let mut reader = KeyReader::new(key);
    reader.table().map_err(|_| bad())?;
    table
        .key_columns()
        .map(|column| {
            let value = reader.value(kind(column.pg_type), Order::Asc).map_err(|_| bad())?;
            from_key(column.pg_type, value)
        })
        .collect()
}

pub(crate) fn decode_row(
    table: &TableInfo,
    key: &[u8],
    value: &[u8],
) -> Result<Vec<ScalarValue>, SqlError> {
    let mut values = vec![ScalarValue::Null; table.columns.len()];
    for (&position, value) in table.primary_key.iter().zip(decode_key(table, key)?) {
        values[position] = value;
    }
    let mut reader = KeyReader::new(value);
    for (position, column) in table.columns.iter().enumerate() {
        if !table.is_key_column(position) {
            let v = reader.value(kind(column.pg_type), Order::Asc).map_err(|_| bad())?;
            values[position] = from_key(column.pg_type, v)?;
        }
    }
    Ok(values)
}

pub(crate) struct Decoder {
    table: Arc<TableInfo>,
    columns: Vec<usize>,
    rows: Vec<Vec<ScalarValue>>,
}

impl Decoder {
    pub(crate) fn new(table: &Arc<TableInfo>, columns: &[usize], _: usize) -> Self {
        Self { table: Arc::clone(table), columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), SqlError> {
        self.rows.push(decode_row(&self.table, key, value)?);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<RecordBatch, SqlError> {
        let schema = projected_schema(&self.table, &self.columns);
        let arrays: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|&c| {
                if self.rows.is_empty() {
                    return datafusion::arrow::array::new_empty_array(
                        &self.table.columns[c].pg_type.arrow_type(),
                    );
                }
                ScalarValue::iter_to_array(self.rows.iter().map(|r| r[c].clone())).unwrap()
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.len()));
        RecordBatch::try_new_with_options(schema, arrays, &options).map_err(|_| bad())
    }
}

fn bad() -> SqlError {
    SqlError::corrupted("a row's bytes make no sense")
}

fn kind(pg_type: PgType) -> KeyType {
    match pg_type {
        PgType::Bool => KeyType::Bool,
        PgType::Int2 | PgType::Int4 | PgType::Int8 => KeyType::Int,
        PgType::Float4 | PgType::Float8 => KeyType::Float,
        PgType::Numeric { .. } => KeyType::Decimal,
        PgType::Bytea => KeyType::Bytes,
        PgType::Date => KeyType::Date,
        PgType::Time => KeyType::Time,
        PgType::Timestamp | PgType::Timestamptz => KeyType::Timestamp,
        PgType::Interval => KeyType::Interval,
        PgType::Uuid => KeyType::Uuid,
        _ => KeyType::Text,
    }
}

fn to_key(_: PgType, value: &ScalarValue) -> Option<KeyValue> {
    if value.is_null() {
        return Some(KeyValue::Null);
    }
    Some(match value {
        ScalarValue::Boolean(Some(v)) => KeyValue::Bool(*v),
        ScalarValue::Int16(Some(v)) => KeyValue::Int(i64::from(*v)),
        ScalarValue::Int32(Some(v)) => KeyValue::Int(i64::from(*v)),
        ScalarValue::Int64(Some(v)) => KeyValue::Int(*v),
        ScalarValue::Float32(Some(v)) => KeyValue::Float(f64::from(*v)),
        ScalarValue::Float64(Some(v)) => KeyValue::Float(*v),
        ScalarValue::Decimal128(Some(v), _, _) => KeyValue::Decimal(*v),
        ScalarValue::Utf8(Some(v)) => KeyValue::Text(v.clone()),
        ScalarValue::Binary(Some(v)) => KeyValue::Bytes(v.clone()),
        ScalarValue::Date32(Some(v)) => KeyValue::Date(*v),
        ScalarValue::Time64Microsecond(Some(v)) => KeyValue::Time(*v),
        ScalarValue::TimestampMicrosecond(Some(v), _) => KeyValue::Timestamp(*v),
        ScalarValue::FixedSizeBinary(16, Some(v)) => KeyValue::Uuid(v.as_slice().try_into().ok()?),
        _ => return None,
    })
}

fn from_key(pg_type: PgType, value: KeyValue) -> Result<ScalarValue, SqlError> {
    let null = ScalarValue::try_from(&pg_type.arrow_type()).map_err(|_| bad())?;
    Ok(match (value, &null) {
        (KeyValue::Null, _) => null,
        (KeyValue::Bool(v), _) => ScalarValue::Boolean(Some(v)),
        (KeyValue::Int(v), ScalarValue::Int16(_)) => ScalarValue::Int16(i16::try_from(v).ok()),
        (KeyValue::Int(v), ScalarValue::Int32(_)) => ScalarValue::Int32(i32::try_from(v).ok()),
        (KeyValue::Int(v), _) => ScalarValue::Int64(Some(v)),
        #[expect(clippy::cast_possible_truncation, reason = "it was encoded from an f32")]
        (KeyValue::Float(v), ScalarValue::Float32(_)) => ScalarValue::Float32(Some(v as f32)),
        (KeyValue::Float(v), _) => ScalarValue::Float64(Some(v)),
        (KeyValue::Decimal(v), ScalarValue::Decimal128(_, p, s)) => {
            ScalarValue::Decimal128(Some(v), *p, *s)
        }
        (KeyValue::Text(v), _) => ScalarValue::Utf8(Some(v)),
        (KeyValue::Bytes(v), _) => ScalarValue::Binary(Some(v)),
        (KeyValue::Date(v), _) => ScalarValue::Date32(Some(v)),
        (KeyValue::Time(v), _) => ScalarValue::Time64Microsecond(Some(v)),
        (KeyValue::Timestamp(v), ScalarValue::TimestampMicrosecond(_, tz)) => {
            ScalarValue::TimestampMicrosecond(Some(v), tz.clone())
        }
        (KeyValue::Uuid(v), _) => ScalarValue::FixedSizeBinary(16, Some(v.to_vec())),
        _ => return Err(bad()),
    })
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
        let mut reader = KeyReader::new(key);
        let mut values = Vec::new();
        if reader.table().is_err() {
            return Self::default();
        }
        for column in table.key_columns() {
            if reader.is_empty() {
                return Self { values, complete: true };
            }
            let Ok(value) = reader.value(kind(column.pg_type), Order::Asc) else {
                return Self { values, complete: false };
            };
            let Ok(value) = from_key(column.pg_type, value) else {
                return Self { values, complete: false };
            };
            values.push(quoted(&value, column.pg_type));
        }
        let complete = reader.is_empty() || reader.table().is_ok() && reader.is_empty();
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
