//! Leases in TrueTime: no two nodes may act as leaders of one group at one time, whatever Raft's
//! timers say.
//!
//! After Spanner (Corbett et al., OSDI 2012, section 4.1.1 and appendix A): who votes for a leader
//! promises to help no other for a while, and a leader acts only while a majority's promises hold.
//! Three things differ. A promise ends at a TrueTime timestamp that the leader names, instead of a
//! while after it was received: the leader acts while that is certainly not past. Nodes promise each
//! other, for all groups at once (as CockroachDB's stores do): a promise to a node binds in each
//! group whose leader there has vouched for itself under the same epoch (see `raft::liveness`). And a
//! voter isn't kept from voting by its promise: its vote says how long it holds, and the new leader
//! acts only after that, with timestamps above it. (`YugabyteDB`'s leases work so.) Elections,
//! then, are Raft's, and may end before the lease does.
//!
//! # What is promised
//!
//! * *Disjoint leases*: every timestamp that a leader takes within its lease lies below every one
//!   that a later leader takes, and a leader acts only when no earlier one does. For the voters that
//!   made the earlier leader's lease and those that elected the later one have one in common. When
//!   that voted it was bound to the earlier leader, or had been before, and it parted: it promises
//!   nothing more for that epoch, and its vote names the end of what it had promised.
//! * A leader that hands over ceases to act first and says up to where it has taken timestamps. Who
//!   hears that is released: its vote names that timestamp, and the new leader need not wait.
//! * A node that restarts has forgotten what it promised, and who had vouched. Nothing that it can have
//!   promised ends later than a lease's length after it began again; so long it names that.
//! * While voters are replaced, a lease is one of the old and of the new ones (`raft::replica`).
//!
//! # Caveats
//!
//! * All of it rests on the clocks' bounds. Outside them leases overlap.
//! * A voter that has once parted from a node's epoch promises it nothing more: the leader's groups
//!   may have gone on without it. The node begins another epoch, and vouches anew in all its groups,
//!   which have no lease for a round trip.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_storage::NodeId;
use meridian_truetime::{Timestamp, TtInterval};
use serde::{Deserialize, Serialize};

use super::liveness::Epoch;

#[derive(Clone, Copy, Debug)]
struct Promise {
    until: Timestamp,
    /// A replica here has helped somebody else since.
    ended: bool,
}

/// What a node has promised to others, and to itself.
#[derive(Clone, Debug)]
pub struct Promises {
    /// No promise is longer.
    length: Duration,
    /// Whatever was promised before the node began ends here at the latest.
    before: Timestamp,
    to: BTreeMap<(NodeId, Epoch), Promise>,
}

impl Promises {
    /// Of a node that begins for the first time.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { length, before: Timestamp::MIN, to: BTreeMap::new() }
    }

    /// Of a node that begins again.
    #[must_use]
    pub fn after_restart(now: TtInterval, length: Duration) -> Self {
        Self { before: now.latest.plus(length), ..Self::new(length) }
    }

    /// Promises to help nobody but the leaders of `node` until then, where they have vouched under
    /// that epoch: no longer than a lease's length. The end of the promise; `None` if the epoch is
    /// over here.
    pub fn promise(
        &mut self,
        now: TtInterval,
        node: NodeId,
        epoch: Epoch,
        until: Timestamp,
    ) -> Option<Timestamp> {
        // What is promised ends within the length from the present moment, however this clock is
        // off: after a restart that is all that is known.
        let until = until.min(now.earliest.plus(self.length));
        let promise = self.to.entry((node, epoch)).or_insert(Promise { until, ended: false });
        if promise.ended {
            return None;
        }
        promise.until = promise.until.max(until);
        Some(promise.until)
    }

    /// Promises nothing more for that epoch of a node; the end of what was promised.
    fn end(&mut self, node: NodeId, epoch: Epoch) -> Timestamp {
        // One that comes later must not count for what is decided now.
        let none = Promise { until: Timestamp::MIN, ended: true };
        let promise = self.to.entry((node, epoch)).or_insert(none);
        promise.ended = true;
        promise.until
    }
}

/// What a later leader must know of the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parting {
    /// One of them may act until this is certainly past.
    pub until: Timestamp,
    /// They may have taken timestamps up to here.
    pub taken: Timestamp,
}

impl Default for Parting {
    fn default() -> Self {
        Self::NONE
    }
}

impl Parting {
    /// There was none.
    pub const NONE: Self = Self { until: Timestamp::MIN, taken: Timestamp::MIN };

    /// One that had a lease up to there.
    fn promised(until: Timestamp) -> Self {
        Self { until, taken: until }
    }

    /// What both say.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { until: self.until.max(other.until), taken: self.taken.max(other.taken) }
    }
}

/// Whom a voter's replica of a group helps, and what is left of those that it has helped before.
#[derive(Clone, Copy, Debug)]
pub struct Bond {
    to: Option<(NodeId, Epoch)>,
    /// The term that it leads in the group.
    term: u64,
    parting: Parting,
}

impl Default for Bond {
    fn default() -> Self {
        Self { to: None, term: 0, parting: Parting::NONE }
    }
}

impl Bond {
    /// Whom the replica helps.
    #[must_use]
    pub fn to(&self) -> Option<(NodeId, Epoch)> {
        self.to
    }

    /// The leader of that term, on that node, has vouched under that epoch.
    pub fn bind(&mut self, promises: &mut Promises, node: NodeId, epoch: Epoch, term: u64) {
        if self.to != Some((node, epoch)) {
            self.end(promises);
            self.to = Some((node, epoch));
        }
        self.term = term;
    }

    /// The replica votes for a candidate that is in that epoch, if it is known in which; what the
    /// candidate has to know. What it has done itself, it knows.
    pub fn part(
        &mut self,
        promises: &mut Promises,
        candidate: NodeId,
        epoch: Option<Epoch>,
    ) -> Parting {
        let itself = epoch.map(|epoch| (candidate, epoch));
        if self.to.is_some() && self.to != itself {
            self.end(promises);
        }
        self.parting.and(Parting::promised(promises.before))
    }

    /// The leader of that term, on that node, has ceased to act, and has taken timestamps up to there.
    pub fn release(&mut self, node: NodeId, term: u64, taken: Timestamp) {
        if self.term == term && self.to.is_some_and(|(to, _)| to == node) {
            self.release_own(taken);
        }
    }

    /// It was this node's own leader, which has ceased.
    pub fn release_own(&mut self, taken: Timestamp) {
        self.to = None;
        self.parting = self.parting.and(Parting { until: Timestamp::MIN, taken });
    }

    fn end(&mut self, promises: &mut Promises) {
        if let Some((node, epoch)) = self.to.take() {
            self.parting = self.parting.and(Parting::promised(promises.end(node, epoch)));
        }
    }
}

/// What others, and the node itself, have promised to a node.
#[derive(Clone, Debug)]
pub struct Promised {
    epoch: Epoch,
    by: BTreeMap<NodeId, Timestamp>,
}

impl Promised {
    /// Nothing yet, in this epoch.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, by: BTreeMap::new() }
    }

    /// A node has promised, in that epoch.
    pub fn promised(&mut self, by: NodeId, epoch: Epoch, until: Timestamp) {
        if epoch == self.epoch {
            let known = self.by.entry(by).or_insert(until);
            *known = until.max(*known);
        }
    }

    /// The end of the lease of a group with these voters, as far as `bound` says of each that it
    /// has heard its leader vouch in this epoch: a majority has promised until there. `None`: there
    /// is no lease.
    pub fn lease(&self, voters: &[NodeId], bound: impl Fn(NodeId) -> bool) -> Option<Timestamp> {
        let promised = voters.iter().filter(|voter| bound(**voter));
        let mut ends: Vec<Timestamp> =
            promised.filter_map(|voter| self.by.get(voter).copied()).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(voters.len() / 2).copied()
    }
}

/// What a leader has done with its leases.
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    term: u64,
    open: bool,
    taken: Timestamp,
    /// How often it has ceased.
    ceased: u64,
}

impl Default for Tenure {
    fn default() -> Self {
        Self { term: 0, open: false, taken: Timestamp::MIN, ceased: 0 }
    }
}

impl Tenure {
    /// The leader of a term begins to act, with timestamps above `above`; above what.
    pub fn begin(&mut self, term: u64, above: Timestamp) -> Timestamp {
        if term > self.term {
            *self = Self { term, open: true, taken: self.taken.max(above), ceased: self.ceased };
        }
        self.taken
    }

    /// Takes a timestamp, or promises that there will be none up to it, while the lease of that term
    /// lasts until `end`. False if it doesn't certainly last, or not until there.
    pub fn take(&mut self, now: TtInterval, term: u64, at: Timestamp, end: Timestamp) -> bool {
        let may = self.open && self.term == term && now.latest < end && at < end;
        if may {
            self.taken = self.taken.max(at);
        }
        may
    }

    /// Has taken what another has: the one of the tablet that this one's was split from.
    pub fn inherit(&mut self, parent: &Self) {
        self.taken = self.taken.max(parent.taken);
    }

    /// The term of the last leader here that has begun.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Up to where timestamps were taken.
    #[must_use]
    pub fn taken(&self) -> Timestamp {
        self.taken
    }

    /// The leader acts no more; up to where it has taken timestamps.
    pub fn cease(&mut self) -> Timestamp {
        self.open = false;
        self.ceased += 1;
        self.taken
    }

    /// How often it has ceased to act.
    #[must_use]
    pub fn ceased(&self) -> u64 {
        self.ceased
    }

    /// The leader of that term had ceased for a candidate that it then didn't vote for: it acts again,
    /// unless it has ceased once more since. Whether it does.
    pub fn resume(&mut self, term: u64, ceased: u64) -> bool {
        let may = self.term == term && self.ceased == ceased;
        self.open |= may;
        may
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    const LENGTH: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    fn now(earliest: u64, latest: u64) -> TtInterval {
        TtInterval { earliest: at(earliest), latest: at(latest) }
    }

    fn node(number: u64) -> NodeId {
        NodeId::new(number)
    }

    fn parting(until: u64, taken: u64) -> Parting {
        let at = |millis| if millis == 0 { Timestamp::MIN } else { at(millis) };
        Parting { until: at(until), taken: at(taken) }
    }

    #[test]
    fn who_was_not_voted_for_is_no_reason_to_cease() {
        let mut tenure = Tenure::default();
        tenure.begin(4, at(100));
        assert!(tenure.take(now(110, 120), 4, at(130), at(200)));
        let (taken, ceased) = (tenure.cease(), tenure.ceased());
        assert_eq!(taken, at(130));
        assert!(!tenure.take(now(110, 120), 4, at(131), at(200)));
        assert!(tenure.resume(4, ceased) && tenure.take(now(110, 120), 4, at(131), at(200)));
        // Another candidate has asked meanwhile.
        tenure.cease();
        assert!(!tenure.resume(4, ceased) && !tenure.take(now(110, 120), 4, at(132), at(200)));
        let ceased = tenure.ceased();
        tenure.begin(5, at(140));
        assert!(!tenure.resume(4, ceased), "another term");
    }

    #[test]
    fn a_vote_names_the_end_of_what_was_promised_and_nothing_more_is() {
        let (mut promises, mut bond) = (Promises::new(LENGTH), Bond::default());
        assert_eq!(promises.promise(now(200, 210), node(1), 7, at(290)), Some(at(290)));
        assert_eq!(bond.part(&mut promises, node(2), Some(3)), Parting::NONE, "bound to nobody");
        bond.bind(&mut promises, node(1), 7, 4);
        assert_eq!(bond.part(&mut promises, node(1), Some(7)), Parting::NONE, "it knows");
        assert_eq!(bond.part(&mut promises, node(2), Some(3)), parting(290, 290));
        assert_eq!(promises.promise(now(220, 230), node(1), 7, at(310)), None, "the epoch is over");
        assert_eq!(promises.promise(now(220, 230), node(1), 8, at(310)), Some(at(310)), "anew");
        assert_eq!(bond.part(&mut promises, node(3), None), parting(290, 290), "it is remembered");
    }

    #[test]
    fn who_hears_of_another_leader_remembers_the_one_before() {
        let (mut promises, mut bond) = (Promises::new(LENGTH), Bond::default());
        promises.promise(now(200, 210), node(1), 7, at(290));
        bond.bind(&mut promises, node(1), 7, 4);
        bond.bind(&mut promises, node(2), 3, 5);
        assert_eq!(promises.promise(now(220, 230), node(1), 7, at(310)), None);
        promises.promise(now(220, 230), node(2), 3, at(320));
        assert_eq!(bond.part(&mut promises, node(2), Some(3)), parting(290, 290));
        assert_eq!(bond.part(&mut promises, node(2), Some(4)), parting(320, 320), "it restarted");
    }

    #[test]
    fn who_is_released_names_what_was_taken() {
        let (mut promises, mut bond) = (Promises::new(LENGTH), Bond::default());
        promises.promise(now(200, 210), node(1), 7, at(290));
        bond.bind(&mut promises, node(1), 7, 4);
        bond.release(node(2), 4, at(260));
        bond.release(node(1), 3, at(270));
        bond.release(node(1), 4, at(240));
        assert_eq!(bond.part(&mut promises, node(2), None), parting(0, 240));
        assert_eq!(promises.promise(now(220, 230), node(1), 7, at(310)), Some(at(310)), "it lives");
    }

    #[test]
    fn a_promise_is_no_longer_than_a_lease_and_never_shortened() {
        let mut promises = Promises::new(LENGTH);
        assert_eq!(promises.promise(now(200, 210), node(1), 7, at(400)), Some(at(300)));
        assert_eq!(promises.promise(now(201, 211), node(1), 7, at(250)), Some(at(300)));
        assert_eq!(promises.promise(now(202, 212), node(1), 8, at(250)), Some(at(250)));
    }

    #[test]
    fn who_restarts_names_the_end_of_all_that_it_can_have_promised() {
        let mut promises = Promises::after_restart(now(200, 210), LENGTH);
        let mut bond = Bond::default();
        assert_eq!(bond.part(&mut promises, node(1), Some(7)), parting(310, 310));
    }

    #[test]
    fn a_lease_is_what_a_majority_has_promised_of_those_who_know_the_leader() {
        let voters: Vec<NodeId> = (1..=5).map(node).collect();
        let mut promised = Promised::new(7);
        for (by, until) in [(1, 300), (2, 250), (3, 280)] {
            promised.promised(node(by), 7, at(until));
        }
        promised.promised(node(4), 6, at(900));
        assert_eq!(promised.lease(&voters, |_| true), Some(at(250)));
        assert_eq!(promised.lease(&voters, |voter| voter != node(2)), None, "two of five");
        promised.promised(node(4), 7, at(260));
        promised.promised(node(4), 7, at(255));
        assert_eq!(promised.lease(&voters, |_| true), Some(at(260)));
        assert_eq!(promised.lease(&voters[..3], |_| true), Some(at(280)));
    }

    #[test]
    fn a_leader_takes_timestamps_within_its_lease_and_none_after_it_has_ceased() {
        let mut tenure = Tenure::default();
        assert!(!tenure.take(now(200, 210), 7, at(210), at(300)), "it has not begun");
        assert_eq!(tenure.begin(7, at(150)), at(150));
        assert!(tenure.take(now(200, 210), 7, at(210), at(300)));
        assert!(!tenure.take(now(290, 300), 7, at(250), at(300)), "perhaps past");
        assert!(!tenure.take(now(200, 210), 7, at(300), at(300)), "beyond it");
        assert!(!tenure.take(now(200, 210), 6, at(220), at(300)), "of an earlier term");
        assert_eq!(tenure.cease(), at(210));
        assert!(!tenure.take(now(200, 210), 7, at(220), at(300)));
        assert_eq!(tenure.begin(7, at(0)), at(210));
        assert!(!tenure.take(now(200, 210), 7, at(220), at(300)), "for good in this term");
        assert_eq!(tenure.begin(9, at(205)), at(210), "what it did itself");
        assert!(tenure.take(now(200, 210), 9, at(220), at(300)));
    }

    /// A message on its way.
    #[derive(Clone, Debug)]
    enum Message {
        Ask {
            from: usize,
            to: usize,
            epoch: Epoch,
            until: Timestamp,
        },
        Promised {
            by: usize,
            to: usize,
            epoch: Epoch,
            until: Option<Timestamp>,
        },
        Vouch {
            from: usize,
            to: usize,
            term: u64,
            epoch: Epoch,
        },
        Heard {
            by: usize,
            to: usize,
            term: u64,
            epoch: Epoch,
        },
        Stand {
            from: usize,
            to: usize,
            term: u64,
        },
        Vote {
            by: usize,
            to: usize,
            term: u64,
            parting: Parting,
        },
        Cease {
            from: usize,
            to: usize,
            term: u64,
            taken: Timestamp,
        },
        /// Raft has refused a vote that the replica had ceased for.
        Refused {
            at: usize,
            term: u64,
            ceased: u64,
        },
    }

    /// A node with one replica of one group.
    struct Member {
        promises: Promises,
        promised: Promised,
        epoch: Epoch,
        /// Durable.
        term: u64,
        bond: Bond,
        votes: Vec<usize>,
        parting: Parting,
        elected: bool,
        leads: bool,
        heard: Vec<usize>,
        tenure: Tenure,
    }

    struct Simulation {
        /// The clocks' uncertainty, in milliseconds.
        epsilon: u64,
        lease: Duration,
        true_time: u64,
        epochs: Epoch,
        members: Vec<Member>,
        messages: Vec<Message>,
        /// The last term that has acted, and the highest timestamp taken.
        last: (u64, Timestamp),
        acted: u64,
        released: u64,
        resumed: u64,
    }

    impl Simulation {
        /// An interval that holds the true time, as this throw of the dice has it.
        fn clock(&self, dice: u64) -> TtInterval {
            let below = dice % (self.epsilon + 1);
            now(self.true_time - below, self.true_time + dice / 64 % (self.epsilon + 1))
        }

        fn member(promises: Promises, epoch: Epoch, term: u64) -> Member {
            Member {
                promises,
                promised: Promised::new(epoch),
                epoch,
                term,
                bond: Bond::default(),
                votes: Vec::new(),
                parting: Parting::NONE,
                elected: false,
                leads: false,
                heard: Vec::new(),
                tenure: Tenure::default(),
            }
        }

        fn step(&mut self, rng: &mut StdRng) {
            let (what, which, dice) =
                (rng.random_range(0..20), rng.random_range(0..1_000), rng.next_u64());
            let count = self.members.len();
            let (one, clock) = (which % count, self.clock(dice));
            match what {
                0..=1 => self.true_time += dice % 8,
                2..=12 if !self.messages.is_empty() => {
                    let message = self.messages.swap_remove(which % self.messages.len());
                    // Some come twice.
                    if dice % 7 == 0 {
                        self.messages.push(message.clone());
                    }
                    self.deliver(message, clock);
                }
                13 if !self.messages.is_empty() => {
                    self.messages.swap_remove(which % self.messages.len());
                }
                14 => {
                    let Member { epoch, leads, term, .. } = self.members[one];
                    let until = clock.earliest.plus(self.lease);
                    for to in 0..count {
                        self.messages.push(Message::Ask { from: one, to, epoch, until });
                        if leads {
                            self.messages.push(Message::Vouch { from: one, to, term, epoch });
                        }
                    }
                }
                15 if dice % 8 == 0 => {
                    let member = &mut self.members[one];
                    member.term += 1;
                    let term = member.term;
                    (member.leads, member.elected, member.votes) = (false, false, vec![one]);
                    member.parting = Parting::NONE;
                    for to in (0..count).filter(|to| *to != one) {
                        self.messages.push(Message::Stand { from: one, to, term });
                    }
                }
                // As when a replica that leads ends while its node goes on.
                16 if dice % 16 == 1 => self.renew(one),
                16 if dice % 64 == 0 => {
                    self.epochs += 1;
                    let promises = Promises::after_restart(clock, self.lease);
                    let term = self.members[one].term;
                    self.members[one] = Self::member(promises, self.epochs, term);
                }
                17 if dice % 16 == 0 && self.members[one].leads => {
                    let member = &mut self.members[one];
                    let (term, taken) = (member.term, member.tenure.cease());
                    member.bond.release(node(one as u64), term, taken);
                    for to in (0..count).filter(|to| *to != one) {
                        self.messages.push(Message::Cease { from: one, to, term, taken });
                    }
                }
                _ => {
                    self.begin(one, clock);
                    self.act(one, clock);
                }
            }
        }

        /// Who was elected begins once the earlier leases are past.
        fn begin(&mut self, one: usize, clock: TtInterval) {
            let member = &mut self.members[one];
            if !member.elected || member.leads {
                return;
            }
            let (itself, epoch) = (node(one as u64), member.epoch);
            let own = member.bond.part(&mut member.promises, itself, Some(epoch));
            member.parting = member.parting.and(own);
            if clock.earliest > member.parting.until {
                member.bond.bind(&mut member.promises, itself, epoch, member.term);
                member.tenure.begin(member.term, member.parting.taken);
                (member.leads, member.heard) = (true, vec![one]);
            }
        }

        fn act(&mut self, one: usize, clock: TtInterval) {
            let voters: Vec<NodeId> = (0..self.members.len() as u64).map(node).collect();
            let member = &mut self.members[one];
            let heard = |voter: NodeId| member.heard.iter().any(|h| node(*h as u64) == voter);
            let Some(end) = member.promised.lease(&voters, heard) else { return };
            // Who leads no more may not know it yet.
            let tenure = &mut member.tenure;
            let (term, at) = (tenure.term, clock.latest.max(tenure.taken.next()));
            if tenure.take(clock, term, at, end) {
                assert!(term >= self.last.0, "term {term} acts after {}", self.last.0);
                assert!(at > self.last.1, "term {term} takes {at} after {:?}", self.last);
                self.acted += u64::from(term > self.last.0);
                self.last = (term, at);
            }
        }

        fn renew(&mut self, one: usize) {
            self.epochs += 1;
            let member = &mut self.members[one];
            (member.epoch, member.promised) = (self.epochs, Promised::new(self.epochs));
            member.heard.clear();
        }

        /// A replica votes or follows in a later term.
        fn follow(&mut self, one: usize, term: u64) {
            let member = &mut self.members[one];
            if term > member.term {
                if member.bond.to() == Some((node(one as u64), member.epoch)) {
                    let taken = member.tenure.cease();
                    member.bond.release_own(taken);
                }
                (member.term, member.leads, member.elected) = (term, false, false);
            }
        }

        fn deliver(&mut self, message: Message, clock: TtInterval) {
            let count = self.members.len();
            match message {
                Message::Ask { from, to, epoch, until } => {
                    let promises = &mut self.members[to].promises;
                    let until = promises.promise(clock, node(from as u64), epoch, until);
                    self.messages.push(Message::Promised { by: to, to: from, epoch, until });
                }
                Message::Promised { by, to, epoch, until } => {
                    let member = &mut self.members[to];
                    match until {
                        Some(until) => member.promised.promised(node(by as u64), epoch, until),
                        None if member.epoch == epoch => self.renew(to),
                        None => {}
                    }
                }
                Message::Vouch { from, to, term, epoch } => {
                    if term < self.members[to].term {
                        return;
                    }
                    self.follow(to, term);
                    let member = &mut self.members[to];
                    member.bond.bind(&mut member.promises, node(from as u64), epoch, term);
                    self.messages.push(Message::Heard { by: to, to: from, term, epoch });
                }
                Message::Heard { by, to, term, epoch } => {
                    let leader = &mut self.members[to];
                    if leader.leads && leader.term == term && leader.epoch == epoch {
                        leader.heard.push(by);
                    }
                }
                Message::Stand { from, to, term } => {
                    let member = &mut self.members[to];
                    let taken = member.tenure.cease();
                    if member.bond.to().is_some_and(|(bound, _)| bound == node(to as u64)) {
                        member.bond.release_own(taken);
                    }
                    if term <= member.term {
                        member.bond.part(&mut member.promises, node(from as u64), None);
                        let (term, ceased) = (member.term, member.tenure.ceased());
                        self.messages.push(Message::Refused { at: to, term, ceased });
                        return;
                    }
                    self.follow(to, term);
                    let member = &mut self.members[to];
                    let parting = member.bond.part(&mut member.promises, node(from as u64), None);
                    self.messages.push(Message::Vote { by: to, to: from, term, parting });
                }
                Message::Refused { at, term, ceased } => {
                    let (itself, member) = (node(at as u64), &mut self.members[at]);
                    if member.tenure.resume(term, ceased) && member.leads {
                        member.bond.bind(&mut member.promises, itself, member.epoch, term);
                        self.resumed += 1;
                    }
                }
                Message::Vote { by, to, term, parting } => {
                    let candidate = &mut self.members[to];
                    if candidate.term != term || candidate.votes.contains(&by) {
                        return;
                    }
                    candidate.votes.push(by);
                    candidate.parting = candidate.parting.and(parting);
                    candidate.elected |= candidate.votes.len() * 2 > count;
                }
                Message::Cease { from, to, term, taken } => {
                    self.members[to].bond.release(node(from as u64), term, taken);
                    self.released += 1;
                }
            }
        }
    }

    #[test]
    fn leases_are_disjoint_whatever_the_clocks_say_inside_their_bound() {
        let (mut leaders, mut released, mut resumed) = (0, 0, 0);
        for seed in 0..1_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut simulation = Simulation {
                epsilon: [5, 20, 60][rng.random_range(0..3)],
                lease: Duration::from_millis(rng.random_range(50..250)),
                true_time: 1_000,
                epochs: 100,
                members: Vec::new(),
                messages: Vec::new(),
                last: (0, Timestamp::MIN),
                acted: 0,
                released: 0,
                resumed: 0,
            };
            for number in 0..rng.random_range(3..6) {
                let promises = Promises::new(simulation.lease);
                let member = Simulation::member(promises, number, 0);
                simulation.members.push(member);
            }
            for _ in 0..8_000 {
                simulation.step(&mut rng);
            }
            leaders += simulation.acted;
            released += simulation.released;
            resumed += simulation.resumed;
        }
        // Else nothing is shown.
        assert!(
            leaders > 1_500 && released > 500 && resumed > 500,
            "{leaders} leaders, {released} released, {resumed} resumed"
        );
    }
}
