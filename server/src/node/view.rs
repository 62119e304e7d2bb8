//! The cluster as SQL shows it: what the nodes answer when they are asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use meridian_replication::net::GrpcTransport;
use meridian_sql::cluster_view::{
    ClockRow, ClusterView, LinkRow, LockRow, NodeRow, ReplicaRow, TabletRow,
};
use meridian_sql::{SqlError, SqlState};
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{EnvironmentExt, TtInterval};
use meridian_txn::{Node, TabletStatus};

use super::config::StartConfig;
use super::info::{About, Link, Question, ask};
use crate::cluster::view::{replica_rows, tablet_row};

/// How long a node may take to answer, beyond its distance.
const PATIENCE: Duration = Duration::from_secs(1);

/// A real cluster as one of its nodes sees it.
#[derive(Debug)]
pub(super) struct View {
    config: Arc<StartConfig>,
    /// Its registry holds the engine that holds this.
    node: Weak<Node>,
    transport: GrpcTransport,
}

impl View {
    pub fn new(config: Arc<StartConfig>, node: &Arc<Node>, transport: GrpcTransport) -> Self {
        Self { config, node: Arc::downgrade(node), transport }
    }

    fn node(&self) -> Result<Arc<Node>, SqlError> {
        let stopping = || SqlError::new(SqlState::ADMIN_SHUTDOWN, "the node is stopping");
        self.node.upgrade().ok_or_else(stopping)
    }

    fn patience(&self) -> Duration {
        PATIENCE + 3 * self.config.max_round_trip
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.config.nodes.iter().map(|entry| entry.id)
    }

    /// What each node says of itself; nothing for one that doesn't answer.
    async fn about(&self) -> Vec<(NodeId, Option<About>)> {
        let patience = self.patience();
        let asked = self.ids().map(|node| async move {
            (node, ask(&self.transport, node, Question::About, patience).await.ok())
        });
        futures::future::join_all(asked).await
    }

    /// How the replicas stand on all nodes that answer.
    async fn statuses(&self) -> Result<BTreeMap<TabletId, Vec<TabletStatus>>, SqlError> {
        let (node, patience) = (self.node()?, self.patience());
        let here = &node;
        let asked = self.ids().map(|id| async move {
            here.env().timeout(patience, here.status_of(id)).await.ok()?.ok()
        });
        let mut found: BTreeMap<TabletId, Vec<TabletStatus>> = BTreeMap::new();
        for status in futures::future::join_all(asked).await.into_iter().flatten().flatten() {
            found.entry(status.descriptor.id).or_default().push(status);
        }
        Ok(found)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// A function that only a cluster in one process has.
#[async_trait]
impl ClusterView for View {
    async fn nodes(&self) -> Result<Vec<NodeRow>, SqlError> {
        let answers = self.about().await;
        let rows = answers.into_iter().zip(&self.config.nodes).map(|((node, about), entry)| {
            let started = about.as_ref().map(|about| about.started);
            let state = if about.is_some() { "running" } else { "unreachable" };
            NodeRow {
                node,
                region: entry.region.clone(),
                sql_address: about.map(|about| about.sql).or_else(|| entry.sql.clone()),
                state: state.into(),
                started,
            }
        });
        Ok(rows.collect())
    }

    async fn clocks(&self) -> Result<Vec<ClockRow>, SqlError> {
        let rows = self.about().await.into_iter().filter_map(|(node, about)| {
            let About { earliest, latest, .. } = about?;
            let interval = TtInterval { earliest, latest };
            Some(ClockRow { node, interval, offset_ms: None, drift_ppm: None })
        });
        Ok(rows.collect())
    }

    async fn links(&self) -> Result<Vec<LinkRow>, SqlError> {
        let patience = self.patience();
        let asked = self.ids().map(|from| async move {
            let question = Question::Links { patience };
            // The one that is asked asks the others in turn.
            let links = ask::<Vec<Link>>(&self.transport, from, question, 2 * patience).await;
            (from, links.unwrap_or_default())
        });
        let answers = futures::future::join_all(asked).await;
        let rows = answers.into_iter().flat_map(|(from, links)| {
            links.into_iter().map(move |link| LinkRow {
                from,
                to: link.to,
                rtt_ms: link.round_trip.map_or(f64::NAN, millis),
                jitter_ms: 0.0,
                loss: 0.0,
                state: if link.round_trip.is_some() { "up" } else { "unreachable" }.into(),
                messages: link.messages,
                bytes: link.bytes,
            })
        });
        Ok(rows.collect())
    }

    async fn tablets(&self) -> Result<Vec<TabletRow>, SqlError> {
        let statuses = self.statuses().await?;
        let region = |node: NodeId| {
            let entry = self.config.nodes.iter().find(|entry| entry.id == node)?;
            Some(entry.region.clone())
        };
        Ok(statuses.values().filter_map(|replicas| tablet_row(region, replicas)).collect())
    }

    async fn replicas(&self) -> Result<Vec<ReplicaRow>, SqlError> {
        let statuses = self.statuses().await?;
        Ok(statuses.values().flat_map(|replicas| replica_rows(replicas)).collect())
    }

    async fn locks(&self) -> Result<Vec<LockRow>, SqlError> {
        let (node, patience) = (self.node()?, self.patience());
        let here = &node;
        let asked = self.ids().map(|id| async move {
            let locks = here.env().timeout(patience, here.locks_of(id)).await.ok()?.ok()?;
            Some(locks.into_iter().map(move |locked| LockRow { node: id, locked }))
        });
        Ok(futures::future::join_all(asked).await.into_iter().flatten().flatten().collect())
    }
}
