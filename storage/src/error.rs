//! What can go wrong with a node's disk.

use std::io;
use std::sync::Arc;

use crate::ids::TabletId;
use crate::key::KeyError;

/// The version of the format on disk that this build writes and reads.
pub const FORMAT_VERSION: u32 = 3;

/// An error of the storage layer. Cheap to clone, because one failed write ends many requests.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process, or another node of this process, has the disk open.
    #[error("{place} is in use by another node{}", .holder.map(|p| format!(" (process {p})")).unwrap_or_default())]
    InUse {
        /// The folder.
        place: String,
        /// The other process's id, if it is known.
        holder: Option<u32>,
    },
    /// The folder was written by another version of Meridian.
    #[error("{place} holds storage format {found}; this version reads format {FORMAT_VERSION}")]
    OtherFormat {
        /// The folder.
        place: String,
        /// The format that it says it holds.
        found: String,
    },
    /// The folder holds files, but not Meridian's.
    #[error("{place} is not a data folder of Meridian: {detail}")]
    NotOurs {
        /// The folder.
        place: String,
        /// What gives it away.
        detail: String,
    },
    /// The folder is another node's.
    #[error("{place} belongs to {owner}, not to {asked}")]
    OtherNode {
        /// The folder.
        place: String,
        /// Whose it is: "node 2 of cluster x".
        owner: String,
        /// Who wanted it.
        asked: String,
    },
    /// What was read back is not what can have been written.
    #[error("{file} is damaged: {detail}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No space is left on the disk.
    #[error("no space is left on the disk of {file}")]
    Full {
        /// The file that couldn't be written.
        file: String,
    },
    /// The operating system failed to read or write.
    #[error("{file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// The operating system's error.
        error: Arc<io::Error>,
    },
    /// An earlier write failed, so it is unknown what the disk holds; the store has to be opened
    /// again before it can be trusted with anything.
    #[error("the store stopped after a failure: {cause}")]
    Stopped {
        /// The first failure.
        cause: Arc<StorageError>,
    },
    /// The store was closed, or its node halted, before the write was durable. It may or may not
    /// be on disk.
    #[error("the store is closed")]
    Closed,
    /// Log entries that do not continue the log of their group: a defect of the caller.
    #[error("entry {index} does not continue the log of {group}, which {state}")]
    OutOfOrder {
        /// The group.
        group: TabletId,
        /// The entry that doesn't fit.
        index: u64,
        /// Where the log stands.
        state: String,
    },
    /// A key that no schema can have written.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl StorageError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::InUse { .. } => {
                Some("Stop the other process, or choose another folder with --data-dir.")
            }
            Self::OtherFormat { .. } => Some(
                "Use the version of Meridian that wrote it, or choose another folder with \
                 --data-dir.",
            ),
            Self::OtherNode { .. } => {
                Some("Correct the cluster, the node or the data folder in the configuration.")
            }
            Self::NotOurs { .. } => Some("Choose an empty or new folder with --data-dir."),
            Self::Damaged { .. } => Some(
                "Move the folder away and let the node join again under a new id; the other \
                 replicas have its data.",
            ),
            Self::Full { .. } => Some("Free some space, then start the node again."),
            Self::Stopped { .. } => Some("Start the node again; it recovers what was durable."),
            Self::Io { .. } | Self::Closed | Self::OutOfOrder { .. } | Self::Key(_) => None,
        }
    }

    /// The error that everything after this failure gets.
    pub(crate) fn stopped(&self) -> Self {
        match self {
            Self::Stopped { .. } => self.clone(),
            cause => Self::Stopped { cause: Arc::new(cause.clone()) },
        }
    }

    pub(crate) fn io(file: &str, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::StorageFull {
            return Self::Full { file: file.to_owned() };
        }
        Self::Io { file: file.to_owned(), error: Arc::new(error) }
    }

    pub(crate) fn damaged(file: &str, detail: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), detail: detail.into() }
    }

    /// What the storage engine reports about `file`.
    pub(crate) fn engine(file: &str, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(error) => Self::io(file, error),
            error @ redb::Error::PreviousIo => {
                Self::io(file, io::Error::other(error.to_string())).stopped()
            }
            error => Self::damaged(file, error.to_string()),
        }
    }
}
