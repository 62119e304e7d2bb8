//! Faults by hand: the functions of the schema `meridian`, through psql and drivers at the real
//! binary, and in virtual time where what they do can be told exactly.

use std::time::Duration;

use meridian_lab::Client as _;
use meridian_server::cluster::Cluster;
use meridian_tests::support::{Server, eventually, psql, real_time, trace_in_a_fresh_process};
use meridian_tests::virtual_cluster::{session, start};
use meridian_truetime::{CostModel, Env, EnvironmentExt, World};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// The first column of the first row.
async fn text(client: &Client, sql: &str) -> String {
    let rows = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let mut rows = rows.into_iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = rows.next().unwrap_or_else(|| panic!("{sql}: no row"));
    row.get(0).unwrap_or("NULL").to_owned()
}

const ROUND_TRIPS: &str =
    "SELECT string_agg(from_node || '-' || to_node || ' ' || rtt_ms::int || ' ' || state, ', '
                           ORDER BY from_node, to_node)
                           FROM meridian.links WHERE from_node < to_node";

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_keeps_europe_from_reading_until_it_is_healed() {
    let server = Server::start(&["--topology", "us-eu-3"]).await;
    let (east, west, europe) =
        (server.connect(1).await, server.connect(2).await, server.connect(3).await);
    east.batch_execute("CREATE TABLE t (k integer PRIMARY KEY)").await.expect("led in us-east");
    east.batch_execute("INSERT INTO t VALUES (1)").await.expect("a row");
    assert_eq!(text(&europe, "SELECT count(*) FROM t").await, "1");

    let partition = "SELECT meridian.partition('us-east', 'eu-west')";
    assert_eq!(text(&west, partition).await, "t");
    assert_eq!(text(&west, partition).await, "f", "it was there already");
    assert_eq!(text(&west, ROUND_TRIPS).await, "1-2 66 up, 1-3 64 partitioned, 2-3 146 up");
    europe.batch_execute("SET statement_timeout = '1s'").await.expect("set");
    let error = europe.simple_query("SELECT count(*) FROM t").await.expect_err("cut off");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error:?}");
    // The others are two of three.
    east.batch_execute("INSERT INTO t VALUES (2)").await.expect("a majority");
    assert_eq!(text(&west, "SELECT count(*) FROM t").await, "2");

    assert_eq!(text(&west, "SELECT meridian.heal(3, 1)").await, "t");
    assert_eq!(text(&west, "SELECT meridian.heal()").await, "f", "nothing is left");
    let read = async || europe.query_one("SELECT count(*) FROM t", &[]).await;
    let count: i64 = eventually("europe reads", read).await.get(0);
    assert_eq!(count, 2);

    // One way only.
    let one_way = "SELECT meridian.partition(1, 'us-west', both => false)";
    assert_eq!(text(&europe, one_way).await, "t");
    let states = "SELECT string_agg(from_node || '-' || to_node, ',' ORDER BY from_node)
                  FROM meridian.links WHERE state = 'partitioned'";
    assert_eq!(text(&europe, states).await, "1-2");
    assert_eq!(text(&europe, "SELECT meridian.heal()").await, "t");
}

#[expect(clippy::too_many_lines, reason = "a table of statements")]
#[tokio::test(flavor = "multi_thread")]
async fn links_and_clocks_are_what_psql_sets_them_to() {
    let server = Server::start(&["--topology", "us-eu-3", "--epsilon", "4ms"]).await;
    let run = |sql: &str| psql(server.port, sql);
    let Some(functions) = run("\\df meridian.*") else { return };
    assert!(
        functions.out.contains("|pause_node|boolean|node bigint, pause interval DEFAULT NULL|")
    );
    for (sql, out, err) in [
        (
            "SELECT meridian.set_latency('us-east', 'eu-west', rtt => '80 ms', jitter => '1ms')",
            "t",
            "",
        ),
        ("SELECT meridian.set_latency(1, 3, rtt => '80ms')", "f", ""),
        (
            "SELECT rtt_ms, jitter_ms, loss FROM meridian.links WHERE from_node = 3 AND to_node = 1",
            "80|1|0",
            "",
        ),
        ("SELECT meridian.set_latency(1, 3, loss => 0.25)", "t", ""),
        (
            "SELECT rtt_ms, jitter_ms, loss FROM meridian.links WHERE from_node = 1 AND to_node = 3",
            "80|1|0.25",
            "",
        ),
        // The longest round trip at the start was 146 ms.
        ("SELECT meridian.set_latency(1, 3, rtt => '186ms', jitter => '0s', loss => 0)", "t", ""),
        (
            "SELECT meridian.set_latency(1, 3, jitter => '0.2ms')",
            "t",
            "NOTICE:  00000: a round trip of up to 186.4ms is longer than the 186.15ms that",
        ),
        ("SELECT meridian.reset_latency(3, 'us-east'), meridian.heal()", "", "ERROR:  0A000"),
        ("SELECT meridian.reset_latency(3, 'us-east')", "t", ""),
        ("SELECT meridian.reset_latency()", "f", ""),
        (
            "SELECT rtt_ms, jitter_ms, loss FROM meridian.links WHERE from_node = 1 AND to_node = 3",
            "64|0|0",
            "",
        ),
        ("SELECT meridian.set_clock(2, epsilon => '10 ms', offset => '-3ms')", "t", ""),
        (
            "SELECT round(epsilon_ms), round(offset_ms) FROM meridian.clocks WHERE node = 2",
            "10|-3",
            "",
        ),
        (
            "SELECT meridian.set_clock(2, offset => '12ms')",
            "t",
            "WARNING:  01000: the clock of node 2 is now up to 12ms off the true time while it declares 10ms",
        ),
        (
            "SELECT round(epsilon_ms), round(offset_ms) FROM meridian.clocks WHERE node = 2",
            "10|12",
            "",
        ),
        ("SELECT meridian.set_clock(2, offset => '0s')", "t", ""),
        ("SELECT meridian.set_clock(2, drift_ppm => 100)", "t", ""),
        ("SELECT drift_ppm FROM meridian.clocks WHERE node = 2", "100", ""),
        (
            "SELECT meridian.partition('us-east', 'mars')",
            "",
            "HINT:  There are nodes in eu-west, us-east, us-west.",
        ),
        (
            "SELECT meridian.partition('us-east', 1)",
            "",
            "there is no link between a node and itself",
        ),
        (
            "SELECT meridian.set_clock(9, epsilon => '1ms')",
            "",
            "HINT:  The nodes are 1 (us-east), 2 (us-west), 3 (eu-west).",
        ),
        ("SELECT meridian.resume_node(4)", "", "ERROR:  22023: there is no node 4"),
        ("SELECT meridian.pause_node(2)", "t", ""),
        ("SELECT meridian.pause_node(3)", "t", ""),
        (
            "SELECT meridian.pause_node(1)",
            "",
            "ERROR:  55000: node 1 is the last one that isn't paused",
        ),
        (
            "SELECT string_agg(state, ',' ORDER BY node) FROM meridian.nodes",
            "running,paused,paused",
            "",
        ),
        ("SELECT meridian.pause_node(1, pause => '100ms')", "t", ""),
        ("SELECT meridian.resume_node(2)", "t", ""),
        // Stopping a paused node doesn't wait for it.
        ("SELECT meridian.stop_node(3)", "t", ""),
        ("SELECT meridian.resume_node(3)", "f", ""),
        ("SELECT meridian.start_node(3)", "t", ""),
        (
            "SELECT string_agg(state, ',' ORDER BY node) FROM meridian.nodes",
            "running,running,running",
            "",
        ),
    ] {
        let answer = run(sql).expect("psql is there");
        assert_eq!(answer.out.trim(), out, "{sql}: {}", answer.err);
        assert!(
            answer.err.contains(err) && err.is_empty() == answer.err.is_empty(),
            "{sql}: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_go_on_without_a_paused_leader_and_it_catches_up() {
    let server = Server::local().await;
    let (first, second) = (server.connect(1).await, server.connect(2).await);
    first.batch_execute("CREATE TABLE t (k integer PRIMARY KEY)").await.expect("led by the first");
    first.batch_execute("INSERT INTO t VALUES (0)").await.expect("a row");
    let leader = "SELECT leader FROM meridian.tablets WHERE table_name = 'public.t'";
    assert_eq!(text(&second, leader).await, "1");
    let node: i64 = 1;
    let paused = second.query_one("SELECT meridian.pause_node($1)", &[&node]).await;
    assert!(paused.expect("paused").get::<_, bool>(0));

    // Its sessions hang, and so does who comes.
    let hanging = first.query_one("SELECT count(*) FROM t", &[]);
    let coming = server.try_connect(1);
    futures::pin_mut!(hanging, coming);
    let soon = Duration::from_millis(300);
    assert!(real_time().timeout(soon, hanging.as_mut()).await.is_err(), "it answers");
    assert!(real_time().timeout(soon, coming.as_mut()).await.is_err(), "it lets one in");

    eventually("two and three write", async || {
        // An attempt at the paused leader has no known outcome; reading finds the new one.
        second.query_one("SELECT count(*) FROM t", &[]).await?;
        second.execute("INSERT INTO t VALUES (1)", &[]).await
    })
    .await;
    assert_ne!(text(&second, leader).await, "1");
    let states = "SELECT string_agg(state, ',' ORDER BY node) FROM meridian.nodes";
    assert_eq!(text(&second, states).await, "paused,running,running");

    assert_eq!(text(&second, "SELECT meridian.resume_node(1)").await, "t");
    let count: i64 = hanging.await.expect("it goes on").get(0);
    assert_eq!(count, 2, "it must not serve what it knew before");
    let came = coming.await.expect("it lets one in");
    assert_eq!(text(&came, "SELECT count(*) FROM t").await, "2");
    eventually("the first catches up", async || {
        let behind = "SELECT count(*) FROM meridian.replicas WHERE node = 1 AND lag > 0";
        match text(&second, behind).await.as_str() {
            "0" => Ok(()),
            behind => Err(behind.to_owned()),
        }
    })
    .await;
    let roles = "SELECT string_agg(role, ',') FROM meridian.replicas r
                 JOIN meridian.tablets t ON t.tablet = r.tablet WHERE table_name = 'public.t'";
    assert_eq!(text(&second, roles).await, "voter,voter,voter");
}

/// How long a statement takes.
async fn took(env: &Env, client: &mut impl meridian_lab::Client, sql: &str) -> Duration {
    let began = env.moment();
    client.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    env.moment().since(began)
}

async fn value(client: &mut impl meridian_lab::Client, sql: &str) -> String {
    let reply = client.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    reply.rows[0][0].clone().unwrap_or_default()
}

#[test]
fn commits_wait_for_a_clock_and_for_links_exactly() {
    World::run_virtual(7, CostModel::default(), |world| async move {
        let cluster = start(world, "us-eu-3", Duration::from_millis(4)).await;
        let env = cluster.env(1).expect("it runs");
        let mut client = session(&cluster, 1);
        client.execute("CREATE TABLE t (k int PRIMARY KEY)").await.expect("created");
        client.execute("INSERT INTO t VALUES (0)").await.expect("the catalog is read");
        let insert = async |client: &mut _, k: u32| {
            // What is under way at an old latency would hold up what comes after it.
            env.sleep(Duration::from_secs(1)).await;
            took(&env, client, &format!("INSERT INTO t VALUES ({k})")).await
        };
        let millis = Duration::from_millis;
        // A majority is a round trip to eu-west away, which covers twice the uncertainty.
        assert_eq!(insert(&mut client, 1).await, millis(64));
        client.execute("SELECT meridian.set_clock(1, epsilon => '50ms')").await.expect("set");
        // Twice that, and a tick until it is certainly over.
        let waits = millis(100) + Duration::from_micros(1);
        assert_eq!(insert(&mut client, 2).await, waits);
        // Only the leader's clock counts.
        client.execute("SELECT meridian.set_clock(3, epsilon => '60ms')").await.expect("set");
        assert_eq!(insert(&mut client, 3).await, waits);
        client.execute("SELECT meridian.set_clock(1, epsilon => '4ms')").await.expect("set");
        assert_eq!(insert(&mut client, 4).await, millis(64));
        // Now us-west is nearer.
        client.execute("SELECT meridian.set_latency(1, 3, rtt => '90ms')").await.expect("set");
        assert_eq!(insert(&mut client, 5).await, millis(66));
        client.execute("SELECT meridian.set_latency(1, 2, rtt => '20ms')").await.expect("set");
        assert_eq!(insert(&mut client, 6).await, millis(20));
        client.execute("SELECT meridian.reset_latency()").await.expect("reset");
        assert_eq!(insert(&mut client, 7).await, millis(64));
        cluster.shutdown().await;
    });
}

/// Links as slow as the timeouts allow for must not stop anything.
#[test]
fn a_cluster_makes_progress_up_to_the_bound_that_the_notice_names() {
    World::run_virtual(8, CostModel::default(), |world| async move {
        let cluster = start(world, "us-eu-3", Duration::ZERO).await;
        let env = cluster.env(1).expect("it runs");
        let mut client = session(&cluster, 1);
        client.execute("CREATE TABLE t (k int PRIMARY KEY)").await.expect("created");
        for (a, b) in [(1, 2), (1, 3), (2, 3)] {
            let sql = format!("SELECT meridian.set_latency({a}, {b}, rtt => '186ms')");
            client.execute(&sql).await.expect("set");
        }
        for k in 0..50 {
            env.sleep(Duration::from_millis(500)).await;
            let insert = format!("INSERT INTO t VALUES ({k})");
            assert_eq!(took(&env, &mut client, &insert).await, Duration::from_millis(186));
        }
        let term = "SELECT max(raft_term) FROM meridian.replicas";
        let before = value(&mut client, term).await;
        env.sleep(Duration::from_mins(1)).await;
        assert_eq!(value(&mut client, term).await, before, "an election was called");
        cluster.shutdown().await;
    });
}

/// What a session on a node, in the node's own tasks, is answered, and when.
fn ask(
    cluster: &Cluster,
    node: u64,
    sql: &'static str,
) -> futures::channel::oneshot::Receiver<(Duration, String)> {
    let (tell, told) = futures::channel::oneshot::channel();
    let env = cluster.env(node).expect("it runs");
    let mut client = session(cluster, node);
    let began = env.moment();
    let clock = Env::clone(&env);
    env.spawn(async move {
        let answer = match client.execute(sql).await {
            Ok(reply) => reply.rows.first().and_then(|row| row[0].clone()).unwrap_or(reply.tag),
            Err(error) => error.to_string(),
        };
        let _ = tell.send((clock.moment().since(began), answer));
    });
    told
}

/// A leader pauses for thirty seconds, the others elect another and go on, it comes back. The hash of
/// all that crossed the network.
fn pause_of_a_leader(seed: u64) -> u64 {
    World::run_virtual(seed, CostModel::default(), |world| async move {
        let cluster = start(world, "us-eu-3", Duration::from_millis(4)).await;
        let env = cluster.env(2).expect("it runs");
        let mut first = session(&cluster, 1);
        first.execute("CREATE TABLE t (k int PRIMARY KEY)").await.expect("created");
        first.execute("INSERT INTO t VALUES (0)").await.expect("a row");
        let mut second = session(&cluster, 2);
        let pause = "SELECT meridian.pause_node(1, pause => '30s')";
        assert_eq!(value(&mut second, pause).await, "t");
        let paused_at = env.moment();
        let hanging = ask(&cluster, 1, "SELECT count(*) FROM t");

        // Its peers need three to six heartbeats of 248 ms to miss it, and an election. A request
        // to the paused one has no answer within 5 s; a read then looks for another leader.
        let mut written = 1;
        while env.moment().since(paused_at) < Duration::from_secs(28) {
            let insert = format!("INSERT INTO t VALUES ({written})");
            match second.execute(&insert).await {
                Ok(_) => written += 1,
                Err(error) => {
                    assert_eq!(error.outcome, meridian_lab::Outcome::Unknown, "{error}");
                    assert_eq!(value(&mut second, "SELECT count(*) FROM t").await, "1");
                }
            }
        }
        assert!(written > 10, "{written} rows");
        let leads = "SELECT leader FROM meridian.tablets WHERE table_name = 'public.t'";
        assert_ne!(value(&mut second, leads).await, "1");
        let applied = "SELECT applied_index FROM meridian.replicas r
                       WHERE node = 1 AND tablet > 1";
        let before = value(&mut second, applied).await;
        env.sleep(Duration::from_millis(500)).await;
        assert_eq!(value(&mut second, applied).await, before, "it went on while it was paused");

        let (after, count) = hanging.await.expect("it goes on");
        assert!(after >= Duration::from_secs(30), "answered after {after:?}");
        assert_eq!(count, written.to_string());
        env.sleep(Duration::from_secs(3)).await;
        let behind = "SELECT max(lag) FROM meridian.replicas WHERE node = 1";
        assert_eq!(value(&mut second, behind).await, "0");
        assert_eq!(value(&mut first, "SELECT count(*) FROM t").await, written.to_string());
        let hash = cluster.network().trace_hash();
        cluster.shutdown().await;
        hash
    })
}

/// Tells the test, in a process of its own, which seed to run.
const SEED: &str = "MERIDIAN_TEST_PAUSE_SEED";

/// Runs when told to by [`SEED`], and prints what identifies the run.
#[test]
fn pause_of_one_seed() {
    let Ok(seed) = std::env::var(SEED) else { return };
    println!("trace {:016x}", pause_of_a_leader(seed.parse().expect("a number")));
}

fn in_a_fresh_process(seed: u64) -> String {
    trace_in_a_fresh_process("faults::pause_of_one_seed", SEED, seed)
}

#[test]
fn a_pause_is_the_same_again_from_the_same_seed() {
    let first = in_a_fresh_process(1);
    assert_eq!(first, in_a_fresh_process(1), "the same seed");
    for seed in 2..5 {
        assert_ne!(first, in_a_fresh_process(seed), "another seed");
    }
}
