//! Clusters in virtual time, and sessions on them.

use std::sync::Arc;
use std::time::Duration;

use meridian_replication::net::Topology;
use meridian_server::cluster::{Cluster, ClusterOptions};
use meridian_server::config::{DataPlace, NodeConfig};
use meridian_server::lab::SessionClient;
use meridian_sql::SessionParameters;
use meridian_truetime::{ClockSettings, World};
use meridian_txn::{CommitProtocol, PlacementChange, SplitOptions};

/// A cluster with one node for each region of a shipped topology, disks in memory, right clocks
/// with a constant uncertainty.
///
/// # Panics
/// When it doesn't start: a test's cluster has to.
pub async fn start(world: World, topology: &str, epsilon: Duration) -> Arc<Cluster> {
    let topology = Topology::load(topology).expect("a shipped topology");
    let nodes = topology.regions().len();
    start_nodes(world, topology, nodes, epsilon).await
}

/// The same with so many nodes, spread over the regions in turn.
///
/// # Panics
/// When it doesn't start.
pub async fn start_nodes(
    world: World,
    topology: Topology,
    nodes: usize,
    epsilon: Duration,
) -> Arc<Cluster> {
    let regions = (0..topology.regions().len()).cycle();
    let nodes = (1..).zip(regions).take(nodes);
    let options = ClusterOptions {
        placement: PlacementChange::default(),
        nodes: nodes.map(|(number, region)| NodeConfig { number, region, port: 0 }).collect(),
        topology,
        clock: ClockSettings::constant(epsilon),
        data: DataPlace::Memory,
        splits: SplitOptions::virtual_time(),
        protocol: CommitProtocol::default(),
        retention: meridian_txn::DEFAULT_RETENTION,
    };
    Cluster::start(world, options).await.expect("the cluster starts")
}

/// A session on a node.
///
/// # Panics
/// When the node doesn't run.
pub fn session(cluster: &Cluster, node: u64) -> SessionClient {
    let engine = cluster.engine(node).expect("the node runs");
    SessionClient::new(engine.session(SessionParameters::default()).expect("a session"))
}
