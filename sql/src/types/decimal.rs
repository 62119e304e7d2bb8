//! `numeric`: decimal numbers of any length on their way between text, the wire's base-10000
//! digits, and Arrow's scaled integers of 128 and 256 bits.

use bytes::{BufMut, BytesMut};
use datafusion::arrow::datatypes::i256;
use datafusion::common::ScalarValue;

use super::number::{invalid_syntax, trim};
use super::pg_type::MAX_NUMERIC_PRECISION;
use crate::error::{SqlError, SqlState};

/// Digits before and after the point that PostgreSQL's `numeric` has at most.
const MAX_WHOLE_DIGITS: i64 = 131_072;
const MAX_FRACTION_DIGITS: i64 = 16_383;
/// The precision of Arrow's 256-bit decimals.
const MAX_WIDE_PRECISION: usize = 76;

/// A decimal number: `±digits · 10^-scale`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal {
    pub negative: bool,
    /// Values from 0 to 9, most significant first, without leading zeros.
    pub digits: Vec<u8>,
    /// Digits after the point, at least 0.
    pub scale: usize,
}

impl Decimal {
    /// Parses PostgreSQL's spelling: `-12.50`, `.5`, `5.`, `1e-5`.
    pub fn parse(text: &str) -> Result<Self, SqlError> {
        let trimmed = trim(text);
        if let Some(special) = special(trimmed) {
            return Err(SqlError::unsupported(format!("numeric {special} is not supported"))
                .hint("Use double precision, or NULL."));
        }
        Self::scan(trimmed)?.ok_or_else(|| invalid_syntax("numeric", text))
    }

    /// `None` if the text isn't a number; an error if it is one that is too long.
    fn scan(text: &str) -> Result<Option<Self>, SqlError> {
        let (negative, text) = match text.as_bytes() {
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            None => (text, Some(0)),
            Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)),
        };
        let Some(exponent) = exponent else { return Ok(None) };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !is_digits(whole) || !is_digits(fraction) {
            return Ok(None);
        }
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
        let scale = i64::try_from(fraction.len()).unwrap_or(i64::MAX).saturating_sub(exponent);
        Self::normalized(negative, digits, scale).map(Some)
    }

    /// From digits that may have leading zeros and a scale that may be negative.
    pub fn normalized(negative: bool, mut digits: Vec<u8>, scale: i64) -> Result<Self, SqlError> {
        let leading = digits.iter().take_while(|digit| **digit == 0).count();
        digits.drain(..leading);
        let whole = i64::try_from(digits.len()).unwrap_or(i64::MAX).saturating_sub(scale);
        if (!digits.is_empty() && whole > MAX_WHOLE_DIGITS) || scale > MAX_FRACTION_DIGITS {
            return Err(SqlError::new(
                SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
                "value overflows numeric format",
            ));
        }
        if scale < 0 && !digits.is_empty() {
            // Bounded by MAX_WHOLE_DIGITS above.
            let zeros = usize::try_from(scale.unsigned_abs()).unwrap_or_default();
            digits.resize(digits.len() + zeros, 0);
        }
        let negative = negative && !digits.is_empty();
        Ok(Self { negative, digits, scale: usize::try_from(scale).unwrap_or(0) })
    }

    /// The number rounded to `scale` digits after the point, half away from zero.
    fn rounded(&self, scale: usize) -> Self {
        let mut digits = self.digits.clone();
        if scale >= self.scale {
            if !digits.is_empty() {
                digits.resize(digits.len() + scale - self.scale, 0);
            }
            return Self { negative: self.negative, digits, scale };
        }
        let dropped = self.scale - scale;
        let kept = digits.len().saturating_sub(dropped);
        // The first digit dropped; further left than all digits it is zero.
        let up = dropped <= digits.len() && digits[kept] >= 5;
        digits.truncate(kept);
        if up {
            increment(&mut digits);
        }
        let negative = self.negative && !digits.is_empty();
        Self { negative, digits, scale }
    }

    /// The unscaled value in `numeric(precision, scale)`.
    pub fn to_scaled(&self, precision: u8, scale: i8) -> Result<i128, SqlError> {
        let digits = usize::from(scale.unsigned_abs());
        let rounded = self.rounded(digits);
        if rounded.digits.len() > usize::from(precision) {
            return Err(field_overflow(precision, scale));
        }
        // At most 38 digits, so it fits.
        let value = rounded.digits.iter().fold(0_i128, |n, digit| n * 10 + i128::from(*digit));
        Ok(if rounded.negative { -value } else { value })
    }

    /// As a scalar with exactly the scale that the number was written with.
    pub fn to_scalar(&self) -> Result<ScalarValue, SqlError> {
        let precision = self.digits.len().max(self.scale).max(1);
        let too_long = || {
            SqlError::unsupported(format!("a numeric value of {precision} digits is not supported"))
                .hint("Numbers have at most 76 digits.")
        };
        let scale = i8::try_from(self.scale).map_err(|_| too_long())?;
        if precision <= usize::from(MAX_NUMERIC_PRECISION) {
            let precision = u8::try_from(precision).unwrap_or(MAX_NUMERIC_PRECISION);
            let value = self.to_scaled(precision, scale)?;
            return Ok(ScalarValue::Decimal128(Some(value), precision, scale));
        }
        if precision > MAX_WIDE_PRECISION {
            return Err(too_long());
        }
        let ten = i256::from_i128(10);
        let value = self.digits.iter().fold(i256::ZERO, |n, digit| {
            n.wrapping_mul(ten).wrapping_add(i256::from_i128(i128::from(*digit)))
        });
        let value = if self.negative { value.wrapping_neg() } else { value };
        let precision = u8::try_from(precision).map_err(|_| too_long())?;
        Ok(ScalarValue::Decimal256(Some(value), precision, scale))
    }

    /// From an unscaled value in decimal text, as the integer types print it.
    pub fn from_unscaled(text: &str, scale: i8) -> Self {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let mut digits: Vec<u8> = digits.bytes().map(|b| b - b'0').collect();
        if digits.first() == Some(&0) {
            digits.clear();
        }
        if scale < 0 && !digits.is_empty() {
            digits.resize(digits.len() + usize::from(scale.unsigned_abs()), 0);
        }
        Self { negative, digits, scale: usize::try_from(scale).unwrap_or(0) }
    }

    /// Writes all digits, never an exponent.
    pub fn write(&self, out: &mut BytesMut) {
        if self.negative {
            out.put_u8(b'-');
        }
        let whole = self.digits.len().saturating_sub(self.scale);
        if whole == 0 {
            out.put_u8(b'0');
        }
        let ascii = |digits: &[u8], out: &mut BytesMut| {
            out.extend(digits.iter().map(|digit| b'0' + digit));
        };
        ascii(&self.digits[..whole], out);
        if self.scale > 0 {
            out.put_u8(b'.');
            out.put_bytes(b'0', self.scale - (self.digits.len() - whole));
            ascii(&self.digits[whole..], out);
        }
    }

    /// Writes PostgreSQL's binary format: digits of base 10000, aligned at the point.
    pub fn write_binary(&self, out: &mut BytesMut) {
        let fraction_groups = self.scale.div_ceil(4);
        let padding = fraction_groups * 4 - self.scale;
        let lead = (4 - (self.digits.len() + padding) % 4) % 4;
        let zeros = |n| std::iter::repeat_n(0, n);
        let padded: Vec<u8> =
            zeros(lead).chain(self.digits.iter().copied()).chain(zeros(padding)).collect();
        let groups: Vec<u16> = padded
            .chunks(4)
            .map(|group| group.iter().fold(0, |n, digit| n * 10 + u16::from(*digit)))
            .collect();
        write_groups(&groups, fraction_groups, self.negative, self.scale, out);
    }

    /// Reads PostgreSQL's binary format.
    pub fn read_binary(bytes: &[u8]) -> Result<Self, SqlError> {
        let invalid = |what: &str| {
            SqlError::new(
                SqlState::INVALID_BINARY_REPRESENTATION,
                format!("invalid {what} in external \"numeric\" value"),
            )
        };
        let (header, groups) = bytes.split_at_checked(8).ok_or_else(|| invalid("length"))?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        if groups.len() != usize::from(word(0)) * 2 {
            return Err(invalid("length"));
        }
        let negative = match word(4) {
            POSITIVE => false,
            NEGATIVE => true,
            NAN | POSITIVE_INFINITY | NEGATIVE_INFINITY => {
                return Err(SqlError::unsupported("numeric NaN and infinity are not supported"));
            }
            _ => return Err(invalid("sign")),
        };
        let scale = word(6);
        if i64::from(scale) > MAX_FRACTION_DIGITS {
            return Err(invalid("scale"));
        }
        let mut digits = Vec::with_capacity(groups.len() * 2);
        for group in groups.chunks_exact(2) {
            let group = u16::from_be_bytes([group[0], group[1]]);
            if group > 9999 {
                return Err(invalid("digit"));
            }
            digits.extend([1000, 100, 10, 1].map(|power| {
                // A remainder of ten is one digit.
                u8::try_from(group / power % 10).unwrap_or_default()
            }));
        }
        let weight = i64::from(word(2).cast_signed());
        // The groups' own scale: what lies after the point of `weight + 1` groups.
        let own_scale = (i64::from(word(0)) - weight - 1) * 4;
        let exact = Self::normalized(negative, digits, own_scale)?;
        Ok(exact.truncated(usize::from(scale)))
    }

    /// As PostgreSQL reads a binary value whose digits go beyond its declared scale.
    fn truncated(mut self, scale: usize) -> Self {
        if scale >= self.scale {
            return self.rounded(scale);
        }
        self.digits.truncate(self.digits.len().saturating_sub(self.scale - scale));
        let negative = self.negative && !self.digits.is_empty();
        Self { negative, digits: self.digits, scale }
    }
}

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const POSITIVE_INFINITY: u16 = 0xd000;
const NEGATIVE_INFINITY: u16 = 0xf000;

fn increment(digits: &mut Vec<u8>) {
    for digit in digits.iter_mut().rev() {
        if *digit < 9 {
            *digit += 1;
            return;
        }
        *digit = 0;
    }
    digits.insert(0, 1);
}

fn special(text: &str) -> Option<&'static str> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let names = [("nan", "NaN"), ("infinity", "Infinity"), ("inf", "Infinity")];
    names.into_iter().find(|(name, _)| unsigned.eq_ignore_ascii_case(name)).map(|(_, name)| name)
}

fn parse_exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // More digits than this overflow the format in any case.
    Some(text.parse().unwrap_or(if text.starts_with('-') { -1_000_000_000 } else { 1_000_000_000 }))
}

/// `22003` with PostgreSQL's detail.
pub(super) fn field_overflow(precision: u8, scale: i8) -> SqlError {
    let whole = i32::from(precision) - i32::from(scale);
    let bound = if whole > 0 { format!("10^{whole}") } else { "1".to_owned() };
    SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow").detail(format!(
        "A field with precision {precision}, scale {scale} must round to an absolute value less \
         than {bound}."
    ))
}

/// Writes an unscaled 128-bit value; short ones, the usual case, without allocating.
pub(super) fn write_decimal128(value: i128, scale: i8, out: &mut BytesMut) {
    let small = u64::try_from(value.unsigned_abs());
    match (small, u32::try_from(scale)) {
        (Ok(unsigned), Ok(scale @ 0..=18)) => {
            if value < 0 {
                out.put_u8(b'-');
            }
            let power = 10_u64.pow(scale);
            super::number::write_unsigned(unsigned / power, 1, out);
            if scale > 0 {
                out.put_u8(b'.');
                super::number::write_unsigned(unsigned % power, scale as usize, out);
            }
        }
        _ => Decimal::from_unscaled(&value.to_string(), scale).write(out),
    }
}

/// Writes an unscaled 128-bit value in binary; short ones, the usual case, without allocating.
pub(super) fn write_binary128(value: i128, scale: i8, out: &mut BytesMut) {
    let (Ok(unsigned), Ok(digits @ 0..=16)) =
        (u64::try_from(value.unsigned_abs()), usize::try_from(scale))
    else {
        return Decimal::from_unscaled(&value.to_string(), scale).write_binary(out);
    };
    let fraction_groups = digits.div_ceil(4);
    let power = 10_u64.pow(scale.unsigned_abs().into());
    let mut whole = unsigned / power;
    let mut fraction = unsigned % power;
    for _ in digits..fraction_groups * 4 {
        fraction *= 10;
    }
    // At most five groups before the point and four after it.
    let mut groups = [0_u16; 9];
    let mut at = groups.len();
    for part in [&mut fraction, &mut whole] {
        let stop = groups.len() - fraction_groups;
        while *part > 0 || at > stop {
            at -= 1;
            groups[at] = u16::try_from(*part % 10_000).unwrap_or_default();
            *part /= 10_000;
        }
    }
    write_groups(&groups[at..], fraction_groups, value < 0, digits, out);
}

/// Writes base-10000 digits, of which some are behind the point, without the zeros at both ends.
fn write_groups(
    groups: &[u16],
    fraction_groups: usize,
    negative: bool,
    scale: usize,
    out: &mut BytesMut,
) {
    let first = groups.iter().take_while(|group| **group == 0).count();
    let last = groups.iter().rposition(|group| *group != 0).map_or(first, |at| at + 1);
    let used = &groups[first..last];
    // At most 131072 digits before and 16383 after the point: all of this fits 16 bits.
    let small = |n: usize| i16::try_from(n).unwrap_or(i16::MAX);
    let weight = match used {
        [] => 0,
        _ => small(groups.len() - first) - small(fraction_groups) - 1,
    };
    out.put_i16(small(used.len()));
    out.put_i16(weight);
    out.put_u16(if negative { NEGATIVE } else { POSITIVE });
    out.put_i16(small(scale));
    for group in used {
        out.put_u16(*group);
    }
}

/// Moves an unscaled value from one scale to another, rounding half away from zero.
///
/// `None` if it overflows 128 bits.
pub(super) fn rescale(value: i128, from: i8, to: i8) -> Option<i128> {
    let shift = i32::from(to) - i32::from(from);
    let power = 10_i128.checked_pow(shift.unsigned_abs());
    if shift >= 0 {
        return if value == 0 { Some(0) } else { value.checked_mul(power?) };
    }
    // Dividing by more than 128 bits hold leaves nothing.
    let Some(power) = power else { return Some(0) };
    let (quotient, remainder) = (value / power, value % power);
    let half = remainder.unsigned_abs() >= power.unsigned_abs().div_ceil(2);
    Some(if half { quotient + value.signum() } else { quotient })
}

/// Whether an unscaled value has more digits than a precision.
pub(super) fn exceeds(value: i128, precision: u8) -> bool {
    10_u128.checked_pow(u32::from(precision)).is_some_and(|bound| value.unsigned_abs() >= bound)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(decimal: &Decimal) -> String {
        let mut out = BytesMut::new();
        decimal.write(&mut out);
        String::from_utf8(out.to_vec()).expect("ascii")
    }

    #[test]
    fn binary_is_postgresqls() {
        // From `select numeric_send(x)` in PostgreSQL 15.
        let examples: [(&str, &[u8]); 5] = [
            ("0", &[0, 0, 0, 0, 0, 0, 0, 0]),
            ("0.00", &[0, 0, 0, 0, 0, 0, 0, 2]),
            ("12345.678", &[0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 9, 41, 26, 124]),
            ("-0.0001", &[0, 1, 255, 255, 64, 0, 0, 4, 0, 1]),
            ("10000", &[0, 1, 0, 1, 0, 0, 0, 0, 0, 1]),
        ];
        for (written, bytes) in examples {
            let decimal = Decimal::parse(written).expect("parses");
            let mut out = BytesMut::new();
            decimal.write_binary(&mut out);
            assert_eq!(out.as_ref(), bytes, "{written}");
            assert_eq!(Decimal::read_binary(bytes).expect("reads"), decimal, "{written}");
        }
    }

    #[test]
    fn malformed_binary_is_refused() {
        let malformed: [&[u8]; 6] = [
            &[],
            &[0, 1, 0, 0, 0, 0, 0],
            &[0, 1, 0, 0, 0, 0, 0, 0],
            &[0, 1, 0, 0, 0, 1, 0, 0, 0, 1],
            &[0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x10],
            &[0, 0, 0, 0, 0, 0, 0xff, 0xff],
        ];
        for bytes in malformed {
            let error = Decimal::read_binary(bytes).expect_err("malformed");
            assert_eq!(error.sqlstate, SqlState::INVALID_BINARY_REPRESENTATION, "{bytes:?}");
        }
        let nan = Decimal::read_binary(&[0, 0, 0, 0, 0xc0, 0, 0, 0]).expect_err("NaN");
        assert_eq!(nan.sqlstate, SqlState::FEATURE_NOT_SUPPORTED);
    }

    #[test]
    fn rescaling_rounds_half_away_from_zero() {
        assert_eq!(rescale(15, 1, 0), Some(2));
        assert_eq!(rescale(-15, 1, 0), Some(-2));
        assert_eq!(rescale(14, 1, 0), Some(1));
        assert_eq!(rescale(5, 3, 0), Some(0));
        assert_eq!(rescale(1, 0, 2), Some(100));
        assert_eq!(rescale(i128::MAX, 0, 1), None);
        assert_eq!(rescale(i128::MAX, 38, -2), Some(0));
    }

    proptest! {
        #[test]
        fn all_forms_agree(
            value in prop_oneof![any::<i128>(), any::<i64>().prop_map(i128::from), -99..99_i128],
            scale in 0_i8..=38,
        ) {
            let decimal = Decimal::from_unscaled(&value.to_string(), scale);
            let mut direct = BytesMut::new();
            write_decimal128(value, scale, &mut direct);
            prop_assert_eq!(std::str::from_utf8(&direct).expect("ascii"), text(&decimal));
            prop_assert_eq!(&Decimal::parse(&text(&decimal)).expect("parses"), &decimal);
            let mut binary = BytesMut::new();
            write_binary128(value, scale, &mut binary);
            let mut general = BytesMut::new();
            decimal.write_binary(&mut general);
            prop_assert_eq!(&binary, &general);
            prop_assert_eq!(&Decimal::read_binary(&binary).expect("reads"), &decimal);
        }

        #[test]
        fn rounding_agrees_with_rescaling(
            value in -10_i128.pow(30)..10_i128.pow(30), from in 0_i8..=30, to in 0_i8..=8,
        ) {
            let decimal = Decimal::from_unscaled(&value.to_string(), from);
            let expected = rescale(value, from, to).expect("small");
            prop_assert_eq!(decimal.to_scaled(38, to).expect("small"), expected);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Decimal::read_binary(&bytes);
        }
    }
}
