//! How a tablet's range changes, and where its replicas should be.
//!
//! A split is one entry. Applying it shortens this tablet and writes the first records of the new
//! one, in one batch; no row moves. The new tablet's replica on a node is opened only when that batch
//! is durable, so whatever its log holds, its beginning is in the data file before; and where a crash
//! loses the batch, the new tablet is not there until the split is applied again.
//!
//! A merge is two: the right tablet is frozen, so that nothing changes in it any more; what it holds
//! is staged in the left one's log, part by part; then one entry turns the parts into rows of the
//! left tablet, whose range grows. So the two may be on different nodes and led by different ones,
//! and what the left tablet holds follows from its own log alone. Whatever replica of the right one
//! is on a node where the left one's applies that entry ends with it, however far it lags.
//!
//! # Caveats
//!
//! A merge copies the right tablet's rows through a log: it is meant for small ones.

use std::collections::BTreeSet;

use meridian_replication::death;
use meridian_storage::{DataSnapshot, StorageError, TabletId, WriteBatch};

use super::change::raise;
use super::{TabletMachine, record};
use crate::command::{Absorb, Command, Outcome, Versions, decode};
use crate::commit::Decided;
use crate::error::TxnError;
use crate::tablet::state::{
    Event, Frozen, State, Unchanged, content_records, directory_begins, outcome_record,
    outcome_records, records, stage_records,
};

/// What a split makes of a state: the new tablet's, and the rest in `state`. `None` when the key is
/// where the tablet begins already.
pub(super) fn split(
    state: &mut State,
    key: &[u8],
    child: TabletId,
    sticky: bool,
) -> Result<Option<State>, TxnError> {
    if state.retired {
        return Err(TxnError::NoSuchTablet { tablet: state.descriptor.id });
    }
    if key == state.descriptor.range.start {
        if sticky && !state.descriptor.sticky {
            state.check_frozen()?;
            state.descriptor.sticky = true;
            state.descriptor.generation = state.descriptor.generation.next();
        }
        return Ok(None);
    }
    if !state.descriptor.range.contains(key) {
        return Err(state.moved());
    }
    if !directory_begins(key, &state.descriptor) {
        return Err(TxnError::refused(
            "a tablet can't be split inside a directory",
            "Split at a key of the root table: its rows and all that is interleaved in them stay \
             together.",
        ));
    }
    state.check_frozen()?;
    state.check_prepared()?;
    if state.joint {
        return Err(TxnError::Unavailable {
            tablet: state.descriptor.id,
            reason: "its replicas are being replaced".to_owned(),
        });
    }
    // A request that was repeated, after the tablet that it made was absorbed again.
    if state.absorbed.contains(&child) {
        return Err(TxnError::Conflict);
    }
    let mut new = state.clone();
    state.descriptor.generation = state.descriptor.generation.next();
    new.descriptor.id = child;
    new.descriptor.generation = state.descriptor.generation;
    new.descriptor.range.start = key.to_vec();
    new.descriptor.sticky = sticky;
    new.parent = Some(state.descriptor.id);
    new.last_child = None;
    state.descriptor.range.end = Some(key.to_vec());
    state.last_child = Some(new.descriptor.clone());
    Ok(Some(new))
}

/// Whether the tablet that this state is of can absorb its right neighbour now.
pub(super) fn can_absorb(
    state: &State,
    absorb: &Absorb,
    view: &DataSnapshot,
) -> Result<Outcome, StorageError> {
    let id = state.descriptor.id;
    if state.retired {
        return Ok(Err(TxnError::NoSuchTablet { tablet: id }));
    }
    if let Err(frozen) = state.check_frozen() {
        return Ok(Err(frozen));
    }
    let adjacent = state.descriptor.range.end.as_ref() == Some(&absorb.right.range.start);
    if absorb.generation != state.descriptor.generation || !adjacent {
        return Ok(Err(state.moved()));
    }
    if absorb.at <= state.last_write {
        return Ok(Err(TxnError::Conflict));
    }
    let mut staged = 0;
    for part in view.records(&content_records(id, absorb.content))? {
        part?;
        staged += 1;
    }
    if staged != absorb.parts {
        return Ok(Err(TxnError::Conflict));
    }
    Ok(Ok(absorb.at))
}

impl TabletMachine {
    /// Takes in what was staged.
    pub(super) fn absorb(
        &self,
        state: &mut State,
        absorb: Absorb,
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        state.absorbed.insert(absorb.right.id);
        state.absorbed.extend(&absorb.absorbed);
        self.end_absorbed(&state.absorbed, view, batch)?;
        let descriptor = &mut state.descriptor;
        descriptor.range.end = absorb.right.range.end;
        descriptor.generation = descriptor.generation.max(absorb.right.generation).next();
        let foreign = self.holdings.foreign(descriptor);
        let wanted = content_records(self.id, absorb.content);
        for record in view.records(&stage_records(self.id))? {
            let (name, part) = record?;
            let is_wanted = name.starts_with(&wanted);
            batch.delete_record(name);
            if !is_wanted {
                continue;
            }
            let versions: Versions = decode(&part).expect("a replica understands its records");
            for (key, at, value) in versions {
                if !foreign.iter().any(|part| part.contains(&key)) {
                    batch.put(key, at, value);
                }
            }
        }
        state.last_write = absorb.at;
        state.horizon = state.horizon.max(absorb.horizon);
        state.last_child = None;
        for (table, version) in absorb.fences {
            raise(&mut state.fences, table, version);
        }
        for decided in absorb.outcomes {
            batch.put_record(outcome_record(self.id, decided.txn), record(&decided));
        }
        Ok(())
    }

    /// Adds to a batch what ends this node's replicas of tablets that were absorbed: their rows and
    /// records. What they held is this one's from the moment that the batch is committed.
    pub(super) fn end_absorbed(
        &self,
        absorbed: &BTreeSet<TabletId>,
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        for (tablet, rows) in self.holdings.here(absorbed) {
            for range in rows {
                batch.clear_range(range);
            }
            for record in view.records(&records(tablet))? {
                batch.delete_record(record?.0);
            }
            death(tablet, batch);
        }
        Ok(())
    }

    /// The replicas of those tablets on this node, if any, are over.
    pub(super) fn over(&self, absorbed: &BTreeSet<TabletId>) {
        let here: Vec<TabletId> =
            self.holdings.here(absorbed).into_iter().map(|(tablet, _)| tablet).collect();
        self.holdings.end(&here);
        for tablet in here {
            let _ = self.events.send(Event::Over(tablet));
        }
    }
}

/// The outcomes of transactions whose anchors are the new tablet's are remembered there from here on,
/// unless it is on this node already.
pub(super) fn hand_down(
    parent: TabletId,
    child: Option<TabletId>,
    key: &[u8],
    view: &DataSnapshot,
    batch: &mut WriteBatch,
) -> Result<(), StorageError> {
    for record in view.records(&outcome_records(parent))? {
        let (name, value) = record?;
        let decided: Decided = decode(&value).expect("a replica understands its records");
        if decided.anchor.as_slice() >= key {
            batch.delete_record(name);
            if let Some(child) = child {
                batch.put_record(outcome_record(child, decided.txn), value);
            }
        }
    }
    Ok(())
}

/// Changes where the replicas should be, or who should lead.
pub(super) fn change_plan(state: &mut State, command: Command, events: &mut Vec<Event>) -> Outcome {
    state.check_frozen()?;
    match command {
        Command::Place { placement, preferred_leader, target } => {
            state.descriptor.placement = placement;
            state.descriptor.preferred_leader = preferred_leader;
            state.descriptor.generation = state.descriptor.generation.next();
            state.target =
                Some(target).filter(|target| state.joint || !target.is_met_by(&state.descriptor));
            events.push(Event::Changed(state.descriptor.id));
            Ok(state.last_write)
        }
        Command::Move { generation, preferred_leader, target } => {
            if state.target.is_some() || state.joint {
                let reason = "its replicas are on their way".to_owned();
                Err(TxnError::Unavailable { tablet: state.descriptor.id, reason })
            } else if generation != state.descriptor.generation {
                Err(state.moved())
            } else {
                state.descriptor.preferred_leader = preferred_leader;
                state.descriptor.generation = generation.next();
                state.target = Some(target)
                    .filter(|target| state.joint || !target.is_met_by(&state.descriptor));
                events.push(Event::Changed(state.descriptor.id));
                Ok(state.last_write)
            }
        }
        Command::Prefer { leader } => {
            if state.descriptor.preferred_leader != leader {
                state.descriptor.preferred_leader = leader;
                state.descriptor.generation = state.descriptor.generation.next();
                events.push(Event::Changed(state.descriptor.id));
            }
            Ok(state.last_write)
        }
        _ => Err(TxnError::Internal("not a change of the plan".to_owned())),
    }
}

/// Freezes a tablet that is to be absorbed by `into`, once its replicas are where they should be.
pub(super) fn freeze(
    state: &mut State,
    into: TabletId,
    unchanged: Option<Unchanged>,
    events: &mut Vec<Event>,
) -> Outcome {
    let left = unchanged.map(|unchanged| unchanged.left);
    match state.check_frozen() {
        Ok(()) if state.retired => Err(TxnError::NoSuchTablet { tablet: state.descriptor.id }),
        Ok(()) if into == state.descriptor.id => Err(state.moved()),
        Ok(()) if state.prepared > 0 => state.check_prepared().map(|()| state.last_write),
        Ok(()) if state.joint || state.target.is_some() => Err(TxnError::Unavailable {
            tablet: state.descriptor.id,
            reason: "its replicas are on their way".to_owned(),
        }),
        Ok(()) if unchanged.is_some_and(|known| known.right != state.descriptor.generation) => {
            Err(state.moved())
        }
        Ok(()) => {
            state.frozen = Some(Frozen { into, left });
            events.push(Event::Changed(state.descriptor.id));
            Ok(state.last_write)
        }
        Err(frozen) => match &mut state.frozen {
            Some(already) if already.into == into => {
                already.left = already.left.and(left);
                Ok(state.last_write)
            }
            _ => Err(frozen),
        },
    }
}
