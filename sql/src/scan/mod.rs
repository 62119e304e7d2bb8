//! Reading tables: from a filter to key ranges to batches from the tablets' leaders.

pub(crate) mod exec;
mod own;
pub(crate) mod provider;
pub(crate) mod ranges;
pub(crate) mod statement;

pub(crate) use exec::ScanExec;
pub(crate) use provider::TabletTable;
pub(crate) use statement::{HighWater, Modes, Reads, StatementContext, Under};
