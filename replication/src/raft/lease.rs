//! Leases in TrueTime: no two nodes may act as leaders of one group at one time, whatever Raft's
//! timers say.
//!
//! After Spanner (Corbett et al., OSDI 2012, section 4.1.1 and appendix A): who votes for a leader
//! promises to vote for nobody else for a while, and a leader acts only while a majority's promises
//! hold. Two things differ. A promise ends at a TrueTime timestamp that the leader names, instead of
//! a while after it was received: the leader acts while that is certainly not past, and the voter is
//! free once it certainly is. And nodes promise each other, for all groups at once (as CockroachDB's
//! stores do): a promise to a node binds in each group whose leader there has vouched for itself
//! under the same epoch (see `raft::liveness`).
//!
//! # What is promised
//!
//! * *Disjoint leases*: every timestamp that a leader takes within its lease lies below every one
//!   that a later leader takes. For the voters that made the earlier leader's lease and those that
//!   elected the later one have one in common; that one was free when it voted, so the end of the
//!   earlier lease was certainly past, and the later leader takes timestamps above its clock's latest.
//! * A node that restarts has forgotten what it promised, and who had vouched. Nothing that it can have
//!   promised ends later than a lease's length after it began again; so long it votes for nobody.
//!
//! # Caveats
//!
//! * All of it rests on the clocks' bounds. Outside them leases overlap.
//! * A voter that has once been free of a node's epoch promises it nothing more: the leader's groups
//!   may have gone on without it. The node begins another epoch, and vouches anew.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_storage::NodeId;
use meridian_truetime::{Timestamp, TtInterval};

use super::liveness::Epoch;

#[derive(Clone, Copy, Debug)]
struct Promise {
    epoch: Epoch,
    until: Timestamp,
    /// It was found to be past, and somebody may have been voted for since.
    ended: bool,
}

/// What a node has promised to others, and to itself.
#[derive(Clone, Debug)]
pub struct Promises {
    /// No promise is longer.
    length: Duration,
    /// Whatever was promised before the node began ends here at the latest.
    before: Timestamp,
    to: BTreeMap<NodeId, Promise>,
}

impl Promises {
    /// Of a node that begins, or begins again.
    #[must_use]
    pub fn new(now: TtInterval, length: Duration) -> Self {
        Self { length, before: now.latest.plus(length), to: BTreeMap::new() }
    }

    /// Promises to vote for nobody but the leaders of `node` until then, where they have vouched
    /// under that epoch: no longer than a lease's length. The end of the promise; `None` if the
    /// epoch is over here.
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
        let known = self.to.entry(node).or_insert(Promise { epoch, until, ended: false });
        if known.epoch != epoch {
            // What was promised for another epoch still holds.
            *known = Promise { epoch, until: known.until.max(until), ended: false };
        }
        if known.ended {
            return None;
        }
        known.until = known.until.max(until);
        Some(known.until)
    }

    /// Whether this node may vote against the leader, if any, that has vouched in a group: it is of
    /// that node, and has done so under that epoch. If so, nothing more is promised for it.
    pub fn free(&mut self, now: TtInterval, vouched: Option<(NodeId, Epoch)>) -> bool {
        if now.earliest <= self.before {
            return false;
        }
        let Some((node, epoch)) = vouched else { return true };
        let Some(promise) = self.to.get_mut(&node) else {
            // A promise that comes later must not count for what is decided now.
            self.to.insert(node, Promise { epoch, until: Timestamp::MIN, ended: true });
            return true;
        };
        let free = now.earliest > promise.until;
        promise.ended |= free && promise.epoch == epoch;
        free
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

    /// The end of the lease of a group with these voters, as far as `vouched` says of each that it
    /// has heard its leader vouch in this epoch: a majority has promised until there. `None`: there
    /// is no lease.
    pub fn lease(&self, voters: &[NodeId], vouched: impl Fn(NodeId) -> bool) -> Option<Timestamp> {
        let promised = voters.iter().filter(|voter| vouched(**voter));
        let mut ends: Vec<Timestamp> =
            promised.filter_map(|voter| self.by.get(voter).copied()).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(voters.len() / 2).copied()
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

    #[test]
    fn a_voter_is_free_once_its_promise_is_certainly_past() {
        let mut promises = Promises::new(now(0, 10), LENGTH);
        assert_eq!(promises.promise(now(200, 210), node(1), 7, at(290)), Some(at(290)));
        assert!(!promises.free(now(290, 300), Some((node(1), 7))), "perhaps just now");
        assert!(promises.free(now(291, 301), Some((node(1), 7))));
        assert_eq!(promises.promise(now(292, 302), node(1), 7, at(380)), None, "the epoch is over");
        assert_eq!(promises.promise(now(292, 302), node(1), 8, at(380)), Some(at(380)), "anew");
        assert!(
            !promises.free(now(380, 390), Some((node(1), 7))),
            "what holds, holds for all its groups"
        );
    }

    #[test]
    fn a_promise_is_no_longer_than_a_lease_and_never_shortened() {
        let mut promises = Promises::new(now(0, 10), LENGTH);
        assert_eq!(promises.promise(now(200, 210), node(1), 7, at(400)), Some(at(300)));
        assert_eq!(promises.promise(now(201, 211), node(1), 7, at(250)), Some(at(300)));
        assert_eq!(promises.promise(now(202, 212), node(1), 8, at(250)), Some(at(300)));
    }

    #[test]
    fn who_restarts_is_free_of_what_it_has_forgotten_only_when_it_is_past() {
        let mut promises = Promises::new(now(200, 210), LENGTH);
        let leader = Some((node(1), 7));
        assert!(!promises.free(now(310, 320), leader) && !promises.free(now(310, 320), None));
        assert!(promises.free(now(311, 321), None) && promises.free(now(311, 321), leader));
        assert_eq!(promises.promise(now(312, 322), node(1), 7, at(400)), None);
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

    /// A message on its way.
    #[derive(Clone, Debug)]
    enum Message {
        Ask { from: usize, to: usize, epoch: Epoch, until: Timestamp },
        Promised { by: usize, to: usize, epoch: Epoch, until: Timestamp },
        Vouch { from: usize, to: usize, term: u64, epoch: Epoch },
        Heard { by: usize, to: usize, term: u64, epoch: Epoch },
        Stand { from: usize, to: usize, term: u64 },
        Vote { by: usize, to: usize, term: u64 },
    }

    /// A node with one replica of one group.
    struct Member {
        promises: Promises,
        promised: Promised,
        epoch: Epoch,
        /// Durable.
        term: u64,
        vouched: Option<(usize, Epoch)>,
        votes: Vec<usize>,
        leads: bool,
        heard: Vec<usize>,
    }

    struct Simulation {
        /// The clocks' uncertainty, in milliseconds.
        epsilon: u64,
        lease: Duration,
        true_time: u64,
        epochs: Epoch,
        members: Vec<Member>,
        messages: Vec<Message>,
        /// By term: the lowest and the highest timestamp taken.
        taken: BTreeMap<u64, (Timestamp, Timestamp)>,
    }

    impl Simulation {
        /// An interval that holds the true time, as this throw of the dice has it.
        fn clock(&self, dice: u64) -> TtInterval {
            let below = dice % (self.epsilon + 1);
            now(self.true_time - below, self.true_time + dice / 64 % (self.epsilon + 1))
        }

        fn member(&self, epoch: Epoch, dice: u64, term: u64) -> Member {
            Member {
                promises: Promises::new(self.clock(dice), self.lease),
                promised: Promised::new(epoch),
                epoch,
                term,
                vouched: None,
                votes: Vec::new(),
                leads: false,
                heard: Vec::new(),
            }
        }

        fn voters(&self) -> Vec<NodeId> {
            (0..self.members.len() as u64).map(node).collect()
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
                    let (epoch, until) = (self.members[one].epoch, clock.earliest.plus(self.lease));
                    for to in 0..count {
                        self.messages.push(Message::Ask { from: one, to, epoch, until });
                        let Member { leads: true, term, .. } = self.members[one] else { continue };
                        self.messages.push(Message::Vouch { from: one, to, term, epoch });
                    }
                }
                15 if dice % 8 == 0 => {
                    let member = &mut self.members[one];
                    let leader = member.vouched.map(|(of, epoch)| (node(of as u64), epoch));
                    let free = member.promises.free(clock, leader);
                    if free {
                        member.term += 1;
                        let term = member.term;
                        (member.vouched, member.leads, member.votes) = (None, false, vec![one]);
                        for to in (0..count).filter(|to| *to != one) {
                            self.messages.push(Message::Stand { from: one, to, term });
                        }
                    }
                }
                // As when a replica that leads ends while its node goes on.
                16 if dice % 16 == 1 => self.renew(one),
                16 if dice % 64 == 0 => {
                    self.epochs += 1;
                    self.members[one] = self.member(self.epochs, dice, self.members[one].term);
                }
                _ => {
                    let voters = self.voters();
                    let member = &self.members[one];
                    let heard =
                        |voter: NodeId| member.heard.iter().any(|h| node(*h as u64) == voter);
                    let lease = member.promised.lease(&voters, heard).filter(|_| member.leads);
                    // A timestamp is taken while the lease certainly lasts to there.
                    if lease.is_some_and(|end| clock.latest < end) {
                        self.take(one, clock.latest);
                    }
                }
            }
        }

        fn take(&mut self, one: usize, at: Timestamp) {
            let term = self.members[one].term;
            let (low, high) = self.taken.get(&term).copied().unwrap_or((at, at));
            self.taken.insert(term, (low.min(at), high.max(at)));
            let mut before: Option<Timestamp> = None;
            for (term, (low, high)) in &self.taken {
                assert!(before.is_none_or(|before| before < *low), "term {term}: {:?}", self.taken);
                before = Some(*high);
            }
        }

        fn renew(&mut self, one: usize) {
            self.epochs += 1;
            let member = &mut self.members[one];
            (member.epoch, member.promised) = (self.epochs, Promised::new(self.epochs));
            member.heard.clear();
        }

        fn deliver(&mut self, message: Message, clock: TtInterval) {
            let count = self.members.len();
            match message {
                Message::Ask { from, to, epoch, until } => {
                    let promises = &mut self.members[to].promises;
                    let until = promises.promise(clock, node(from as u64), epoch, until);
                    if let Some(until) = until {
                        self.messages.push(Message::Promised { by: to, to: from, epoch, until });
                    } else if self.members[from].epoch == epoch {
                        // The node hears of it.
                        self.renew(from);
                    }
                }
                Message::Promised { by, to, epoch, until } => {
                    self.members[to].promised.promised(node(by as u64), epoch, until);
                }
                Message::Vouch { from, to, term, epoch } => {
                    let member = &mut self.members[to];
                    if term < member.term {
                        return;
                    }
                    if term > member.term {
                        member.leads = false;
                    }
                    (member.term, member.vouched) = (term, Some((from, epoch)));
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
                    if term <= member.term {
                        return;
                    }
                    let leader = member.vouched.map(|(of, epoch)| (node(of as u64), epoch));
                    let free = member.promises.free(clock, leader);
                    if free {
                        (member.term, member.vouched, member.leads) = (term, None, false);
                        self.messages.push(Message::Vote { by: to, to: from, term });
                    }
                }
                Message::Vote { by, to, term } => {
                    let candidate = &mut self.members[to];
                    if candidate.term != term || candidate.leads || candidate.votes.contains(&by) {
                        return;
                    }
                    candidate.votes.push(by);
                    if candidate.votes.len() * 2 > count {
                        candidate.leads = true;
                        candidate.heard.clear();
                    }
                }
            }
        }
    }

    #[test]
    fn leases_are_disjoint_whatever_the_clocks_say_inside_their_bound() {
        let (mut leaders, mut followed) = (0, 0);
        for seed in 0..1_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut simulation = Simulation {
                epsilon: [5, 20, 60][rng.random_range(0..3)],
                lease: Duration::from_millis(rng.random_range(50..250)),
                true_time: 1_000,
                epochs: 100,
                members: Vec::new(),
                messages: Vec::new(),
                taken: BTreeMap::new(),
            };
            for number in 0..rng.random_range(3..6) {
                let member = simulation.member(number, 0, 0);
                simulation.members.push(member);
            }
            for _ in 0..8_000 {
                simulation.step(&mut rng);
            }
            leaders += simulation.taken.len();
            followed += usize::from(simulation.taken.len() > 1);
        }
        // Else nothing is shown.
        assert!(
            leaders > 1_000 && followed > 200,
            "{leaders} leaders, {followed} followed another"
        );
    }
}
