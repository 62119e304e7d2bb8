//! What the scans of one statement share: how they read, and what the session has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meridian_truetime::Timestamp;
use meridian_txn::locks::Mode;
use meridian_txn::{Changes, ReadAt, Wait};

use crate::catalog::TableInfo;
use crate::tablets::Transaction;

/// The highest timestamp that a session has seen; its later reads are no older.
#[derive(Clone, Debug, Default)]
pub(crate) struct HighWater(Arc<AtomicU64>);

impl HighWater {
    pub(crate) fn get(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn raise(&self, to: Timestamp) {
        self.0.fetch_max(to.as_nanos(), Ordering::AcqRel);
    }
}

/// Which locks the scans of a statement take, by table: shared ones where nothing is said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modes(BTreeMap<u64, Mode>);

impl Modes {
    pub(crate) fn set(&mut self, table: u64, mode: Mode) {
        let at = self.0.entry(table).or_insert(mode);
        *at = mode.max(*at);
    }

    pub(crate) fn of(&self, table: u64) -> Mode {
        self.0.get(&table).copied().unwrap_or(Mode::Shared)
    }
}

/// Reads in a read-write transaction.
#[derive(Clone, Debug)]
pub(crate) struct Under {
    pub(crate) txn: Arc<dyn Transaction>,
    pub(crate) modes: Modes,
    pub(crate) wait: Wait,
    /// What the transaction had written when the statement began.
    pub(crate) own: Arc<Changes>,
    /// Of this table, only rows with these keys are read.
    pub(crate) only: Option<(u64, Arc<BTreeSet<Vec<u8>>>)>,
}

impl Under {
    pub(crate) fn new(txn: &Arc<dyn Transaction>, modes: Modes, wait: Wait) -> Self {
        Self { txn: Arc::clone(txn), modes, wait, own: txn.changes(), only: None }
    }

    /// Of that table, only rows with these keys are read.
    pub(crate) fn only(self, table: &TableInfo, keys: BTreeSet<Vec<u8>>) -> Self {
        Self { only: Some((table.id, Arc::new(keys))), ..self }
    }
}

/// How the scans of a statement read.
#[derive(Clone, Debug)]
pub(crate) enum Reads {
    /// The versions of one timestamp, at the leaders.
    At(ReadAt),
    /// The versions of one timestamp, at the nearest replicas that have them.
    Stale(Timestamp),
    /// What is there, under locks.
    Under(Under),
}

/// Handed to the scans through DataFusion's task context.
#[derive(Debug)]
pub(crate) struct StatementContext {
    reads: Reads,
    high_water: HighWater,
}

impl StatementContext {
    pub(crate) fn new(reads: Reads, high_water: HighWater) -> Self {
        Self { reads, high_water }
    }

    pub(crate) fn reads(&self) -> &Reads {
        &self.reads
    }

    /// A scan's leader answered. What is read under locks the session has seen when the transaction
    /// ends.
    pub(crate) fn saw(&self, at: Timestamp) {
        if let Reads::At(_) = self.reads {
            self.high_water.raise(at);
        }
    }
}
