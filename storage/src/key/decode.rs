//! From keys back to values.

use super::encode::SIGN;
use super::{END, ESCAPE, ESCAPED, KeyType, KeyValue, MAX_INTEGER, NULL, Order, VALUE, ZERO};

/// Bytes that are not the encoding of what the schema says they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed key at byte {at}: {problem}")]
pub struct KeyError {
    at: usize,
    problem: &'static str,
}

/// Reads a key from left to right.
#[derive(Clone, Debug)]
pub struct KeyReader<'a> {
    key: &'a [u8],
    at: usize,
    /// What every byte is xor'ed with: all ones while a descending column is read.
    mask: u8,
}

impl<'a> KeyReader<'a> {
    /// A reader at the beginning of `key`.
    #[must_use]
    pub fn new(key: &'a [u8]) -> Self {
        Self { key, at: 0, mask: 0 }
    }

    /// Whether the key ends here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.key.len()
    }

    /// What is left of the key.
    #[must_use]
    pub fn remaining(&self) -> &'a [u8] {
        &self.key[self.at..]
    }

    /// What has been read of the key.
    #[must_use]
    pub fn consumed(&self) -> &'a [u8] {
        &self.key[..self.at]
    }

    /// Reads a table's or index's id.
    ///
    /// # Errors
    /// When there is none here.
    pub fn table(&mut self) -> Result<u64, KeyError> {
        self.mask = 0;
        let header = self.byte()?;
        let id = self.integer(header)?;
        u64::try_from(id).map_err(|_| self.problem("not a table's id"))
    }

    /// Reads a column.
    ///
    /// # Errors
    /// When no value of that type and order is here.
    pub fn value(&mut self, kind: KeyType, order: Order) -> Result<KeyValue, KeyError> {
        self.mask = if order == Order::Desc { 0xff } else { 0 };
        let header = self.byte()?;
        if header == NULL {
            return Ok(KeyValue::Null);
        }
        Ok(match kind {
            KeyType::Bool => match header.wrapping_sub(VALUE) {
                0 => KeyValue::Bool(false),
                1 => KeyValue::Bool(true),
                _ => return Err(self.problem("not a boolean")),
            },
            KeyType::Int => KeyValue::Int(self.narrow(header)?),
            KeyType::Time => KeyValue::Time(self.narrow(header)?),
            KeyType::Timestamp => KeyValue::Timestamp(self.narrow(header)?),
            KeyType::Date => KeyValue::Date(self.narrow(header)?),
            KeyType::Decimal => KeyValue::Decimal(self.integer(header)?),
            KeyType::Interval => KeyValue::Interval(self.integer(header)?),
            KeyType::Float => {
                self.expect(header)?;
                KeyValue::Float(float(u64::from_be_bytes(self.array()?)))
            }
            KeyType::Text => {
                self.expect(header)?;
                let bytes = self.escaped()?;
                KeyValue::Text(
                    String::from_utf8(bytes).map_err(|_| self.problem("text is not UTF-8"))?,
                )
            }
            KeyType::Bytes => {
                self.expect(header)?;
                KeyValue::Bytes(self.escaped()?)
            }
            KeyType::Uuid => {
                self.expect(header)?;
                KeyValue::Uuid(self.array()?)
            }
        })
    }

    fn problem(&self, problem: &'static str) -> KeyError {
        KeyError { at: self.at, problem }
    }

    fn byte(&mut self) -> Result<u8, KeyError> {
        let byte = *self.key.get(self.at).ok_or_else(|| self.problem("the key ends too early"))?;
        self.at += 1;
        Ok(byte ^ self.mask)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], KeyError> {
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte()?;
        }
        Ok(array)
    }

    fn expect(&self, header: u8) -> Result<(), KeyError> {
        if header == VALUE { Ok(()) } else { Err(self.problem("a value of another type")) }
    }

    fn narrow<T: TryFrom<i128>>(&mut self, header: u8) -> Result<T, KeyError> {
        let value = self.integer(header)?;
        T::try_from(value).map_err(|_| self.problem("number out of range"))
    }

    fn integer(&mut self, header: u8) -> Result<i128, KeyError> {
        let negative = header < ZERO;
        let length = if negative { ZERO - 1 - header } else { header - ZERO };
        if length > MAX_INTEGER {
            return Err(self.problem("a value of another type"));
        }
        let mut magnitude = 0_u128;
        for _ in 0..length {
            let byte = self.byte()?;
            let byte = if negative { !byte } else { byte };
            if magnitude == 0 && byte == 0 {
                return Err(self.problem("a number that is not in its shortest form"));
            }
            magnitude = magnitude << 8 | u128::from(byte);
        }
        let value = i128::try_from(magnitude).map_err(|_| self.problem("number out of range"))?;
        Ok(if negative { !value } else { value })
    }

    fn escaped(&mut self) -> Result<Vec<u8>, KeyError> {
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                ESCAPE => match self.byte()? {
                    ESCAPED => bytes.push(ESCAPE),
                    END => return Ok(bytes),
                    _ => return Err(self.problem("unknown escape")),
                },
                byte => bytes.push(byte),
            }
        }
    }
}

fn float(ordered: u64) -> f64 {
    f64::from_bits(if ordered & SIGN == 0 { !ordered } else { ordered & !SIGN })
}
