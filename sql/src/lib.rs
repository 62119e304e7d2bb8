//! SQL over tablets: catalog, types, planning through DataFusion, sessions.

pub mod catalog;
mod cluster;
pub mod cluster_view;
mod codec;
mod ddl;
mod dml;
mod engine;
pub mod error;
pub mod row;
pub mod types;

pub use datafusion::arrow;
pub use datafusion::common::ScalarValue;
pub use engine::Engine;
pub use error::{SqlError, SqlState};
pub use plan::parse::Statement;
pub use session::{
    ColumnDescription, Notice, Outcome, Prepared, SERVER_VERSION, Session, SessionParameters,
    TransactionStatus,
};
pub use types::PgType;
