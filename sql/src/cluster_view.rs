//! What the tables of the schema `meridian` show, and what its functions do. The server, which
//! knows the whole cluster, implements it.

use std::fmt::Debug;

use async_trait::async_trait;
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{Timestamp, TtInterval};

use crate::error::SqlError;

/// A row of `meridian.nodes`.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    /// The node.
    pub node: NodeId,
    /// Where it is.
    pub region: String,
    /// Where it listens for SQL.
    pub sql_address: Option<String>,
    /// `running`, `stopped`, `unreachable`.
    pub state: String,
    /// When it was started last.
    pub started: Option<Timestamp>,
}

/// A row of `meridian.clocks`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClockRow {
    /// The node.
    pub node: NodeId,
    /// `TT.now()`, earliest and latest.
    pub interval: TtInterval,
    /// The clock's reading less the true time, in milliseconds, where that is known (simulated
    /// clocks).
    pub offset_ms: Option<f64>,
    /// The clock's drift in millionths, where that is known.
    pub drift_ppm: Option<f64>,
}

/// A row of `meridian.links`: one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkRow {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The round trip there and back, in milliseconds.
    pub rtt_ms: f64,
    /// The random part of a message's latency, in milliseconds.
    pub jitter_ms: f64,
    /// The share of messages that are lost, from 0 to 1.
    pub loss: f64,
    /// `up`, `partitioned`, `clogged`.
    pub state: String,
    /// Messages delivered since the start.
    pub messages: u64,
    /// Bytes delivered since the start.
    pub bytes: u64,
}

/// What a row of `meridian.tablets` adds to the directory's descriptor.
#[derive(Clone, Debug, PartialEq)]
pub struct TabletRow {
    /// The tablet.
    pub tablet: TabletId,
    /// The first key.
    pub start: Vec<u8>,
    /// The first key behind it; none at the end of the key space.
    pub end: Option<Vec<u8>>,
    /// The nodes that hold it.
    pub replicas: Vec<NodeId>,
    /// Who leads, if that is known.
    pub leader: Option<NodeId>,
    /// About how many bytes it has.
    pub size_bytes: Option<u64>,
    /// Raft's term at the leader.
    pub raft_term: Option<u64>,
    /// The last log entry applied at the leader.
    pub applied_index: Option<u64>,
    /// Grows when the range or the replicas change.
    pub generation: u64,
}

/// A row of `meridian.replicas`: one node's replica of a tablet.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaRow {
    /// The tablet.
    pub tablet: TabletId,
    /// Where the replica is.
    pub node: NodeId,
    /// Whether it leads, as it believes.
    pub leads: bool,
    /// Raft's term there.
    pub raft_term: u64,
    /// The last entry in its log.
    pub last_index: u64,
    /// The last entry that it has applied.
    pub applied_index: u64,
    /// The timestamp of the last write that it has applied.
    pub last_write: Timestamp,
    /// About how many bytes it has.
    pub size_bytes: u64,
}

/// The cluster as its operators see it.
#[async_trait]
pub trait ClusterView: Debug + Send + Sync {
    /// All nodes.
    async fn nodes(&self) -> Result<Vec<NodeRow>, SqlError>;

    /// The nodes' clocks.
    async fn clocks(&self) -> Result<Vec<ClockRow>, SqlError>;

    /// The links between nodes.
    async fn links(&self) -> Result<Vec<LinkRow>, SqlError>;

    /// All tablets.
    async fn tablets(&self) -> Result<Vec<TabletRow>, SqlError>;

    /// All replicas of all tablets on nodes that can be asked.
    async fn replicas(&self) -> Result<Vec<ReplicaRow>, SqlError>;

    /// Stops a node as a crash would; false if it wasn't running.
    async fn stop_node(&self, node: NodeId) -> Result<bool, SqlError>;

    /// Starts a stopped node; false if it was running.
    async fn start_node(&self, node: NodeId) -> Result<bool, SqlError>;
}
