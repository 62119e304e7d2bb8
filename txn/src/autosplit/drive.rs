//! One task of a node looks after all tablets that it leads.
//!
//! A tablet that nothing has happened to costs a look at two counters. One after the other is
//! measured and split, and one at most is merged in a round, which is limit enough to how much of
//! that goes on at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_replication::{Generation, TabletDescriptor};
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::{Elapsed, EnvironmentExt, Timestamp, Work};

use super::load::{Balance, Rate};
use super::middle::{Middle, directory_of};
use super::{Decision, Policy, SplitOptions, Standing};
use crate::command::Command;
use crate::directory::{SYSTEM_TABLET, table_of};
use crate::error::TxnError;
use crate::node::Node;
use crate::tablet::{Tablet, Unchanged, same_nodes};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);

/// Between two slices of a tablet that is read: others want the disk, too.
const BREATH: Duration = Duration::from_millis(1);

/// How many slices of a tablet are measured in one round: it may be written to faster than that.
const SLICES: u32 = 256;

/// So many bytes are read at a time.
const SLICE: u64 = 1 << 20;

/// How long a tablet's log may take to split it, or a neighbour to be asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is remembered of a tablet while this node leads it and its range stays the same.
#[derive(Debug)]
struct Watched {
    term: u64,
    generation: Generation,
    range: KeyRange,
    policy: Policy,
    rate: Rate,
    /// The bytes, and the tablet's last write when they were counted.
    sized: Option<(Timestamp, u64)>,
}

/// Looks after the tablets for as long as the node lives.
pub(crate) async fn run(node: Weak<Node>, options: SplitOptions) {
    let mut watched: BTreeMap<TabletId, Watched> = BTreeMap::new();
    loop {
        let Some(node) = node.upgrade() else { return };
        let pause = node.env().sleep(INTERVAL);
        let tablets = node.open_tablets();
        watched.retain(|id, _| tablets.binary_search_by_key(id, Tablet::id).is_ok());
        // Neighbours may not answer, and there may be many.
        let mut may_merge = true;
        for tablet in tablets {
            let id = tablet.id();
            let looked = look(&node, &tablet, &options, &mut watched, &mut may_merge).await;
            if let (Err(error), Some(watched)) = (looked, watched.get_mut(&id)) {
                tracing::debug!(tablet = %id, %error, "was not split or merged");
                watched.policy.failed(node.env().moment());
            }
        }
        drop(node);
        pause.await;
    }
}

/// Measures one tablet, if this node leads it, and does what follows; merges it only if none was
/// merged in this round.
async fn look(
    node: &Arc<Node>,
    tablet: &Tablet,
    options: &SplitOptions,
    all: &mut BTreeMap<TabletId, Watched>,
    may_merge: &mut bool,
) -> Result<(), TxnError> {
    let id = tablet.id();
    let now = node.env().moment();
    let requests = tablet.meter().take();
    let led = tablet.replica().leads().zip(tablet.machine().progress());
    let Some((term, (generation, last_write))) = led else {
        if all.remove(&id).is_some() {
            tablet.meter().stop_sampling();
            tablet.meter().set_standing(None);
        }
        return Ok(());
    };
    let fresh = || {
        let (range, policy) = (tablet.descriptor().range, Policy::new(*options, now));
        Watched { term, generation, range, policy, rate: Rate::default(), sized: None }
    };
    let watched = all.entry(id).or_insert_with(fresh);
    if watched.term != term || watched.generation != generation {
        let new = fresh();
        if watched.term != term || watched.range != new.range {
            *watched = new;
            tablet.meter().stop_sampling();
        }
        watched.generation = generation;
    }
    let rate = watched.rate.add(now, requests, options.load_window);
    if watched.sized.is_none_or(|(at, _)| at != last_write) {
        let size = measure(node, &watched.range).await?;
        watched.sized = size.map(|size| (last_write, size)).or(watched.sized);
    }
    let standing = watched.policy.measured(now, watched.sized.map(|(_, size)| size), rate);
    tablet.meter().set_standing(Some(standing));
    if id == SYSTEM_TABLET {
        return Ok(());
    }
    if watched.policy.is_warm(rate) {
        tablet.meter().sample(|| node.env().fork_rng());
    } else {
        tablet.meter().stop_sampling();
    }
    match watched.policy.decide(now, &standing) {
        Decision::SplitBySize => split_by_size(node, tablet, &mut watched.policy, &standing).await,
        Decision::SplitByLoad => split_by_load(node, tablet, &mut watched.policy).await,
        Decision::Merge if *may_merge => {
            *may_merge = false;
            watched.policy.looked_right(now, None);
            let merge = merge(node, tablet, &mut watched.policy, &standing);
            node.env().timeout(PATIENCE, merge).await.unwrap_or_else(|late| {
                Err(TxnError::Unavailable { tablet: id, reason: late.to_string() })
            })
        }
        Decision::Nothing | Decision::Merge => Ok(()),
    }
}

/// The bytes of a range; `None` if that takes longer.
async fn measure(node: &Node, range: &KeyRange) -> Result<Option<u64>, TxnError> {
    for _ in 0..SLICES {
        let view = node.storage().data.snapshot()?;
        if let Some(size) = view.size_or_measure(range)? {
            return Ok(Some(size));
        }
        drop(view);
        node.env().sleep(BREATH).await;
    }
    Ok(None)
}

/// The tablet as it is now, unless it is on its way to something else already.
fn at_rest(tablet: &Tablet) -> Result<TabletDescriptor, TxnError> {
    let state = tablet.machine().state().filter(|state| !state.retired);
    let state = state.ok_or(TxnError::NoSuchTablet { tablet: tablet.id() })?;
    state.check_frozen()?;
    if state.joint || state.target.is_some() {
        let reason = "its replicas are on their way".to_owned();
        return Err(TxnError::Unavailable { tablet: tablet.id(), reason });
    }
    Ok(state.descriptor)
}

async fn split_by_size(
    node: &Arc<Node>,
    tablet: &Tablet,
    policy: &mut Policy,
    standing: &Standing,
) -> Result<(), TxnError> {
    let descriptor = at_rest(tablet)?;
    let size = standing.size.unwrap_or_default();
    let middle = find_middle(node, &descriptor, size).await?;
    let counted = middle.total();
    let id = tablet.id();
    if !policy.is_large(counted) {
        policy.smaller(size, counted);
        return Ok(());
    }
    let Some(key) = middle.key() else {
        if policy.one_directory(size) {
            tracing::warn!(tablet = %id, bytes = counted, "can't be split: it is one directory");
        }
        return Ok(());
    };
    tracing::info!(tablet = %id, bytes = counted, "is split, because of its size");
    split(node, tablet, key).await
}

/// Reads a tablet in slices.
async fn find_middle(
    node: &Node,
    descriptor: &TabletDescriptor,
    about: u64,
) -> Result<Middle, TxnError> {
    let mut middle = Middle::new(about);
    let mut next = Some(descriptor.range.start.clone());
    while let Some(start) = next.take() {
        let rest = KeyRange::new(start, descriptor.range.end.clone());
        let (mut rows, before) = (0, middle.total());
        let mut last: Option<Vec<u8>> = None;
        for version in node.storage().data.snapshot()?.versions(&rest)? {
            let (key, _, value) = version?;
            // All versions of a key are in one slice.
            if middle.total() - before >= SLICE && last.as_ref() != Some(&key) {
                next = Some(key);
                break;
            }
            let bytes = key.len() + value.as_ref().map_or(0, Vec::len) + 8;
            middle.add(&key, bytes as u64, descriptor);
            last = Some(key);
            rows += 1;
        }
        node.env().work(Work::Read(rows)).await;
        node.env().sleep(BREATH).await;
    }
    Ok(middle)
}

async fn split_by_load(
    node: &Arc<Node>,
    tablet: &Tablet,
    policy: &mut Policy,
) -> Result<(), TxnError> {
    let descriptor = at_rest(tablet)?;
    let directory = |key: &[u8]| directory_of(key, &descriptor).map(<[u8]>::to_vec);
    match tablet.meter().balance(directory) {
        Balance::Unknown => Ok(()),
        Balance::None => {
            if policy.unbalanced(node.env().moment()) {
                tracing::warn!(
                    tablet = %tablet.id(),
                    "is hot, and no boundary of directories divides its requests"
                );
            }
            Ok(())
        }
        Balance::At(key) => {
            tracing::info!(tablet = %tablet.id(), "is split, because of its load");
            split(node, tablet, key).await
        }
    }
}

async fn split(node: &Arc<Node>, tablet: &Tablet, key: Vec<u8>) -> Result<(), TxnError> {
    let child = node.new_tablet_id().await?;
    let split = Command::Split { key, child, sticky: false };
    let done = node.env().timeout(PATIENCE, tablet.command(split)).await;
    let unknown = |late: Elapsed| TxnError::Unknown { reason: late.to_string() };
    done.map_err(unknown)?.map(drop)
}

/// Asks the right neighbour whether it should be merged, and for that if so.
async fn merge(
    node: &Arc<Node>,
    tablet: &Tablet,
    policy: &mut Policy,
    standing: &Standing,
) -> Result<(), TxnError> {
    let left = at_rest(tablet)?;
    let Some(end) = left.range.end.as_ref() else { return Ok(()) };
    if !table_of(&left.range).contains(end) {
        return Ok(());
    }
    let known = node.directory().all();
    let right = known.iter().find(|known| known.range.start == *end);
    let Some(right) = right.filter(|right| belong_together(&left, right)) else { return Ok(()) };
    let (right, others) = node.measured(right.id).await?;
    policy.looked_right(node.env().moment(), Some(&others));
    if right.range.start != *end
        || !belong_together(&left, &right)
        || !policy.may_merge(standing, &others)
    {
        return Ok(());
    }
    tracing::info!(tablet = %left.id, with = %right.id, "are merged, because they are small");
    let unchanged = Unchanged { left: left.generation, right: right.generation };
    node.freeze(right.id, left.id, Some(unchanged)).await.map(drop)
}

/// Whether nothing but their size speaks for two neighbours: no hand has split them, or placed them
/// apart.
fn belong_together(left: &TabletDescriptor, right: &TabletDescriptor) -> bool {
    !right.sticky
        && left.placement == right.placement
        && left.preferred_leader == right.preferred_leader
        && same_nodes(&left.voters, &right.voters)
        && same_nodes(&left.read_only, &right.read_only)
}
