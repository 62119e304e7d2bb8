//! What the tables of the schema `meridian` show, and what its functions do. The server, which
//! knows the whole cluster, implements it.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{Timestamp, TtInterval};
use meridian_txn::{Placement, TabletLock};

use crate::error::SqlError;
use crate::session::Notice;

/// A row of `meridian.nodes`.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    /// The node.
    pub node: NodeId,
    /// Where it is.
    pub region: String,
    /// Where it listens for SQL.
    pub sql_address: Option<String>,
    /// `running`, `paused`, `stopped`, `unreachable`.
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
    /// Those of them that vote.
    pub voters: Vec<NodeId>,
    /// Those that follow without voting.
    pub read_only: Vec<NodeId>,
    /// Who should lead whenever it can.
    pub preferred_leader: NodeId,
    /// Where its replicas should be.
    pub placement: Placement,
    /// Who leads, if that is known.
    pub leader: Option<NodeId>,
    /// Where that is.
    pub leader_region: Option<String>,
    /// About how many bytes it has.
    pub size_bytes: Option<u64>,
    /// How many requests per second its leader has been asked of late.
    pub requests_per_second: Option<f64>,
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
    /// `voter` or `read-only`; none where the tablet no longer counts it.
    pub role: Option<&'static str>,
    /// Whether it leads, as it believes.
    pub leads: bool,
    /// Raft's term there.
    pub raft_term: u64,
    /// The last entry in its log.
    pub last_index: u64,
    /// How many entries of the leader's log it doesn't have, if a leader is known.
    pub lag: Option<u64>,
    /// The last entry that it has applied.
    pub applied_index: u64,
    /// The timestamp of the last write that it has applied.
    pub last_write: Timestamp,
    /// About how many bytes it has.
    pub size_bytes: u64,
}

/// A row of `meridian.locks`: a lock in a tablet, held or wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockRow {
    /// Where the tablet is led.
    pub node: NodeId,
    /// The lock.
    pub locked: TabletLock,
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

    /// All locks in tablets that are led by nodes that can be asked; of very many, some.
    async fn locks(&self) -> Result<Vec<LockRow>, SqlError>;

    /// Stops a node as a crash would; false if it wasn't running.
    async fn stop_node(&self, _: NodeId) -> Result<bool, SqlError> {
        Err(simulated_only("stop_node", "Stop the node's process."))
    }

    /// Starts a stopped node; false if it was running.
    async fn start_node(&self, _: NodeId) -> Result<bool, SqlError> {
        Err(simulated_only("start_node", "Start the node's process."))
    }

    /// Pauses a node as SIGSTOP does a process, until it is resumed or for as long as is said.
    /// Nothing changes if it doesn't run; if it is paused, for how long.
    async fn pause_node(&self, _: NodeId, _: Option<Duration>) -> Result<Effect, SqlError> {
        Err(simulated_only("pause_node", "Send the node's process SIGSTOP."))
    }

    /// Lets a paused node go on.
    async fn resume_node(&self, _: NodeId) -> Result<Effect, SqlError> {
        Err(simulated_only("resume_node", "Send the node's process SIGCONT."))
    }

    /// Cuts the links from one place to another, and with `both` those back.
    async fn partition(&self, _: &Place, _: &Place, _both: bool) -> Result<Effect, SqlError> {
        Err(simulated_only("partition", "Use the machines' firewalls."))
    }

    /// Ends partitions and losses, everywhere or between two places. Latencies stay.
    async fn heal(&self, _between: Option<&[Place; 2]>) -> Result<Effect, SqlError> {
        Err(simulated_only("heal", "Use the machines' firewalls."))
    }

    /// Changes the links between two places.
    async fn set_latency(&self, _: &Place, _: &Place, _: LinkChange) -> Result<Effect, SqlError> {
        Err(simulated_only("set_latency", "On Linux, tc with netem delays packets."))
    }

    /// Gives links the latencies that they had at the start, everywhere or between two places.
    async fn reset_latency(&self, _between: Option<&[Place; 2]>) -> Result<Effect, SqlError> {
        Err(simulated_only("reset_latency", "On Linux, tc with netem delays packets."))
    }

    /// Changes how a node's clock behaves.
    async fn set_clock(&self, _: NodeId, _: ClockChange) -> Result<Effect, SqlError> {
        let hint = "A real node's uncertainty is declared when it is started.";
        Err(simulated_only("set_clock", hint))
    }
}

fn simulated_only(function: &str, hint: &str) -> SqlError {
    SqlError::unsupported(format!("meridian.{function} is for simulated clusters")).hint(hint)
}

/// A node, or all nodes of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// One node.
    Node(NodeId),
    /// All nodes there.
    Region(String),
}

/// What of a link is to change; what isn't given stays.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkChange {
    /// The round trip there and back.
    pub rtt: Option<Duration>,
    /// A message takes up to this much longer.
    pub jitter: Option<Duration>,
    /// The share of messages that are lost, from 0 to 1.
    pub loss: Option<f64>,
}

/// What of a clock is to change; what isn't given stays.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClockChange {
    /// The uncertainty that it declares, right after a poll of its time masters.
    pub epsilon: Option<Duration>,
    /// The clock less the true time, right after a poll, in nanoseconds.
    pub offset_nanos: Option<i64>,
    /// How fast it runs ahead, in millionths.
    pub drift_ppm: Option<f64>,
}

/// What came of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Whether anything is different now.
    pub changed: bool,
    /// What the client is to be told.
    pub notices: Vec<Notice>,
}

impl From<bool> for Effect {
    fn from(changed: bool) -> Self {
        Self { changed, notices: Vec::new() }
    }
}
