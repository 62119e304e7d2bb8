//! The configuration of a demo cluster, checked: what the command line asks for and can be had.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use meridian_replication::net::topology::{Topology, TopologyError};
use meridian_storage::NodeId;
use meridian_txn::{CommitProtocol, Member, PlacementChange, SplitOptions, TxnError};

use crate::cli::DemoArgs;
use crate::cluster::DEFAULT_VOTERS;

/// The most nodes that a demo has.
const MAX_NODES: usize = 9;

/// Where a cluster's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// In memory, and gone at the end.
    Memory,
    /// In a folder.
    Folder(PathBuf),
}

/// One node of a demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its number, from 1.
    pub number: u64,
    /// The place of its region in the topology.
    pub region: usize,
    /// The port at which it serves clients.
    pub port: u16,
}

/// A demo cluster.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// Where its data is.
    pub data: DataPlace,
    /// Regions and round trips.
    pub topology: Topology,
    /// Its nodes, by number.
    pub nodes: Vec<NodeConfig>,
    /// The uncertainty of every node's clock.
    pub epsilon: Duration,
    /// Where replicas go when a table asks for nothing.
    pub placement: PlacementChange,
    /// When tablets split and merge by themselves.
    pub splits: SplitOptions,
    /// How transactions commit, where a session says nothing.
    pub protocol: CommitProtocol,
    /// For how long old versions are kept.
    pub retention: Duration,
    /// The seed of everything that is drawn at random.
    pub seed: u64,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The topology can't be had.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The nodes can't satisfy the placement of tables.
    #[error(transparent)]
    Placement(#[from] TxnError),
    /// The last node's port would be above the highest.
    #[error("{nodes} nodes from port {first} on need ports above 65535; choose a lower --port")]
    Ports {
        /// How many nodes.
        nodes: usize,
        /// The first one's port.
        first: u16,
    },
}

impl DemoConfig {
    /// Checks what the command line asks for.
    ///
    /// # Errors
    /// If the topology can't be had or the ports don't suffice.
    pub fn from_args(args: DemoArgs) -> Result<Self, ConfigError> {
        let topology = Topology::load(&args.topology)?;
        let regions = topology.regions().len();
        let count = args.nodes.map_or(regions.min(MAX_NODES), usize::from);
        let ports = args.port..=u16::MAX;
        let nodes: Vec<_> = (1..)
            .zip((0..regions).cycle())
            .zip(ports)
            .take(count)
            .map(|((number, region), port)| NodeConfig { number, region, port })
            .collect();
        if nodes.len() < count {
            return Err(ConfigError::Ports { nodes: count, first: args.port });
        }
        let data =
            if args.ephemeral { DataPlace::Memory } else { DataPlace::Folder(args.data_dir) };
        let seed = args.seed.unwrap_or_else(fresh_seed);
        let splits = args.splits.into();
        let (epsilon, placement) = (args.epsilon, PlacementChange::from(args.placement));
        let members: Vec<_> = nodes.iter().map(|node| member(&topology, node)).collect();
        let voters = DEFAULT_VOTERS.min(nodes.len());
        meridian_txn::default_placement(voters, placement.clone(), &members)?;
        let (protocol, retention) = (args.protocol, args.retention);
        Ok(Self { data, topology, nodes, epsilon, placement, splits, protocol, retention, seed })
    }

    /// A node's region by name.
    #[must_use]
    pub fn region_name(&self, node: &NodeConfig) -> &str {
        self.topology.regions().get(node.region).map_or("", String::as_str)
    }
}

fn member(topology: &Topology, node: &NodeConfig) -> Member {
    Member {
        id: NodeId::new(node.number),
        region: topology.regions().get(node.region).cloned().unwrap_or_default(),
        round_trip: Duration::ZERO,
    }
}

impl ConfigError {
    /// What may be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Placement(TxnError::Refused { hint, .. }) => hint.clone(),
            _ => None,
        }
    }
}

/// A seed that nobody can guess: the keys of cancel requests are drawn from it too.
pub(crate) fn fresh_seed() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn config(args: &[&str]) -> Result<DemoConfig, ConfigError> {
        let cli = Cli::try_parse_from([&["meridian"], args].concat()).expect("parses");
        DemoConfig::from_args(cli.into_demo().expect("a demo"))
    }

    #[test]
    fn one_node_per_region_unless_said_otherwise() {
        let regions = |args: &[&str]| -> Vec<String> {
            let config = config(args).expect("valid");
            config.nodes.iter().map(|node| config.region_name(node).to_owned()).collect()
        };
        assert_eq!(regions(&[]), ["us-east", "us-west", "eu-west"]);
        assert_eq!(
            regions(&["--nodes", "5"]),
            ["us-east", "us-west", "eu-west", "us-east", "us-west"]
        );
        assert_eq!(regions(&["--nodes", "1"]), ["us-east"]);
        assert_eq!(regions(&["--topology", "world-10"]).len(), 9);
    }

    #[test]
    fn ports_follow_each_other_and_have_an_end() {
        let nodes = config(&["--port", "65533"]).expect("valid").nodes;
        assert_eq!(nodes.iter().map(|n| n.port).collect::<Vec<_>>(), [65533, 65534, 65535]);
        assert!(matches!(config(&["--port", "65534"]), Err(ConfigError::Ports { .. })));
    }

    #[test]
    fn a_placement_that_the_nodes_cannot_satisfy_is_refused() {
        let error = config(&["--leader-region", "mars"]).expect_err("none");
        assert_eq!(error.to_string(), "there is no node in region mars");
        assert!(error.hint().is_some_and(|hint| hint.contains("us-east")), "{:?}", error.hint());
        let error = config(&["--voters", "5"]).expect_err("too many").to_string();
        assert_eq!(error, "5 voters were asked for, but the cluster has 3 nodes");
        let crowded = ["--voters", "5", "--nodes", "5", "--read-only", "us-west"];
        config(&crowded).expect_err("no sixth");
        config(&["--voters", "5", "--nodes", "9", "--read-only", "us-west"]).expect("enough");
    }

    #[test]
    fn a_topology_that_is_not_there_is_named() {
        let error = config(&["--topology", "mars"]).expect_err("none").to_string();
        assert!(error.contains("mars") && error.contains("us-eu-3"), "{error}");
    }
}
