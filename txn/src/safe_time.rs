//! Safe time: up to which timestamp a replica, the leader or not, can serve reads by itself
//! (Corbett et al., *Spanner*, OSDI 2012, sections 4.1.3 and 4.2.4).
//!
//! # Closed timestamps
//!
//! A leader *closes* a timestamp t for its tablet: no write that isn't applied there yet will ever get
//! a timestamp at or below t. Beside t it names the last entry that it has applied, i:
//!
//! > Whoever has applied the tablet's log through i has every version at or below t.
//!
//! So a replica's safe time is the highest t of which it was told with an i that it has reached. In the
//! paper's words `t_paxos_safe` is what i says, and `t_tm_safe` is why t lies where it does.
//!
//! ```text
//!   log of the leader      ── w1 ── w2 ── p ── w3 ── w4 ──▶     p: prepared, at 45 or above
//!   timestamps                10    20    45   50    60
//!   applied                            i ─┘
//!   may be closed now         up to 44: below p, below w3 and w4, and not above the clock
//! ```
//!
//! For t the leader takes (`Tablet::close`), at one moment,
//!
//! * `TT.now().earliest`, so that t is certainly past and no later commit is put off by it: commits get
//!   timestamps at or above the middle of the clock's interval;
//! * less than each timestamp that it has assigned and whose write isn't applied yet (`Oracle::close`),
//!   and less than the vote of each transaction that is in doubt: it will commit at or above that;
//! * and only within its lease (`Replica::take`): it promises t as it does to a reader.
//!
//! After that it looks how far it has applied. What it assigns or votes for from then on is above t, as
//! is all that later leaders do, because they begin above the end of its lease. Everything else at or
//! below t was applied by then. So the sentence is true for ever, whoever leads later and whether or
//! not the replica was there at the time: the entry at i is committed, and nobody has another.
//!
//! Hence a closed timestamp carries no term: i is what was *applied*, not the end of the leader's log,
//! of which a later leader may overwrite a part. Nor does it carry the tablet's generation:
//!
//! * *Split.* The leader promises t before it looks at i. Either it had not applied the split when it
//!   promised; then the new tablet, which inherits all that was promised before (and taken within the
//!   lease), assigns nothing at or below t, and whoever hasn't applied the split may serve all of the
//!   old range. Or it had; then i is behind the split. The new tablet begins without closed timestamps.
//! * *Merge.* The left tablet takes the right one's rows in with an entry whose timestamp, a, lies above
//!   all that was assigned or promised in either. The right one was frozen before: its leader doesn't
//!   close while it is (`TabletMachine::serves`). So nothing is written at or below a to the keys that
//!   the left one gains, neither before nor after; and no t at or above a is closed before that entry
//!   is applied. (A right one that closed on while it is frozen could pass a, and then the left one's
//!   writes.)
//! * The right one's replicas, wherever there are some still, may serve what was closed there until
//!   they end: their rows go in the same batch as the record of their state. A read finds the range,
//!   the rows and the horizon in one view of the data.
//!
//! # How nodes tell each other
//!
//! Each node tells each other node, every [`INTERVAL`], one timestamp and which of the tablets that it
//! leads, and that have a replica there, it has closed up to that. Only changes of that set are sent
//! ([`Sender`], [`Receiver`]): a tablet that nobody writes to costs nothing in the message. One that
//! is busy comes with a timestamp of its own. Messages of a *session* are numbered, and begin with the
//! whole set. When one isn't acknowledged, the next session begins. What was said before stays true.
//!
//! # Caveats
//!
//! * All of it rests on the clocks' bounds, because leases do: outside them a write may land at or
//!   below what was closed.
//! * The system tablet's timestamps aren't closed, so that a cluster without other tablets is silent.
//!   Its leader serves reads of it at any timestamp.
//! * A transaction that stays in doubt holds back the safe time of its tablets.
//! * Safe time isn't durable: a replica that starts learns of it with the next message.

pub(crate) mod drive;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_storage::{NodeId, TabletId};
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

/// How often timestamps are closed. With this, and one way between nodes, replicas lag; one lost
/// message adds another.
pub(crate) const INTERVAL: Duration = Duration::from_millis(300);

/// Whoever has applied a tablet's log through `index` has every version at or below `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closed {
    pub(crate) at: Timestamp,
    pub(crate) index: u64,
}

/// What a node says to another of the tablets that it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closing {
    /// Never 0.
    session: u64,
    /// Of the message in its session. With the first one, number 0, there is no tablet in the set.
    number: u64,
    /// Up to here, every tablet in the set is closed, with its index.
    at: Timestamp,
    /// No longer in the set.
    removed: Vec<TabletId>,
    /// In the set from now on, or with another index.
    added: Vec<(TabletId, u64)>,
    /// Not in the set.
    own: Vec<(TabletId, Closed)>,
}

/// What a node has said to another.
#[derive(Debug)]
pub(crate) struct Sender {
    session: u64,
    /// Of the next message.
    number: u64,
    set: BTreeMap<TabletId, u64>,
    own: BTreeMap<TabletId, Closed>,
}

impl Sender {
    /// Has said nothing. A node that starts anew begins with another session.
    pub(crate) fn new(session: u64) -> Self {
        Self { session: session.max(1), number: 0, set: BTreeMap::new(), own: BTreeMap::new() }
    }

    /// What to say next, if there is anything: the tablets in `set` are closed up to `at`, the others
    /// each for itself.
    pub(crate) fn next(
        &mut self,
        at: Timestamp,
        set: BTreeMap<TabletId, u64>,
        own: BTreeMap<TabletId, Closed>,
    ) -> Option<Closing> {
        if set.is_empty() && own.is_empty() && self.set.is_empty() {
            return None;
        }
        let before = |tablet: &TabletId| self.set.get(tablet);
        let added = set.iter().filter(|(tablet, index)| before(tablet) != Some(index));
        let added = added.map(|(tablet, index)| (*tablet, *index)).collect();
        let removed = self.set.keys().filter(|tablet| !set.contains_key(tablet)).copied().collect();
        let news = own.iter().filter(|(tablet, closed)| self.own.get(tablet) != Some(closed));
        let news = news.map(|(tablet, closed)| (*tablet, *closed)).collect();
        let Self { session, number, .. } = *self;
        self.number += 1;
        (self.set, self.own) = (set, own);
        Some(Closing { session, number, at, removed, added, own: news })
    }

    /// A message of that session was not acknowledged: another one begins.
    pub(crate) fn failed(&mut self, session: u64) {
        if self.session == session {
            *self = Self::new(session.wrapping_add(1));
        }
    }
}

impl Closing {
    pub(crate) fn session(&self) -> u64 {
        self.session
    }
}

/// What is known of one tablet beside what is in sessions.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The replica has come so far.
    reached: Option<Closed>,
    /// It hadn't when it heard of this. What comes meanwhile is left out: one that is always behind
    /// would never reach the last.
    ahead: Option<Closed>,
}

impl Known {
    fn note(&mut self, closed: Closed, applied: u64) {
        let (ahead, reached) = (self.ahead.take_if(|a| a.index <= applied), self.reached);
        let news = Some(closed).filter(|closed| closed.index <= applied);
        let reached = [reached, ahead, news].into_iter().flatten();
        self.reached = reached.max_by_key(|closed| closed.at);
        if closed.index > applied
            && self.ahead.is_none_or(|ahead| closed.index <= ahead.index && closed.at > ahead.at)
        {
            self.ahead = Some(closed);
        }
    }

    fn safe(&self, applied: u64) -> Option<Timestamp> {
        let usable = [self.reached, self.ahead].into_iter().flatten();
        usable.filter(|closed| closed.index <= applied).map(|closed| closed.at).max()
    }
}

#[derive(Debug)]
struct Session {
    id: u64,
    /// The number of the next message.
    next: u64,
    at: Timestamp,
    set: BTreeMap<TabletId, u64>,
}

/// What a node has heard from others, and from itself.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    sessions: BTreeMap<NodeId, Session>,
    known: BTreeMap<TabletId, Known>,
}

impl Receiver {
    /// Takes in a message; false if one before it is missing. `applied` says how far this node's
    /// replica of a tablet is.
    pub(crate) fn receive(
        &mut self,
        from: NodeId,
        closing: Closing,
        applied: impl Fn(TabletId) -> u64,
    ) -> bool {
        let known = &mut self.known;
        let mut note = |tablet: TabletId, closed: Closed| {
            known.entry(tablet).or_default().note(closed, applied(tablet));
        };
        let session = self.sessions.entry(from).or_insert_with(|| Session {
            id: 0,
            next: 0,
            at: Timestamp::MIN,
            set: BTreeMap::new(),
        });
        let Closing { session: id, number, at, removed, added, own } = closing;
        if number == 0 && id != session.id {
            for (tablet, index) in std::mem::take(&mut session.set) {
                note(tablet, Closed { at: session.at, index });
            }
            (session.id, session.next) = (id, 0);
        }
        if (id, number) != (session.id, session.next) {
            return false;
        }
        session.next += 1;
        for tablet in removed {
            if let Some(index) = session.set.remove(&tablet) {
                note(tablet, Closed { at: session.at, index });
            }
        }
        for (tablet, index) in added {
            if let Some(before) = session.set.insert(tablet, index) {
                note(tablet, Closed { at: session.at, index: before });
            }
        }
        session.at = at;
        for (tablet, closed) in own {
            note(tablet, closed);
        }
        true
    }

    /// The safe time of a replica that has applied its log through `applied`.
    pub(crate) fn safe(&self, tablet: TabletId, applied: u64) -> Option<Timestamp> {
        let in_session = |session: &Session| {
            session.set.get(&tablet).filter(|index| **index <= applied).map(|_| session.at)
        };
        let known = self.known.get(&tablet).and_then(|known| known.safe(applied));
        self.sessions.values().filter_map(in_session).chain(known).max()
    }

    /// Forgets what it knows of tablets that have no replica here.
    pub(crate) fn retain(&mut self, is_here: impl Fn(TabletId) -> bool) {
        self.known.retain(|tablet, _| is_here(*tablet));
    }
}
