//! One cell of any Arrow array, as the few kinds of values that the wire knows.

use datafusion::arrow::array::types::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
    DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType,
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    IntervalDayTimeType, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalYearMonthType,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StructArray};
use datafusion::arrow::datatypes::{DataType, IntervalUnit, TimeUnit, i256};

use super::calendar::{TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY};
use crate::error::{SqlError, SqlState};

/// A value, borrowed from its array.
pub(super) enum Cell<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Unsigned(u64),
    Float4(f32),
    Float8(f64),
    /// Unscaled value and scale.
    Decimal(i128, i8),
    WideDecimal(i256, i8),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Days.
    Date(i32),
    /// Microseconds.
    Time(i64),
    /// Microseconds.
    Timestamp(i64),
    Interval(IntervalMonthDayNano),
    List(ArrayRef),
    /// A record and its row.
    Struct(&'a StructArray, usize),
}

fn overflow() -> SqlError {
    SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, "date/time value out of range")
}

/// A count of some unit in microseconds; `infinity` stays what it is.
fn micros(value: i64, unit: TimeUnit) -> Result<i64, SqlError> {
    if matches!(value, TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY) {
        return Ok(value);
    }
    match unit {
        TimeUnit::Second => value.checked_mul(1_000_000).ok_or_else(overflow),
        TimeUnit::Millisecond => value.checked_mul(1000).ok_or_else(overflow),
        TimeUnit::Microsecond => Ok(value),
        TimeUnit::Nanosecond => Ok(value.div_euclid(1000)),
    }
}

fn duration(value: i64, unit: TimeUnit) -> Result<Cell<'static>, SqlError> {
    let nanos = match unit {
        TimeUnit::Nanosecond => Some(value),
        unit => micros(value, unit)?.checked_mul(1000),
    };
    let nanos = nanos.ok_or_else(overflow)?;
    Ok(Cell::Interval(IntervalMonthDayNano::new(0, 0, nanos)))
}

fn unsupported(data_type: &DataType) -> SqlError {
    SqlError::unsupported(format!(
        "values of the internal type {data_type} can't be sent to a client"
    ))
}

impl<'a> Cell<'a> {
    /// The cell of a row, which must be in range.
    pub fn of(array: &'a dyn Array, row: usize) -> Result<Self, SqlError> {
        if array.is_null(row) {
            return Ok(Self::Null);
        }
        macro_rules! primitive {
            ($type:ty) => {
                array.as_primitive::<$type>().value(row)
            };
        }
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(array.as_boolean().value(row)),
            DataType::Int8 => Self::Int(primitive!(Int8Type).into()),
            DataType::Int16 => Self::Int(primitive!(Int16Type).into()),
            DataType::Int32 => Self::Int(primitive!(Int32Type).into()),
            DataType::Int64 => Self::Int(primitive!(Int64Type)),
            DataType::UInt8 => Self::Int(primitive!(UInt8Type).into()),
            DataType::UInt16 => Self::Int(primitive!(UInt16Type).into()),
            DataType::UInt32 => Self::Int(primitive!(UInt32Type).into()),
            DataType::UInt64 => Self::Unsigned(primitive!(UInt64Type)),
            DataType::Float16 => Self::Float4(primitive!(Float16Type).to_f32()),
            DataType::Float32 => Self::Float4(primitive!(Float32Type)),
            DataType::Float64 => Self::Float8(primitive!(Float64Type)),
            DataType::Decimal32(_, scale) => {
                Self::Decimal(primitive!(Decimal32Type).into(), *scale)
            }
            DataType::Decimal64(_, scale) => {
                Self::Decimal(primitive!(Decimal64Type).into(), *scale)
            }
            DataType::Decimal128(_, scale) => Self::Decimal(primitive!(Decimal128Type), *scale),
            DataType::Decimal256(_, scale) => Self::WideDecimal(primitive!(Decimal256Type), *scale),
            DataType::Utf8 => Self::Text(array.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => Self::Text(array.as_string::<i64>().value(row)),
            DataType::Utf8View => Self::Text(array.as_string_view().value(row)),
            DataType::Binary => Self::Bytes(array.as_binary::<i32>().value(row)),
            DataType::LargeBinary => Self::Bytes(array.as_binary::<i64>().value(row)),
            DataType::BinaryView => Self::Bytes(array.as_binary_view().value(row)),
            DataType::FixedSizeBinary(_) => Self::Bytes(array.as_fixed_size_binary().value(row)),
            DataType::Date32
            | DataType::Date64
            | DataType::Time32(_)
            | DataType::Time64(_)
            | DataType::Timestamp(..)
            | DataType::Duration(_)
            | DataType::Interval(_) => Self::temporal(array, row)?,
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                let key = match Cell::of(dictionary.keys(), row)? {
                    Self::Int(key) => usize::try_from(key).ok(),
                    Self::Unsigned(key) => usize::try_from(key).ok(),
                    _ => None,
                };
                let key = key.ok_or_else(|| SqlError::internal("a dictionary key out of range"))?;
                return Self::of(dictionary.values().as_ref(), key);
            }
            DataType::List(_) => Self::List(array.as_list::<i32>().value(row)),
            DataType::LargeList(_) => Self::List(array.as_list::<i64>().value(row)),
            DataType::FixedSizeList(..) => Self::List(array.as_fixed_size_list().value(row)),
            DataType::Struct(_) => Self::Struct(array.as_struct(), row),
            other => return Err(unsupported(other)),
        })
    }

    /// A cell of a date, time or interval that isn't NULL.
    fn temporal(array: &'a dyn Array, row: usize) -> Result<Self, SqlError> {
        macro_rules! primitive {
            ($type:ty) => {
                array.as_primitive::<$type>().value(row)
            };
        }
        Ok(match array.data_type() {
            DataType::Date32 => Self::Date(primitive!(Date32Type)),
            DataType::Date64 => {
                let days = primitive!(Date64Type).div_euclid(86_400_000);
                Self::Date(i32::try_from(days).map_err(|_| overflow())?)
            }
            DataType::Time32(TimeUnit::Second) => {
                Self::Time(micros(primitive!(Time32SecondType).into(), TimeUnit::Second)?)
            }
            DataType::Time32(_) => {
                Self::Time(micros(primitive!(Time32MillisecondType).into(), TimeUnit::Millisecond)?)
            }
            DataType::Time64(TimeUnit::Nanosecond) => {
                Self::Time(primitive!(Time64NanosecondType).div_euclid(1000))
            }
            DataType::Time64(_) => Self::Time(primitive!(Time64MicrosecondType)),
            DataType::Timestamp(unit, _) => {
                let value = match unit {
                    TimeUnit::Second => primitive!(TimestampSecondType),
                    TimeUnit::Millisecond => primitive!(TimestampMillisecondType),
                    TimeUnit::Microsecond => primitive!(TimestampMicrosecondType),
                    TimeUnit::Nanosecond => primitive!(TimestampNanosecondType),
                };
                Self::Timestamp(micros(value, *unit)?)
            }
            DataType::Duration(unit) => {
                let value = match unit {
                    TimeUnit::Second => primitive!(DurationSecondType),
                    TimeUnit::Millisecond => primitive!(DurationMillisecondType),
                    TimeUnit::Microsecond => primitive!(DurationMicrosecondType),
                    TimeUnit::Nanosecond => primitive!(DurationNanosecondType),
                };
                duration(value, *unit)?
            }
            DataType::Interval(IntervalUnit::YearMonth) => {
                let months = primitive!(IntervalYearMonthType);
                Self::Interval(IntervalMonthDayNano::new(months, 0, 0))
            }
            DataType::Interval(IntervalUnit::DayTime) => {
                let value = primitive!(IntervalDayTimeType);
                let nanos = i64::from(value.milliseconds) * 1_000_000;
                Self::Interval(IntervalMonthDayNano::new(0, value.days, nanos))
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => {
                Self::Interval(primitive!(IntervalMonthDayNanoType))
            }
            other => return Err(unsupported(other)),
        })
    }
}
