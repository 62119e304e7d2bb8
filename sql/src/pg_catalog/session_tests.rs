//! The same queries through a whole session: with its names for columns, its types for literals
//! and its rules for expressions.

use std::sync::Arc;

use futures::TryStreamExt;
use meridian_truetime::World;

use super::cell::Cell;
use super::tests::{ALL, queries, shown};
use crate::engine::Engine;
use crate::error::SqlError;
use crate::fake::{FakeCluster, FakeTablets, in_world};
use crate::session::{Outcome, Session, SessionParameters};
use crate::types::PgType;

/// The rows as `psql -At` shows them.
async fn rows(session: &mut Session, sql: &str) -> Result<Vec<String>, SqlError> {
    let mut lines = Vec::new();
    for statement in session.parse(sql)? {
        let prepared = session.prepare(&statement, &[]).await?;
        let Outcome::Rows { columns, mut batches, .. } =
            session.execute(&prepared, Vec::new(), crate::Series::Alone).await?
        else {
            continue;
        };
        while let Some(batch) = batches.try_next().await? {
            assert_eq!(batch.num_columns(), columns.len());
            for row in 0..batch.num_rows() {
                let cells = batch.columns().iter().map(|column| shown(&Cell::of(column, row)));
                lines.push(cells.collect::<Vec<_>>().join("|"));
            }
        }
    }
    Ok(lines)
}

const TABLES: &str = "\
    CREATE TABLE accounts (id bigint PRIMARY KEY, owner text NOT NULL, \
        balance numeric(12,2) DEFAULT 0.00, opened timestamptz DEFAULT now(), code varchar(8)); \
    CREATE TABLE orders (note char(3), id int, region text, PRIMARY KEY (region, id)); \
    CREATE TABLE \"Odd Name\" (\"Key\" uuid PRIMARY KEY)";

/// A session of a database with the sample's tables.
async fn session(world: &World) -> Session {
    let tablets = Arc::new(FakeTablets::new(world));
    let engine = Engine::over(
        tablets,
        Arc::new(FakeCluster::default()),
        meridian_txn::CommitProtocol::default(),
    )
    .expect("an engine");
    let parameters = SessionParameters {
        user: "alice".to_owned(),
        database: "bank".to_owned(),
        ..SessionParameters::default()
    };
    let mut session = engine.session(parameters).expect("a session");
    rows(&mut session, TABLES).await.expect("tables");
    session
}

#[test]
fn clients_queries_run_in_a_session() {
    in_world(|world| async move {
        let mut session = session(&world).await;
        let oid = rows(&mut session, "SELECT 'accounts'::regclass::oid").await.expect("an oid");
        let index = rows(&mut session, "SELECT 'accounts_pkey'::regclass::oid").await.expect("one");
        let mut failures = Vec::new();
        for (name, fixture) in ALL {
            for query in queries(fixture) {
                let query = query.replace("16584", &oid[0]).replace("16585", &index[0]);
                let result = rows(&mut session, &query).await;
                if let Err(error) = &result {
                    failures.push(format!("{query}\n{error:?}\n"));
                } else if name == "d_table" && query.contains("pg_attribute a\n") {
                    let columns = result.unwrap_or_default();
                    assert_eq!(columns[2], "balance|numeric(12,2)|0.00|f|||");
                    assert_eq!(columns.len(), 5);
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

// tokio-postgres reads these columns in binary, so their types matter.
#[test]
fn a_driver_sees_postgresqls_types() {
    in_world(|world| async move {
        let session = session(&world).await;
        let sql = "SELECT t.typname, t.typtype, t.typelem, r.rngsubtype, t.typbasetype, \
             n.nspname, t.typrelid FROM pg_catalog.pg_type t \
             LEFT OUTER JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid \
             INNER JOIN pg_catalog.pg_namespace n ON t.typnamespace = n.oid WHERE t.oid = $1";
        let statement = session.parse(sql).expect("it parses").remove(0);
        let prepared = session.prepare(&statement, &[]).await.expect("it is planned");
        assert_eq!(prepared.parameters(), [PgType::Oid]);
        let columns = prepared.columns().expect("it is a query");
        let types: Vec<PgType> = columns.iter().map(|column| column.pg_type).collect();
        let (name, oid) = (PgType::Name, PgType::Oid);
        assert_eq!(types, [name, PgType::InternalChar, oid, oid, oid, name, oid]);
    });
}
