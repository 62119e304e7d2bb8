//! The replicated state machine of a tablet.
//!
//! # What is promised
//!
//! A write is applied whole or not at all, and the same way on every replica: whether it is refused
//! depends only on the request and on what was applied before. It is refused when the tablet was
//! retired or no longer covers what it touches, when a schema version is older than the table's
//! fence, when its timestamp isn't above the last one (a leader that was deposed meanwhile), when
//! anything that it was computed from has changed, or when a key to be inserted exists. This is
//! optimistic concurrency control with backward validation (Kung and Robinson, 1981), in one tablet;
//! locks take its place when transactions span tablets.
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
//! A write that is applied raises the fences of the tables that it names to the versions that it
//! names: a tablet learns of a newer schema from the first write that was planned under it, and
//! from then on refuses what was planned under an older one.
//!
//! Old versions are collected piece by piece, each by an entry of the log. From the first piece on,
//! reads below the horizon are refused in all of the tablet, and so are writes computed from ranges
//! that were read below it: what was deleted since then may have left no trace.
//!
//! # Caveats
//!
//! A merge copies the right tablet's rows through a log: it is meant for small ones.
//!
//! Validating a range costs as much as reading it did, on every replica.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_replication::{Generation, Members, Position, StateMachine, death};
use meridian_storage::{DataSnapshot, KeyRange, StorageError, TabletId, WriteBatch};
use meridian_truetime::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

use super::state::{
    Event, Frozen, State, Unchanged, bear, content_records, directory_begins, is_stored,
    outcome_record, outcome_records, prepared_record, prepared_records, records, stage_record,
    stage_records, state_record,
};
use crate::command::{
    Absorb, Command, Mutation, Outcome, ReadSet, Versions, WriteRequest, decode, encode,
};
use crate::commit::{Decided, Prepared};
use crate::error::TxnError;
use crate::holdings::Holdings;
use crate::locks::TxnId;

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
}

/// What is to be validated and written.
struct Change<'c> {
    at: Timestamp,
    schema: &'c [(u64, u64)],
    mutations: &'c [Mutation],
}

/// Whether a change may be made in `state`, if it was computed from these reads; an I/O error is
/// neither.
fn validate(
    state: &State,
    change: &Change<'_>,
    reads: &ReadSet,
    view: &DataSnapshot,
) -> Result<Outcome, StorageError> {
    let range = &state.descriptor.range;
    let Change { at, schema, mutations } = *change;
    if state.retired {
        return Ok(Err(TxnError::NoSuchTablet { tablet: state.descriptor.id }));
    }
    let covered = mutations.iter().all(|m| range.contains(m.key()))
        && reads.keys.iter().all(|(key, _)| range.contains(key))
        && reads.ranges.iter().all(|read| range.contains_range(read));
    if !covered {
        return Ok(Err(state.moved()));
    }
    if let Err(frozen) = state.check_frozen() {
        return Ok(Err(frozen));
    }
    for (table, version) in schema {
        if state.fences.get(table).is_some_and(|oldest| version < oldest) {
            return Ok(Err(TxnError::SchemaChanged { table: *table }));
        }
    }
    if at <= state.last_write {
        return Ok(Err(TxnError::Conflict));
    }
    if !reads.ranges.is_empty() && reads.at < state.horizon {
        return Ok(Err(TxnError::Conflict));
    }
    for (key, seen) in &reads.keys {
        let current = view.get(key, Timestamp::MAX)?.filter(|version| version.value.is_some());
        if current.map(|version| version.ts) != *seen {
            return Ok(Err(TxnError::Conflict));
        }
    }
    for range in &reads.ranges {
        if view.changed_since(range, reads.at)? {
            return Ok(Err(TxnError::Conflict));
        }
    }
    for mutation in mutations {
        if let Mutation::Insert { key, .. } = mutation {
            let current = view.get(key, Timestamp::MAX)?;
            if current.is_some_and(|version| version.value.is_some()) {
                return Ok(Err(TxnError::DuplicateKey { key: key.clone() }));
            }
        }
    }
    Ok(Ok(at))
}

/// Makes a change, but for keys that are another replica's.
fn write(
    state: &mut State,
    at: Timestamp,
    (schema, mutations): (Vec<(u64, u64)>, Vec<Mutation>),
    foreign: &[KeyRange],
    batch: &mut WriteBatch,
) {
    let own = |m: &Mutation| !foreign.iter().any(|part| part.contains(m.key()));
    for mutation in mutations.into_iter().filter(own) {
        match mutation {
            Mutation::Insert { key, value } | Mutation::Put { key, value } => {
                batch.put(key, at, Some(value));
            }
            Mutation::Delete { key } => batch.put(key, at, None),
        }
    }
    for (table, version) in schema {
        raise(&mut state.fences, table, version);
    }
    state.last_write = at.max(state.last_write);
}

/// What a split makes of a state: the new tablet's, and the rest in `state`. `None` when the key is
/// where the tablet begins already.
fn split(
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
fn can_absorb(
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
    fn absorb(
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
    fn end_absorbed(
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
    fn over(&self, absorbed: &BTreeSet<TabletId>) {
        let here: Vec<TabletId> =
            self.holdings.here(absorbed).into_iter().map(|(tablet, _)| tablet).collect();
        self.holdings.end(&here);
        for tablet in here {
            let _ = self.events.send(Event::Over(tablet));
        }
    }
}

fn record<T: serde::Serialize>(value: &T) -> Vec<u8> {
    encode(value).expect("a record can be encoded")
}

/// The outcomes of transactions whose anchors are the new tablet's are remembered there from here on,
/// unless it is on this node already.
fn hand_down(
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

/// The records of a tablet whose names begin with `prefix`.
fn decoded<T: serde::de::DeserializeOwned>(
    prefix: &[u8],
    view: &DataSnapshot,
) -> Result<Vec<T>, TxnError> {
    view.records(prefix)?.map(|record| decode(&record?.1)).collect()
}

impl TabletMachine {
    /// Remembers what a transaction is to write, if it may; the timestamp that it votes with.
    fn prepare(
        &self,
        state: &mut State,
        prepared: Prepared,
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<Outcome, StorageError> {
        let name = prepared_record(self.id, prepared.txn.id);
        if let Some(bytes) = view.record(&name)? {
            let already: Prepared = decode(&bytes).expect("a replica understands its records");
            return Ok(Ok(already.min));
        }
        let Prepared { min, schema, mutations, .. } = &prepared;
        let change = Change { at: *min, schema, mutations };
        let outcome = validate(state, &change, &ReadSet::default(), view)?;
        if outcome.is_ok() {
            batch.put_record(name, record(&prepared));
            state.prepared += 1;
        }
        Ok(outcome)
    }

    /// The outcome of a transaction that was prepared here; it may be known already.
    fn finish(
        &self,
        state: &mut State,
        txn: TxnId,
        commit: Option<Timestamp>,
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<(), StorageError> {
        let name = prepared_record(self.id, txn);
        let Some(bytes) = view.record(&name)? else { return Ok(()) };
        let Prepared { schema, mutations, .. } =
            decode(&bytes).expect("a replica understands its records");
        if let Some(at) = commit {
            let foreign = self.holdings.foreign(&state.descriptor);
            write(state, at, (schema, mutations), &foreign, batch);
        }
        batch.delete_record(name);
        state.prepared -= 1;
        Ok(())
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

    /// The outcome of a transaction: the first one that was decided.
    fn decide(
        &self,
        state: &mut State,
        mut decided: Decided,
        (schema, mutations): (Vec<(u64, u64)>, Vec<Mutation>),
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Result<Outcome, StorageError> {
        let name = outcome_record(self.id, decided.txn);
        if let Some(bytes) = view.record(&name)? {
            let first: Decided = decode(&bytes).expect("a replica understands its records");
            return Ok(first.commit.ok_or(TxnError::Conflict));
        }
        let covered = state.descriptor.range.contains(&decided.anchor);
        let outcome = match decided.commit {
            _ if !covered || state.retired => return Ok(Err(state.moved())),
            _ if state.frozen.is_some() => {
                return Ok(state.check_frozen().map(|()| state.last_write));
            }
            None => Err(TxnError::Conflict),
            Some(at) => {
                let change = Change { at, schema: &schema, mutations: &mutations };
                validate(state, &change, &ReadSet::default(), view)?
            }
        };
        match &outcome {
            Ok(at) => {
                let foreign = self.holdings.foreign(&state.descriptor);
                write(state, *at, (schema, mutations), &foreign, batch);
            }
            Err(_) => decided.commit = None,
        }
        batch.put_record(name, record(&decided));
        Ok(outcome)
    }

    /// What is prepared here, as of the last applied command.
    pub(crate) fn prepared(&self, view: &DataSnapshot) -> Result<Vec<Prepared>, TxnError> {
        decoded(&prepared_records(self.id), view)
    }

    /// The outcomes that are remembered here.
    pub(crate) fn outcomes(&self, view: &DataSnapshot) -> Result<Vec<Decided>, TxnError> {
        decoded(&outcome_records(self.id), view)
    }

    /// The outcome of a transaction, if it is remembered here.
    pub(crate) fn outcome(
        &self,
        txn: TxnId,
        view: &DataSnapshot,
    ) -> Result<Option<Decided>, TxnError> {
        let record = view.record(&outcome_record(self.id, txn))?;
        record.map(|bytes| decode(&bytes)).transpose()
    }
}

fn raise(fences: &mut BTreeMap<u64, u64>, table: u64, version: u64) {
    let oldest = fences.entry(table).or_default();
    *oldest = version.max(*oldest);
}

/// Changes where the replicas should be, or who should lead.
fn change_plan(state: &mut State, command: Command, events: &mut Vec<Event>) -> Outcome {
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
fn freeze(
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
