//! Queries that compute for long, away from the node's own threads.
//!
//! A join may work for seconds between two batches, and while it does, the thread that polls it
//! serves nothing else: no heartbeat, no timer, no other session, and not the cancel request for
//! this very query. So such a query is a task of its own ([`Environment::compute_boxed`]) that
//! hands over its batches; whoever waits for them can stop waiting at any time. The task ends at
//! its next pause.
//!
//! [`Environment::compute_boxed`]: meridian_truetime::Environment::compute_boxed

use std::panic::AssertUnwindSafe;

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::FutureExt;
use futures::future::{AbortHandle, abortable};
use futures::stream::{self, BoxStream, StreamExt};
use meridian_truetime::{Env, EnvironmentExt};
use tokio::sync::mpsc;

use super::panicked;
use crate::error::{SqlError, SqlState};

/// How many batches wait to be taken at most.
const AHEAD: usize = 2;

type Batch = Result<RecordBatch, DataFusionError>;

/// Ends the task when nobody waits for its batches any more.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The batches of a stream that a task of its own polls.
pub(super) fn stream(
    env: &Env,
    mut batches: SendableRecordBatchStream,
) -> BoxStream<'static, Batch> {
    // The end is sent as well: a node that halts drops the task, and what came until then must
    // not be taken for everything.
    let (sender, receiver) = mpsc::channel::<Option<Batch>>(AHEAD);
    let (task, abort) = abortable(async move {
        loop {
            let next = AssertUnwindSafe(batches.next()).catch_unwind().await;
            let next = next.unwrap_or_else(|panic| Some(Err(external(panicked(&*panic)))));
            let last = !matches!(next, Some(Ok(_)));
            if sender.send(next).await.is_err() || last {
                return;
            }
        }
    });
    env.compute(task.map(|_| ()));
    let state = Some((receiver, Task(abort)));
    stream::unfold(state, |state| async move {
        let (mut receiver, task) = state?;
        match receiver.recv().await {
            Some(Some(Ok(batch))) => Some((Ok(batch), Some((receiver, task)))),
            Some(Some(Err(error))) => Some((Err(error), None)),
            Some(None) => None,
            None => Some((Err(external(halted())), None)),
        }
    })
    .fuse()
    .boxed()
}

fn external(error: SqlError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

fn halted() -> SqlError {
    SqlError::new(SqlState::ADMIN_SHUTDOWN, "the node stopped while the statement ran")
}
