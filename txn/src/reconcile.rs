//! Each node's own comparison of the directory with what it holds.
//!
//! Creating and dropping a tablet is a row in the directory; opening and removing its replicas
//! follows. Whoever did the first may die before the second, and a node may sleep through both, so
//! every node looks now and then: it opens replicas that the directory gives it and removes those
//! of tablets that are gone or have moved away, if their leaders agree. What the directory doesn't
//! know (yet) it leaves alone.

use std::sync::{Arc, Weak};
use std::time::Duration;

use meridian_storage::TabletId;
use meridian_truetime::EnvironmentExt;

use crate::error::TxnError;
use crate::node::Node;
use crate::tend::{is_stray, see_to};

/// Between two comparisons.
const INTERVAL: Duration = Duration::from_secs(3);

/// How long a leader may take to say whether it wants a replica.
const PATIENCE: Duration = Duration::from_secs(2);

/// Compares for as long as the node lives.
pub(crate) async fn run(node: Weak<Node>) {
    loop {
        let Some(node) = node.upgrade() else { return };
        let pause = node.env().sleep(INTERVAL);
        if let Err(error) = reconcile(&node).await {
            tracing::debug!(node = %node.id(), %error, "the directory could not be compared");
        }
        for tablet in node.open_tablets() {
            see_to(&node, tablet);
        }
        drop(node);
        pause.await;
    }
}

/// Whether the tablet's leader counts on the replica here, for all that is known. The directory may
/// lag: a leader that has asked for the replica may have changed the tablet since, and be about to
/// make this node a member.
async fn is_wanted(node: &Arc<Node>, tablet: TabletId) -> bool {
    if node.directory().is_gone(tablet) {
        return false;
    }
    let asked = node.env().timeout(PATIENCE, Box::pin(node.is_wanted(tablet, node.id()))).await;
    !matches!(asked, Ok(Ok(false) | Err(TxnError::NoSuchTablet { .. })))
}

async fn reconcile(node: &Arc<Node>) -> Result<(), TxnError> {
    node.refresh_directory().await?;
    for tablet in node.open_tablets() {
        if is_stray(node, &tablet) && !is_wanted(node, tablet.id()).await {
            node.remove_stray(tablet.id()).await?;
        }
    }
    for descriptor in node.directory().all().iter() {
        let here = descriptor.replicas().any(|replica| replica == node.id());
        if here && node.tablet(descriptor.id).is_err() {
            match node.open_tablet(descriptor, false).await {
                Ok(()) => {
                    tracing::info!(node = %node.id(), tablet = %descriptor.id, "opens a replica");
                }
                // Another replica here has to catch up first.
                Err(error) => tracing::debug!(tablet = %descriptor.id, %error, "not opened yet"),
            }
        }
    }
    Ok(())
}
