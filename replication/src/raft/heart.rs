//! A node's heartbeats, and the elections of its groups ([`liveness`](super::liveness) has the rules).
//!
//! Once per interval the heart sends one heartbeat to each node that follows a group led here, and
//! looks at every replica: whether it is content or restless, and, where it leads, whether each
//! follower has heard the last that there is to hear. A look costs some hundred nanoseconds per
//! replica, and nothing waits for an event that could be missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meridian_storage::NodeId;
use meridian_truetime::{Env, EnvironmentExt, Moment, Timestamp, TrueTime, wait_until_after};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{VoteRequest, VoteResponse};
use openraft::vote::RaftLeaderId;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::handover::Handover;
use super::host::{Replicas, lock};
use super::lease::{Bond, Parting, Promised, Promises, Tenure};
use super::liveness::{Contact, Epoch, Liveness, Standing, Vouched};
use super::machine::RaftSnapshot;
use super::network::{Ceased, answer};
use super::replica::Replica;
use super::timing::{LEASE, Timing};
use super::types::{RaftTypes, Vote};
use crate::codec::{decode, encode};
use crate::net::{Incoming, Outgoing, Service, ServiceError, Transport};

/// The name of the service that nodes hear each other by.
pub(crate) const SERVICE: &str = "liveness";

/// What passes between a replica and its node's heart.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// The last leader that vouched for itself.
    vouched: Mutex<Option<Vouched>>,
    /// As a leader: what each follower has heard.
    told: Mutex<BTreeMap<NodeId, Told>>,
    /// The last entry applied here.
    applied: AtomicU64,
    /// How many wait for a majority to confirm this leader.
    confirming: AtomicUsize,
    /// The replica is restless, and a task sees to that it stands for election.
    restless: AtomicBool,
    /// Since when the replica leads, in which term.
    leads: Mutex<Option<(u64, Moment)>>,
    /// It leads and has reached no majority for a while.
    isolated: AtomicBool,
    /// The term in which it leads, and to whom it hands over.
    hands_over: Mutex<Option<(u64, NodeId)>>,
    /// openraft has given up, because its storage did.
    failed: AtomicBool,
    /// Whom this replica helps to lead.
    bond: Mutex<Bond>,
    /// The last leader that has ceased to act.
    ceased: Mutex<Option<Ceased>>,
    /// What it has done itself as a leader.
    tenure: Mutex<Tenure>,
    /// As a leader: who has heard it vouch, in which term and epoch.
    bound: Mutex<BTreeMap<NodeId, (u64, Epoch)>>,
    /// What those have said who voted for it in that term.
    parting: Mutex<(u64, Parting)>,
    /// The voters that are to replace the present ones.
    next_voters: Mutex<Vec<NodeId>>,
    /// Leadership that is handed to it.
    pub(crate) handover: Handover,
    /// The image whose shipping was interrupted last.
    interrupted: Mutex<Option<RaftSnapshot>>,
}

/// What a follower has heard from its leader, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    term: u64,
    epoch: Epoch,
    contact: Contact,
    /// Entries that it holds and knows to be committed.
    index: u64,
    at: Moment,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, heartbeats of the group are repeated until a majority has answered.
#[derive(Debug)]
pub(crate) struct Confirming<'p>(&'p Pulse);

impl Drop for Confirming<'_> {
    fn drop(&mut self) {
        self.0.confirming.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pulse {
    pub(crate) fn set_applied(&self, index: u64) {
        self.applied.store(index, Ordering::Relaxed);
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    pub(crate) fn confirming(&self) -> Confirming<'_> {
        self.confirming.fetch_add(1, Ordering::Relaxed);
        Confirming(self)
    }

    /// Whether the replica leads and has reached no majority for a while.
    pub(crate) fn is_isolated(&self) -> bool {
        self.isolated.load(Ordering::Relaxed)
    }

    /// Leadership of this term is handed over. False if it was before.
    pub(crate) fn hand_over(&self, term: u64, to: NodeId) -> bool {
        guard(&self.hands_over).replace((term, to)).is_none_or(|(of, _)| of != term)
    }

    pub(crate) fn hands_over(&self, term: u64) -> Option<NodeId> {
        guard(&self.hands_over).filter(|(of, _)| *of == term).map(|(_, to)| to)
    }

    /// An image did not arrive whole.
    pub(crate) fn set_interrupted(&self, snapshot: RaftSnapshot) {
        *guard(&self.interrupted) = Some(snapshot);
    }

    pub(crate) fn take_interrupted(&self) -> Option<RaftSnapshot> {
        guard(&self.interrupted).take()
    }

    /// Forgets an image that nobody went on with: it keeps pages of the data file from being used
    /// again.
    pub(crate) fn drop_interrupted(&self, number: u64) {
        guard(&self.interrupted).take_if(|last| last.snapshot.number == number);
    }

    /// A leader has vouched for itself.
    pub(crate) fn vouched(&self, vote: &Vote, epoch: Epoch) {
        let leader = NodeId::new(*vote.leader_id.node_id());
        *guard(&self.vouched) = Some(Vouched { leader, term: vote.leader_id.term, epoch });
    }

    /// A leader hands over: whatever comes of it, it doesn't vouch for itself any more.
    pub(crate) fn vouches_no_more(&self, vote: &Vote) {
        let mut vouched = guard(&self.vouched);
        if vouched.is_some_and(|vouched| vouched.term == vote.leader_id.term) {
            *vouched = None;
        }
    }

    /// A voter helps this leader in that term, as far as its node's promises under that epoch go.
    pub(crate) fn bound(&self, voter: NodeId, term: u64, epoch: Epoch) {
        guard(&self.bound).insert(voter, (term, epoch));
    }

    /// What somebody has said who voted for this replica.
    pub(crate) fn parted(&self, term: u64, parting: Parting) {
        let mut known = guard(&self.parting);
        match known.0.cmp(&term) {
            std::cmp::Ordering::Less => *known = (term, parting),
            std::cmp::Ordering::Equal => known.1 = known.1.and(parting),
            std::cmp::Ordering::Greater => {}
        }
    }

    /// What all have said who voted for it in that term.
    pub(crate) fn parting(&self, term: u64) -> Parting {
        let known = guard(&self.parting);
        if known.0 == term { known.1 } else { Parting::NONE }
    }

    /// As a leader that hands over: ceases to act. Up to where it has taken timestamps.
    pub(crate) fn cease(&self) -> Timestamp {
        guard(&self.tenure).cease()
    }

    /// A leader has ceased to act.
    pub(crate) fn release(&self, ceased: Ceased) {
        let Ceased { leader, term, taken } = ceased;
        guard(&self.bond).release(leader, term, taken);
        *guard(&self.ceased) = Some(ceased);
    }

    /// The last leader that has ceased to act, as far as is known here.
    pub(crate) fn ceased(&self) -> Option<Ceased> {
        *guard(&self.ceased)
    }

    /// A leader acts only with a lease of these, too.
    pub(crate) fn set_next_voters(&self, voters: Vec<NodeId>) {
        *guard(&self.next_voters) = voters;
    }

    /// Goes on as the replica of another group: the one that this was split from.
    pub(crate) fn inherit(&self, parent: &Self) {
        *guard(&self.bond) = *guard(&parent.bond);
        guard(&self.tenure).inherit(&guard(&parent.tenure));
    }

    /// As a leader: up to where it has taken timestamps.
    pub(crate) fn taken(&self) -> Timestamp {
        guard(&self.tenure).taken()
    }

    /// A follower has heard it.
    pub(crate) fn told(&self, follower: NodeId, told: Told) {
        guard(&self.told).insert(follower, told);
    }
}

/// What comes of a vote that is about to be given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parted {
    /// What the candidate has to know.
    pub(crate) parting: Parting,
    /// How often the replica has ceased to act by then.
    ceased: u64,
}

/// One node's heart.
#[derive(Debug)]
pub(crate) struct Heart {
    node: NodeId,
    env: Env,
    transport: Arc<dyn Transport>,
    timing: Timing,
    replicas: Arc<Replicas>,
    clock: Arc<dyn TrueTime>,
    liveness: Mutex<Liveness>,
    leases: Mutex<Leases>,
    /// A heartbeat is due at once.
    due: Notify,
}

#[derive(Debug)]
struct Leases {
    promises: Promises,
    promised: Promised,
}

/// A node says that it lives, and asks for a promise.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Beat {
    epoch: Epoch,
    until: Timestamp,
}

/// So does the answer; the promise is `None` where that epoch is over.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Answer {
    epoch: Epoch,
    promised: Option<Timestamp>,
}

impl Heart {
    /// A heart that will beat once [`Heart::run`] does.
    pub(crate) fn new(
        node: NodeId,
        env: Env,
        clock: Arc<dyn TrueTime>,
        transport: Arc<dyn Transport>,
        timing: Timing,
        replicas: Arc<Replicas>,
        begun_before: bool,
    ) -> Self {
        let (shortest, longest) = (timing.election_min, timing.election_max);
        let liveness = Liveness::new(env.random(), shortest, longest, env.fork_rng());
        let promises = if begun_before {
            Promises::after_restart(clock.now(), timing.lease)
        } else {
            Promises::new(timing.lease)
        };
        let leases = Leases { promises, promised: Promised::new(liveness.epoch()) };
        Self {
            node,
            env,
            transport,
            timing,
            replicas,
            clock,
            liveness: Mutex::new(liveness),
            leases: Mutex::new(leases),
            due: Notify::new(),
        }
    }

    /// Beats for as long as the node lives.
    pub(crate) async fn run(heart: Weak<Self>) {
        loop {
            let Some(heart) = heart.upgrade() else { return };
            let pause = heart.env.sleep(heart.timing.heartbeat);
            for peer in heart.look().await {
                let sending = Arc::clone(&heart);
                heart.env.spawn(async move { sending.beat(peer).await });
            }
            let due = std::pin::pin!(heart.due.notified());
            futures::future::select(pause, due).await;
        }
    }

    async fn beat(&self, peer: NodeId) {
        let until = self.clock.now().earliest.plus(self.timing.lease);
        let asked = self.epoch();
        let Ok(beat) = encode(&Beat { epoch: asked, until }) else { return };
        let answer = self.transport.call(peer, SERVICE, beat, self.timing.deadline()).await;
        let answer = answer.ok().and_then(|answer| decode(&answer).ok());
        let Some(Answer { epoch, promised }) = answer else { return };
        guard(&self.liveness).answered(self.env.moment(), peer, epoch);
        match promised {
            Some(until) => guard(&self.leases).promised.promised(peer, asked, until),
            None => self.renew(asked),
        }
    }

    /// Another epoch, unless that one is over already: leaders here have to vouch anew.
    fn renew(&self, epoch: Epoch) {
        let mut liveness = guard(&self.liveness);
        if liveness.epoch() == epoch {
            liveness.renew();
            guard(&self.leases).promised = Promised::new(liveness.epoch());
            self.due.notify_one();
        }
    }

    /// Promises itself what it asks of others.
    fn promise_itself(&self) {
        let (now, epoch) = (self.clock.now(), self.epoch());
        let mut leases = guard(&self.leases);
        let until = now.earliest.plus(self.timing.lease);
        match leases.promises.promise(now, self.node, epoch, until) {
            Some(until) => leases.promised.promised(self.node, epoch, until),
            None => {
                drop(leases);
                self.renew(epoch);
            }
        }
    }

    /// The leader of that term, on that node, has vouched for itself under that epoch.
    pub(crate) fn bind(&self, replica: &Replica, leader: NodeId, epoch: Epoch, term: u64) {
        let mut leases = guard(&self.leases);
        guard(&replica.pulse.bond).bind(&mut leases.promises, leader, epoch, term);
    }

    /// A replica here is about to vote for a candidate; what that has to know of earlier leaders. Of
    /// no use for this replica's own leadership from here on: see [`Heart::stay`].
    pub(crate) fn part(&self, replica: &Replica, candidate: NodeId) -> Parted {
        let epoch = self.epoch_of(candidate);
        let mut leases = guard(&self.leases);
        let mut bond = guard(&replica.pulse.bond);
        let mut tenure = guard(&replica.pulse.tenure);
        if candidate != self.node {
            let taken = tenure.cease();
            if bond.to().is_some_and(|(node, _)| node == self.node) {
                // It knows what it has done.
                bond.release_own(taken);
            }
        }
        let parting = bond.part(&mut leases.promises, candidate, epoch);
        Parted { parting, ceased: tenure.ceased() }
    }

    /// The replica didn't vote for it. If it leads, and hands over to nobody, it goes on.
    pub(crate) fn stay(&self, replica: &Replica, parted: Parted) {
        let Some(term) = replica.leads() else { return };
        let epoch = self.epoch();
        let mut leases = guard(&self.leases);
        let mut bond = guard(&replica.pulse.bond);
        if replica.pulse.hands_over(term).is_none()
            && guard(&replica.pulse.tenure).resume(term, parted.ceased)
        {
            bond.bind(&mut leases.promises, self.node, epoch, term);
            replica.pulse.bound(self.node, term, epoch);
        }
    }

    /// Votes for a new leader that is known to be in that epoch, and helps it from here on: what is
    /// promised to it.
    pub(crate) fn help(
        &self,
        replica: &Replica,
        leader: NodeId,
        epoch: Epoch,
        term: u64,
    ) -> Option<Timestamp> {
        let now = self.clock.now();
        let mut leases = guard(&self.leases);
        let until = now.earliest.plus(self.timing.lease);
        let promised = leases.promises.promise(now, leader, epoch, until)?;
        guard(&replica.pulse.bond).bind(&mut leases.promises, leader, epoch, term);
        Some(promised)
    }

    /// A voter helps a leader here.
    pub(crate) fn helped(&self, by: NodeId, epoch: Epoch, until: Timestamp) {
        guard(&self.leases).promised.promised(by, epoch, until);
    }

    /// The epoch of a node, as far as it is known.
    pub(crate) fn epoch_of(&self, node: NodeId) -> Option<Epoch> {
        let liveness = guard(&self.liveness);
        if node == self.node { Some(liveness.epoch()) } else { liveness.epoch_of(node) }
    }

    /// The leader of that term, here, begins to act once nobody else does; above which timestamp.
    pub(crate) async fn begin(&self, replica: &Replica, term: u64) -> Timestamp {
        // It may have asked nobody for promises yet.
        self.due.notify_one();
        let parting = replica.pulse.parting(term).and(self.part(replica, self.node).parting);
        wait_until_after(&*self.env, &*self.clock, parting.until).await;
        self.promise_itself();
        self.bind_itself(replica, term);
        guard(&replica.pulse.tenure).begin(term, parting.taken)
    }

    fn bind_itself(&self, replica: &Replica, term: u64) {
        let epoch = self.epoch();
        self.bind(replica, self.node, epoch, term);
        replica.pulse.bound(self.node, term, epoch);
    }

    /// The end of the lease of a leader here.
    pub(crate) fn lease(&self, replica: &Replica, term: u64) -> Option<Timestamp> {
        let epoch = self.epoch();
        let configs = replica.voters();
        let next = guard(&replica.pulse.next_voters).clone();
        let (leases, bound) = (guard(&self.leases), guard(&replica.pulse.bound));
        let helps = |voter| bound.get(&voter) == Some(&(term, epoch));
        let configs = configs.iter().chain((!next.is_empty()).then_some(&next));
        let ends = configs.map(|voters| leases.promised.lease(voters, helps));
        ends.min().flatten()
    }

    /// Takes a timestamp for the leader of that term, here: within its lease, whose end is returned.
    pub(crate) fn take(&self, replica: &Replica, term: u64, at: Timestamp) -> Option<Timestamp> {
        let end = self.lease(replica, term)?;
        let taken = guard(&replica.pulse.tenure).take(self.clock.now(), term, at, end);
        taken.then_some(end)
    }

    /// Looks at every replica. The nodes to send heartbeats to.
    async fn look(self: &Arc<Self>) -> BTreeSet<NodeId> {
        let replicas: Vec<Replica> = lock(&self.replicas).values().cloned().collect();
        let mut peers = BTreeSet::new();
        self.promise_itself();
        let epoch = self.epoch();
        for replica in replicas {
            let pulse = &replica.pulse;
            if pulse.failed.load(Ordering::Relaxed) {
                continue;
            }
            if replica.has_failed() {
                pulse.failed.store(true, Ordering::Relaxed);
                tracing::error!(node = %self.node, group = %replica.group, "a replica has failed");
                self.ended(&replica);
                continue;
            }
            let now = self.env.moment();
            let (standing, followers) = self.standing(&replica);
            if self.is_restless(&replica, standing) && !pulse.restless.swap(true, Ordering::Relaxed)
            {
                let heart = Arc::downgrade(self);
                self.env.spawn(Self::stand(heart, replica.clone(), standing));
            }
            let Standing::Leads { term } = standing else {
                *guard(&pulse.leads) = None;
                pulse.isolated.store(false, Ordering::Relaxed);
                continue;
            };
            let since = {
                let mut leads = guard(&pulse.leads);
                leads.filter(|(of, _)| *of == term).unwrap_or_else(|| *leads.insert((term, now))).1
            };
            // Who was just elected has reached a majority.
            let elected = now.since(since) <= self.timing.election_max;
            pulse.isolated.store(!elected && !self.reaches(&followers), Ordering::Relaxed);
            let bound = guard(&pulse.bound).get(&self.node).copied();
            if bound != Some((term, epoch)) && guard(&pulse.tenure).term() == term {
                // There is another epoch.
                self.bind_itself(&replica, term);
            }
            if let Some(to) = pulse.hands_over(term) {
                replica.hand_over(to).await;
            } else if pulse.confirming.load(Ordering::Relaxed) > 0
                || followers.iter().any(|follower| self.is_to_hear(pulse, follower.node, term))
            {
                replica.announce().await;
            }
            peers.extend(followers.iter().map(|follower| follower.node));
        }
        peers
    }

    /// Stands for election until the replica is content.
    async fn stand(heart: Weak<Self>, replica: Replica, seen: Standing) {
        let (shortest, longest, env, mut rng) = {
            let Some(heart) = heart.upgrade() else { return };
            let Timing { election_min, election_max, .. } = heart.timing;
            (election_min, election_max, Arc::clone(&heart.env), heart.env.fork_rng())
        };
        let mut pause = match seen {
            _ if replica.votes_alone() => Duration::ZERO,
            // Who begins misses nobody yet, and somebody may claim to lead.
            Standing::Unled => rng.random_range(shortest..longest),
            // The others have lost their leader just now, too.
            _ => rng.random_range(Duration::ZERO..shortest / 2),
        };
        loop {
            env.sleep(pause).await;
            pause = rng.random_range(shortest..longest);
            let Some(heart) = heart.upgrade() else { return };
            let (standing, _) = heart.standing(&replica);
            if !heart.is_restless(&replica, standing) || replica.has_failed() {
                replica.pulse.restless.store(false, Ordering::Relaxed);
                return;
            }
            if standing != Standing::Unled {
                replica.give_up_lease().await;
            }
            replica.stand().await;
        }
    }

    fn is_restless(&self, replica: &Replica, standing: Standing) -> bool {
        let vouched = *guard(&replica.pulse.vouched);
        guard(&self.liveness).is_restless(self.env.moment(), standing, vouched)
    }

    /// How a replica stands; for a leader, with the other members.
    fn standing(&self, replica: &Replica) -> (Standing, Vec<Follower>) {
        let metrics = replica.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let vote = &metrics.vote;
        let (leader, term) = (NodeId::new(*vote.leader_id.node_id()), vote.leader_id.term);
        let here = leader == self.node;
        if !vote.committed || (here && metrics.state != ServerState::Leader) {
            (Standing::Unled, Vec::new())
        } else if here {
            let membership = metrics.membership_config.membership();
            let followers = membership.nodes().filter(|(id, _)| **id != self.node.get());
            let followers = followers.map(|(id, _)| Follower {
                node: NodeId::new(*id),
                votes: membership.voter_ids().any(|voter| voter == *id),
            });
            (Standing::Leads { term }, followers.collect())
        } else {
            (Standing::Follows { leader, term }, Vec::new())
        }
    }

    /// Whether a leader reaches a majority of its voters, itself one of them.
    fn reaches(&self, followers: &[Follower]) -> bool {
        let (now, liveness) = (self.env.moment(), guard(&self.liveness));
        let voters = followers.iter().filter(|follower| follower.votes);
        let reached = voters.clone().filter(|f| liveness.contact(now, f.node).is_some()).count();
        (reached + 1) * 2 > voters.count() + 1
    }

    /// Whether a follower that can be reached has something to hear from its leader.
    fn is_to_hear(&self, pulse: &Pulse, follower: NodeId, term: u64) -> bool {
        let now = self.env.moment();
        let (epoch, contact) = {
            let liveness = guard(&self.liveness);
            (liveness.epoch(), liveness.contact(now, follower))
        };
        let Some(contact) = contact else { return false };
        let Some(told) = guard(&pulse.told).get(&follower).copied() else { return true };
        (told.term, told.epoch, told.contact) != (term, epoch, contact)
            || told.index < pulse.applied.load(Ordering::Relaxed)
            || now.since(told.at) > LEASE / 3
    }

    pub(crate) fn epoch(&self) -> Epoch {
        guard(&self.liveness).epoch()
    }

    /// What a follower will have heard when it answers the heartbeat that is sent now: it holds
    /// the entries up to `matched` and learns that those up to `committed` are committed.
    pub(crate) fn telling(
        &self,
        follower: NodeId,
        term: u64,
        matched: u64,
        committed: u64,
    ) -> Option<Told> {
        let (at, liveness) = (self.env.moment(), guard(&self.liveness));
        let contact = liveness.contact(at, follower)?;
        let index = matched.min(committed);
        Some(Told { term, epoch: liveness.epoch(), contact, index, at })
    }

    /// A replica ends here while the node goes on: whatever leaders here have vouched for is to be
    /// heard anew.
    pub(crate) fn ended(&self, replica: &Replica) {
        if replica.leads().is_some() {
            replica.pulse.cease();
            self.renew(self.epoch());
        }
    }

    /// What a candidate is answered at once: no, if the group has a leader that is content, here or
    /// elsewhere; and by a leader that isn't, that it may well stand. `None` leaves it to openraft,
    /// whose lease is given up.
    pub(crate) async fn verdict(
        &self,
        replica: &Replica,
        candidate: NodeId,
        request: &VoteRequest<RaftTypes>,
    ) -> Option<VoteResponse<RaftTypes>> {
        let (standing, followers) = self.standing(replica);
        let vote = replica.raft.server_metrics().borrow_watched().vote;
        let content = match standing {
            Standing::Unled => return None,
            Standing::Follows { leader, .. } => {
                leader != candidate && !self.is_restless(replica, standing)
            }
            Standing::Leads { term } => {
                replica.pulse.hands_over(term).is_none() && self.reaches(&followers)
            }
        };
        // Who knows of a later term stands for one later still.
        let knows_later = request.vote.leader_id.term > vote.leader_id.term + 1;
        if content && !knows_later {
            // It shall hear of its leader at once.
            guard(&replica.pulse.told).remove(&candidate);
            return Some(VoteResponse::new(vote, None, false));
        }
        if let Standing::Leads { .. } = standing {
            return Some(VoteResponse::new(vote, None, true));
        }
        replica.give_up_lease().await;
        None
    }
}

/// A member of a group that is led here.
#[derive(Clone, Copy, Debug)]
struct Follower {
    node: NodeId,
    votes: bool,
}

/// Hears the heartbeats of other nodes.
#[derive(Debug)]
pub(crate) struct HeartService(pub(crate) Arc<Heart>);

#[async_trait]
impl Service for HeartService {
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        let Beat { epoch, until } = decode(&request).map_err(ServiceError::new)?;
        let heart = &self.0;
        guard(&heart.liveness).heard(heart.env.moment(), from, epoch);
        let now = heart.clock.now();
        let promised = guard(&heart.leases).promises.promise(now, from, epoch, until);
        answer(&Answer { epoch: heart.epoch(), promised })
    }

    async fn stream(&self, _: NodeId, _: Incoming, _: Outgoing) -> Result<(), ServiceError> {
        Err(ServiceError::new("heartbeats are calls"))
    }
}
