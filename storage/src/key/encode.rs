//! From values to keys.

use super::{END, ESCAPE, ESCAPED, KeyValue, NULL, Order, VALUE, ZERO};

/// Builds a key from left to right.
#[derive(Clone, Debug, Default)]
pub struct KeyBuilder {
    bytes: Vec<u8>,
}

impl KeyBuilder {
    /// An empty key.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A key that continues `prefix`, which this builder has made before.
    #[must_use]
    pub fn from_prefix(prefix: &[u8]) -> Self {
        Self { bytes: prefix.to_vec() }
    }

    /// Appends a table's or index's id.
    #[must_use]
    pub fn table(mut self, id: u64) -> Self {
        integer(&mut self.bytes, i128::from(id));
        self
    }

    /// Appends a column.
    #[must_use]
    pub fn value(mut self, value: &KeyValue, order: Order) -> Self {
        let start = self.bytes.len();
        ascending(&mut self.bytes, value);
        if order == Order::Desc {
            for byte in &mut self.bytes[start..] {
                *byte = !*byte;
            }
        }
        self
    }

    /// The key.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

fn ascending(out: &mut Vec<u8>, value: &KeyValue) {
    match value {
        KeyValue::Null => out.push(NULL),
        KeyValue::Bool(value) => out.push(VALUE + u8::from(*value)),
        KeyValue::Int(value) | KeyValue::Time(value) | KeyValue::Timestamp(value) => {
            integer(out, i128::from(*value));
        }
        KeyValue::Date(value) => integer(out, i128::from(*value)),
        KeyValue::Decimal(value) | KeyValue::Interval(value) => integer(out, *value),
        KeyValue::Float(value) => {
            out.push(VALUE);
            out.extend_from_slice(&ordered_bits(*value).to_be_bytes());
        }
        KeyValue::Text(value) => escaped(out, value.as_bytes()),
        KeyValue::Bytes(value) => escaped(out, value),
        KeyValue::Uuid(value) => {
            out.push(VALUE);
            out.extend_from_slice(value);
        }
    }
}

/// A length that grows with the distance from zero, then as many bytes as needed.
fn integer(out: &mut Vec<u8>, value: i128) {
    // The magnitude: for values below zero, of the complement, so that -1 is 0 and needs no byte.
    let magnitude = (if value < 0 { !value } else { value }).cast_unsigned();
    let bytes = magnitude.to_be_bytes();
    let leading = usize::try_from(magnitude.leading_zeros() / 8).unwrap_or(bytes.len());
    let used = &bytes[leading..];
    #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
    let length = used.len() as u8;
    if value < 0 {
        out.push(ZERO - 1 - length);
        out.extend(used.iter().map(|byte| !byte));
    } else {
        out.push(ZERO + length);
        out.extend_from_slice(used);
    }
}

/// The bits of a float as a number that sorts as PostgreSQL sorts floats.
fn ordered_bits(value: f64) -> u64 {
    let canonical = if value.is_nan() {
        f64::NAN.to_bits() & !SIGN
    } else if value == 0.0 {
        0
    } else {
        value.to_bits()
    };
    if canonical & SIGN == 0 { canonical | SIGN } else { !canonical }
}

/// A float's sign bit.
pub(super) const SIGN: u64 = 1 << 63;

fn escaped(out: &mut Vec<u8>, value: &[u8]) {
    out.reserve(value.len() + 3);
    out.push(VALUE);
    for part in value.split_inclusive(|byte| *byte == ESCAPE) {
        out.extend_from_slice(part);
        if part.ends_with(&[ESCAPE]) {
            out.push(ESCAPED);
        }
    }
    out.extend_from_slice(&[ESCAPE, END]);
}
