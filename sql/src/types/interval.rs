//! `interval` as text: PostgreSQL's own spellings, the SQL standard's and ISO 8601's.
//!
//! An interval is months, days and a time, which are never exchanged for each other: a month isn't
//! always 30 days, nor a day 24 hours. The text is read from the right, so that a unit is known
//! before its number (`DecodeInterval` in PostgreSQL's `datetime.c`).

use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::types::IntervalMonthDayNano;

use super::calendar::{MICROS_PER_DAY, MICROS_PER_SECOND, write_clock};
use super::datetime::{Fault, Shape, clock, fields};
use super::number::write_integer;
use crate::error::{SqlError, SqlState};

const MICROS_PER_MINUTE: i64 = 60 * MICROS_PER_SECOND;
const MICROS_PER_HOUR: i64 = 60 * MICROS_PER_MINUTE;
const NANOS_PER_MICRO: i64 = 1000;
const DAYS_PER_MONTH: i32 = 30;

/// `22008 interval out of range`.
pub(super) fn out_of_range() -> SqlError {
    SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, "interval out of range")
}

/// Puts the three parts together; Arrow's time part counts nanoseconds.
pub(super) fn from_parts(
    months: i32,
    days: i32,
    micros: i64,
) -> Result<IntervalMonthDayNano, SqlError> {
    let nanos = micros.checked_mul(NANOS_PER_MICRO).ok_or_else(|| {
        out_of_range().detail("The time part of an interval is at most 2562047 hours here.")
    })?;
    Ok(IntervalMonthDayNano::new(months, days, nanos))
}

/// The time part in microseconds, rounded down as PostgreSQL truncates digits that it lacks.
pub(super) const fn micros(interval: IntervalMonthDayNano) -> i64 {
    interval.nanoseconds.div_euclid(NANOS_PER_MICRO)
}

/// Parses an interval.
pub(super) fn parse(text: &str) -> Result<IntervalMonthDayNano, SqlError> {
    let mut sum = Sum::default();
    let parsed = sum.verbose(text).or_else(|fault| match fault {
        Fault::Format => {
            sum = Sum::default();
            sum.iso(text)
        }
        fault => Err(fault),
    });
    parsed.map_err(|fault| fault.error("interval", text))?;
    let months = i64::from(sum.years) * 12 + i64::from(sum.months);
    let months = i32::try_from(months).map_err(|_| out_of_range())?;
    from_parts(months, sum.days, sum.micros)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Microsecond,
    Millisecond,
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Year,
    Decade,
    Century,
    Millennium,
    /// A word that is known and can't be part of an interval.
    Impossible,
}

/// The unit of a word in lower case, cut to the ten characters that PostgreSQL compares.
fn unit(word: &str) -> Option<Unit> {
    let word = word.get(..10).unwrap_or(word);
    Some(match word {
        "us" | "usec" | "usecs" | "usecond" | "useconds" | "microsecon" => Unit::Microsecond,
        "ms" | "msec" | "msecs" | "msecond" | "mseconds" | "millisecon" => Unit::Millisecond,
        "s" | "sec" | "secs" | "second" | "seconds" => Unit::Second,
        "m" | "min" | "mins" | "minute" | "minutes" => Unit::Minute,
        "h" | "hr" | "hrs" | "hour" | "hours" => Unit::Hour,
        "d" | "day" | "days" => Unit::Day,
        "w" | "week" | "weeks" => Unit::Week,
        "mon" | "mons" | "month" | "months" => Unit::Month,
        "y" | "yr" | "yrs" | "year" | "years" => Unit::Year,
        "dec" | "decs" | "decade" | "decades" => Unit::Decade,
        "c" | "cent" | "century" | "centuries" => Unit::Century,
        "mil" | "mils" | "millennia" | "millennium" => Unit::Millennium,
        "qtr" | "quarter" | "timezone" | "timezone_h" | "timezone_m" => Unit::Impossible,
        _ => return None,
    })
}

/// The bits of the parts that may each occur once: those of [`Unit`], of which a time takes several.
fn bit(unit: Unit) -> u32 {
    1 << unit as u32
}

const SUBSECONDS: u32 = 0b111;
const TIME: u32 = 0b1_1111;

#[derive(Debug, Default)]
struct Sum {
    years: i32,
    months: i32,
    days: i32,
    micros: i64,
}

/// Truncates towards zero; out of range is an overflow.
fn truncate(value: f64) -> Result<i64, Fault> {
    #[expect(clippy::cast_possible_truncation, reason = "checked right here")]
    if value.abs() < 9.2e18 { Ok(value as i64) } else { Err(Fault::Overflow) }
}

impl Sum {
    fn add_micros(&mut self, value: i64, fraction: f64, scale: i64) -> Result<(), Fault> {
        let whole = value.checked_mul(scale).ok_or(Fault::Overflow)?;
        self.micros = self.micros.checked_add(whole).ok_or(Fault::Overflow)?;
        self.add_fraction_of_micros(fraction, scale)
    }

    /// A fraction of a unit of `scale` microseconds, rounded to the nearest, half towards zero.
    fn add_fraction_of_micros(&mut self, fraction: f64, scale: i64) -> Result<(), Fault> {
        #[expect(clippy::cast_precision_loss, reason = "the scales are small")]
        let exact = fraction * scale as f64;
        let mut micros = truncate(exact)?;
        #[expect(clippy::cast_precision_loss, reason = "less than a day of microseconds")]
        let rest = exact - micros as f64;
        if rest > 0.5 {
            micros += 1;
        } else if rest < -0.5 {
            micros -= 1;
        }
        self.micros = self.micros.checked_add(micros).ok_or(Fault::Overflow)?;
        Ok(())
    }

    fn add_days(&mut self, value: i64, scale: i64) -> Result<(), Fault> {
        let days = value.checked_mul(scale).and_then(|days| i32::try_from(days).ok());
        let sum = days.and_then(|days| self.days.checked_add(days));
        self.days = sum.ok_or(Fault::Overflow)?;
        Ok(())
    }

    /// A fraction of a unit of `scale` days: whole days, the rest as time.
    fn add_fraction_of_days(&mut self, fraction: f64, scale: i32) -> Result<(), Fault> {
        let exact = fraction * f64::from(scale);
        let days = truncate(exact)?;
        self.add_days(days, 1)?;
        #[expect(clippy::cast_precision_loss, reason = "at most 30 days")]
        self.add_fraction_of_micros(exact - days as f64, MICROS_PER_DAY)
    }

    fn add_months(&mut self, value: i64) -> Result<(), Fault> {
        let months = i32::try_from(value).ok();
        let sum = months.and_then(|months| self.months.checked_add(months));
        self.months = sum.ok_or(Fault::Overflow)?;
        Ok(())
    }

    fn add_years(&mut self, value: i64, fraction: f64, scale: i32) -> Result<(), Fault> {
        let years = value.checked_mul(i64::from(scale)).and_then(|y| i32::try_from(y).ok());
        let sum = years.and_then(|years| self.years.checked_add(years));
        self.years = sum.ok_or(Fault::Overflow)?;
        self.add_months(truncate((fraction * f64::from(scale) * 12.0).round_ties_even())?)
    }

    fn add(&mut self, value: i64, fraction: f64, unit: Unit) -> Result<u32, Fault> {
        match unit {
            Unit::Microsecond => self.add_micros(value, fraction, 1)?,
            Unit::Millisecond => self.add_micros(value, fraction, 1000)?,
            Unit::Second => {
                self.add_micros(value, fraction, MICROS_PER_SECOND)?;
                // With a fraction the smaller units are taken too.
                return Ok(if fraction == 0.0 { bit(Unit::Second) } else { SUBSECONDS });
            }
            Unit::Minute => self.add_micros(value, fraction, MICROS_PER_MINUTE)?,
            Unit::Hour => self.add_micros(value, fraction, MICROS_PER_HOUR)?,
            Unit::Day => {
                self.add_days(value, 1)?;
                self.add_fraction_of_micros(fraction, MICROS_PER_DAY)?;
            }
            Unit::Week => {
                self.add_days(value, 7)?;
                self.add_fraction_of_days(fraction, 7)?;
            }
            Unit::Month => {
                self.add_months(value)?;
                self.add_fraction_of_days(fraction, DAYS_PER_MONTH)?;
            }
            Unit::Year => self.add_years(value, fraction, 1)?,
            Unit::Decade => self.add_years(value, fraction, 10)?,
            Unit::Century => self.add_years(value, fraction, 100)?,
            Unit::Millennium => self.add_years(value, fraction, 1000)?,
            Unit::Impossible => return Err(Fault::Format),
        }
        Ok(bit(unit))
    }

    /// `1 year 2 mons 3 days 04:05:06.789`, `1-2 3 4:05:06`, `5 minutes ago`.
    fn verbose(&mut self, text: &str) -> Result<(), Fault> {
        let mut found = 0;
        let mut ago = false;
        let mut unit_of_next = None;
        for field in fields(text)?.iter().rev() {
            let added = match field.shape {
                Shape::Word | Shape::Special => {
                    match unit(&field.text) {
                        Some(unit) => unit_of_next = Some(unit),
                        None if field.text == "ago" => {
                            ago = true;
                            unit_of_next = Some(Unit::Impossible);
                        }
                        None => return Err(Fault::Format),
                    }
                    continue;
                }
                Shape::Time => {
                    self.micros = time(&field.text)?;
                    unit_of_next = Some(Unit::Day);
                    TIME
                }
                Shape::Signed if field.text.contains(':') && time(&field.text[1..]).is_ok() => {
                    let micros = time(&field.text[1..])?;
                    self.micros = if field.text.starts_with('-') { -micros } else { micros };
                    unit_of_next = Some(Unit::Day);
                    TIME
                }
                Shape::Signed | Shape::Date | Shape::Number => {
                    // A number without a unit is seconds.
                    let unit = unit_of_next.unwrap_or(Unit::Second);
                    let (unit, added) = self.number(&field.text, unit)?;
                    unit_of_next = Some(if unit == Unit::Hour { Unit::Day } else { unit });
                    added
                }
            };
            if found & added != 0 {
                return Err(Fault::Format);
            }
            found |= added;
        }
        if found == 0 {
            return Err(Fault::Format);
        }
        if ago {
            self.negate()?;
        }
        Ok(())
    }

    fn negate(&mut self) -> Result<(), Fault> {
        self.years = self.years.checked_neg().ok_or(Fault::Overflow)?;
        self.months = self.months.checked_neg().ok_or(Fault::Overflow)?;
        self.days = self.days.checked_neg().ok_or(Fault::Overflow)?;
        self.micros = self.micros.checked_neg().ok_or(Fault::Overflow)?;
        Ok(())
    }

    /// `3`, `-1.5`, or `1-2` for years and months.
    fn number(&mut self, text: &str, unit: Unit) -> Result<(Unit, u32), Fault> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let sign = if text.starts_with('-') { -1 } else { 1 };
        let end = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
        let (digits, rest) = unsigned.split_at(end);
        let value: i64 = match digits {
            "" => 0,
            digits => digits.parse::<i64>().map_err(|_| Fault::Overflow)? * sign,
        };
        if let Some(months) = rest.strip_prefix('-') {
            if !months.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Fault::Format);
            }
            let months = match months {
                "" => 0,
                months => months.parse::<i64>().map_err(|_| Fault::Overflow)?,
            };
            if months > 11 {
                return Err(Fault::Overflow);
            }
            let total = value.checked_mul(12).and_then(|v| v.checked_add(months * sign));
            let added = self.add(total.ok_or(Fault::Overflow)?, 0.0, Unit::Month)?;
            return Ok((Unit::Month, added));
        }
        let fraction = match rest {
            "" | "." => 0.0,
            _ if rest.starts_with('.') => rest.parse::<f64>().map_err(|_| Fault::Format)?,
            _ => return Err(Fault::Format),
        };
        let fraction = if sign < 0 { -fraction } else { fraction };
        Ok((unit, self.add(value, fraction, unit)?))
    }

    /// ISO 8601: `P1Y2M3DT4H5M6S` or `P0001-02-03T04:05:06`.
    fn iso(&mut self, text: &str) -> Result<(), Fault> {
        let mut rest =
            text.strip_prefix('P').filter(|rest| !rest.is_empty()).ok_or(Fault::Format)?;
        let mut in_date = true;
        let mut any = false;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('T') {
                (in_date, any, rest) = (false, false, after);
                continue;
            }
            let (width, value, fraction, after) = iso_number(rest)?;
            let designator = after.as_bytes().first().copied();
            let unit = match (in_date, designator) {
                (true, Some(b'Y')) => Unit::Year,
                (true, Some(b'M')) => Unit::Month,
                (true, Some(b'W')) => Unit::Week,
                (true, Some(b'D')) => Unit::Day,
                (false, Some(b'H')) => Unit::Hour,
                (false, Some(b'M')) => Unit::Minute,
                (false, Some(b'S')) => Unit::Second,
                (true, None | Some(b'T' | b'-')) if !any => {
                    rest = self.iso_date(width, value, fraction, after)?;
                    continue;
                }
                (false, None | Some(b':')) if !any => {
                    return self.iso_time(width, value, fraction, after);
                }
                _ => return Err(Fault::Format),
            };
            self.add(value, fraction, unit)?;
            any = true;
            rest = &after[1..];
        }
        Ok(())
    }

    /// `00010203` or `0001-02-03`, of which the first number has been read; what follows it.
    fn iso_date<'a>(
        &mut self,
        width: usize,
        value: i64,
        fraction: f64,
        rest: &'a str,
    ) -> Result<&'a str, Fault> {
        if width == 8 && !rest.starts_with('-') {
            self.add(value / 10_000, 0.0, Unit::Year)?;
            self.add(value / 100 % 100, 0.0, Unit::Month)?;
            self.add(value % 100, fraction, Unit::Day)?;
            return Ok(rest);
        }
        self.add(value, fraction, Unit::Year)?;
        let mut rest = rest;
        for unit in [Unit::Month, Unit::Day] {
            let Some(number) = rest.strip_prefix('-') else { break };
            let (_, value, fraction, after) = iso_number(number)?;
            self.add(value, fraction, unit)?;
            rest = after;
        }
        if rest.is_empty() || rest.starts_with('T') { Ok(rest) } else { Err(Fault::Format) }
    }

    /// `040506` or `04:05:06`, of which the first number has been read.
    fn iso_time(
        &mut self,
        width: usize,
        value: i64,
        fraction: f64,
        mut rest: &str,
    ) -> Result<(), Fault> {
        if width == 6 && rest.is_empty() {
            self.add(value / 10_000, 0.0, Unit::Hour)?;
            self.add(value / 100 % 100, 0.0, Unit::Minute)?;
            self.add(value % 100, fraction, Unit::Second)?;
            return Ok(());
        }
        self.add(value, fraction, Unit::Hour)?;
        for unit in [Unit::Minute, Unit::Second] {
            let Some(number) = rest.strip_prefix(':') else { break };
            let (_, value, fraction, after) = iso_number(number)?;
            self.add(value, fraction, unit)?;
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(Fault::Format) }
    }
}

/// A number of an ISO interval: how many digits before its point, its two parts, what follows.
fn iso_number(text: &str) -> Result<(usize, i64, f64, &str), Fault> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, rest) = unsigned.split_at(end);
    let width = number.find('.').unwrap_or(number.len());
    let value: f64 = number.parse().map_err(|_| Fault::Format)?;
    if value > 1.0e15 {
        return Err(Fault::Overflow);
    }
    let value = if text.starts_with('-') { -value } else { value };
    let whole = truncate(value)?;
    #[expect(clippy::cast_precision_loss, reason = "at most 1e15")]
    let fraction = value - whole as f64;
    Ok((width, whole, fraction, rest))
}

/// A time of any number of hours.
fn time(text: &str) -> Result<i64, Fault> {
    let (hour, minute, second, micros) = clock(text)?;
    if minute > 59 || second > 60 {
        return Err(Fault::Overflow);
    }
    let seconds = minute * 60 + second;
    let total = hour
        .checked_mul(MICROS_PER_HOUR)
        .and_then(|total| total.checked_add(seconds * MICROS_PER_SECOND + micros));
    total.ok_or(Fault::Overflow)
}

/// Writes an interval in PostgreSQL's style: `1 year 2 mons -3 days +04:05:06.789`.
pub(super) fn write(interval: IntervalMonthDayNano, out: &mut BytesMut) {
    let micros = micros(interval);
    let mut any = false;
    // A sign is shown on what follows a negative part, so that it is clear that it is positive.
    let mut negative = false;
    let parts =
        [(interval.months / 12, "year"), (interval.months % 12, "mon"), (interval.days, "day")];
    for (value, name) in parts {
        if value == 0 {
            continue;
        }
        if any {
            out.put_u8(b' ');
        }
        if negative && value > 0 {
            out.put_u8(b'+');
        }
        write_integer(i64::from(value), out);
        out.put_u8(b' ');
        out.put_slice(name.as_bytes());
        if value != 1 {
            out.put_u8(b's');
        }
        negative = value < 0;
        any = true;
    }
    if any && micros == 0 {
        return;
    }
    if any {
        out.put_u8(b' ');
    }
    if micros < 0 {
        out.put_u8(b'-');
    } else if negative {
        out.put_u8(b'+');
    }
    let seconds = micros / MICROS_PER_SECOND;
    write_clock(seconds / 3600, seconds / 60 % 60, seconds % 60, micros % MICROS_PER_SECOND, out);
}
