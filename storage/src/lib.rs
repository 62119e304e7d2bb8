//! Keys, multi-version rows and Raft logs on redb.

mod data;
mod disk;
mod error;
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
pub use ids::{NodeId, TabletId};
pub use key::{KeyBuilder, KeyError, KeyReader, KeyType, KeyValue, Order};
pub use log::{LogMeta, LogStore};
pub use range::{KeyRange, prefix_end};
pub use store::{Storage, StorageOptions};
pub use writer::{Completion, Done, completion};
