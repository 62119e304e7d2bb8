//! The TrueTime API (Spanner, OSDI 2012, section 3).

use std::fmt::Debug;
use std::time::Duration;

use crate::Timestamp;

/// What a clock knows of the present: while its declared bound holds, the true time lies in
/// `[earliest, latest]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtInterval {
    /// No later than the true time.
    pub earliest: Timestamp,
    /// No earlier than the true time.
    pub latest: Timestamp,
}

impl TtInterval {
    /// The interval of half-width `epsilon` around a clock's reading.
    #[must_use]
    pub fn around(reading: Timestamp, epsilon: Duration) -> Self {
        Self { earliest: reading.minus(epsilon), latest: reading.plus(epsilon) }
    }

    /// ε: half of the interval's width.
    #[must_use]
    pub fn epsilon(&self) -> Duration {
        self.latest.since(self.earliest) / 2
    }

    /// The clock's own reading, in the middle of the interval (what `two_phase` uses).
    #[must_use]
    pub fn middle(&self) -> Timestamp {
        self.earliest.plus(self.epsilon())
    }
}

/// A clock that knows how wrong it may be.
pub trait TrueTime: Debug + Send + Sync {
    /// `TT.now()`.
    fn now(&self) -> TtInterval;

    /// `TT.after(t)`: `t` has certainly passed.
    fn after(&self, t: Timestamp) -> bool {
        self.now().earliest > t
    }

    /// `TT.before(t)`: `t` has certainly not arrived.
    fn before(&self, t: Timestamp) -> bool {
        self.now().latest < t
    }
}
