//! Keys whose bytes sort as their values do.
//!
//! redb, tablets, locks and scans know nothing of columns: they compare bytes. So a row's key
//! columns are encoded such that comparing the bytes is comparing the values, column by column.
//!
//! # Layout of a row's key
//!
//! ```text
//! root table's id | root's primary key | own table's or index's id | the rest of the own key
//! ```
//!
//! The root is the table itself, or the one that it is (transitively) interleaved in. So a root
//! row and all that is interleaved under it, Spanner's *directory*, are the keys with one prefix:
//!
//! ```text
//! 7 | w=1 | 7              warehouse 1                  (table 7 is its own root)
//! 7 | w=1 | 8 | d=1        district (1, 1)              (table 8, interleaved in 7)
//! 7 | w=1 | 8 | d=2        district (1, 2)
//! 7 | w=1 | 9 | d=1 | c=1  customer (1, 1, 1)           (table 9, interleaved in 8)
//! 7 | w=2 | 7              warehouse 2
//! ```
//!
//! # Encoding of one value
//!
//! Every encoding is self-delimiting: none is a proper prefix of another of its type. Therefore
//! columns can be put one behind the other, and inverting every bit of an encoding reverses its
//! order, which is how DESC is made.
//!
//! | value | bytes, ascending |
//! |---|---|
//! | NULL | `ff`: behind every value; inverted to `00`, before every value. PostgreSQL's default |
//! | false, true | `01`, `02` |
//! | table id, integers, decimal, date, time, timestamp, interval | `80 + n` and the n bytes of the number, high byte first, without leading zeros; below zero `7f - n` and the n bytes of the complement |
//! | real, double | `01` and 8 bytes: the IEEE bits with the sign flipped (all flipped below zero); -0 is 0, and every NaN is the same one, behind infinity |
//! | text, bytea | `01`, the bytes with `00` written as `00 ff`, then `00 01` |
//! | uuid | `01` and 16 bytes |
//!
//! # Caveats
//!
//! The bytes don't say what they are: a reader must know the types and orders from the schema.
//! Text sorts by its UTF-8 bytes, which is PostgreSQL's collation "C". A decimal's scale and an
//! interval's normalization are the schema's business: two values of one column are encoded at
//! the same scale.
//!
//! Sources: the tuple layers of FoundationDB and `CockroachDB` (`pkg/util/encoding`).

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{KeyError, KeyReader};
pub use encode::KeyBuilder;

/// A value of a key column.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyValue {
    /// SQL's NULL.
    Null,
    /// A boolean.
    Bool(bool),
    /// Any integer type.
    Int(i64),
    /// `real` and `double precision`, in PostgreSQL's total order.
    Float(f64),
    /// A number without its decimal point; the column's scale is fixed by the schema.
    Decimal(i128),
    /// Text, in the order of its bytes.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64),
    /// Microseconds, with months and days counted as 30 days and 24 hours, as PostgreSQL compares
    /// intervals.
    Interval(i128),
    /// A UUID.
    Uuid([u8; 16]),
}

/// What a key column holds besides NULL; one kind for each variant of [`KeyValue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "named and documented by KeyValue's variants")]
pub enum KeyType {
    Bool,
    Int,
    Float,
    Decimal,
    Text,
    Bytes,
    Date,
    Time,
    Timestamp,
    Interval,
    Uuid,
}

/// The direction in which a key column sorts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Order {
    /// Ascending, NULLs last.
    #[default]
    Asc,
    /// Descending, NULLs first.
    Desc,
}

/// NULL, ascending.
const NULL: u8 = 0xff;
/// What begins a value whose bytes could otherwise begin with NULL's.
const VALUE: u8 = 0x01;
/// Begins an escape in text and bytes: `ESCAPE, ESCAPED` is a zero, `ESCAPE, END` ends the value.
const ESCAPE: u8 = 0x00;
const ESCAPED: u8 = 0xff;
const END: u8 = 0x01;
/// Begins an integer without further bytes: zero.
const ZERO: u8 = 0x80;
/// The longest integer, in bytes.
const MAX_INTEGER: u8 = 16;
