//! The conversions themselves, one column at a time.

use std::sync::Arc;

use bytes::BytesMut;
use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, Time64MicrosecondType,
    TimestampMicrosecondType, UInt32Type,
};
use datafusion::arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, PrimitiveBuilder,
    StringArray, StringBuilder, new_null_array,
};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;

use super::super::calendar::{MICROS_PER_DAY, TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY};
use super::super::cell::Cell;
use super::super::decimal::{self, Decimal};
use super::super::number::Integer;
use super::super::pg_type::{MAX_NUMERIC_PRECISION, PgType};
use super::super::text::{Excess, fit_string};
use super::super::zone::SessionFormat;
use super::super::{bytea, datetime, interval, json, number, text};
use crate::error::{SqlError, SqlState};

pub(super) struct Cast<'a> {
    pub source: PgType,
    pub target: PgType,
    pub excess: Excess,
    pub session: &'a SessionFormat,
}

impl Cast<'_> {
    pub fn array(&self, values: &ArrayRef) -> Result<ArrayRef, SqlError> {
        let arrow_type = self.target.arrow_type();
        if values.null_count() == values.len() {
            return Ok(new_null_array(&arrow_type, values.len()));
        }
        if self.source == self.target && *values.data_type() == arrow_type {
            return Ok(Arc::clone(values));
        }
        let padded;
        let values = if matches!(self.source, PgType::Char(_)) && !self.target.is_string() {
            // Other types read a char(n) as it is shown.
            padded = self.padded(values.as_ref())?;
            &padded
        } else {
            values.as_ref()
        };
        let array: ArrayRef = match self.target {
            PgType::Bool => Arc::new(self.booleans(values)?),
            PgType::Int2 => primitive::<Int16Type, i16>(values, &arrow_type, |c| self.integer(c))?,
            PgType::Int4 => primitive::<Int32Type, i32>(values, &arrow_type, |c| self.integer(c))?,
            PgType::Int8 => primitive::<Int64Type, i64>(values, &arrow_type, |c| self.integer(c))?,
            PgType::Float4 => primitive::<Float32Type, _>(values, &arrow_type, |c| self.float4(c))?,
            PgType::Float8 => primitive::<Float64Type, _>(values, &arrow_type, |c| self.float8(c))?,
            PgType::Numeric { .. } | PgType::UnboundedNumeric => {
                let DataType::Decimal128(precision, scale) = arrow_type else {
                    return Err(SqlError::internal("a numeric that is no decimal"));
                };
                let number = |c: &Cell<'_>| self.numeric(c, precision, scale);
                primitive::<Decimal128Type, _>(values, &arrow_type, number)?
            }
            PgType::Date => primitive::<Date32Type, _>(values, &arrow_type, |c| self.date(c))?,
            PgType::Time => {
                primitive::<Time64MicrosecondType, _>(values, &arrow_type, |c| self.time(c))?
            }
            PgType::Timestamp | PgType::Timestamptz => {
                primitive::<TimestampMicrosecondType, _>(values, &arrow_type, |c| {
                    self.timestamp(c)
                })?
            }
            PgType::Interval => {
                primitive::<IntervalMonthDayNanoType, _>(values, &arrow_type, |c| self.interval(c))?
            }
            PgType::Text
            | PgType::Varchar(_)
            | PgType::Char(_)
            | PgType::Name
            | PgType::InternalChar
            | PgType::Unknown
            | PgType::Jsonb => self.strings(values)?,
            PgType::Bytea => self.bytes(values)?,
            PgType::Uuid => self.uuids(values)?,
            target if target.is_oid() => {
                primitive::<UInt32Type, _>(values, &arrow_type, |c| self.oid(c))?
            }
            _ => self.others(values, &arrow_type)?,
        };
        Ok(array)
    }

    fn mismatch<T>(&self) -> Result<T, SqlError> {
        Err(SqlError::internal(format!(
            "a value of type {} is not what a cast to {} expects",
            self.source, self.target
        )))
    }

    fn out_of_range(&self) -> SqlError {
        SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{} out of range", self.target))
    }

    fn integer<T: Integer>(&self, cell: &Cell<'_>) -> Result<T, SqlError> {
        let value = match cell {
            Cell::Int(value) => Some(i128::from(*value)),
            Cell::Unsigned(value) => Some(i128::from(*value)),
            Cell::Bool(value) => Some(i128::from(*value)),
            Cell::Float4(value) => whole(f64::from(*value)),
            Cell::Float8(value) => whole(*value),
            Cell::Decimal(value, scale) => decimal::rescale(*value, *scale, 0),
            Cell::WideDecimal(value, scale) => {
                let decimal = Decimal::from_unscaled(&value.to_string(), *scale);
                decimal.to_scaled(MAX_NUMERIC_PRECISION, 0).ok()
            }
            Cell::Text(text) => return number::parse_integer(text),
            _ => return self.mismatch(),
        };
        value.and_then(T::narrow).ok_or_else(|| self.out_of_range())
    }

    fn oid(&self, cell: &Cell<'_>) -> Result<u32, SqlError> {
        match cell {
            Cell::Int(value) => u32::try_from(*value).map_err(|_| {
                SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "OID out of range")
            }),
            Cell::Text(text) => number::parse_oid(text),
            _ => self.mismatch(),
        }
    }

    fn float8(&self, cell: &Cell<'_>) -> Result<f64, SqlError> {
        #[expect(clippy::cast_precision_loss, reason = "as PostgreSQL does")]
        match cell {
            Cell::Int(value) => Ok(*value as f64),
            Cell::Unsigned(value) => Ok(*value as f64),
            Cell::Float4(value) => Ok(f64::from(*value)),
            Cell::Float8(value) => Ok(*value),
            Cell::Decimal(..) | Cell::WideDecimal(..) => number::parse_float8(&self.shown(cell)?),
            Cell::Text(text) => number::parse_float8(text),
            _ => self.mismatch(),
        }
    }

    fn float4(&self, cell: &Cell<'_>) -> Result<f32, SqlError> {
        #[expect(clippy::cast_precision_loss, reason = "as PostgreSQL does")]
        #[expect(clippy::cast_possible_truncation, reason = "checked after")]
        match cell {
            Cell::Int(value) => Ok(*value as f32),
            Cell::Unsigned(value) => Ok(*value as f32),
            Cell::Float4(value) => Ok(*value),
            Cell::Float8(value) => {
                let narrowed = *value as f32;
                let problem = if narrowed.is_infinite() && !value.is_infinite() {
                    "overflow"
                } else if narrowed == 0.0 && *value != 0.0 {
                    "underflow"
                } else {
                    return Ok(narrowed);
                };
                Err(SqlError::new(
                    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                    format!("value out of range: {problem}"),
                ))
            }
            Cell::Decimal(..) | Cell::WideDecimal(..) => number::parse_float4(&self.shown(cell)?),
            Cell::Text(text) => number::parse_float4(text),
            _ => self.mismatch(),
        }
    }

    fn numeric(&self, cell: &Cell<'_>, precision: u8, scale: i8) -> Result<i128, SqlError> {
        let value = match cell {
            Cell::Int(value) => decimal::rescale(i128::from(*value), 0, scale),
            Cell::Unsigned(value) => decimal::rescale(i128::from(*value), 0, scale),
            Cell::Decimal(value, from) => decimal::rescale(*value, *from, scale),
            Cell::WideDecimal(value, from) => {
                let decimal = Decimal::from_unscaled(&value.to_string(), *from);
                return decimal.to_scaled(precision, scale);
            }
            // As many digits as the type is sure of.
            Cell::Float4(value) if value.is_finite() => {
                return Decimal::parse(&format!("{value:.5e}"))?.to_scaled(precision, scale);
            }
            Cell::Float8(value) if value.is_finite() => {
                return Decimal::parse(&format!("{value:.14e}"))?.to_scaled(precision, scale);
            }
            Cell::Float4(_) | Cell::Float8(_) => {
                let value = self.float8(cell)?;
                return Err(if value.is_nan() {
                    SqlError::unsupported("numeric NaN is not supported")
                } else {
                    decimal::field_overflow(precision, scale).detail(format!(
                        "A field with precision {precision}, scale {scale} cannot hold an \
                         infinite value."
                    ))
                });
            }
            Cell::Text(text) => return Decimal::parse(text)?.to_scaled(precision, scale),
            _ => return self.mismatch(),
        };
        value
            .filter(|value| !decimal::exceeds(*value, precision))
            .ok_or_else(|| decimal::field_overflow(precision, scale))
    }

    fn date(&self, cell: &Cell<'_>) -> Result<i32, SqlError> {
        match cell {
            Cell::Date(days) => Ok(*days),
            Cell::Timestamp(micros) => datetime::timestamp_to_date(self.local(*micros)?)
                .ok_or_else(|| moment("date out of range")),
            Cell::Text(text) => datetime::parse_date(text),
            _ => self.mismatch(),
        }
    }

    /// `infinity` has no time of day: NULL.
    fn time(&self, cell: &Cell<'_>) -> Result<Option<i64>, SqlError> {
        match cell {
            Cell::Time(micros) => Ok(Some(*micros)),
            Cell::Timestamp(TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY) => Ok(None),
            Cell::Timestamp(micros) => Ok(Some(self.local(*micros)?.rem_euclid(MICROS_PER_DAY))),
            Cell::Interval(value) => Ok(Some(interval::micros(*value).rem_euclid(MICROS_PER_DAY))),
            Cell::Text(text) => datetime::parse_time(text).map(Some),
            _ => self.mismatch(),
        }
    }

    /// A timestamp without zone, in the session's if it had one.
    fn local(&self, micros: i64) -> Result<i64, SqlError> {
        if self.source != PgType::Timestamptz {
            return Ok(micros);
        }
        datetime::timestamptz_to_timestamp(micros, &self.session.time_zone)
            .ok_or_else(|| moment("timestamp out of range"))
    }

    fn timestamp(&self, cell: &Cell<'_>) -> Result<i64, SqlError> {
        let zone = &self.session.time_zone;
        let zoned = self.target == PgType::Timestamptz;
        let local = match cell {
            Cell::Text(text) if zoned => return datetime::parse_timestamptz(text, zone),
            Cell::Text(text) => return datetime::parse_timestamp(text),
            Cell::Timestamp(micros) if self.source == self.target => return Ok(*micros),
            Cell::Timestamp(micros) => self.local(*micros)?,
            Cell::Date(days) => datetime::date_to_timestamp(*days)
                .ok_or_else(|| moment("date out of range for timestamp"))?,
            _ => return self.mismatch(),
        };
        if !zoned {
            return Ok(local);
        }
        datetime::timestamp_to_timestamptz(local, zone)
            .ok_or_else(|| moment("timestamp out of range"))
    }

    fn interval(&self, cell: &Cell<'_>) -> Result<IntervalMonthDayNano, SqlError> {
        match cell {
            Cell::Interval(value) => Ok(*value),
            Cell::Time(micros) => interval::from_parts(0, 0, *micros),
            Cell::Text(text) => interval::parse(text),
            _ => self.mismatch(),
        }
    }

    fn shown(&self, cell: &Cell<'_>) -> Result<String, SqlError> {
        let mut out = BytesMut::new();
        text::write(cell, self.source, self.session, &mut out)?;
        String::from_utf8(out.into()).map_err(|_| SqlError::internal("a text that is not UTF-8"))
    }

    fn booleans(&self, values: &dyn Array) -> Result<impl Array + use<>, SqlError> {
        let mut builder = BooleanBuilder::with_capacity(values.len());
        for row in 0..values.len() {
            builder.append_option(match Cell::of(values, row)? {
                Cell::Null => None,
                Cell::Bool(value) => Some(value),
                Cell::Int(value) => Some(value != 0),
                Cell::Text(text) => Some(text::parse_bool(text)?),
                _ => return self.mismatch(),
            });
        }
        Ok(builder.finish())
    }

    fn padded(&self, values: &dyn Array) -> Result<StringArray, SqlError> {
        let mut builder = StringBuilder::with_capacity(values.len(), values.len() * 16);
        for row in 0..values.len() {
            match Cell::of(values, row)? {
                Cell::Null => builder.append_null(),
                cell => builder.append_value(self.shown(&cell)?),
            }
        }
        Ok(builder.finish())
    }

    fn strings(&self, values: &dyn Array) -> Result<ArrayRef, SqlError> {
        let mut builder = StringBuilder::with_capacity(values.len(), values.len() * 16);
        let mut out = BytesMut::new();
        for row in 0..values.len() {
            let cell = Cell::of(values, row)?;
            let text = match &cell {
                Cell::Null => {
                    builder.append_null();
                    continue;
                }
                Cell::Text(text) if self.target == PgType::Jsonb => {
                    // What is jsonb already needs no second look.
                    if self.source == PgType::Jsonb {
                        builder.append_value(text);
                    } else {
                        builder.append_value(json::normalize(text)?);
                    }
                    continue;
                }
                Cell::Text(text) => text,
                Cell::Bool(value) => {
                    if *value {
                        "true"
                    } else {
                        "false"
                    }
                }
                cell => {
                    out.clear();
                    text::write(cell, self.source, self.session, &mut out)?;
                    std::str::from_utf8(&out)
                        .map_err(|_| SqlError::internal("a text that is not UTF-8"))?
                }
            };
            builder.append_value(fit_string(text, self.target, self.excess)?);
        }
        Ok(Arc::new(builder.finish()))
    }

    fn bytes(&self, values: &dyn Array) -> Result<ArrayRef, SqlError> {
        let mut builder = BinaryBuilder::with_capacity(values.len(), values.len() * 16);
        for row in 0..values.len() {
            match Cell::of(values, row)? {
                Cell::Null => builder.append_null(),
                Cell::Bytes(bytes) => builder.append_value(bytes),
                Cell::Text(text) => builder.append_value(bytea::parse_bytea(text)?),
                _ => return self.mismatch(),
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    fn uuids(&self, values: &dyn Array) -> Result<ArrayRef, SqlError> {
        let mut builder = FixedSizeBinaryBuilder::with_capacity(values.len(), 16);
        for row in 0..values.len() {
            let uuid = match Cell::of(values, row)? {
                Cell::Null => {
                    builder.append_null();
                    continue;
                }
                Cell::Bytes(bytes) => <[u8; 16]>::try_from(bytes).or_else(|_| self.mismatch())?,
                Cell::Text(text) => bytea::parse_uuid(text)?,
                _ => return self.mismatch(),
            };
            builder.append_value(uuid).map_err(|error| SqlError::internal(error.to_string()))?;
        }
        Ok(Arc::new(builder.finish()))
    }

    /// Arrays and the catalogs' types, which are rare: one value after the other.
    fn others(&self, values: &dyn Array, arrow_type: &DataType) -> Result<ArrayRef, SqlError> {
        let mut converted = Vec::with_capacity(values.len());
        for row in 0..values.len() {
            converted.push(match Cell::of(values, row)? {
                Cell::Null => ScalarValue::try_from(arrow_type)
                    .map_err(|error| SqlError::internal(error.to_string()))?,
                Cell::Text(text) => text::parse(self.target, text, self.session)?,
                _ => ScalarValue::try_from_array(values, row)
                    .map_err(|error| SqlError::internal(error.to_string()))?,
            });
        }
        ScalarValue::iter_to_array(converted).map_err(|error| SqlError::internal(error.to_string()))
    }
}

fn moment(message: &str) -> SqlError {
    SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, message)
}

/// A float as a whole number, half to even; `None` if it is none or far out of range.
fn whole(value: f64) -> Option<i128> {
    let rounded = value.round_ties_even();
    #[expect(clippy::cast_possible_truncation, reason = "within the range that was checked")]
    (rounded.abs() < 1e19).then_some(rounded as i128)
}

fn primitive<T: ArrowPrimitiveType, V: Into<Option<T::Native>>>(
    values: &dyn Array,
    arrow_type: &DataType,
    convert: impl Fn(&Cell<'_>) -> Result<V, SqlError>,
) -> Result<ArrayRef, SqlError> {
    let mut builder =
        PrimitiveBuilder::<T>::with_capacity(values.len()).with_data_type(arrow_type.clone());
    for row in 0..values.len() {
        match Cell::of(values, row)? {
            Cell::Null => builder.append_null(),
            cell => builder.append_option(convert(&cell)?.into()),
        }
    }
    Ok(Arc::new(builder.finish()))
}
