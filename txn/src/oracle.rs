//! The timestamps of one tablet under one leader.
//!
//! # What is promised
//!
//! * Commit timestamps of a tablet increase in the order of its log (Spanner, OSDI 2012, section
//!   4.1.2: a leader assigns monotonically increasing timestamps, also across leaders).
//! * A read at t sees every write with a timestamp up to t, now and whenever it is repeated: reading
//!   raises the floor to t, so that no later write gets a timestamp at or below it.
//! * A version is invisible until its timestamp has certainly passed: it is *pending* from when its
//!   timestamp is assigned until it was applied and its commit wait is over.
//!
//! ```text
//!   assigned   ──s1────s2────s3────s4──▶   log order = timestamp order
//!   applied      x           x             (s2's answer isn't in yet)
//!   released     x                         (s3's commit wait goes on)
//!                └ visible = s1: what a strong read sees without waiting
//! ```
//!
//! Writes are acknowledged when they are visible, that is in the order of their timestamps; so a
//! strong read at `visible` has seen everything that was acknowledged before it began.
//!
//! The oracle belongs to one term of one leader. It is created after the new leader has applied
//! everything of earlier terms, and its floor is what that leader has to stay above: the last applied
//! timestamp, and the end of the earlier leaders' leases or what they said that they had taken
//! (`meridian_replication::raft::lease`). Whatever it assigns or promises is taken within the present
//! lease, so that the next leader stays above it in turn.

use std::collections::BTreeMap;

use meridian_truetime::Timestamp;

/// Assigns timestamps and says what may be seen.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Everything that was assigned or promised to a reader; the next timestamp is above it.
    floor: Timestamp,
    /// Assigned and not yet visible; `true` once released.
    pending: BTreeMap<Timestamp, bool>,
    /// Every write at or below is visible or will never be.
    visible: Timestamp,
    /// Strong reads are no older: up to here, an earlier leader, or that of a tablet that was taken
    /// in, may have acknowledged writes.
    least: Timestamp,
}

impl Oracle {
    /// For a leader whose last applied write has the timestamp `last_applied`. Nobody knows here
    /// whether that timestamp has passed, so it begins as pending: release it after its wait.
    #[must_use]
    pub fn new(last_applied: Timestamp) -> Self {
        let pending = BTreeMap::from([(last_applied, false)]);
        Self { floor: last_applied, pending, visible: last_applied.prev(), least: last_applied }
    }

    /// A timestamp for the next write: no lower than `at_least` (`TT.now().latest` when the request
    /// came in) and above everything assigned or promised before. Pending until released.
    ///
    /// # Panics
    /// At the end of the time axis, in the year 2554.
    pub fn assign(&mut self, at_least: Timestamp) -> Timestamp {
        let at = self.floor.next().max(at_least);
        assert!(at > self.floor, "the time axis has not ended");
        self.floor = at;
        self.pending.insert(at, false);
        at
    }

    /// Everything up to here was assigned or promised.
    #[must_use]
    pub fn floor(&self) -> Timestamp {
        self.floor
    }

    /// The write at `at` was applied and its wait is over, or it will never be applied.
    pub fn release(&mut self, at: Timestamp) {
        if let Some(released) = self.pending.get_mut(&at) {
            *released = true;
        }
        while let Some(first) = self.pending.first_entry() {
            if !first.get() {
                break;
            }
            let (at, _) = first.remove_entry();
            self.visible = self.visible.max(at);
        }
    }

    /// Everything at or below was released.
    #[must_use]
    pub fn visible(&self) -> Timestamp {
        self.visible
    }

    /// The lowest timestamp that a transaction may get that is about to commit here together with
    /// others; no write gets it that isn't of such a transaction.
    pub fn vote(&mut self) -> Timestamp {
        self.floor = self.floor.next();
        self.floor
    }

    /// What a transaction has written at that timestamp, here and elsewhere, is applied here: strong
    /// reads are no older.
    pub fn learn(&mut self, at: Timestamp) {
        self.promise(at);
        self.least = self.least.max(at);
    }

    /// Promises that no later write gets a timestamp at or below `at`.
    pub fn promise(&mut self, at: Timestamp) {
        self.floor = self.floor.max(at);
    }

    /// Closes a timestamp, the highest up to `at_most` that lies below everything that is pending: no
    /// later write gets it or one below, and whatever has is applied here.
    pub fn close(&mut self, at_most: Timestamp) -> Timestamp {
        let pending = self.pending.first_key_value().map(|(first, _)| first.prev());
        let at = pending.map_or(at_most, |pending| at_most.min(pending));
        self.promise(at);
        at
    }

    /// A timestamp, pending, for taking in another tablet, above everything that was assigned or
    /// promised there too. Strong reads are no older from here on.
    pub fn absorb(&mut self, at_least: Timestamp) -> Timestamp {
        let at = self.assign(at_least);
        self.least = at;
        at
    }

    /// Whether a read at `at` has to wait for a write that is pending at or below it.
    #[must_use]
    pub fn must_wait(&self, at: Timestamp) -> bool {
        self.pending.first_key_value().is_some_and(|(first, _)| *first <= at)
    }

    /// The timestamp of a strong read that has to see everything up to `min`: the newest that needs
    /// no wait, if that is enough.
    pub fn strong_read(&mut self, min: Timestamp) -> Timestamp {
        let at = self.visible.max(self.least).max(min);
        self.promise(at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn oracle() -> Oracle {
        let mut oracle = Oracle::new(ts(100));
        oracle.release(ts(100));
        oracle
    }

    #[test]
    fn after_taking_in_another_tablet_strong_reads_see_what_was_acknowledged_there() {
        let mut oracle = oracle();
        // Acknowledged at 150 in the other, where readers were promised up to 160.
        let at = oracle.absorb(ts(161));
        assert_eq!(at, ts(161));
        let read = oracle.strong_read(ts(0));
        assert!(read >= ts(160) && oracle.must_wait(read));
        oracle.release(at);
        assert!(!oracle.must_wait(read));
    }

    #[test]
    fn timestamps_increase_whatever_the_clock_says() {
        let mut oracle = oracle();
        assert_eq!(oracle.assign(ts(200)), ts(200));
        assert_eq!(oracle.assign(ts(150)), ts(201));
        assert_eq!(oracle.assign(ts(201)), ts(202));
    }

    #[test]
    fn the_last_write_of_an_earlier_leader_is_pending_at_first() {
        let mut oracle = Oracle::new(ts(100));
        assert_eq!(oracle.visible(), ts(99));
        assert!(oracle.must_wait(ts(100)));
        // The earlier leader may have acknowledged it: by its clock the timestamp had passed.
        assert_eq!(oracle.strong_read(Timestamp::MIN), ts(100));
        oracle.release(ts(100));
        assert_eq!(oracle.visible(), ts(100));
    }

    #[test]
    fn writes_become_visible_in_order() {
        let mut oracle = oracle();
        let (first, second) = (oracle.assign(ts(200)), oracle.assign(ts(300)));
        oracle.release(second);
        assert_eq!(oracle.visible(), ts(100), "the second was released before the first");
        oracle.release(first);
        assert_eq!(oracle.visible(), second);
    }

    #[test]
    fn a_strong_read_stays_below_what_is_pending() {
        let mut oracle = oracle();
        oracle.assign(ts(200));
        assert_eq!(oracle.strong_read(Timestamp::MIN), ts(100));
        assert!(!oracle.must_wait(ts(100)));
    }

    #[test]
    fn a_session_that_has_seen_more_waits() {
        let mut oracle = oracle();
        let pending = oracle.assign(ts(200));
        let at = oracle.strong_read(ts(250));
        assert_eq!(at, ts(250));
        assert!(oracle.must_wait(at));
        oracle.release(pending);
        assert!(!oracle.must_wait(at));
    }

    #[test]
    fn what_is_closed_lies_below_what_is_pending_and_above_it_the_next_write() {
        let mut oracle = oracle();
        assert_eq!(oracle.close(ts(150)), ts(150));
        assert_eq!(oracle.assign(ts(120)), ts(151));
        assert_eq!(oracle.close(ts(300)), ts(150), "it may be in no log yet");
        let second = oracle.assign(ts(200));
        oracle.release(second);
        assert_eq!(oracle.close(ts(300)), ts(150), "the first is pending still");
        oracle.release(ts(151));
        assert_eq!(oracle.close(ts(300)), ts(300));
        assert_eq!(oracle.vote(), ts(301), "nor does a transaction that votes");
    }

    #[test]
    fn nothing_is_closed_while_the_last_write_of_an_earlier_leader_may_not_have_passed() {
        let mut oracle = Oracle::new(ts(100));
        assert_eq!(oracle.close(ts(300)), ts(99));
        oracle.release(ts(100));
        assert_eq!(oracle.close(ts(300)), ts(300));
    }

    #[test]
    fn no_write_gets_below_a_promise() {
        let mut oracle = oracle();
        oracle.promise(ts(500));
        assert_eq!(oracle.assign(ts(200)), ts(501));
    }
}
