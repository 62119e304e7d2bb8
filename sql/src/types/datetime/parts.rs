//! A date and time being put together, field by field.

use super::super::calendar::{MICROS_PER_DAY, MICROS_PER_SECOND, days_from_civil, days_in_month};
use super::super::zone::{TimeZone, abbreviation};
use super::fields::{Fault, Field, Shape, Word, fields, lookup};

/// The parts found so far, as bits.
pub(super) type Mask = u32;
const YEAR: Mask = 1;
const MONTH: Mask = 2;
const DAY: Mask = 4;
pub(super) const DATE: Mask = YEAR | MONTH | DAY;
pub(super) const TIME: Mask = 8;
const ZONE: Mask = 16;
const DAY_OF_YEAR: Mask = 32;
const WEEKDAY: Mask = 64;
const HALF_DAY: Mask = 128;
const ERA: Mask = 256;

#[derive(Debug, Clone)]
pub(super) enum Zone {
    /// Seconds east.
    Offset(i32),
    Named(TimeZone),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Epoch,
    Infinity,
    NegativeInfinity,
}

/// A date and time being put together.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what has been found, one by one")]
pub(super) struct Parts {
    found: Mask,
    year: i64,
    month: i64,
    day: i64,
    day_of_year: i64,
    hour: i64,
    minute: i64,
    second: i64,
    micros: i64,
    text_month: bool,
    two_digit_year: bool,
    /// A Julian day, which is the date.
    julian: Option<i64>,
    pm: Option<bool>,
    bc: bool,
    pub zone: Option<Zone>,
    pub special: Option<Special>,
    /// What the previous field said of the next.
    expected: Option<Word>,
    /// Whether a time alone is wanted, so that numbers are times.
    time_only: bool,
}

/// Leading digits as C's `strtol` reads them into an int, and what follows. Nothing is zero.
fn leading_int(text: &str) -> Result<(i64, &str), Fault> {
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Ok((0, rest));
    }
    let value: i32 = digits.parse().map_err(|_| Fault::Overflow)?;
    Ok((i64::from(value), rest))
}

/// `.789` in microseconds, rounded as C's `rint` does.
fn fraction_micros(text: &str) -> Result<i64, Fault> {
    if text == "." {
        return Ok(0);
    }
    let fraction: f64 = text.parse().map_err(|_| Fault::Format)?;
    #[expect(clippy::cast_possible_truncation, reason = "a fraction of a second")]
    let micros = (fraction * 1_000_000.0).round_ties_even() as i64;
    Ok(micros)
}

/// A sub-range of digits, as C's `atoi` reads it.
fn digits_at(text: &str, range: std::ops::Range<usize>) -> Result<i64, Fault> {
    let digits = text.get(range).ok_or(Fault::Format)?;
    if digits.is_empty() {
        return Ok(0);
    }
    digits.parse().map_err(|_| Fault::Overflow)
}

/// `+05`, `-0800`, `+05:30:15` in seconds east (`DecodeTimezone`).
fn displacement(text: &str) -> Result<i32, Fault> {
    let overflow = |_| Fault::Displacement;
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'+') => (1, &text[1..]),
        Some(b'-') => (-1, &text[1..]),
        _ => return Err(Fault::Format),
    };
    let (mut hours, mut rest) = leading_int(digits).map_err(overflow)?;
    let mut minutes = 0;
    let mut seconds = 0;
    if let Some(after) = rest.strip_prefix(':') {
        (minutes, rest) = leading_int(after).map_err(overflow)?;
        if let Some(after) = rest.strip_prefix(':') {
            (seconds, rest) = leading_int(after).map_err(overflow)?;
        }
    } else if rest.is_empty() && digits.len() > 2 {
        (hours, minutes) = (hours / 100, hours % 100);
    }
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Err(Fault::Displacement);
    }
    if !rest.is_empty() {
        return Err(Fault::Format);
    }
    i32::try_from(sign * (hours * 3600 + minutes * 60 + seconds)).map_err(|_| Fault::Displacement)
}

impl Parts {
    /// Understands a text that has a date, or needs only a time.
    pub fn read(text: &str, time_only: bool) -> Result<Self, Fault> {
        let all = fields(text)?;
        let mut parts = Self { time_only, ..Self::default() };
        for at in 0..all.len() {
            parts.field(at, &all)?;
        }
        parts.finish()?;
        Ok(parts)
    }

    pub fn has(&self, mask: Mask) -> bool {
        self.found & mask == mask
    }

    fn add(&mut self, mask: Mask) -> Result<(), Fault> {
        if self.found & mask != 0 {
            return Err(Fault::Format);
        }
        self.found |= mask;
        Ok(())
    }

    /// The date's parts that count when a number is interpreted: a time alone needs none.
    fn date_found(&self) -> Mask {
        if self.time_only { DATE } else { self.found & DATE }
    }

    fn field(&mut self, at: usize, all: &[Field]) -> Result<(), Fault> {
        let Field { shape, text } = &all[at];
        match shape {
            Shape::Date => self.date_field(at, all),
            Shape::Time => {
                match self.expected.take() {
                    None | Some(Word::IsoTime) => {}
                    Some(_) => return Err(Fault::Format),
                }
                self.clock(text)?;
                if !self.time_only && self.time_overflows() {
                    return Err(Fault::Overflow);
                }
                Ok(())
            }
            Shape::Signed => {
                self.zone = Some(Zone::Offset(displacement(text)?));
                self.add(ZONE)
            }
            Shape::Number => match self.expected.take() {
                Some(Word::Julian) => self.julian_day(text),
                Some(_) => {
                    let date = std::mem::replace(&mut self.time_only, true);
                    let result = self.number_run(text);
                    self.time_only = date;
                    result
                }
                None => self.number_field(at, all),
            },
            Shape::Word | Shape::Special => self.word(at, all),
        }
    }

    fn date_field(&mut self, at: usize, all: &[Field]) -> Result<(), Fault> {
        let text = &all[at].text;
        if self.expected == Some(Word::Julian) {
            // A Julian day with a zone attached.
            self.expected = None;
            let (_, rest) = leading_int(text)?;
            self.zone = Some(Zone::Offset(displacement(rest)?));
            self.julian_day(&text[..text.len() - rest.len()])?;
            return self.add(TIME | ZONE);
        }
        let dated = if self.time_only {
            // A date before a time is accepted, and ignored.
            let first = at == 0 && all.len() >= 2;
            let last = all.last().is_some_and(|field| field.shape == Shape::Date);
            !(first && (last || all[1].shape == Shape::Time))
        } else {
            self.expected.is_some() || self.has(MONTH | DAY)
        };
        if !dated {
            return self.date(text);
        }
        if !text.starts_with(|c: char| c.is_ascii_digit()) && self.expected.is_none() {
            let zone = TimeZone::named(text).ok_or_else(|| Fault::Zone(text.clone()))?;
            self.zone = Some(Zone::Named(zone));
            return self.add(ZONE);
        }
        // A time run together, with a zone attached: 040506-08.
        if !matches!(self.expected.take(), None | Some(Word::IsoTime)) || self.has(TIME) {
            return Err(Fault::Format);
        }
        let minus = text.find('-').ok_or(Fault::Format)?;
        self.zone = Some(Zone::Offset(displacement(&text[minus..])?));
        self.number_run(&text[..minus])?;
        self.add(ZONE)
    }

    fn julian_day(&mut self, text: &str) -> Result<(), Fault> {
        let (value, rest) = leading_int(text)?;
        if !rest.is_empty() {
            let fraction: f64 = rest.parse().map_err(|_| Fault::Format)?;
            #[expect(clippy::cast_possible_truncation, reason = "a fraction of a day")]
            let micros = (fraction * 86_400_000_000.0) as i64;
            (self.second, self.micros) = (micros / MICROS_PER_SECOND, micros % MICROS_PER_SECOND);
            self.add(TIME)?;
        }
        self.julian = Some(value);
        self.add(DATE)
    }

    /// A number alone, which its length and what is still missing tell apart.
    fn number_field(&mut self, at: usize, all: &[Field]) -> Result<(), Fault> {
        let text = &all[at].text;
        let point = text.find('.');
        if self.time_only {
            return match point {
                Some(_)
                    if at == 0
                        && all.len() >= 2
                        && all.last().is_some_and(|field| field.shape == Shape::Date) =>
                {
                    self.date(text)
                }
                Some(2..) if point != Some(2) => self.number_run(text),
                Some(_) => Err(Fault::Format),
                None => self.number_run(text),
            };
        }
        match point {
            Some(_) if self.found & DATE == 0 => self.date(text),
            Some(3..) => self.number_run(text),
            None if text.len() >= 6 && !(self.has(DATE) && self.has(TIME)) => self.number_run(text),
            _ => self.number(text),
        }
    }

    /// Digits run together: a date (`20240131`) or a time (`040506.789`) (`DecodeNumberField`).
    fn number_run(&mut self, text: &str) -> Result<(), Fault> {
        let (digits, fraction) = match text.find('.') {
            Some(point) => (&text[..point], Some(&text[point..])),
            None => (text, None),
        };
        let length = digits.len();
        if let Some(fraction) = fraction {
            self.micros = fraction_micros(fraction)?;
        } else if self.date_found() != DATE && length >= 6 {
            self.day = digits_at(digits, length - 2..length)?;
            self.month = digits_at(digits, length - 4..length - 2)?;
            self.year = digits_at(digits, 0..length - 4)?;
            self.two_digit_year = length == 6;
            return self.add(DATE);
        }
        if self.has(TIME) || !matches!(length, 4 | 6) {
            return Err(Fault::Format);
        }
        self.hour = digits_at(digits, 0..2)?;
        self.minute = digits_at(digits, 2..4)?;
        self.second = if length == 6 { digits_at(digits, 4..6)? } else { 0 };
        self.add(TIME)
    }

    /// One number of a date: which part it is depends on those found (`DecodeNumber`).
    fn number(&mut self, text: &str) -> Result<(), Fault> {
        let (value, rest) = leading_int(text)?;
        let length = text.len();
        if rest.starts_with('.') {
            if length - rest.len() > 2 {
                let date = std::mem::replace(&mut self.time_only, true);
                let result = self.number_run(text);
                self.time_only = date;
                return result;
            }
            self.micros = fraction_micros(rest)?;
        } else if !rest.is_empty() || length == 0 {
            return Err(Fault::Format);
        }
        let found = self.date_found();
        if length == 3 && found == YEAR && (1..=366).contains(&value) {
            self.day_of_year = value;
            return self.add(DAY_OF_YEAR | MONTH | DAY);
        }
        let long = length >= 3;
        let part = match (found, self.text_month) {
            (DATE, _) => return self.number_run(text),
            (0, _) if long => YEAR,
            (0, _) => MONTH,
            (YEAR | DAY, _) => MONTH,
            (MONTH, true) if long => YEAR,
            (MONTH, _) => DAY,
            (mask, true) if mask == YEAR | MONTH && long && self.two_digit_year => {
                // What was taken for a year of two digits is the day.
                self.two_digit_year = false;
                (self.day, self.year) = (self.year, value);
                return self.add(DAY);
            }
            (mask, _) if mask == YEAR | MONTH => DAY,
            (mask, _) if mask == MONTH | DAY => YEAR,
            _ => return Err(Fault::Format),
        };
        match part {
            YEAR => {
                self.year = value;
                self.two_digit_year = length <= 2;
            }
            MONTH => self.month = value,
            _ => self.day = value,
        }
        self.add(part)
    }

    /// A date with delimiters (`DecodeDate`): month names first, then the numbers.
    fn date(&mut self, text: &str) -> Result<(), Fault> {
        let mut numbers = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            rest = rest.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
            let first = rest.chars().next().ok_or(Fault::Format)?;
            let same = |c: char| {
                if first.is_ascii_digit() { c.is_ascii_digit() } else { c.is_ascii_alphabetic() }
            };
            let end = rest.find(|c| !same(c)).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            // One character between parts goes with the part before it.
            let skip = after.chars().next().map_or(0, char::len_utf8);
            rest = &after[skip..];
            if first.is_ascii_digit() {
                numbers.push(part);
                continue;
            }
            match lookup(part) {
                Word::Ignored => {}
                Word::Month(month) => {
                    self.month = month;
                    self.text_month = true;
                    self.add(MONTH)?;
                }
                _ => return Err(Fault::Format),
            }
        }
        let before = std::mem::replace(&mut self.time_only, false);
        for number in numbers {
            self.number(number)?;
        }
        self.time_only = before;
        if self.found & !(DAY_OF_YEAR | ZONE) == DATE { Ok(()) } else { Err(Fault::Format) }
    }

    /// `hh:mm`, `hh:mm:ss`, `hh:mm:ss.fff`, or `mm:ss.fff` (`DecodeTime`).
    fn clock(&mut self, text: &str) -> Result<(), Fault> {
        let (hour, minute, second, micros) = clock(text)?;
        if minute > 59 || second > 60 {
            return Err(Fault::Overflow);
        }
        (self.hour, self.minute, self.second, self.micros) =
            (i64::from(i32::try_from(hour).map_err(|_| Fault::Overflow)?), minute, second, micros);
        self.add(TIME)
    }

    fn word(&mut self, at: usize, all: &[Field]) -> Result<(), Fault> {
        let text = &all[at].text;
        if let Some(offset) = abbreviation(text) {
            self.zone = Some(Zone::Offset(offset));
            return self.add(ZONE);
        }
        match lookup(text) {
            Word::Ignored => Ok(()),
            Word::Month(_) if self.time_only => Err(Fault::Format),
            Word::Month(month) => {
                let mut mask = MONTH;
                let numeric = self.found & MONTH != 0 && !self.text_month;
                if numeric && self.found & DAY == 0 && (1..=31).contains(&self.month) {
                    // A number before the month's name was the day.
                    self.day = self.month;
                    mask = DAY;
                }
                self.text_month = true;
                self.month = month;
                self.add(mask)
            }
            Word::Weekday if !self.time_only => self.add(WEEKDAY),
            word @ (Word::Am | Word::Pm) => {
                self.pm = Some(word == Word::Pm);
                self.add(HALF_DAY)
            }
            word @ (Word::Bc | Word::Ad) => {
                self.bc = word == Word::Bc;
                self.add(ERA)
            }
            Word::Now => Err(Fault::Now),
            Word::Midnight => {
                (self.hour, self.minute, self.second, self.micros) = (0, 0, 0, 0);
                self.zone = Some(Zone::Offset(0));
                self.add(TIME | ZONE)
            }
            word @ (Word::Epoch | Word::Infinity | Word::NegativeInfinity) if !self.time_only => {
                self.special = Some(match word {
                    Word::Epoch => Special::Epoch,
                    Word::Infinity => Special::Infinity,
                    _ => Special::NegativeInfinity,
                });
                self.add(DATE | TIME | ZONE)
            }
            word @ (Word::Julian | Word::Unit) => {
                self.expected = Some(word);
                Ok(())
            }
            Word::IsoTime => {
                let next = all.get(at + 1).map(|field| field.shape);
                let follows = matches!(next, Some(Shape::Number | Shape::Time | Shape::Date));
                if !follows || (!self.time_only && !self.has(DATE)) {
                    return Err(Fault::Format);
                }
                self.expected = Some(Word::IsoTime);
                Ok(())
            }
            Word::Unknown => {
                let zone = TimeZone::named(text).ok_or(Fault::Format)?;
                self.zone = Some(Zone::Named(zone));
                self.add(ZONE)
            }
            _ => Err(Fault::Format),
        }
    }

    pub fn time_overflows(&self) -> bool {
        self.hour > 24
            || self.minute > 59
            || self.second > 60
            || self.micros > MICROS_PER_SECOND
            || self.time_micros() > MICROS_PER_DAY
    }

    pub fn time_micros(&self) -> i64 {
        (self.hour * 3600 + self.minute * 60 + self.second) * MICROS_PER_SECOND + self.micros
    }

    /// Checks the date and finds its year (`ValidateDate`), then the half of the day.
    fn finish(&mut self) -> Result<(), Fault> {
        if self.found & YEAR != 0 && self.special.is_none() && self.julian.is_none() {
            if self.bc {
                self.year = 1 - self.year;
            } else if self.two_digit_year && self.year < 100 {
                self.year += if self.year < 70 { 2000 } else { 1900 };
            }
            let written = if self.bc { 1 - self.year } else { self.year };
            if written <= 0 {
                return Err(Fault::Overflow);
            }
        }
        if self.special.is_none() && self.julian.is_none() && self.found & DAY_OF_YEAR == 0 {
            if self.found & MONTH != 0 && !(1..=12).contains(&self.month) {
                return Err(Fault::MonthDay);
            }
            if self.found & DAY != 0 && !(1..=31).contains(&self.day) {
                return Err(Fault::MonthDay);
            }
            if self.has(DATE) && self.day > days_in_month(self.year, self.month) {
                return Err(Fault::Overflow);
            }
        }
        if let Some(pm) = self.pm {
            if self.hour > 12 {
                return Err(Fault::Overflow);
            }
            match (pm, self.hour) {
                (false, 12) => self.hour = 0,
                (true, 0..12) => self.hour += 12,
                _ => {}
            }
        }
        Ok(())
    }

    pub fn days(&self) -> i64 {
        /// The Julian day of 1970-01-01.
        const JULIAN_EPOCH: i64 = 2_440_588;
        match self.julian {
            Some(julian) => julian - JULIAN_EPOCH,
            None if self.found & DAY_OF_YEAR != 0 => {
                days_from_civil(self.year, 1, 1) + self.day_of_year - 1
            }
            None => days_from_civil(self.year, self.month, self.day),
        }
    }
}

/// `hh:mm[:ss[.fff]]` or `mm:ss.fff` as hours, minutes, seconds, microseconds, not yet checked.
pub(in crate::types) fn clock(text: &str) -> Result<(i64, i64, i64, i64), Fault> {
    let end = text.find(':').ok_or(Fault::Format)?;
    let hour: i64 = match &text[..end] {
        "" => 0,
        digits => digits.parse().map_err(|_| Fault::Overflow)?,
    };
    let (minute, rest) = leading_int(&text[end + 1..])?;
    match rest.as_bytes().first() {
        None => Ok((hour, minute, 0, 0)),
        Some(b'.') => Ok((0, hour, minute, fraction_micros(rest)?)),
        Some(_) => {
            let (second, rest) = leading_int(rest.strip_prefix(':').ok_or(Fault::Format)?)?;
            match rest {
                "" => Ok((hour, minute, second, 0)),
                _ if rest.starts_with('.') => Ok((hour, minute, second, fraction_micros(rest)?)),
                _ => Err(Fault::Format),
            }
        }
    }
}
