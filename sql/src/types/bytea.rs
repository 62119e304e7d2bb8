//! `bytea` and `uuid` as text.

use bytes::{BufMut, BytesMut};

use super::number::invalid_syntax;
use crate::error::{SqlError, SqlState};

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex_value(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Parses both of PostgreSQL's formats: `\xdeadbeef`, and escape (`a\\b\000`).
pub(super) fn parse_bytea(text: &str) -> Result<Vec<u8>, SqlError> {
    match text.strip_prefix("\\x") {
        Some(hex) => parse_hex(hex),
        None => parse_escape(text.as_bytes()),
    }
}

fn parse_hex(hex: &str) -> Result<Vec<u8>, SqlError> {
    let invalid = |message: String| SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message);
    let bytes = hex.as_bytes();
    let digit = |at: usize| {
        hex_value(bytes[at]).ok_or_else(|| {
            // The whole character, where the byte begins one.
            let found = hex.get(at..).and_then(|rest| rest.chars().next()).unwrap_or('?');
            invalid(format!("invalid hexadecimal digit: \"{found}\""))
        })
    };
    let mut out = Vec::with_capacity(bytes.len() / 2);
    let mut at = 0;
    while at < bytes.len() {
        // Blanks are allowed between bytes, not inside one.
        if matches!(bytes[at], b' ' | b'\n' | b'\t' | b'\r') {
            at += 1;
            continue;
        }
        let high = digit(at)?;
        if at + 1 == bytes.len() {
            return Err(invalid("invalid hexadecimal data: odd number of digits".to_owned()));
        }
        out.push(high << 4 | digit(at + 1)?);
        at += 2;
    }
    Ok(out)
}

fn parse_escape(mut bytes: &[u8]) -> Result<Vec<u8>, SqlError> {
    let mut out = Vec::with_capacity(bytes.len());
    loop {
        bytes = match bytes {
            [] => return Ok(out),
            [b'\\', b'\\', rest @ ..] => {
                out.push(b'\\');
                rest
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest
            }
            [b'\\', ..] => {
                return Err(SqlError::new(
                    SqlState::INVALID_TEXT_REPRESENTATION,
                    "invalid input syntax for type bytea",
                ));
            }
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
        };
    }
}

/// Writes the hex format.
pub(super) fn write_bytea(bytes: &[u8], out: &mut BytesMut) {
    out.reserve(2 + bytes.len() * 2);
    out.put_slice(b"\\x");
    for byte in bytes {
        out.put_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

/// Parses a UUID: 32 hex digits, a hyphen allowed after every fourth, braces around it all.
pub(super) fn parse_uuid(text: &str) -> Result<[u8; 16], SqlError> {
    scan_uuid(text.as_bytes()).ok_or_else(|| invalid_syntax("uuid", text))
}

fn scan_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut rest = match text {
        [b'{', inside @ .., b'}'] => inside,
        [b'{', ..] => return None,
        plain => plain,
    };
    let mut uuid = [0; 16];
    for (index, byte) in uuid.iter_mut().enumerate() {
        let [high, low, after @ ..] = rest else { return None };
        *byte = hex_value(*high)? << 4 | hex_value(*low)?;
        rest = match after {
            [b'-', after @ ..] if index % 2 == 1 && index < 15 => after,
            after => after,
        };
    }
    rest.is_empty().then_some(uuid)
}

/// Writes the standard form.
pub(super) fn write_uuid(uuid: &[u8], out: &mut BytesMut) {
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.put_u8(b'-');
        }
        out.put_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}
