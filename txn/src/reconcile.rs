//! Each node's own comparison of the directory with what it holds.
//!
//! Creating and dropping a tablet is a row in the directory; opening and removing its replicas
//! follows. Whoever did the first may die before the second, and a node may sleep through both, so
//! every node looks now and then: it opens replicas that the directory gives it, removes those that
//! the directory no longer knows, gives members to a group whose creator didn't, and hands
//! leadership to the replica that should have it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_storage::TabletId;
use meridian_truetime::EnvironmentExt;

use crate::directory::SYSTEM_TABLET;
use crate::error::TxnError;
use crate::node::Node;
use crate::tablet::Tablet;

/// Between two comparisons.
const INTERVAL: Duration = Duration::from_secs(3);

/// How many comparisons a group may stay without members before this node gives it some.
const PATIENCE: u32 = 2;

/// Compares for as long as the node lives.
pub(crate) async fn run(node: Weak<Node>) {
    let mut without_members: BTreeMap<TabletId, u32> = BTreeMap::new();
    loop {
        let Some(node) = node.upgrade() else { return };
        let pause = node.env().sleep(INTERVAL);
        if let Err(error) = reconcile(&node).await {
            tracing::debug!(node = %node.id(), %error, "the directory could not be compared");
        }
        for tablet in node.open_tablets() {
            give_members(&node, &tablet, &mut without_members).await;
            hand_over(&node, &tablet).await;
        }
        drop(node);
        pause.await;
    }
}

async fn reconcile(node: &Arc<Node>) -> Result<(), TxnError> {
    // Tablets that are open now were in the directory before it is read below.
    let open: Vec<TabletId> = node.open_tablets().iter().map(Tablet::id).collect();
    node.refresh_directory().await?;
    let directory = node.directory().all();
    for id in open {
        if id != SYSTEM_TABLET && !directory.iter().any(|descriptor| descriptor.id == id) {
            tracing::info!(node = %node.id(), tablet = %id, "removes a dropped tablet");
            node.remove_tablet(id).await?;
        }
    }
    for descriptor in directory.iter() {
        if descriptor.replicas().any(|replica| replica == node.id())
            && node.tablet(descriptor.id).is_err()
        {
            tracing::info!(node = %node.id(), tablet = %descriptor.id, "opens a replica");
            node.open_tablet(descriptor, false).await?;
        }
    }
    Ok(())
}

async fn give_members(node: &Node, tablet: &Tablet, waiting: &mut BTreeMap<TabletId, u32>) {
    if tablet.replica().is_initialized().await || tablet.replica().leader().is_some() {
        waiting.remove(&tablet.id());
        return;
    }
    let rounds = waiting.entry(tablet.id()).or_default();
    *rounds += 1;
    if *rounds > PATIENCE {
        let descriptor = tablet.machine().state().descriptor;
        tracing::info!(node = %node.id(), tablet = %tablet.id(), "gives a group its members");
        if let Err(error) = tablet.replica().initialize(&descriptor.voters).await {
            tracing::warn!(tablet = %tablet.id(), %error, "a group has no members");
        }
    }
}

/// Hands leadership to the preferred leader if that is alive and has the whole log.
async fn hand_over(node: &Node, tablet: &Tablet) {
    let preferred = tablet.machine().state().descriptor.preferred_leader;
    if preferred == node.id() || tablet.replica().leads().is_none() {
        return;
    }
    let status = tablet.replica().status();
    let behind = status.matched.get(&preferred).map(|at| status.last_index.saturating_sub(*at));
    if behind.is_none_or(|behind| behind > 100) {
        return;
    }
    let alive = node.status_of(preferred).await;
    if alive.is_ok_and(|tablets| tablets.iter().any(|t| t.descriptor.id == tablet.id())) {
        tracing::info!(tablet = %tablet.id(), to = %preferred, "hands over leadership");
        tablet.replica().transfer_leader(preferred).await;
    }
}
