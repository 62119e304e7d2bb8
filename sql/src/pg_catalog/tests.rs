//! The queries of real clients, planned and run over the sample catalog.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::FieldRef;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider};
use datafusion::common::DataFusionError;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::cell::Cell;
use super::{PgCatalog, rewrite_query, sample};
use crate::error::{SqlError, SqlState};
use crate::types::PgType;

#[derive(Debug)]
struct PgTypes;

impl TypePlanner for PgTypes {
    fn plan_type_field(
        &self,
        sql_type: &ast::DataType,
    ) -> Result<Option<FieldRef>, DataFusionError> {
        let pg_type = PgType::from_sql(sql_type);
        let pg_type = pg_type.map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Some(Arc::new(pg_type.field("", true))))
    }
}

fn session() -> SessionContext {
    let catalogs = PgCatalog::new(sample::snapshot(), sample::views(), sample::session());
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema("bank", "pg_catalog")
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let state: SessionState = SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_type_planner(Arc::new(PgTypes))
        .build();
    let context = SessionContext::new_with_state(state);
    let bank = MemoryCatalogProvider::new();
    for (name, schema) in catalogs.schemas() {
        bank.register_schema(name, schema).expect("a new schema");
    }
    context.register_catalog("bank", Arc::new(bank));
    for function in catalogs.functions() {
        context.register_udf(function);
    }
    context
}

async fn run(sql: &str) -> Result<Vec<RecordBatch>, DataFusionError> {
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).expect("it parses");
    let mut statement = statements.remove(0);
    if let ast::Statement::Query(query) = &mut statement {
        rewrite_query(query).expect("it is rewritten");
    }
    let state = session().state();
    let plan = state.statement_to_plan(Statement::Statement(Box::new(statement))).await?;
    DataFrame::new(state, plan).collect().await
}

pub(super) fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Null => String::new(),
        Cell::Bool(value) => if *value { "t" } else { "f" }.to_owned(),
        Cell::Int(number) => number.to_string(),
        Cell::Text(text) => text.to_string(),
        Cell::List(items) => {
            format!("{{{}}}", items.iter().map(shown).collect::<Vec<_>>().join(","))
        }
    }
}

/// The rows as `psql -At` shows them.
async fn rows(sql: &str) -> Vec<String> {
    let batches = run(sql).await.unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let mut lines = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let cells = batch.columns().iter().map(|column| shown(&Cell::of(column, row)));
            lines.push(cells.collect::<Vec<_>>().join("|"));
        }
    }
    lines
}

async fn error(sql: &str) -> SqlError {
    let error = run(sql).await.expect_err(sql);
    let DataFusionError::External(inner) = error.find_root() else { panic!("{sql}: {error}") };
    inner.downcast_ref::<SqlError>().expect("an error of this crate").clone()
}

/// The queries of a fixture.
pub(super) fn queries(fixture: &str) -> Vec<&str> {
    fixture.split_inclusive(";\n").filter(|query| !query.trim().is_empty()).collect()
}

/// Every fixture, by its name.
pub(super) const ALL: [(&str, &str); 18] = [
    ("d", include_str!("testdata/d.sql")),
    ("d_index", include_str!("testdata/d_index.sql")),
    ("d_plus_table", include_str!("testdata/d_plus_table.sql")),
    ("d_table", include_str!("testdata/d_table.sql")),
    ("dT", include_str!("testdata/dT.sql")),
    ("df", include_str!("testdata/df.sql")),
    ("df_meridian", include_str!("testdata/df_meridian.sql")),
    ("di", include_str!("testdata/di.sql")),
    ("dn", include_str!("testdata/dn.sql")),
    ("dp", include_str!("testdata/dp.sql")),
    ("ds", include_str!("testdata/ds.sql")),
    ("dt", include_str!("testdata/dt.sql")),
    ("dt_plus", include_str!("testdata/dt_plus.sql")),
    ("du", include_str!("testdata/du.sql")),
    ("dv", include_str!("testdata/dv.sql")),
    ("l", include_str!("testdata/l.sql")),
    ("others", include_str!("testdata/others.sql")),
    ("python", include_str!("testdata/python.sql")),
];

macro_rules! fixture {
    ($name:literal) => {
        queries(include_str!(concat!("testdata/", $name, ".sql")))
    };
}

#[tokio::test]
async fn tables_are_listed() {
    let expected = [
        "public|Odd Name|table|meridian",
        "public|accounts|table|meridian",
        "public|orders|table|meridian",
    ];
    assert_eq!(rows(fixture!("d")[0]).await, expected);
    assert_eq!(rows(fixture!("dt")[0]).await, expected);
    let details = rows(fixture!("dt_plus")[0]).await;
    assert_eq!(details[1], "public|accounts|table|meridian|permanent|heap||");
    assert_eq!(rows(fixture!("dv")[0]).await, [""; 0]);
    assert_eq!(rows(fixture!("ds")[0]).await, [""; 0]);
    let in_meridian = fixture!("dv")[0].replace("pg_catalog.pg_table_is_visible(c.oid)", "true");
    assert_eq!(rows(&in_meridian).await, ["meridian|nodes|view|meridian"]);
    let access = rows(fixture!("dp")[0]).await;
    assert_eq!(access[1], "public|accounts|table|||");
}

#[tokio::test]
async fn a_table_is_described() {
    for fixture in [fixture!("d_table"), fixture!("d_plus_table")] {
        assert_eq!(rows(fixture[0]).await, ["16584|public|accounts"]);
        let about = rows(fixture[1]).await;
        assert!(about[0].starts_with("0|r|t|f|f|f|f|f|f||0|"), "{}", about[0]);
        assert!(about[0].ends_with("|p|d|heap"), "{}", about[0]);
        let columns = rows(fixture[2]).await;
        let expected = [
            "id|bigint||t||",
            "owner|text||t||",
            "balance|numeric(12,2)|0.00|f||",
            "opened|timestamp with time zone|now()|f||",
            "code|character varying(8)||f||",
        ];
        assert_eq!(columns.len(), expected.len());
        for (column, expected) in columns.iter().zip(expected) {
            assert!(column.starts_with(expected), "{column} is not {expected}");
        }
        let index = "accounts_pkey|t|t|f|t|CREATE UNIQUE INDEX accounts_pkey ON accounts USING \
             btree (id)|PRIMARY KEY (id)|p|f|f|f|0";
        assert_eq!(rows(fixture[3]).await, [index]);
        for query in &fixture[4..] {
            assert_eq!(rows(query).await, [""; 0], "{query}");
        }
    }
}

#[tokio::test]
async fn an_index_is_described() {
    let fixture = fixture!("d_index");
    assert_eq!(rows(fixture[0]).await, ["16585|public|accounts_pkey"]);
    assert_eq!(rows(fixture[2]).await, ["id|bigint|yes|id"]);
    assert_eq!(rows(fixture[3]).await, ["t|t|f|t|f|f|f|f|btree|accounts|"]);
    let indexes = rows(fixture!("di")[0]).await;
    assert_eq!(indexes[1], "public|accounts_pkey|index|meridian|accounts");
    assert_eq!(indexes.len(), 3);
}

#[tokio::test]
async fn schemas_databases_and_roles_are_listed() {
    assert_eq!(rows(fixture!("dn")[0]).await, ["meridian|meridian", "public|meridian"]);
    assert_eq!(rows(fixture!("l")[0]).await, ["bank|meridian|UTF8|C.UTF-8|C.UTF-8||libc|"]);
    assert_eq!(
        rows(fixture!("du")[0]).await,
        ["alice|t|t|t|t|t|-1||{}|t|t", "meridian|t|t|t|t|t|-1||{}|t|t"]
    );
    // Those of the schema `meridian` aren't found without naming it.
    // Those of the schema `meridian` aren't on the search path.
    assert_eq!(rows(fixture!("df")[0]).await, [""; 0]);
    let functions = rows(fixture!("df_meridian")[0]).await;
    assert_eq!(functions.len(), 16, "{functions:?}");
    assert_eq!(functions[0], "meridian|heal|boolean||func");
    let split = "meridian|split|bigint|table_name text, VARIADIC key \"any\"|func";
    assert!(functions.iter().any(|function| function == split), "{functions:?}");
    assert_eq!(rows(fixture!("dT")[0]).await, [""; 0]);
}

// SQLAlchemy reflects a whole database with these.
#[tokio::test]
async fn object_mappers_find_keys_and_columns() {
    let queries = fixture!("python");
    let find = |text: &str| *queries.iter().find(|q| q.contains(text)).expect("it is there");
    let keys = rows(find("contype = 'p'")).await;
    let expected = [
        "16584|{id}|accounts_pkey||1|f",
        "16586|{region,id}|orders_pkey||2|f",
        "16588|{Key}|Odd Name_pkey||1|f",
    ];
    assert_eq!(keys, expected);
    let columns = rows(find("AS format_type")).await;
    assert_eq!(columns.len(), 9);
    let balance = columns.iter().find(|row| row.starts_with("balance")).expect("a column");
    assert!(balance.starts_with("balance|numeric(12,2)|0.00|f|accounts|"), "{balance}");
    assert_eq!(rows(find("to_regtype('jsonb')")).await, ["jsonb|3802|3807|jsonb|,"]);
}

#[tokio::test]
async fn the_other_queries_run() {
    let mut failures = Vec::new();
    for query in fixture!("others").into_iter().chain(fixture!("python")) {
        if let Err(error) = run(query).await {
            failures.push(format!("{query}\n{}", error.strip_backtrace()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn every_relation_can_be_read_whole() {
    for definition in super::definition::all() {
        rows(&format!("SELECT * FROM {}.{}", definition.schema, definition.name)).await;
    }
}

#[tokio::test]
async fn names_become_object_ids_and_back() {
    for (sql, expected) in [
        ("SELECT 'accounts'::regclass", "accounts"),
        ("SELECT 'accounts'::regclass::oid", "16584"),
        ("SELECT 16584::regclass", "accounts"),
        ("SELECT 'public.accounts'::pg_catalog.regclass::pg_catalog.text", "accounts"),
        ("SELECT 'information_schema.tables'::regclass", "information_schema.tables"),
        ("SELECT '\"Odd Name\"'::regclass || '!'", "\"Odd Name\"!"),
        ("SELECT 'int4'::regtype, 'int4'::regtype::oid", "integer|23"),
        ("SELECT 'public'::regnamespace::oid, 2200::regnamespace", "2200|public"),
        ("SELECT 'array_in'::regproc::oid, 750::regproc", "750|array_in"),
        ("SELECT to_regclass('nothing') IS NULL", "t"),
        ("SELECT relname FROM pg_class WHERE oid = 'accounts'::regclass", "accounts"),
        ("SELECT count(*) FROM pg_attribute WHERE attrelid = 'accounts'::regclass", "5"),
    ] {
        assert_eq!(rows(sql).await, [expected], "{sql}");
    }
    assert_eq!(error("SELECT 'nothing'::regclass").await.sqlstate, SqlState::UNDEFINED_TABLE);
    assert_eq!(error("SELECT 'nothing'::regtype").await.sqlstate, SqlState::UNDEFINED_OBJECT);
}

#[tokio::test]
async fn the_dialect_of_clients_is_understood() {
    for (sql, expected) in [
        ("SELECT current_schema, current_schema(), current_user", "public|public|alice"),
        ("SELECT pg_catalog.current_database(), current_catalog", "bank|bank"),
        ("SELECT version() LIKE 'PostgreSQL 15.18 %'", "t"),
        ("SELECT current_schemas(true)", "{pg_catalog,public}"),
        ("SELECT pg_backend_pid()", "4711"),
        ("SELECT pg_cancel_backend(12), pg_cancel_backend(13), pg_cancel_backend(NULL)", "t|f|"),
        ("SELECT 'b' = ANY('{a,b}'), 2 <> ALL('{1,3}'), 'r' = ANY(ARRAY['r', 'v'])", "t|t|t"),
        ("SELECT 'a' OPERATOR(pg_catalog.~) '^(A|a)$' COLLATE pg_catalog.default", "t"),
        (
            "SELECT array_to_string(ARRAY(SELECT attname FROM pg_attribute \
             WHERE attrelid = 16584 ORDER BY attnum DESC), ',')",
            "code,opened,balance,owner,id",
        ),
        (
            "SELECT array_upper(conkey, 1), conkey[1] FROM pg_constraint WHERE conname = 'orders_pkey'",
            "2|3",
        ),
        ("SELECT relname FROM pg_class c WHERE c.tableoid = 1259 AND c.oid = 1259", "pg_class"),
        (
            "SELECT unnest(indkey), generate_subscripts(indkey, 1) FROM pg_index WHERE indexrelid = 16585",
            "1|0",
        ),
        (
            "SELECT array_to_string(ARRAY(SELECT 't.' || x FROM unnest(ARRAY['a', 'b']) x), ',')",
            "t.a,t.b",
        ),
        ("SELECT 'pg_x' LIKE 'pg/_%' ESCAPE '/', 'pgx' LIKE 'pg/_%' ESCAPE '/'", "t|f"),
        (
            "SELECT (SELECT nspname FROM pg_namespace n WHERE n.oid = c.relnamespace) \
             FROM pg_class c WHERE relname = 'orders'",
            "public",
        ),
        (
            "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid) \
             FROM pg_class c WHERE relname IN ('orders', 'orders_pkey') ORDER BY relname LIMIT 1",
            "t",
        ),
    ] {
        assert_eq!(rows(sql).await, [expected], "{sql}");
    }
}

// tokio-postgres asks this of each type that it doesn't know.
#[tokio::test]
async fn drivers_find_types() {
    let sql = "SELECT t.typname, t.typtype, t.typelem, r.rngsubtype, t.typbasetype, n.nspname, \
         t.typrelid FROM pg_catalog.pg_type t \
         LEFT OUTER JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid \
         INNER JOIN pg_catalog.pg_namespace n ON t.typnamespace = n.oid WHERE t.oid = 1231";
    assert_eq!(rows(sql).await, ["_numeric|b|1700||0|pg_catalog|0"]);
}

#[tokio::test]
async fn the_standards_views_tell_the_same() {
    let sql = "SELECT column_name, ordinal_position, is_nullable, data_type, \
         character_maximum_length, numeric_precision, numeric_scale, udt_name \
         FROM information_schema.columns WHERE table_name = 'accounts' ORDER BY 2";
    let expected = [
        "id|1|NO|bigint||64|0|int8",
        "owner|2|NO|text||||text",
        "balance|3|YES|numeric||12|2|numeric",
        "opened|4|YES|timestamp with time zone||||timestamptz",
        "code|5|YES|character varying|8|||varchar",
    ];
    assert_eq!(rows(sql).await, expected);
    let sql = "SELECT tc.constraint_name, kcu.column_name, kcu.ordinal_position \
         FROM information_schema.table_constraints tc \
         JOIN information_schema.key_column_usage kcu USING (constraint_schema, constraint_name) \
         WHERE tc.table_name = 'orders' AND constraint_type = 'PRIMARY KEY' ORDER BY 3";
    assert_eq!(rows(sql).await, ["orders_pkey|region|1", "orders_pkey|id|2"]);
    let sql = "SELECT table_name FROM information_schema.tables \
         WHERE table_schema = 'public' ORDER BY 1";
    assert_eq!(rows(sql).await, ["Odd Name", "accounts", "orders"]);
    let sql = "SELECT column_name, data_type, is_nullable FROM information_schema.columns \
         WHERE table_name = 'nodes' ORDER BY ordinal_position";
    assert_eq!(rows(sql).await, ["node|bigint|YES", "region|text|YES"]);
}
