//! A node's storage put together: the files of a disk, checked, opened and locked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use meridian_truetime::Env;
use redb::{Database, DatabaseError};

use crate::data::{self, DATA_FILE, DataStore};
use crate::disk::{Disk, DiskFile, EngineFile};
use crate::error::{FORMAT_VERSION, StorageError};
use crate::log::{self, LOG_FILE, LogStore};
use crate::writer::panicked;

/// The file that says what the others are.
pub(crate) const FORMAT_FILE: &str = "format";
/// What it begins with, followed by the version and by whether the files are complete.
const FORMAT_MAGIC: &str = "meridian storage ";
/// Its length; below a sector, so that it is rewritten whole or not at all.
const FORMAT_LENGTH: usize = 64;

/// How much memory a node's storage may use. Many nodes may share a process, so it is modest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageOptions {
    /// Page cache of the log file, in bytes.
    pub log_cache: usize,
    /// Page cache of the data file, in bytes. Half of it may hold what isn't flushed yet.
    pub data_cache: usize,
    /// The most recent log entries that are kept in memory, in bytes for all groups together.
    pub log_tail: usize,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self { log_cache: 16 << 20, data_cache: 64 << 20, log_tail: 8 << 20 }
    }
}

/// A node's storage. Clones are handles of the same storage; when the last is dropped, what is
/// waiting is written and the disk is free.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The Raft logs.
    pub logs: LogStore,
    /// The rows.
    pub data: DataStore,
}

impl Storage {
    /// Opens what the disk holds, or begins anew on an empty one.
    ///
    /// # Errors
    /// When the disk is in use, of another version, somebody else's, damaged or unreadable.
    #[expect(clippy::needless_pass_by_value, reason = "callers hand over their handles")]
    pub fn open(
        env: Env,
        disk: Arc<dyn Disk>,
        options: StorageOptions,
    ) -> Result<Self, StorageError> {
        let format = disk.open(FORMAT_FILE)?;
        let log = disk.open(LOG_FILE)?;
        let data = disk.open(DATA_FILE)?;
        let failed = |error| StorageError::io(FORMAT_FILE, error);
        let is_new = match read_format(&*format, &disk.place())? {
            Format::Complete => {
                for (name, file) in [(LOG_FILE, &log), (DATA_FILE, &data)] {
                    if file.length().map_err(failed)? == 0 {
                        return Err(StorageError::damaged(name, "it is missing"));
                    }
                }
                false
            }
            Format::Absent => {
                let place = disk.place();
                for (name, file) in [(LOG_FILE, &log), (DATA_FILE, &data)] {
                    if file.length().map_err(failed)? != 0 {
                        let detail = format!("it holds {name}, but no format file");
                        return Err(StorageError::NotOurs { place, detail });
                    }
                }
                true
            }
            // A crash interrupted the first start; nobody was told that anything is durable.
            Format::Incomplete => {
                for file in [&log, &data] {
                    file.set_length(0).and_then(|()| file.sync()).map_err(failed)?;
                }
                true
            }
        };
        if is_new {
            write_format(&*format, "incomplete")?;
        }
        let log = open_database(LOG_FILE, log, options.log_cache, is_new, log::create_tables)?;
        let data = open_database(DATA_FILE, data, options.data_cache, is_new, data::create_tables)?;
        if is_new {
            write_format(&*format, "complete")?;
        }
        Ok(Self {
            logs: LogStore::open(&env, log, options.log_tail)?,
            data: DataStore::open(&env, data)?,
        })
    }
}

enum Format {
    /// Nothing was ever written.
    Absent,
    /// The files were being created.
    Incomplete,
    Complete,
}

fn read_format(file: &dyn DiskFile, place: &str) -> Result<Format, StorageError> {
    let failed = |error| StorageError::io(FORMAT_FILE, error);
    let length = usize::try_from(file.length().map_err(failed)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(FORMAT_LENGTH)];
    file.read(0, &mut bytes).map_err(failed)?;
    // A crash may leave the length without the contents.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Format::Absent);
    }
    let text = String::from_utf8_lossy(&bytes);
    let Some(rest) = text.strip_prefix(FORMAT_MAGIC) else {
        let detail = "its format file is not Meridian's".to_owned();
        return Err(StorageError::NotOurs { place: place.to_owned(), detail });
    };
    let mut words = rest.split_ascii_whitespace();
    let version = words.next().unwrap_or_default();
    if version != FORMAT_VERSION.to_string() {
        let found = version.to_owned();
        return Err(StorageError::OtherFormat { place: place.to_owned(), found });
    }
    match words.next() {
        Some("complete") => Ok(Format::Complete),
        Some("incomplete") => Ok(Format::Incomplete),
        _ => Err(StorageError::damaged(FORMAT_FILE, "it breaks off")),
    }
}

fn write_format(file: &dyn DiskFile, state: &str) -> Result<(), StorageError> {
    let text = format!("{FORMAT_MAGIC}{FORMAT_VERSION} {state}");
    let line = format!("{text:<width$}\n", width = FORMAT_LENGTH - 1);
    let written = file.write(0, line.as_bytes()).and_then(|()| file.sync());
    written.map_err(|error| StorageError::io(FORMAT_FILE, error))
}

fn open_database(
    name: &str,
    file: Box<dyn DiskFile>,
    cache: usize,
    is_new: bool,
    create_tables: impl FnOnce(&Database) -> Result<(), redb::Error>,
) -> Result<Database, StorageError> {
    let open = || {
        let database =
            Database::builder().set_cache_size(cache).create_with_backend(EngineFile(file));
        let database = database.map_err(|error| match error {
            DatabaseError::UpgradeRequired(version) => {
                StorageError::damaged(name, format!("it has redb's file format {version}"))
            }
            error => StorageError::engine(name, error),
        })?;
        if is_new {
            create_tables(&database).map_err(|error| StorageError::engine(name, error))?;
        }
        Ok(database)
    };
    // redb panics on some damaged files.
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        Err(match panicked(&*panic) {
            StorageError::Damaged { detail, .. } => StorageError::damaged(name, detail),
            error => error,
        })
    })
}

#[cfg(test)]
mod tests;
