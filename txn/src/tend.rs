//! What a tablet's leader sees to.
//!
//! A leader enters its tablet's descriptor into the directory, moves the replicas to where they
//! should be, has it absorbed where it is to be merged, and gives leadership back to the region that
//! should have it. Everything that it works
//! from is in the tablet's replicated state (the descriptor, the target that its members are on
//! their way to), so whoever leads next goes on where it stopped. It takes one step at a time, and
//! each is one that Raft keeps safe by itself; between them the tablet serves.
//!
//! A replica moves as in Raft's dissertation (Ongaro, chapter 4): the new one follows without
//! voting until it has nearly everything, then the voters change by joint consensus, then the old
//! one is no longer a member. Its node finds that in the directory and removes it.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use meridian_replication::TabletDescriptor;
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp, wait_until_after};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::command::{Absorb, Command, Content, ReadAt, ReadSet, Row};
use crate::directory::{
    DirectoryRow, SYSTEM_TABLET, directory_delete, directory_gone, directory_key, directory_put,
};
use crate::error::TxnError;
use crate::node::Node;
use crate::tablet::{Event, Frozen, State, Tablet, Target, same_nodes};

/// A follower with so few entries left to receive has caught up.
const NEARLY: u64 = 100;

/// Between two looks at how far a new replica is.
const PAUSE: Duration = Duration::from_millis(200);

/// How long one round of seeing to a tablet waits for a new replica to catch up.
const CATCH_UP: Duration = Duration::from_mins(1);

/// Opens tablets that were split off here, and sees to what has changed at once.
pub(crate) async fn follow_events(node: Weak<Node>, mut events: UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        let Some(node) = node.upgrade() else { return };
        match event {
            Event::Born { parent, child } => {
                tracing::info!(node = %node.id(), %parent, child = %child.id, "a tablet was split");
                if let Err(error) = node.open_child(parent, &child).await {
                    tracing::warn!(tablet = %child.id, %error, "a new tablet was not opened");
                }
            }
            Event::Over(tablet) => {
                tracing::info!(node = %node.id(), %tablet, "was absorbed");
                let removing = Arc::clone(&node);
                // Not here: ending a replica may take as long as its network does.
                node.env().spawn(async move {
                    if let Err(error) = removing.remove_tablet(tablet).await {
                        tracing::warn!(%tablet, %error, "what is left of it was not removed");
                    }
                });
            }
            Event::Changed(tablet) => {
                if let Ok(tablet) = node.tablet(tablet) {
                    see_to(&node, tablet);
                }
            }
        }
    }
}

/// Sees to a tablet, if this node leads it and nobody does yet.
pub(crate) fn see_to(node: &Arc<Node>, tablet: Tablet) {
    if tablet.replica().leads().is_none() || tablet.id() == SYSTEM_TABLET {
        return;
    }
    let mut tending = node.tending.lock().unwrap_or_else(PoisonError::into_inner);
    if !tending.insert(tablet.id()) {
        return;
    }
    drop(tending);
    let seeing = Arc::clone(node);
    node.env().spawn(async move {
        let node = seeing;
        // What changes meanwhile is seen in the next round.
        while let Some(before) = tablet.machine().state() {
            if tablet.replica().leads().is_none() {
                break;
            }
            if let Err(error) = round(&node, &tablet, &before).await {
                tracing::debug!(tablet = %tablet.id(), %error, "could not be seen to");
                break;
            }
            if tablet.machine().state().as_ref() == Some(&before) {
                break;
            }
        }
        node.tending.lock().unwrap_or_else(PoisonError::into_inner).remove(&tablet.id());
    });
}

async fn round(node: &Arc<Node>, tablet: &Tablet, state: &State) -> Result<(), TxnError> {
    if state.retired {
        return Ok(());
    }
    enter(node, tablet, state).await?;
    if let Some(frozen) = state.frozen {
        return merge(node, tablet, state, frozen).await;
    }
    if state.joint || state.target.is_some() {
        return move_replicas(node, tablet, state).await;
    }
    hand_over(node, tablet, &state.descriptor).await;
    Ok(())
}

/// Enters the descriptor into the directory, unless that knows it, or a newer one. A tablet that is
/// gone there is retired.
async fn enter(node: &Arc<Node>, tablet: &Tablet, state: &State) -> Result<(), TxnError> {
    loop {
        match try_to_enter(node, tablet, state).await {
            // A tablet that was just split off and its parent enter each other's way; until both
            // are there, whoever reads the directory finds a gap.
            Err(TxnError::Conflict) => {}
            done => return done,
        }
    }
}

async fn try_to_enter(node: &Arc<Node>, tablet: &Tablet, state: &State) -> Result<(), TxnError> {
    let id = state.descriptor.id;
    if tablet.entered() >= Some(state.descriptor.generation) {
        return Ok(());
    }
    // The tablet's own row; and if it has none, its parent's, or that of who absorbed its parent.
    let mut keys = vec![directory_key(id)];
    keys.extend(state.parent.map(directory_key));
    let (at, rows, own, last) = loop {
        let at = ReadAt::Strong { min: Timestamp::MIN };
        let (at, rows) = node.get(SYSTEM_TABLET, keys.clone(), at).await?;
        let decode = |row: Option<&Option<Row>>| match row {
            Some(Some(row)) => DirectoryRow::decode(&row.value).map(Some),
            _ => Ok(None),
        };
        let own = decode(rows.first())?;
        let last = decode(rows.last())?;
        match (&own, &last) {
            (None, Some(DirectoryRow::Gone { into: Some(into), .. })) => {
                keys.push(directory_key(*into));
            }
            _ => break (at, rows, own, last),
        }
    };
    let gone = match (&own, &last) {
        (Some(DirectoryRow::Gone { .. }), _) | (None, Some(DirectoryRow::Gone { .. })) => true,
        (Some(DirectoryRow::Live(known)), _) => {
            if known.generation >= state.descriptor.generation {
                node.directory().learn([DirectoryRow::Live(state.descriptor.clone())]);
                tablet.set_entered(known.generation);
                return Ok(());
            }
            false
        }
        (None, Some(DirectoryRow::Live(_))) => false,
        // Its parent has to enter it first; until then, those who want it ask the parent.
        (None, None) => {
            return Err(TxnError::Unavailable {
                tablet: id,
                reason: "its parent is not in the directory yet".to_owned(),
            });
        }
    };
    let versions = rows.iter().map(|row| row.as_ref().map(|row| row.ts));
    let reads = ReadSet { at, keys: keys.into_iter().zip(versions).collect(), ranges: Vec::new() };
    let mut mutations =
        vec![if gone { directory_delete(id)? } else { directory_put(&state.descriptor)? }];
    let mut learned = vec![DirectoryRow::Live(state.descriptor.clone())];
    // Who drove a merge may have crashed, with all that was left of the right tablet, before the
    // directory was told.
    for absorbed in state.absorbed.iter().filter(|other| !node.directory().is_gone(**other)) {
        mutations.push(directory_gone(*absorbed, Some(id))?);
        learned.push(DirectoryRow::Gone { tablet: *absorbed, into: Some(id) });
    }
    if !(gone && own.is_some()) {
        node.write_system(reads, mutations).await?;
    }
    if gone {
        tracing::info!(tablet = %id, "its table was dropped");
        tablet.command(Command::Retire).await?;
        node.directory().learn([own.unwrap_or(DirectoryRow::Gone { tablet: id, into: None })]);
    } else {
        node.directory().learn(learned);
        tablet.set_entered(state.descriptor.generation);
    }
    Ok(())
}

/// Takes a merge one step on: this tablet is frozen, so that its left neighbour absorbs it.
async fn merge(
    node: &Arc<Node>,
    tablet: &Tablet,
    state: &State,
    Frozen { into, left: wanted }: Frozen,
) -> Result<(), TxnError> {
    let right = &state.descriptor;
    // The neighbour may have absorbed it and have been absorbed itself since then.
    let mut absorber = into;
    let (left, absorbed) = loop {
        match node.describe(absorber).await {
            Ok(described) => break described,
            Err(error @ TxnError::NoSuchTablet { .. }) => match node.directory().absorber(absorber)
            {
                Some(Some(next)) => absorber = next,
                // Dropped with its table, which this one's row will say, too; or not known.
                Some(None) | None => return Err(error),
            },
            Err(error) => return Err(error),
        }
    };
    if absorbed.contains(&right.id) {
        leave(node, right.id, absorber).await?;
        return tablet.command(Command::Retire).await.map(drop);
    }
    if absorber != into
        || left.range.end.as_ref() != Some(&right.range.start)
        || wanted.is_some_and(|wanted| wanted != left.generation)
    {
        // What was asked to absorb this tablet as it is now is refused by now, for that is gone, or
        // of another generation.
        return tablet.command(Command::Thaw).await.map(drop);
    }
    tracing::info!(%into, tablet = %right.id, "merges");
    // Nobody must see there what nobody could have seen here.
    wait_until_after(&**node.env(), &**node.clock(), state.last_write).await;
    let Some(floor) = tablet.floor() else {
        let (tablet, leader) = (right.id, tablet.replica().probable_leader());
        return Err(TxnError::NotLeader { tablet, leader });
    };
    let promised = floor.max(state.last_write);
    let content =
        Content { tablet: right.id, generation: right.generation, last_write: state.last_write };
    let parts = node.stage(into, content, &right.range).await?;
    let absorb = Absorb {
        at: promised,
        generation: left.generation,
        right: right.clone(),
        fences: state.fences.clone(),
        absorbed: state.absorbed.clone(),
        content,
        parts,
        outcomes: tablet.machine().outcomes(&node.storage().data.snapshot()?)?,
        horizon: state.horizon,
    };
    node.ask_to_absorb(into, absorb).await?;
    leave(node, right.id, into).await?;
    tablet.command(Command::Retire).await.map(drop)
}

/// Says in the directory that a tablet was absorbed.
async fn leave(node: &Arc<Node>, tablet: TabletId, into: TabletId) -> Result<(), TxnError> {
    let gone = directory_gone(tablet, Some(into))?;
    node.write_system(ReadSet::default(), vec![gone]).await?;
    node.directory().learn([DirectoryRow::Gone { tablet, into: Some(into) }]);
    Ok(())
}

/// Takes the members one step towards the target.
async fn move_replicas(node: &Arc<Node>, tablet: &Tablet, state: &State) -> Result<(), TxnError> {
    let descriptor = &state.descriptor;
    let target = state.target.clone().unwrap_or_else(|| Target::of(descriptor));
    let unavailable = |error: meridian_replication::ProposeError| TxnError::Unavailable {
        tablet: descriptor.id,
        reason: error.to_string(),
    };
    let is_member = |node: &NodeId| descriptor.replicas().any(|member| member == *node);
    let new = target.voters.iter().chain(&target.read_only).find(|node| !is_member(node));
    if let (Some(&new), false) = (new, state.joint) {
        node.ask_to_open(new, descriptor).await?;
        tracing::info!(tablet = %descriptor.id, %new, "adds a replica");
        return tablet.replica().add_learner(new).await.map_err(unavailable);
    }
    let behind: Vec<NodeId> =
        target.voters.iter().copied().filter(|n| !descriptor.voters.contains(n)).collect();
    caught_up(node, tablet, &behind).await?;
    // Whoever leads stays a voter until another does.
    let mut voters = target.voters.clone();
    let leaves = !voters.contains(&node.id());
    if leaves {
        voters.push(node.id());
    }
    if state.joint || !same_nodes(&descriptor.voters, &voters) {
        tracing::info!(tablet = %descriptor.id, ?voters, "replaces the voters");
        return tablet.replica().replace_voters(&voters).await.map_err(unavailable);
    }
    if leaves {
        let to = Some(descriptor.preferred_leader).filter(|n| target.voters.contains(n));
        let Some(to) = to.or_else(|| target.voters.first().copied()) else { return Ok(()) };
        return tablet.transfer(to).await;
    }
    let left: Vec<NodeId> = descriptor
        .read_only
        .iter()
        .copied()
        .filter(|n| !target.read_only.contains(n) && !target.voters.contains(n))
        .collect();
    if !left.is_empty() {
        tracing::info!(tablet = %descriptor.id, ?left, "removes replicas");
        return tablet.replica().remove_learners(&left).await.map_err(unavailable);
    }
    Ok(())
}

/// Waits until these replicas have nearly all of the log.
async fn caught_up(node: &Node, tablet: &Tablet, replicas: &[NodeId]) -> Result<(), TxnError> {
    let give_up = node.env().moment().plus(CATCH_UP);
    while !replicas.iter().all(|replica| is_near(tablet, *replica)) {
        let unavailable = |reason: &str| {
            let reason = reason.to_owned();
            Err(TxnError::Unavailable { tablet: tablet.id(), reason })
        };
        if tablet.replica().leads().is_none() {
            return unavailable("it is led elsewhere now");
        }
        if node.env().moment() > give_up {
            return unavailable("a new replica does not catch up");
        }
        node.env().sleep(PAUSE).await;
    }
    Ok(())
}

fn is_near(tablet: &Tablet, replica: NodeId) -> bool {
    let status = tablet.replica().status();
    let matched = status.matched.get(&replica).copied().unwrap_or(0);
    // Nobody holds the entry of the birth: whoever has matched nothing waits for an image.
    matched > 0 && status.last_index.saturating_sub(matched) <= NEARLY
}

/// Hands leadership to a replica that should have it rather than this one, if that is alive and has
/// nearly the whole log: the preferred one, or another in the leader's region.
async fn hand_over(node: &Node, tablet: &Tablet, descriptor: &TabletDescriptor) {
    let here = node.id();
    if descriptor.preferred_leader == here {
        return;
    }
    let region = descriptor.placement.leader_region.as_deref();
    let region_of = |id: NodeId| {
        let member = node.members().iter().find(|member| member.id == id);
        member.map(|member| member.region.as_str())
    };
    let in_region = |id: &NodeId| region.is_some() && region_of(*id) == region;
    let preferred = [descriptor.preferred_leader].into_iter();
    let others = descriptor.voters.iter().copied().filter(in_region);
    for candidate in preferred.chain(others) {
        if candidate == here {
            return;
        }
        if !descriptor.voters.contains(&candidate) || !is_near(tablet, candidate) {
            continue;
        }
        let alive = node.status_of(candidate).await;
        if alive.is_ok_and(|tablets| tablets.iter().any(|t| t.descriptor.id == tablet.id())) {
            tracing::info!(tablet = %tablet.id(), to = %candidate, "hands over leadership");
            tablet.replica().transfer_leader(candidate).await;
            return;
        }
    }
}

/// Whether this node's replica of a tablet serves nobody: the tablet is gone, or elsewhere since a
/// leader last wanted the replica, as the directory has it or the replica itself.
pub(crate) fn is_stray(node: &Node, tablet: &Tablet) -> bool {
    let id = tablet.id();
    if id == SYSTEM_TABLET {
        return false;
    }
    let own = tablet.machine().state().map(|state| state.descriptor);
    let latest = node.directory().get(id).into_iter().chain(own).max_by_key(|d| d.generation);
    node.directory().is_gone(id)
        || latest.is_some_and(|latest| {
            latest.generation > tablet.wanted() && !latest.replicas().any(|at| at == node.id())
        })
}
