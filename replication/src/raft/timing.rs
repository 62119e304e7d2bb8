//! Raft's timeouts, derived from how far apart the nodes are.

use std::time::Duration;

use meridian_truetime::Environment;
use openraft::{Config, SnapshotPolicy};

/// For how long a majority's answer lets a leader propose, as openraft sees it. Whether it reaches a
/// majority is seen to elsewhere (`liveness`), much sooner. Renewing it takes up memory that openraft
/// keeps (a queue of its is a ring that is never rewound), so it is long.
pub(crate) const LEASE: Duration = Duration::from_hours(24);

/// How patient the groups of a cluster are.
///
/// The heartbeat interval is also openraft's deadline for an append, and it keeps a quarter of that
/// to itself, so it must exceed 4/3 of the longest round trip or a group that has only that link
/// left never makes progress. When a node has been silent for three to six heartbeats, the followers of
/// its groups stand for election, within one and a half more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of a node.
    pub heartbeat: Duration,
    /// The shortest silence after which the followers of a node's groups stand for election.
    pub election_min: Duration,
    /// The longest.
    pub election_max: Duration,
    /// How long a leader's lease lasts without being renewed (see `raft::lease`); it is renewed with
    /// every heartbeat.
    pub lease: Duration,
    /// How many applied entries a log keeps before it is compacted.
    pub log_keep: u64,
}

impl Timing {
    /// The timing for a cluster whose farthest two nodes are `longest_round_trip` apart.
    #[must_use]
    pub fn for_round_trip(longest_round_trip: Duration) -> Self {
        let heartbeat = (longest_round_trip * 17 / 10).max(Duration::from_millis(150));
        Self {
            heartbeat,
            election_min: heartbeat * 3,
            election_max: heartbeat * 6,
            lease: (heartbeat * 3).max(Duration::from_secs(1)),
            log_keep: 5_000,
        }
    }

    /// How long a message and its answer may take before the link counts as broken.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.heartbeat * 2
    }

    /// openraft's configuration, its timers scaled to the environment's.
    pub(crate) fn config(&self, env: &dyn Environment) -> Config {
        Config {
            cluster_name: "meridian".into(),
            heartbeat_interval: env.tokio_millis(self.heartbeat),
            election_timeout_min: env.tokio_millis(self.election_min),
            // openraft's lease; its timers are off.
            election_timeout_max: env.tokio_millis(LEASE),
            enable_tick: false,
            install_snapshot_timeout: env.tokio_millis(Duration::from_mins(1)),
            max_payload_entries: 1_000,
            replication_lag_threshold: self.log_keep * 2,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.log_keep),
            max_in_snapshot_log_to_keep: self.log_keep / 5,
            purge_batch_size: 256,
            // Nothing of openraft's own statistics is asked for, and this would take 150 KiB.
            log_stage_capacity: Some(1),
            enable_pre_vote: Some(true),
            // A leader that restarts must win an election: what it had promised is forgotten.
            enable_leader_restore: Some(false),
            backoff: format!("{0}ms {0}ms ..{0}ms", env.tokio_millis(self.heartbeat)),
            ..Config::default()
        }
    }
}
