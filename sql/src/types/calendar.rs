//! Days, and the Gregorian calendar without end in both directions.
//!
//! Dates count days from 1970-01-01, as Arrow does; year 0 is 1 BC. The algorithms are Howard
//! Hinnant's (<https://howardhinnant.github.io/date_algorithms.html>). chrono's calendar ends in
//! year 262143, PostgreSQL's dates in 5874897, so it doesn't serve.

use bytes::{BufMut, BytesMut};

use super::number::write_unsigned;

pub(super) const MICROS_PER_SECOND: i64 = 1_000_000;
pub(super) const SECONDS_PER_DAY: i64 = 86_400;
pub(super) const MICROS_PER_DAY: i64 = SECONDS_PER_DAY * MICROS_PER_SECOND;

/// 2000-01-01, from which PostgreSQL's binary formats count.
pub(super) const POSTGRES_EPOCH_DAYS: i32 = 10_957;
pub(super) const POSTGRES_EPOCH_MICROS: i64 = POSTGRES_EPOCH_DAYS as i64 * MICROS_PER_DAY;

/// The first date and timestamp: 4714-11-24 BC.
const MIN_DAYS: i64 = -2_440_588;
/// After the last date: 5874898-01-01.
const END_DAYS: i64 = 2_145_042_906;

/// `infinity` and `-infinity`.
pub(super) const DATE_INFINITY: i32 = i32::MAX;
pub(super) const DATE_NEGATIVE_INFINITY: i32 = i32::MIN;
pub(super) const TIMESTAMP_INFINITY: i64 = i64::MAX;
pub(super) const TIMESTAMP_NEGATIVE_INFINITY: i64 = i64::MIN;

/// The day of a date whose month is valid; a day beyond the month's end runs into the next.
pub(super) const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of a day.
pub(super) const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// The number of days in a month.
pub(super) const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A day as a stored date, if PostgreSQL has it.
pub(super) fn date_from_days(days: i64) -> Option<i32> {
    if (MIN_DAYS..END_DAYS).contains(&days) { i32::try_from(days).ok() } else { None }
}

/// A day and a time of day as a stored timestamp, if there is one. The last microsecond of 64 bits
/// is `infinity`, so it isn't one.
pub(super) fn timestamp_from_parts(days: i64, micros: i64) -> Option<i64> {
    check_timestamp(i128::from(days) * i128::from(MICROS_PER_DAY) + i128::from(micros))
}

/// Microseconds since 1970 as a stored timestamp, if there is one.
pub(super) fn check_timestamp(micros: i128) -> Option<i64> {
    let first = i128::from(MIN_DAYS) * i128::from(MICROS_PER_DAY);
    i64::try_from(micros)
        .ok()
        .filter(|micros| *micros != TIMESTAMP_INFINITY && i128::from(*micros) >= first)
}

/// Writes a date as `2024-01-31`, `infinity`, or `0044-03-15 BC`.
pub(super) fn write_date(date: i32, out: &mut BytesMut) {
    match date {
        DATE_INFINITY => out.put_slice(b"infinity"),
        DATE_NEGATIVE_INFINITY => out.put_slice(b"-infinity"),
        _ => {
            let bc = write_civil(i64::from(date), out);
            write_era(bc, out);
        }
    }
}

/// Writes year, month and day; whether the year is BC.
fn write_civil(days: i64, out: &mut BytesMut) -> bool {
    let (year, month, day) = civil_from_days(days);
    let shown = if year > 0 { year } else { 1 - year };
    write_unsigned(shown.unsigned_abs(), 4, out);
    out.put_u8(b'-');
    write_unsigned(month.unsigned_abs(), 2, out);
    out.put_u8(b'-');
    write_unsigned(day.unsigned_abs(), 2, out);
    year <= 0
}

fn write_era(bc: bool, out: &mut BytesMut) {
    if bc {
        out.put_slice(b" BC");
    }
}

/// Writes a time of day, up to and including 24:00:00, as `04:05:06.789`.
pub(super) fn write_time(micros: i64, out: &mut BytesMut) {
    let seconds = micros / MICROS_PER_SECOND;
    write_clock(seconds / 3600, seconds / 60 % 60, seconds % 60, micros % MICROS_PER_SECOND, out);
}

/// Writes hours, of any number of digits, minutes, seconds and the fraction that isn't zero.
pub(super) fn write_clock(hour: i64, minute: i64, second: i64, micros: i64, out: &mut BytesMut) {
    write_unsigned(hour.unsigned_abs(), 2, out);
    out.put_u8(b':');
    write_unsigned(minute.unsigned_abs(), 2, out);
    out.put_u8(b':');
    write_unsigned(second.unsigned_abs(), 2, out);
    let mut fraction = micros.unsigned_abs();
    if fraction > 0 {
        let mut width = 6;
        while fraction.is_multiple_of(10) {
            fraction /= 10;
            width -= 1;
        }
        out.put_u8(b'.');
        write_unsigned(fraction, width, out);
    }
}

/// Writes a timestamp as `2024-01-31 12:34:56.789`; with an offset in seconds east, in that local
/// time and with the offset: `2024-01-31 14:34:56.789+02`.
pub(super) fn write_timestamp(micros: i64, offset: Option<i32>, out: &mut BytesMut) {
    match micros {
        TIMESTAMP_INFINITY => return out.put_slice(b"infinity"),
        TIMESTAMP_NEGATIVE_INFINITY => return out.put_slice(b"-infinity"),
        _ => {}
    }
    let mut days = micros.div_euclid(MICROS_PER_DAY);
    let mut time =
        micros.rem_euclid(MICROS_PER_DAY) + i64::from(offset.unwrap_or(0)) * MICROS_PER_SECOND;
    days += time.div_euclid(MICROS_PER_DAY);
    time = time.rem_euclid(MICROS_PER_DAY);
    let bc = write_civil(days, out);
    out.put_u8(b' ');
    write_time(time, out);
    if let Some(offset) = offset {
        write_offset(offset, out);
    }
    write_era(bc, out);
}

fn write_offset(offset: i32, out: &mut BytesMut) {
    let seconds = u64::from(offset.unsigned_abs());
    out.put_u8(if offset < 0 { b'-' } else { b'+' });
    write_unsigned(seconds / 3600, 2, out);
    if seconds % 3600 != 0 {
        out.put_u8(b':');
        write_unsigned(seconds / 60 % 60, 2, out);
    }
    if seconds % 60 != 0 {
        out.put_u8(b':');
        write_unsigned(seconds % 60, 2, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_days() {
        assert_eq!(days_from_civil(1970, 1, 1), 0);
        assert_eq!(days_from_civil(2000, 1, 1), i64::from(POSTGRES_EPOCH_DAYS));
        assert_eq!(days_from_civil(-4713, 11, 24), MIN_DAYS);
        assert_eq!(days_from_civil(5_874_898, 1, 1), END_DAYS);
        assert_eq!(civil_from_days(-1), (1969, 12, 31));
    }

    proptest! {
        #[test]
        fn days_and_dates_are_one_to_one(days in MIN_DAYS - 1000..END_DAYS + 1000) {
            let (year, month, day) = civil_from_days(days);
            prop_assert!((1..=12).contains(&month));
            prop_assert!((1..=days_in_month(year, month)).contains(&day));
            prop_assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
