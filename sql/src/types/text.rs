//! PostgreSQL's text format.

use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::{Array, StructArray};
use datafusion::common::ScalarValue;

use super::cell::Cell;
use super::decimal::{self, Decimal};
use super::pg_type::PgType;
use super::zone::SessionFormat;
use super::{array, bytea, calendar, datetime, interval, json, number};
use crate::error::{SqlError, SqlState};

/// Parses the text of a value, as PostgreSQL's input functions do: a literal of unknown type, a
/// parameter in text format, a field of COPY.
///
/// The scalar is of [`PgType::arrow_type`], except for a bare `numeric`, which keeps the scale that
/// it was written with. A text too long for `varchar(n)` is an error; an explicit cast, which cuts
/// it, parses as `text` first.
///
/// # Errors
/// `22P02`, `22003`, `22007`, `22008`, `22001`, ... with PostgreSQL's messages.
pub fn parse(
    pg_type: PgType,
    text: &str,
    session: &SessionFormat,
) -> Result<ScalarValue, SqlError> {
    if text.contains('\0') {
        return Err(invalid_utf8(&[0]));
    }
    Ok(match pg_type {
        PgType::Bool => ScalarValue::Boolean(Some(parse_bool(text)?)),
        PgType::Int2 => ScalarValue::Int16(Some(number::parse_integer(text)?)),
        PgType::Int4 => ScalarValue::Int32(Some(number::parse_integer(text)?)),
        PgType::Int8 => ScalarValue::Int64(Some(number::parse_integer(text)?)),
        PgType::Float4 => ScalarValue::Float32(Some(number::parse_float4(text)?)),
        PgType::Float8 => ScalarValue::Float64(Some(number::parse_float8(text)?)),
        PgType::Numeric { precision, scale } => {
            let value = Decimal::parse(text)?.to_scaled(precision, scale)?;
            ScalarValue::Decimal128(Some(value), precision, scale)
        }
        PgType::UnboundedNumeric => Decimal::parse(text)?.to_scalar()?,
        PgType::Bytea => ScalarValue::Binary(Some(bytea::parse_bytea(text)?)),
        PgType::Uuid => ScalarValue::FixedSizeBinary(16, Some(bytea::parse_uuid(text)?.to_vec())),
        PgType::Date => ScalarValue::Date32(Some(datetime::parse_date(text)?)),
        PgType::Time => ScalarValue::Time64Microsecond(Some(datetime::parse_time(text)?)),
        PgType::Timestamp => {
            ScalarValue::TimestampMicrosecond(Some(datetime::parse_timestamp(text)?), None)
        }
        PgType::Timestamptz => {
            let micros = datetime::parse_timestamptz(text, &session.time_zone)?;
            ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))
        }
        PgType::Interval => ScalarValue::IntervalMonthDayNano(Some(interval::parse(text)?)),
        PgType::Jsonb => ScalarValue::Utf8(Some(json::normalize(text)?)),
        PgType::Varchar(_) | PgType::Char(_) => {
            let fitted = fit_string(text, pg_type, Excess::Refused)?;
            ScalarValue::Utf8(Some(fitted.to_owned()))
        }
        PgType::Text | PgType::Unknown => ScalarValue::Utf8(Some(text.to_owned())),
        PgType::Name => ScalarValue::Utf8(Some(cut_name(text).to_owned())),
        PgType::InternalChar => ScalarValue::Utf8(Some(internal_char(text))),
        PgType::Array(element) => array::parse(element, text, session)?,
        PgType::Oid | PgType::Xid => ScalarValue::UInt32(Some(number::parse_oid(text)?)),
        PgType::Regclass
        | PgType::Regtype
        | PgType::Regproc
        | PgType::Regnamespace
        | PgType::Regrole => ScalarValue::UInt32(Some(number::parse_oid(text).map_err(|_| {
            SqlError::unsupported(format!("{pg_type} of a name is not supported here"))
        })?)),
        PgType::Int2Vector
        | PgType::OidVector
        | PgType::NodeTree
        | PgType::AclItem
        | PgType::Record
        | PgType::Void => {
            return Err(SqlError::unsupported(format!("cannot accept a value of type {pg_type}")));
        }
    })
}

/// Whether what doesn't fit a string's length is refused, as by an assignment, or cut off, as by an
/// explicit cast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Refused,
    Cut,
}

/// A string as `varchar(n)` or `char(n)` stores it. Blanks beyond the length are dropped in any
/// case, and from a `char(n)` all at its end.
pub(super) fn fit_string(text: &str, target: PgType, excess: Excess) -> Result<&str, SqlError> {
    let (PgType::Varchar(length) | PgType::Char(length)) = target else { return Ok(text) };
    let trimmed = if matches!(target, PgType::Char(_)) { text.trim_end_matches(' ') } else { text };
    let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
        return Ok(trimmed);
    };
    if trimmed.len() <= length {
        return Ok(trimmed);
    }
    let Some((end, _)) = trimmed.char_indices().nth(length) else { return Ok(trimmed) };
    let (kept, rest) = trimmed.split_at(end);
    if excess == Excess::Refused && rest.bytes().any(|byte| byte != b' ') {
        return Err(SqlError::new(
            SqlState::STRING_DATA_RIGHT_TRUNCATION,
            format!("value too long for type {target}"),
        ));
    }
    Ok(if matches!(target, PgType::Char(_)) { kept.trim_end_matches(' ') } else { kept })
}

/// `"char"`: the first byte, which may be written as `\ooo`, and is if it isn't ASCII.
fn internal_char(text: &str) -> String {
    let byte = match text.as_bytes() {
        [] => return String::new(),
        [b'\\', octal @ ..] if octal.len() == 3 => {
            u8::from_str_radix(&text[1..], 8).unwrap_or(b'\\')
        }
        [first, ..] => *first,
    };
    if byte.is_ascii() { String::from(char::from(byte)) } else { format!("\\{byte:03o}") }
}

/// An identifier holds 63 bytes; more are cut off.
fn cut_name(text: &str) -> &str {
    let mut end = text.len().min(63);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `22021`
pub(super) fn invalid_utf8(bytes: &[u8]) -> SqlError {
    let shown: Vec<String> = bytes.iter().take(4).map(|byte| format!("0x{byte:02x}")).collect();
    SqlError::new(
        SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" ")),
    )
}

/// Any unambiguous beginning of true, yes, on, false, no, off; 1 and 0.
pub(super) fn parse_bool(text: &str) -> Result<bool, SqlError> {
    let word = number::trim(text).to_ascii_lowercase();
    let begins = |whole: &str, least: usize| word.len() >= least && whole.starts_with(&word);
    if word == "1" || begins("true", 1) || begins("yes", 1) || begins("on", 2) {
        Ok(true)
    } else if word == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Ok(false)
    } else {
        Err(number::invalid_syntax("boolean", text))
    }
}

/// The text of a cell; of NULL, the empty text.
///
/// # Errors
/// Values that PostgreSQL doesn't have, such as dates beyond its own: `22008`.
pub fn format(
    array: &dyn Array,
    row: usize,
    pg_type: PgType,
    session: &SessionFormat,
) -> Result<String, SqlError> {
    let mut out = BytesMut::new();
    encode(array, row, pg_type, session, &mut out)?;
    String::from_utf8(out.into()).map_err(|_| SqlError::internal("a text that is not UTF-8"))
}

/// Appends the text of a cell; of NULL, nothing.
///
/// # Errors
/// As [`format()`]; something may have been appended already.
pub fn encode(
    array: &dyn Array,
    row: usize,
    pg_type: PgType,
    session: &SessionFormat,
    out: &mut BytesMut,
) -> Result<(), SqlError> {
    write(&Cell::of(array, row)?, pg_type, session, out)
}

/// The text of a scalar; of NULL, the empty text.
///
/// # Errors
/// As [`format()`].
pub fn format_scalar(
    value: &ScalarValue,
    pg_type: PgType,
    session: &SessionFormat,
) -> Result<String, SqlError> {
    let array = value.to_array().map_err(|error| SqlError::internal(error.to_string()))?;
    format(&array, 0, pg_type, session)
}

pub(super) fn write(
    cell: &Cell<'_>,
    pg_type: PgType,
    session: &SessionFormat,
    out: &mut BytesMut,
) -> Result<(), SqlError> {
    match cell {
        Cell::Null => {}
        Cell::Bool(value) => out.put_u8(if *value { b't' } else { b'f' }),
        Cell::Int(value) => number::write_integer(*value, out),
        Cell::Unsigned(value) => number::write_unsigned(*value, 1, out),
        Cell::Float4(value) => number::write_float4(*value, out),
        Cell::Float8(value) => number::write_float8(*value, out),
        Cell::Decimal(value, scale) => decimal::write_decimal128(*value, *scale, out),
        Cell::WideDecimal(value, scale) => {
            Decimal::from_unscaled(&value.to_string(), *scale).write(out);
        }
        Cell::Text(text) => {
            out.put_slice(text.as_bytes());
            pad(text, pg_type, out);
        }
        Cell::Bytes(bytes) if pg_type == PgType::Uuid => bytea::write_uuid(bytes, out),
        Cell::Bytes(bytes) => bytea::write_bytea(bytes, out),
        Cell::Date(days) => calendar::write_date(*days, out),
        Cell::Time(micros) => calendar::write_time(*micros, out),
        Cell::Timestamp(micros) => {
            let zoned = pg_type == PgType::Timestamptz;
            let offset = zoned.then(|| session.time_zone.offset_at(*micros));
            calendar::write_timestamp(*micros, offset, out);
        }
        Cell::Interval(value) => interval::write(*value, out),
        Cell::List(elements) => match pg_type {
            PgType::Int2Vector | PgType::OidVector => write_vector(elements, session, out)?,
            _ => write_array(elements, pg_type.base().plain(), session, out)?,
        },
        Cell::Struct(record, row) => write_record(record, *row, session, out)?,
    }
    Ok(())
}

/// Writes the blanks that a `char(n)` is stored without.
pub(super) fn pad(text: &str, pg_type: PgType, out: &mut BytesMut) {
    if let PgType::Char(Some(length)) = pg_type {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let missing = length.saturating_sub(text.chars().count());
        out.put_bytes(b' ', missing);
    }
}

/// `int2vector`: elements with blanks between.
fn write_vector(
    elements: &dyn Array,
    session: &SessionFormat,
    out: &mut BytesMut,
) -> Result<(), SqlError> {
    for row in 0..elements.len() {
        if row > 0 {
            out.put_u8(b' ');
        }
        encode(elements, row, PgType::Int4, session, out)?;
    }
    Ok(())
}

/// `{1,NULL,"a b"}`; an array of arrays has more dimensions.
fn write_array(
    elements: &dyn Array,
    element: PgType,
    session: &SessionFormat,
    out: &mut BytesMut,
) -> Result<(), SqlError> {
    out.put_u8(b'{');
    for row in 0..elements.len() {
        if row > 0 {
            out.put_u8(b',');
        }
        match Cell::of(elements, row)? {
            Cell::Null => out.put_slice(b"NULL"),
            Cell::List(inner) => write_array(&inner, element, session, out)?,
            cell => {
                let mut text = BytesMut::new();
                write(&cell, element, session, &mut text)?;
                write_quoted(&text, out);
            }
        }
    }
    out.put_u8(b'}');
    Ok(())
}

fn write_quoted(text: &[u8], out: &mut BytesMut) {
    let special =
        |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',') || number::is_space(*byte);
    if !text.is_empty() && !text.eq_ignore_ascii_case(b"null") && !text.iter().any(special) {
        return out.put_slice(text);
    }
    out.put_u8(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

/// `(1,,"a b")`
fn write_record(
    record: &StructArray,
    row: usize,
    session: &SessionFormat,
    out: &mut BytesMut,
) -> Result<(), SqlError> {
    out.put_u8(b'(');
    for (index, (field, column)) in record.fields().iter().zip(record.columns()).enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        if column.is_null(row) {
            continue;
        }
        let mut text = BytesMut::new();
        encode(column, row, PgType::of_field(field), session, &mut text)?;
        let special = |byte: &u8| {
            matches!(byte, b'"' | b'\\' | b'(' | b')' | b',') || number::is_space(*byte)
        };
        if !text.is_empty() && !text.iter().any(special) {
            out.put_slice(&text);
            continue;
        }
        out.put_u8(b'"');
        for byte in &text {
            if matches!(byte, b'"' | b'\\') {
                out.put_u8(*byte);
            }
            out.put_u8(*byte);
        }
        out.put_u8(b'"');
    }
    out.put_u8(b')');
    Ok(())
}
