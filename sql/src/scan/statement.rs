//! What the scans of one statement share: the timestamp that they read at, and what they have seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use meridian_storage::KeyRange;
use meridian_truetime::Timestamp;
use meridian_txn::ReadAt;

/// The highest timestamp that a session has seen; its later reads are no older.
#[derive(Clone, Debug, Default)]
pub(crate) struct HighWater(Arc<AtomicU64>);

impl HighWater {
    pub(crate) fn get(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn raise(&self, to: Timestamp) {
        self.0.fetch_max(to.as_nanos(), Ordering::AcqRel);
    }
}

/// What one scan read.
#[derive(Clone, Debug)]
pub(crate) struct Scanned {
    pub(crate) at: Timestamp,
    pub(crate) ranges: Vec<KeyRange>,
}

/// Handed to the scans through DataFusion's task context.
#[derive(Debug)]
pub(crate) struct StatementContext {
    read_at: ReadAt,
    high_water: HighWater,
    scanned: Mutex<Vec<Scanned>>,
}

impl StatementContext {
    pub(crate) fn new(read_at: ReadAt, high_water: HighWater) -> Self {
        Self { read_at, high_water, scanned: Mutex::default() }
    }

    pub(crate) fn read_at(&self) -> ReadAt {
        self.read_at
    }

    /// A scan's leader answered. An unconfirmed read is remembered, for its write to be validated
    /// against; only when that write commits has the session seen anything.
    pub(crate) fn saw(&self, scanned: Scanned) {
        if self.read_at == ReadAt::Unconfirmed {
            self.scanned.lock().unwrap_or_else(PoisonError::into_inner).push(scanned);
        } else {
            self.high_water.raise(scanned.at);
        }
    }

    pub(crate) fn take_scanned(&self) -> Vec<Scanned> {
        std::mem::take(&mut self.scanned.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
