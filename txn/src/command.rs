//! What tablets are asked to do and what their logs hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_replication::{Generation, Placement, TabletDescriptor};
use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::commit::{Anchor, Commit, CommitProtocol, Decided, Prepare, Prepared, Vote};
use crate::error::TxnError;
use crate::locks::{Hold, Mode, Stamp, TxnId};
use crate::tablet::{Target, Unchanged};

/// A change of one row or index entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mutation {
    /// Adds a row; the write fails with [`TxnError::DuplicateKey`] if the key exists.
    Insert {
        /// The key.
        key: Vec<u8>,
        /// The row.
        value: Vec<u8>,
    },
    /// Adds or replaces a row.
    Put {
        /// The key.
        key: Vec<u8>,
        /// The row.
        value: Vec<u8>,
    },
    /// Removes a row, if it exists.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
}

impl Mutation {
    /// The key that changes.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Insert { key, .. } | Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// The bytes that it adds to a request, about.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Insert { key, value } | Self::Put { key, value } => key.len() + value.len() + 8,
            Self::Delete { key } => key.len() + 8,
        }
    }
}

/// What a write was computed from. Apply refuses the write if any of it has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadSet {
    /// The timestamp that the ranges were read at.
    pub at: Timestamp,
    /// Keys, each with the version that was seen; `None` for a key that had no row.
    pub keys: Vec<(Vec<u8>, Option<Timestamp>)>,
    /// Ranges of which everything was seen as of `at`, absences included.
    pub ranges: Vec<KeyRange>,
}

/// A write to one tablet, carried out whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// The tablet.
    pub tablet: TabletId,
    /// The tables concerned, each with the schema version that the write was planned under.
    pub schema: Vec<(u64, u64)>,
    /// What it was computed from.
    pub reads: ReadSet,
    /// The changes, at most one per key.
    pub mutations: Vec<Mutation>,
    /// The commit timestamp lies above this: the highest timestamp that the session has seen.
    pub after: Timestamp,
    /// The transaction that it is all of; if there is none, it is one of its own.
    pub txn: Option<WholeTxn>,
}

/// A transaction that concerns one tablet only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeTxn {
    /// Who it is.
    pub stamp: Stamp,
    /// The locks that it has in the tablet already; without them it is over.
    pub held: Option<Hold>,
    /// How its timestamp is chosen and released.
    pub protocol: CommitProtocol,
    /// How long it waits for locks.
    pub wait: Duration,
}

impl WriteRequest {
    /// From the first key that changes to the last.
    pub(crate) fn span(&self) -> KeyRange {
        let keys = || self.mutations.iter().map(Mutation::key);
        let start = keys().min().unwrap_or_default().to_vec();
        KeyRange { start, end: keys().max().map(|last| [last, &[0]].concat()) }
    }

    /// The request's size in bytes, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let keys: usize = self.reads.keys.iter().map(|(key, _)| key.len() + 16).sum();
        keys + self.mutations.iter().map(Mutation::size).sum::<usize>()
    }
}

/// Which versions a read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAt {
    /// Everything acknowledged before the read began; the leader picks the timestamp, no lower than
    /// `min`.
    Strong {
        /// The highest timestamp that the session has seen.
        min: Timestamp,
    },
    /// As of this timestamp, which no later write to what is read will get.
    Exact(Timestamp),
    /// What the leader has, however old: for the reading part of a write, which apply validates.
    Unconfirmed,
}

/// A read of a range's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// The keys.
    pub range: KeyRange,
    /// Which versions.
    pub at: ReadAt,
    /// At most so many rows; `u64::MAX` for all that fit into one answer.
    pub limit: u64,
    /// From the end.
    pub reverse: bool,
}

/// A row as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its key.
    pub key: Vec<u8>,
    /// The commit timestamp of the version.
    pub ts: Timestamp,
    /// The value.
    pub value: Vec<u8>,
}

/// The answer to a [`ScanRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanResult {
    /// The timestamp of the read.
    pub at: Timestamp,
    /// The rows in the order of the scan.
    pub rows: Vec<Row>,
    /// Whether rows were left out, because of the limit or of the answer's size.
    pub more: bool,
}

/// An entry of a tablet's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Take in the right neighbour: the staged parts of it become rows, its range this tablet's. The
    /// first variant, so that its encoding can be told by its first byte.
    Absorb(Absorb),
    /// Validate and write at `at`.
    Write { at: Timestamp, request: WriteRequest },
    /// From now on, refuse writes that were planned under an older schema version of the table.
    Fence { table: u64, version: u64 },
    /// Split in front of `key`; what lies behind becomes the tablet `child`. Where a tablet begins
    /// there already, that is made `sticky`.
    Split { key: Vec<u8>, child: TabletId, sticky: bool },
    /// Where the replicas should be; the leaders see to it.
    Place { placement: Placement, preferred_leader: NodeId, target: Target },
    /// The same within the present placement, unless the replicas are on their way already or
    /// anything else has changed since `generation`.
    Move { generation: Generation, preferred_leader: NodeId, target: Target },
    /// Who should lead.
    Prefer { leader: NodeId },
    /// Serve nothing, because the left neighbour is to absorb this tablet; if `unchanged` is given,
    /// only as long as both are what they were then.
    Freeze { into: TabletId, unchanged: Option<Unchanged> },
    /// Serve again: it can't.
    Thaw,
    /// A part of what is to be absorbed; the first one puts those staged before away.
    Stage { content: Content, part: u64, versions: Versions },
    /// Serve nothing any more: the tablet's table was dropped, or it was absorbed.
    Retire,
    /// A transaction may commit here; it is not known yet whether it does.
    Prepare(Prepared),
    /// The outcome of a transaction that was prepared here: committed at that timestamp, or not.
    Finish { txn: TxnId, commit: Option<Timestamp> },
    /// The outcome of a transaction that is coordinated here, unless there is one already. What it
    /// writes here, it writes with it.
    Decide { decided: Decided, schema: Vec<(u64, u64)>, mutations: Vec<Mutation> },
    /// Nobody asks for these outcomes any more.
    Forget { txns: Vec<TxnId> },
    /// Remove the versions of the range that no read at or above `horizon` sees.
    Collect { horizon: Timestamp, range: KeyRange },
}

/// Versions of rows: key, timestamp, value.
pub(crate) type Versions = Vec<(Vec<u8>, Timestamp, Option<Vec<u8>>)>;

/// What a tablet takes in with its right neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Absorb {
    /// Above everything that was assigned or promised in either tablet.
    pub(crate) at: Timestamp,
    /// The generation of the tablet that absorbs; it is refused in any other.
    pub(crate) generation: Generation,
    pub(crate) right: TabletDescriptor,
    pub(crate) fences: BTreeMap<u64, u64>,
    /// The tablets that the neighbour has absorbed.
    pub(crate) absorbed: BTreeSet<TabletId>,
    /// What was staged, and in how many parts.
    pub(crate) content: Content,
    pub(crate) parts: u64,
    /// The outcomes of transactions that were coordinated there.
    pub(crate) outcomes: Vec<Decided>,
    /// Of the neighbour.
    pub(crate) horizon: Timestamp,
}

/// What a frozen tablet holds: the same for as long as it is frozen, and something else after it
/// was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) tablet: TabletId,
    pub(crate) generation: Generation,
    pub(crate) last_write: Timestamp,
}

impl Command {
    /// Whether encoded bytes are an [`Absorb`].
    pub(crate) fn is_absorb(encoded: &[u8]) -> bool {
        encoded.first() == Some(&0)
    }
}

/// What applying a [`Command`] came to; the same on every replica.
pub(crate) type Outcome = Result<Timestamp, TxnError>;

/// A request as it crosses the network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Message {
    /// Of a request that must not take effect twice.
    pub(crate) number: Option<u64>,
    pub(crate) request: Request,
}

/// A request to the node that a tablet's replica is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    Get {
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    },
    Scan {
        tablet: TabletId,
        scan: ScanRequest,
    },
    Write(WriteRequest),
    /// Open a replica; with `lead`, stand for election.
    Ensure {
        descriptor: TabletDescriptor,
        lead: bool,
    },
    /// Does the tablet have a leader that serves? Asked of the leader.
    Confirm {
        tablet: TabletId,
    },
    Fence {
        tablet: TabletId,
        table: u64,
        version: u64,
    },
    Split {
        tablet: TabletId,
        key: Vec<u8>,
        child: TabletId,
        sticky: bool,
    },
    Place {
        tablet: TabletId,
        placement: Placement,
        preferred_leader: NodeId,
        target: Target,
    },
    Move {
        tablet: TabletId,
        generation: Generation,
        preferred_leader: NodeId,
        target: Target,
    },
    Prefer {
        tablet: TabletId,
        leader: NodeId,
    },
    /// Hand leadership to that node and wait until it leads.
    Transfer {
        tablet: TabletId,
        to: NodeId,
    },
    Retire {
        tablet: TabletId,
    },
    /// Freeze a tablet, to be merged into its left neighbour.
    Freeze {
        tablet: TabletId,
        into: TabletId,
        unchanged: Option<Unchanged>,
    },
    Stage {
        tablet: TabletId,
        content: Content,
        part: u64,
        versions: Versions,
    },
    /// Absorb the right neighbour. The timestamp is the highest that was assigned or promised there;
    /// the leader assigns one above it.
    Absorb {
        tablet: TabletId,
        absorb: Absorb,
    },
    /// A tablet's present descriptor and what it has absorbed, from its leader.
    Describe {
        tablet: TabletId,
    },
    /// Does the leader count on that node's replica?
    Wants {
        tablet: TabletId,
        on: NodeId,
    },
    /// A tablet's present descriptor and how large and how hot it is, from its leader.
    Measure {
        tablet: TabletId,
    },
    /// Close a replica and delete its data; only after the tablet was retired.
    Remove {
        tablet: TabletId,
    },
    /// How the node's replicas stand.
    Status,
    /// The locks in the tablets that the node leads.
    Locks,
    /// Read under locks on the keys.
    LockedGet {
        tablet: TabletId,
        lock: TxnLock,
        keys: Vec<Vec<u8>>,
    },
    /// Read under a lock on the range.
    LockedScan {
        tablet: TabletId,
        lock: TxnLock,
        scan: ScanRequest,
    },
    Prepare(Prepare),
    Commit(Commit),
    /// A participant's vote, to the coordinator.
    Vote {
        tablet: TabletId,
        txn: TxnId,
        by: TabletId,
        vote: Vote,
    },
    /// An older transaction waits for one that has prepared: to its coordinator.
    Press {
        tablet: TabletId,
        txn: TxnId,
    },
    /// The outcome, to a participant.
    Finish {
        tablet: TabletId,
        txn: TxnId,
        commit: Option<Timestamp>,
        protocol: CommitProtocol,
    },
    /// What became of a transaction? To its coordinator.
    Inquire {
        tablet: TabletId,
        txn: TxnId,
        anchor: Anchor,
    },
    /// A transaction that writes nothing ends: the locks go. With `held`, they must be there still,
    /// and nothing is written below `floor` after.
    End {
        tablet: TabletId,
        txn: TxnId,
        held: Option<Hold>,
        floor: Timestamp,
    },
    /// The gateways of these transactions live.
    Alive {
        tablet: TabletId,
        txns: Vec<TxnId>,
    },
    Stale(Stale),
}

/// A request to a replica that need not lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stale {
    /// Read, if the replica has everything up to that timestamp.
    Get {
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: Timestamp,
    },
    Scan {
        tablet: TabletId,
        scan: ScanRequest,
    },
    /// Up to which timestamp does it have everything?
    SafeTime {
        tablet: TabletId,
    },
}

/// For whom a read takes locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnLock {
    pub(crate) stamp: Stamp,
    pub(crate) mode: Mode,
    /// The locks that the transaction has in the tablet already; without them it is over.
    pub(crate) held: Option<Hold>,
    /// So long it waits for them.
    pub(crate) wait: Duration,
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, TxnError> {
    postcard::to_stdvec(value).map_err(|error| TxnError::Internal(error.to_string()))
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TxnError> {
    postcard::from_bytes(bytes).map_err(|error| TxnError::Internal(error.to_string()))
}
