//! The bytes of a value: tagged columns.

use crate::error::SqlError;

/// The version of the format, the first byte.
const VERSION: u8 = 1;

const VARINT: u8 = 0;
const FIXED4: u8 = 1;
const FIXED8: u8 = 2;
const FIXED16: u8 = 3;
const BYTES: u8 = 4;
const FALSE: u8 = 5;
const TRUE: u8 = 6;
const KIND_BITS: u32 = 3;
const KIND_MASK: u8 = (1 << KIND_BITS) - 1;

/// A column as it is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stored<'a> {
    Int(i64),
    Fixed4([u8; 4]),
    Fixed8([u8; 8]),
    Fixed16([u8; 16]),
    Bytes(&'a [u8]),
    Bool(bool),
}

/// Writes columns in the order of their ids.
pub(super) struct Writer {
    out: Vec<u8>,
    last: u32,
}

impl Writer {
    pub fn with_capacity(capacity: usize) -> Self {
        let mut out = Vec::with_capacity(capacity);
        out.push(VERSION);
        Self { out, last: 0 }
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    pub fn put(&mut self, id: u32, value: Stored<'_>) {
        debug_assert!(id > self.last, "columns are written in the order of their ids");
        let kind = match value {
            Stored::Int(_) => VARINT,
            Stored::Fixed4(_) => FIXED4,
            Stored::Fixed8(_) => FIXED8,
            Stored::Fixed16(_) => FIXED16,
            Stored::Bytes(_) => BYTES,
            Stored::Bool(false) => FALSE,
            Stored::Bool(true) => TRUE,
        };
        self.varint(u64::from(id - self.last) << KIND_BITS | u64::from(kind));
        self.last = id;
        match value {
            Stored::Int(value) => self.varint(zigzag(value)),
            Stored::Fixed4(bytes) => self.out.extend_from_slice(&bytes),
            Stored::Fixed8(bytes) => self.out.extend_from_slice(&bytes),
            Stored::Fixed16(bytes) => self.out.extend_from_slice(&bytes),
            Stored::Bytes(bytes) => {
                self.varint(bytes.len() as u64);
                self.out.extend_from_slice(bytes);
            }
            Stored::Bool(_) => {}
        }
    }

    fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.out.push(low & 0x7f);
            }
            self.out.push(low | 0x80);
        }
    }
}

/// Small numbers of both signs as small numbers.
const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Reads columns in the order of their ids.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    id: u32,
}

pub(super) fn malformed() -> SqlError {
    SqlError::corrupted("a stored row's value is malformed")
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self, SqlError> {
        match bytes.split_first() {
            Some((&VERSION, bytes)) => Ok(Self { bytes, id: 0 }),
            Some((version, _)) => {
                Err(SqlError::corrupted(format!("a stored row has the unknown version {version}")))
            }
            None => Err(malformed()),
        }
    }

    /// The next column's id and value.
    #[inline]
    pub fn next(&mut self) -> Result<Option<(u32, Stored<'a>)>, SqlError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let delta = u32::try_from(tag >> KIND_BITS).ok().filter(|delta| *delta > 0);
        self.id = delta.and_then(|delta| self.id.checked_add(delta)).ok_or_else(malformed)?;
        let [low, ..] = tag.to_le_bytes();
        let value = match low & KIND_MASK {
            VARINT => Stored::Int(unzigzag(self.varint()?)),
            FIXED4 => Stored::Fixed4(self.array()?),
            FIXED8 => Stored::Fixed8(self.array()?),
            FIXED16 => Stored::Fixed16(self.array()?),
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| malformed())?;
                let (taken, rest) = self.bytes.split_at_checked(length).ok_or_else(malformed)?;
                self.bytes = rest;
                Stored::Bytes(taken)
            }
            FALSE => Stored::Bool(false),
            TRUE => Stored::Bool(true),
            _ => return Err(malformed()),
        };
        Ok(Some((self.id, value)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, SqlError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or_else(malformed)?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed())
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SqlError> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(malformed)?;
        self.bytes = rest;
        Ok(*taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_format_is_fixed() {
        let mut writer = Writer::with_capacity(8);
        writer.put(1, Stored::Int(-1));
        writer.put(2, Stored::Bool(true));
        writer.put(20, Stored::Bytes(b"ab"));
        writer.put(21, Stored::Fixed4([1, 2, 3, 4]));
        let bytes = writer.finish();
        assert_eq!(bytes, [1, 8, 1, 14, 0x94, 1, 2, b'a', b'b', 9, 1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn integers_read_back(value in any::<i64>(), id in 1..u32::MAX) {
            let mut writer = Writer::with_capacity(8);
            writer.put(id, Stored::Int(value));
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes).expect("a version");
            prop_assert_eq!(reader.next(), Ok(Some((id, Stored::Int(value)))));
            prop_assert_eq!(reader.next(), Ok(None));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let bytes = [&[VERSION], bytes.as_slice()].concat();
            let mut reader = Reader::new(&bytes).expect("a version");
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
