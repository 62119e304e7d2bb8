//! Rows as keys and values.
//!
//! A row of a table is one pair of bytes in the ordered key space. The key holds the primary key,
//! encoded such that it sorts (see [`meridian_storage::KeyBuilder`]), behind the root table's id and around
//! the table's own. The value holds the other columns. This module is the codec between such pairs
//! and Arrow's columns, and the hot path of every scan: a decoder appends straight to Arrow's
//! builders and touches only the columns that are asked for.
//!
//! # The value
//!
//! ```text
//! version = 1 | tag | bytes | tag | bytes | ...
//! ```
//!
//! A tag is `(column id - previous column id) << 3 | kind` as a varint, one byte as long as ids
//! don't jump. The kind says how long the bytes are, so that a reader skips a column that it doesn't
//! know. Columns come in the order of their ids; NULL is absent.
//!
//! | kind | bytes | types |
//! |---|---|---|
//! | 0 | zigzag varint | integers, date, time, numeric that fits 64 bits |
//! | 1 | 4 | real |
//! | 2 | 8 | double precision, timestamp, timestamptz |
//! | 3 | 16 | uuid, interval, longer numeric |
//! | 4 | varint length, bytes | text, varchar, char, jsonb, bytea |
//! | 5, 6 | none | false, true |
//!
//! So an added column needs no rewriting (old rows lack it: NULL), nor does a dropped one (its id
//! isn't used again), nor a wider integer type.
//!
//! # What a key loses
//!
//! Two values that PostgreSQL holds equal have one key: `-0.0` and `0.0`, `1 mon` and `30 days`.
//! Where the key doesn't give back the very value, the value is stored in the value as well: every
//! interval, and `-0.0`. The order of strings is that of their bytes (collation "C"); a `char(n)` is
//! stored without the blanks at its end.
//!
//! # Caveats
//!
//! A range that covers less than the root's whole key also holds the rows of tables interleaved in
//! it: ask [`RowCodec::owns`]. `jsonb` is no key here.

mod column;
mod decode;
mod key;
mod owned;
#[cfg(test)]
mod tests;
mod value;

use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::ScalarValue;
use meridian_storage::{KeyType, Order};

use crate::error::SqlError;
use crate::types::PgType;

pub use decode::RowDecoder;
pub use key::key_type;
pub(crate) use owned::Owned;

use column::Column;

/// A column of a stored table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowColumn {
    /// Identifies it in stored values; at least 1, unique in the table, never used again.
    pub id: u32,
    /// Its name, for the decoded batches.
    pub name: String,
    /// Its type.
    pub pg_type: PgType,
    /// Whether it may be NULL.
    pub nullable: bool,
}

/// A column of the primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its position among the table's columns.
    pub position: usize,
    /// Its direction.
    pub order: Order,
}

/// What the codec has to know of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSchema {
    /// The id of the root table: its own, or that of the table that it is interleaved in.
    pub root: u64,
    /// The table's own id.
    pub table: u64,
    /// All columns.
    pub columns: Vec<RowColumn>,
    /// The primary key.
    pub key: Vec<KeyColumn>,
    /// How many of the key's columns are the root's: all of them for a root table.
    pub root_key_columns: usize,
}

/// Encodes and decodes the rows of one table.
#[derive(Debug, Clone)]
pub struct RowCodec {
    schema: Arc<RowSchema>,
    /// Positions of the columns that a value may hold, by their ids.
    stored: Arc<[usize]>,
    /// How the root's columns of a key are read.
    root_key: Arc<[(KeyType, Order)]>,
}

/// The columns of some rows, ready to be encoded. Made once, it encodes many rows.
pub struct RowEncoder<'a> {
    codec: &'a RowCodec,
    columns: Vec<Column<'a>>,
}

impl RowCodec {
    /// A codec for a table.
    ///
    /// # Errors
    /// `0A000` if a column has a type that isn't stored, or the key one that can't be a key.
    pub fn new(schema: RowSchema) -> Result<Self, SqlError> {
        for column in &schema.columns {
            if !column.pg_type.is_storable() {
                return Err(SqlError::unsupported(format!(
                    "columns of type {} are not supported",
                    column.pg_type
                ))
                .column(&column.name));
            }
        }
        let defect = |what: &str| SqlError::internal(format!("table {}: {what}", schema.table));
        for key in &schema.key {
            let column =
                schema.columns.get(key.position).ok_or_else(|| defect("no such column"))?;
            if key_type(column.pg_type).is_none() {
                return Err(SqlError::unsupported(format!(
                    "a key column of type {} is not supported",
                    column.pg_type
                ))
                .column(&column.name));
            }
        }
        if schema.root_key_columns > schema.key.len() {
            return Err(defect("the root's key is longer than its own"));
        }
        let loses = |position: usize| key::loses(schema.columns[position].pg_type);
        let in_key = |position: usize| schema.key.iter().any(|key| key.position == position);
        let mut stored: Vec<usize> = (0..schema.columns.len())
            .filter(|position| !in_key(*position) || loses(*position))
            .collect();
        stored.sort_by_key(|position| schema.columns[*position].id);
        if schema.columns.iter().any(|column| column.id == 0)
            || stored.windows(2).any(|w| schema.columns[w[0]].id == schema.columns[w[1]].id)
        {
            return Err(defect("column ids must be unique and not 0"));
        }
        let of_root = key::steps(&schema).into_iter().take(schema.root_key_columns);
        let root_key = of_root.map(|step| (step.kind, step.order)).collect();
        Ok(Self { schema: Arc::new(schema), stored: stored.into(), root_key })
    }

    /// The table as it was given.
    #[must_use]
    pub fn schema(&self) -> &RowSchema {
        &self.schema
    }

    /// Arrow's schema of some columns.
    #[must_use]
    pub fn arrow_schema(&self, projection: &[usize]) -> SchemaRef {
        let field = |position: &usize| {
            let column = &self.schema.columns[*position];
            column.pg_type.field(&column.name, column.nullable)
        };
        Arc::new(Schema::new(projection.iter().map(field).collect::<Vec<_>>()))
    }

    /// Prepares rows for encoding: an array per column of the table, in its order, each of its
    /// column's Arrow type.
    ///
    /// # Errors
    /// `XX000` if the arrays are not those.
    pub fn encoder<'a>(&'a self, columns: &'a [ArrayRef]) -> Result<RowEncoder<'a>, SqlError> {
        if columns.len() != self.schema.columns.len() {
            return Err(SqlError::internal("a row with another number of columns than its table"));
        }
        let columns = self
            .schema
            .columns
            .iter()
            .zip(columns)
            .map(|(column, array)| Column::new(array.as_ref(), column.pg_type))
            .collect::<Result<_, _>>()?;
        Ok(RowEncoder { codec: self, columns })
    }

    /// Encodes one row of scalars, all columns in the table's order. For rows that come singly;
    /// many are faster through [`Self::encoder`].
    ///
    /// # Errors
    /// As [`Self::encoder`].
    pub fn encode_scalars(&self, row: &[ScalarValue]) -> Result<(Vec<u8>, Vec<u8>), SqlError> {
        let arrays = row
            .iter()
            .map(|value| value.to_array().map_err(|e| SqlError::internal(e.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        let encoder = self.encoder(&arrays)?;
        Ok((encoder.key(0), encoder.value(0)))
    }

    /// Decodes one row into scalars, all columns in the table's order.
    ///
    /// # Errors
    /// `XX001`.
    pub fn decode_scalars(&self, key: &[u8], value: &[u8]) -> Result<Vec<ScalarValue>, SqlError> {
        let all: Vec<usize> = (0..self.schema.columns.len()).collect();
        let mut decoder = self.decoder(&all, 1);
        decoder.push(key, value)?;
        let batch = decoder.finish()?;
        batch
            .columns()
            .iter()
            .map(|array| {
                ScalarValue::try_from_array(array, 0).map_err(|e| SqlError::internal(e.to_string()))
            })
            .collect()
    }

    /// A decoder into batches of some columns, by their positions, each at most once.
    #[must_use]
    pub fn decoder(&self, projection: &[usize], capacity: usize) -> RowDecoder {
        RowDecoder::new(self, projection, capacity)
    }
}

impl RowEncoder<'_> {
    /// The key of a row.
    #[must_use]
    pub fn key(&self, row: usize) -> Vec<u8> {
        let schema = &self.codec.schema;
        let values = schema.key.iter().map(|key| self.columns[key.position].key_value(row));
        key::encode(schema, values)
    }

    /// The value of a row.
    #[must_use]
    pub fn value(&self, row: usize) -> Vec<u8> {
        let schema = &self.codec.schema;
        let mut writer = value::Writer::with_capacity(16 + self.codec.stored.len() * 8);
        for position in self.codec.stored.iter() {
            let in_key = schema.key.iter().any(|key| key.position == *position);
            let column = &self.columns[*position];
            if !in_key || column.key_loses(row) {
                column.write(row, schema.columns[*position].id, &mut writer);
            }
        }
        writer.finish()
    }
}
