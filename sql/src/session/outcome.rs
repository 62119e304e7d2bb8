//! What a statement comes to.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use futures::stream::BoxStream;

use crate::error::{SqlError, SqlState};
use crate::plan::names::shown;
use crate::types::PgType;

/// A column of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnDescription {
    /// As the client sees it.
    pub name: String,
    /// Its type.
    pub pg_type: PgType,
    /// The table that it comes from, if it is just a table's column and that is known.
    pub table_oid: Option<u32>,
    /// Its number in that table, from 1.
    pub column_number: Option<i16>,
}

impl ColumnDescription {
    pub(crate) fn new(name: impl Into<String>, pg_type: PgType) -> Self {
        Self { name: name.into(), pg_type, table_oid: None, column_number: None }
    }

    /// The columns of a plan's result.
    pub(crate) fn of_schema(schema: &DFSchema) -> Arc<[Self]> {
        let describe = |field: &datafusion::arrow::datatypes::FieldRef| {
            Self::new(shown(field.name()), PgType::of_field(field))
        };
        schema.fields().iter().map(describe).collect()
    }
}

/// The result of a statement.
pub enum Outcome {
    /// Rows, as they come. Dropping the stream stops the work.
    Rows {
        /// What the batches' columns are, in their order.
        columns: Arc<[ColumnDescription]>,
        /// The rows.
        batches: BoxStream<'static, Result<RecordBatch, SqlError>>,
        /// The command tag, to which the number of rows is appended if `counted`.
        tag: &'static str,
        /// Whether the tag ends with the number of rows.
        counted: bool,
    },
    /// Done, with the complete command tag.
    Done {
        /// For example `INSERT 0 3`.
        tag: String,
    },
    /// There was nothing to do.
    Empty,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows { columns, tag, .. } => {
                f.debug_struct("Rows").field("columns", columns).field("tag", tag).finish()
            }
            Self::Done { tag } => f.debug_struct("Done").field("tag", tag).finish(),
            Self::Empty => f.write_str("Empty"),
        }
    }
}

/// Something that a client is told without being an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE` or `WARNING`.
    pub severity: &'static str,
    /// Its code.
    pub sqlstate: SqlState,
    /// What it says.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
}

impl Notice {
    pub(crate) fn new(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self { severity: "NOTICE", sqlstate, message: message.into(), detail: None }
    }

    /// Adds a detail.
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Something that is fine as it is and that the client may want to know.
    pub fn remark(message: impl Into<String>) -> Self {
        Self::new(SqlState::SUCCESSFUL_COMPLETION, message)
    }

    /// `01000`: what was asked for is done and may not be what was wanted.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: "WARNING", ..Self::new(SqlState::WARNING, message) }
    }
}

/// Whether a transaction block is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// Outside of a transaction block.
    Idle,
    /// Inside.
    InTransaction,
    /// Inside, after an error.
    Failed,
}
