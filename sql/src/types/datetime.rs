//! `date`, `time`, `timestamp` and `timestamptz` as text, read as PostgreSQL reads them.
//!
//! The grammar is what PostgreSQL's `datetime.c` does: the text is cut into fields by their first
//! characters ([`fields`]), then each field is understood in the light of what has been found so
//! far. The order of a date of numbers alone is year-month-day if the first has three digits or
//! more, else month-day-year (`DateStyle` is `ISO, MDY`).
//!
//! Not understood: `now`, `today`, `tomorrow`, `yesterday`, which would need the transaction's time
//! (use `now()`, `current_date`), and `DST` after a zone.

use super::calendar::{
    DATE_INFINITY, DATE_NEGATIVE_INFINITY, MICROS_PER_DAY, MICROS_PER_SECOND, SECONDS_PER_DAY,
    TIMESTAMP_INFINITY, TIMESTAMP_NEGATIVE_INFINITY, check_timestamp, date_from_days,
    days_from_civil, days_in_month, timestamp_from_parts,
};
use super::zone::{TimeZone, abbreviation};
use crate::error::{SqlError, SqlState};

/// Why a text isn't a date or time: PostgreSQL's `DTERR_` codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Format,
    Overflow,
    /// A month or day out of range, perhaps because of their order.
    MonthDay,
    Displacement,
    Zone(String),
    /// A word that stands for the present.
    Now,
}

impl Fault {
    pub fn error(self, type_name: &str, text: &str) -> SqlError {
        match self {
            Self::Format => SqlError::new(
                SqlState::INVALID_DATETIME_FORMAT,
                format!("invalid input syntax for type {type_name}: \"{text}\""),
            ),
            Self::Overflow if type_name == "interval" => SqlError::new(
                SqlState::INTERVAL_FIELD_OVERFLOW,
                format!("interval field value out of range: \"{text}\""),
            ),
            Self::Overflow => SqlError::new(
                SqlState::DATETIME_FIELD_OVERFLOW,
                format!("date/time field value out of range: \"{text}\""),
            ),
            Self::MonthDay => Self::Overflow
                .error(type_name, text)
                .hint("Perhaps you need a different \"datestyle\" setting."),
            Self::Displacement => SqlError::new(
                SqlState::INVALID_TIME_ZONE_DISPLACEMENT,
                format!("time zone displacement out of range: \"{text}\""),
            ),
            Self::Zone(name) => SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("time zone \"{name}\" not recognized"),
            ),
            Self::Now => {
                SqlError::unsupported(format!("the {type_name} \"{text}\" is not supported"))
                    .hint("Use now(), current_date or current_time.")
            }
        }
    }
}

/// What a field looks like, from its first characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Number,
    Date,
    Time,
    /// A sign and a number: a displacement, or a part of an interval.
    Signed,
    Word,
    /// A sign and a word.
    Special,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub shape: Shape,
    /// In lower case.
    pub text: String,
}

/// More fields than this are no date.
const MAX_FIELDS: usize = 25;

/// Cuts a text into fields (`ParseDateTime`).
pub(super) fn fields(text: &str) -> Result<Vec<Field>, Fault> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    let run = |from: usize, accept: &dyn Fn(u8) -> bool| {
        bytes[from..].iter().position(|byte| !accept(*byte)).map_or(bytes.len(), |n| from + n)
    };
    let digits = |from| run(from, &|b| b.is_ascii_digit());
    while let Some(&first) = bytes.get(at) {
        let rest = bytes[at + 1..].iter().find(|b| !super::number::is_space(**b));
        let (shape, start, end) = match first {
            _ if super::number::is_space(first) => {
                at += 1;
                continue;
            }
            b'0'..=b'9' => number_field(bytes, digits(at), &run),
            b'.' => (Shape::Number, at, digits(at + 1)),
            b'a'..=b'z' | b'A'..=b'Z' => word_field(bytes, at, &run),
            b'+' | b'-' => {
                let next = run(at + 1, &super::number::is_space);
                match rest {
                    Some(b'0'..=b'9') => {
                        let more = |b: u8| b.is_ascii_digit() || matches!(b, b':' | b'.' | b'-');
                        (Shape::Signed, next, run(next, &more))
                    }
                    Some(b) if b.is_ascii_alphabetic() => {
                        (Shape::Special, next, run(next, &|b| b.is_ascii_alphabetic()))
                    }
                    _ => return Err(Fault::Format),
                }
            }
            _ if first.is_ascii_punctuation() => {
                at += 1;
                continue;
            }
            _ => return Err(Fault::Format),
        };
        if found.len() == MAX_FIELDS {
            return Err(Fault::Format);
        }
        let sign = matches!(shape, Shape::Signed | Shape::Special).then_some(char::from(first));
        let start = if sign.is_some() { start } else { at };
        // Only ASCII bytes were accepted.
        let chars = bytes[start..end].iter().map(|b| char::from(b.to_ascii_lowercase()));
        found.push(Field { shape, text: sign.into_iter().chain(chars).collect() });
        at = end;
    }
    Ok(found)
}

type Run<'a> = &'a dyn Fn(usize, &dyn Fn(u8) -> bool) -> usize;

/// A field that begins with digits, which end at `end`.
fn number_field(bytes: &[u8], end: usize, run: Run<'_>) -> (Shape, usize, usize) {
    let digit = |b: u8| b.is_ascii_digit();
    match bytes.get(end) {
        Some(b':') => {
            let more = |b: u8| b.is_ascii_digit() || matches!(b, b':' | b'.');
            (Shape::Time, 0, run(end, &more))
        }
        Some(&delimiter @ (b'-' | b'/' | b'.')) => {
            if !bytes.get(end + 1).copied().is_some_and(digit) {
                let more = |b: u8| b.is_ascii_alphanumeric() || b == delimiter;
                return (Shape::Date, 0, run(end + 1, &more));
            }
            let second = run(end + 1, &digit);
            // Three parts with the same delimiter are a date; 12.34 isn't.
            if bytes.get(second) == Some(&delimiter) {
                let more = |b: u8| b.is_ascii_digit() || b == delimiter;
                return (Shape::Date, 0, run(second, &more));
            }
            (if delimiter == b'.' { Shape::Number } else { Shape::Date }, 0, second)
        }
        _ => (Shape::Number, 0, end),
    }
}

/// A field that begins with a letter: a word, or a date or zone with punctuation inside.
fn word_field(bytes: &[u8], at: usize, run: Run<'_>) -> (Shape, usize, usize) {
    let end = run(at, &|b| b.is_ascii_alphabetic());
    let dated = match bytes.get(end) {
        Some(b'-' | b'/' | b'.') => true,
        Some(b'+' | b'0'..=b'9') => {
            let word: String =
                bytes[at..end].iter().map(|b| char::from(b.to_ascii_lowercase())).collect();
            matches!(lookup(&word), Word::Unknown)
        }
        _ => false,
    };
    if !dated {
        return (Shape::Word, at, end);
    }
    let more =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'/' | b'_' | b'.' | b':');
    (Shape::Date, at, run(end, &more))
}

/// What a word means (`DecodeSpecial`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Unknown,
    Ignored,
    Month(i64),
    Weekday,
    Am,
    Pm,
    Bc,
    Ad,
    Epoch,
    Infinity,
    NegativeInfinity,
    Now,
    /// `allballs`: midnight in UTC.
    Midnight,
    /// The next field is a Julian day.
    Julian,
    /// `t`: the next field is a time.
    IsoTime,
    /// A unit, which has no place in a date.
    Unit,
}

fn lookup(word: &str) -> Word {
    const MONTHS: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    for (month, name) in (1..).zip(MONTHS) {
        if word == name || word == &name[..3] || (word == "sept" && month == 9) {
            return Word::Month(month);
        }
    }
    match word {
        "at" | "on" => Word::Ignored,
        "sun" | "sunday" | "mon" | "monday" | "tue" | "tues" | "tuesday" | "wed" | "weds"
        | "wednesday" | "thu" | "thur" | "thurs" | "thursday" | "fri" | "friday" | "sat"
        | "saturday" => Word::Weekday,
        "am" => Word::Am,
        "pm" => Word::Pm,
        "bc" => Word::Bc,
        "ad" => Word::Ad,
        "epoch" => Word::Epoch,
        "infinity" => Word::Infinity,
        "-infinity" => Word::NegativeInfinity,
        "now" | "today" | "tomorrow" | "yesterday" => Word::Now,
        "allballs" => Word::Midnight,
        "j" | "jd" | "julian" => Word::Julian,
        "t" => Word::IsoTime,
        "d" | "dow" | "doy" | "h" | "isodow" | "isoyear" | "m" | "mm" | "s" | "y" => Word::Unit,
        _ => Word::Unknown,
    }
}

/// The parts found so far, as bits.
type Mask = u32;
const YEAR: Mask = 1;
const MONTH: Mask = 2;
const DAY: Mask = 4;
const DATE: Mask = YEAR | MONTH | DAY;
const TIME: Mask = 8;
const ZONE: Mask = 16;
const DAY_OF_YEAR: Mask = 32;
const WEEKDAY: Mask = 64;
const HALF_DAY: Mask = 128;
const ERA: Mask = 256;

#[derive(Debug, Clone)]
enum Zone {
    /// Seconds east.
    Offset(i32),
    Named(TimeZone),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    Epoch,
    Infinity,
    NegativeInfinity,
}

/// A date and time being put together.
#[derive(Debug, Default)]
struct Parts {
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
    zone: Option<Zone>,
    special: Option<Special>,
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
    fn has(&self, mask: Mask) -> bool {
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

    fn time_overflows(&self) -> bool {
        self.hour > 24
            || self.minute > 59
            || self.second > 60
            || self.micros > MICROS_PER_SECOND
            || self.time_micros() > MICROS_PER_DAY
    }

    fn time_micros(&self) -> i64 {
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
            if if self.bc { self.year > 0 } else { self.year <= 0 } {
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

    fn days(&self) -> i64 {
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
pub(super) fn clock(text: &str) -> Result<(i64, i64, i64, i64), Fault> {
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

/// Reads a text with a date (`DecodeDateTime`).
fn decode(text: &str) -> Result<Parts, Fault> {
    let all = fields(text)?;
    let mut parts = Parts::default();
    for at in 0..all.len() {
        parts.field(at, &all)?;
    }
    parts.finish()?;
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
    let all = fields(text)?;
    let mut parts = Parts { time_only: true, ..Parts::default() };
    for at in 0..all.len() {
        parts.field(at, &all)?;
    }
    parts.finish()?;
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
