//! Who a node is to its peers, and who they are to it.
//!
//! Every request carries the sender's cluster, node and store, and the store by which the sender
//! knows the receiver. The receiver refuses what doesn't fit, before any service sees it:
//!
//! ```text
//!  what doesn't fit                              verdict     who has to go
//!  --------------------------------------------- ----------- ------------------------------------
//!  another cluster                               Cluster     whoever is configured wrongly
//!  the request is for another node               Address     nobody; the list of nodes is wrong
//!  the sender is known here by another store     Impostor    the sender
//!  the sender knows this node by another store   Changed     this node, if the sender is in order
//!  (at a cluster's beginning) other voters       Voters      nobody; the lists of nodes differ
//! ```
//!
//! A node that is met for the first time is remembered on disk before anything else is said. Two
//! nodes that don't know each other begin with a *meeting*, a request that does nothing else; it
//! also spreads the news of how the cluster began.
//!
//! This guards against mistakes, not against malice: nobody proves anything. A copy of a folder is
//! the same store.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use meridian_storage::{Identity, NodeId, StoreId};
use tokio::sync::watch;

use crate::net::NetError;

/// How many different complaints are logged.
const MAX_COMPLAINTS: usize = 100;

/// Why a node won't talk to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are of different clusters.
    Cluster,
    /// The address leads to another node.
    Address,
    /// The asked node knows the asking one by another store.
    Impostor,
    /// The asking node knows the asked one by another store.
    Changed,
    /// They disagree on the first voters of a cluster that is about to begin.
    Voters,
}

impl Verdict {
    const ALL: [Self; 5] =
        [Self::Cluster, Self::Address, Self::Impostor, Self::Changed, Self::Voters];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Address => "address",
            Self::Impostor => "impostor",
            Self::Changed => "changed",
            Self::Voters => "voters",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }
}

/// A refusal to talk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What doesn't fit.
    pub verdict: Verdict,
    /// For people; names both nodes.
    pub reason: String,
}

/// Why two nodes didn't meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeetError {
    /// The other one can't be reached at present.
    #[error(transparent)]
    Unreachable(#[from] NetError),
    /// One of the two won't talk to the other.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What a request says of its sender and its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub cluster: String,
    pub from: NodeId,
    pub store: StoreId,
    pub to: NodeId,
    /// The store by which the sender knows the receiver.
    pub knows: Option<StoreId>,
}

/// How a cluster began or would begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    pub voters: Vec<NodeId>,
    /// Whether it has.
    pub done: bool,
}

/// A node's identity and its memory of the others, as its transport uses them.
pub struct Passport {
    identity: Arc<Identity>,
    /// The first voters, if the cluster has yet to begin.
    proposal: Vec<NodeId>,
    exposed: watch::Sender<Option<String>>,
    /// What was complained about, so that it is logged once.
    complaints: Mutex<BTreeSet<String>>,
}

impl fmt::Debug for Passport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passport").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Passport {
    /// The passport of a node that would begin a new cluster with the voters `proposal`.
    #[must_use]
    pub fn new(identity: Arc<Identity>, proposal: Vec<NodeId>) -> Self {
        let exposed = watch::Sender::new(None);
        Self { identity, proposal, exposed, complaints: Mutex::default() }
    }

    /// The identity that it was issued for.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Completes when a peer knows this node by another store, with the reason: then this is not
    /// the node that it claims to be, and it must stop.
    pub async fn exposed(&self) -> String {
        let mut exposed = self.exposed.subscribe();
        loop {
            let reason = exposed.borrow_and_update().clone();
            if let Some(reason) = reason {
                return reason;
            }
            if exposed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub(super) fn expose(&self, reason: &str) {
        self.exposed.send_if_modified(|exposed| {
            let first = exposed.is_none();
            if first {
                *exposed = Some(reason.to_owned());
            }
            first
        });
    }

    pub(super) fn claim(&self, to: NodeId) -> Claim {
        Claim {
            cluster: self.identity.cluster().to_owned(),
            from: self.identity.node(),
            store: self.identity.store(),
            to,
            knows: self.identity.store_of(to),
        }
    }

    pub(super) fn beginning(&self) -> Beginning {
        match self.identity.first_voters() {
            Some(voters) => Beginning { voters, done: true },
            None => Beginning { voters: self.proposal.clone(), done: false },
        }
    }

    /// Judges the sender of a request, and remembers it if it is new.
    pub(super) fn admit(&self, claim: &Claim) -> Result<(), Refusal> {
        let judged = self.judge(claim);
        if let Err(refusal) = &judged {
            self.complain(&refusal.reason);
        }
        judged
    }

    fn judge(&self, claim: &Claim) -> Result<(), Refusal> {
        let refuse = |verdict, reason| Err(Refusal { verdict, reason });
        let identity = &*self.identity;
        let (me, you) = (identity.node().get(), claim.from.get());
        if claim.cluster != identity.cluster() {
            let reason = format!(
                "node {me} at this address belongs to cluster {}, not to {}",
                identity.cluster(),
                claim.cluster
            );
            return refuse(Verdict::Cluster, reason);
        }
        if claim.to != identity.node() {
            let reason = format!("node {me} is at this address, not node {}", claim.to.get());
            return refuse(Verdict::Address, reason);
        }
        let known = if claim.from == identity.node() {
            Some(identity.store())
        } else {
            identity.store_of(claim.from)
        };
        if let Some(known) = known.filter(|known| *known != claim.store) {
            let reason = format!(
                "node {me} knows node {you} by the store {known}; the node that called has the \
                 store {}",
                claim.store
            );
            return refuse(Verdict::Impostor, reason);
        }
        if let Some(expected) = claim.knows.filter(|expected| *expected != identity.store()) {
            let reason = format!(
                "node {you} knows node {me} by the store {expected}; the node that was called has \
                 the store {}",
                identity.store()
            );
            self.expose(&reason);
            return refuse(Verdict::Changed, reason);
        }
        self.remember(claim.from, claim.store)
    }

    /// Remembers a node that introduced itself.
    pub(super) fn remember(&self, node: NodeId, store: StoreId) -> Result<(), Refusal> {
        let verdict = Verdict::Changed;
        match self.identity.meet(node, store) {
            Ok(known) if known == store => Ok(()),
            Ok(known) => {
                let reason = format!(
                    "node {} was met with the store {known}, and now has {store}",
                    node.get()
                );
                Err(Refusal { verdict, reason })
            }
            Err(error) => {
                let reason = format!("node {} can't be remembered: {error}", node.get());
                Err(Refusal { verdict, reason })
            }
        }
    }

    /// Compares how the cluster began as seen from here and from `node`, and learns of it.
    pub(super) fn agree(&self, node: NodeId, theirs: &Beginning) -> Result<(), Refusal> {
        let ours = self.beginning();
        let list = |nodes: &[NodeId]| {
            let list: Vec<String> = nodes.iter().map(|node| node.get().to_string()).collect();
            list.join(", ")
        };
        let [mine, yours] = [list(&ours.voters), list(&theirs.voters)];
        let (me, you) = (self.identity.node().get(), node.get());
        match (ours.done, theirs.done) {
            (true, true) if ours.voters != theirs.voters => {
                let reason = format!(
                    "nodes {me} and {you} belong to different clusters, both called {}: one began \
                     with the voters {mine}, the other with {yours}",
                    self.identity.cluster()
                );
                Err(Refusal { verdict: Verdict::Cluster, reason })
            }
            (false, false) if ours.voters != theirs.voters => {
                let reason = format!(
                    "a new cluster would begin with the voters {mine} in node {me}'s configuration, \
                     and with {yours} in node {you}'s"
                );
                Err(Refusal { verdict: Verdict::Voters, reason })
            }
            (false, true) => self.identity.begin(&theirs.voters).map_err(|error| Refusal {
                verdict: Verdict::Voters,
                reason: format!("the cluster's beginning can't be remembered: {error}"),
            }),
            _ => Ok(()),
        }
    }

    /// Logs what is wrong with a peer, once.
    pub(super) fn complain(&self, reason: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < MAX_COMPLAINTS && complaints.insert(reason.to_owned()) {
            tracing::warn!("{reason}");
        }
    }
}
