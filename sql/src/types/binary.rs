//! PostgreSQL's binary format.

use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::{Array, StructArray};
use datafusion::common::ScalarValue;

use super::array::{self, MAX_DIMENSIONS, Node};
use super::calendar::{
    DATE_INFINITY, DATE_NEGATIVE_INFINITY, MICROS_PER_DAY, POSTGRES_EPOCH_DAYS,
    POSTGRES_EPOCH_MICROS, TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY, check_timestamp,
    date_from_days,
};
use super::cell::Cell;
use super::decimal::{Decimal, write_binary128};
use super::pg_type::{BaseType, PgType};
use super::text::{Excess, fit_string, invalid_utf8, pad};
use super::{interval, json};
use crate::error::{SqlError, SqlState};

/// The version byte before a `jsonb`.
const JSONB_VERSION: u8 = 1;

/// Appends the binary form of a cell; of NULL, nothing.
///
/// # Errors
/// `22003` or `22008` for a value that the type doesn't hold, `0A000` for one without binary form;
/// something may have been appended already.
pub fn encode(
    array: &dyn Array,
    row: usize,
    pg_type: PgType,
    out: &mut BytesMut,
) -> Result<(), SqlError> {
    write(&Cell::of(array, row)?, pg_type, out)
}

fn out_of_range(pg_type: PgType) -> SqlError {
    SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{pg_type} out of range"))
}

fn write(cell: &Cell<'_>, pg_type: PgType, out: &mut BytesMut) -> Result<(), SqlError> {
    match cell {
        Cell::Null => {}
        Cell::Bool(value) => out.put_u8(u8::from(*value)),
        Cell::Int(value) => write_integer(*value, pg_type, out)?,
        Cell::Unsigned(value) if pg_type.base() == BaseType::Numeric => {
            write_binary128(i128::from(*value), 0, out);
        }
        Cell::Unsigned(value) => {
            let value = i64::try_from(*value).map_err(|_| out_of_range(pg_type))?;
            write_integer(value, pg_type, out)?;
        }
        Cell::Float4(value) if pg_type == PgType::Float8 => out.put_f64(f64::from(*value)),
        Cell::Float4(value) => out.put_f32(*value),
        Cell::Float8(value) => out.put_f64(*value),
        Cell::Decimal(value, scale) => write_binary128(*value, *scale, out),
        Cell::WideDecimal(value, scale) => {
            Decimal::from_unscaled(&value.to_string(), *scale).write_binary(out);
        }
        Cell::Text(_) if pg_type.is_oid() => {
            return Err(SqlError::unsupported(format!(
                "type {pg_type} of a name has no binary format here"
            ))
            .hint("Ask for it in text format."));
        }
        Cell::Text(text) if pg_type == PgType::InternalChar => match text.strip_prefix('\\') {
            Some(octal) if octal.len() == 3 => {
                out.put_u8(u8::from_str_radix(octal, 8).unwrap_or_default());
            }
            _ => out.put_u8(text.bytes().next().unwrap_or_default()),
        },
        Cell::Text(text) => {
            if pg_type == PgType::Jsonb {
                out.put_u8(JSONB_VERSION);
            }
            out.put_slice(text.as_bytes());
            pad(text, pg_type, out);
        }
        Cell::Bytes(bytes) => out.put_slice(bytes),
        Cell::Date(days) => out.put_i32(match *days {
            DATE_INFINITY | DATE_NEGATIVE_INFINITY => *days,
            days => days.checked_sub(POSTGRES_EPOCH_DAYS).ok_or_else(date_out_of_range)?,
        }),
        Cell::Time(micros) => out.put_i64(*micros),
        Cell::Timestamp(micros) => out.put_i64(match *micros {
            TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY => *micros,
            micros => {
                micros.checked_sub(POSTGRES_EPOCH_MICROS).ok_or_else(timestamp_out_of_range)?
            }
        }),
        Cell::Interval(value) => {
            out.put_i64(interval::micros(*value));
            out.put_i32(value.days);
            out.put_i32(value.months);
        }
        Cell::List(elements) => write_array(elements, pg_type, out)?,
        Cell::Struct(record, row) => write_record(record, *row, out)?,
    }
    Ok(())
}

fn write_integer(value: i64, pg_type: PgType, out: &mut BytesMut) -> Result<(), SqlError> {
    let range = |_| out_of_range(pg_type);
    match pg_type {
        PgType::Int2 => out.put_i16(i16::try_from(value).map_err(range)?),
        PgType::Int4 => out.put_i32(i32::try_from(value).map_err(range)?),
        PgType::Numeric { .. } | PgType::UnboundedNumeric => {
            write_binary128(i128::from(value), 0, out);
        }
        other if other.is_oid() => out.put_u32(u32::try_from(value).map_err(range)?),
        _ => out.put_i64(value),
    }
    Ok(())
}

fn date_out_of_range() -> SqlError {
    SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range")
}

fn timestamp_out_of_range() -> SqlError {
    SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, "timestamp out of range")
}

/// Writes four bytes of length, and then the value that `write` writes.
fn with_length(
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<(), SqlError>,
) -> Result<(), SqlError> {
    let at = out.len();
    out.put_i32(0);
    write(out)?;
    let length = i32::try_from(out.len() - at - 4).map_err(|_| {
        SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a value is longer than two gigabytes")
    })?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn write_array(elements: &dyn Array, pg_type: PgType, out: &mut BytesMut) -> Result<(), SqlError> {
    let (element, lower) = match pg_type {
        PgType::Int2Vector => (PgType::Int2, 0),
        PgType::OidVector => (PgType::Oid, 0),
        other => (other.base().plain(), 1),
    };
    let mut body = BytesMut::new();
    let mut nulls = false;
    let dimensions = write_elements(elements, element, &mut body, &mut nulls)?;
    let dimensions = if dimensions.contains(&0) { Vec::new() } else { dimensions };
    let count = |n: usize| i32::try_from(n).map_err(|_| out_of_range(PgType::Int4));
    out.put_i32(count(dimensions.len())?);
    out.put_i32(i32::from(nulls));
    out.put_u32(element.oid());
    for length in dimensions {
        out.put_i32(count(length)?);
        out.put_i32(lower);
    }
    out.put_slice(&body);
    Ok(())
}

/// Writes the elements of all dimensions one after the other; answers the dimensions' lengths.
fn write_elements(
    elements: &dyn Array,
    element: PgType,
    out: &mut BytesMut,
    nulls: &mut bool,
) -> Result<Vec<usize>, SqlError> {
    let mut inner: Option<Vec<usize>> = None;
    for row in 0..elements.len() {
        let dimensions = match Cell::of(elements, row)? {
            Cell::Null => {
                *nulls = true;
                out.put_i32(-1);
                Vec::new()
            }
            Cell::List(list) => write_elements(&list, element, out, nulls)?,
            cell => {
                with_length(out, |out| write(&cell, element, out))?;
                Vec::new()
            }
        };
        if *inner.get_or_insert_with(|| dimensions.clone()) != dimensions {
            return Err(SqlError::unsupported(
                "an array whose sub-arrays differ in length has no binary format",
            ));
        }
    }
    let mut dimensions = vec![elements.len()];
    dimensions.extend(inner.unwrap_or_default());
    Ok(dimensions)
}

fn write_record(record: &StructArray, row: usize, out: &mut BytesMut) -> Result<(), SqlError> {
    out.put_i32(i32::try_from(record.num_columns()).map_err(|_| out_of_range(PgType::Int4))?);
    for (field, column) in record.fields().iter().zip(record.columns()) {
        let pg_type = PgType::of_field(field);
        out.put_u32(pg_type.oid());
        if column.is_null(row) {
            out.put_i32(-1);
        } else {
            with_length(out, |out| encode(column, row, pg_type, out))?;
        }
    }
    Ok(())
}

/// Reads the binary form of a value. The scalar is as [`super::text::parse`] makes it.
///
/// # Errors
/// `08P01` if bytes are missing, `22P03` if there are too many or they mean nothing, and what the
/// type itself refuses: `22008`, `22021`, `22001`, ...
pub fn decode(pg_type: PgType, bytes: &[u8]) -> Result<ScalarValue, SqlError> {
    let mut reader = Reader { bytes };
    let value = reader.value(pg_type)?;
    if reader.bytes.is_empty() { Ok(value) } else { Err(malformed("incorrect binary data format")) }
}

fn malformed(message: &str) -> SqlError {
    SqlError::new(SqlState::INVALID_BINARY_REPRESENTATION, message)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], SqlError> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or_else(|| {
            SqlError::new(SqlState::PROTOCOL_VIOLATION, "insufficient data left in message")
        })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SqlError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn i32(&mut self) -> Result<i32, SqlError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64, SqlError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    fn text(&mut self) -> Result<&'a str, SqlError> {
        let bytes = self.rest();
        if bytes.contains(&0) {
            return Err(invalid_utf8(&[0]));
        }
        std::str::from_utf8(bytes).map_err(|error| {
            let from = &bytes[error.valid_up_to()..];
            invalid_utf8(&from[..error.error_len().unwrap_or(from.len())])
        })
    }

    fn value(&mut self, pg_type: PgType) -> Result<ScalarValue, SqlError> {
        Ok(match pg_type {
            PgType::Bool => ScalarValue::Boolean(Some(self.array::<1>()? != [0])),
            PgType::Int2 => ScalarValue::Int16(Some(i16::from_be_bytes(self.array()?))),
            PgType::Int4 => ScalarValue::Int32(Some(self.i32()?)),
            PgType::Int8 => ScalarValue::Int64(Some(self.i64()?)),
            PgType::Float4 => ScalarValue::Float32(Some(f32::from_be_bytes(self.array()?))),
            PgType::Float8 => ScalarValue::Float64(Some(f64::from_be_bytes(self.array()?))),
            PgType::Numeric { precision, scale } => {
                let value = Decimal::read_binary(self.rest())?.to_scaled(precision, scale)?;
                ScalarValue::Decimal128(Some(value), precision, scale)
            }
            PgType::UnboundedNumeric => Decimal::read_binary(self.rest())?.to_scalar()?,
            PgType::Text | PgType::Name | PgType::InternalChar | PgType::Unknown => {
                ScalarValue::Utf8(Some(self.text()?.to_owned()))
            }
            PgType::Varchar(_) | PgType::Char(_) => {
                let fitted = fit_string(self.text()?, pg_type, Excess::Refused)?;
                ScalarValue::Utf8(Some(fitted.to_owned()))
            }
            PgType::Jsonb => {
                let [version] = self.array()?;
                if version != JSONB_VERSION {
                    return Err(malformed(&format!("unsupported jsonb version number {version}")));
                }
                ScalarValue::Utf8(Some(json::normalize(self.text()?)?))
            }
            PgType::Bytea => ScalarValue::Binary(Some(self.rest().to_vec())),
            PgType::Uuid => ScalarValue::FixedSizeBinary(16, Some(self.take(16)?.to_vec())),
            PgType::Date => ScalarValue::Date32(Some(self.date()?)),
            PgType::Time => match self.i64()? {
                micros @ 0..=MICROS_PER_DAY => ScalarValue::Time64Microsecond(Some(micros)),
                _ => {
                    return Err(SqlError::new(
                        SqlState::DATETIME_FIELD_OVERFLOW,
                        "time out of range",
                    ));
                }
            },
            PgType::Timestamp => ScalarValue::TimestampMicrosecond(Some(self.timestamp()?), None),
            PgType::Timestamptz => {
                ScalarValue::TimestampMicrosecond(Some(self.timestamp()?), Some("UTC".into()))
            }
            PgType::Interval => {
                let (micros, days, months) = (self.i64()?, self.i32()?, self.i32()?);
                let value = interval::from_parts(months, days, micros)?;
                ScalarValue::IntervalMonthDayNano(Some(value))
            }
            PgType::Array(element) => self.list(element)?,
            other if other.is_oid() => ScalarValue::UInt32(Some(u32::from_be_bytes(self.array()?))),
            other => {
                return Err(SqlError::unsupported(format!(
                    "no binary input function available for type {other}"
                )));
            }
        })
    }

    fn date(&mut self) -> Result<i32, SqlError> {
        match self.i32()? {
            infinity @ (DATE_INFINITY | DATE_NEGATIVE_INFINITY) => Ok(infinity),
            days => date_from_days(i64::from(days) + i64::from(POSTGRES_EPOCH_DAYS))
                .ok_or_else(date_out_of_range),
        }
    }

    fn timestamp(&mut self) -> Result<i64, SqlError> {
        match self.i64()? {
            infinity @ (TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY) => Ok(infinity),
            micros => check_timestamp(i128::from(micros) + i128::from(POSTGRES_EPOCH_MICROS))
                .ok_or_else(timestamp_out_of_range),
        }
    }

    fn list(&mut self, element: BaseType) -> Result<ScalarValue, SqlError> {
        let dimensions = self.i32()?;
        let count = usize::try_from(dimensions).ok().filter(|n| *n <= MAX_DIMENSIONS);
        let count = count
            .ok_or_else(|| malformed(&format!("invalid number of dimensions: {dimensions}")))?;
        if !matches!(self.i32()?, 0 | 1) {
            return Err(malformed("invalid array flags"));
        }
        let oid = u32::from_be_bytes(self.array()?);
        if oid != element.facts().oid {
            return Err(malformed(&format!(
                "binary data has array element type {oid} instead of expected {}",
                element.facts().oid
            )));
        }
        let mut lengths = Vec::with_capacity(count);
        for _ in 0..count {
            lengths.push(usize::try_from(self.i32()?).map_err(|_| malformed("invalid length"))?);
            if self.i32()? != 1 {
                return Err(SqlError::unsupported("arrays with lower bounds other than 1"));
            }
        }
        let tree = if count == 0 { Node::Array(Vec::new()) } else { self.elements(&lengths)? };
        array::list(&tree, element.plain(), &|bytes: &&[u8], pg_type| decode(pg_type, bytes))
    }

    /// Every element takes four bytes at least, so a false length ends with the message.
    fn elements(&mut self, lengths: &[usize]) -> Result<Node<&'a [u8]>, SqlError> {
        let Some((length, inner)) = lengths.split_first() else {
            let length = self.i32()?;
            if length == -1 {
                return Ok(Node::Null);
            }
            let length = usize::try_from(length).map_err(|_| malformed("invalid length"))?;
            return Ok(Node::Leaf(self.take(length)?));
        };
        if inner.contains(&0) {
            return Err(malformed("invalid length"));
        }
        let mut nodes = Vec::new();
        for _ in 0..*length {
            nodes.push(self.elements(inner)?);
        }
        Ok(Node::Array(nodes))
    }
}
