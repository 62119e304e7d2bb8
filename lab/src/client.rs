//! What a workload needs of a database and of time.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

/// The answer to a statement, in text as psql would show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The rows, each with its columns; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// The command tag, such as `INSERT 0 1`.
    pub tag: String,
}

/// What a failed statement means for the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nothing was changed.
    Failed,
    /// Nothing was changed, and trying again may succeed.
    Retry,
    /// It may have been carried out.
    Unknown,
}

/// A statement that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({sqlstate})")]
pub struct ClientError {
    /// What it means.
    pub outcome: Outcome,
    /// The SQLSTATE.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
}

impl ClientError {
    /// An error of that SQLSTATE; what it means follows from it.
    #[must_use]
    pub fn new(sqlstate: &str, message: &str) -> Self {
        let outcome = match sqlstate {
            "40001" | "40P01" | "57P03" => Outcome::Retry,
            // The connection broke, or the server says that it doesn't know.
            state if state.starts_with("08") => Outcome::Unknown,
            _ => Outcome::Failed,
        };
        Self { outcome, sqlstate: sqlstate.into(), message: message.into() }
    }
}

/// One session.
#[async_trait]
pub trait Client: Send {
    /// Runs one statement.
    ///
    /// # Errors
    /// [`ClientError`] as the database reports it.
    async fn execute(&mut self, sql: &str) -> Result<Reply, ClientError>;
}

/// Time and chance.
#[async_trait]
pub trait Environment: Debug + Send + Sync {
    /// Time since the environment began.
    fn now(&self) -> Duration;

    /// Waits.
    async fn sleep(&self, duration: Duration);

    /// The next number of a seeded sequence.
    fn random(&self) -> u64;
}
