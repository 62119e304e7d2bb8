//! SQL over tablets: catalog, types, planning through DataFusion, sessions.

pub mod error;
pub mod pg_catalog;
pub mod types;

pub use error::{SqlError, SqlState};
