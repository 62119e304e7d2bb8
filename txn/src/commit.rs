//! Two-phase commit over tablets: what is sent, what is logged, and what a coordinator decides.
//!
//! After Spanner (Corbett et al., OSDI 2012, section 4.2.1). The gateway sends prepare to all
//! participants at once and names the coordinator, one of those that write; they answer it directly.
//!
//! # What is promised
//!
//! * *Atomicity*: the transaction ends in one way everywhere. The coordinator's log decides: the first
//!   entry there about a transaction is its outcome, and every later one is answered with it. Who has
//!   prepared asks until it knows; who asks about a transaction that the coordinator knows nothing of
//!   makes it log that it is aborted, before it is told so.
//! * *The commit timestamp* lies in the interval of every vote. `min` is above everything that the
//!   participant has assigned or promised to readers, and until it knows the outcome it lets nobody read
//!   what is to be written at or above it. `until` is the end of its leader's lease: to there it
//!   promises that the locks, which it has held without a break, keep what was read as it was. Later
//!   leaders write above it. With the outcome it raises its floor to the timestamp.
//! * *Recovery*: what is to be written is in the log of each participant before it votes; its next
//!   leader takes the locks again. Read locks need no log, by `until`.
//!
//! # Caveats
//!
//! * A coordinator decides nothing after `expires`, and remembers outcomes until then and until every
//!   participant knows. A commit request that comes again is answered with the outcome until then, and
//!   refused later.
//! * An abort that nobody asks about is not logged.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_storage::TabletId;
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

use crate::command::Mutation;
use crate::error::TxnError;
use crate::locks::{Hold, Stamp, TxnId};

/// How a commit timestamp is chosen and released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommitProtocol {
    /// Above `TT.now().latest`, released when it has certainly passed: external consistency.
    #[default]
    CommitWait,
    /// From the middle of the coordinator's clock, released at once: serializable.
    TwoPhase,
}

impl CommitProtocol {
    /// `commit_wait` or `two_phase`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CommitWait => "commit_wait",
            Self::TwoPhase => "two_phase",
        }
    }

    /// The protocol of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::CommitWait, Self::TwoPhase].into_iter().find(|protocol| protocol.name() == name)
    }
}

/// Where a commit spends its time, at the leader that coordinates it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// Waiting for locks there.
    pub locks: Duration,
    /// Waiting for the votes of the others.
    pub prepare: Duration,
    /// Until the entry that commits it was applied.
    pub replicate: Duration,
    /// What was left of the commit wait then, and of the wait for earlier commits to be visible.
    pub wait: Duration,
}

impl Phases {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.locks + self.prepare + self.replicate + self.wait
    }
}

/// What became of a transaction that was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitReport {
    /// The commit timestamp; [`Timestamp::MIN`] if it wrote nothing.
    pub at: Timestamp,
    /// ε at the gateway.
    pub epsilon: Duration,
    /// The tablets concerned.
    pub participants: usize,
    /// At the gateway, and on the way to the leader: half of what is left of the whole time.
    pub gateway: Duration,
    /// At the leader.
    pub phases: Phases,
    /// On the way back: the other half.
    pub notify: Duration,
}

/// The answer of a leader that has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    pub(crate) at: Timestamp,
    pub(crate) phases: Phases,
}

/// A transaction's part in one tablet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) tablet: TabletId,
    pub(crate) txn: Stamp,
    /// The locks that it has here already; without them it is over.
    pub(crate) held: Option<Hold>,
    /// The tables concerned, each with the schema version that was planned under.
    pub(crate) schema: Vec<(u64, u64)>,
    /// The changes, at most one per key.
    pub(crate) mutations: Vec<Mutation>,
}

/// Where the outcome of a transaction is to be found: in the tablet that holds this key.
pub(crate) type Anchor = Vec<u8>;

/// Asks a participant to prepare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepare {
    pub(crate) part: Part,
    pub(crate) coordinator: TabletId,
    pub(crate) anchor: Anchor,
}

/// Asks the coordinator to commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commit {
    pub(crate) part: Part,
    pub(crate) anchor: Anchor,
    /// The others.
    pub(crate) participants: Vec<TabletId>,
    pub(crate) protocol: CommitProtocol,
    /// The commit timestamp lies above this.
    pub(crate) after: Timestamp,
    /// Nothing is decided later.
    pub(crate) expires: Timestamp,
}

/// What a participant can agree to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub(crate) min: Timestamp,
    /// Below this.
    pub(crate) until: Timestamp,
}

/// A participant's answer.
pub(crate) type Vote = Result<Interval, TxnError>;

/// The outcome of a transaction, as its coordinator knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    Pending,
    Aborted,
    Committed(Timestamp),
}

/// What a participant that writes remembers in its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepared {
    pub(crate) txn: Stamp,
    /// See [`Interval::min`].
    pub(crate) min: Timestamp,
    pub(crate) coordinator: TabletId,
    pub(crate) anchor: Anchor,
    pub(crate) schema: Vec<(u64, u64)>,
    pub(crate) mutations: Vec<Mutation>,
}

/// What a coordinator remembers in its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decided {
    pub(crate) txn: TxnId,
    pub(crate) anchor: Anchor,
    /// `None`: it is aborted.
    pub(crate) commit: Option<Timestamp>,
    /// Who has to know.
    pub(crate) participants: Vec<TabletId>,
    pub(crate) protocol: CommitProtocol,
    pub(crate) expires: Timestamp,
}

/// The votes of one transaction, where it is coordinated.
#[derive(Debug, Default)]
pub(crate) struct Ballot {
    votes: BTreeMap<TabletId, Vote>,
    /// Somebody older waits for it.
    pressed: bool,
}

/// What comes of the votes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tally {
    /// Some are missing.
    Open,
    /// All can agree to a timestamp in this interval.
    Agreed(Interval),
    /// It can't be committed.
    Refused(TxnError),
}

impl Ballot {
    /// A participant has voted; its first word counts.
    pub(crate) fn vote(&mut self, by: TabletId, vote: Vote) {
        self.votes.entry(by).or_insert(vote);
    }

    /// An older transaction waits for what this one has prepared.
    pub(crate) fn press(&mut self) {
        self.pressed = true;
    }

    /// Why it can't be committed while the coordinator's own locks are not held, if so.
    pub(crate) fn refused(&self) -> Option<TxnError> {
        let refusal = self.votes.values().find_map(|vote| vote.as_ref().err().cloned());
        refusal.or(self.pressed.then_some(TxnError::Conflict))
    }

    /// What comes of it, with these participants.
    pub(crate) fn tally(&self, participants: &[TabletId]) -> Tally {
        let mut agreed = Interval { min: Timestamp::MIN, until: Timestamp::MAX };
        let mut missing = false;
        for participant in participants {
            match self.votes.get(participant) {
                Some(Ok(vote)) => {
                    agreed.min = agreed.min.max(vote.min);
                    agreed.until = agreed.until.min(vote.until);
                }
                Some(Err(error)) => return Tally::Refused(error.clone()),
                None => missing = true,
            }
        }
        match missing {
            false => Tally::Agreed(agreed),
            true if self.pressed => Tally::Refused(TxnError::Conflict),
            true => Tally::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [TabletId; 2] = [TabletId::new(3), TabletId::new(4)];

    fn interval(min: u64, until: u64) -> Interval {
        Interval { min: Timestamp::from_nanos(min), until: Timestamp::from_nanos(until) }
    }

    #[test]
    fn all_agree_to_what_lies_in_every_vote() {
        let mut ballot = Ballot::default();
        ballot.vote(ALL[0], Ok(interval(10, 90)));
        assert_eq!(ballot.tally(&ALL), Tally::Open);
        ballot.vote(ALL[1], Ok(interval(20, 70)));
        ballot.vote(ALL[1], Err(TxnError::Conflict));
        assert_eq!(ballot.tally(&ALL), Tally::Agreed(interval(20, 70)), "the first word counts");
        assert_eq!(
            ballot.tally(&[]),
            Tally::Agreed(Interval { min: Timestamp::MIN, until: Timestamp::MAX })
        );
    }

    #[test]
    fn one_refusal_is_enough() {
        let mut ballot = Ballot::default();
        ballot.vote(ALL[1], Err(TxnError::Conflict));
        assert_eq!(ballot.tally(&ALL), Tally::Refused(TxnError::Conflict));
    }

    #[test]
    fn who_is_pressed_is_aborted_unless_all_votes_are_in() {
        let mut ballot = Ballot::default();
        assert_eq!(ballot.refused(), None);
        ballot.press();
        ballot.vote(ALL[0], Ok(interval(10, 90)));
        assert_eq!(ballot.refused(), Some(TxnError::Conflict), "the coordinator has no locks yet");
        assert_eq!(ballot.tally(&ALL), Tally::Refused(TxnError::Conflict));
        ballot.vote(ALL[1], Ok(interval(20, 70)));
        assert_eq!(ballot.tally(&ALL), Tally::Agreed(interval(20, 70)));
    }
}
