//! Casts between types: the ones that `INSERT` and `UPDATE` apply to a value for a column, and the
//! explicit ones of `CAST`.
//!
//! PostgreSQL knows three strengths of a cast: implicit, by assignment, explicit. Which pairs of
//! types have one is its `pg_cast`, reproduced in [`strength`]; besides, everything may be assigned
//! to a string through its text form, and explicitly made from one. A quoted literal has the type
//! `unknown` and is read by its target's input function.
//!
//! A value that doesn't fit is an error (`22003`, `22001`), with one exception: an explicit cast to
//! `varchar(n)` or `char(n)` cuts.

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

use super::calendar::{MICROS_PER_DAY, TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY};
use super::cell::Cell;
use super::decimal::{self, Decimal};
use super::number::Integer;
use super::pg_type::{MAX_NUMERIC_PRECISION, PgType};
use super::text::{Excess, fit_string};
use super::zone::SessionFormat;
use super::{bytea, datetime, interval, json, number, text};
use crate::error::{SqlError, SqlState};

/// How much a cast has to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    Assignment,
    Explicit,
}

/// Which casts there are (`pg_cast`, the implicit ones counted as by assignment).
fn strength(source: PgType, target: PgType) -> Option<Strength> {
    use PgType as P;
    let assignment = Some(Strength::Assignment);
    let explicit = Some(Strength::Explicit);
    if source == P::Unknown || source.base() == target.base() {
        let same = source == P::Unknown || source.is_array() == target.is_array();
        return if same { assignment } else { None };
    }
    if target.is_string() {
        return assignment;
    }
    if source.is_string() {
        return explicit;
    }
    match (source, target) {
        _ if source.is_array() || target.is_array() => None,
        _ if source.is_number() && target.is_number() => assignment,
        (P::Int2 | P::Int4 | P::Int8, _) if target.is_oid() => assignment,
        (_, P::Int4 | P::Int8) if source.is_oid() => assignment,
        _ if source.is_oid() && target.is_oid() => assignment,
        (P::Date, P::Timestamp | P::Timestamptz)
        | (P::Timestamp, P::Timestamptz | P::Date | P::Time)
        | (P::Timestamptz, P::Timestamp | P::Date | P::Time)
        | (P::Time, P::Interval)
        | (P::Interval, P::Time) => assignment,
        (P::Int4, P::Bool) | (P::Bool, P::Int4) => explicit,
        _ => None,
    }
}

/// Checks that a value of a type may be assigned to a column, before there are values.
///
/// # Errors
/// `42804` with PostgreSQL's hint.
pub fn check(source: PgType, target: PgType, column: &str) -> Result<(), SqlError> {
    if strength(source, target) == Some(Strength::Assignment) {
        return Ok(());
    }
    Err(SqlError::new(
        SqlState::DATATYPE_MISMATCH,
        format!(
            "column \"{column}\" is of type {} but expression is of type {}",
            target.display_name(),
            source.display_name()
        ),
    )
    .hint("You will need to rewrite or cast the expression."))
}

/// Converts the values of an expression for a column. A quoted literal's type is
/// [`PgType::Unknown`].
///
/// # Errors
/// `42804` if the types don't allow it; `22003`, `22001`, `22P02`, ... if a value doesn't.
pub fn assign_array(
    values: &ArrayRef,
    source: PgType,
    target: PgType,
    column: &str,
    session: &SessionFormat,
) -> Result<ArrayRef, SqlError> {
    let source = if *values.data_type() == DataType::Null { PgType::Unknown } else { source };
    check(source, target, column)?;
    Cast { source, target, excess: Excess::Refused, session }.array(values)
}

/// [`assign_array`] of one value.
///
/// # Errors
/// As [`assign_array`].
pub fn assign(
    value: &ScalarValue,
    source: PgType,
    target: PgType,
    column: &str,
    session: &SessionFormat,
) -> Result<ScalarValue, SqlError> {
    scalar(value, |values| assign_array(values, source, target, column, session))
}

/// Converts values explicitly, as `CAST(... AS target)`.
///
/// # Errors
/// `42846` if there is no such cast; `22003`, `22P02`, ... if a value doesn't allow it.
pub fn cast_array(
    values: &ArrayRef,
    source: PgType,
    target: PgType,
    session: &SessionFormat,
) -> Result<ArrayRef, SqlError> {
    let source = if *values.data_type() == DataType::Null { PgType::Unknown } else { source };
    if strength(source, target).is_none() {
        return Err(SqlError::new(
            SqlState::CANNOT_COERCE,
            format!("cannot cast type {} to {}", source.display_name(), target.display_name()),
        ));
    }
    Cast { source, target, excess: Excess::Cut, session }.array(values)
}

/// [`cast_array`] of one value.
///
/// # Errors
/// As [`cast_array`].
pub fn cast(
    value: &ScalarValue,
    source: PgType,
    target: PgType,
    session: &SessionFormat,
) -> Result<ScalarValue, SqlError> {
    scalar(value, |values| cast_array(values, source, target, session))
}

fn scalar(
    value: &ScalarValue,
    convert: impl FnOnce(&ArrayRef) -> Result<ArrayRef, SqlError>,
) -> Result<ScalarValue, SqlError> {
    let internal =
        |error: datafusion::error::DataFusionError| SqlError::internal(error.to_string());
    let values = convert(&value.to_array().map_err(internal)?)?;
    ScalarValue::try_from_array(&values, 0).map_err(internal)
}

struct Cast<'a> {
    source: PgType,
    target: PgType,
    excess: Excess,
    session: &'a SessionFormat,
}

impl Cast<'_> {
    fn array(&self, values: &ArrayRef) -> Result<ArrayRef, SqlError> {
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

#[cfg(test)]
mod tests {
    use super::super::BaseType;
    use super::*;

    fn shown(value: &ScalarValue, source: PgType, target: PgType, explicit: bool) -> String {
        let zone = super::super::TimeZone::parse("America/New_York").expect("known");
        let session = SessionFormat { time_zone: zone };
        let converted = if explicit {
            cast(value, source, target, &session)
        } else {
            assign(value, source, target, "c", &session)
        };
        converted
            .and_then(|value| text::format_scalar(&value, target, &session))
            .unwrap_or_else(|error| format!("{}: {}", error.sqlstate, error.message))
    }

    fn unescape(text: &str) -> String {
        if text == "\\N" { String::new() } else { text.replace("\\\\", "\\") }
    }

    /// What `INSERT INTO t (c) VALUES (source)` stored, or said, in PostgreSQL.
    #[test]
    fn assignments_and_casts_are_postgresqls() {
        let session = SessionFormat {
            time_zone: super::super::TimeZone::parse("America/New_York").expect("known"),
        };
        let mut wrong = Vec::new();
        for line in include_str!("testdata/casts.tsv").lines() {
            if line.starts_with('#') {
                continue;
            }
            let fields: Vec<String> = line.split('\t').map(unescape).collect();
            let [kind, source, input, target, expected] = fields.as_slice() else {
                panic!("not five fields: {line}");
            };
            let source = PgType::from_text(source).expect(source);
            let target = PgType::from_text(target).expect(target);
            let value = text::parse(source, input, &session).expect(input);
            // There is no NaN in 128 bits.
            let expected = match expected.as_str() {
                "NaN" if target.base() == BaseType::Numeric => {
                    "0A000: numeric NaN is not supported"
                }
                expected => expected,
            };
            let found = shown(&value, source, target, kind == "cast");
            if found != expected {
                wrong.push(format!("{line}\n  got {found}"));
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    #[test]
    fn a_column_of_values_is_converted_at_once() {
        let values: ArrayRef =
            Arc::new(datafusion::arrow::array::Int64Array::from(vec![Some(1), None, Some(-3)]));
        let session = SessionFormat::default();
        let target = PgType::Numeric { precision: 4, scale: 2 };
        let numbers = assign_array(&values, PgType::Int8, target, "c", &session).expect("fits");
        assert_eq!(numbers.data_type(), &target.arrow_type());
        let shown: Vec<_> = (0..3)
            .map(|row| text::format(&numbers, row, target, &session).expect("formats"))
            .collect();
        assert_eq!(shown, ["1.00", "", "-3.00"]);
        let same = assign_array(&values, PgType::Int8, PgType::Int8, "c", &session).expect("same");
        assert!(Arc::ptr_eq(&same, &values));
        let nulls = new_null_array(&DataType::Null, 2);
        let typed = assign_array(&nulls, PgType::Text, PgType::Uuid, "c", &session).expect("nulls");
        assert_eq!(typed.data_type(), &PgType::Uuid.arrow_type());
    }

    #[test]
    fn a_mismatch_names_the_column() {
        let value = ScalarValue::Boolean(Some(true));
        let session = SessionFormat::default();
        let error = assign(&value, PgType::Bool, PgType::Int4, "a", &session).expect_err("no cast");
        assert_eq!(error.sqlstate, SqlState::DATATYPE_MISMATCH);
        assert_eq!(
            error.message,
            "column \"a\" is of type integer but expression is of type boolean"
        );
        assert_eq!(error.hint.as_deref(), Some("You will need to rewrite or cast the expression."));
    }
}
