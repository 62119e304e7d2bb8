//! SQL end to end, over tablets in memory.

mod ddl;
mod dml;
mod explain;
mod interleave;
mod queries;
mod sessions;
mod transactions;

use std::sync::Arc;

use futures::TryStreamExt;
use meridian_truetime::World;

use crate::ScalarValue;
use crate::codec;
use crate::engine::Engine;
use crate::error::SqlError;
use crate::fake::{FakeCluster, FakeTablets, in_world};
use crate::session::{Outcome, Series, Session, SessionParameters};
use crate::types::PgType;

/// An engine over tablets in memory, and one session.
pub(crate) struct Bench {
    pub(crate) tablets: FakeTablets,
    pub(crate) cluster: Arc<FakeCluster>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) session: Session,
}

impl Bench {
    pub(crate) fn new(world: &World) -> Self {
        let tablets = FakeTablets::new(world);
        let cluster = Arc::new(FakeCluster::default());
        let engine = engine(&tablets, &cluster);
        let session = session(&engine);
        Self { tablets, cluster, engine, session }
    }

    /// A session at another gateway, with a catalog of its own.
    pub(crate) fn other_gateway(&self) -> Session {
        session(&engine(&self.tablets, &self.cluster))
    }

    /// Runs a text and writes down what comes of it.
    pub(crate) async fn run(&mut self, sql: &str) -> String {
        run(&mut self.session, sql).await
    }

    /// Runs the statements of a text one by one, whatever becomes of each.
    pub(crate) async fn each(&mut self, sql: &str) -> String {
        let statements = self.session.parse(sql).expect("parses");
        let mut outputs = Vec::new();
        for statement in statements {
            outputs.push(self.run(statement.sql()).await);
        }
        outputs.join("\n")
    }

    /// Runs a text that must succeed.
    pub(crate) async fn ok(&mut self, sql: &str) -> String {
        let output = self.run(sql).await;
        assert!(!output.contains("ERROR"), "{sql}\n{output}");
        output
    }
}

fn engine(tablets: &FakeTablets, cluster: &Arc<FakeCluster>) -> Arc<Engine> {
    Engine::over(
        Arc::new(tablets.clone()),
        Arc::clone(cluster) as Arc<_>,
        meridian_txn::CommitProtocol::default(),
    )
    .expect("an engine")
}

fn session(engine: &Arc<Engine>) -> Session {
    let parameters = SessionParameters {
        user: "me".to_owned(),
        database: "meridian".to_owned(),
        ..SessionParameters::default()
    };
    engine.session(parameters).expect("a session")
}

/// Tags, rows (cells separated by `|`), notices and errors, a line each.
pub(crate) async fn run(session: &mut Session, sql: &str) -> String {
    let statements = match session.parse(sql) {
        Ok(statements) => statements,
        Err(error) => return format!("ERROR {error:?}"),
    };
    let mut lines = Vec::new();
    let series = if statements.len() == 1 { Series::Alone } else { Series::Part };
    let last = statements.len();
    for (place, statement) in statements.iter().enumerate() {
        let result = match session.prepare(statement, &[]).await {
            Ok(prepared) => session.execute(&prepared, Vec::new(), series).await,
            Err(error) => Err(error),
        };
        let mut error = collect(result, &mut lines).await;
        if error.is_none() && place + 1 == last {
            error = session.finish().await.err();
            lines.extend(error.iter().map(|error| format!("ERROR {error:?}")));
        }
        for notice in session.take_notices() {
            lines.push(format!("{} {}: {}", notice.severity, notice.sqlstate, notice.message));
        }
        if let Some(error) = error {
            session.fail(&error);
            break;
        }
    }
    lines.join("\n")
}

/// Runs one statement with parameters.
pub(crate) async fn run_with(
    session: &mut Session,
    sql: &str,
    types: &[Option<PgType>],
    values: Vec<ScalarValue>,
) -> String {
    let statement = session.parse_one(sql).expect("parses");
    let result = match session.prepare(&statement, types).await {
        Ok(prepared) => session.execute(&prepared, values, Series::Alone).await,
        Err(error) => Err(error),
    };
    let mut lines = Vec::new();
    collect(result, &mut lines).await;
    lines.join("\n")
}

/// The error, if it came to one.
async fn collect(result: Result<Outcome, SqlError>, lines: &mut Vec<String>) -> Option<SqlError> {
    match result {
        Err(error) => {
            lines.push(format!("ERROR {error:?}"));
            return Some(error);
        }
        Ok(Outcome::Empty) => lines.push("(empty)".to_owned()),
        Ok(Outcome::Done { tag }) => lines.push(tag),
        Ok(Outcome::Rows { columns, batches, .. }) => {
            let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
            lines.push(format!("[{}]", names.join("|")));
            match batches.try_collect::<Vec<_>>().await {
                Err(error) => {
                    lines.push(format!("ERROR {error:?}"));
                    return Some(error);
                }
                Ok(batches) => {
                    for batch in batches {
                        for row in 0..batch.num_rows() {
                            let cells: Vec<_> = columns
                                .iter()
                                .zip(batch.columns())
                                .map(|(column, array)| {
                                    let value =
                                        ScalarValue::try_from_array(array, row).expect("a cell");
                                    codec::display(&value, column.pg_type)
                                })
                                .collect();
                            lines.push(cells.join("|"));
                        }
                    }
                }
            }
        }
    }
    None
}

/// Runs a scenario over a fresh engine in virtual time.
pub(crate) fn with_bench<F: Future<Output = ()>>(scenario: impl FnOnce(Bench) -> F) {
    in_world(|world| {
        let bench = Bench::new(&world);
        scenario(bench)
    });
}
