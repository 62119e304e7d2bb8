//! Casts between types: the ones that `INSERT` and `UPDATE` apply to a value for a column, and the
//! explicit ones of `CAST`.
//!
//! PostgreSQL knows three strengths of a cast: implicit, by assignment, explicit. Which pairs of
//! types have one is its `pg_cast`, reproduced here; besides, everything may be assigned
//! to a string through its text form, and explicitly made from one. A quoted literal has the type
//! `unknown` and is read by its target's input function.
//!
//! A value that doesn't fit is an error (`22003`, `22001`), with one exception: an explicit cast to
//! `varchar(n)` or `char(n)` cuts.

mod convert;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;

use super::pg_type::PgType;
use super::text::Excess;
use super::zone::SessionFormat;
use crate::error::{SqlError, SqlState};

use convert::Cast;

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::new_null_array;

    use super::super::{BaseType, TimeZone, text};
    use super::*;

    fn shown(value: &ScalarValue, source: PgType, target: PgType, explicit: bool) -> String {
        let zone = TimeZone::parse("America/New_York").expect("known");
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
        let session =
            SessionFormat { time_zone: TimeZone::parse("America/New_York").expect("known") };
        let mut wrong = Vec::new();
        for line in include_str!("../testdata/casts.tsv").lines() {
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
