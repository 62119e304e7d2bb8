//! Old versions are kept for a while, then collected (Corbett et al., *Spanner*, OSDI 2012, section
//! 4.1.4 has reads at timestamps in the past bounded likewise; `BigTable`'s are collected by age).
//!
//! # What is promised
//!
//! A read at a timestamp within the *retention period* finds what was there. One at an older timestamp
//! finds the same or is refused ([`TxnError::TooOld`]); it is never answered from a part of it.
//!
//! The leader of a tablet looks through it now and then, a slice at a time, and where there is
//! something to collect, logs an entry for that slice ([`Command::Collect`]), which every replica
//! applies alike. The entry names the *horizon*, up to which nothing but the newest version of each
//! key is kept. It lies below `TT.now().earliest` by the retention period, and where a timestamp is
//! closed (`crate::safe_time`): no write lands below it later. The tablet's state keeps the highest
//! horizon, and every read at a timestamp that a client names, at the leader or not, is held against
//! the one in the view that it reads.
//!
//! A tablet that nobody has written to since its leader last looked costs a look at two counters, and
//! where nothing is to be collected, nothing is logged.
//!
//! # Caveats
//!
//! * A view that is open keeps what it sees, for as long as it takes. A statement that reads one
//!   tablet after the other at one timestamp has nothing open in those that come later: it is refused
//!   there if it takes longer than the retention period.
//! * A new leader looks through its tablet once, written to or not.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_replication::Generation;
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp, Work};

use crate::command::Command;
use crate::error::TxnError;
use crate::node::Node;
use crate::tablet::Tablet;

/// For how long old versions are kept where nothing else is asked for.
pub const DEFAULT_RETENTION: Duration = Duration::from_hours(1);

/// Tablets are looked through four times in a retention period, but no more and no less often than
/// this.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_mins(15));

/// So many bytes are looked through at a time: about what one entry of the log has every replica do.
const SLICE: usize = 1 << 20;

/// Between two slices: others want the disk, too.
const BREATH: Duration = Duration::from_millis(2);

/// How long a tablet's log may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a tablet was looked through while this node leads it and its range stays the same.
#[derive(Clone, Copy, Debug)]
struct Looked {
    term: u64,
    generation: Generation,
    /// Nothing is to be collected below.
    through: Timestamp,
}

/// Collects for as long as the node lives.
pub(crate) async fn run(node: Weak<Node>, retention: Duration) {
    let interval = (retention / 4).clamp(INTERVAL.0, INTERVAL.1);
    let mut looked: BTreeMap<TabletId, Looked> = BTreeMap::new();
    loop {
        let Some(pause) = node.upgrade().map(|node| node.env().sleep(interval)) else { return };
        pause.await;
        let Some(node) = node.upgrade() else { return };
        let tablets = node.open_tablets();
        looked.retain(|id, _| tablets.binary_search_by_key(id, Tablet::id).is_ok());
        for tablet in tablets {
            if let Err(error) = look(&node, &tablet, retention, &mut looked).await {
                tracing::debug!(tablet = %tablet.id(), %error, "was not collected");
            }
        }
    }
}

/// Looks through one tablet, if this node leads it and it was written to since it did so last.
async fn look(
    node: &Arc<Node>,
    tablet: &Tablet,
    retention: Duration,
    looked: &mut BTreeMap<TabletId, Looked>,
) -> Result<(), TxnError> {
    let id = tablet.id();
    let Some((term, (generation, last_write))) =
        tablet.replica().leads().zip(tablet.machine().progress())
    else {
        looked.remove(&id);
        return Ok(());
    };
    let before = looked.get(&id).filter(|l| (l.term, l.generation) == (term, generation));
    let through = before.map_or(Timestamp::MIN, |looked| looked.through);
    if through >= last_write {
        return Ok(());
    }
    let earliest = node.clock().now().earliest;
    let Some((_, closed)) = tablet.close(earliest.prev()) else { return Ok(()) };
    let horizon = earliest.minus(retention).min(closed.at);
    if horizon <= through {
        return Ok(());
    }
    let range = tablet.descriptor().range;
    let mut next = Some(range.start.clone());
    while let Some(start) = next.take() {
        let rest = KeyRange::new(start.clone(), range.end.clone());
        let slice = look_at(node, &rest, horizon)?;
        if slice.garbage > 0 {
            let range = KeyRange::new(start, slice.next.clone().or_else(|| range.end.clone()));
            let collect = Command::Collect { horizon, range };
            let done = node.env().timeout(PATIENCE, tablet.command(collect)).await;
            let late = |late: meridian_truetime::Elapsed| TxnError::Unavailable {
                tablet: id,
                reason: late.to_string(),
            };
            done.map_err(late)??;
        }
        next = slice.next;
        node.env().work(Work::Read(slice.versions)).await;
        node.env().sleep(BREATH).await;
    }
    looked.insert(id, Looked { term, generation, through: horizon });
    Ok(())
}

/// What was found in a slice.
#[derive(Debug, Default)]
struct Slice {
    versions: u64,
    /// Versions that can be collected.
    garbage: u64,
    /// Where the next one begins.
    next: Option<Vec<u8>>,
}

/// Looks at the beginning of a range.
fn look_at(node: &Node, rest: &KeyRange, horizon: Timestamp) -> Result<Slice, TxnError> {
    let mut slice = Slice::default();
    let mut bytes = 0;
    // The key, and whether its newest version at or below the horizon has passed by.
    let mut last: Option<(Vec<u8>, bool)> = None;
    for version in node.storage().data.snapshot()?.versions(rest)? {
        let (key, at, value) = version?;
        let settled = match &last {
            Some((before, settled)) if *before == key => *settled,
            // All versions of a key are in one slice.
            _ if bytes >= SLICE => {
                slice.next = Some(key);
                break;
            }
            _ => false,
        };
        bytes += key.len() + value.as_ref().map_or(0, Vec::len) + 8;
        slice.versions += 1;
        if at <= horizon && (settled || value.is_none()) {
            slice.garbage += 1;
        }
        last = Some((key, settled || at <= horizon));
    }
    Ok(slice)
}
