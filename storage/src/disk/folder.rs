//! A folder of the operating system.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::{Disk, DiskFile};
use crate::error::StorageError;

/// The file whose lock is the folder's; it holds the process id of the owner.
const LOCK: &str = "lock";

/// A folder that this process has for itself, for as long as this value or one of its files lives.
#[derive(Debug)]
pub struct FolderDisk {
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    open: Mutex<BTreeSet<String>>,
    /// Unlocked by the operating system when it is closed, also after a crash.
    _lock: File,
}

impl FolderDisk {
    /// Takes a folder, creating it if there is none.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while another process, or another value in this one, has it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let path = path.into();
        let place = path.display().to_string();
        let failed = |error| StorageError::io(&place, error);
        create_folder(&path).map_err(failed)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                return Err(StorageError::InUse { place, holder: holder.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        lock.set_len(0).map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { folder: Arc::new(Folder { path, open: Mutex::default(), _lock: lock }) })
    }
}

/// Creates a folder such that a crash doesn't lose it.
fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

impl Disk for FolderDisk {
    fn place(&self) -> String {
        self.folder.path.display().to_string()
    }

    fn open(&self, file: &str) -> Result<Box<dyn DiskFile>, StorageError> {
        let path = self.folder.path.join(file);
        let place = path.display().to_string();
        let failed = |error| StorageError::io(&place, error);
        if !self.folder.names().insert(file.to_owned()) {
            return Err(StorageError::InUse { place, holder: Some(std::process::id()) });
        }
        // From here on, dropping it takes the name off the list.
        let name = OpenName { folder: Arc::clone(&self.folder), name: file.to_owned() };
        let is_new = !path.exists();
        let handle = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        if is_new {
            sync_folder(&self.folder.path).map_err(failed)?;
        }
        let file = FileBackend::new(handle).map_err(|error| StorageError::engine(&place, error))?;
        Ok(Box::new(FolderFile { file, _name: name }))
    }
}

impl Folder {
    fn names(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct OpenName {
    folder: Arc<Folder>,
    name: String,
}

impl Drop for OpenName {
    fn drop(&mut self) {
        self.folder.names().remove(&self.name);
    }
}

#[derive(Debug)]
struct FolderFile {
    file: FileBackend,
    _name: OpenName,
}

impl DiskFile for FolderFile {
    fn length(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("a/b");
        let disk = FolderDisk::open(&path).expect("free");
        let file = disk.open("x").expect("new");
        let second = FolderDisk::open(&path).expect_err("taken");
        assert!(
            matches!(&second, StorageError::InUse { holder: Some(pid), .. } if *pid == std::process::id()),
            "{second}"
        );
        assert!(second.hint().is_some());
        assert!(matches!(disk.open("x"), Err(StorageError::InUse { .. })));
        drop(disk);
        assert!(FolderDisk::open(&path).is_err(), "an open file keeps the folder");
        drop(file);
        FolderDisk::open(&path).expect("free again").open("x").expect("free again");
    }
}
