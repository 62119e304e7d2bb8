//! Results on the wire: row descriptions, and rows straight from Arrow arrays.

use bytes::{BufMut, BytesMut};
use meridian_sql::arrow::array::{Array, RecordBatch};
use meridian_sql::types::{SessionFormat, binary, text};
use meridian_sql::{ColumnDescription, SqlError, SqlState};
use pgwire::messages::Message as _;
use pgwire::messages::data::{FieldDescription, MESSAGE_TYPE_BYTE_DATA_ROW, RowDescription};

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As its type's input function would read it.
    Text,
    /// As its type's send function would write it.
    Binary,
}

impl Format {
    fn of_code(code: i16) -> Result<Self, SqlError> {
        match code {
            0 => Ok(Self::Text),
            1 => Ok(Self::Binary),
            _ => Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("unsupported format code: {code}"),
            )),
        }
    }

    /// One format per value, from a list that may be empty (all text) or a single one for all.
    pub fn spread(codes: &[i16], values: usize, what: &str) -> Result<Vec<Self>, SqlError> {
        match codes {
            [] => Ok(vec![Self::Text; values]),
            [code] => Ok(vec![Self::of_code(*code)?; values]),
            codes if codes.len() == values => codes.iter().map(|c| Self::of_code(*c)).collect(),
            codes => Err(SqlError::new(
                SqlState::PROTOCOL_VIOLATION,
                format!("bind message has {} {what} formats but {values} {what}s", codes.len()),
            )),
        }
    }
}

/// Appends a row description. `formats` may be empty: text.
pub fn encode_description(
    columns: &[ColumnDescription],
    formats: &[Format],
    output: &mut BytesMut,
) -> Result<(), SqlError> {
    let describe = |(i, column): (usize, &ColumnDescription)| {
        FieldDescription::new(
            column.name.clone(),
            column.table_oid.unwrap_or(0).cast_signed(),
            column.column_number.unwrap_or(0),
            column.pg_type.oid(),
            column.pg_type.typlen(),
            column.pg_type.typmod(),
            i16::from(formats.get(i) == Some(&Format::Binary)),
        )
    };
    let fields = columns.iter().enumerate().map(describe).collect();
    RowDescription::new(fields).encode(output).map_err(|e| SqlError::internal(e.to_string()))
}

/// Appends one row of a batch. After an error nothing was appended.
pub fn encode_row(
    batch: &RecordBatch,
    row: usize,
    columns: &[ColumnDescription],
    formats: &[Format],
    session: &SessionFormat,
    output: &mut BytesMut,
) -> Result<(), SqlError> {
    let start = output.len();
    let encoded = encode_values(batch, row, columns, formats, session, output);
    if encoded.is_err() {
        output.truncate(start);
    }
    encoded
}

fn encode_values(
    batch: &RecordBatch,
    row: usize,
    columns: &[ColumnDescription],
    formats: &[Format],
    session: &SessionFormat,
    output: &mut BytesMut,
) -> Result<(), SqlError> {
    output.put_u8(MESSAGE_TYPE_BYTE_DATA_ROW);
    let length_at = output.len();
    output.put_i32(0);
    let count = i16::try_from(columns.len()).map_err(|_| {
        SqlError::new(SqlState::TOO_MANY_COLUMNS, "a row can have at most 32767 columns")
    })?;
    output.put_i16(count);
    for (i, column) in columns.iter().enumerate() {
        let array = batch.column(i);
        if array.is_null(row) {
            output.put_i32(-1);
            continue;
        }
        let value_at = output.len();
        output.put_i32(0);
        let format = formats.get(i).copied().unwrap_or(Format::Text);
        encode_value(array, row, column, format, session, output)?;
        patch_length(output, value_at, value_at + 4)?;
    }
    patch_length(output, length_at, length_at)
}

fn encode_value(
    array: &dyn Array,
    row: usize,
    column: &ColumnDescription,
    format: Format,
    session: &SessionFormat,
    output: &mut BytesMut,
) -> Result<(), SqlError> {
    match format {
        Format::Binary => binary::encode(array, row, column.pg_type, output),
        Format::Text => text::encode(array, row, column.pg_type, session, output),
    }
}

/// Writes at `at` the length of what follows `from`.
fn patch_length(output: &mut BytesMut, at: usize, from: usize) -> Result<(), SqlError> {
    let length = i32::try_from(output.len() - from).map_err(|_| {
        SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a row is longer than two gigabytes")
    })?;
    output[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}
