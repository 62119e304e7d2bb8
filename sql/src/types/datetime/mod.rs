//! `date`, `time`, `timestamp` and `timestamptz` as text, read as PostgreSQL reads them.
//!
//! The grammar is what PostgreSQL's `datetime.c` does: the text is cut into fields by their first
//! characters ([`fields`]), then each field is understood in the light of what has been found so
//! far. The order of a date of numbers alone is year-month-day if the first has three digits or
//! more, else month-day-year (`DateStyle` is `ISO, MDY`).
//!
//! Not understood: `now`, `today`, `tomorrow`, `yesterday`, which would need the transaction's time
//! (use `now()`, `current_date`), and `DST` after a zone.

mod fields;
mod parts;

use super::calendar::{
    DATE_INFINITY, DATE_NEGATIVE_INFINITY, MICROS_PER_DAY, MICROS_PER_SECOND, SECONDS_PER_DAY,
    TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY, check_timestamp, date_from_days,
    timestamp_from_parts,
};
use super::zone::TimeZone;
use crate::error::{SqlError, SqlState};

pub(super) use fields::{Fault, Shape, fields};
pub(super) use parts::clock;

use parts::{DATE, Parts, Special, TIME, Zone};

/// Reads a text with a date (`DecodeDateTime`).
fn decode(text: &str) -> Result<Parts, Fault> {
    let parts = Parts::read(text, false)?;
    if parts.has(DATE) { Ok(parts) } else { Err(Fault::Format) }
}

/// Parses a `date`.
pub(super) fn parse_date(text: &str) -> Result<i32, SqlError> {
    let parts = decode(text).map_err(|fault| fault.error("date", text))?;
    match parts.special {
        Some(Special::Epoch) => Ok(0),
        Some(Special::Infinity) => Ok(DATE_INFINITY),
        Some(Special::NegativeInfinity) => Ok(DATE_NEGATIVE_INFINITY),
        None => date_from_days(parts.days()).ok_or_else(|| out_of_range("date", text)),
    }
}

/// Parses a `time`; a date and a zone are accepted and ignored, as in PostgreSQL.
pub(super) fn parse_time(text: &str) -> Result<i64, SqlError> {
    decode_time(text).map_err(|fault| fault.error("time", text))
}

fn decode_time(text: &str) -> Result<i64, Fault> {
    let parts = Parts::read(text, true)?;
    if parts.time_overflows() {
        return Err(Fault::Overflow);
    }
    // The offset of a zone that changes it depends on a date.
    let dated = match &parts.zone {
        Some(Zone::Named(zone)) => zone.fixed().is_some() || parts.has(DATE),
        _ => true,
    };
    if !parts.has(TIME) || !dated {
        return Err(Fault::Format);
    }
    Ok(parts.time_micros())
}

/// Parses a `timestamp`; a zone is accepted and ignored, as in PostgreSQL.
pub(super) fn parse_timestamp(text: &str) -> Result<i64, SqlError> {
    let parts = decode(text).map_err(|fault| fault.error("timestamp", text))?;
    match parts.special {
        Some(special) => Ok(special_timestamp(special)),
        None => timestamp_from_parts(parts.days(), parts.time_micros())
            .ok_or_else(|| out_of_range("timestamp", text)),
    }
}

/// Parses a `timestamptz`; without a zone of its own it is in the session's.
pub(super) fn parse_timestamptz(text: &str, session: &TimeZone) -> Result<i64, SqlError> {
    let parts = decode(text).map_err(|fault| fault.error("timestamp with time zone", text))?;
    if let Some(special) = parts.special {
        return Ok(special_timestamp(special));
    }
    let local =
        i128::from(parts.days()) * i128::from(MICROS_PER_DAY) + i128::from(parts.time_micros());
    utc_from_local(local, parts.zone, session).ok_or_else(|| out_of_range("timestamp", text))
}

fn utc_from_local(local: i128, zone: Option<Zone>, session: &TimeZone) -> Option<i64> {
    // Times just outside of 64 bits may be inside in UTC; their zone's offset is then that of the
    // nearest time inside.
    let near = i64::try_from(local.clamp(i128::from(i64::MIN), i128::from(i64::MAX))).ok()?;
    let offset = match zone {
        Some(Zone::Offset(offset)) => offset,
        Some(Zone::Named(zone)) => zone.offset_at_local(near),
        None => session.offset_at_local(near),
    };
    check_timestamp(local - i128::from(offset) * i128::from(MICROS_PER_SECOND))
}

/// A `timestamp` as a `timestamptz` of the session's zone.
pub(super) fn timestamp_to_timestamptz(micros: i64, session: &TimeZone) -> Option<i64> {
    match micros {
        TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY => Some(micros),
        _ => utc_from_local(i128::from(micros), None, session),
    }
}

/// A `timestamptz` as a `timestamp` of the session's zone.
pub(super) fn timestamptz_to_timestamp(micros: i64, session: &TimeZone) -> Option<i64> {
    match micros {
        TIMESTAMP_INFINITY | TIMESTAMP_NEGATIVE_INFINITY => Some(micros),
        _ => {
            let offset = i128::from(session.offset_at(micros));
            check_timestamp(i128::from(micros) + offset * i128::from(MICROS_PER_SECOND))
        }
    }
}

/// A `date` as a `timestamp`.
pub(super) fn date_to_timestamp(date: i32) -> Option<i64> {
    match date {
        DATE_INFINITY => Some(TIMESTAMP_INFINITY),
        DATE_NEGATIVE_INFINITY => Some(TIMESTAMP_NEGATIVE_INFINITY),
        _ => timestamp_from_parts(i64::from(date), 0),
    }
}

/// The `date` of a `timestamp`.
pub(super) fn timestamp_to_date(micros: i64) -> Option<i32> {
    match micros {
        TIMESTAMP_INFINITY => Some(DATE_INFINITY),
        TIMESTAMP_NEGATIVE_INFINITY => Some(DATE_NEGATIVE_INFINITY),
        _ => date_from_days(micros.div_euclid(SECONDS_PER_DAY * MICROS_PER_SECOND)),
    }
}

fn special_timestamp(special: Special) -> i64 {
    match special {
        Special::Epoch => 0,
        Special::Infinity => TIMESTAMP_INFINITY,
        Special::NegativeInfinity => TIMESTAMP_NEGATIVE_INFINITY,
    }
}

fn out_of_range(type_name: &str, text: &str) -> SqlError {
    SqlError::new(
        SqlState::DATETIME_FIELD_OVERFLOW,
        format!("{type_name} out of range: \"{text}\""),
    )
}
