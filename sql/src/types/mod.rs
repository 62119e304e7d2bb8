//! PostgreSQL's types over Arrow's.
//!
//! A value has three shapes in this server: a cell of an Arrow array while a statement runs, bytes
//! of PostgreSQL's text or binary format on the wire, and bytes of a stored row. [`PgType`] names
//! the type in all three. Arrow has fewer types than PostgreSQL (`text`, `varchar(3)`, `char(3)`
//! and `jsonb` are all strings), so a field whose Arrow type doesn't tell carries the exact type in
//! its metadata under [`PG_TYPE_KEY`]; what DataFusion computes carries none, and gets the type that
//! PostgreSQL would have given it as nearly as Arrow's type tells ([`PgType::of_field`]).
//!
//! | PostgreSQL | Arrow | note |
//! |---|---|---|
//! | `boolean` | `Boolean` | |
//! | `smallint`, `integer`, `bigint` | `Int16`, `Int32`, `Int64` | |
//! | `real`, `double precision` | `Float32`, `Float64` | NaN equals NaN and is the greatest, as in PostgreSQL |
//! | `numeric(p,s)` | `Decimal128(p, s)` | p ≤ 38, 0 ≤ s ≤ p; neither NaN nor infinity |
//! | `text`, `varchar(n)`, `jsonb` | `Utf8` | jsonb in PostgreSQL's normal form |
//! | `char(n)` | `Utf8` | without its trailing blanks, which mean nothing; they come back on output |
//! | `bytea` | `Binary` | |
//! | `date` | `Date32` | `±infinity` is the greatest and the least `i32` |
//! | `time` | `Time64(µs)` | 24:00:00 included |
//! | `timestamp` | `Timestamp(µs)` | `±infinity` is the greatest and the least `i64` |
//! | `timestamptz` | `Timestamp(µs, "UTC")` | likewise |
//! | `interval` | `Interval(MonthDayNano)` | microseconds; the time part is within ±292 years |
//! | `uuid` | `FixedSizeBinary(16)` | |
//! | `oid`, `regclass`, ... | `UInt32` | |
//! | arrays | `List` | output, and parameters |
//!
//! - [`text`] and [`binary`] read and write the two wire formats.
//! - [`assign`] is the cast that `INSERT` and `UPDATE` apply to a value for a column.
//!
//! Caveats, where Arrow is narrower than PostgreSQL: a timestamp ends on 294247-01-10 (PostgreSQL's
//! 30 years later), an interval's time part holds 2,562,047 hours, a
//! `numeric` needs a precision of at most 38 and has neither NaN nor infinity, `timestamp(p)` is
//! accepted only for p = 6. What doesn't fit is refused, never rounded silently.

mod array;
mod arrow;
pub mod assign;
pub mod binary;
mod bytea;
mod calendar;
mod cell;
mod datetime;
mod decimal;
mod interval;
mod json;
mod names;
mod number;
mod pg_type;
pub mod text;
mod zone;

pub use arrow::PG_TYPE_KEY;
pub use json::normalize as normalize_json;
pub use pg_type::{BaseType, MAX_NUMERIC_PRECISION, PgType, TypeFacts};
pub use zone::{SessionFormat, TimeZone};

#[cfg(test)]
pub(crate) mod tests;
