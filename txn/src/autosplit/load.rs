//! Which requests a tablet is asked: how many, and of some of them which keys.
//!
//! Counting a request is an addition. Only of a tablet that is about to be hot requests are also
//! sampled: a reservoir (Vitter's algorithm R) that slowly forgets, so that it speaks of what is
//! asked now.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_storage::KeyRange;
use meridian_truetime::Moment;
use rand::RngExt;
use rand::rngs::StdRng;

use super::Standing;

/// How many requests a sample has.
const SAMPLE: usize = 128;

/// With fewer, it says nothing yet.
const ENOUGH: usize = 20;

/// A request replaces another of a full sample with at least the probability of one in so many.
const MEMORY: u64 = 8;

/// What a replica counts while it leads.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Metered>);

#[derive(Debug, Default)]
struct Metered {
    /// Since they were taken last.
    requests: u32,
    sample: Option<Sample>,
    /// What came of it, for those who ask.
    standing: Option<Standing>,
}

#[derive(Debug)]
struct Sample {
    rng: StdRng,
    seen: u64,
    spans: Vec<KeyRange>,
}

impl Meter {
    /// A request for these keys, all of them between the range's ends.
    pub(crate) fn count(&self, span: impl FnOnce() -> KeyRange) {
        let mut metered = self.lock();
        metered.requests = metered.requests.saturating_add(1);
        if let Some(sample) = &mut metered.sample {
            sample.add(span);
        }
    }

    /// The requests since the last call.
    pub(crate) fn take(&self) -> u32 {
        std::mem::take(&mut self.lock().requests)
    }

    /// Begins to sample, or goes on.
    pub(crate) fn sample(&self, rng: impl FnOnce() -> StdRng) {
        let mut metered = self.lock();
        if metered.sample.is_none() {
            metered.sample = Some(Sample { rng: rng(), seen: 0, spans: Vec::new() });
        }
    }

    /// Forgets the sample.
    pub(crate) fn stop_sampling(&self) {
        self.lock().sample = None;
    }

    /// Where the sampled requests are in balance; `directory` answers where that of a key begins.
    pub(crate) fn balance(&self, directory: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Balance {
        match &self.lock().sample {
            Some(sample) => balance(&sample.spans, directory),
            None => Balance::Unknown,
        }
    }

    /// How the tablet stands, while this replica leads.
    pub(crate) fn standing(&self) -> Option<Standing> {
        self.lock().standing
    }

    pub(crate) fn set_standing(&self, standing: Option<Standing>) {
        self.lock().standing = standing;
    }

    fn lock(&self) -> MutexGuard<'_, Metered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    fn add(&mut self, span: impl FnOnce() -> KeyRange) {
        self.seen += 1;
        if self.spans.len() < SAMPLE {
            self.spans.push(span());
            return;
        }
        let choices = self.seen.min(SAMPLE as u64 * MEMORY);
        let place = usize::try_from(self.rng.random_range(0..choices)).unwrap_or(usize::MAX);
        if let Some(replaced) = self.spans.get_mut(place) {
            *replaced = span();
        }
    }
}

/// What a sample says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    /// Too little.
    Unknown,
    /// No boundary divides the requests.
    None,
    /// About half of them are on either side of this key, where a directory begins.
    At(Vec<u8>),
}

/// The beginning of a directory that leaves as many of the requests on either side as can be, at
/// least a quarter.
fn balance(spans: &[KeyRange], directory: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Balance {
    if spans.len() < ENOUGH {
        return Balance::Unknown;
    }
    let candidates: BTreeSet<Vec<u8>> =
        spans.iter().filter_map(|span| directory(&span.start)).collect();
    let smaller_side = |key: &Vec<u8>| {
        let left = spans.iter().filter(|s| s.end.as_ref().is_some_and(|end| end <= key)).count();
        let right = spans.iter().filter(|s| s.start >= *key).count();
        left.min(right)
    };
    let best = candidates.into_iter().map(|key| (smaller_side(&key), key)).max_by(
        // The first of those that are equally good.
        |(a, a_key), (b, b_key)| a.cmp(b).then(b_key.cmp(a_key)),
    );
    match best {
        Some((least, key)) if least * 4 >= spans.len() => Balance::At(key),
        _ => Balance::None,
    }
}

/// Requests per second over a window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rate(VecDeque<(Moment, u32)>);

impl Rate {
    /// That many requests came until `now`, since the last call; how many per second there are.
    pub(crate) fn add(&mut self, now: Moment, requests: u32, window: Duration) -> f64 {
        if requests > 0 {
            self.0.push_back((now, requests));
        }
        while self.0.front().is_some_and(|(at, _)| now.since(*at) >= window) {
            self.0.pop_front();
        }
        let sum = self.0.iter().fold(0_u32, |sum, (_, requests)| sum.saturating_add(*requests));
        f64::from(sum) / window.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// A directory is all keys with the same first byte.
    fn directory(key: &[u8]) -> Option<Vec<u8>> {
        key.first().map(|first| vec![*first])
    }

    fn point(directory: u8, row: u8) -> KeyRange {
        KeyRange::point([directory, row])
    }

    #[test]
    fn a_boundary_in_the_middle_of_the_requests_is_found() {
        let spans: Vec<_> = (0..100).map(|n| point(n, 7)).collect();
        assert_eq!(balance(&spans, directory), Balance::At(vec![50]));
        // Half of them are for directory 3.
        let spans: Vec<_> = (0..100).map(|n| point(if n < 50 { 3 } else { n }, n)).collect();
        assert_eq!(balance(&spans, directory), Balance::At(vec![50]));
    }

    #[test]
    fn one_hot_directory_is_not_divided() {
        let spans: Vec<_> = (0..100).map(|n| point(if n < 80 { 3 } else { n }, n)).collect();
        assert_eq!(balance(&spans, directory), Balance::None);
    }

    #[test]
    fn requests_that_read_everything_are_on_no_side() {
        let all = KeyRange::new(vec![0], Some(vec![200]));
        let points = (0..100).map(|n| point(n, 0));
        let spans: Vec<_> = points.clone().chain(vec![all.clone(); 90]).collect();
        assert_eq!(balance(&spans, directory), Balance::At(vec![50]));
        let spans: Vec<_> = points.chain(vec![all; 110]).collect();
        assert_eq!(balance(&spans, directory), Balance::None);
    }

    #[test]
    fn a_sample_is_fair_and_forgets() {
        let meter = Meter::default();
        meter.count(|| unreachable!("nobody wants to know"));
        meter.sample(|| StdRng::seed_from_u64(1));
        for row in 0..ENOUGH - 1 {
            meter.count(|| point(u8::try_from(row).expect("few"), 0));
        }
        assert_eq!(meter.balance(directory), Balance::Unknown);
        let sampled_at = || match meter.balance(directory) {
            Balance::At(key) => key[0],
            other => panic!("{other:?}"),
        };
        for _ in 0..20 {
            (0..100).for_each(|n| meter.count(|| point(n, 0)));
        }
        assert!((40..60).contains(&sampled_at()), "{}", sampled_at());
        for _ in 0..40 {
            (100..200).for_each(|n| meter.count(|| point(n, 0)));
        }
        assert!((140..160).contains(&sampled_at()), "{}", sampled_at());
        assert_eq!(meter.take(), 20 + 2_000 + 4_000);
        assert_eq!(meter.take(), 0);
        meter.stop_sampling();
        assert_eq!(meter.balance(directory), Balance::Unknown);
    }

    #[test]
    fn a_rate_is_that_of_the_window() {
        let mut rate = Rate::default();
        let window = Duration::from_secs(10);
        let at = |second| Moment::START.plus(Duration::from_secs(second));
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(rate.add(at(1), 100, window), 10.0));
        assert!(close(rate.add(at(2), 50, window), 15.0));
        assert!(close(rate.add(at(10), 0, window), 15.0));
        assert!(close(rate.add(at(11), 0, window), 5.0), "the first hundred are over");
        assert!(close(rate.add(at(60), 0, window), 0.0));
    }
}
