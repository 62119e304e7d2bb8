//! When tablets split and merge by themselves, as a command line and a file say it.

use std::time::Duration;

use clap::Args;
use meridian_txn::SplitOptions;

/// Smaller tablets than this are nobody's wish.
const MIN_SIZE: u64 = 1 << 10;
/// The longest window of requests.
const MAX_WINDOW: Duration = Duration::from_mins(10);
/// How windows and waits look.
const DURATIONS: &str = "durations look like 10s or 5m";

/// What `demo` is told.
#[derive(Clone, Copy, Debug, Args)]
pub struct SplitArgs {
    /// A tablet larger than this is split; `off`: never, and none is merged either
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    pub split_size: Limit<u64>,
    /// A tablet with more requests per second than this is split; `off`: never
    #[arg(long, value_name = "N", default_value = "2500", value_parser = load)]
    pub split_load: Limit<u32>,
    /// Over how long requests are counted
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = window)]
    pub split_load_window: Duration,
    /// Small neighbours that are cold for so long are merged; `off`: never
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = wait)]
    pub merge_after: Limit<Duration>,
}

impl From<SplitArgs> for SplitOptions {
    fn from(args: SplitArgs) -> Self {
        Self {
            split_size: args.split_size.into(),
            split_load: args.split_load.into(),
            load_window: args.split_load_window,
            merge_after: args.merge_after.into(),
        }
    }
}

/// A value, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit<T> {
    /// None.
    Off,
    /// That.
    At(T),
}

impl<T> From<Limit<T>> for Option<T> {
    fn from(limit: Limit<T>) -> Self {
        match limit {
            Limit::Off => None,
            Limit::At(value) => Some(value),
        }
    }
}

fn limit<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Limit<T>, String> {
    if text == "off" { Ok(Limit::Off) } else { parse(text).map(Limit::At) }
}

/// A number of bytes with a unit.
pub(crate) fn size(text: &str) -> Result<Limit<u64>, String> {
    limit(text, |text| {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1_u64 << 30),
            _ => None,
        };
        let number: Option<u64> = number.parse().ok();
        let bytes = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
        match bytes {
            None => Err("not a size (sizes look like 64MiB, 512KiB or off)".to_owned()),
            Some(bytes) if bytes < MIN_SIZE => Err("smaller than 1KiB, the least".to_owned()),
            Some(bytes) => Ok(bytes),
        }
    })
}

/// Requests per second.
pub(crate) fn load(text: &str) -> Result<Limit<u32>, String> {
    limit(text, |text| match text.parse() {
        Ok(0) | Err(_) => Err("not a number of requests per second from 1 on, or off".to_owned()),
        Ok(load) => Ok(load),
    })
}

fn duration(text: &str, most: Duration) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|error| format!("not a duration: {error} ({DURATIONS})"))?;
    if (Duration::from_secs(1)..=most).contains(&parsed) {
        return Ok(parsed);
    }
    Err(if parsed > most { "longer than 10m, the most" } else { "shorter than 1s, the least" }
        .into())
}

/// Over how long requests are counted.
pub(crate) fn window(text: &str) -> Result<Duration, String> {
    duration(text, MAX_WINDOW)
}

/// How long neighbours are cold.
pub(crate) fn wait(text: &str) -> Result<Limit<Duration>, String> {
    limit(text, |text| duration(text, Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("1KiB", 1 << 10), ("64MiB", 64 << 20), ("2 GiB", 2 << 30), ("5000B", 5_000)]
        {
            assert_eq!(size(text), Ok(Limit::At(bytes)), "{text}");
        }
        assert_eq!(size("off"), Ok(Limit::Off));
        for text in ["", "64", "MiB", "64MB", "-1MiB", "1.5GiB", "99999999999GiB"] {
            assert!(size(text).expect_err(text).contains("64MiB"), "{text}");
        }
        assert!(size("1023B").expect_err("too small").contains("1KiB"));
    }

    #[test]
    fn loads_and_durations_are_checked() {
        assert_eq!((load("2500"), load("off")), (Ok(Limit::At(2_500)), Ok(Limit::Off)));
        for text in ["0", "-3", "many", "5000000000"] {
            assert!(load(text).is_err(), "{text}");
        }
        assert_eq!(window("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(wait("1h"), Ok(Limit::At(Duration::from_secs(3_600))));
        assert_eq!(wait("off"), Ok(Limit::Off));
        for (text, part) in [("11m", "10m"), ("10ms", "1s"), ("soon", "10s or 5m"), ("off", "10s")]
        {
            assert!(window(text).expect_err(text).contains(part), "{text}");
        }
    }
}
