//! SQL over tablets: catalog, types, planning through DataFusion, sessions.

pub mod error;
pub mod row;
pub mod types;

pub use error::{SqlError, SqlState};
