//! Closing timestamps where a tablet is led, and serving reads at them wherever it has a replica
//! (`crate::safe_time` has the rules).

use std::time::Duration;

use meridian_replication::Generation;
use meridian_storage::KeyRange;
use meridian_truetime::{Timestamp, wait_until_after};

use super::leader::{Tablet, TabletRead, guard};
use crate::error::TxnError;
use crate::safe_time::Closed;

/// So long a read waits for its timestamp to have certainly passed by this node's clock.
pub(crate) const SOON: Duration = Duration::from_millis(500);

impl Tablet {
    /// Closes a timestamp no higher than `at_most`, which has certainly passed, if this replica leads
    /// and nothing keeps it from that at present. With the tablet's generation.
    pub(crate) fn close(&self, at_most: Timestamp) -> Option<(Generation, Closed)> {
        let inner = &self.inner;
        let leadership = inner.leadership.borrow().clone()?;
        // A vote is in doubt only when this is free.
        let _in_order = leadership.log_order.try_lock().ok()?;
        let votes = |in_doubt: &super::leader::InDoubt| {
            (!in_doubt.keys.is_empty()).then(|| in_doubt.vote.min.prev())
        };
        let below = guard(&leadership.in_doubt).values().filter_map(votes).min();
        let at = leadership.oracle().close(below.map_or(at_most, |below| below.min(at_most)));
        inner.replica.take(leadership.term, at)?;
        // After the promise: who absorbs it learns of that, once it is frozen.
        let generation = inner.machine.serves()?;
        // After the promise, too: whatever is above it may be applied by now, but nothing below it
        // will be.
        Some((generation, Closed { at, index: inner.replica.applied() }))
    }

    /// Opens a view of `range` at a timestamp up to which this replica has everything: `safe`.
    pub(crate) async fn read_closed(
        &self,
        at: Timestamp,
        range: &KeyRange,
        safe: Timestamp,
    ) -> Result<TabletRead, TxnError> {
        let inner = &self.inner;
        if at > safe || at.since(inner.clock.now().earliest) > SOON {
            let leader = inner.replica.probable_leader();
            return Err(TxnError::TooFresh { tablet: inner.id, safe, leader });
        }
        self.meter().count(|| range.clone());
        wait_until_after(&*inner.env, &*inner.clock, at).await;
        let snapshot = inner.data.snapshot()?;
        inner.machine.check_view(&snapshot, range, at)?;
        Ok(TabletRead { at, hold: None, lock_wait: Duration::ZERO, snapshot })
    }
}
