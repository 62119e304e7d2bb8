//! SQL over tablets: catalog, types, planning through DataFusion, sessions.

pub mod catalog;
mod cluster;
pub mod cluster_view;
mod codec;
mod ddl;
mod dml;
mod engine;
pub mod error;
mod explain;
#[cfg(test)]
mod fake;
pub mod fragment;
mod meridian_schema;
pub mod pg_catalog;
mod plan;
pub mod row;
mod scan;
mod session;
pub mod tablets;
#[cfg(test)]
mod tests;
pub mod types;

pub use datafusion::arrow;
pub use datafusion::common::ScalarValue;
pub use engine::Engine;
pub use error::{SqlError, SqlState};
pub use pg_catalog::Backend;
pub use plan::parse::{STACK, Statement};
pub use session::{
    ColumnDescription, Notice, Outcome, Prepared, SERVER_VERSION, Series, Session,
    SessionParameters, TransactionStatus,
};
pub use types::PgType;
