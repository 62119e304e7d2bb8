//! The replicated state machine of a tablet.
//!
//! # What is promised
//!
//! A command is applied whole or not at all, and the same way on every replica: what becomes of it
//! depends only on it and on what was applied before.
//!
//! Old versions are collected piece by piece, each by an entry of the log. From the first piece on,
//! reads below the horizon are refused in all of the tablet, and so are writes computed from ranges
//! that were read below it: what was deleted since then may have left no trace.

mod change;
mod shape;
mod transactions;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_replication::{Generation, Members, Position, StateMachine};
use meridian_storage::{DataSnapshot, KeyRange, TabletId, WriteBatch};
use meridian_truetime::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

use self::change::{Change, raise, validate, write};
use self::shape::{can_absorb, change_plan, freeze, hand_down, split};
use super::state::{
    Event, State, bear, is_stored, outcome_record, records, stage_record, stage_records,
    state_record,
};
use crate::command::{Command, Outcome, WriteRequest, decode, encode};
use crate::error::TxnError;
use crate::holdings::Holdings;

/// A tablet's state machine on one node.
#[derive(Debug)]
pub(crate) struct TabletMachine {
    id: TabletId,
    holdings: Arc<Holdings>,
    events: UnboundedSender<Event>,
    state: Mutex<States>,
}

#[derive(Debug)]
struct States {
    /// As of the last committed batch; `None` for a replica that waits for an image.
    committed: Option<State>,
    /// As of the batch that is being committed.
    next: Option<State>,
    /// What is told when it is committed.
    events: Vec<Event>,
}

impl TabletMachine {
    /// The machine as the data file has it, blank if that knows nothing of it.
    pub(crate) fn open(
        id: TabletId,
        view: &DataSnapshot,
        holdings: Arc<Holdings>,
        events: UnboundedSender<Event>,
    ) -> Result<Self, TxnError> {
        let state: Option<State> = match view.record(&state_record(id))? {
            Some(bytes) => Some(decode(&bytes)?),
            None => None,
        };
        holdings.hold(id, state.as_ref().map(|state| &state.descriptor));
        let versions = States { committed: state.clone(), next: state, events: Vec::new() };
        Ok(Self { id, holdings, events, state: Mutex::new(versions) })
    }

    /// The state as of the last applied command; `None` for a replica that waits for an image.
    pub(crate) fn state(&self) -> Option<State> {
        self.lock().committed.clone()
    }

    /// The timestamp of the last applied write.
    pub(crate) fn last_write(&self) -> Timestamp {
        self.lock().committed.as_ref().map_or(Timestamp::MIN, |state| state.last_write)
    }

    /// The tablet's generation, and the timestamp of the last applied write.
    pub(crate) fn progress(&self) -> Option<(Generation, Timestamp)> {
        let versions = self.lock();
        let state = versions.committed.as_ref()?;
        Some((state.descriptor.generation, state.last_write))
    }

    /// The tablet's generation, if it serves.
    pub(crate) fn serves(&self) -> Option<Generation> {
        let versions = self.lock();
        let state = versions.committed.as_ref()?;
        (!state.retired && state.frozen.is_none()).then_some(state.descriptor.generation)
    }

    /// Refuses what the tablet didn't cover when that view was opened. Who is frozen then has all that
    /// was closed.
    pub(crate) fn check_view(
        &self,
        view: &DataSnapshot,
        range: &KeyRange,
        at: Timestamp,
    ) -> Result<(), TxnError> {
        let Some(bytes) = view.record(&state_record(self.id))? else {
            return Err(TxnError::NoSuchTablet { tablet: self.id });
        };
        let state: State = decode(&bytes)?;
        if state.retired {
            return Err(TxnError::NoSuchTablet { tablet: self.id });
        }
        if !state.descriptor.range.contains_range(range) {
            return Err(state.moved());
        }
        if self.holdings.foreign(&state.descriptor).iter().any(|part| part.overlaps(range)) {
            let reason = "this replica lags behind another one on its node".to_owned();
            return Err(TxnError::Unavailable { tablet: self.id, reason });
        }
        state.check_horizon(at)
    }

    /// Refuses a read of versions that may be gone from any view that was opened before.
    pub(crate) fn check_horizon(&self, at: Timestamp) -> Result<(), TxnError> {
        // As of the batch that is being committed: the view may have it.
        self.lock().next.as_ref().map_or(Ok(()), |state| state.check_horizon(at))
    }

    /// Tells the node that there may be something to see to.
    pub(crate) fn notify(&self) {
        let _ = self.events.send(Event::Changed(self.id));
    }

    /// Refuses what the tablet doesn't serve.
    pub(crate) fn check(&self, range: &KeyRange) -> Result<(), TxnError> {
        match &self.lock().committed {
            Some(state) if state.retired => Err(TxnError::NoSuchTablet { tablet: self.id }),
            Some(state) if state.frozen.is_some() => state.check_frozen(),
            Some(state) if !state.descriptor.range.contains_range(range) => Err(state.moved()),
            Some(_) => Ok(()),
            None => Err(TxnError::NotLeader { tablet: self.id, leader: None }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects old versions.
    fn collect(
        &self,
        state: &mut State,
        horizon: Timestamp,
        range: &KeyRange,
        batch: &mut WriteBatch,
    ) -> Outcome {
        state.check_frozen()?;
        // No version lies above the last write: what is collected below either is the same.
        let horizon = horizon.min(state.last_write);
        state.horizon = state.horizon.max(horizon);
        for own in self.holdings.own(&state.descriptor) {
            batch.collect_garbage(own.intersect(range), horizon);
        }
        Ok(state.last_write)
    }
}

fn record<T: serde::Serialize>(value: &T) -> Vec<u8> {
    encode(value).expect("a record can be encoded")
}

impl StateMachine for TabletMachine {
    fn apply(
        &self,
        _position: Position,
        command: &[u8],
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Bytes {
        // A replica that skipped what another applied would diverge: better that it stops.
        let command: Command = decode(command).expect("a replica understands its log");
        let mut versions = self.lock();
        let States { next, events, .. } = &mut *versions;
        let state = next.as_mut().expect("a log begins behind its group's birth");
        let outcome = match command {
            Command::Write { at, request } => {
                let WriteRequest { reads, schema, mutations, .. } = request;
                let change = Change { at, schema: &schema, mutations: &mutations };
                let outcome =
                    validate(state, &change, &reads, view).expect("a replica can read its data");
                if outcome.is_ok() {
                    let foreign = self.holdings.foreign(&state.descriptor);
                    write(state, at, (schema, mutations), &foreign, batch);
                }
                outcome
            }
            Command::Fence { table, version } => {
                raise(&mut state.fences, table, version);
                Ok(state.last_write)
            }
            Command::Split { key, child, sticky } => split(state, &key, child, sticky).map(|new| {
                let parent = state.descriptor.id;
                // Unless it came here by an image before: then it is ahead of its birth.
                let here = is_stored(view, child).expect("a replica can read its data");
                if new.is_some() {
                    hand_down(parent, (!here).then_some(child), &key, view, batch)
                        .expect("a replica can read its data");
                }
                if let Some(new) = new.filter(|_| !here) {
                    bear(&new, batch).expect("a state can be encoded");
                    events.push(Event::Born { parent, child: Box::new(new.descriptor) });
                }
                events.push(Event::Changed(parent));
                state.last_write
            }),
            Command::Place { .. } | Command::Move { .. } | Command::Prefer { .. } => {
                change_plan(state, command, events)
            }
            Command::Freeze { into, unchanged } => freeze(state, into, unchanged, events),
            Command::Thaw => {
                state.frozen = None;
                Ok(state.last_write)
            }
            Command::Stage { content, part, versions } => {
                if part == 0 {
                    let old = view.records(&stage_records(self.id));
                    for record in old.expect("a replica can read its data") {
                        batch.delete_record(record.expect("a replica can read its data").0);
                    }
                }
                let part = stage_record(self.id, content, part);
                batch.put_record(part, encode(&versions).expect("versions can be encoded"));
                Ok(state.last_write)
            }
            Command::Absorb(absorb) => {
                let outcome =
                    can_absorb(state, &absorb, view).expect("a replica can read its data");
                if outcome.is_ok() {
                    self.absorb(state, absorb, view, batch).expect("a replica can read its data");
                    events.push(Event::Changed(self.id));
                }
                outcome
            }
            Command::Retire => {
                state.retired = true;
                Ok(state.last_write)
            }
            Command::Prepare(prepared) => {
                self.prepare(state, prepared, view, batch).expect("a replica can read its data")
            }
            Command::Finish { txn, commit } => {
                self.finish(state, txn, commit, view, batch).expect("a replica can read its data");
                Ok(state.last_write)
            }
            Command::Decide { decided, schema, mutations } => self
                .decide(state, decided, (schema, mutations), view, batch)
                .expect("a replica can read its data"),
            Command::Collect { horizon, range } => self.collect(state, horizon, &range, batch),
            Command::Forget { txns } => {
                for txn in txns {
                    batch.delete_record(outcome_record(self.id, txn));
                }
                Ok(state.last_write)
            }
        };
        let record = encode(state).expect("a state can be encoded");
        batch.put_record(state_record(self.id), record);
        encode(&outcome).expect("an outcome can be encoded").into()
    }

    fn concerns_others(&self, command: &[u8]) -> bool {
        Command::is_absorb(command)
    }

    fn is_over(&self) -> bool {
        self.holdings.is_over(self.id)
    }

    fn members_changed(&self, members: &Members, batch: &mut WriteBatch) {
        let mut versions = self.lock();
        let States { next, events, .. } = &mut *versions;
        let Some(state) = next.as_mut() else { return };
        state.joint = members.joint;
        if !members.joint {
            let descriptor = &mut state.descriptor;
            descriptor.voters.clone_from(&members.voters);
            descriptor.read_only.clone_from(&members.learners);
            descriptor.generation = descriptor.generation.next();
            let target = state.target.take();
            state.target =
                target.filter(|target| state.joint || !target.is_met_by(&state.descriptor));
            events.push(Event::Changed(self.id));
        }
        batch.put_record(state_record(self.id), encode(state).expect("a state can be encoded"));
    }

    fn committed(&self) {
        let mut versions = self.lock();
        let before = versions.committed.as_ref().map(|state| state.absorbed.len());
        let range = versions.committed.as_ref().map(|state| state.descriptor.range.clone());
        let States { committed, next, .. } = &mut *versions;
        committed.clone_from(next);
        if let Some(state) = &versions.committed
            && before != Some(state.absorbed.len())
        {
            self.over(&state.absorbed);
        }
        if let Some(state) = &versions.committed
            && range.as_ref() != Some(&state.descriptor.range)
        {
            self.holdings.hold(self.id, Some(&state.descriptor));
        }
        for event in std::mem::take(&mut versions.events) {
            if let Event::Born { child, .. } = &event {
                self.holdings.hold(child.id, Some(child));
            }
            // Nobody listens on a node that stops.
            let _ = self.events.send(event);
        }
    }

    fn range(&self, view: &DataSnapshot) -> io::Result<Option<KeyRange>> {
        let record = view.record(&state_record(self.id)).map_err(io::Error::other)?;
        let Some(bytes) = record else { return Ok(None) };
        let state: State = decode(&bytes).map_err(io::Error::other)?;
        Ok(Some(state.descriptor.range))
    }

    fn own(&self, view: &DataSnapshot) -> io::Result<Vec<KeyRange>> {
        let record = view.record(&state_record(self.id)).map_err(io::Error::other)?;
        let Some(bytes) = record else { return Ok(Vec::new()) };
        let state: State = decode(&bytes).map_err(io::Error::other)?;
        Ok(self.holdings.own(&state.descriptor))
    }

    fn records(&self) -> Vec<u8> {
        records(self.id)
    }

    fn offered(&self, offered: &[(Vec<u8>, Vec<u8>)]) -> io::Result<KeyRange> {
        let name = state_record(self.id);
        let state = offered.iter().find(|(found, _)| *found == name);
        let (_, state) = state.ok_or_else(|| io::Error::other("an image without a state"))?;
        let state: State = decode(state).map_err(io::Error::other)?;
        let range = state.descriptor.range;
        let offer = self.holdings.offer(self.id, range.clone(), &state.absorbed);
        offer.map_err(io::Error::other)?;
        Ok(range)
    }

    fn take_over(
        &self,
        offered: &[(Vec<u8>, Vec<u8>)],
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> io::Result<()> {
        let name = state_record(self.id);
        let state = offered.iter().find(|(found, _)| *found == name);
        let (_, state) = state.ok_or_else(|| io::Error::other("an image without a state"))?;
        let state: State = decode(state).map_err(io::Error::other)?;
        self.end_absorbed(&state.absorbed, view, batch).map_err(io::Error::other)
    }

    fn restored(&self, view: &DataSnapshot) -> io::Result<()> {
        let record = view.record(&state_record(self.id)).map_err(io::Error::other)?;
        let bytes = record.ok_or_else(|| io::Error::other("an image without a state"))?;
        let restored: State = decode(&bytes).map_err(io::Error::other)?;
        self.over(&restored.absorbed);
        self.holdings.hold(self.id, Some(&restored.descriptor));
        let mut versions = self.lock();
        versions.committed = Some(restored.clone());
        versions.next = Some(restored);
        let _ = self.events.send(Event::Changed(self.id));
        Ok(())
    }
}
