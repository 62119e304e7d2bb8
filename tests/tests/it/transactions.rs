//! Transactions through SQL, over tablets in several regions: in virtual time, and over the wire.

use std::sync::Arc;
use std::time::Duration;

use meridian_lab::{Client, Reply};
use meridian_server::cluster::Cluster;
use meridian_server::lab::SessionClient;
use meridian_tests::support::{Raw, Server, cstr, field};
use meridian_tests::virtual_cluster::{session, start};
use meridian_truetime::{CostModel, Env, EnvironmentExt, World};

const ACCOUNTS: u64 = 9;
const TOTAL: u64 = ACCOUNTS * 100;

fn run<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Arc<Cluster>, Env) -> F) {
    World::run_virtual(seed, CostModel::default(), |world| async move {
        let cluster = start(world, "us-eu-3", Duration::from_millis(4)).await;
        let env = cluster.env(1).expect("it runs");
        test(cluster, env).await;
    });
}

/// Accounts in three tablets, one led in each region.
async fn accounts(cluster: &Cluster) {
    let mut client = session(cluster, 1);
    for sql in [
        "CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)",
        "SELECT meridian.split('accounts', 3)",
        "SELECT meridian.split('accounts', 6)",
    ] {
        client.execute(sql).await.expect(sql);
    }
    for (at, node) in [(3, 2), (6, 3)] {
        let from = format!("range_start = 'accounts ({at})'");
        let find = format!("SELECT tablet FROM meridian.tablets WHERE {from}");
        let tablet = number(&mut client, &find).await;
        let transfer = format!("SELECT meridian.transfer_leader({tablet}, {node})");
        ok(&mut client, &transfer).await;
    }
    let rows: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, 100)")).collect();
    let insert = format!("INSERT INTO accounts VALUES {}", rows.join(", "));
    assert_eq!(client.execute(&insert).await.expect("inserted").tag, "INSERT 0 9");
}

async fn ok(client: &mut SessionClient, sql: &str) -> Reply {
    client.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

async fn code(client: &mut SessionClient, sql: &str) -> String {
    match client.execute(sql).await {
        Ok(reply) => panic!("{sql}: {reply:?}"),
        Err(error) => error.sqlstate,
    }
}

async fn number(client: &mut SessionClient, sql: &str) -> u64 {
    let rows = ok(client, sql).await.rows;
    rows[0][0].as_deref().expect("a value").parse().expect("a number")
}

/// Moves money until it has worked; how often it has not.
async fn transfer(client: &mut SessionClient, from: u64, to: u64, amount: u64) -> u32 {
    for failures in 0.. {
        let attempt = async {
            client.execute("BEGIN").await?;
            let read = format!("SELECT balance FROM accounts WHERE id = {from} FOR UPDATE");
            let rows = client.execute(&read).await?.rows;
            let balance: u64 = rows[0][0].as_deref().expect("a value").parse().expect("a number");
            let amount = amount.min(balance);
            for (id, sign) in [(from, '-'), (to, '+')] {
                let change = format!("balance = balance {sign} {amount}");
                let sql = format!("UPDATE accounts SET {change} WHERE id = {id}");
                client.execute(&sql).await?;
            }
            client.execute("COMMIT").await
        };
        match attempt.await {
            Ok(reply) => {
                assert_eq!(reply.tag, "COMMIT");
                return failures;
            }
            Err(error) => {
                assert_eq!(error.sqlstate, "40001", "{error:?}");
                ok(client, "ROLLBACK").await;
            }
        }
    }
    unreachable!("it goes on until it works")
}

#[test]
fn money_moves_between_regions_and_none_is_made() {
    run(1, |cluster, env| async move {
        accounts(&cluster).await;
        let clients = (0..6_u64).map(|client| {
            let mut session = session(&cluster, 1 + client % 3);
            let env = Arc::clone(&env);
            async move {
                let mut failures = 0;
                for _ in 0..8 {
                    let from = env.random() % ACCOUNTS;
                    let to = (from + 1 + env.random() % (ACCOUNTS - 1)) % ACCOUNTS;
                    failures += transfer(&mut session, from, to, env.random() % 40).await;
                }
                failures
            }
        });
        let reader = async {
            let mut session = session(&cluster, 3);
            for _ in 0..40 {
                let sum = number(&mut session, "SELECT sum(balance) FROM accounts").await;
                assert_eq!(sum, TOTAL);
                env.sleep(Duration::from_millis(150)).await;
            }
        };
        let (failures, ()) = futures::join!(futures::future::join_all(clients), reader);
        assert!(failures.iter().sum::<u32>() > 0, "some must have met");
        let mut last = session(&cluster, 2);
        assert_eq!(number(&mut last, "SELECT sum(balance) FROM accounts").await, TOTAL);
    });
}

#[test]
fn locks_are_waited_for_and_refused_as_one_asks() {
    run(2, |cluster, env| async move {
        accounts(&cluster).await;
        let (mut one, mut two) = (session(&cluster, 1), session(&cluster, 3));
        ok(&mut one, "BEGIN").await;
        ok(&mut one, "SELECT * FROM accounts WHERE id = 7 FOR UPDATE").await;
        // Reads without a transaction wait for nobody.
        assert_eq!(number(&mut two, "SELECT balance FROM accounts WHERE id = 7").await, 100);
        let nowait = "SELECT * FROM accounts WHERE id = 7 FOR UPDATE NOWAIT";
        assert_eq!(code(&mut two, nowait).await, "55P03");
        ok(&mut two, "SELECT * FROM accounts WHERE id = 7 FOR SHARE NOWAIT").await;
        ok(&mut two, "SET lock_timeout = '700ms'").await;
        for sql in [
            "SELECT * FROM accounts WHERE id = 7 FOR UPDATE",
            "UPDATE accounts SET balance = 1 WHERE id = 7",
            "DELETE FROM accounts WHERE id > 5",
        ] {
            let before = env.moment();
            assert_eq!(code(&mut two, sql).await, "55P03", "{sql}");
            let took = env.moment().since(before);
            assert!((700..1_100).contains(&took.as_millis()), "{sql}: {took:?}");
        }
        ok(&mut two, "SET lock_timeout = 0; SET statement_timeout = '2s'").await;
        assert_eq!(code(&mut two, "UPDATE accounts SET balance = 1 WHERE id = 7").await, "57014");
        ok(&mut two, "SET statement_timeout = 0").await;
        let waits = ok(&mut two, "UPDATE accounts SET balance = balance + 1 WHERE id = 7");
        let ends = async {
            env.sleep(Duration::from_secs(8)).await;
            ok(&mut one, "UPDATE accounts SET balance = 200 WHERE id = 7").await;
            ok(&mut one, "COMMIT").await;
        };
        let (waited, ()) = futures::join!(waits, ends);
        assert_eq!(waited.tag, "UPDATE 1");
        assert_eq!(number(&mut two, "SELECT balance FROM accounts WHERE id = 7").await, 201);
        // A session that is gone holds nothing.
        ok(&mut one, "BEGIN; SELECT * FROM accounts FOR UPDATE").await;
        drop(one);
        ok(&mut two, "UPDATE accounts SET balance = 0").await;
    });
}

#[test]
fn who_holds_and_waits_for_what_is_there_to_be_seen() {
    run(8, |cluster, env| async move {
        accounts(&cluster).await;
        let (mut one, mut two, mut three) =
            (session(&cluster, 1), session(&cluster, 3), session(&cluster, 2));
        let show = async |client: &mut SessionClient, sql: &str| -> Vec<String> {
            let rows = ok(client, sql).await.rows;
            let row = |row: &Vec<Option<String>>| {
                let cells = row.iter().map(|cell| cell.as_deref().unwrap_or("-"));
                cells.collect::<Vec<_>>().join(" ")
            };
            rows.iter().map(row).collect()
        };
        // The outcome of the INSERT is on its way to its participants still.
        env.sleep(Duration::from_secs(1)).await;
        let nobody = show(&mut three, "SELECT * FROM meridian.transactions").await;
        assert!(nobody.is_empty(), "{nobody:?}");
        ok(&mut one, "BEGIN; SELECT * FROM accounts WHERE id = 7 FOR UPDATE").await;
        ok(&mut one, "SELECT * FROM accounts WHERE id > 3 AND id < 6").await;
        // Its gateway is in eu-west, where the tablet is led; the other's is in us-east.
        let waits = async {
            ok(&mut two, "BEGIN").await;
            let read = "EXPLAIN ANALYZE SELECT * FROM accounts WHERE id >= 6 FOR UPDATE";
            let plan = show(&mut two, read).await.join("\n");
            ok(&mut two, "COMMIT").await;
            plan
        };
        let looks = async {
            env.sleep(Duration::from_secs(1)).await;
            let locks = "SELECT node, table_name, range_start, range_end, mode, granted,
                         waits_for IS NOT NULL FROM meridian.locks ORDER BY 1, 6 DESC";
            assert_eq!(
                show(&mut three, locks).await,
                [
                    "2 public.accounts accounts (4) accounts (6) shared t f",
                    "3 public.accounts accounts (7) - update t f",
                    "3 public.accounts accounts (6) table 101 update f t",
                ]
            );
            let transactions = "SELECT gateway, state, tablets, locks, began < now()
                                FROM meridian.transactions ORDER BY began";
            assert_eq!(show(&mut three, transactions).await, ["1 active 2 2 t", "3 waiting 1 0 t"]);
            let of = "SELECT l.waits_for = '{' || t.transaction || '}' FROM meridian.locks l,
                      meridian.transactions t WHERE NOT granted AND state = 'active'";
            assert_eq!(show(&mut three, of).await, ["t"]);
            env.sleep(Duration::from_secs(4)).await;
            ok(&mut one, "COMMIT").await;
        };
        let (plan, ()) = futures::join!(waits, looks);
        let visited = "Visited: tablets=1 regions=eu-west round trips=0 lock wait=";
        let (_, waited) = plan.split_once(visited).unwrap_or_else(|| panic!("{plan}"));
        let waited: f64 = waited.split(' ').next().expect("ms").parse().expect("a number");
        assert!((4_900.0..5_500.0).contains(&waited), "{plan}");
        let far = show(&mut one, "EXPLAIN ANALYZE SELECT * FROM accounts").await.join("\n");
        let visited = "Visited: tablets=3 regions=eu-west, us-east, us-west round trips=2 \
                       lock wait=0.000 ms";
        assert!(far.contains(visited), "{far}");
    });
}

#[test]
fn workers_skip_what_others_have_locked() {
    run(9, |cluster, env| async move {
        let (mut one, mut two, mut three) =
            (session(&cluster, 1), session(&cluster, 2), session(&cluster, 3));
        for sql in [
            "CREATE TABLE jobs (id int PRIMARY KEY, priority int, state text)",
            "SELECT meridian.split('jobs', 4)",
            "INSERT INTO jobs SELECT i, i % 3, 'queued' FROM generate_series(1, 7) i",
        ] {
            ok(&mut one, sql).await;
        }
        env.sleep(Duration::from_secs(1)).await;
        let ids = async |client: &mut SessionClient, sql: &str| -> Vec<String> {
            let rows = ok(client, sql).await.rows;
            rows.into_iter().map(|row| row[0].clone().expect("an id")).collect()
        };
        // Not in the order of the key.
        let next = "SELECT id FROM jobs WHERE state = 'queued' ORDER BY priority DESC, id
                    LIMIT 2 FOR UPDATE SKIP LOCKED";
        let before = env.moment();
        ok(&mut one, "BEGIN").await;
        assert_eq!(ids(&mut one, next).await, ["2", "5"]);
        ok(&mut two, "BEGIN").await;
        assert_eq!(ids(&mut two, next).await, ["1", "4"]);
        // Alone, it keeps no locks.
        let all = "SELECT * FROM jobs j WHERE j.id > 1 FOR UPDATE SKIP LOCKED";
        assert_eq!(ids(&mut three, all).await, ["3", "6", "7"]);
        assert!(env.moment().since(before) < Duration::from_secs(3), "nobody waits");
        ok(&mut one, "UPDATE jobs SET state = 'done' WHERE id IN (2, 5); COMMIT").await;
        ok(&mut two, "ROLLBACK").await;
        ok(&mut three, "BEGIN; INSERT INTO jobs VALUES (9, 2, 'queued')").await;
        ok(&mut three, "UPDATE jobs SET state = 'mine' WHERE id = 1").await;
        let rest = "SELECT id FROM jobs WHERE state = 'queued' ORDER BY id DESC OFFSET 1
                    FOR SHARE SKIP LOCKED";
        assert_eq!(ids(&mut three, rest).await, ["7", "6", "4", "3"]);
        for sql in [
            "SELECT 1 FROM jobs a JOIN jobs b ON a.id = b.id FOR UPDATE OF a SKIP LOCKED",
            "SELECT 1 FROM jobs WHERE id = (SELECT min(id) FROM jobs) FOR UPDATE SKIP LOCKED",
        ] {
            assert_eq!(code(&mut one, sql).await, "0A000", "{sql}");
        }
    });
}

#[test]
fn who_loses_a_conflict_is_as_old_as_before_when_it_comes_again() {
    run(3, |cluster, _| async move {
        accounts(&cluster).await;
        let (mut old, mut young) = (session(&cluster, 1), session(&cluster, 2));
        ok(&mut old, "BEGIN; SELECT 1 FROM accounts WHERE id = 0").await;
        ok(&mut young, "BEGIN; UPDATE accounts SET balance = 1 WHERE id = 4").await;
        ok(&mut old, "UPDATE accounts SET balance = 2 WHERE id = 4").await;
        assert_eq!(code(&mut young, "COMMIT").await, "40001");
        ok(&mut old, "COMMIT").await;
        // It began before this one, and so wins now.
        let mut third = session(&cluster, 3);
        ok(&mut third, "BEGIN; UPDATE accounts SET balance = 3 WHERE id = 5").await;
        ok(&mut young, "BEGIN; UPDATE accounts SET balance = 4 WHERE id = 5; COMMIT").await;
        assert_eq!(code(&mut third, "COMMIT").await, "40001");
        let left = number(&mut third, "SELECT sum(balance) FROM accounts WHERE id IN (4, 5)").await;
        assert_eq!(left, 6);
    });
}

#[test]
fn a_block_sees_what_it_has_written_wherever_the_rows_are() {
    run(4, |cluster, _| async move {
        accounts(&cluster).await;
        let mut client = session(&cluster, 2);
        ok(&mut client, "BEGIN").await;
        ok(&mut client, "DELETE FROM accounts WHERE id IN (0, 4, 8)").await;
        ok(&mut client, "INSERT INTO accounts VALUES (-1, 1), (4, 5), (20, 7)").await;
        assert_eq!(number(&mut client, "SELECT sum(balance) FROM accounts").await, 613);
        let rows = ok(&mut client, "SELECT id FROM accounts ORDER BY id DESC LIMIT 3").await.rows;
        let ids: Vec<_> = rows.iter().map(|row| row[0].as_deref().expect("an id")).collect();
        assert_eq!(ids, ["20", "7", "6"]);
        assert_eq!(code(&mut client, "INSERT INTO accounts VALUES (7, 0)").await, "23505");
        ok(&mut client, "ROLLBACK").await;
        assert_eq!(number(&mut client, "SELECT sum(balance) FROM accounts").await, TOTAL);
    });
}

#[test]
fn a_transaction_that_only_reads_sees_one_time_and_holds_nobody_up() {
    run(5, |cluster, env| async move {
        accounts(&cluster).await;
        let (mut reader, mut writer) = (session(&cluster, 3), session(&cluster, 1));
        ok(&mut reader, "BEGIN READ ONLY").await;
        let sum = "SELECT sum(balance) FROM accounts";
        assert_eq!(number(&mut reader, sum).await, TOTAL);
        ok(&mut writer, "UPDATE accounts SET balance = 0 WHERE id < 4").await;
        env.sleep(Duration::from_secs(5)).await;
        assert_eq!(number(&mut reader, sum).await, TOTAL);
        ok(&mut reader, "COMMIT").await;
        assert_eq!(number(&mut reader, sum).await, TOTAL - 400);
    });
}

#[test]
fn the_past_is_near() {
    run(6, |cluster, env| async move {
        accounts(&cluster).await;
        env.sleep(Duration::from_secs(15)).await;
        let (mut east, mut europe) = (session(&cluster, 1), session(&cluster, 3));
        // Led in us-east.
        let zero = "SELECT balance FROM accounts WHERE id = 0";
        let all = "SELECT sum(balance) FROM accounts";
        // The plans and the directory are known then.
        for sql in [zero, all] {
            number(&mut europe, sql).await;
        }
        let time = async |client: &mut SessionClient, sql: &str| {
            let before = env.moment();
            let found = number(client, sql).await;
            (found, env.moment().since(before).as_secs_f64() * 1_000.0)
        };
        let (strong, took) = time(&mut europe, zero).await;
        assert!(strong == 100 && took >= 64.0, "{took} ms");
        ok(&mut east, "UPDATE accounts SET balance = 7 WHERE id = 0").await;
        for (staleness, balance, total) in
            [("exact 10s", 100, TOTAL), ("max 10s", 7, TOTAL - 93), ("exact 1s", 7, TOTAL - 93)]
        {
            if staleness != "exact 10s" {
                env.sleep(Duration::from_secs(2)).await;
            }
            ok(&mut europe, &format!("SET meridian.read_staleness = '{staleness}'")).await;
            for (sql, expected) in [(zero, balance), (all, total)] {
                let (found, took) = time(&mut europe, sql).await;
                assert_eq!(found, expected, "{staleness}: {sql}");
                assert!(took < 2.0, "{staleness}: {sql}: {took} ms");
            }
        }
        ok(&mut europe, "RESET meridian.read_staleness").await;
        let (found, took) = time(&mut europe, &format!("{all} AS OF SYSTEM TIME '-10s'")).await;
        assert!(found == TOTAL && took < 2.0, "{found}, {took} ms");
        env.sleep(Duration::from_secs(5)).await;
        ok(&mut europe, "BEGIN READ ONLY AS OF SYSTEM TIME '-3s'").await;
        assert_eq!(number(&mut europe, all).await, TOTAL - 93);
        ok(&mut east, "UPDATE accounts SET balance = 0").await;
        assert_eq!(number(&mut europe, all).await, TOTAL - 93);
        assert_eq!(code(&mut europe, "DELETE FROM accounts").await, "25006");
        ok(&mut europe, "ROLLBACK").await;
        for (sql, state) in [
            ("BEGIN READ WRITE AS OF SYSTEM TIME '-1s'", "42601"),
            ("DELETE FROM accounts AS OF SYSTEM TIME '-1s'", "42601"),
            ("SELECT * FROM accounts AS OF SYSTEM TIME '2040-01-01'", "22023"),
            ("SELECT * FROM accounts AS OF SYSTEM TIME 'soon'", "22023"),
            ("SET meridian.read_staleness = 'a little'", "22023"),
            ("BEGIN; SELECT * FROM accounts AS OF SYSTEM TIME '-1s'", "0A000"),
        ] {
            assert_eq!(code(&mut europe, sql).await, state, "{sql}");
            ok(&mut europe, "ROLLBACK").await;
        }
        // What one session has seen, another can be made to see.
        let seen = ok(&mut east, "SHOW meridian.min_read_timestamp").await.rows;
        let seen = seen[0][0].clone().expect("it has seen something");
        ok(&mut europe, "SET meridian.read_staleness = 'max 60s'").await;
        ok(&mut europe, &format!("SET meridian.min_read_timestamp = '{seen}'")).await;
        assert_eq!(number(&mut europe, all).await, 0);
    });
}

#[test]
fn a_commit_waits_or_does_not_and_says_where_its_time_went() {
    World::run_virtual(7, CostModel::default(), |world| async move {
        let cluster = start(world, "us-eu-3", Duration::from_millis(45)).await;
        let env = cluster.env(1).expect("it runs");
        accounts(&cluster).await;
        let mut client = session(&cluster, 1);
        // One is led in us-east, 64 ms from eu-west, the other in us-west, 66 ms from there: a prepare
        // goes there and back and is logged (132 ms), then the outcome is (64).
        let both = "BEGIN; UPDATE accounts SET balance = 1 WHERE id IN (0, 4); COMMIT";
        for (protocol, one, two) in
            [("commit_wait", 90..92, 196..199), ("two_phase", 64..66, 196..199)]
        {
            ok(&mut client, &format!("SET meridian.commit_protocol = {protocol}")).await;
            for (insert, expected) in [(true, one), (false, two)] {
                env.sleep(Duration::from_secs(2)).await;
                let sql = if insert {
                    format!("INSERT INTO accounts VALUES (-{}, 0)", protocol.len())
                } else {
                    both.to_owned()
                };
                let (begun, rest) = sql.rsplit_once("; COMMIT").unwrap_or(("SELECT 1", &sql));
                ok(&mut client, begun).await;
                let last = if insert { rest } else { "COMMIT" };
                let before = env.moment();
                ok(&mut client, last).await;
                let took = env.moment().since(before).as_millis();
                assert!(expected.contains(&took), "{protocol}: {last}: {took} ms");
                let report = ok(&mut client, "SHOW meridian.last_commit").await.rows;
                let report = report[0][0].clone().expect("a report");
                let participants = if insert { 1 } else { 2 };
                assert!(report.contains(&format!("\"participants\": {participants},")), "{report}");
                assert!(report.contains(&format!("\"protocol\": \"{protocol}\"")), "{report}");
                let waits = report.contains("\"commit_wait_ms\": 0.000");
                assert_eq!(waits, protocol == "two_phase" || !insert, "{report}");
            }
        }
    });
}

fn parse(sql: &str) -> Vec<u8> {
    [cstr(""), cstr(sql), vec![0, 0]].concat()
}

fn bind() -> Vec<u8> {
    [cstr(""), cstr(""), vec![0, 0, 0, 0, 0, 0]].concat()
}

fn execute() -> Vec<u8> {
    [&cstr("")[..], &[0; 4]].concat()
}

async fn say(raw: &mut Raw, sql: &str) -> (String, u8) {
    raw.message(b'Q', &cstr(sql)).await;
    told(raw).await
}

/// The tags and codes up to the next word, and the status that comes with it.
async fn told(raw: &mut Raw) -> (String, u8) {
    let answers = raw.until(b'Z').await;
    let status = answers.last().expect("a word").1[0];
    let told = answers.iter().filter_map(|(kind, body)| match kind {
        b'C' => Some(String::from_utf8_lossy(&body[..body.len() - 1]).into_owned()),
        b'E' => field(body, b'C'),
        b'N' => field(body, b'C').map(|code| format!("({code})")),
        _ => None,
    });
    (told.collect::<Vec<_>>().join(" "), status)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wire_tells_where_a_transaction_stands() {
    let server = Server::local().await;
    let (mut raw, _) = Raw::session(server.port).await;
    let said = [
        ("CREATE TABLE t (k int PRIMARY KEY)", "CREATE TABLE", b'I'),
        ("BEGIN", "BEGIN", b'T'),
        ("INSERT INTO t VALUES (1)", "INSERT 0 1", b'T'),
        ("INSERT INTO t VALUES (1)", "23505", b'E'),
        ("SELECT 1", "25P02", b'E'),
        ("COMMIT", "ROLLBACK", b'I'),
        ("COMMIT", "(25P01) COMMIT", b'I'),
        ("INSERT INTO t VALUES (2); INSERT INTO t VALUES (2)", "INSERT 0 1 23505", b'I'),
        ("SELECT * FROM t", "SELECT 0", b'I'),
        ("INSERT INTO t VALUES (3); BEGIN; SELECT * FROM t", "INSERT 0 1 BEGIN SELECT 1", b'T'),
        ("ROLLBACK; SELECT * FROM t", "ROLLBACK SELECT 0", b'I'),
    ];
    for (sql, answer, status) in said {
        assert_eq!(say(&mut raw, sql).await, (answer.to_owned(), status), "{sql}");
    }
    // Up to a Sync, it is one transaction.
    for sql in ["INSERT INTO t VALUES (4)", "INSERT INTO t VALUES (5)"] {
        raw.message(b'P', &parse(sql)).await;
        raw.message(b'B', &bind()).await;
        raw.message(b'E', &execute()).await;
    }
    raw.message(b'P', &parse("INSERT INTO t VALUES (4)")).await;
    raw.message(b'B', &bind()).await;
    raw.message(b'E', &execute()).await;
    raw.message(b'S', b"").await;
    assert_eq!(told(&mut raw).await, ("INSERT 0 1 INSERT 0 1 23505".to_owned(), b'I'));
    assert_eq!(say(&mut raw, "SELECT * FROM t").await, ("SELECT 0".to_owned(), b'I'));
    for sql in ["BEGIN", "INSERT INTO t VALUES (6)"] {
        raw.message(b'P', &parse(sql)).await;
        raw.message(b'B', &bind()).await;
        raw.message(b'E', &execute()).await;
    }
    raw.message(b'S', b"").await;
    assert_eq!(told(&mut raw).await, ("BEGIN INSERT 0 1".to_owned(), b'T'));
    assert_eq!(say(&mut raw, "END").await, ("COMMIT".to_owned(), b'I'));
    // Whoever leaves a transaction open for too long has to go.
    let idle = "SET idle_in_transaction_session_timeout = 50; BEGIN; SELECT * FROM t FOR UPDATE";
    assert_eq!(say(&mut raw, idle).await, ("SET BEGIN SELECT 1".to_owned(), b'T'));
    let (kind, body) = raw.answer().await.expect("a last word");
    assert_eq!((kind, field(&body, b'C')), (b'E', Some("25P03".to_owned())));
    assert_eq!(raw.answer().await, None);
    let (mut other, _) = Raw::session(server.port).await;
    assert_eq!(say(&mut other, "DELETE FROM t").await, ("DELETE 1".to_owned(), b'I'));
}
