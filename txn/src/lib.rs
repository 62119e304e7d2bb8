//! Concurrency control: tablets, their timestamps, and the nodes that serve them.
//!
//! A [`Node`] is enough of a database to simulate a cluster without SQL: it holds replicas of
//! tablets, serves those that it leads, and is a gateway to all others.
//!
//! # A transaction
//!
//! A [`Transaction`] reads under locks ([`locks`]), keeps its writes at the gateway until the commit,
//! and commits with one entry of one tablet's log ([`WriteRequest`]), or by two-phase commit over
//! several (`commit`). The leader assigns a timestamp, logs the request, and the replicated state
//! machine validates and applies it (`tablet::machine`). The leader answers once the timestamp has
//! certainly passed (commit wait, overlapping with replication); until then nobody sees the write
//! ([`oracle`]).
//!
//! # A read
//!
//! Reads go to the leader and see one timestamp ([`ReadAt`]). A leader serves within its lease
//! (`meridian_replication::raft::lease`), in which there is no other, so it needs to ask nobody.

mod autosplit;
mod collect;
mod command;
mod commit;
mod directory;
mod error;
mod gateway;
mod holdings;
pub mod locks;
mod node;
mod once;
pub mod oracle;
mod placement;
mod reconcile;
pub mod rest;
mod safe_time;
mod service;
mod tablet;
mod tend;

pub use autosplit::SplitOptions;
pub use collect::DEFAULT_RETENTION;
pub use command::{
    Mutation, ReadAt, ReadSet, Row, ScanRequest, ScanResult, TxnLock, WholeTxn, WriteRequest,
};
pub use commit::{CommitProtocol, CommitReport, Phases};
pub use directory::{
    DirectoryRead, DirectoryRow, FIRST_USER_TABLE, SYSTEM_TABLET, directory_delete, directory_put,
    table_range,
};
pub use error::TxnError;
pub use gateway::buffer::{Changes, Savepoint, WriteBuffer, changes_within, row_of};
pub use gateway::transaction::{Locking, Transaction, Wait};
pub use meridian_replication::{Generation, Placement, PlacementChange, TabletDescriptor};
pub use node::{Member, Node, NodeOptions};
pub use placement::default_placement;
pub use service::{TabletLock, TabletStatus};
pub use tablet::TabletRead;
