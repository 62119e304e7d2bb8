//! Outcomes that callers tell apart.

use meridian_replication::TabletDescriptor;
use meridian_replication::net::NetError;
use meridian_storage::{NodeId, StorageError, TabletId};
use meridian_truetime::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a request to a tablet was not carried out.
///
/// Each variant is something that a caller reacts to in its own way. All but
/// [`TxnError::Unknown`] promise that nothing was changed and nothing will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TxnError {
    /// What the request had read has changed, a concurrent write came first, or an older transaction
    /// needed the locks. Retry from the read.
    #[error("a concurrent transaction came first")]
    Conflict,
    /// Another transaction holds locks, for longer than this one waits.
    #[error("another transaction has locked the keys")]
    Locked,
    /// A row with this key exists.
    #[error("the key exists already")]
    DuplicateKey {
        /// The key.
        key: Vec<u8>,
    },
    /// The tablet knows another version of a table's schema. Read the catalog again and retry.
    #[error("the schema of table {table} has changed")]
    SchemaChanged {
        /// The table.
        table: u64,
    },
    /// The tablet doesn't exist, or no longer. Read the directory again.
    #[error("{tablet} does not exist")]
    NoSuchTablet {
        /// The tablet.
        tablet: TabletId,
    },
    /// The tablet doesn't cover what was asked for, or no longer: it was split or merged.
    #[error("{tablet} does not cover the keys any more")]
    Moved {
        /// The tablet.
        tablet: TabletId,
        /// What the tablet knows: its own descriptor, and that of the tablet that was split from it
        /// last.
        known: Vec<TabletDescriptor>,
    },
    /// The replica that was asked doesn't lead.
    #[error("the replica does not lead {tablet}")]
    NotLeader {
        /// The tablet.
        tablet: TabletId,
        /// Who leads, if the replica knows.
        leader: Option<NodeId>,
    },
    /// No majority could be reached in time; nothing was done.
    #[error("{tablet} is unavailable: {reason}")]
    Unavailable {
        /// The tablet.
        tablet: TabletId,
        /// What was tried last.
        reason: String,
    },
    /// The write may have been carried out, or may yet be.
    #[error("the outcome of the write is unknown: {reason}")]
    Unknown {
        /// What happened to the answer.
        reason: String,
    },
    /// The write is larger than a tablet takes at once.
    #[error("the write has {size} bytes, more than the {limit} that are allowed")]
    TooLarge {
        /// The request's size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The request makes no sense as the cluster stands; nothing was changed.
    #[error("{message}")]
    Refused {
        /// What is wrong, as a user is told.
        message: String,
        /// What would help.
        hint: Option<String>,
    },
    /// The replica can't serve reads at that timestamp yet. Another one may, or the leader, or this
    /// one a moment later.
    #[error("this replica of {tablet} can serve reads up to {safe} only")]
    TooFresh {
        /// The tablet.
        tablet: TabletId,
        /// Its safe time.
        safe: Timestamp,
        /// Who leads, if the replica knows.
        leader: Option<NodeId>,
    },
    /// The versions that a read at that timestamp would see may be gone.
    #[error(
        "{tablet} has versions as of {horizon}, and none that are older: the timestamp is older than the retention period"
    )]
    TooOld {
        /// The tablet.
        tablet: TabletId,
        /// The oldest timestamp at which it can be read.
        horizon: Timestamp,
    },
    /// A node's storage failed, or something is not as it must be.
    #[error("{0}")]
    Internal(String),
}

impl TxnError {
    /// A read of what is yet to come.
    pub(crate) fn in_the_future() -> Self {
        Self::refused(
            "the timestamp of the read lies in the future",
            "Read at a timestamp that has passed.",
        )
    }

    /// A request that makes no sense, with a hint.
    pub(crate) fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), hint: Some(hint.into()) }
    }
}

impl From<StorageError> for TxnError {
    fn from(error: StorageError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// A failed call of which is known that it wasn't carried out.
pub(crate) fn not_executed(tablet: TabletId, error: &NetError) -> TxnError {
    TxnError::Unavailable { tablet, reason: error.to_string() }
}
