//! From keys and values to Arrow's columns.

use std::sync::Arc;

use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use datafusion::arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, PrimitiveBuilder,
    StringBuilder,
};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};
use meridian_storage::{KeyReader, KeyValue};

use super::RowCodec;
use super::column::interval_from_bytes;
use super::key::{KeyStep, corrupted, loses, steps};
use super::value::{Reader, Stored, malformed};
use crate::error::SqlError;
use crate::types::PgType;

/// Collects rows into batches of some columns.
pub struct RowDecoder {
    schema: SchemaRef,
    builders: Vec<Builder>,
    rows: usize,
    /// The key's columns up to the last one that is wanted, each with its builder if it is.
    key: Vec<(KeyStep, Option<usize>)>,
    /// The wanted columns that a value may hold: id and builder, by id.
    value: Vec<(u32, usize)>,
    /// For each builder, what the key said where the value may say it more exactly.
    held: Vec<Option<KeyValue>>,
}

impl RowDecoder {
    pub(super) fn new(codec: &RowCodec, projection: &[usize], capacity: usize) -> Self {
        let table = codec.schema();
        let slot = |position: usize| projection.iter().position(|wanted| *wanted == position);
        let mut key: Vec<_> = steps(table)
            .into_iter()
            .zip(&table.key)
            .map(|(step, column)| (step, slot(column.position)))
            .collect();
        let used = key.iter().rposition(|(_, slot)| slot.is_some()).map_or(0, |last| last + 1);
        key.truncate(used);
        let value = codec
            .stored
            .iter()
            .filter_map(|position| Some((table.columns[*position].id, slot(*position)?)))
            .collect();
        let builders = projection
            .iter()
            .map(|position| Builder::new(table.columns[*position].pg_type, capacity))
            .collect();
        let held = vec![None; projection.len()];
        Self { schema: codec.arrow_schema(projection), builders, rows: 0, key, value, held }
    }

    /// The rows collected so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether no row has been collected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The schema of the batches.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds a row.
    ///
    /// # Errors
    /// `XX001` for bytes that are no row of this table; the decoder is of no further use then.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), SqlError> {
        if !self.key.is_empty() {
            self.read_key(key)?;
        }
        if !self.value.is_empty() {
            self.read_value(value)?;
        }
        self.rows += 1;
        Ok(())
    }

    fn read_key(&mut self, key: &[u8]) -> Result<(), SqlError> {
        let mut reader = KeyReader::new(key);
        reader.table().map_err(|error| corrupted(&error))?;
        for (step, slot) in &self.key {
            if step.own_id {
                reader.table().map_err(|error| corrupted(&error))?;
            }
            let value = reader.value(step.kind, step.order).map_err(|error| corrupted(&error))?;
            let Some(slot) = *slot else { continue };
            let builder = &mut self.builders[slot];
            if builder.key_loses {
                self.held[slot] = Some(value);
            } else {
                builder.append_key(value)?;
            }
        }
        Ok(())
    }

    fn read_value(&mut self, value: &[u8]) -> Result<(), SqlError> {
        let mut reader = Reader::new(value)?;
        let mut stored = reader.next()?;
        for (id, slot) in &self.value {
            while stored.is_some_and(|(found, _)| found < *id) {
                stored = reader.next()?;
            }
            let builder = &mut self.builders[*slot];
            let held = self.held[*slot].take();
            match (stored, held) {
                (Some((found, column)), _) if found == *id => builder.append_stored(column)?,
                (_, Some(key)) => builder.append_key(key)?,
                _ => builder.append_null(),
            }
        }
        Ok(())
    }

    /// The batch of the rows collected; the decoder then begins the next one.
    ///
    /// # Errors
    /// `XX001` if a column that isn't nullable lacks a value.
    pub fn finish(&mut self) -> Result<RecordBatch, SqlError> {
        let columns = self.builders.iter_mut().map(Builder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        self.rows = 0;
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|error| SqlError::corrupted(format!("stored rows don't fit: {error}")))
    }
}

/// Builds the array of one column.
pub(super) struct Builder {
    array: ArrayBuilder,
    /// Whether the value may say more exactly what the key says.
    key_loses: bool,
}

enum ArrayBuilder {
    Bool(BooleanBuilder),
    Int2(PrimitiveBuilder<Int16Type>),
    Int4(PrimitiveBuilder<Int32Type>),
    Int8(PrimitiveBuilder<Int64Type>),
    Float4(PrimitiveBuilder<Float32Type>),
    Float8(PrimitiveBuilder<Float64Type>),
    Numeric(PrimitiveBuilder<Decimal128Type>),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Date(PrimitiveBuilder<Date32Type>),
    Time(PrimitiveBuilder<Time64MicrosecondType>),
    Timestamp(PrimitiveBuilder<TimestampMicrosecondType>),
    Interval(PrimitiveBuilder<IntervalMonthDayNanoType>),
    Uuid(FixedSizeBinaryBuilder),
}

impl Builder {
    pub fn new(pg_type: PgType, capacity: usize) -> Self {
        fn primitive<T: ArrowPrimitiveType>(
            pg_type: PgType,
            capacity: usize,
        ) -> PrimitiveBuilder<T> {
            PrimitiveBuilder::with_capacity(capacity).with_data_type(pg_type.arrow_type())
        }
        use ArrayBuilder as A;
        let array = match pg_type {
            PgType::Bool => A::Bool(BooleanBuilder::with_capacity(capacity)),
            PgType::Int2 => A::Int2(primitive(pg_type, capacity)),
            PgType::Int4 => A::Int4(primitive(pg_type, capacity)),
            PgType::Int8 => A::Int8(primitive(pg_type, capacity)),
            PgType::Float4 => A::Float4(primitive(pg_type, capacity)),
            PgType::Float8 => A::Float8(primitive(pg_type, capacity)),
            PgType::Numeric { .. } => A::Numeric(primitive(pg_type, capacity)),
            PgType::Bytea => A::Bytes(BinaryBuilder::with_capacity(capacity, capacity * 16)),
            PgType::Date => A::Date(primitive(pg_type, capacity)),
            PgType::Time => A::Time(primitive(pg_type, capacity)),
            PgType::Timestamp | PgType::Timestamptz => A::Timestamp(primitive(pg_type, capacity)),
            PgType::Interval => A::Interval(primitive(pg_type, capacity)),
            PgType::Uuid => A::Uuid(FixedSizeBinaryBuilder::with_capacity(capacity, 16)),
            // The codec was made of types that are stored: the rest are strings.
            _ => A::Text(StringBuilder::with_capacity(capacity, capacity * 16)),
        };
        Self { array, key_loses: loses(pg_type) }
    }

    fn append_null(&mut self) {
        match &mut self.array {
            ArrayBuilder::Bool(builder) => builder.append_null(),
            ArrayBuilder::Int2(builder) => builder.append_null(),
            ArrayBuilder::Int4(builder) => builder.append_null(),
            ArrayBuilder::Int8(builder) => builder.append_null(),
            ArrayBuilder::Float4(builder) => builder.append_null(),
            ArrayBuilder::Float8(builder) => builder.append_null(),
            ArrayBuilder::Numeric(builder) => builder.append_null(),
            ArrayBuilder::Text(builder) => builder.append_null(),
            ArrayBuilder::Bytes(builder) => builder.append_null(),
            ArrayBuilder::Date(builder) => builder.append_null(),
            ArrayBuilder::Time(builder) => builder.append_null(),
            ArrayBuilder::Timestamp(builder) => builder.append_null(),
            ArrayBuilder::Interval(builder) => builder.append_null(),
            ArrayBuilder::Uuid(builder) => builder.append_null(),
        }
    }

    pub fn append_key(&mut self, value: KeyValue) -> Result<(), SqlError> {
        use ArrayBuilder as A;
        let misfit = || SqlError::corrupted("a stored row's key doesn't fit its table");
        match (&mut self.array, value) {
            (_, KeyValue::Null) => self.append_null(),
            (A::Bool(builder), KeyValue::Bool(value)) => builder.append_value(value),
            (A::Int2(builder), KeyValue::Int(value)) => {
                builder.append_value(i16::try_from(value).map_err(|_| misfit())?);
            }
            (A::Int4(builder), KeyValue::Int(value)) => {
                builder.append_value(i32::try_from(value).map_err(|_| misfit())?);
            }
            (A::Int8(builder), KeyValue::Int(value)) => builder.append_value(value),
            (A::Float4(builder), KeyValue::Float(value)) => {
                #[expect(clippy::cast_possible_truncation, reason = "it was a real before")]
                builder.append_value(value as f32);
            }
            (A::Float8(builder), KeyValue::Float(value)) => builder.append_value(value),
            (A::Numeric(builder), KeyValue::Decimal(value)) => builder.append_value(value),
            (A::Text(builder), KeyValue::Text(value)) => builder.append_value(value),
            (A::Bytes(builder), KeyValue::Bytes(value)) => builder.append_value(value),
            (A::Date(builder), KeyValue::Date(value)) => builder.append_value(value),
            (A::Time(builder), KeyValue::Time(value)) => builder.append_value(value),
            (A::Timestamp(builder), KeyValue::Timestamp(value)) => builder.append_value(value),
            (A::Interval(builder), KeyValue::Interval(micros)) => {
                builder.append_value(spread(micros).ok_or_else(misfit)?);
            }
            (A::Uuid(builder), KeyValue::Uuid(value)) => {
                builder.append_value(value).map_err(|_| misfit())?;
            }
            _ => return Err(misfit()),
        }
        Ok(())
    }

    fn append_stored(&mut self, value: Stored<'_>) -> Result<(), SqlError> {
        use ArrayBuilder as A;
        match (&mut self.array, value) {
            (A::Bool(builder), Stored::Bool(value)) => builder.append_value(value),
            (A::Int2(builder), Stored::Int(value)) => {
                builder.append_value(i16::try_from(value).map_err(|_| malformed())?);
            }
            (A::Int4(builder), Stored::Int(value)) => {
                builder.append_value(i32::try_from(value).map_err(|_| malformed())?);
            }
            (A::Int8(builder), Stored::Int(value)) => builder.append_value(value),
            (A::Time(builder), Stored::Int(value)) => builder.append_value(value),
            (A::Float4(builder), Stored::Fixed4(bytes)) => {
                builder.append_value(f32::from_le_bytes(bytes));
            }
            (A::Float8(builder), Stored::Fixed8(bytes)) => {
                builder.append_value(f64::from_le_bytes(bytes));
            }
            (A::Numeric(builder), Stored::Int(value)) => builder.append_value(i128::from(value)),
            (A::Numeric(builder), Stored::Fixed16(bytes)) => {
                builder.append_value(i128::from_le_bytes(bytes));
            }
            (A::Text(builder), Stored::Bytes(bytes)) => {
                builder.append_value(std::str::from_utf8(bytes).map_err(|_| malformed())?);
            }
            (A::Bytes(builder), Stored::Bytes(bytes)) => builder.append_value(bytes),
            (A::Date(builder), Stored::Int(value)) => {
                builder.append_value(i32::try_from(value).map_err(|_| malformed())?);
            }
            (A::Timestamp(builder), Stored::Fixed8(bytes)) => {
                builder.append_value(i64::from_le_bytes(bytes));
            }
            (A::Interval(builder), Stored::Fixed16(bytes)) => {
                builder.append_value(interval_from_bytes(bytes));
            }
            (A::Uuid(builder), Stored::Fixed16(bytes)) => {
                builder.append_value(bytes).map_err(|_| malformed())?;
            }
            _ => return Err(malformed()),
        }
        Ok(())
    }

    pub fn finish(&mut self) -> ArrayRef {
        match &mut self.array {
            ArrayBuilder::Bool(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Int2(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Int4(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Int8(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Float4(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Float8(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Numeric(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Text(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Bytes(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Date(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Time(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Timestamp(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Interval(builder) => Arc::new(builder.finish()),
            ArrayBuilder::Uuid(builder) => Arc::new(builder.finish()),
        }
    }
}

/// An interval that compares equal to one of so many microseconds: days, and the rest as time.
fn spread(micros: i128) -> Option<IntervalMonthDayNano> {
    const MICROS_PER_DAY: i128 = 86_400_000_000;
    let days = micros.div_euclid(MICROS_PER_DAY);
    let nanos = micros.rem_euclid(MICROS_PER_DAY) * 1000;
    // More days than an i32 holds come of months.
    let months = if i32::try_from(days).is_ok() { 0 } else { days / 30 };
    Some(IntervalMonthDayNano::new(
        i32::try_from(months).ok()?,
        i32::try_from(days - months * 30).ok()?,
        i64::try_from(nanos).ok()?,
    ))
}
