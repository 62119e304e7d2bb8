//! What must hold once a cluster has come to rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_storage::{NodeId, TabletId};
use meridian_txn::{Node, TabletStatus, rest};

use crate::cluster::Cluster;

/// How long a cluster whose nodes all run and hear each other may take to come to rest.
const REST: Duration = Duration::from_secs(120);

impl Cluster {
    fn nodes(&self) -> Vec<Arc<Node>> {
        self.running().into_iter().map(|number| self.node(number)).collect()
    }

    /// What the nodes that run say of their replicas.
    pub fn replicas(&self) -> BTreeMap<TabletId, Vec<TabletStatus>> {
        rest::replicas(&self.nodes()).expect("their data can be read")
    }

    /// Who leads a tablet, if just one replica in the latest term says that it does.
    pub fn leader(&self, tablet: TabletId) -> Option<NodeId> {
        let replicas = self.replicas().remove(&tablet)?;
        let claims = replicas.iter().filter(|status| status.leader == Some(status.node));
        claims.max_by_key(|status| status.term).map(|status| status.node)
    }
}

/// Waits until the cluster is at rest.
pub async fn settle(cluster: &Cluster) {
    if let Err(why) = rest::settle(&cluster.nodes(), REST).await {
        panic!("no rest: {why}");
    }
}
