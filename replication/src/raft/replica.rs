//! One node's replica of one group.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::metrics::RaftMetrics;
use openraft::raft::{ClientWriteResponse, ClientWriteResult, TransferLeaderRequest};
use openraft::type_config::alias::OneshotReceiverOf;
use openraft::vote::RaftLeaderId;
use openraft::{ChangeMembers, LinearizerOption, ReadPolicy, ServerState};

use super::handover::{self, Handing};
use super::heart::Pulse;
use super::types::{Command, LeaderId, Member, Raft, RaftTypes};
use crate::state_machine::StateMachine;

/// No node has this id: their ids begin at 1.
const NOBODY: u64 = 0;

/// Why a proposal was not answered with its result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica doesn't lead; the proposal was not logged.
    #[error("this replica does not lead its group")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// The proposal may be committed or not.
    #[error("the outcome of the proposal is unknown: {0}")]
    Unknown(String),
}

/// Why a replica could not confirm that it leads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmError {
    /// Another replica leads, or none does.
    #[error("this replica does not lead its group")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// No majority answered, or the replica has stopped.
    #[error("leadership can't be confirmed: {0}")]
    Unavailable(String),
}

/// How a replica stands in its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The group.
    pub group: TabletId,
    /// Raft's current term here.
    pub term: u64,
    /// The leader known here.
    pub leader: Option<NodeId>,
    /// The last entry in this replica's log.
    pub last_index: u64,
    /// The last entry that this replica has applied.
    pub applied_index: u64,
    /// The voters.
    pub voters: Vec<NodeId>,
    /// On the leader: the last entry that each follower is known to hold.
    pub matched: BTreeMap<NodeId, u64>,
}

/// How often one looks whether there is a lease.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Who lags by more entries is not handed leadership.
const FAR_BEHIND: u64 = 1_000;

/// A command that was handed to the log.
pub struct Submitted(OneshotReceiverOf<RaftTypes, ClientWriteResult<RaftTypes>>);

impl Submitted {
    /// Waits until the command is committed and applied here; its answer.
    ///
    /// # Errors
    /// [`ProposeError`] tells whether the command can still take effect.
    pub async fn outcome(self) -> Result<Bytes, ProposeError> {
        match self.0.await {
            Ok(Ok(written)) => Ok(written.data.0),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_id.map(NodeId::new) })
            }
            Ok(Err(error)) => Err(ProposeError::Unknown(error.to_string())),
            Err(_) => Err(ProposeError::Unknown("the replica has stopped".into())),
        }
    }
}

impl fmt::Debug for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Submitted")
    }
}

/// A handle to one node's replica of one group.
#[derive(Clone)]
pub struct Replica {
    pub(crate) group: TabletId,
    pub(crate) node: NodeId,
    pub(crate) raft: Raft,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) handing: Arc<Handing>,
    /// How long a confirmation may take, on openraft's clock.
    pub(crate) patience: Duration,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("group", &self.group).finish_non_exhaustive()
    }
}

fn changed(
    result: Result<
        ClientWriteResponse<RaftTypes>,
        RaftError<RaftTypes, ClientWriteError<RaftTypes>>,
    >,
) -> Result<(), ProposeError> {
    match result {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Err(ProposeError::NotLeader { leader: forward.leader_id.map(NodeId::new) })
        }
        Err(error) => Err(ProposeError::Unknown(error.to_string())),
    }
}

impl Replica {
    /// The group.
    #[must_use]
    pub fn group(&self) -> TabletId {
        self.group
    }

    /// The term in which this replica leads, if it believes that it does.
    ///
    /// Everything here that asks who leads asks openraft's server metrics. Its other views
    /// (`metrics`, `as_leader`) change a moment later: whoever waited for a change of the one and
    /// then looked at the other would miss it.
    #[must_use]
    pub fn leads(&self) -> Option<u64> {
        Some(self.leadership()?.term)
    }

    fn leadership(&self) -> Option<LeaderId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let vote = metrics.vote;
        // After a restart the metrics have the vote of the earlier life, which is no leader's now.
        let leads = vote.committed && metrics.state == ServerState::Leader;
        (leads && *vote.leader_id.node_id() == self.node.get()).then_some(vote.leader_id)
    }

    /// The leader that this replica knows of.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow_watched().current_leader.map(NodeId::new)
    }

    /// Whom to ask for the leader: the one that this replica knows of, or voted for last.
    #[must_use]
    pub fn probable_leader(&self) -> Option<NodeId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let candidate = (!metrics.vote.committed).then_some(*metrics.vote.leader_id.node_id());
        let other = candidate.filter(|candidate| *candidate != self.node.get());
        metrics.current_leader.or(other).map(NodeId::new)
    }

    /// Hands a command to the log of the term in which the caller saw this replica lead. Commands
    /// are logged in the order in which these calls return.
    ///
    /// # Errors
    /// When the replica has stopped; the command may have been logged.
    pub async fn submit(&self, term: u64, command: Bytes) -> Result<Submitted, ProposeError> {
        let here = self.leadership().filter(|_| !self.is_isolated());
        let Some(leader) = here.filter(|leader| leader.term == term) else {
            return Err(ProposeError::NotLeader { leader: self.probable_leader() });
        };
        let leader = leader.to_committed();
        let (responder, outcome) = ProgressResponder::<RaftTypes, _>::complete_only();
        let sent = self.raft.write(Command(command)).with_leader(leader).responder(responder).await;
        sent.map_err(|error| ProposeError::Unknown(error.to_string()))?;
        Ok(Submitted(outcome))
    }

    /// Confirms with a majority that this replica leads, and waits until it has applied everything
    /// that was committed when the call began. The term it leads in.
    ///
    /// # Errors
    /// [`ConfirmError`] when it doesn't lead or can't be sure.
    pub async fn confirm(&self) -> Result<u64, ConfirmError> {
        let Some(term) = self.leads() else {
            return Err(ConfirmError::NotLeader { leader: self.probable_leader() });
        };
        let _repeated = self.pulse.confirming();
        let read_index = LinearizerOption::from(ReadPolicy::ReadIndex);
        let read_index = read_index.with_wait_timeout(self.patience);
        let ready = match self.raft.get_read_linearizer(read_index).await {
            Ok(linearizer) => linearizer.await_ready(&self.raft).await,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                return Err(ConfirmError::NotLeader { leader: forward.leader_id.map(NodeId::new) });
            }
            Err(error) => return Err(ConfirmError::Unavailable(error.to_string())),
        };
        ready.map_err(|error| ConfirmError::Unavailable(error.to_string()))?;
        // A term that ended while we waited was confirmed by nobody.
        match self.leads() {
            Some(now) if now == term => Ok(term),
            _ => Err(ConfirmError::NotLeader { leader: self.probable_leader() }),
        }
    }

    /// Waits, at the beginning of a term that this replica leads, until everything that earlier
    /// terms have committed is applied here, and no earlier leader acts any more. Above the timestamp
    /// that is returned it may take its own ([`Replica::take`]).
    ///
    /// # Errors
    /// [`ConfirmError`] when it doesn't lead any more, or can't be sure.
    pub async fn begin(&self, term: u64) -> Result<Timestamp, ConfirmError> {
        let begun = handover::begin(self, term).await;
        let begun = begun.map_err(|error| ConfirmError::Unavailable(error.to_string()))?;
        let confirmed = if begun { self.leads() } else { Some(self.confirm().await?) };
        if confirmed == Some(term)
            && let Some(heart) = self.handing.heart.upgrade()
        {
            let above = heart.begin(self, term).await;
            if self.leads() == Some(term) {
                return Ok(above);
            }
        }
        Err(ConfirmError::NotLeader { leader: self.probable_leader() })
    }

    /// Takes a timestamp, or promises that there will be none up to it, within the lease of a leader
    /// that has begun: every later leader's timestamps are above it, and at this moment there is none.
    /// The end of the lease; `None` if there is none, or it ends before.
    #[must_use]
    pub fn take(&self, term: u64, at: Timestamp) -> Option<Timestamp> {
        self.handing.heart.upgrade()?.take(self, term, at)
    }

    /// The index of the last entry that is applied here. A view of the data that is opened after
    /// this returns has it.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.pulse.applied()
    }

    /// Whether the replica leads and has reached no majority for a while: it takes no commands.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.pulse.is_isolated()
    }

    /// To whom a leader hands over, if it has begun to: it has no lease any more.
    #[must_use]
    pub fn hands_over(&self, term: u64) -> Option<NodeId> {
        self.pulse.hands_over(term)
    }

    /// The voters: those of each configuration that is in force.
    pub(crate) fn voters(&self) -> Vec<Vec<NodeId>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let configs = metrics.membership_config.membership().get_joint_config();
        configs.iter().map(|config| config.iter().copied().map(NodeId::new).collect()).collect()
    }

    /// Whether leadership was just being handed to this replica, and that has come to an end now.
    pub async fn handed_over(&self) -> bool {
        self.pulse.handover.ended().await
    }

    /// Waits until leadership, as seen from here, is something else than `seen`: the term in which
    /// this replica leads, or none. `None` when the replica has stopped.
    pub async fn leadership_changed(&self, seen: Option<u64>) -> Option<Option<u64>> {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leads = self.leads();
            if leads != seen {
                return Some(leads);
            }
            metrics.changed().await.ok()?;
        }
    }

    /// Adds a member that follows without voting. A member already is left as it is.
    ///
    /// # Errors
    /// [`ProposeError`], also when another change of members is under way.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ProposeError> {
        changed(self.raft.add_learner(node.get(), Member, false).await)
    }

    /// Replaces the voters, all of whom must be members, by joint consensus; also finishes a
    /// replacement that an earlier leader has begun. Who votes no longer follows still.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn replace_voters(&self, voters: &[NodeId]) -> Result<(), ProposeError> {
        // Who is elected by the new ones must hear from them of what this leader has done.
        self.pulse.set_next_voters(voters.to_vec());
        let changed = match self.lease_of_all().await {
            Ok(()) => {
                let voters = voters.iter().map(|voter| voter.get()).collect();
                let voters = ChangeMembers::ReplaceAllVoters(voters);
                changed(self.raft.change_membership(voters, true).await)
            }
            Err(error) => Err(error),
        };
        self.pulse.set_next_voters(Vec::new());
        changed
    }

    /// Waits until what this leader has taken lies within its lease.
    async fn lease_of_all(&self) -> Result<(), ProposeError> {
        let Handing { env, timing, .. } = &*self.handing;
        let give_up = env.moment().plus(timing.deadline());
        loop {
            let Some(term) = self.leads() else {
                return Err(ProposeError::NotLeader { leader: self.probable_leader() });
            };
            if self.take(term, self.pulse.taken()).is_some() {
                return Ok(());
            }
            if env.moment() > give_up {
                return Err(ProposeError::Unknown("there is no lease of the new voters".into()));
            }
            env.sleep(LOOK_AGAIN).await;
        }
    }

    /// Removes members that don't vote.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn remove_learners(&self, nodes: &[NodeId]) -> Result<(), ProposeError> {
        let nodes = ChangeMembers::RemoveNodes(nodes.iter().map(|n| n.get()).collect());
        changed(self.raft.change_membership(nodes, false).await)
    }

    /// Tells the followers at once how far the log is committed.
    pub async fn announce(&self) {
        let _ = self.raft.trigger().heartbeat().await;
    }

    /// Stands for election, unless the others still hear from a leader.
    pub async fn stand(&self) {
        let _ = self.raft.trigger().elect(true).await;
    }

    /// Hands leadership to `to` as soon as it holds what is in the log now, or after a moment: it
    /// takes over when it has the whole log. Nothing happens while that is far from it.
    pub async fn transfer_leader(&self, to: NodeId) {
        let last = self.status().last_index;
        let holds = |metrics: &RaftMetrics<RaftTypes>| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&to.get()));
            metrics.state != ServerState::Leader
                || matched.is_some_and(|at| at.is_some_and(|at| at.index >= last))
        };
        let wait = self.raft.wait(Some(self.handing.timing.heartbeat));
        let _ = wait.metrics(holds, "the new leader holds the log").await;
        self.hand_over(to).await;
    }

    /// Hands leadership to `to`, now.
    pub(crate) async fn hand_over(&self, to: NodeId) {
        let Some(term) = self.leads() else { return };
        let status = self.status();
        let matched = status.matched.get(&to).copied().unwrap_or_default();
        if matched + FAR_BEHIND < status.last_index {
            return;
        }
        self.pulse.handover.set_caught_up(matched);
        let begins = self.pulse.hand_over(term, to);
        let _ = self.raft.trigger().transfer_leader(to.get()).await;
        if begins {
            self.handing.resign(self.clone(), term, to);
        }
    }

    /// How the replica stands.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let matched = metrics.replication.unwrap_or_default();
        ReplicaStatus {
            group: self.group,
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId::new),
            last_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            voters: metrics.membership_config.membership().voter_ids().map(NodeId::new).collect(),
            matched: matched
                .into_iter()
                .map(|(node, at)| (NodeId::new(node), at.map_or(0, |id| id.index)))
                .collect(),
        }
    }

    /// Whether openraft has given up, as it does when the log or the data can't be written.
    pub(crate) fn has_failed(&self) -> bool {
        self.raft.metrics().borrow_watched().running_state.is_err()
    }

    /// Whether nobody else votes.
    pub(crate) fn votes_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let membership = metrics.borrow_watched().membership_config.membership().clone();
        let mut voters = membership.voter_ids();
        voters.next() == Some(self.node.get()) && voters.next().is_none()
    }

    /// Gives up openraft's lease of a leader that is heard no more, so that this replica may stand
    /// for election and vote: as when the leader hands over to somebody else.
    pub(crate) async fn give_up_lease(&self) {
        let vote = self.raft.server_metrics().borrow_watched().vote;
        let request = TransferLeaderRequest::new(vote, NOBODY, None);
        let _ = self.raft.handle_transfer_leader(request).await;
    }

    /// Ends the replica's tasks.
    pub(crate) async fn shutdown(&self) {
        let _ = self.raft.shutdown().await;
    }

    /// Which node this is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }
}
