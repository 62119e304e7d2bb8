//! A node's disk: keys, multi-version rows and Raft logs on redb.
//!
//! # What is on the disk
//!
//! | file | holds |
//! |---|---|
//! | `lock` | the lock of the folder, and the process id of its owner |
//! | `format` | the version of all the others, and whether their creation was completed |
//! | `identity` | in a cluster of processes: whose folder it is, and whom it has met |
//! | `log.redb` | the Raft logs of all tablets: entries by (group, index), votes, purge points |
//! | `data.redb` | the rows of all tablets by (key, timestamp descending), and records by name |
//!
//! Two files, because they are durable at different moments. A log entry has to be durable before
//! it is acknowledged, so the log pays for a sync with every group of writes. Rows follow from
//! the log, so they are committed without one and flushed now and then; after a crash the log
//! replays what is missing. Whoever purges the log must therefore have flushed what it purges.
//!
//! ```text
//!  append, vote          LogStore: in memory at once --> group --> log.redb    sync per group
//!  apply                 DataStore: commit ------------> visible               no sync
//!                                   flush  ----------------------> data.redb   sync now and then
//! ```
//!
//! # Guarantees
//!
//! 1. What was answered with `Ok` by a [`Done`] survives every crash, and so does all that was
//!    submitted before it to the same file.
//! 2. A write is whole or absent: an append, a [`WriteBatch`].
//! 3. A store whose disk failed once serves nothing more until it is opened again. After a failed
//!    sync nobody knows what the medium holds (Rebello et al., *Can Applications Recover from
//!    fsync Failures?*, USENIX ATC 2020).
//! 4. A folder in use, of another version, or of somebody else is refused and left as it is.
//!
//! # How it is tested
//!
//! [`SimulatedDisk`] fails the power in the middle of a write and keeps any part of what was not
//! synced. The log and the rows are compared with simple models before and after.
//!
//! # Caveats
//!
//! A disk that lies about syncs breaks guarantee 1. redb verifies its checksums only while it
//! recovers a file, so a bit that flips later is read as it is. The log isn't committed with
//! redb's `quick_repair`, so after a crash it is walked once; purging keeps it short.
//!
//! Sources: redb's `docs/design.md`; Spanner, OSDI 2012, section 2; toyDB's `storage/mvcc.rs`.

mod data;
mod disk;
mod error;
mod identity;
mod ids;
mod key;
mod log;
mod range;
mod store;
mod writer;

pub use data::{
    DataSnapshot, DataStore, Direction, Records, Row, Scan, Version, Versions, WriteBatch,
};
pub use disk::{Disk, DiskFaults, DiskFile, FolderDisk, SimulatedDisk};
pub use error::{FORMAT_VERSION, StorageError};
pub use identity::{Identity, NoStoreId, StoreId};
pub use ids::{NodeId, TabletId};
pub use key::{KeyBuilder, KeyError, KeyReader, KeyType, KeyValue, Order};
pub use log::{LogMeta, LogStore};
pub use range::{KeyRange, prefix_end};
pub use store::{Storage, StorageOptions};
pub use writer::{Completion, Done, completion};
