//! A text cut into fields, and what words mean.

use super::super::number::is_space;
use crate::error::{SqlError, SqlState};

/// Why a text isn't a date or time: PostgreSQL's `DTERR_` codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::types) enum Fault {
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
pub(in crate::types) enum Shape {
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
pub(in crate::types) struct Field {
    pub shape: Shape,
    /// In lower case.
    pub text: String,
}

/// More fields than this are no date.
const MAX_FIELDS: usize = 25;

/// Cuts a text into fields (`ParseDateTime`).
pub(in crate::types) fn fields(text: &str) -> Result<Vec<Field>, Fault> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    let run = |from: usize, accept: &dyn Fn(u8) -> bool| {
        bytes[from..].iter().position(|byte| !accept(*byte)).map_or(bytes.len(), |n| from + n)
    };
    let digits = |from| run(from, &|b| b.is_ascii_digit());
    while let Some(&first) = bytes.get(at) {
        let rest = bytes[at + 1..].iter().find(|b| !is_space(**b));
        let (shape, start, end) = match first {
            _ if is_space(first) => {
                at += 1;
                continue;
            }
            b'0'..=b'9' => number_field(bytes, digits(at), &run),
            b'.' => (Shape::Number, at, digits(at + 1)),
            b'a'..=b'z' | b'A'..=b'Z' => word_field(bytes, at, &run),
            b'+' | b'-' => {
                let next = run(at + 1, &is_space);
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
pub(super) enum Word {
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

pub(super) fn lookup(word: &str) -> Word {
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
