//! Interleaved tables through the real binary: what psql shows, and no row without the row above
//! it, whatever several nodes do at once.

use meridian_tests::support::{Server, psql};
use tokio_postgres::{Client, SimpleQueryMessage};

/// The first value of the first row.
async fn one(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    row.unwrap_or_else(|| panic!("{sql}: no row"))
}

/// The SQLSTATE that a statement ends with; `00000` when it succeeds.
async fn state_of(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(_) => "00000".to_owned(),
        Err(error) => {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
            error.code().code().to_owned()
        }
    }
}

const TABLES: &str = "
    CREATE TABLE warehouse (w_id integer PRIMARY KEY, w_name text);
    CREATE TABLE district (d_w_id integer, d_id integer, PRIMARY KEY (d_w_id, d_id))
        INTERLEAVE IN PARENT warehouse;
    CREATE TABLE customer (c_w_id integer, c_d_id integer, c_id text, c_data text,
        PRIMARY KEY (c_w_id, c_d_id, c_id)) INTERLEAVE IN PARENT district ON DELETE CASCADE;
";

#[tokio::test(flavor = "multi_thread")]
async fn a_family_of_tables_with_psql() {
    let server = Server::local().await;
    let script = format!(
        "{TABLES}
        INSERT INTO warehouse VALUES (1, 'one'), (2, 'two'), (3, 'three');
        INSERT INTO district SELECT w_id, d FROM warehouse, generate_series(1, 10) AS g(d);
        INSERT INTO customer SELECT d_w_id, d_id, 'c' || n, repeat('x', 50)
            FROM district, generate_series(1, 30) AS g(n);
        SELECT count(*), sum(w_id) FROM warehouse;
        SELECT count(*), sum(d_id) FROM district WHERE d_w_id >= 2;
        SELECT c_id FROM customer ORDER BY c_w_id DESC, c_d_id DESC, c_id DESC LIMIT 1;
        DELETE FROM district WHERE d_w_id = 2 AND d_id <= 4;
        SELECT count(*) FROM customer;
        SELECT w_name, count(c_id) FROM warehouse LEFT JOIN customer ON w_id = c_w_id
            GROUP BY w_name ORDER BY w_name;"
    );
    let Some(family) = psql(server.port, &script) else { return };
    assert_eq!(family.code, Some(0), "{}", family.err);
    assert_eq!(family.out, "3|6\n20|110\nc9\n780\none|300\nthree|300\ntwo|180\n");

    let described = psql(server.port_of(2), "\\t off\n\\d district\n\\d customer\n").expect("psql");
    assert_eq!(described.code, Some(0), "{}", described.err);
    for line in [
        "\"district_interleave_fkey\" FOREIGN KEY (d_w_id) REFERENCES warehouse(w_id)\n",
        "TABLE \"customer\" CONSTRAINT \"customer_interleave_fkey\" FOREIGN KEY (c_w_id, c_d_id) \
         REFERENCES district(d_w_id, d_id) ON DELETE CASCADE\n",
    ] {
        assert!(described.out.contains(line), "{line} is missing:\n{}", described.out);
    }

    // The rest through other nodes, each with a catalog of its own.
    let (second, third) = (server.connect(2).await, server.connect(3).await);
    for (sql, state) in [
        ("DELETE FROM warehouse WHERE w_id = 1", "23503"),
        ("INSERT INTO district VALUES (4, 1)", "23503"),
        ("UPDATE district SET d_id = 11 WHERE d_w_id = 1 AND d_id = 1", "23503"),
        ("INSERT INTO customer VALUES (2, 4, 'c1', '')", "23503"),
        ("DROP TABLE district", "2BP01"),
        ("CREATE TABLE x (a bigint PRIMARY KEY) INTERLEAVE IN PARENT warehouse", "42P16"),
        ("ALTER TABLE district SET (voters = 3)", "42809"),
        ("CREATE TABLE x (a integer PRIMARY KEY) WITH (colour = 'red')", "22023"),
        ("CREATE TABLE x (a integer PRIMARY KEY) WITH (fillfactor = 70)", "00000"),
    ] {
        assert_eq!(state_of(&second, sql).await, state, "{sql}");
    }
    let tablets = "SELECT count(*) FROM meridian.tablets WHERE range_start LIKE 'warehouse%'";
    assert_eq!(one(&third, tablets).await, "1", "one tablet for all of them");
    assert_eq!(one(&third, "SELECT count(*) FROM customer").await, "780");

    // A dropped table's name and rows are gone, for other nodes too; its parent's rows are free.
    assert_eq!(state_of(&second, "DROP TABLE customer").await, "00000");
    let insert = "INSERT INTO customer VALUES (1, 1, 'x', '')";
    assert_eq!(state_of(&third, insert).await, "42P01");
    assert_eq!(state_of(&third, "DELETE FROM district").await, "00000");
    assert_eq!(state_of(&third, "DELETE FROM warehouse WHERE w_id = 1").await, "00000");

    let mut server = server;
    server.kill();
    let server = server.start_again().await;
    let client = server.connect(1).await;
    client
        .batch_execute(&TABLES[TABLES.find("CREATE TABLE customer").expect("there")..])
        .await
        .expect("it is created anew");
    assert_eq!(one(&client, "SELECT count(*) FROM customer").await, "0");
    assert_eq!(state_of(&client, "INSERT INTO district VALUES (1, 1)").await, "23503");
    assert_eq!(state_of(&client, "INSERT INTO district VALUES (2, 1)").await, "00000");
    assert_eq!(state_of(&client, "INSERT INTO customer VALUES (2, 1, 'x', '')").await, "00000");
    let notice = psql(server.port, "DROP TABLE warehouse CASCADE;\n\\dt\n").expect("psql");
    assert_eq!(notice.code, Some(0), "{}", notice.err);
    assert!(notice.err.contains("drop cascades to 2 other objects"), "{}", notice.err);
    assert!(notice.err.contains("drop cascades to table customer"), "{}", notice.err);
    assert!(
        !notice.out.contains("warehouse") && !notice.out.contains("district"),
        "{}",
        notice.out
    );
}

/// One node adds rows below parents while another deletes the parents, and a table that the latter
/// doesn't know is created in the middle: no row is ever without the row above it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_orphaned_by_several_nodes_at_once() {
    const PARENTS: i32 = 40;
    let server = Server::local().await;
    let first = server.connect(1).await;
    first
        .batch_execute(
            "CREATE TABLE p (a integer PRIMARY KEY, n integer NOT NULL DEFAULT 0);
             CREATE TABLE c (a integer, b integer, PRIMARY KEY (a, b))
                INTERLEAVE IN PARENT p ON DELETE CASCADE;
             INSERT INTO p (a) SELECT * FROM generate_series(1, 40)",
        )
        .await
        .expect("tables");
    let (adder, remover, updater) =
        (server.connect(1).await, server.connect(2).await, server.connect(3).await);
    // Both have read the catalog as it is now.
    assert_eq!(one(&remover, "SELECT count(*) FROM p").await, "40");
    let adding = async {
        let (mut added, mut refused) = (0, 0);
        for round in 1..=6 {
            for a in 1..=PARENTS {
                if (a, round) == (PARENTS / 2, 2) {
                    adder
                        .batch_execute(
                            "CREATE TABLE d (a integer, x integer, PRIMARY KEY (a, x))
                                INTERLEAVE IN PARENT p",
                        )
                        .await
                        .expect("another table");
                }
                let known = round > 2 && a % 2 == 0;
                let table = if known { "d" } else { "c" };
                let insert = format!("INSERT INTO {table} VALUES ({a}, {round})");
                match state_of(&adder, &insert).await.as_str() {
                    "00000" => added += 1,
                    "23503" => refused += 1,
                    other => panic!("{insert}: {other}"),
                }
            }
        }
        (added, refused)
    };
    let removing = async {
        let (mut removed, mut refused) = (0, 0);
        for round in 0..4 {
            for a in 1..=PARENTS {
                if a % 4 != round {
                    continue;
                }
                let delete = format!("DELETE FROM p WHERE a = {a}");
                match state_of(&remover, &delete).await.as_str() {
                    "00000" => removed += 1,
                    "23503" => refused += 1,
                    other => panic!("{delete}: {other}"),
                }
            }
        }
        (removed, refused)
    };
    let updating = async {
        for a in 1..=PARENTS {
            let update = format!("UPDATE p SET n = n + 1 WHERE a = {a}");
            assert_eq!(state_of(&updater, &update).await, "00000", "{update}");
        }
    };
    let (adding, removing, ()) = tokio::join!(adding, removing, updating);
    let ((added, refused_children), (removed, refused_parents)) = (adding, removing);
    for table in ["c", "d"] {
        let orphans = format!(
            "SELECT count(*) FROM {table} LEFT JOIN p ON {table}.a = p.a WHERE p.a IS NULL"
        );
        assert_eq!(one(&first, &orphans).await, "0", "{table}");
    }
    let left = one(&first, "SELECT count(*) FROM p").await;
    assert_eq!(left, (PARENTS - removed).to_string());
    let sums = format!("{added} {refused_children} {removed} {refused_parents}");
    assert!(added > 0 && refused_children > 0 && removed > 0, "{sums}");
    // What is there in the end: a table that keeps its parents, and none without.
    let kept = one(&first, "SELECT count(DISTINCT a) FROM d").await;
    assert_eq!(
        state_of(&first, "DELETE FROM p").await,
        if kept == "0" { "00000" } else { "23503" }
    );
}
