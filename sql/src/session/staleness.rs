//! How old a read may be: `meridian.read_staleness` and `AS OF SYSTEM TIME`.
//!
//! Source: Spanner (OSDI 2012), section 4.1.4: a snapshot read at an old enough timestamp is served by
//! any replica that is up to date so far. `exact 10s` reads as of 10 s ago; `max 10s` as of the latest
//! time that the nearest replicas have, but no longer ago than that, and no earlier than anything that
//! the session has seen.
//!
//! # Caveats
//!
//! A read in the past is planned with the schema of today. In a READ ONLY block that may be stale by at
//! most 10 s, all is read as of 10 s ago: which tablets will be read isn't known when it begins.

use std::time::Duration;

use datafusion::arrow::array::types::IntervalMonthDayNano;
use datafusion::common::ScalarValue;
use meridian_truetime::Timestamp;

use super::Session;
use crate::error::{SqlError, SqlState};
use crate::types::{PgType, text};

/// What `meridian.read_staleness` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadStaleness {
    Strong,
    Exact(Duration),
    Max(Duration),
}

impl ReadStaleness {
    /// `strong`, `exact 10s`, `max 500ms`
    pub(crate) fn parse(value: &str) -> Option<Self> {
        let value = value.trim();
        match value.split_once(char::is_whitespace) {
            None if value.eq_ignore_ascii_case("strong") => Some(Self::Strong),
            Some((kind, by)) if kind.eq_ignore_ascii_case("exact") => duration(by).map(Self::Exact),
            Some((kind, by)) if kind.eq_ignore_ascii_case("max") => duration(by).map(Self::Max),
            _ => None,
        }
    }
}

/// An interval of days and less.
fn duration(value: &str) -> Option<Duration> {
    let parsed = text::parse(PgType::Interval, value, &crate::types::SessionFormat::default());
    let Ok(ScalarValue::IntervalMonthDayNano(Some(interval))) = parsed else { return None };
    let IntervalMonthDayNano { months: 0, days, nanoseconds } = interval else { return None };
    let nanos = i64::from(days).checked_mul(86_400_000_000_000)?.checked_add(nanoseconds)?;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

impl Session {
    /// A point in time as AS OF SYSTEM TIME takes it: a timestamp, or an interval back from now.
    pub(super) fn point_in_time(&self, value: &str) -> Result<Timestamp, SqlError> {
        let invalid = || {
            let message = format!("invalid time to read at: \"{value}\"");
            SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
                .hint("Give a timestamp, or an interval back from now such as '-10s'.")
        };
        let now = self.engine.tablets.now();
        if let Some(back) = value.trim().strip_prefix('-') {
            return Ok(now.earliest.minus(duration(back).ok_or_else(invalid)?));
        }
        let at = match value.trim().parse::<Timestamp>() {
            Ok(at) => at,
            Err(_) => {
                let parsed = text::parse(PgType::Timestamptz, value, &self.format());
                let Ok(ScalarValue::TimestampMicrosecond(Some(micros), _)) = parsed else {
                    return Err(invalid());
                };
                let micros =
                    u64::try_from(micros).ok().and_then(|micros| micros.checked_mul(1_000));
                Timestamp::from_nanos(micros.ok_or_else(invalid)?)
            }
        };
        if at > now.latest {
            return Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                "the time to read at lies in the future",
            )
            .detail(format!("It is {} now.", now.latest)));
        }
        Ok(at)
    }

    /// `SET meridian.min_read_timestamp`: what the session reads is no older, as if it had seen
    /// something of that time itself.
    pub(super) fn see(&self, value: &str) -> Result<(), SqlError> {
        let at = self.point_in_time(value)?;
        self.high_water.raise(at);
        Ok(())
    }

    /// `SHOW meridian.min_read_timestamp`.
    pub(super) fn has_seen(&self) -> String {
        match self.high_water.get() {
            Timestamp::MIN => String::new(),
            at => at.to_string(),
        }
    }
}
