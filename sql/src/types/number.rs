//! Integers and floats as text.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};

use crate::error::{SqlError, SqlState};

/// `22P02` as every type says it.
pub(super) fn invalid_syntax(type_name: &str, text: &str) -> SqlError {
    SqlError::new(
        SqlState::INVALID_TEXT_REPRESENTATION,
        format!("invalid input syntax for type {type_name}: \"{text}\""),
    )
}

/// The blanks that C's `isspace` knows; PostgreSQL ignores them around numbers.
pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| u8::try_from(c).is_ok_and(is_space))
}

/// An integer type, by its width.
pub(super) trait Integer: Copy {
    /// The name in messages: `smallint`.
    const NAME: &'static str;
    /// `None` if it is out of range.
    fn narrow(value: i128) -> Option<Self>;
}

macro_rules! integer {
    ($type:ty, $name:literal) => {
        impl Integer for $type {
            const NAME: &'static str = $name;

            fn narrow(value: i128) -> Option<Self> {
                Self::try_from(value).ok()
            }
        }
    };
}

integer!(i16, "smallint");
integer!(i32, "integer");
integer!(i64, "bigint");

/// Parses an integer: sign, decimal digits, blanks around. Digits that already exceed the type are
/// out of range, whatever follows them.
pub(super) fn parse_integer<T: Integer>(text: &str) -> Result<T, SqlError> {
    let (value, whole) = leading_integer(text).ok_or_else(|| invalid_syntax(T::NAME, text))?;
    let value = T::narrow(value).ok_or_else(|| value_out_of_range(text, T::NAME))?;
    if whole { Ok(value) } else { Err(invalid_syntax(T::NAME, text)) }
}

pub(super) fn value_out_of_range(text: &str, type_name: &str) -> SqlError {
    SqlError::new(
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        format!("value \"{text}\" is out of range for type {type_name}"),
    )
}

/// The integer that a text begins with, far out of range if it has very many digits, and whether
/// it is all of the text.
fn leading_integer(text: &str) -> Option<(i128, bool)> {
    let trimmed = trim(text).as_bytes();
    let (negative, digits) = match trimmed {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    let value = digits[..end].iter().fold(0_i128, |value, digit| {
        value.saturating_mul(10).saturating_add(i128::from(digit - b'0'))
    });
    Some((if negative { -value } else { value }, end == digits.len()))
}

/// Parses an `oid`: 32 bits, a negative number wraps around as in PostgreSQL.
pub(super) fn parse_oid(text: &str) -> Result<u32, SqlError> {
    let Some((value, true)) = leading_integer(text) else {
        return Err(invalid_syntax("oid", text));
    };
    let negative = i32::try_from(value).ok().filter(|v| *v < 0).map(i32::cast_unsigned);
    negative.or_else(|| u32::try_from(value).ok()).ok_or_else(|| value_out_of_range(text, "oid"))
}

/// Parses a `double precision`.
pub(super) fn parse_float8(text: &str) -> Result<f64, SqlError> {
    let name = "double precision";
    let trimmed = trim(text);
    let value: f64 = trimmed.parse().map_err(|_| invalid_syntax(name, text))?;
    check_float(value.is_infinite(), value == 0.0, trimmed, name)?;
    Ok(value)
}

/// Parses a `real`.
pub(super) fn parse_float4(text: &str) -> Result<f32, SqlError> {
    let name = "real";
    let trimmed = trim(text);
    let value: f32 = trimmed.parse().map_err(|_| invalid_syntax(name, text))?;
    check_float(value.is_infinite(), value == 0.0, trimmed, name)?;
    Ok(value)
}

/// A number that becomes infinite, or zero although it has a digit that isn't, is out of range.
fn check_float(infinite: bool, zero: bool, text: &str, type_name: &str) -> Result<(), SqlError> {
    let mantissa = text.split(['e', 'E']).next().unwrap_or(text);
    let overflow = infinite && !text.bytes().any(|b| matches!(b, b'i' | b'I'));
    let underflow = zero && mantissa.bytes().any(|b| matches!(b, b'1'..=b'9'));
    if overflow || underflow {
        return Err(SqlError::new(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("\"{text}\" is out of range for type {type_name}"),
        ));
    }
    Ok(())
}

/// Writes a decimal number.
pub(super) fn write_integer(value: i64, out: &mut BytesMut) {
    if value < 0 {
        out.put_u8(b'-');
    }
    write_unsigned(value.unsigned_abs(), 1, out);
}

/// Writes a decimal number with at least `width` digits.
pub(super) fn write_unsigned(mut value: u64, width: usize, out: &mut BytesMut) {
    let mut buffer = [b'0'; 20];
    let mut at = buffer.len();
    while value > 0 {
        at -= 1;
        // A remainder of ten is one digit.
        buffer[at] = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
    }
    at = at.min(buffer.len() - width.min(buffer.len()));
    out.put_slice(&buffer[at..]);
}

/// What the two float types have in common for printing.
trait Float: Copy + std::fmt::LowerExp + std::str::FromStr + PartialEq {
    /// Decimal exponents from here on are printed in scientific notation.
    const SCIENTIFIC_FROM: i32;
    /// Decimal digits that always identify a value.
    const DIGITS: usize;
    /// The odd significand and binary exponent of twice the midpoints to both neighbours: the
    /// value is m·2^e, the midpoints are (2m±1)·2^(e-1).
    fn parts(self) -> (u64, i32);
}

impl Float for f64 {
    const SCIENTIFIC_FROM: i32 = 15;
    const DIGITS: usize = 17;

    fn parts(self) -> (u64, i32) {
        let bits = self.to_bits();
        let fraction = bits & ((1 << 52) - 1);
        match i32::try_from((bits >> 52) & 0x7ff).unwrap_or_default() {
            0 => (fraction, -1074),
            exponent => (fraction | (1 << 52), exponent - 1075),
        }
    }
}

impl Float for f32 {
    const SCIENTIFIC_FROM: i32 = 6;
    const DIGITS: usize = 9;

    fn parts(self) -> (u64, i32) {
        let bits = self.to_bits();
        let fraction = u64::from(bits & ((1 << 23) - 1));
        match i32::try_from((bits >> 23) & 0xff).unwrap_or_default() {
            0 => (fraction, -149),
            exponent => (fraction | (1 << 23), exponent - 150),
        }
    }
}

/// Writes a `double precision` as PostgreSQL does with `extra_float_digits` of 1 or more: the
/// shortest digits that read back as the same number.
pub(super) fn write_float8(value: f64, out: &mut BytesMut) {
    if !write_special(value.is_nan(), value.is_infinite(), value.is_sign_negative(), out) {
        write_float(value, out);
    }
}

/// Writes a `real`; see [`write_float8`].
pub(super) fn write_float4(value: f32, out: &mut BytesMut) {
    if !write_special(value.is_nan(), value.is_infinite(), value.is_sign_negative(), out) {
        write_float(value, out);
    }
}

fn write_special(nan: bool, infinite: bool, negative: bool, out: &mut BytesMut) -> bool {
    let text: &[u8] = match (nan, infinite, negative) {
        (true, ..) => b"NaN",
        (_, true, false) => b"Infinity",
        (_, true, true) => b"-Infinity",
        _ => return false,
    };
    out.put_slice(text);
    true
}

fn write_float<F: Float>(value: F, out: &mut BytesMut) {
    let mut text = Scientific::default();
    // Writing into a fixed buffer of 32 bytes fits 17 digits, sign, point and exponent.
    let _ = write!(text, "{value:e}");
    let (mut digits, mut exponent) = text.split();
    if may_be_tied(value, digits.as_slice()) {
        // Halfway between two numbers of so many digits Rust goes up, PostgreSQL to the even one.
        let precision = digits.len - 1;
        let mut rounded = Scientific::default();
        let _ = write!(rounded, "{value:.precision$e}");
        (digits, exponent) = rounded.split();
    }
    if is_midpoint(value, digits.as_slice(), exponent) {
        // PostgreSQL never prints a number halfway between two floats, lest another reader round
        // it the other way: one more digit, until it is inside.
        for precision in digits.len..F::DIGITS {
            let mut longer = Scientific::default();
            let _ = write!(longer, "{value:.precision$e}");
            let same = longer.as_str().parse::<F>().is_ok_and(|read| read == value);
            (digits, exponent) = longer.split();
            if same && !is_midpoint(value, digits.as_slice(), exponent) {
                break;
            }
        }
    }
    write_digits::<F>(text.is_negative(), digits.as_slice(), exponent, out);
}

fn write_digits<F: Float>(negative: bool, digits: &[u8], exponent: i32, out: &mut BytesMut) {
    if negative {
        out.put_u8(b'-');
    }
    if exponent < -4 || exponent >= F::SCIENTIFIC_FROM {
        out.put_u8(digits[0]);
        if digits.len() > 1 {
            out.put_u8(b'.');
            out.put_slice(&digits[1..]);
        }
        out.put_slice(if exponent < 0 { b"e-" } else { b"e+" });
        write_unsigned(u64::from(exponent.unsigned_abs()), 2, out);
    } else if let Ok(whole) = usize::try_from(exponent) {
        let whole = whole + 1;
        if digits.len() <= whole {
            out.put_slice(digits);
            out.put_bytes(b'0', whole - digits.len());
        } else {
            out.put_slice(&digits[..whole]);
            out.put_u8(b'.');
            out.put_slice(&digits[whole..]);
        }
    } else {
        out.put_slice(b"0.");
        out.put_bytes(b'0', exponent.unsigned_abs() as usize - 1);
        out.put_slice(digits);
    }
}

/// Whether the last of the shortest digits may have been rounded up from a 5 that ends the number:
/// it is odd, and the number has few enough binary digits behind the point to end there.
fn may_be_tied<F: Float>(value: F, digits: &[u8]) -> bool {
    let (significand, binary) = value.parts();
    let twos = i32::try_from(significand.trailing_zeros()).unwrap_or_default();
    let most = i32::try_from(F::DIGITS).unwrap_or_default();
    digits.last().is_some_and(|digit| digit % 2 == 1) && binary + twos >= -most
}

/// Whether the decimal number lies exactly between `value` and one of its neighbours.
///
/// Both sides are a whole number times a power of two, so compare the odd parts and the powers. A
/// decimal with a negative exponent must be divisible by that power of five to be one at all; with
/// a positive one, more than 23 powers of five exceed every significand.
fn is_midpoint<F: Float>(value: F, digits: &[u8], exponent: i32) -> bool {
    let (significand, binary) = value.parts();
    if significand % 2 == 1 {
        // Rust's shortest digits are strictly inside unless the significand is even.
        return false;
    }
    let decimal = digits.iter().fold(0_u128, |n, digit| n * 10 + u128::from(digit - b'0'));
    let power = exponent + 1 - i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let fives = 5_u128.checked_pow(power.unsigned_abs()).filter(|_| power.abs() <= 24);
    let odd = match fives {
        Some(fives) if power >= 0 => decimal * fives,
        Some(fives) if decimal % fives == 0 => decimal / fives,
        _ => return false,
    };
    if odd == 0 {
        return false;
    }
    let twos = odd.trailing_zeros();
    let odd = odd >> twos;
    let binary_of_decimal = power + i32::try_from(twos).unwrap_or(i32::MAX);
    let above = 2 * u128::from(significand) + 1;
    let below = 2 * u128::from(significand) - u128::from(significand > 0);
    // Below a power of two the neighbour is half as far.
    let power_of_two = significand.is_power_of_two();
    let nearer = 4 * u128::from(significand) - u128::from(significand > 0);
    (binary_of_decimal == binary - 1 && (odd == above || (odd == below && !power_of_two)))
        || (binary_of_decimal == binary - 2 && odd == nearer && power_of_two)
}

/// A float in Rust's scientific notation, `-1.25e-7`, on the stack.
#[derive(Default)]
struct Scientific {
    bytes: [u8; 32],
    len: usize,
}

impl std::fmt::Write for Scientific {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let end = self.len + s.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

struct Digits {
    bytes: [u8; 20],
    len: usize,
}

impl Digits {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Scientific {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    fn is_negative(&self) -> bool {
        self.bytes[0] == b'-'
    }

    /// The significant digits without trailing zeros, and the decimal exponent of the first.
    fn split(&self) -> (Digits, i32) {
        let text = self.as_str();
        let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
        let mut digits = Digits { bytes: [b'0'; 20], len: 0 };
        for digit in mantissa.bytes().filter(u8::is_ascii_digit) {
            digits.bytes[digits.len] = digit;
            digits.len += 1;
        }
        while digits.len > 1 && digits.bytes[digits.len - 1] == b'0' {
            digits.len -= 1;
        }
        (digits, exponent.parse().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn float8(value: f64) -> String {
        let mut out = BytesMut::new();
        write_float8(value, &mut out);
        String::from_utf8(out.to_vec()).expect("ascii")
    }

    fn float4(value: f32) -> String {
        let mut out = BytesMut::new();
        write_float4(value, &mut out);
        String::from_utf8(out.to_vec()).expect("ascii")
    }

    #[test]
    fn a_number_between_two_floats_is_never_printed() {
        // The shortest digits of these are the midpoint to a neighbour.
        assert_eq!(float8(1e23), "9.999999999999999e+22");
        assert_eq!(float8(8.41e21), "8.409999999999999e+21");
        assert_eq!(float4(67_108_896.0), "6.7108896e+07");
        // These lie halfway between two numbers of so many digits.
        assert_eq!(float4(1_687_654.25), "1.6876542e+06");
        assert_eq!(float8(-904_169_666_483_526.25), "-904169666483526.2");
        assert_eq!(float8(5e-324), "5e-324");
        assert_eq!(float8(f64::MIN_POSITIVE), "2.2250738585072014e-308");
        assert_eq!(float8(f64::MAX), "1.7976931348623157e+308");
        assert_eq!(float4(f32::MIN_POSITIVE), "1.1754944e-38");
    }

    proptest! {
        #[test]
        fn a_float_reads_back(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            let read = parse_float8(&float8(value)).expect("reads");
            prop_assert!(read.to_bits() == bits || (read.is_nan() && value.is_nan()));
        }

        #[test]
        fn a_real_reads_back(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            let read = parse_float4(&float4(value)).expect("reads");
            prop_assert!(read.to_bits() == bits || (read.is_nan() && value.is_nan()));
        }

        #[test]
        fn an_integer_reads_back(value in any::<i64>()) {
            let mut out = BytesMut::new();
            write_integer(value, &mut out);
            prop_assert_eq!(std::str::from_utf8(&out).expect("ascii"), value.to_string());
            prop_assert_eq!(parse_integer::<i64>(&value.to_string()), Ok(value));
        }
    }
}
