//! Sessions of one client: at some node that runs, until that is gone or the client moves on.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use meridian_lab::{Client, ClientError, Outcome, Reply};
use meridian_server::cluster::Cluster;
use meridian_server::lab::SessionClient;
use meridian_tests::virtual_cluster::session;
use meridian_truetime::{Env, EnvironmentExt, Moment};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot};

/// A client is gone after this: a paused node would keep it longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many statements a session has on average before its client connects anew, elsewhere.
const STATEMENTS: f64 = 8.0;

/// A session: a task of its node, which ends with it. The client's end of it holds nothing of the
/// node's.
struct Open {
    node: u64,
    env: Env,
    statements: mpsc::UnboundedSender<(String, Answer)>,
}

type Answer = oneshot::Sender<Result<Reply, ClientError>>;

pub struct Sessions {
    cluster: Arc<Cluster>,
    env: Env,
    rng: StdRng,
    /// Where to connect, if not anywhere.
    node: Option<u64>,
    open: Option<Open>,
    /// In a transaction: it doesn't leave.
    stays: bool,
}

impl Sessions {
    pub fn new(cluster: Arc<Cluster>, env: Env) -> Self {
        let rng = env.fork_rng();
        Self { cluster, env, rng, node: None, open: None, stays: false }
    }

    /// Sessions at one node.
    pub fn at(cluster: Arc<Cluster>, env: Env, node: u64) -> Self {
        Self { node: Some(node), ..Self::new(cluster, env) }
    }

    /// Whether to stay in the session that is open.
    pub fn stay(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// Ends the session.
    pub fn leave(&mut self) {
        self.open = None;
    }

    /// An open session at a node that runs.
    fn connect(&mut self) -> Option<Open> {
        let leaves = !self.stays && self.node.is_none() && self.rng.random_bool(1.0 / STATEMENTS);
        if let Some(open) = self.open.take().filter(|_| !leaves) {
            // Started again, the node knows nothing of its old sessions.
            if self.cluster.env(open.node).is_some_and(|now| Arc::ptr_eq(&now, &open.env)) {
                return Some(open);
            }
        }
        if self.stays {
            return None;
        }
        let numbers = self.cluster.numbers().into_iter();
        let running: Vec<u64> = numbers.filter(|n| self.cluster.node(*n).is_some()).collect();
        let any = *running.get(self.rng.random_range(0..running.len().max(1)))?;
        let node = self.node.unwrap_or(any);
        let env = self.cluster.env(node)?;
        let (statements, next) = mpsc::unbounded_channel();
        env.spawn(serve(session(&self.cluster, node), next));
        Some(Open { node, env, statements })
    }

    /// Runs a statement in the open session, or in a new one.
    ///
    /// # Errors
    /// What a client is told, and `08006` when the node or the client's patience came to an end.
    ///
    /// # Panics
    /// When a client must not be told that.
    pub async fn run(&mut self, sql: &str) -> Result<Reply, ClientError> {
        let began = self.env.moment();
        let Some(open) = self.connect() else {
            return Err(ClientError::new("57P03", "no node runs"));
        };
        let node = open.node;
        let result = self.run_at(open, sql).await;
        let at = |moment: Moment| moment.since(Moment::START).as_secs_f64();
        let outcome = match &result {
            Ok(reply) => format!("{} {}", reply.tag, reply.rows.len()),
            Err(error) => error.to_string(),
        };
        let (began, ended) = (at(began), at(self.env.moment()));
        // Shown when the seed fails.
        println!("{began:9.4} to {ended:9.4} at {node}: {sql}: {outcome}");
        let defect = result.as_ref().is_err_and(|error| error.sqlstate.starts_with("XX"));
        assert!(!defect, "{sql}: {outcome}");
        result
    }

    async fn run_at(&mut self, open: Open, sql: &str) -> Result<Reply, ClientError> {
        let (answer, hear) = oneshot::channel();
        let gone = || ClientError::new("08006", "the node is gone");
        open.statements.send((sql.to_owned(), answer)).map_err(|_| gone())?;
        match self.env.timeout(PATIENCE, hear).await {
            Ok(Ok(result)) => {
                self.open = Some(open);
                result
            }
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(ClientError::new("08006", "the client lost patience")),
        }
    }
}

/// What a node's server does for a session: one statement after the other, until the client goes
/// away.
async fn serve(mut client: SessionClient, mut next: mpsc::UnboundedReceiver<(String, Answer)>) {
    while let Some((sql, mut answer)) = next.recv().await {
        let result = {
            let gone = std::pin::pin!(answer.closed());
            match select(gone, client.execute(&sql)).await {
                Either::Left(_) => return,
                Either::Right((result, _)) => result,
            }
        };
        let _ = answer.send(result);
    }
}

/// Whether faults explain that error: the client is to try again, or nobody knows.
pub fn is_fault(error: &ClientError) -> bool {
    error.outcome != Outcome::Failed || error.sqlstate == "57P01"
}
