//! The cluster as SQL shows it, and the faults that SQL can ask for.
//!
//! In one process nothing has to be asked over the network: what a view shows is what each node
//! says of itself, also while the nodes can't reach each other.

mod faults;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use meridian_replication::net::LinkView;
use meridian_sql::cluster_view::{
    ClockChange, ClockRow, ClusterView, Effect, LinkChange, LinkRow, LockRow, NodeRow, Place,
    ReplicaRow, TabletRow,
};
use meridian_sql::{SqlError, SqlState};
use meridian_storage::{NodeId, TabletId};
use meridian_txn::TabletStatus;

use super::{Cluster, ClusterError};

/// A cluster's view, for the engines of its nodes, which the cluster owns.
#[derive(Debug)]
pub(super) struct View(Weak<Cluster>);

impl View {
    pub(super) fn new(cluster: Weak<Cluster>) -> Self {
        Self(cluster)
    }

    fn cluster(&self) -> Result<Arc<Cluster>, SqlError> {
        let stopping = || SqlError::new(SqlState::ADMIN_SHUTDOWN, "the cluster is stopping");
        self.0.upgrade().ok_or_else(stopping)
    }

    fn statuses(&self) -> Result<BTreeMap<TabletId, Vec<TabletStatus>>, SqlError> {
        let mut found: BTreeMap<TabletId, Vec<TabletStatus>> = BTreeMap::new();
        for (number, node) in self.cluster()?.running() {
            let statuses = node.replicas().map_err(|error| {
                SqlError::internal(format!("node {number} can't say how it stands: {error}"))
            })?;
            for status in statuses {
                found.entry(status.descriptor.id).or_default().push(status);
            }
        }
        Ok(found)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn to_sql(cluster: &Cluster, error: &ClusterError) -> SqlError {
    match error {
        ClusterError::NoSuchNode { .. } => {
            SqlError::new(SqlState::INVALID_PARAMETER_VALUE, error.to_string())
                .hint(faults::known_nodes(cluster))
        }
        ClusterError::LastAwake { .. } => {
            SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, error.to_string())
                .detail("There would be no node left to resume it from.")
                .hint("Give the pause a length: pause => '5s'.")
        }
        error => SqlError::new(SqlState::CANNOT_CONNECT_NOW, error.to_string()),
    }
}

/// The leader of a tablet: the one that says so itself, in the latest term.
fn leader(replicas: &[TabletStatus]) -> Option<&TabletStatus> {
    let claims = replicas.iter().filter(|status| status.leader == Some(status.node));
    claims.max_by_key(|status| status.term)
}

/// Who knows best how the tablet is: without a leader, the replica that is the farthest.
fn best(replicas: &[TabletStatus]) -> Option<&TabletStatus> {
    leader(replicas).or_else(|| replicas.iter().max_by_key(|status| status.applied_index))
}

/// A tablet as its replicas that can be asked describe it.
pub(crate) fn tablet_row(
    region: impl Fn(NodeId) -> Option<String>,
    replicas: &[TabletStatus],
) -> Option<TabletRow> {
    let leader = leader(replicas);
    let best = best(replicas)?;
    let descriptor = &best.descriptor;
    Some(TabletRow {
        tablet: descriptor.id,
        start: descriptor.range.start.clone(),
        end: descriptor.range.end.clone(),
        replicas: descriptor.replicas().collect(),
        voters: descriptor.voters.clone(),
        read_only: descriptor.read_only.clone(),
        preferred_leader: descriptor.preferred_leader,
        placement: descriptor.placement.clone(),
        leader: leader.map(|status| status.node),
        leader_region: leader.and_then(|status| region(status.node)),
        size_bytes: Some(best.size_bytes),
        requests_per_second: leader.and_then(|leader| leader.requests_per_second),
        raft_term: Some(best.term),
        applied_index: Some(best.applied_index),
        generation: descriptor.generation.get(),
    })
}

/// The rows of one tablet's replicas.
pub(crate) fn replica_rows(replicas: &[TabletStatus]) -> impl Iterator<Item = ReplicaRow> + '_ {
    let ahead = leader(replicas).map(|leader| leader.last_index);
    let descriptor = best(replicas).map(|best| &best.descriptor);
    let role = move |node: NodeId| {
        let descriptor = descriptor?;
        let roles = [(&descriptor.voters, "voter"), (&descriptor.read_only, "read-only")];
        roles.into_iter().find(|(nodes, _)| nodes.contains(&node)).map(|(_, role)| role)
    };
    replicas.iter().map(move |status| ReplicaRow {
        tablet: status.descriptor.id,
        node: status.node,
        role: role(status.node),
        leads: status.leader == Some(status.node),
        raft_term: status.term,
        last_index: status.last_index,
        lag: ahead.map(|ahead| ahead.saturating_sub(status.last_index)),
        applied_index: status.applied_index,
        last_write: status.last_write,
        size_bytes: status.size_bytes,
    })
}

fn link_row(link: &LinkView, back: Duration) -> LinkRow {
    let settings = &link.settings;
    let state = match (settings.cut, settings.clogged) {
        (true, _) => "partitioned",
        (false, true) => "clogged",
        (false, false) => "up",
    };
    LinkRow {
        from: link.from,
        to: link.to,
        rtt_ms: millis(settings.latency + back),
        jitter_ms: millis(settings.jitter),
        loss: settings.loss,
        state: state.into(),
        messages: link.messages,
        bytes: link.bytes,
    }
}

#[async_trait]
impl ClusterView for View {
    async fn nodes(&self) -> Result<Vec<NodeRow>, SqlError> {
        let cluster = self.cluster()?;
        let slots = cluster.lock();
        let rows = slots.iter().map(|(number, slot)| NodeRow {
            node: NodeId::new(*number),
            region: cluster.region_of(&slot.place).to_owned(),
            sql_address: Some(format!("127.0.0.1:{}", slot.place.port)),
            state: match &slot.running {
                None => "stopped",
                Some(running) if running.env.is_paused() => "paused",
                Some(_) => "running",
            }
            .into(),
            started: slot.running.as_ref().map(|running| running.started),
        });
        Ok(rows.collect())
    }

    async fn clocks(&self) -> Result<Vec<ClockRow>, SqlError> {
        let cluster = self.cluster()?;
        let slots = cluster.lock();
        let rows = slots.iter().map(|(number, slot)| {
            let reading = slot.clock.reading();
            #[expect(clippy::cast_precision_loss, reason = "an offset is far below 2^52 ns")]
            let offset_ms = reading.true_offset_nanos as f64 / 1e6;
            ClockRow {
                node: NodeId::new(*number),
                interval: reading.interval,
                offset_ms: Some(offset_ms),
                drift_ppm: Some(reading.settings.drift_ppm),
            }
        });
        Ok(rows.collect())
    }

    async fn links(&self) -> Result<Vec<LinkRow>, SqlError> {
        let links = self.cluster()?.network().links();
        let latencies: BTreeMap<(NodeId, NodeId), Duration> =
            links.iter().map(|link| ((link.from, link.to), link.settings.latency)).collect();
        let rows = links.iter().map(|link| {
            let back = latencies.get(&(link.to, link.from)).copied().unwrap_or_default();
            link_row(link, back)
        });
        Ok(rows.collect())
    }

    async fn tablets(&self) -> Result<Vec<TabletRow>, SqlError> {
        let (cluster, statuses) = (self.cluster()?, self.statuses()?);
        let region = |node: NodeId| {
            let slots = cluster.lock();
            Some(cluster.region_of(&slots.get(&node.get())?.place).to_owned())
        };
        Ok(statuses.values().filter_map(|replicas| tablet_row(region, replicas)).collect())
    }

    async fn replicas(&self) -> Result<Vec<ReplicaRow>, SqlError> {
        let statuses = self.statuses()?;
        Ok(statuses.values().flat_map(|replicas| replica_rows(replicas)).collect())
    }

    async fn locks(&self) -> Result<Vec<LockRow>, SqlError> {
        let rows = self.cluster()?.running().into_iter().flat_map(|(number, node)| {
            let node_id = NodeId::new(number);
            node.locks().into_iter().map(move |locked| LockRow { node: node_id, locked })
        });
        Ok(rows.collect())
    }

    async fn stop_node(&self, node: NodeId) -> Result<bool, SqlError> {
        let cluster = self.cluster()?;
        let stopped = cluster.stop_node(node.get()).await;
        stopped.map_err(|error| to_sql(&cluster, &error))
    }

    async fn start_node(&self, node: NodeId) -> Result<bool, SqlError> {
        let cluster = self.cluster()?;
        let started = cluster.start_node(node.get()).await;
        started.map_err(|error| to_sql(&cluster, &error))
    }

    async fn pause_node(&self, node: NodeId, pause: Option<Duration>) -> Result<Effect, SqlError> {
        let cluster = self.cluster()?;
        let paused = cluster.pause_node(node.get(), pause);
        paused.map(Effect::from).map_err(|error| to_sql(&cluster, &error))
    }

    async fn resume_node(&self, node: NodeId) -> Result<Effect, SqlError> {
        let cluster = self.cluster()?;
        let resumed = cluster.resume_node(node.get());
        resumed.map(Effect::from).map_err(|error| to_sql(&cluster, &error))
    }

    async fn partition(&self, a: &Place, b: &Place, both: bool) -> Result<Effect, SqlError> {
        let cluster = self.cluster()?;
        let pairs = faults::pairs(&cluster, a, b)?;
        Ok(faults::changing(&cluster, |network| {
            for (from, to) in pairs {
                network.cut_one_way(from, to);
                if both {
                    network.cut_one_way(to, from);
                }
            }
        })
        .into())
    }

    async fn heal(&self, between: Option<&[Place; 2]>) -> Result<Effect, SqlError> {
        let cluster = self.cluster()?;
        let pairs = between.map(|[a, b]| faults::pairs(&cluster, a, b)).transpose()?;
        Ok(faults::changing(&cluster, |network| match pairs {
            None => network.heal(),
            Some(pairs) => faults::both_ways(network, pairs, |_, link| *link = link.healed()),
        })
        .into())
    }

    async fn set_latency(
        &self,
        a: &Place,
        b: &Place,
        change: LinkChange,
    ) -> Result<Effect, SqlError> {
        let cluster = self.cluster()?;
        Ok(faults::set_latency(&cluster, &faults::pairs(&cluster, a, b)?, change))
    }

    async fn reset_latency(&self, between: Option<&[Place; 2]>) -> Result<Effect, SqlError> {
        let cluster = self.cluster()?;
        let pairs = match between {
            Some([a, b]) => faults::pairs(&cluster, a, b)?,
            None => faults::all_pairs(&cluster),
        };
        Ok(faults::reset_latency(&cluster, pairs).into())
    }

    async fn set_clock(&self, node: NodeId, change: ClockChange) -> Result<Effect, SqlError> {
        let cluster = self.cluster()?;
        faults::set_clock(&cluster, node, change)
    }
}
