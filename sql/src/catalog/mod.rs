//! The catalog: which tables there are.
//!
//! It is rows of system tables (`bootstrap`) in the system tablet, stored like any other rows,
//! so SQL can read them. Each gateway keeps a [`CatalogSnapshot`] and reads the rows afresh
//! (`Catalog::refresh`) when it doesn't find a name, when a tablet says that the schema has
//! changed or that it is gone, and after its own changes. A snapshot that lags is harmless to what is
//! stored: a table id is never used again, so a plan for a dropped table finds no tablet, and a
//! write carries the schema versions that it was planned under. A dropped table that was interleaved
//! leaves its root's tablets in place, though, and is read for as long as a snapshot has it (the
//! caveat of `ddl`).

pub(crate) mod bootstrap;
mod model;
pub(crate) mod store;

pub use model::{CatalogSnapshot, ColumnInfo, Interleaved, OnDelete, TableInfo};

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use meridian_truetime::Timestamp;

use crate::error::SqlError;
use crate::tablets::Tablets;

/// A gateway's view of the catalog.
#[derive(Debug)]
pub(crate) struct Catalog {
    tablets: Arc<dyn Tablets>,
    current: RwLock<Current>,
    /// One refresh at a time; those who wait take the result if it is young enough.
    refreshing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Current {
    snapshot: Arc<CatalogSnapshot>,
    read_at: Timestamp,
    /// Counts the refreshes that have begun.
    begun: u64,
    /// The latest of them that has succeeded.
    succeeded: u64,
}

impl Catalog {
    pub(crate) fn new(tablets: Arc<dyn Tablets>) -> Self {
        let snapshot = Arc::new(CatalogSnapshot::new(0, bootstrap::tables()));
        let current =
            RwLock::new(Current { snapshot, read_at: Timestamp::MIN, begun: 0, succeeded: 0 });
        Self { tablets, current, refreshing: tokio::sync::Mutex::default() }
    }

    /// The present snapshot.
    pub(crate) fn snapshot(&self) -> Arc<CatalogSnapshot> {
        Arc::clone(&self.current().snapshot)
    }

    /// Reads the catalog at the system tablet's leader: what this answers holds everything that
    /// was acknowledged before the call.
    ///
    /// # Errors
    /// When the system tablet can't be read.
    pub(crate) async fn refresh(&self) -> Result<Arc<CatalogSnapshot>, SqlError> {
        let called_at = self.current().begun;
        let _turn = self.refreshing.lock().await;
        let (number, min) = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            // A refresh that began after this call serves it as well, unless it failed.
            if current.succeeded > called_at {
                return Ok(Arc::clone(&current.snapshot));
            }
            current.begun += 1;
            (current.begun, current.read_at)
        };
        let (read_at, tables) = store::read(self.tablets.as_ref(), min).await?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.read_at = current.read_at.max(read_at);
        current.succeeded = number;
        if current.snapshot.tables != tables {
            let version = current.snapshot.version + 1;
            current.snapshot = Arc::new(CatalogSnapshot::new(version, tables));
        }
        Ok(Arc::clone(&current.snapshot))
    }

    fn current(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}
