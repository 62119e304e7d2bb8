//! Tablets that split and merge by themselves.
//!
//! # What is decided, and by whom
//!
//! A tablet's leader looks at it about once a second: how many bytes it has, and how many requests
//! per second it was asked over a window. From that the [`Policy`] decides. Nobody else is asked but,
//! before a merge, the neighbour's leader.
//!
//! ```text
//!   bytes                                            requests per second
//!     |  split in the middle by bytes                  |  split where half of them is on either side
//!   ==+== split_size                                 ==+== split_load
//!     |                                                |
//!     |  nothing                                       |  nothing
//!     |                                                |
//!   --+-- split_size / 4, with the neighbour's       --+-- split_load / 8
//!     |  merge, if cold for merge_after                |  cold
//! ```
//!
//! A tablet is never split but where a directory begins: a row of the root table with all that is
//! interleaved in it stays whole.
//!
//! **By size**, the key is the directory boundary nearest to the middle of the bytes, all versions
//! counted. For that the tablet is read once more ([`middle`]), which also corrects the running
//! count. One that is a single directory is left alone until it has doubled.
//!
//! **By load**, the key follows from a sample of the requests ([`load`]), as in CockroachDB: a
//! boundary that leaves at least a quarter of them on either side, the nearest to half of them. A
//! request that would touch both sides speaks for neither. If there is no such boundary, because one
//! directory is hot or every request reads everything, splitting would not help, and the tablet is
//! left alone for thirty windows.
//!
//! **A merge** takes the right neighbour of the same root table, if both are cold, small together,
//! and to be in the same places: placement, replicas and preferred leader are equal. What a hand has
//! split stays split: that is in the descriptor of the tablet that begins there
//! ([`TabletDescriptor::sticky`](meridian_replication::TabletDescriptor::sticky)).
//!
//! # Why it doesn't flap
//!
//! Halves of a tablet that was just split have half of `split_size`, and two that merge have a
//! quarter, so a factor of two lies between either and the opposite. The same goes for requests: a
//! tablet is cold only below an eighth of `split_load`. And whatever a leader knew of a tablet, it
//! forgets when the range changes or another leads: a tablet that was just split or merged must be
//! hot for another window, or cold for another `merge_after`. Only a split by size waits for nothing,
//! because a table that is being filled doesn't either.
//!
//! # How it is carried out
//!
//! The decisions are carried out with the same commands in tablets' logs as those made by hand
//! ([`drive`]), and any race with them is lost politely: if the tablet moves, is frozen, or its
//! generation is another by then, the leader decides anew later. A merge names the generations that
//! it was decided for, on both sides, so that nothing done by hand in between is undone.
//!
//! # Caveats
//!
//! Old versions count, and until they are collected a tablet never shrinks.
//!
//! A new leader counts the tablet's bytes by reading it, in slices of about a mebibyte.
//!
//! A statement can't write to several tablets yet, so one that writes to several directories may be
//! refused once they are in different tablets.
//!
//! Splitting by load spreads requests over tablets, not over nodes: the halves stay where the whole
//! was. It helps where a tablet's log is the bottleneck; replicas are moved by hand.
//!
//! Sources: CockroachDB's `pkg/kv/kvserver/split/decider.go`, `split_queue.go` and `merge_queue.go`
//! (sizes, load, the sticky bit); Spanner, OSDI 2012, section 2.2 (directories), and its
//! documentation on load-based splitting.

pub(crate) mod drive;
pub(crate) mod load;
pub(crate) mod middle;

use std::time::Duration;

use meridian_truetime::Moment;
use serde::{Deserialize, Serialize};

/// When tablets are split and merged by themselves. Each node has its own; they should be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitOptions {
    /// A tablet with more bytes of keys and values than this, old versions included, is split. 64
    /// MiB; `None`: none is, and none is small enough to be merged.
    pub split_size: Option<u64>,
    /// A tablet that is asked more requests per second than this, reads and writes, over
    /// `load_window`, is split. 2,500; `None`: none is.
    pub split_load: Option<u32>,
    /// Over how long requests are counted: 10 s.
    pub load_window: Duration,
    /// Two neighbours that have been cold for so long (below an eighth of `split_load`, if there is
    /// one) and have less than a quarter of `split_size` together are merged. 5 min; `None`: none
    /// are.
    pub merge_after: Option<Duration>,
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self {
            split_size: Some(64 << 20),
            split_load: Some(2_500),
            load_window: Duration::from_secs(10),
            merge_after: Some(Duration::from_mins(5)),
        }
    }
}

impl SplitOptions {
    /// The default for virtual time: not by load, so that an experiment's tablets are what it made
    /// them.
    #[must_use]
    pub fn virtual_time() -> Self {
        Self { split_load: None, ..Self::default() }
    }

    /// Two tablets with fewer bytes together are small.
    fn small(&self) -> Option<u64> {
        self.split_size.map(|size| size / 4)
    }

    fn is_cold(&self, rate: f64) -> bool {
        self.split_load.is_none_or(|load| rate * 8.0 < f64::from(load))
    }
}

/// A tablet whose requests no boundary divides is left alone for so many windows.
const UNBALANCED_WINDOWS: u32 = 30;

/// After a decision that could not be carried out.
const RETRY: Duration = Duration::from_secs(10);

/// A tablet as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// The bytes of its rows, once they are counted.
    pub(crate) size: Option<u64>,
    /// Requests per second over the window.
    pub(crate) rate: f64,
    /// For how long it has been cold.
    pub(crate) cold_for: Duration,
}

/// What a leader should do with a tablet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Nothing,
    /// Look for the middle, and split there.
    SplitBySize,
    /// Split where the sampled requests are in balance.
    SplitByLoad,
    /// Merge with the right neighbour, if that [agrees](Policy::may_merge).
    Merge,
}

/// What one leader remembers of one tablet for as long as its range is the same.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    options: SplitOptions,
    cold_since: Option<Moment>,
    /// No split by size before there are more bytes than this.
    size_floor: u64,
    /// No split by load before: no boundary divides its requests.
    load_again: Option<Moment>,
    /// No merge before.
    merge_again: Moment,
    /// Nothing at all before.
    again: Moment,
}

impl Policy {
    /// The tablet is led here, or has this range, from `now` on.
    pub(crate) fn new(options: SplitOptions, now: Moment) -> Self {
        Self {
            options,
            cold_since: Some(now),
            size_floor: 0,
            load_again: None,
            merge_again: now,
            again: now,
        }
    }

    /// Takes in a measurement.
    pub(crate) fn measured(&mut self, now: Moment, size: Option<u64>, rate: f64) -> Standing {
        self.cold_since =
            if self.options.is_cold(rate) { self.cold_since.or(Some(now)) } else { None };
        let cold_for = self.cold_since.map_or(Duration::ZERO, |since| now.since(since));
        Standing { size, rate, cold_for }
    }

    /// What to do.
    pub(crate) fn decide(&self, now: Moment, standing: &Standing) -> Decision {
        if now < self.again {
            return Decision::Nothing;
        }
        let is_hot = self.options.split_load.is_some_and(|load| standing.rate > f64::from(load));
        if standing.size.is_some_and(|size| size > self.size_floor && self.is_large(size)) {
            Decision::SplitBySize
        } else if is_hot && self.load_again.is_none_or(|again| now >= again) {
            Decision::SplitByLoad
        } else if now >= self.merge_again && self.is_ready(standing, 0) {
            Decision::Merge
        } else {
            Decision::Nothing
        }
    }

    /// Whether a tablet of so many bytes is to be split.
    pub(crate) fn is_large(&self, size: u64) -> bool {
        self.options.split_size.is_some_and(|split| size > split)
    }

    /// Whether the tablet and its right neighbour should be one.
    pub(crate) fn may_merge(&self, left: &Standing, right: &Standing) -> bool {
        let (Some(left_size), Some(right_size)) = (left.size, right.size) else { return false };
        self.is_ready(left, right_size) && self.is_ready(right, left_size)
    }

    fn is_ready(&self, standing: &Standing, others: u64) -> bool {
        let is_small = standing
            .size
            .zip(self.options.small())
            .is_some_and(|(size, small)| size + others < small);
        is_small && self.options.merge_after.is_some_and(|after| standing.cold_for >= after)
    }

    /// Whether the tablet is about to be hot, so that its requests should be sampled.
    pub(crate) fn is_warm(&self, rate: f64) -> bool {
        self.options.split_load.is_some_and(|load| rate * 2.0 > f64::from(load))
    }

    /// No directory begins inside of it, and it has `size` bytes. True the first time.
    pub(crate) fn one_directory(&mut self, size: u64) -> bool {
        let first = self.size_floor == 0;
        self.size_floor = size.saturating_mul(2);
        first
    }

    /// It has `counted` bytes rather than `size`.
    pub(crate) fn smaller(&mut self, size: u64, counted: u64) {
        let missing = self.options.split_size.unwrap_or(u64::MAX).saturating_sub(counted);
        self.size_floor = size.saturating_add(missing);
    }

    /// No boundary divides its requests. True the first time.
    pub(crate) fn unbalanced(&mut self, now: Moment) -> bool {
        let again = now.plus(self.options.load_window * UNBALANCED_WINDOWS);
        self.load_again.replace(again).is_none()
    }

    /// The right neighbour was looked at: if it answered, when it will have been cold for long
    /// enough, it may be worth another look.
    pub(crate) fn looked_right(&mut self, now: Moment, right: Option<&Standing>) {
        let after = self.options.merge_after.unwrap_or_default();
        let missing = right.map(|right| after.saturating_sub(right.cold_for));
        let again = missing.filter(|missing| !missing.is_zero());
        self.merge_again = now.plus(again.unwrap_or(after));
    }

    /// What was decided could not be done.
    pub(crate) fn failed(&mut self, now: Moment) {
        self.again = now.plus(RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A tablet and its leader's policy; one line is about a minute or less of its life.
    struct Story {
        now: Moment,
        policy: Policy,
        standing: Standing,
    }

    impl Story {
        fn of(options: SplitOptions) -> Self {
            let now = Moment::START;
            let standing = Standing { size: None, rate: 0.0, cold_for: Duration::ZERO };
            Self { now, policy: Policy::new(options, now), standing }
        }

        fn begins() -> Self {
            Self::of(SplitOptions::default())
        }

        /// So many seconds later it has so many bytes and requests per second.
        fn after(&mut self, seconds: u64, size: impl Into<Option<u64>>, rate: f64) -> Decision {
            self.now = self.now.plus(Duration::from_secs(seconds));
            self.standing = self.policy.measured(self.now, size.into(), rate);
            self.policy.decide(self.now, &self.standing)
        }
    }

    #[test]
    fn a_tablet_that_grows_is_split_by_size() {
        let mut story = Story::begins();
        assert_eq!(story.after(1, None, 10.0), Decision::Nothing, "it is being counted");
        assert_eq!(story.after(1, 60 * MIB, 10.0), Decision::Nothing);
        assert_eq!(story.after(1, 64 * MIB, 10.0), Decision::Nothing);
        assert_eq!(story.after(1, 64 * MIB + 1, 10.0), Decision::SplitBySize);
        // The log could not be reached: not again at once.
        story.policy.failed(story.now);
        assert_eq!(story.after(5, 70 * MIB, 10.0), Decision::Nothing);
        assert_eq!(story.after(5, 70 * MIB, 10.0), Decision::SplitBySize);
        // Split. Each half begins anew, and doesn't wait if it is filled further.
        let mut half = Story::begins();
        assert_eq!(half.after(1, 35 * MIB, 10.0), Decision::Nothing);
        assert_eq!(half.after(1, 65 * MIB, 10.0), Decision::SplitBySize);
    }

    #[test]
    fn one_large_directory_is_left_alone_until_it_has_doubled() {
        let mut story = Story::begins();
        assert_eq!(story.after(1, 70 * MIB, 0.0), Decision::SplitBySize);
        assert!(story.policy.one_directory(70 * MIB), "which is worth a word");
        assert_eq!(story.after(1, 71 * MIB, 0.0), Decision::Nothing);
        assert_eq!(story.after(3_600, 140 * MIB, 0.0), Decision::Nothing);
        assert_eq!(story.after(1, 141 * MIB, 0.0), Decision::SplitBySize);
        assert!(!story.policy.one_directory(141 * MIB), "but not of two");
        assert_eq!(story.after(1, 142 * MIB, 0.0), Decision::Nothing);
    }

    #[test]
    fn a_count_that_was_too_high_is_believed_less() {
        let mut story = Story::begins();
        assert_eq!(story.after(1, 65 * MIB, 0.0), Decision::SplitBySize);
        story.policy.smaller(65 * MIB, 60 * MIB);
        assert_eq!(story.after(1, 69 * MIB, 0.0), Decision::Nothing);
        assert_eq!(story.after(1, 70 * MIB, 0.0), Decision::SplitBySize);
    }

    #[test]
    fn a_hot_tablet_is_split_by_load_and_an_indivisible_one_is_left_alone() {
        let mut story = Story::begins();
        assert_eq!(story.after(10, MIB, 1_000.0), Decision::Nothing);
        assert!(!story.policy.is_warm(1_000.0) && story.policy.is_warm(1_500.0));
        assert_eq!(story.after(10, MIB, 2_500.0), Decision::Nothing);
        assert_eq!(story.after(1, MIB, 2_600.0), Decision::SplitByLoad);
        assert!(story.policy.unbalanced(story.now), "which is worth a word");
        assert_eq!(story.after(299, MIB, 5_000.0), Decision::Nothing);
        assert_eq!(story.after(1, MIB, 5_000.0), Decision::SplitByLoad);
        assert!(!story.policy.unbalanced(story.now), "but not of two");
        // Size matters as before.
        assert_eq!(story.after(1, 65 * MIB, 5_000.0), Decision::SplitBySize);
    }

    #[test]
    fn small_cold_neighbours_are_merged() {
        let (mut left, mut right) = (Story::begins(), Story::begins());
        assert_eq!(left.after(299, 7 * MIB, 100.0), Decision::Nothing);
        assert_eq!(left.after(1, 7 * MIB, 100.0), Decision::Merge);
        right.after(300, 8 * MIB, 300.0);
        assert!(left.policy.may_merge(&left.standing, &right.standing));
        // Together they would have a quarter, or it is not known what they have.
        for size in [Some(9 * MIB), None] {
            right.after(0, size, 300.0);
            assert!(!left.policy.may_merge(&left.standing, &right.standing));
        }
        // The right one was hot a minute ago.
        right.after(0, 8 * MIB, 313.0);
        right.after(60, 8 * MIB, 300.0);
        assert!(!left.policy.may_merge(&left.standing, &right.standing));
        right.after(100, 8 * MIB, 300.0);
        assert!(!left.policy.may_merge(&left.standing, &right.standing));
        // So the left one doesn't ask every second.
        left.policy.looked_right(left.now, Some(&right.standing));
        assert_eq!(left.after(199, 7 * MIB, 100.0), Decision::Nothing);
        assert_eq!(left.after(1, 7 * MIB, 100.0), Decision::Merge);
        right.after(200, 8 * MIB, 300.0);
        assert!(left.policy.may_merge(&left.standing, &right.standing));
        // It can't be had: for the left one that is no news every second, either.
        left.policy.looked_right(left.now, Some(&right.standing));
        assert_eq!(left.after(299, 7 * MIB, 100.0), Decision::Nothing);
        assert_eq!(left.after(1, 7 * MIB, 100.0), Decision::Merge);
    }

    #[test]
    fn nothing_flaps() {
        // Halves of what was just split are too large to be merged, however long they are cold.
        let (mut left, mut right) = (Story::begins(), Story::begins());
        assert_eq!(left.after(86_400, 32 * MIB, 0.0), Decision::Nothing);
        right.after(86_400, 32 * MIB, 0.0);
        assert!(!left.policy.may_merge(&left.standing, &right.standing));
        // Halves of what was just hot are not cold, and if they cool down, it takes five minutes.
        let mut half = Story::begins();
        assert_eq!(half.after(600, MIB, 1_250.0), Decision::Nothing);
        assert_eq!(half.after(299, MIB, 100.0), Decision::Nothing);
        assert_eq!(half.after(299, MIB, 100.0), Decision::Nothing);
        assert_eq!(half.after(1, MIB, 100.0), Decision::Merge);
        // What two small cold tablets become is neither large nor hot.
        let mut merged = Story::begins();
        assert_eq!(merged.after(1, 16 * MIB, 2.0 * 312.0), Decision::Nothing);
    }

    #[test]
    fn what_is_turned_off_does_not_happen() {
        let all_off =
            SplitOptions { split_size: None, split_load: None, ..SplitOptions::default() };
        let mut story = Story::of(all_off);
        assert_eq!(story.after(600, 1_000 * MIB, 1e6), Decision::Nothing);
        assert_eq!(story.after(600, 0, 0.0), Decision::Nothing);
        assert!(!story.policy.is_warm(1e6));
        let mut story = Story::of(SplitOptions { merge_after: None, ..SplitOptions::default() });
        assert_eq!(story.after(86_400, 0, 0.0), Decision::Nothing);
        // In virtual time every tablet is cold.
        let mut story = Story::of(SplitOptions::virtual_time());
        assert_eq!(story.after(300, 0, 1e6), Decision::Merge);
    }
}
