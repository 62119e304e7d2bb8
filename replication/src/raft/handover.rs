//! How leadership passes from one replica to another, within a round trip if it can be.
//!
//! In Raft (Ongaro, *Consensus: Bridging Theory and Practice*, section 3.10) the old leader takes no
//! more commands, has the new one catch up, and tells it to stand; it asks for votes, and what it has
//! in its log is not known to be committed before an entry of its own is. That is up to three round
//! trips in which nobody serves: one for the last entries, one for votes and one for the first entry.
//! Where the new leader holds the whole log already, they are one at most:
//!
//! * The old leader stops at an entry `L` and tells *all* members who takes over (openraft does), and
//!   whether it knows that the new leader holds `L`. If not, all goes on as in Raft.
//! * A voter that holds `L` durably, as a follower of the old leader, votes for the new one in the next
//!   term without being asked, and sends it that vote. The old leader does so, too, once `L` is
//!   committed and its clients are answered.
//! * The new leader waits until it holds `L` durably itself, and until a majority, itself one of them,
//!   has voted so. It then knows that `L` is committed, stands, and has the votes already. Once it has
//!   applied `L` it may begin: there is nothing in its log that isn't committed, but its own.
//!
//! The old leader has ceased to act by then, and has said up to where it has taken timestamps; the
//! votes come with promises, so that the new one has a lease at once (`raft::lease`).
//!
//! # Why this is right
//!
//! The votes are openraft's, durable before they are sent, and each voter votes once in a term. A vote
//! is given for a log that ends with `L`, and counted only by a candidate whose log does. `L` is of
//! the old leader's term, because a leader begins with an entry of its own; and a majority held it in
//! that term, before any of them knew of a later one. That is Raft's condition for an entry to be
//! committed (section 3.6.2).
//!
//! # What a vote says
//!
//! A new leader of openraft's knows nothing of its followers' logs: for each it looks for the last
//! entry that they share, by bisection, one round trip a step; and it takes no proposals before a
//! majority has answered a heartbeat of its term. But who has voted has said both: the answer to a
//! vote names the voter's last entry, and where that is the candidate's own, the logs are the same.
//! So those first questions are answered here, on behalf of those who have voted so, in every
//! election. Asked whether a read may still be served, everybody answers for itself: no question is
//! answered here that was put after the leader has begun, and openraft counts an answer as of the
//! moment at which it had asked.
//!
//! # Caveats
//!
//! * Votes are sent unasked only if the old leader knows that the new one holds all of its log: who has
//!   given its vote away replicates no more. Under load there is nearly always an entry that isn't
//!   acknowledged yet; then the votes are asked for.
//! * Who isn't sent enough votes in time stands all the same and asks for them; then the round trips
//!   follow each other as they do in Raft. So it is while voters are being replaced.
//! * If the new leader is gone, those who voted for it stand for election a little later, as after any
//!   leader's end. Who lags far behind isn't handed leadership.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use meridian_storage::NodeId;
use meridian_truetime::{Env, EnvironmentExt, Timestamp};
use openraft::ServerState;
use openraft::metrics::{RaftMetrics, WaitError};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::heart::Heart;
use super::lease::Parting;
use super::liveness::Epoch;
use super::network::{Call, Ceased, SERVICE, Transfer};
use super::replica::Replica;
use super::timing::Timing;
use super::types::{LogId, Membership, RaftTypes, Vote};
use crate::codec::encode;
use crate::net::Transport;

/// A vote that nobody asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Granted {
    /// Who hands over.
    from: Vote,
    /// What the voter held before it voted, durably.
    last: LogId,
    response: VoteResponse<RaftTypes>,
    /// What the new leader has to know of earlier ones.
    parting: Parting,
    /// What the voter's node promises to the new leader's, in that epoch, if it knows in which that is.
    promised: Option<(Epoch, Timestamp)>,
}

/// A vote for this replica by one whose log is the same, durably.
#[derive(Clone, Debug)]
struct Voted {
    last: LogId,
    response: VoteResponse<RaftTypes>,
    /// The leader that the voter followed when it held `last`, where that is known.
    from: Option<Vote>,
}

/// The votes of one term, until its leader begins.
#[derive(Debug, Default)]
struct Votes {
    /// The last term that has begun.
    begun: u64,
    term: u64,
    by: BTreeMap<NodeId, Voted>,
}

impl Votes {
    fn insert(&mut self, by: NodeId, voted: Voted) {
        let term = voted.response.vote.leader_id.term;
        if term <= self.begun || term < self.term || !voted.response.vote_granted {
            return;
        }
        if term > self.term {
            self.by.clear();
        }
        self.term = term;
        self.by.insert(by, voted);
    }
}

/// What a replica knows of leadership that is handed to it, and of the votes that it has.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    votes: watch::Sender<Votes>,
    /// As a leader that hands over: the new one is known to hold the log up to there.
    caught_up: AtomicU64,
    /// It takes over, and has not come to an end with it.
    takes_over: watch::Sender<bool>,
    /// The term that it was handed, and the last entry before it, which is committed.
    handed: watch::Sender<Option<(u64, u64)>>,
}

impl Handover {
    /// Somebody has voted without being asked.
    pub(crate) fn granted(&self, by: NodeId, granted: Granted) {
        let Granted { from, last, response, .. } = granted;
        let voted = Voted { last, response, from: Some(from) };
        self.votes.send_modify(|votes| votes.insert(by, voted));
    }

    /// Somebody has voted when asked.
    pub(crate) fn voted(
        &self,
        by: NodeId,
        request: &VoteRequest<RaftTypes>,
        response: &VoteResponse<RaftTypes>,
    ) {
        let (Some(last), Some(held)) = (request.last_log_id, response.last_log_id) else { return };
        if held == last && response.vote == request.vote {
            let voted = Voted { last, response: response.clone(), from: None };
            self.votes.send_modify(|votes| votes.insert(by, voted));
        }
    }

    /// The answer that `voter` has given to this request already.
    pub(crate) fn answer(
        &self,
        voter: NodeId,
        request: &VoteRequest<RaftTypes>,
    ) -> Option<VoteResponse<RaftTypes>> {
        let votes = self.votes.borrow();
        let voted = votes.by.get(&voter)?;
        let same = voted.response.vote == request.vote && request.last_log_id == Some(voted.last);
        same.then(|| voted.response.clone())
    }

    /// The last entry of a voter's log, if it has voted for the leader of that vote and that has not
    /// begun: its log is the leader's.
    pub(crate) fn held(&self, voter: NodeId, leader: &Vote) -> Option<LogId> {
        let votes = self.votes.borrow();
        let voted = votes.by.get(&voter)?;
        (voted.response.vote.leader_id == leader.leader_id).then_some(voted.last)
    }

    /// The voters that held this replica's log when they voted for it.
    fn voters(&self, term: u64) -> Vec<(NodeId, LogId)> {
        let votes = self.votes.borrow();
        if votes.term != term {
            return Vec::new();
        }
        votes.by.iter().map(|(voter, voted)| (*voter, voted.last)).collect()
    }

    /// The leader begins: from here on everybody answers for itself.
    fn begins(&self, term: u64) {
        self.votes.send_modify(|votes| {
            votes.begun = votes.begun.max(term);
            votes.by.clear();
        });
    }

    /// The new leader is known to hold the log up to there.
    pub(crate) fn set_caught_up(&self, index: u64) {
        self.caught_up.store(index, Ordering::Relaxed);
    }

    /// Whether it holds all of it, so that votes may be sent unasked: who has them, or knows of
    /// them, replicates no more.
    pub(crate) fn is_caught_up(&self, last: LogId) -> bool {
        last.index <= self.caught_up.load(Ordering::Relaxed)
    }

    /// Waits while the replica is taking over; false if it isn't.
    pub(crate) async fn ended(&self) -> bool {
        let mut takes_over = self.takes_over.subscribe();
        let waits = *takes_over.borrow();
        // The sender lives as long as this.
        let _ = takes_over.wait_for(|takes_over| !takes_over).await;
        waits
    }

    /// If this term was handed over, the last entry before it.
    fn handed(&self, term: u64) -> Option<u64> {
        self.handed.borrow().filter(|(of, _)| *of == term).map(|(_, last)| last)
    }

    /// Whether a majority, `node` one of it, has voted.
    fn is_elected(&self, node: NodeId, from: Vote, last: LogId, members: &Membership) -> bool {
        let votes = self.votes.borrow();
        let voted = |voter: &u64| {
            let given = votes.by.get(&NodeId::new(*voter));
            *voter == node.get()
                || given.is_some_and(|given| given.from == Some(from) && given.last == last)
        };
        let [voters] = &members.get_joint_config()[..] else { return false };
        voters.contains(&node.get())
            && voters.iter().filter(|voter| voted(voter)).count() * 2 > voters.len()
    }
}

/// A node's part in it.
#[derive(Debug)]
pub(crate) struct Handing {
    pub(crate) env: Env,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) timing: Timing,
    /// Not a strong one: it holds the replicas, and they hold this.
    pub(crate) heart: Weak<Heart>,
}

/// The vote of the candidate that leadership is handed to.
fn next_vote(from: Vote, to: NodeId) -> Vote {
    Vote::new(from.leader_id.term + 1, to.get())
}

impl Handing {
    /// A leader hands over, to this replica or to another.
    pub(crate) async fn handle(self: &Arc<Self>, replica: &Replica, transfer: Transfer) {
        let Transfer { request, unasked, taken, epoch } = transfer;
        let from = request.from_leader();
        replica.pulse.vouches_no_more(from);
        let leader = NodeId::new(*from.leader_id.node_id());
        replica.pulse.release(Ceased { leader, term: from.leader_id.term, taken });
        let (handing, replica) = (Arc::clone(self), replica.clone());
        if *request.to_node_id() == replica.node.get() {
            // The old leader repeats it.
            if !replica.pulse.handover.takes_over.send_replace(true) {
                self.env.spawn(async move {
                    handing.take_over(&replica, request, unasked).await;
                    replica.pulse.handover.takes_over.send_replace(false);
                });
            }
            return;
        }
        // That gives up the lease.
        let _ = replica.raft.handle_transfer_leader(request.clone()).await;
        if unasked {
            self.env.spawn(async move { handing.vote(&replica, &request, epoch).await });
        }
    }

    /// Somebody has voted without being asked.
    pub(crate) fn granted(&self, replica: &Replica, by: NodeId, granted: Granted) {
        let term = granted.response.vote.leader_id.term;
        replica.pulse.parted(term, granted.parting);
        if let (Some((epoch, until)), Some(heart)) = (granted.promised, self.heart.upgrade()) {
            heart.helped(by, epoch, until);
            replica.pulse.bound(by, term, epoch);
        }
        replica.pulse.handover.granted(by, granted);
    }

    /// Waits until the log is durable up to the last entry of who hands over; false if that takes
    /// too long, or another leader has come.
    async fn holds(&self, replica: &Replica, from: Vote, last: LogId) -> bool {
        let mut progress = replica.raft.watch_log_progress();
        let durable = progress.wait_until(|at| {
            at.as_ref().is_some_and(|at| at.vote >= from && at.last_log_id >= Some(last))
        });
        match self.env.timeout(self.timing.heartbeat, durable).await {
            Ok(Ok(Some(at))) => at.vote == from && at.last_log_id == Some(last),
            _ => false,
        }
    }

    /// Votes for who takes over.
    async fn vote(
        &self,
        replica: &Replica,
        request: &TransferLeaderRequest<RaftTypes>,
        epoch: Option<Epoch>,
    ) {
        let (from, to) = (*request.from_leader(), NodeId::new(*request.to_node_id()));
        let Some(last) = request.last_log_id().copied() else { return };
        if self.holds(replica, from, last).await && both_vote(replica, to).await {
            self.send_vote(replica, from, (to, epoch), last).await;
        }
    }

    /// Votes for a new leader in the next term, and sends it the vote.
    async fn send_vote(
        &self,
        replica: &Replica,
        from: Vote,
        (to, epoch): (NodeId, Option<Epoch>),
        last: LogId,
    ) {
        let vote: VoteRequest<RaftTypes> = VoteRequest {
            vote: next_vote(from, to),
            last_log_id: Some(last),
            leadership_transfer: true,
        };
        let Some(heart) = self.heart.upgrade() else { return };
        let parted = heart.part(replica, to);
        let parting = parted.parting;
        let term = vote.vote.leader_id.term;
        let Ok(response) = replica.raft.vote(vote).await else { return };
        if !response.vote_granted {
            heart.stay(replica, parted);
        }
        if !response.vote_granted || response.last_log_id != Some(last) {
            return;
        }
        let promised = epoch.and_then(|epoch| Some((epoch, heart.help(replica, to, epoch, term)?)));
        let call = Call::Granted(Granted { from, last, response, parting, promised });
        let Ok(message) = encode(&(replica.group, call)) else { return };
        // Without it, the vote will be asked for.
        let _ = self.transport.call(to, SERVICE, message, self.timing.deadline()).await;
    }

    /// Has a leader vote for its successor as soon as its last entry is committed and its clients
    /// are answered.
    pub(crate) fn resign(self: &Arc<Self>, replica: Replica, term: u64, to: NodeId) {
        let handing = Arc::clone(self);
        self.env.spawn(async move {
            // It takes no more commands.
            let state = replica
                .raft
                .with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()));
            let Ok((from, Some(last))) = state.await else { return };
            let leads = from.leader_id.term == term && from.committed;
            let caught_up = replica.pulse.handover.is_caught_up(last);
            if !leads || !caught_up || !both_vote(&replica, to).await {
                return;
            }
            let mut applied = replica.raft.watch_apply_progress();
            let answered = applied.wait_until(|at| *at >= Some(last));
            if let Ok(Ok(_)) = handing.env.timeout(handing.timing.heartbeat, answered).await {
                let epoch = handing.heart.upgrade().and_then(|heart| heart.epoch_of(to));
                handing.send_vote(&replica, from, (to, epoch), last).await;
            }
        });
    }

    /// Takes over.
    async fn take_over(
        &self,
        replica: &Replica,
        request: TransferLeaderRequest<RaftTypes>,
        unasked: bool,
    ) {
        let from = *request.from_leader();
        let term = from.leader_id.term + 1;
        if let Some(last) = request.last_log_id().copied().filter(|_| unasked) {
            // An entry of an earlier term would not be committed by being held.
            let commits = last.leader_id.term == from.leader_id.term;
            if commits && self.holds(replica, from, last).await {
                self.await_votes(replica, from, last, term).await;
            }
        }
        let _ = replica.raft.handle_transfer_leader(request).await;
        let leads = replica.leadership_changed(None);
        let _ = self.env.timeout(self.timing.deadline(), leads).await;
    }

    /// Waits until a majority has voted; what was handed over is committed then.
    async fn await_votes(&self, replica: &Replica, from: Vote, last: LogId, term: u64) {
        let handover = &replica.pulse.handover;
        let Ok(members) = members(replica).await else { return };
        if members.get_joint_config().len() > 1 {
            return;
        }
        let mut votes = handover.votes.subscribe();
        let elected = votes.wait_for(|_| handover.is_elected(replica.node, from, last, &members));
        if !matches!(self.env.timeout(self.timing.heartbeat, elected).await, Ok(Ok(_))) {
            return;
        }
        let commit = AppendEntriesRequest {
            vote: from,
            prev_log_id: Some(last),
            entries: Vec::new(),
            leader_commit: Some(last),
        };
        if replica.raft.append_entries(commit).await.is_ok_and(|answer| answer.is_success()) {
            handover.handed.send_replace(Some((term, last.index)));
        }
    }
}

/// The members as the replica's log has them.
async fn members(replica: &Replica) -> Result<Membership, ()> {
    let members = replica
        .raft
        .with_raft_state(|state| state.membership_state.effective().membership().clone());
    members.await.map_err(drop)
}

/// Whether this replica and that of the new leader are voters, and none are being replaced.
async fn both_vote(replica: &Replica, to: NodeId) -> bool {
    let here = replica.node.get();
    members(replica).await.is_ok_and(|members| match &members.get_joint_config()[..] {
        [voters] => voters.contains(&here) && voters.contains(&to.get()),
        _ => false,
    })
}

/// Waits until a replica that leads `term` is told nothing by votes any more: openraft has heard
/// what they say (see [`Handover::held`]), and whoever is asked from here on answers for itself.
/// Then, whether it was handed the term, and has applied all that was committed before it.
///
/// # Errors
/// When that takes too long.
pub(crate) async fn begin(replica: &Replica, term: u64) -> Result<bool, WaitError> {
    let handover = &replica.pulse.handover;
    let voters = handover.voters(term);
    let heard = |metrics: &RaftMetrics<RaftTypes>| {
        let leads = metrics.state == ServerState::Leader && metrics.current_term == term;
        let told = |(voter, last): &(NodeId, LogId)| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&voter.get()));
            matched.is_some_and(|at| *at >= Some(*last))
        };
        !leads || (metrics.last_quorum_acked.is_some() && voters.iter().all(told))
    };
    let heard = if voters.is_empty() {
        Ok(())
    } else {
        // openraft takes no proposals before a majority has answered a heartbeat.
        replica.announce().await;
        let wait = replica.raft.wait(Some(replica.patience));
        wait.metrics(heard, "the votes are heard").await.map(drop)
    };
    handover.begins(term);
    heard?;
    let Some(last) = handover.handed(term) else { return Ok(false) };
    let mut applied = replica.raft.watch_apply_progress();
    Ok(applied.wait_until(|at| at.is_some_and(|at| at.index >= last)).await.is_ok())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::raft::types::{LeaderId, Member};

    fn vote(term: u64, node: u64, committed: bool) -> Vote {
        if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
    }

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId::new(term, 1).to_committed(), index)
    }

    fn members(configs: &[&[u64]]) -> Membership {
        let configs = configs.iter().map(|c| c.iter().copied().collect::<BTreeSet<_>>()).collect();
        let nodes: BTreeMap<u64, Member> = (1..=5).map(|node| (node, Member)).collect();
        Membership::new(configs, nodes).expect("valid")
    }

    /// Node 1 hands term 7 over to node 2, at entry 40.
    fn granted(from_term: u64, index: u64) -> Granted {
        let last = log_id(from_term, index);
        let response = VoteResponse::new(vote(from_term + 1, 2, false), Some(last), true);
        let from = vote(from_term, 1, true);
        Granted { from, last, response, parting: Parting::NONE, promised: None }
    }

    fn elected(handover: &Handover, members: &Membership) -> bool {
        handover.is_elected(NodeId::new(2), vote(7, 1, true), log_id(7, 40), members)
    }

    #[test]
    fn a_majority_is_counted_with_the_new_leader_and_only_for_the_same_log() {
        let handover = Handover::default();
        let (three, five) = (members(&[&[1, 2, 3]]), members(&[&[1, 2, 3, 4, 5]]));
        assert!(!elected(&handover, &three));
        handover.granted(NodeId::new(3), granted(7, 39));
        assert!(!elected(&handover, &three), "it held less");
        handover.granted(NodeId::new(3), granted(7, 40));
        handover.granted(NodeId::new(3), granted(7, 40));
        assert!(elected(&handover, &three));
        assert!(!elected(&handover, &five), "two of five");
        handover.granted(NodeId::new(5), granted(7, 40));
        assert!(elected(&handover, &five));
        assert!(!elected(&handover, &members(&[&[1, 3, 5]])), "it doesn't vote itself");
        assert!(!elected(&handover, &members(&[&[1, 2, 3], &[2, 3, 4]])), "voters are replaced");
    }

    #[test]
    fn votes_of_a_later_term_replace_those_of_an_earlier_one() {
        let handover = Handover::default();
        let three = members(&[&[1, 2, 3]]);
        handover.granted(NodeId::new(3), granted(7, 40));
        handover.granted(NodeId::new(3), granted(9, 50));
        assert!(!elected(&handover, &three));
        handover.granted(NodeId::new(3), granted(7, 40));
        handover.granted(NodeId::new(1), granted(7, 40));
        assert!(!elected(&handover, &three), "late ones");
        assert!(handover.is_elected(NodeId::new(2), vote(9, 1, true), log_id(9, 50), &three));
    }

    fn request(term: u64, index: u64) -> VoteRequest<RaftTypes> {
        VoteRequest {
            vote: vote(term, 2, false),
            last_log_id: Some(log_id(7, index)),
            leadership_transfer: true,
        }
    }

    #[test]
    fn a_vote_answers_the_request_that_it_was_given_for_and_no_other() {
        let handover = Handover::default();
        handover.granted(NodeId::new(3), granted(7, 40));
        let answer = handover.answer(NodeId::new(3), &request(8, 40)).expect("given");
        assert!(answer.vote_granted);
        assert_eq!(handover.answer(NodeId::new(4), &request(8, 40)), None, "somebody else's");
        assert_eq!(handover.answer(NodeId::new(3), &request(9, 40)), None, "another term");
        assert_eq!(handover.answer(NodeId::new(3), &request(8, 39)), None, "a shorter log");
    }

    #[test]
    fn a_vote_tells_of_the_log_until_the_leader_begins() {
        let handover = Handover::default();
        let (leader, voter) = (vote(8, 2, true), NodeId::new(3));
        let answer =
            |granted, index| VoteResponse::new(vote(8, 2, false), Some(log_id(7, index)), granted);
        handover.voted(voter, &request(8, 40), &answer(true, 39));
        assert_eq!(handover.held(voter, &leader), None, "which of its entries are ours?");
        handover.voted(voter, &request(8, 40), &answer(false, 40));
        assert_eq!(handover.held(voter, &leader), None, "it follows somebody else");
        handover.voted(voter, &request(8, 40), &answer(true, 40));
        assert_eq!(handover.held(voter, &leader), Some(log_id(7, 40)));
        assert_eq!(handover.held(voter, &vote(9, 2, true)), None, "another term");
        assert_eq!(handover.voters(8), [(voter, log_id(7, 40))]);
        handover.begins(8);
        assert_eq!(handover.held(voter, &leader), None);
        handover.voted(NodeId::new(1), &request(8, 40), &answer(true, 40));
        assert_eq!(handover.held(NodeId::new(1), &leader), None, "too late");
    }
}
