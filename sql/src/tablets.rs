//! What SQL needs of the tablets below it.
//!
//! One implementation serves a cluster (`ClusterTablets`); tests
//! use one in memory. Everything else in this crate sees tablets through this trait only.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::record_batch::RecordBatch;
use futures::stream::BoxStream;
use meridian_storage::{KeyRange, KeyType, NodeId, Order, TabletId};
use meridian_truetime::{Env, Timestamp, TtInterval};
use meridian_txn::locks::{Age, Hold, Mode};
use meridian_txn::{
    Changes, CommitProtocol, CommitReport, DirectoryRead, PlacementChange, ReadAt, Row, Savepoint,
    ScanRequest, ScanResult, TabletDescriptor, TxnError, Wait, WriteRequest,
};
use serde::{Deserialize, Serialize};

use crate::error::SqlError;
use crate::fragment::Fragment;

pub use meridian_txn::SYSTEM_TABLET;

/// Why a read failed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum ReadError {
    /// The tablet didn't serve it.
    #[error(transparent)]
    Txn(#[from] TxnError),
    /// The statement is wrong for the data (a division by zero in a filter).
    #[error(transparent)]
    Sql(#[from] SqlError),
}

/// The batches of a fragment, and the timestamp that they were read at.
pub struct FragmentRead {
    /// What the leader read at.
    pub at: Timestamp,
    /// Under which locks, if any.
    pub hold: Option<Hold>,
    /// What it took.
    pub visit: Visit,
    /// Dropping it stops the reading.
    pub batches: BoxStream<'static, Result<RecordBatch, ReadError>>,
}

/// What it took to begin reading a tablet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Who has read it.
    pub node: NodeId,
    /// How many requests went to other nodes, one after the other.
    pub round_trips: u32,
    /// The time spent waiting for locks.
    pub lock_wait: Duration,
}

/// A read-write transaction. What it reads, nobody else writes until it ends; what it writes is kept
/// at the gateway until it commits.
#[async_trait]
pub trait Transaction: Debug + Send + Sync {
    /// How old it is; for another attempt.
    fn age(&self) -> Age;

    /// Everything that it has seen was committed up to here.
    fn seen(&self) -> Timestamp;

    /// It was planned under this version of a table's schema.
    ///
    /// # Errors
    /// [`TxnError::SchemaChanged`] if an earlier part of it was planned under another.
    fn planned_under(&self, table: u64, version: u64) -> Result<(), TxnError>;

    /// How long its commit waits for the locks that it hasn't got yet.
    fn set_wait(&self, wait: Wait);

    /// Its changes so far; later ones are not seen there.
    fn changes(&self) -> Arc<Changes>;

    /// About how many bytes its changes take.
    fn size(&self) -> usize;

    /// A place to go back to.
    fn savepoint(&self) -> Savepoint;

    /// Takes back all changes since; its locks stay.
    fn roll_back_to(&self, savepoint: Savepoint);

    /// Rows by their keys, its own changes included.
    async fn get(
        &self,
        keys: Vec<Vec<u8>>,
        mode: Mode,
        wait: Wait,
    ) -> Result<Vec<Option<Row>>, TxnError>;

    /// Runs a part of a plan beside the tablet, under locks on its ranges; without its own changes.
    async fn fragment(
        &self,
        tablet: TabletId,
        fragment: Fragment,
        mode: Mode,
        wait: Wait,
    ) -> Result<FragmentRead, ReadError>;

    /// Adds a row. If there is one already when it commits, that fails.
    ///
    /// # Errors
    /// [`TxnError::DuplicateKey`] if there is one of its own.
    fn insert(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), TxnError>;

    /// Adds or replaces a row.
    fn put(&self, key: Vec<u8>, value: Vec<u8>);

    /// Removes a row, if it exists.
    fn delete(&self, key: Vec<u8>);

    /// Commits; the commit timestamp, or [`Timestamp::MIN`] if nothing was written.
    async fn commit(&self) -> Result<Timestamp, TxnError>;

    /// What its commit came to.
    fn report(&self) -> CommitReport;

    /// Ends it without effect.
    fn roll_back(&self);
}

/// The tablets as a gateway reaches them.
#[async_trait]
pub trait Tablets: Debug + Send + Sync {
    /// The node's environment.
    fn env(&self) -> &Env;

    /// `TT.now()`.
    fn now(&self) -> TtInterval;

    /// The tablets that hold the range's keys, in the order of their keys.
    async fn tablets(&self, range: &KeyRange) -> Result<Vec<TabletDescriptor>, TxnError>;

    /// Rows of a range, at the tablet's leader.
    async fn scan(&self, tablet: TabletId, request: ScanRequest) -> Result<ScanResult, TxnError>;

    /// Rows by their keys, at the tablet's leader.
    async fn get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    ) -> Result<(Timestamp, Vec<Option<Row>>), TxnError>;

    /// Runs a part of a plan beside the tablet.
    async fn fragment(
        &self,
        tablet: TabletId,
        fragment: Fragment,
    ) -> Result<FragmentRead, ReadError>;

    /// The same at the nearest replica that can serve the timestamp ([`Access::Stale`]).
    ///
    /// [`Access::Stale`]: crate::fragment::Access::Stale
    async fn fragment_near(
        &self,
        tablet: TabletId,
        fragment: Fragment,
    ) -> Result<FragmentRead, ReadError>;

    /// Up to which timestamp the nearest replicas of all of these tablets can serve reads now.
    async fn safe_time_near(&self, tablets: &[TabletId]) -> Result<Timestamp, TxnError>;

    /// Begins a transaction, as old as `age` says if it is another attempt at one that has failed. Its
    /// commit timestamp will lie above `after`.
    fn begin(
        &self,
        age: Option<Age>,
        protocol: CommitProtocol,
        after: Timestamp,
    ) -> Arc<dyn Transaction>;

    /// Applies the mutations if what was read still holds; answers the commit timestamp.
    async fn write(&self, request: WriteRequest) -> Result<Timestamp, TxnError>;

    /// The directory as it is now.
    async fn directory(&self) -> Result<DirectoryRead, TxnError>;

    /// A tablet id that was never used.
    async fn new_tablet_id(&self) -> Result<TabletId, TxnError>;

    /// A descriptor for a new tablet: where its replicas go is decided here, by the cluster's
    /// default placement with a change made to it.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when the nodes can't satisfy it.
    fn new_tablet(
        &self,
        id: TabletId,
        range: KeyRange,
        root_key: Vec<(KeyType, Order)>,
        change: PlacementChange,
    ) -> Result<TabletDescriptor, TxnError>;

    /// Waits until a tablet that the directory lists serves.
    async fn ensure_tablet(&self, descriptor: &TabletDescriptor) -> Result<(), TxnError>;

    /// Makes the tablets that hold keys of `range` refuse writes that were planned under a schema
    /// version of `table` below `version`: `u64::MAX` when the table was dropped.
    async fn fence_table(&self, range: &KeyRange, table: u64, version: u64)
    -> Result<(), TxnError>;

    /// Splits the tablet that holds `key` in front of it; the tablet that begins there.
    async fn split(&self, key: Vec<u8>) -> Result<TabletId, TxnError>;

    /// Merges a tablet with its right neighbour of the same root table; the tablet that is left.
    async fn merge(&self, tablet: TabletId) -> Result<TabletId, TxnError>;

    /// Changes where the replicas of a range's tablets should be, after splitting at its ends.
    async fn place(
        &self,
        range: &KeyRange,
        change: PlacementChange,
    ) -> Result<Vec<TabletId>, TxnError>;

    /// Hands a tablet's leadership to the replica on `node`.
    async fn transfer_leader(&self, tablet: TabletId, node: NodeId) -> Result<(), TxnError>;

    /// Moves a tablet's replica from one node to another.
    async fn move_replica(
        &self,
        tablet: TabletId,
        from: NodeId,
        to: NodeId,
    ) -> Result<(), TxnError>;

    /// Ends a tablet that the directory no longer lists.
    async fn retire_tablet(&self, descriptor: &TabletDescriptor) -> Result<(), TxnError>;

    /// Who leads the tablet, as far as this node knows.
    fn leader(&self, tablet: &TabletDescriptor) -> NodeId;

    /// Where a node is.
    fn region(&self, node: NodeId) -> Option<String>;
}
