//! Faults that SQL asks for, on the links and clocks of the simulated world.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_replication::net::{LinkSettings, SimulatedNetwork};
use meridian_sql::cluster_view::{ClockChange, Effect, LinkChange, Place};
use meridian_sql::{Notice, SqlError, SqlState};
use meridian_storage::NodeId;
use meridian_truetime::{ClockError, ClockSettings};

use super::super::Slot;
use super::{Cluster, ClusterError, to_sql};

type Pair = (NodeId, NodeId);

fn invalid(message: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

/// `The nodes are 1 (us-east), 2 (us-west).`
pub(super) fn known_nodes(cluster: &Cluster) -> String {
    let nodes: Vec<_> = regions(cluster)
        .into_iter()
        .map(|(node, region)| format!("{} ({region})", node.get()))
        .collect();
    format!("The nodes are {}.", nodes.join(", "))
}

/// Where each node is.
fn regions(cluster: &Cluster) -> BTreeMap<NodeId, String> {
    let slots = cluster.lock();
    let region = |(number, slot): (&u64, &Slot)| {
        (NodeId::new(*number), cluster.region_of(&slot.place).to_owned())
    };
    slots.iter().map(region).collect()
}

/// The nodes of a place.
fn nodes_of(cluster: &Cluster, place: &Place) -> Result<Vec<NodeId>, SqlError> {
    let regions = regions(cluster);
    match place {
        Place::Node(node) if regions.contains_key(node) => Ok(vec![*node]),
        Place::Node(node) => {
            let message = format!("there is no node {}", node.get());
            Err(invalid(message).hint(known_nodes(cluster)))
        }
        Place::Region(region) => {
            let there = regions.iter().filter(|(_, own)| *own == region);
            let nodes: Vec<_> = there.map(|(node, _)| *node).collect();
            if !nodes.is_empty() {
                return Ok(nodes);
            }
            let mut known: Vec<&str> = regions.values().map(String::as_str).collect();
            known.sort_unstable();
            known.dedup();
            Err(invalid(format!("there is no node in a region \"{region}\"")).hint(format!(
                "There are nodes in {}. A node itself goes by its number.",
                known.join(", ")
            )))
        }
    }
}

/// Every pair of a node of one place and a node of the other.
///
/// # Errors
/// `22023` for a place that isn't there, and if the two are one node.
pub(super) fn pairs(cluster: &Cluster, a: &Place, b: &Place) -> Result<Vec<Pair>, SqlError> {
    let (from, to) = (nodes_of(cluster, a)?, nodes_of(cluster, b)?);
    let pair = |&from: &NodeId| to.iter().map(move |&to| (from, to));
    let pairs: Vec<_> = from.iter().flat_map(pair).filter(|(from, to)| from != to).collect();
    if pairs.is_empty() {
        return Err(
            invalid("there is no link between a node and itself").hint(known_nodes(cluster))
        );
    }
    Ok(pairs)
}

/// Every pair of nodes, once.
pub(super) fn all_pairs(cluster: &Cluster) -> Vec<Pair> {
    let links = cluster.network().links().into_iter();
    links.map(|link| (link.from, link.to)).filter(|(from, to)| from < to).collect()
}

/// Does something to the links; whether they are different then.
pub(super) fn changing(cluster: &Cluster, work: impl FnOnce(&SimulatedNetwork)) -> bool {
    let network = cluster.network();
    let settings =
        || -> Vec<LinkSettings> { network.links().into_iter().map(|link| link.settings).collect() };
    let before = settings();
    work(network);
    settings() != before
}

/// Changes the links of each pair, there and back.
pub(super) fn both_ways(
    network: &SimulatedNetwork,
    pairs: Vec<Pair>,
    change: impl Fn(Pair, &mut LinkSettings),
) {
    for (a, b) in pairs {
        for pair in [(a, b), (b, a)] {
            network.update_link(pair.0, pair.1, |link| change(pair, link));
        }
    }
}

/// Changes what is given. Says so when a round trip may take longer than Raft's timeouts allow for.
pub(super) fn set_latency(cluster: &Cluster, pairs: &[Pair], change: LinkChange) -> Effect {
    let changed = changing(cluster, |network| {
        if let Some(rtt) = change.rtt {
            pairs.iter().for_each(|(a, b)| network.set_round_trip(*a, *b, rtt));
        }
        both_ways(network, pairs.to_vec(), |_, link| {
            link.jitter = change.jitter.unwrap_or(link.jitter);
            link.loss = change.loss.unwrap_or(link.loss);
        });
    });
    let notices = too_far(cluster, pairs).into_iter().collect();
    Effect { changed, notices }
}

/// What to say if a round trip of one of the pairs exceeds what Raft's timeouts were derived for.
fn too_far(cluster: &Cluster, pairs: &[Pair]) -> Option<Notice> {
    let links = cluster.network().links();
    let longest = |from: NodeId, to: NodeId| {
        let link = links.iter().find(|link| (link.from, link.to) == (from, to));
        link.map_or(Duration::ZERO, |link| link.settings.latency + link.settings.jitter)
    };
    let round_trips = pairs.iter().map(|&(a, b)| longest(a, b) + longest(b, a));
    let round_trip = round_trips.max()?;
    let heartbeat = cluster.timing().heartbeat;
    // A leader gives up a heartbeat after its interval, a quarter of which openraft keeps to itself.
    let most = heartbeat * 3 / 4;
    (round_trip > most).then(|| {
        Notice::remark(format!(
            "a round trip of up to {round_trip:?} is longer than the {most:?} that this cluster's \
             Raft timeouts allow for; they follow from its topology (a heartbeat every \
             {heartbeat:?}). A tablet that needs these links for a majority of its replicas may \
             make no progress, or lose its leader again and again"
        ))
    })
}

/// Gives links the latency that they have by the topology, without jitter and loss.
pub(super) fn reset_latency(cluster: &Cluster, pairs: Vec<Pair>) -> bool {
    let topology = cluster.network().topology();
    let regions = {
        let slots = cluster.lock();
        let region = |(number, slot): (&u64, &Slot)| (NodeId::new(*number), slot.place.region);
        slots.iter().map(region).collect::<BTreeMap<_, _>>()
    };
    changing(cluster, |network| {
        both_ways(network, pairs, |(from, to), link| {
            if let (Some(&from), Some(&to)) = (regions.get(&from), regions.get(&to)) {
                link.latency = topology.one_way(from, to);
            }
            link.jitter = Duration::ZERO;
            link.loss = 0.0;
        });
    })
}

/// Changes what is given of a clock, also beyond what it declares; then the client is warned.
///
/// # Errors
/// `22023` for a node that isn't there, or for settings that no clock can have.
pub(super) fn set_clock(
    cluster: &Cluster,
    node: NodeId,
    change: ClockChange,
) -> Result<Effect, SqlError> {
    let clock = cluster.clock(node.get()).ok_or_else(|| {
        let nodes = cluster.numbers().len();
        to_sql(cluster, &ClusterError::NoSuchNode { node: node.get(), nodes })
    })?;
    let before = clock.reading().settings;
    let wanted = ClockSettings {
        floor: change.epsilon.unwrap_or(before.floor),
        offset_nanos: change.offset_nanos.unwrap_or(before.offset_nanos),
        drift_ppm: change.drift_ppm.unwrap_or(before.drift_ppm),
        faulty: false,
        ..before
    };
    let refused = |error: ClockError| invalid(error.to_string());
    let (settings, notices) = match wanted.validate() {
        Ok(()) => (wanted, Vec::new()),
        Err(ClockError::OutsideBound { actual, declared }) => {
            let warning = Notice::warning(format!(
                "the clock of node {} is now up to {actual:?} off the true time while it declares \
                 {declared:?}: as long as it is, statements may read what is out of date and see \
                 transactions out of order",
                node.get(),
            ));
            (ClockSettings { faulty: true, ..wanted }, vec![warning])
        }
        Err(error) => return Err(refused(error)),
    };
    clock.set(settings).map_err(refused)?;
    Ok(Effect { changed: settings != before, notices })
}
