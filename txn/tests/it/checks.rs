//! What must hold once a cluster has come to rest.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_storage::{NodeId, TabletId};
use meridian_truetime::EnvironmentExt;
use meridian_txn::{SYSTEM_TABLET, TabletDescriptor, TabletStatus, table_range};

use crate::cluster::{Cluster, TABLE};

/// How long a cluster whose nodes all run and hear each other may take to come to rest.
const REST: Duration = Duration::from_secs(120);

impl Cluster {
    /// What the nodes that run say of their replicas.
    pub fn replicas(&self) -> BTreeMap<TabletId, Vec<TabletStatus>> {
        let mut found: BTreeMap<TabletId, Vec<TabletStatus>> = BTreeMap::new();
        for number in self.running() {
            for status in self.node(number).replicas().expect("its data can be read") {
                found.entry(status.descriptor.id).or_default().push(status);
            }
        }
        found
    }

    /// Who leads a tablet, if just one replica in the latest term says that it does.
    pub fn leader(&self, tablet: TabletId) -> Option<NodeId> {
        let replicas = self.replicas().remove(&tablet)?;
        let claims = replicas.iter().filter(|status| status.leader == Some(status.node));
        claims.max_by_key(|status| status.term).map(|status| status.node)
    }

    /// Why the cluster is not at rest: the directory isn't what the tablets say, or a node has
    /// another set of replicas than it should, or they differ.
    async fn unrest(&self) -> Result<(), String> {
        let node = self.node(self.running()[0]);
        node.refresh_directory().await.map_err(|error| error.to_string())?;
        let known = node.tablets(&table_range(TABLE)).await.map_err(|error| error.to_string())?;
        let mut replicas = self.replicas();
        replicas.remove(&SYSTEM_TABLET);
        for descriptor in &known {
            let held = replicas.remove(&descriptor.id).unwrap_or_default();
            self.compare(descriptor, &held)?;
        }
        match replicas.keys().next() {
            Some(stray) => Err(format!("{stray} is not in the directory")),
            None => Ok(()),
        }
    }

    fn compare(&self, known: &TabletDescriptor, held: &[TabletStatus]) -> Result<(), String> {
        let id = known.id;
        let mut wanted: Vec<NodeId> = known.replicas().collect();
        let mut found: Vec<NodeId> = held.iter().map(|status| status.node).collect();
        wanted.sort_unstable();
        found.sort_unstable();
        if wanted != found {
            return Err(format!("{id} should be on {wanted:?}, is on {found:?}"));
        }
        let last = held.iter().map(|status| status.last_index).max().unwrap_or(0);
        let mut rows = None;
        for status in held {
            if status.descriptor != *known {
                return Err(format!("{id}: {:?}, not {known:?}", status.descriptor));
            }
            if status.applied_index < last {
                return Err(format!("{id} lags on {}", status.node));
            }
            let view = self.storage(status.node.get()).data.snapshot().expect("can be read");
            let versions: Vec<_> = view.versions(&known.range).expect("can be read").collect();
            let versions: Result<Vec<_>, _> = versions.into_iter().collect();
            let versions = versions.expect("can be read");
            match &rows {
                None => rows = Some(versions),
                Some(rows) if *rows == versions => {}
                Some(rows) => {
                    let other = rows.iter().find(|row| !versions.contains(row));
                    let own = versions.iter().find(|row| !rows.contains(row));
                    return Err(format!(
                        "{id}: the rows on {} differ: {own:?} is only there, {other:?} is not",
                        status.node
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Waits until the cluster is at rest: every tablet is where the directory says, every replica has
/// what the others have, and no node holds anything else.
pub async fn settle(cluster: &Cluster) {
    let env = cluster.node(cluster.running()[0]);
    let give_up = env.env().moment().plus(REST);
    loop {
        match cluster.unrest().await {
            Ok(()) => return,
            Err(why) if env.env().moment() > give_up => panic!("no rest: {why}"),
            Err(_) => env.env().sleep(Duration::from_millis(500)).await,
        }
    }
}
