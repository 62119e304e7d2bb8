//! Meeting the other nodes, and how a cluster begins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_replication::net::GrpcTransport;
use meridian_replication::net::grpc::{Latency, MeetError, Passport, Refusal, Verdict};
use meridian_storage::NodeId;
use meridian_truetime::{Env, EnvironmentExt};

use super::StartError;
use super::config::StartConfig;
use crate::console::say;

/// How long a node that is introduced to may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Between two rounds of introductions while the cluster has yet to begin.
const PAUSE: Duration = Duration::from_millis(100);

/// A process that must not run as the node that it claims to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another node knows better.
    #[error("this must not run as node {} of cluster {cluster}: {reason}", node.get())]
    Verdict {
        /// The node that it claims to be.
        node: NodeId,
        /// The cluster.
        cluster: String,
        /// What doesn't fit.
        verdict: Verdict,
        /// What the other node says.
        reason: String,
    },
    /// The list of nodes has lost one of the first voters.
    #[error(
        "node {} is missing in the list of nodes: it has a replica of the system tablet",
        node.get()
    )]
    Missing {
        /// The node.
        node: NodeId,
    },
}

impl Refused {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Verdict { verdict: Verdict::Cluster, .. } => {
                "Correct the cluster's name, or the addresses in the list of nodes.".into()
            }
            Self::Verdict { verdict: Verdict::Address, .. } => {
                "Correct the addresses in the list of nodes, or node in the other's configuration."
                    .into()
            }
            Self::Verdict { verdict: Verdict::Voters, .. } => {
                "When a cluster begins, all nodes must have the same list of nodes in the same \
                 order, and the same voters."
                    .into()
            }
            Self::Verdict { node, .. } => format!(
                "If another process runs as node {0}, stop one of them. If node {0}'s folder was \
                 lost or replaced, it can't come back as node {0}, because the others count on \
                 what it had promised: give it a new id and add that to the list of nodes of all.",
                node.get()
            ),
            Self::Missing { .. } => "Put it back into the list, at its old place.".into(),
        }
    }
}

/// The latencies that a topology adds between this node and the others.
pub(super) fn latencies(config: &StartConfig) -> BTreeMap<NodeId, Latency> {
    let own = config.own().and_then(|own| config.place(own));
    let Some((topology, here)) = own else { return BTreeMap::new() };
    let others = config.nodes.iter().filter(|entry| entry.id != config.id);
    let latency = |(_, there): (_, usize)| Latency {
        there: topology.one_way(here, there),
        back: topology.one_way(there, here),
    };
    others.filter_map(|entry| Some((entry.id, latency(config.place(entry)?)))).collect()
}

/// Completes when another node finds out that this one is not who it claims to be.
pub(super) async fn exposed(passport: &Passport) -> Refused {
    let reason = passport.exposed().await;
    let identity = passport.identity();
    Refused::Verdict {
        node: identity.node(),
        cluster: identity.cluster().to_owned(),
        verdict: Verdict::Impostor,
        reason,
    }
}

/// Introduces this node to the others, and returns the cluster's first voters once they are known.
pub(super) async fn gather(
    config: &StartConfig,
    passport: &Passport,
    transport: &GrpcTransport,
    env: &Env,
) -> Result<Vec<NodeId>, StartError> {
    let identity = passport.identity();
    let proposal = config.first_voters();
    // Who answered an earlier process may know more by now.
    let mut met = BTreeSet::from([config.id]);
    let mut told = Vec::new();
    let voters = loop {
        met.append(&mut introduce(config, transport).await?);
        if let Some(voters) = identity.first_voters() {
            break voters;
        }
        let missing: Vec<NodeId> =
            proposal.iter().filter(|node| !met.contains(node)).copied().collect();
        if missing.is_empty() {
            identity.begin(&proposal)?;
            continue;
        }
        if missing != told {
            say(&waiting(config, &missing))?;
            told = missing;
        }
        env.sleep(PAUSE).await;
    };
    if config.voters_given && config.voters != voters.len() {
        tracing::warn!(
            "voters = {} has no effect: the cluster began with {}",
            config.voters,
            voters.len()
        );
    }
    match voters.iter().find(|voter| config.entry(**voter).is_none()) {
        Some(&node) => Err(Refused::Missing { node }.into()),
        None => Ok(voters),
    }
}

/// Introduces this node to all others that can be reached; who they are.
async fn introduce(
    config: &StartConfig,
    transport: &GrpcTransport,
) -> Result<BTreeSet<NodeId>, Refused> {
    let peers = config.peers();
    let mut reached = BTreeSet::new();
    let meetings = peers.keys().map(|peer| transport.meet(*peer, ANSWER));
    let met = futures::future::join_all(meetings).await;
    for (peer, met) in peers.keys().zip(met) {
        match met {
            Ok(()) => {
                reached.insert(*peer);
            }
            // That one is not who it should be; it is told, too, and it is logged.
            Err(MeetError::Refused(Refusal { verdict: Verdict::Changed, .. })) => {}
            Err(MeetError::Refused(Refusal { verdict, reason })) => {
                let cluster = config.cluster.clone();
                return Err(Refused::Verdict { node: config.id, cluster, verdict, reason });
            }
            Err(MeetError::Unreachable(error)) => {
                tracing::info!("node {} was not met: {error}", peer.get());
            }
        }
    }
    Ok(reached)
}

fn waiting(config: &StartConfig, missing: &[NodeId]) -> String {
    let place = |node: &NodeId| {
        let address = config.entry(*node).map_or("", |entry| entry.address.as_str());
        format!("node {} at {address}", node.get())
    };
    let missing: Vec<String> = missing.iter().map(place).collect();
    format!("A new cluster begins when its voters have met. Waiting for {}.", missing.join(", "))
}
