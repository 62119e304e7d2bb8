//! Which nodes are alive, for all groups at once.
//!
//! Raft gives every group a heartbeat of its own, by which its followers know that it is led. With
//! a thousand tablets on three nodes that would be thousands of messages a second that say the same
//! thing: the node lives. Here nodes send heartbeats to each other, one per pair and interval
//! however many groups they share, and a group is content for as long as the node of its leader is
//! heard. (CockroachDB's quiescence and store liveness have the same aim; Ongaro's dissertation
//! leaves it to the implementation.) Raft's election timers are replaced by this; terms, votes,
//! pre-votes and logs are openraft's.
//!
//! # The rules
//!
//! * A node has an *epoch*: a number drawn when it starts, and changed when a replica that leads
//!   ends while the node goes on. Heartbeats carry it.
//! * A leader *vouches* for itself to each follower: it sends the group's own heartbeat with its
//!   node's epoch, until that is answered. It does so again whenever there is something new to say:
//!   a term, an entry that was applied, a new epoch, a follower that could not be reached for a
//!   while or has started anew. What a follower learns of the last commit, it learns by that.
//! * A follower is content as long as its leader has vouched in the present term and the leader's
//!   node is heard under the epoch in which it did. When the node falls silent for longer than the
//!   patience (Raft's election timeout, drawn anew each time), or comes with another epoch, all its
//!   groups become restless: their replicas stand for election, each after a delay of its own, and
//!   again until one is elected.
//! * A replica that is content refuses candidates, as Raft's followers do within the election
//!   timeout (section 9.6 of the dissertation). One that knows of a later term isn't held back.
//! * A leader that reaches no majority takes no proposals (etcd's check of its quorum).
//!
//! Nothing here is needed for Raft's safety: who may lead is for terms and votes to say. (Leases lean
//! on two things: on epochs, which no two lives of a node share, and on who has vouched under which;
//! see `raft::lease`.) What is to be
//! shown is that no group is content without a leader. Its leader ends in one of four ways: with its
//! node (silence, or a new epoch); alone (a new epoch); by learning of a later term (then its own
//! replica is restless, for it has nobody to vouch for a leader, and the others answer to whoever is
//! elected); or by handing over, of which the followers are told, again and again until it has ended.
//!
//! # Caveats
//!
//! * openraft has a lease of its own, which followers renew with every append: a leader without it
//!   takes no proposals, a follower within it grants no votes. Here it is so long
//!   ([`LEASE`](super::timing::LEASE)) that renewing it costs nothing, and restless replicas give it
//!   up. openraft never turns a lease on again that was given up in the same term: what then keeps
//!   candidates from disturbing a leader is the rule above.
//! * A node whose heartbeats pass while a group's appends don't keeps that group, as in Raft.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_storage::NodeId;
use meridian_truetime::Moment;
use rand::RngExt;
use rand::rngs::StdRng;

/// Changes whenever a node starts, or ends one of its leaders.
pub(crate) type Epoch = u64;

/// A leader's word that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vouched {
    pub(crate) leader: NodeId,
    pub(crate) term: u64,
    pub(crate) epoch: Epoch,
}

/// The time in which one node reaches another: another number after each gap, and whenever the
/// other has another epoch.
pub(crate) type Contact = u64;

/// How a replica stands in its group, as far as its timers are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It leads.
    Leads { term: u64 },
    /// It knows of a leader.
    Follows { leader: NodeId, term: u64 },
    /// It knows of none.
    Unled,
}

#[derive(Debug, Default)]
struct Peer {
    heard: Option<(Moment, Epoch)>,
    /// How long a silence it is allowed this time.
    patience: Duration,
    answered: Option<(Moment, Epoch)>,
    contact: Contact,
}

/// What a node knows of the others.
#[derive(Debug)]
pub(crate) struct Liveness {
    epoch: Epoch,
    shortest: Duration,
    longest: Duration,
    rng: StdRng,
    contacts: Contact,
    peers: BTreeMap<NodeId, Peer>,
}

impl Liveness {
    /// Knows nothing yet. A node is given up after a silence between `shortest` and `longest`.
    pub(crate) fn new(epoch: Epoch, shortest: Duration, longest: Duration, rng: StdRng) -> Self {
        Self { epoch, shortest, longest, rng, contacts: 0, peers: BTreeMap::new() }
    }

    /// This node's epoch.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Begins another epoch: what leaders here have vouched for no longer holds.
    pub(crate) fn renew(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// A heartbeat of `node`.
    pub(crate) fn heard(&mut self, now: Moment, node: NodeId, epoch: Epoch) {
        let peer = self.peers.entry(node).or_default();
        if peer.heard.is_none_or(|(at, _)| now.since(at) > peer.patience) {
            peer.patience = self.rng.random_range(self.shortest..=self.longest);
        }
        peer.heard = Some((now, epoch));
    }

    /// `node` has answered a heartbeat.
    pub(crate) fn answered(&mut self, now: Moment, node: NodeId, epoch: Epoch) {
        let peer = self.peers.entry(node).or_default();
        let goes_on = peer
            .answered
            .is_some_and(|(at, before)| before == epoch && now.since(at) <= self.shortest);
        peer.answered = Some((now, epoch));
        if !goes_on {
            self.contacts += 1;
            peer.contact = self.contacts;
        }
    }

    /// The epoch that a node was last heard in, or has answered in.
    pub(crate) fn epoch_of(&self, node: NodeId) -> Option<Epoch> {
        let peer = self.peers.get(&node)?;
        let last = peer.heard.into_iter().chain(peer.answered).max_by_key(|(at, _)| *at);
        last.map(|(_, epoch)| epoch)
    }

    /// The present contact with a node that answers.
    pub(crate) fn contact(&self, now: Moment, node: NodeId) -> Option<Contact> {
        let peer = self.peers.get(&node)?;
        let (at, _) = peer.answered?;
        (now.since(at) <= self.shortest).then_some(peer.contact)
    }

    /// Whether a replica's election timer should run.
    pub(crate) fn is_restless(
        &self,
        now: Moment,
        standing: Standing,
        vouched: Option<Vouched>,
    ) -> bool {
        let (leader, term) = match standing {
            Standing::Leads { .. } => return false,
            Standing::Unled => return true,
            Standing::Follows { leader, term } => (leader, term),
        };
        let heard = self.peers.get(&leader).and_then(|peer| {
            let (at, epoch) = peer.heard?;
            (now.since(at) <= peer.patience).then_some(epoch)
        });
        heard.is_none_or(|epoch| vouched != Some(Vouched { leader, term, epoch }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const US: u64 = 1_000;
    const LEADER: NodeId = NodeId::new(2);
    const FOLLOWS: Standing = Standing::Follows { leader: LEADER, term: 7 };

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn liveness() -> Liveness {
        let (shortest, longest) = (Duration::from_millis(300), Duration::from_millis(600));
        Liveness::new(US, shortest, longest, StdRng::seed_from_u64(1))
    }

    fn vouched(term: u64, epoch: Epoch) -> Vouched {
        Vouched { leader: LEADER, term, epoch }
    }

    #[test]
    fn a_timer_rests_while_the_leader_that_vouched_is_heard() {
        let mut liveness = liveness();
        assert!(liveness.is_restless(at(0), FOLLOWS, Some(vouched(7, 40))), "never heard");
        liveness.heard(at(0), LEADER, 40);
        assert!(liveness.is_restless(at(0), FOLLOWS, None), "has not vouched");
        assert!(liveness.is_restless(at(0), FOLLOWS, Some(vouched(6, 40))), "for another term");
        assert!(!liveness.is_restless(at(0), FOLLOWS, Some(vouched(7, 40))));
        assert!(!liveness.is_restless(at(300), FOLLOWS, Some(vouched(7, 40))), "patience");
        assert!(liveness.is_restless(at(601), FOLLOWS, Some(vouched(7, 40))), "silence");
        liveness.heard(at(700), LEADER, 40);
        assert!(!liveness.is_restless(at(700), FOLLOWS, Some(vouched(7, 40))), "it was alive");
        liveness.heard(at(800), LEADER, 41);
        assert!(
            liveness.is_restless(at(800), FOLLOWS, Some(vouched(7, 40))),
            "it has started anew"
        );
        assert!(!liveness.is_restless(at(800), FOLLOWS, Some(vouched(7, 41))));
    }

    #[test]
    fn who_has_no_leader_is_restless_and_who_leads_is_not() {
        let liveness = liveness();
        assert!(liveness.is_restless(at(0), Standing::Unled, Some(vouched(7, 40))));
        assert!(!liveness.is_restless(at(0), Standing::Leads { term: 7 }, None));
    }

    #[test]
    fn contact_is_another_after_a_gap_a_restart_or_an_epoch() {
        let mut liveness = liveness();
        assert_eq!(liveness.contact(at(0), LEADER), None);
        liveness.answered(at(0), LEADER, 40);
        let first = liveness.contact(at(100), LEADER);
        assert!(first.is_some());
        liveness.answered(at(250), LEADER, 40);
        assert_eq!(liveness.contact(at(500), LEADER), first, "goes on");
        assert_eq!(liveness.contact(at(551), LEADER), None, "a gap");
        liveness.answered(at(560), LEADER, 40);
        let second = liveness.contact(at(560), LEADER);
        assert!(second.is_some() && second != first);
        liveness.answered(at(570), LEADER, 41);
        let third = liveness.contact(at(570), LEADER);
        assert!(third.is_some() && third != second, "it has started anew");
        liveness.renew();
        assert_ne!(liveness.epoch(), US);
        assert_eq!(
            liveness.contact(at(570), LEADER),
            third,
            "an epoch of ours changes nothing here"
        );
    }

    #[test]
    fn patience_differs_from_silence_to_silence() {
        let mut liveness = liveness();
        let mut given_up = Vec::new();
        for round in 0..20 {
            let begin = round * 10_000;
            liveness.heard(at(begin), LEADER, 40);
            let silent =
                |ms: &u64| liveness.is_restless(at(begin + ms), FOLLOWS, Some(vouched(7, 40)));
            given_up.push((0..1_000).find(silent).expect("in the end"));
        }
        assert!(given_up.iter().all(|ms| (300..=601).contains(ms)), "{given_up:?}");
        given_up.dedup();
        assert!(given_up.len() > 10, "{given_up:?}");
    }
}
