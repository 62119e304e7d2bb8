//! A column of rows to be encoded, its array's type known once for all rows.

use datafusion::arrow::array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    IntervalMonthDayNano, IntervalMonthDayNanoType, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use datafusion::arrow::array::{
    Array, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, StringArray,
};
use meridian_storage::KeyValue;

use super::value::{Stored, Writer};
use crate::error::SqlError;
use crate::types::PgType;

pub(super) enum Column<'a> {
    Bool(&'a BooleanArray),
    Int2(&'a PrimitiveArray<Int16Type>),
    Int4(&'a PrimitiveArray<Int32Type>),
    Int8(&'a PrimitiveArray<Int64Type>),
    Float4(&'a PrimitiveArray<Float32Type>),
    Float8(&'a PrimitiveArray<Float64Type>),
    Numeric(&'a PrimitiveArray<Decimal128Type>),
    Text(&'a StringArray),
    Bytes(&'a BinaryArray),
    Date(&'a PrimitiveArray<Date32Type>),
    Time(&'a PrimitiveArray<Time64MicrosecondType>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>),
    Interval(&'a PrimitiveArray<IntervalMonthDayNanoType>),
    Uuid(&'a FixedSizeBinaryArray),
}

impl<'a> Column<'a> {
    pub fn new(array: &'a dyn Array, pg_type: PgType) -> Result<Self, SqlError> {
        if *array.data_type() != pg_type.arrow_type() {
            return Err(SqlError::internal(format!(
                "a column of type {pg_type} can't be made of {}",
                array.data_type()
            )));
        }
        Ok(match pg_type {
            PgType::Bool => Self::Bool(array.as_boolean()),
            PgType::Int2 => Self::Int2(array.as_primitive()),
            PgType::Int4 => Self::Int4(array.as_primitive()),
            PgType::Int8 => Self::Int8(array.as_primitive()),
            PgType::Float4 => Self::Float4(array.as_primitive()),
            PgType::Float8 => Self::Float8(array.as_primitive()),
            PgType::Numeric { .. } => Self::Numeric(array.as_primitive()),
            PgType::Text | PgType::Varchar(_) | PgType::Char(_) | PgType::Jsonb => {
                Self::Text(array.as_string())
            }
            PgType::Bytea => Self::Bytes(array.as_binary()),
            PgType::Date => Self::Date(array.as_primitive()),
            PgType::Time => Self::Time(array.as_primitive()),
            PgType::Timestamp | PgType::Timestamptz => Self::Timestamp(array.as_primitive()),
            PgType::Interval => Self::Interval(array.as_primitive()),
            PgType::Uuid => Self::Uuid(array.as_fixed_size_binary()),
            other => {
                return Err(SqlError::internal(format!("values of type {other} are not stored")));
            }
        })
    }

    fn array(&self) -> &dyn Array {
        match self {
            Self::Bool(array) => *array,
            Self::Int2(array) => *array,
            Self::Int4(array) => *array,
            Self::Int8(array) => *array,
            Self::Float4(array) => *array,
            Self::Float8(array) => *array,
            Self::Numeric(array) => *array,
            Self::Text(array) => *array,
            Self::Bytes(array) => *array,
            Self::Date(array) => *array,
            Self::Time(array) => *array,
            Self::Timestamp(array) => *array,
            Self::Interval(array) => *array,
            Self::Uuid(array) => *array,
        }
    }

    /// The value in a key.
    pub fn key_value(&self, row: usize) -> KeyValue {
        if self.array().is_null(row) {
            return KeyValue::Null;
        }
        match self {
            Self::Bool(array) => KeyValue::Bool(array.value(row)),
            Self::Int2(array) => KeyValue::Int(i64::from(array.value(row))),
            Self::Int4(array) => KeyValue::Int(i64::from(array.value(row))),
            Self::Int8(array) => KeyValue::Int(array.value(row)),
            Self::Float4(array) => KeyValue::Float(f64::from(array.value(row))),
            Self::Float8(array) => KeyValue::Float(array.value(row)),
            Self::Numeric(array) => KeyValue::Decimal(array.value(row)),
            Self::Text(array) => KeyValue::Text(array.value(row).to_owned()),
            Self::Bytes(array) => KeyValue::Bytes(array.value(row).to_vec()),
            Self::Date(array) => KeyValue::Date(array.value(row)),
            Self::Time(array) => KeyValue::Time(array.value(row)),
            Self::Timestamp(array) => KeyValue::Timestamp(array.value(row)),
            Self::Interval(array) => KeyValue::Interval(normalized(array.value(row))),
            Self::Uuid(array) => KeyValue::Uuid(uuid(array.value(row))),
        }
    }

    /// Whether the key doesn't give back this very value.
    pub fn key_loses(&self, row: usize) -> bool {
        match self {
            Self::Interval(_) => true,
            Self::Float4(array) => array.value(row).to_bits() == (-0.0_f32).to_bits(),
            Self::Float8(array) => array.value(row).to_bits() == (-0.0_f64).to_bits(),
            _ => false,
        }
    }

    /// Writes the value, unless it is NULL.
    pub fn write(&self, row: usize, id: u32, writer: &mut Writer) {
        if self.array().is_null(row) {
            return;
        }
        let stored = match self {
            Self::Bool(array) => Stored::Bool(array.value(row)),
            Self::Int2(array) => Stored::Int(i64::from(array.value(row))),
            Self::Int4(array) => Stored::Int(i64::from(array.value(row))),
            Self::Int8(array) => Stored::Int(array.value(row)),
            Self::Float4(array) => Stored::Fixed4(array.value(row).to_le_bytes()),
            Self::Float8(array) => Stored::Fixed8(array.value(row).to_le_bytes()),
            Self::Numeric(array) => match i64::try_from(array.value(row)) {
                Ok(value) => Stored::Int(value),
                Err(_) => Stored::Fixed16(array.value(row).to_le_bytes()),
            },
            Self::Text(array) => Stored::Bytes(array.value(row).as_bytes()),
            Self::Bytes(array) => Stored::Bytes(array.value(row)),
            Self::Date(array) => Stored::Int(i64::from(array.value(row))),
            Self::Time(array) => Stored::Int(array.value(row)),
            Self::Timestamp(array) => Stored::Fixed8(array.value(row).to_le_bytes()),
            Self::Interval(array) => Stored::Fixed16(interval_bytes(array.value(row))),
            Self::Uuid(array) => Stored::Fixed16(uuid(array.value(row))),
        };
        writer.put(id, stored);
    }
}

/// An array of 16-byte values has only such.
pub(super) fn uuid(bytes: &[u8]) -> [u8; 16] {
    bytes.try_into().unwrap_or_default()
}

const MICROS_PER_DAY: i128 = 86_400_000_000;

/// As PostgreSQL compares intervals: a month is 30 days, a day 24 hours.
pub(super) fn normalized(interval: IntervalMonthDayNano) -> i128 {
    let days = i128::from(interval.months) * 30 + i128::from(interval.days);
    days * MICROS_PER_DAY + i128::from(interval.nanoseconds.div_euclid(1000))
}

/// Months, days and microseconds, 4, 4 and 8 bytes; finer fractions are no part of an interval.
fn interval_bytes(interval: IntervalMonthDayNano) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&interval.months.to_le_bytes());
    bytes[4..8].copy_from_slice(&interval.days.to_le_bytes());
    bytes[8..].copy_from_slice(&interval.nanoseconds.div_euclid(1000).to_le_bytes());
    bytes
}

pub(super) fn interval_from_bytes(bytes: [u8; 16]) -> IntervalMonthDayNano {
    let half = |at: usize| {
        let mut half = [0; 4];
        half.copy_from_slice(&bytes[at..at + 4]);
        i32::from_le_bytes(half)
    };
    let mut micros = [0; 8];
    micros.copy_from_slice(&bytes[8..]);
    let nanos = i64::from_le_bytes(micros).saturating_mul(1000);
    IntervalMonthDayNano::new(half(0), half(4), nanos)
}
