//! Time zones, and what else of a session decides how values are read and printed.

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone as _};
use datafusion::arrow::array::timezone::Tz;

use super::calendar::{
    MICROS_PER_SECOND, SECONDS_PER_DAY, civil_from_days, days_from_civil, days_in_month,
};
use crate::error::{SqlError, SqlState};

/// A session's settings that text formats depend on. `DateStyle` is `ISO, MDY`, `IntervalStyle`
/// `postgres`, `bytea_output` `hex`, `extra_float_digits` at least 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SessionFormat {
    /// The setting `TimeZone`.
    pub time_zone: TimeZone,
}

/// A time zone: UTC, an offset, or a name of the IANA database.
#[derive(Debug, Clone)]
pub struct TimeZone {
    name: Arc<str>,
    rule: Rule,
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Seconds east of Greenwich.
    Fixed(i32),
    Named(Tz),
}

impl PartialEq for TimeZone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Default for TimeZone {
    fn default() -> Self {
        Self { name: Arc::from("UTC"), rule: Rule::Fixed(0) }
    }
}

/// The abbreviations that PostgreSQL knows by default, as far as they are in common use; seconds
/// east of Greenwich.
const ABBREVIATIONS: &[(&str, i32)] = &[
    ("acst", 34_200),
    ("aedt", 39_600),
    ("aest", 36_000),
    ("akdt", -28_800),
    ("akst", -32_400),
    ("awst", 28_800),
    ("bst", 3600),
    ("cdt", -18_000),
    ("cest", 7200),
    ("cet", 3600),
    ("cst", -21_600),
    ("edt", -14_400),
    ("eest", 10_800),
    ("eet", 7200),
    ("est", -18_000),
    ("gmt", 0),
    ("hst", -36_000),
    ("ist", 7200),
    ("jst", 32_400),
    ("kst", 32_400),
    ("mdt", -21_600),
    ("mest", 7200),
    ("met", 3600),
    ("msk", 10_800),
    ("mst", -25_200),
    ("nzdt", 46_800),
    ("nzst", 43_200),
    ("pdt", -25_200),
    ("pst", -28_800),
    ("uct", 0),
    ("ut", 0),
    ("utc", 0),
    ("west", 3600),
    ("wet", 0),
    ("z", 0),
    ("zulu", 0),
];

/// The offset of an abbreviation in lower case, in seconds east.
pub(super) fn abbreviation(name: &str) -> Option<i32> {
    ABBREVIATIONS.iter().find(|(known, _)| *known == name).map(|(_, offset)| *offset)
}

/// The greatest displacement of a POSIX zone, exclusive: 168 hours.
const MAX_POSIX_SECONDS: i32 = 168 * 3600;

impl TimeZone {
    /// UTC.
    #[must_use]
    pub fn utc() -> Self {
        Self::default()
    }

    /// The value of `SET TimeZone`: a name in any case, hours east as a number, or a POSIX
    /// specification, whose sign counts west (`UTC+3`, `<+03>-03`).
    ///
    /// # Errors
    /// `22023`.
    pub fn parse(text: &str) -> Result<Self, SqlError> {
        let trimmed = text.trim();
        let zone = match trimmed.parse::<f64>() {
            Ok(hours) if hours.abs() <= 167.0 => Some(Self::from_hours(hours)),
            _ => Self::named(trimmed),
        };
        zone.ok_or_else(|| {
            SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"TimeZone\": \"{text}\""),
            )
        })
    }

    /// A name of the IANA database or a POSIX specification.
    pub(super) fn named(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("utc") {
            return Some(Self::utc());
        }
        // An offset would be read with the other sign: it is POSIX's to a name's place.
        let is_name = text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
        let found = if is_name { spellings(text).into_iter().find_map(known) } else { None };
        found.or_else(|| Self::posix(text))
    }

    fn from_hours(hours: f64) -> Self {
        // At most 168 hours, so the seconds fit.
        #[expect(clippy::cast_possible_truncation, reason = "a small number of seconds")]
        let seconds = (hours * 3600.0).round() as i32;
        // As PostgreSQL names it, in POSIX's form, which counts west.
        let (east, west) = (signed_hours(seconds), signed_hours(-seconds));
        Self { name: Arc::from(format!("<{east}>{west}")), rule: Rule::Fixed(seconds) }
    }

    fn posix(text: &str) -> Option<Self> {
        let offset = match text.strip_prefix('<') {
            Some(quoted) => quoted.split_once('>')?.1,
            None => text.trim_start_matches(|c: char| c.is_ascii_alphabetic()),
        };
        let (sign, digits) = match offset.as_bytes().first()? {
            b'-' => (1, &offset[1..]),
            b'+' => (-1, &offset[1..]),
            _ => (-1, offset),
        };
        let mut seconds = 0;
        let mut parts = 0;
        for (part, unit) in digits.split(':').zip([3600, 60, 1]) {
            if part.is_empty() || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            seconds += part.parse::<i32>().ok()? * unit;
            parts += 1;
        }
        if parts != digits.split(':').count() || seconds >= MAX_POSIX_SECONDS {
            return None;
        }
        Some(Self { name: Arc::from(text), rule: Rule::Fixed(sign * seconds) })
    }

    /// As `SHOW TimeZone` prints it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its offset if it has only one: seconds east.
    pub(super) fn fixed(&self) -> Option<i32> {
        match self.rule {
            Rule::Fixed(offset) => Some(offset),
            Rule::Named(_) => None,
        }
    }

    /// The offset in force at an instant: seconds east of Greenwich.
    pub(super) fn offset_at(&self, micros: i64) -> i32 {
        match self.rule {
            Rule::Fixed(offset) => offset,
            Rule::Named(zone) => {
                let moment = representable(micros);
                zone.offset_from_utc_datetime(&moment).fix().local_minus_utc()
            }
        }
    }

    /// The offset in force at a local time. A time that a change skips has the offset from before
    /// it; one that occurs twice has the offset from after it, as in PostgreSQL.
    pub(super) fn offset_at_local(&self, micros: i64) -> i32 {
        match self.rule {
            Rule::Fixed(offset) => offset,
            Rule::Named(zone) => {
                let mut local = representable(micros);
                // No change has ever skipped more than a day.
                for _ in 0..=24 {
                    match zone.offset_from_local_datetime(&local) {
                        LocalResult::Single(offset) | LocalResult::Ambiguous(_, offset) => {
                            return offset.fix().local_minus_utc();
                        }
                        LocalResult::None => local -= TimeDelta::hours(1),
                    }
                }
                0
            }
        }
    }
}

/// An instant for chrono, whose calendar and rules are finite: a year beyond them is replaced by a
/// recent one whose days fall on the same weekdays, one before them by the first.
fn representable(micros: i64) -> NaiveDateTime {
    let seconds = micros.div_euclid(MICROS_PER_SECOND);
    let (year, month, day) = civil_from_days(seconds.div_euclid(SECONDS_PER_DAY));
    let kind = |year| (days_in_month(year, 2), days_from_civil(year, 1, 1).rem_euclid(7));
    let year = match year {
        ..1600 => 1600,
        2037.. => (2009..2037).find(|recent| kind(*recent) == kind(year)).unwrap_or(2009),
        year => year,
    };
    let days = days_from_civil(year, month, day);
    let seconds = days * SECONDS_PER_DAY + seconds.rem_euclid(SECONDS_PER_DAY);
    DateTime::from_timestamp(seconds, 0).unwrap_or_default().naive_utc()
}

fn signed_hours(seconds: i32) -> String {
    let sign = if seconds < 0 { '-' } else { '+' };
    let seconds = seconds.unsigned_abs();
    match seconds / 60 % 60 {
        0 => format!("{sign}{:02}", seconds / 3600),
        minutes => format!("{sign}{:02}:{minutes:02}", seconds / 3600),
    }
}

fn known(name: String) -> Option<TimeZone> {
    let rule = Rule::Named(Tz::from_str(&name).ok()?);
    Some(TimeZone { name: Arc::from(name), rule })
}

/// The database's names are case-sensitive, PostgreSQL's are not: as written, all capitals, and the
/// usual `America/Port_of_Spain`, `Etc/GMT+5`, `US/Eastern`.
fn spellings(text: &str) -> [String; 3] {
    let mut usual = String::with_capacity(text.len());
    for word in text.split_inclusive(['/', '_', '-', '+']) {
        let lower = word.to_ascii_lowercase();
        match lower.trim_end_matches(['/', '_', '-', '+']) {
            "gmt" | "utc" | "uct" | "us" | "nz" | "gb" => {
                usual.push_str(&word.to_ascii_uppercase());
            }
            "of" | "es" | "au" => usual.push_str(&lower),
            _ => {
                let (first, rest) = lower.split_at(usize::from(!lower.is_empty()));
                usual.push_str(&first.to_ascii_uppercase());
                usual.push_str(rest);
            }
        }
    }
    [text.to_owned(), usual, text.to_ascii_uppercase()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_postgresqls() {
        let names = [
            ("UTC", "UTC", 0),
            ("utc", "UTC", 0),
            ("gmt", "GMT", 0),
            ("+5", "<+05>-05", 18_000),
            ("-7.5", "<-07:30>+07:30", -27_000),
            ("-03:30", "-03:30", 12_600),
            ("UTC+3", "UTC+3", -10_800),
            ("<+03>-03", "<+03>-03", 10_800),
            ("america/new_york", "America/New_York", -18_000),
            ("EST5EDT", "EST5EDT", -18_000),
            ("america/port_of_spain", "America/Port_of_Spain", -14_400),
        ];
        for (written, shown, offset) in names {
            let zone = TimeZone::parse(written).expect(written);
            assert_eq!(zone.name(), shown);
            // 2024-01-31, a winter's day.
            assert_eq!(zone.offset_at(1_706_700_000 * MICROS_PER_SECOND), offset, "{written}");
        }
        for refused in ["foo", "PST", "z", "", "+25:xx", "Mars/Olympus"] {
            let error = TimeZone::parse(refused).expect_err(refused);
            assert_eq!(error.sqlstate, SqlState::INVALID_PARAMETER_VALUE);
        }
    }

    #[test]
    fn every_instant_has_an_offset() {
        let zone = TimeZone::parse("Europe/London").expect("known");
        for micros in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX - 1, i64::MAX] {
            assert!(zone.offset_at(micros).abs() < 86_400);
            assert!(zone.offset_at_local(micros).abs() < 86_400);
        }
    }
}
