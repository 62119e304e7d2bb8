//! What must hold of a cluster's tablets once it has come to rest: every tablet is where the
//! directory says, every replica has what the others have, and no node holds anything else.
//!
//! For tests and tools that have all nodes in one process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_replication::TabletDescriptor;
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::EnvironmentExt;

use crate::directory::SYSTEM_TABLET;
use crate::error::TxnError;
use crate::node::Node;
use crate::service::TabletStatus;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// Waits until the cluster of these nodes is at rest.
///
/// # Errors
/// Why it isn't, when it wasn't in time.
pub async fn settle(nodes: &[Arc<Node>], patience: Duration) -> Result<(), String> {
    let Some(first) = nodes.first() else { return Ok(()) };
    let give_up = first.env().moment().plus(patience);
    loop {
        let why = match unrest(nodes).await {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if first.env().moment() > give_up {
            return Err(why);
        }
        first.env().sleep(INTERVAL).await;
    }
}

/// What the nodes say of their replicas.
///
/// # Errors
/// When data can't be read.
pub fn replicas(nodes: &[Arc<Node>]) -> Result<BTreeMap<TabletId, Vec<TabletStatus>>, TxnError> {
    let mut found: BTreeMap<TabletId, Vec<TabletStatus>> = BTreeMap::new();
    for node in nodes {
        for status in node.replicas()? {
            found.entry(status.descriptor.id).or_default().push(status);
        }
    }
    Ok(found)
}

async fn unrest(nodes: &[Arc<Node>]) -> Result<(), String> {
    let text = |error: TxnError| error.to_string();
    let Some(first) = nodes.first() else { return Ok(()) };
    let known = first.read_directory().await.map_err(text)?.tablets;
    let mut held = replicas(nodes).map_err(text)?;
    if let Some(system) = held.remove(&SYSTEM_TABLET) {
        compare(nodes, &system[0].descriptor, &system)?;
    }
    for descriptor in &known {
        compare(nodes, descriptor, &held.remove(&descriptor.id).unwrap_or_default())?;
    }
    match held.keys().next() {
        Some(stray) => Err(format!("{stray} is not in the directory")),
        None => Ok(()),
    }
}

fn compare(
    nodes: &[Arc<Node>],
    known: &TabletDescriptor,
    held: &[TabletStatus],
) -> Result<(), String> {
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
        let versions = versions(nodes, status.node, known)?;
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

type Version = (Vec<u8>, meridian_truetime::Timestamp, Option<Vec<u8>>);

/// All versions of a tablet's rows on a node.
fn versions(
    nodes: &[Arc<Node>],
    node: NodeId,
    tablet: &TabletDescriptor,
) -> Result<Vec<Version>, String> {
    let text = |error: meridian_storage::StorageError| error.to_string();
    let node = nodes.iter().find(|other| other.id() == node).ok_or("a node is missing")?;
    let view = node.storage().data.snapshot().map_err(text)?;
    view.versions(&tablet.range).map_err(text)?.collect::<Result<_, _>>().map_err(text)
}
