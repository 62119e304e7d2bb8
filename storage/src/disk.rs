//! A node's disk: a folder of the operating system, or a simulated one with faults.

mod folder;
mod simulated;

use std::fmt::Debug;
use std::io;

pub use folder::FolderDisk;
pub use simulated::{DiskFaults, SimulatedDisk};

use crate::error::StorageError;

/// A place for a few named files that one node uses at a time.
pub trait Disk: Debug + Send + Sync {
    /// What a person calls it: the folder's path.
    fn place(&self) -> String;

    /// Opens a file, creating it empty if there is none. The file's existence is durable on
    /// return.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while somebody else has it open, or what the operating system says.
    fn open(&self, file: &str) -> Result<Box<dyn DiskFile>, StorageError>;
}

/// An open file. What was written is readable at once, and durable after the next
/// [`DiskFile::sync`] that succeeds.
pub trait DiskFile: Debug + Send + Sync {
    /// The file's length in bytes.
    ///
    /// # Errors
    /// What the operating system says; likewise below.
    fn length(&self) -> io::Result<u64>;

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    /// Also when the file ends before `out` is full.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// Then any part of it may have been written.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts the file or extends it with zeros.
    ///
    /// # Errors
    /// As above.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// Then it is unknown what is durable, and stays so: after a failed sync the operating system
    /// may forget what it couldn't write.
    fn sync(&self) -> io::Result<()>;
}

/// A file as the storage engine wants it.
#[derive(Debug)]
pub(crate) struct EngineFile(pub(crate) Box<dyn DiskFile>);

impl redb::StorageBackend for EngineFile {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_length(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
