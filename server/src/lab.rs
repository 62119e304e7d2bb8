//! The lab's view of a cluster: sessions in this process, and a world's time and chance.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use meridian_lab::{Client, ClientError, Environment, Reply};
use meridian_sql::arrow::array::{Array, RecordBatch};
use meridian_sql::types::{SessionFormat, text};
use meridian_sql::{ColumnDescription, Outcome, Series, Session, SqlError};
use meridian_truetime::{Env, EnvironmentExt, Moment};

/// A session in this process, as a workload's client.
pub struct SessionClient {
    session: Session,
}

impl SessionClient {
    /// Runs statements in `session`.
    #[must_use]
    pub fn new(session: Session) -> Self {
        Self { session }
    }

    async fn run(&mut self, sql: &str) -> Result<Reply, SqlError> {
        let reply = self.run_all(sql).await;
        if let Err(error) = &reply {
            self.session.fail(error);
        }
        reply
    }

    /// The statements of a text, one transaction unless they say otherwise; the reply of the last.
    async fn run_all(&mut self, sql: &str) -> Result<Reply, SqlError> {
        let mut reply = Reply::default();
        let statements = self.session.parse(sql)?;
        let series = if statements.len() == 1 { Series::Alone } else { Series::Part };
        for statement in statements {
            let prepared = self.session.prepare(&statement, &[]).await?;
            reply = match self.session.execute(&prepared, Vec::new(), series).await? {
                Outcome::Rows { columns, mut batches, tag, counted } => {
                    let mut rows = Vec::new();
                    while let Some(batch) = batches.next().await {
                        append(&mut rows, &columns, &batch?)?;
                    }
                    let tag = if counted { format!("{tag} {}", rows.len()) } else { tag.into() };
                    Reply { rows, tag }
                }
                Outcome::Done { tag } => Reply { rows: Vec::new(), tag },
                Outcome::Empty => Reply::default(),
            };
        }
        self.session.finish().await?;
        Ok(reply)
    }
}

fn append(
    rows: &mut Vec<Vec<Option<String>>>,
    columns: &[ColumnDescription],
    batch: &RecordBatch,
) -> Result<(), SqlError> {
    let format = SessionFormat::default();
    for row in 0..batch.num_rows() {
        let mut values = Vec::with_capacity(columns.len());
        for (column, array) in columns.iter().zip(batch.columns()) {
            values.push(if array.is_null(row) {
                None
            } else {
                Some(text::format(array, row, column.pg_type, &format)?)
            });
        }
        rows.push(values);
    }
    Ok(())
}

impl fmt::Debug for SessionClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionClient").finish_non_exhaustive()
    }
}

#[async_trait]
impl Client for SessionClient {
    async fn execute(&mut self, sql: &str) -> Result<Reply, ClientError> {
        let result = self.run(sql).await;
        result.map_err(|error| ClientError::new(error.sqlstate.code(), &error.message))
    }
}

/// A node's time and chance, for a workload.
#[derive(Clone, Debug)]
pub struct NodeTime(pub Env);

#[async_trait]
impl Environment for NodeTime {
    fn now(&self) -> Duration {
        self.0.moment().since(Moment::START)
    }

    async fn sleep(&self, duration: Duration) {
        Arc::clone(&self.0).sleep(duration).await;
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}
