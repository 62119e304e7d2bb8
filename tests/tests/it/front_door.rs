//! The front door as a newcomer finds it: start the binary, read what it prints, use psql.

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::{ErrorPosition, SqlState};

use meridian_tests::support::{Server, free_ports, psql, run_to_end};

/// The error of a statement that must fail.
async fn error_of(client: &tokio_postgres::Client, sql: &str) -> tokio_postgres::error::DbError {
    let error = client.simple_query(sql).await.map(|_| ()).expect_err(sql);
    error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone()
}

/// The rows of a query as text.
async fn rows(client: &tokio_postgres::Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

async fn one(client: &tokio_postgres::Client, sql: &str) -> String {
    let rows = rows(client, sql).await;
    rows[0][0].clone().unwrap_or_else(|| panic!("{sql}: NULL"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_says_how_to_reach_it_and_stops_when_told() {
    let mut server = Server::start(&["--epsilon", "4ms"]).await;
    let printed = server.stdout();
    for node in 1..=3 {
        let line = format!("psql -h 127.0.0.1 -p {}", server.port_of(node));
        assert!(printed.contains(&line), "{line} is missing:\n{printed}");
    }
    for part in ["us-east", "us-west", "eu-west", "66", "64", "146", "4ms", "data"] {
        assert!(printed.contains(part), "{part} is missing:\n{printed}");
    }
    let client = server.connect(1).await;
    assert_eq!(one(&client, "SELECT 1").await, "1");
    server.signal("INT");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    assert!(client.simple_query("SELECT 1").await.is_err());
    // What it leaves can be used again.
    let mut server = server.start_again().await;
    assert_eq!(one(&server.connect(2).await, "SELECT 2").await, "2");
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_says_why() {
    let port = free_ports(3);
    let taken = std::net::TcpListener::bind(("127.0.0.1", port + 1)).expect("free");
    let with_port = |port: u16| port.to_string();
    let (code, _, error) =
        run_to_end(&["--ephemeral", "--topology", "local", "--port", &with_port(port)]).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&with_port(port + 1)) && error.contains("--port"), "{error}");
    drop(taken);

    let (code, _, error) = run_to_end(&["--topology", "mars"]).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("mars") && error.contains("us-eu-3"), "{error}");

    for usage in [&["--nodes", "12"][..], &["--epsilon", "soon"], &["fly"]] {
        let (code, _, error) = run_to_end(usage).await;
        assert_eq!(code, Some(2), "{usage:?}: {error}");
    }

    let server = Server::local().await;
    let data = server.data();
    let data = data.to_str().expect("UTF-8");
    let (code, _, error) = run_to_end(&[
        "--topology",
        "local",
        "--port",
        &with_port(free_ports(3)),
        "--data-dir",
        data,
    ])
    .await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("use"), "{error}");
    assert!(!error.contains("panicked"), "{error}");

    let (code, out, _) = run_to_end(&["--help"]).await;
    assert_eq!(code, Some(0));
    for option in ["--data-dir", "--ephemeral", "--port", "--topology", "--nodes", "--epsilon"] {
        assert!(out.contains(option), "{option} is missing:\n{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_with_psql() {
    let server = Server::local().await;
    let script = "
        CREATE TABLE accounts (
            branch integer, id bigint, owner varchar(20) NOT NULL, balance numeric(12,2) DEFAULT 0,
            opened timestamptz, PRIMARY KEY (branch, id));
        INSERT INTO accounts (branch, id, owner, balance) VALUES
            (1, 1, 'ann', 10.50), (1, 2, 'bob', 20), (2, 1, 'cid', 30);
        INSERT INTO accounts (branch, id, owner) VALUES (2, 2, 'dan');
        UPDATE accounts SET balance = balance + 1 WHERE branch = 1;
        DELETE FROM accounts WHERE owner = 'cid';
        SELECT branch, id, owner, balance FROM accounts ORDER BY branch, id;
        SELECT '--';
        WITH totals AS (SELECT branch, sum(balance) AS total FROM accounts GROUP BY branch)
            SELECT a.owner, t.total, row_number() OVER (ORDER BY a.owner DESC)
            FROM accounts a JOIN totals t USING (branch)
            WHERE a.id IN (SELECT id FROM accounts) ORDER BY a.owner LIMIT 2;
    ";
    let Some(psql_run) = psql(server.port, script) else { return };
    assert_eq!(psql_run.code, Some(0), "{}", psql_run.err);
    let expected = "1|1|ann|11.50\n1|2|bob|21.00\n2|2|dan|0.00\n--\nann|32.50|3\nbob|32.50|2\n";
    assert_eq!(psql_run.out, expected);

    let listed = psql(server.port_of(2), "\\dt\n\\t off\n\\d accounts\n").expect("psql");
    assert_eq!(listed.code, Some(0), "{}", listed.err);
    for part in [
        "public|accounts|table",
        "branch|integer|",
        "owner|character varying(20)||not null",
        "balance|numeric(12,2)",
        "opened|timestamp with time zone",
        "\"accounts_pkey\" PRIMARY KEY, btree (branch, id)",
    ] {
        assert!(listed.out.contains(part), "{part} is missing:\n{}", listed.out);
    }

    let failed = psql(server.port, "SELECT 1;\nSELECT nothing FROM accounts;\nSELECT 2;\n");
    let failed = failed.expect("psql");
    assert_eq!((failed.code, failed.out.as_str()), (Some(3), "1\n"));
    assert!(failed.err.contains("42703"), "{}", failed.err);

    let dropped = psql(server.port, "DROP TABLE accounts;\n\\dt\n").expect("psql");
    assert_eq!(dropped.code, Some(0), "{}", dropped.err);
    assert!(!dropped.out.contains("accounts"), "{}", dropped.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_have_postgresqls_codes_and_change_nothing() {
    let server = Server::local().await;
    let client = server.connect(1).await;
    client
        .batch_execute(
            "CREATE TABLE t (k integer PRIMARY KEY, s smallint, v varchar(3), c char(2) NOT NULL);
             INSERT INTO t VALUES (1, 1, 'abc', 'x')",
        )
        .await
        .expect("a table");

    for (sql, state) in [
        // The second row is wrong: the first isn't written either.
        ("INSERT INTO t VALUES (2, 1, 'a', 'x'), (3, 40000, 'a', 'x')", "22003"),
        ("INSERT INTO t VALUES (2, 1, 'a', 'x'), (3, 1, 'abcd', 'x')", "22001"),
        ("INSERT INTO t VALUES (2, 1, 'a', 'x'), (3, 1, 'a', NULL)", "23502"),
        ("INSERT INTO t VALUES (2, 1, 'a', 'x'), (1, 1, 'a', 'x')", "23505"),
        ("INSERT INTO t VALUES (2, 1, 'a', 'x'), (2, 1, 'a', 'x')", "23505"),
        ("INSERT INTO t (k, s, c) VALUES (2, 1, 'x'), (NULL, 1, 'x')", "23502"),
        ("UPDATE t SET s = s + 32767", "22003"),
        ("UPDATE t SET v = v || 'd'", "22001"),
        ("UPDATE t SET c = NULL", "23502"),
        ("INSERT INTO t (k, c) VALUES (2147483647 + 1, 'x')", "22003"),
        ("SELECT 1 / (k - 1) FROM t", "22012"),
        ("SELECT 'x'::integer", "22P02"),
        ("SELECT '2024-02-30'::date", "22008"),
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT nothing FROM t", "42703"),
        ("SELEC 1", "42601"),
        ("CREATE TABLE t (k integer PRIMARY KEY)", "42P07"),
        ("DROP TABLE nowhere", "42P01"),
    ] {
        let error = error_of(&client, sql).await;
        assert_eq!(error.code().code(), state, "{sql}: {error:?}");
        let content = rows(&client, "SELECT k, s, v, c FROM t").await;
        let text = |value: &str| Some(value.to_owned());
        assert_eq!(content, [[text("1"), text("1"), text("abc"), text("x ")]], "after {sql}");
    }

    let duplicate = error_of(&client, "INSERT INTO t VALUES (1, 1, 'a', 'x')").await;
    assert_eq!(duplicate.code(), &SqlState::UNIQUE_VIOLATION);
    assert_eq!(duplicate.constraint(), Some("t_pkey"));
    assert_eq!((duplicate.schema(), duplicate.table()), (Some("public"), Some("t")));
    assert_eq!(duplicate.detail(), Some("Key (k)=(1) already exists."));
    let missing = error_of(&client, "INSERT INTO t (k) VALUES (2)").await;
    assert_eq!((missing.table(), missing.column()), (Some("t"), Some("c")));
    let wrong = error_of(&client, "SELECT 1; SELECT 'é' FRM t").await;
    assert_eq!(wrong.position(), Some(&ErrorPosition::Original(26)), "{wrong:?}");

    // Where PostgreSQL could and this can't yet.
    for sql in ["LISTEN x", "COPY t FROM STDIN"] {
        assert_eq!(error_of(&client, sql).await.code().code(), "0A000", "{sql}");
    }
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_shows_itself() {
    let server = Server::start(&["--epsilon", "4ms"]).await;
    let client = server.connect(1).await;
    client
        .batch_execute(
            "CREATE TABLE t (k integer PRIMARY KEY, v integer); INSERT INTO t VALUES (1, 2)",
        )
        .await
        .expect("a table");
    let nodes = rows(&client, "SELECT * FROM meridian.nodes").await;
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    assert!(nodes.iter().flatten().flatten().any(|cell| cell == "eu-west"), "{nodes:?}");
    let clocks = rows(&client, "SELECT * FROM meridian.clocks").await;
    assert_eq!(clocks.len(), 3, "{clocks:?}");
    let links = rows(&client, "SELECT * FROM meridian.links").await;
    assert!(links.len() >= 6, "{links:?}");
    assert!(links.iter().flatten().flatten().any(|cell| cell.starts_with("146")), "{links:?}");
    let tablets = rows(&client, "SELECT * FROM meridian.tablets").await;
    assert!(tablets.len() >= 2, "{tablets:?}");

    let plan = rows(&client, "EXPLAIN SELECT v FROM t WHERE k BETWEEN 1 AND 5 AND v > 1").await;
    let plan: Vec<_> = plan.into_iter().flatten().flatten().collect();
    let plan = plan.join("\n");
    for part in ["tablet", "1", "5"] {
        assert!(plan.to_lowercase().contains(part), "{part} is missing:\n{plan}");
    }
    // EXPLAIN runs nothing.
    client.simple_query("EXPLAIN DELETE FROM t").await.expect("explained");
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "1");
}
