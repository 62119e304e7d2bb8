//! Real clusters: every node a process of its own, killed and started again.

use std::time::Duration;

use meridian_tests::support::{Processes, eventually, real_time, run_to_end};
use meridian_truetime::Environment;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// Rows that were inserted through some node, of which none may be lost and none doubled.
#[derive(Default)]
struct Rows {
    next: i64,
    acknowledged: Vec<i64>,
}

impl Rows {
    /// Inserts until so many more rows are acknowledged. What failed while nodes were dying may be
    /// there or not.
    async fn insert(&mut self, client: &Client, count: usize) {
        let goal = self.acknowledged.len() + count;
        eventually("rows are acknowledged", async || {
            while self.acknowledged.len() < goal {
                self.next += 1;
                client.execute("INSERT INTO t VALUES ($1, 'v')", &[&self.next]).await?;
                self.acknowledged.push(self.next);
            }
            Ok::<_, tokio_postgres::Error>(())
        })
        .await;
    }

    async fn check(&self, client: &Client) {
        let rows =
            eventually("the rows", async || client.query("SELECT k FROM t ORDER BY k", &[]).await)
                .await;
        let found: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "a row is there twice: {found:?}");
        for k in &self.acknowledged {
            assert!(found.binary_search(k).is_ok(), "row {k} is lost");
        }
    }
}

async fn create_table(client: &Client) {
    client.batch_execute("CREATE TABLE t (k bigint PRIMARY KEY, v text)").await.expect("a table");
}

/// Waits until so many replicas of each tablet have applied what its leader has.
async fn caught_up(client: &Client, replicas: i64) {
    eventually("all replicas catch up", async || {
        let level = "SELECT count(*) FROM meridian.replicas r JOIN meridian.replicas l
                     ON r.tablet = l.tablet WHERE l.leads AND r.applied_index >= l.applied_index";
        let tablets = "SELECT count(*) FROM meridian.tablets";
        let mut counts = Vec::new();
        for sql in [level, tablets] {
            let row = client.query_one(sql, &[]).await.map_err(|error| error.to_string())?;
            counts.push(row.get::<_, i64>(0));
        }
        if counts[0] == replicas * counts[1] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_survive_kill_9_of_one_and_of_all() {
    let mut cluster = Processes::start(3).await;
    let mut rows = Rows::default();
    let first = cluster.connect(1).await;
    create_table(&first).await;
    rows.insert(&first, 10).await;
    let second = cluster.connect(2).await;
    rows.check(&second).await;
    views_show_it(&second).await;
    status_shows_it(&cluster).await;

    cluster.kill(1);
    rows.insert(&second, 20).await;
    // The views don't wait for the dead.
    let begun = real_time().moment();
    let states = "SELECT state FROM meridian.nodes ORDER BY node";
    let states = second.query(states, &[]).await.expect("nodes");
    let states: Vec<String> = states.iter().map(|row| row.get(0)).collect();
    assert_eq!(states, ["unreachable", "running", "running"]);
    assert!(real_time().moment().since(begun) < Duration::from_secs(10));

    cluster.spawn(1);
    cluster.up(1).await;
    caught_up(&second, 3).await;
    let first = cluster.connect(1).await;
    rows.check(&first).await;
    rows.insert(&first, 5).await;

    for node in 1..=3 {
        cluster.kill(node);
    }
    for node in 1..=3 {
        cluster.spawn(node);
    }
    cluster.up(3).await;
    let third = cluster.connect(3).await;
    rows.check(&third).await;
    rows.insert(&third, 5).await;
    for node in 1..=3 {
        cluster.up(node).await;
        assert_eq!(cluster.stop(node).await, Some(0), "{}", cluster.stderr(node));
    }
}

async fn views_show_it(client: &Client) {
    let links = "SELECT count(*), count(*) FILTER (WHERE state = 'up' AND rtt_ms > 0
                 AND messages > 0 AND bytes > 0) FROM meridian.links";
    let row = client.query_one(links, &[]).await.expect("links");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (6, 6));
    let clocks = "SELECT count(*) FROM meridian.clocks WHERE epsilon_ms > 0.9 AND epsilon_ms < 1.1";
    assert_eq!(client.query_one(clocks, &[]).await.expect("clocks").get::<_, i64>(0), 3);
    for function in ["stop_node", "start_node"] {
        let call = format!("SELECT meridian.{function}(3)");
        let error = client.query(&call, &[]).await.map(|_| ()).expect_err("refused");
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED), "{error:?}");
        assert!(error.as_db_error().expect("the server's").hint().is_some());
    }
}

async fn status_shows_it(cluster: &Processes) {
    let address = format!("127.0.0.1:{}", cluster.sql_port(3));
    let (code, out, error) = run_to_end(&["status", "--connect", &address, "--json"]).await;
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let status: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let nodes = status["nodes"].as_array().expect("nodes");
    let regions: Vec<_> = nodes.iter().filter_map(|node| node["region"].as_str()).collect();
    assert_eq!(regions, ["r1", "r2", "r3"]);
    assert!(nodes.iter().all(|node| node["state"] == "running"), "{out}");
    let tablets = status["tablets"].as_array().expect("tablets");
    let user = tablets.iter().find(|tablet| tablet["table"] == "public.t").expect("the table's");
    assert_eq!(user["replicas"].as_array().map(Vec::len), Some(3), "{out}");
    assert!(user["leader"].is_number(), "{out}");

    let (code, out, _) = run_to_end(&["status", "--connect", &address]).await;
    assert_eq!(code, Some(0));
    assert!(out.contains("public.t") && out.contains("running"), "{out}");
    let (code, out, error) = run_to_end(&["status", "--connect", "127.0.0.1:1"]).await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("127.0.0.1:1 can't be reached") && error.contains("hint"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_processes_go_on_without_any_two() {
    let mut cluster = Processes::start(5).await;
    let mut rows = Rows::default();
    let client = cluster.connect(1).await;
    create_table(&client).await;
    rows.insert(&client, 5).await;
    // The leader of everything among the first, its likely successors among the others.
    for (victims, witness) in [([1, 4], 5), ([2, 3], 1)] {
        for victim in victims {
            cluster.kill(victim);
        }
        let client = cluster.connect(witness).await;
        rows.insert(&client, 10).await;
        rows.check(&client).await;
        for victim in victims {
            cluster.spawn(victim);
        }
        for victim in victims {
            cluster.up(victim).await;
        }
        caught_up(&client, 5).await;
    }
}

/// Starts a process with this configuration, which must end by itself; what it says.
async fn refused(cluster: &Processes, name: &str, config: &str) -> String {
    let path = cluster.write(&format!("{name}.toml"), config);
    let (code, out, error) =
        run_to_end(&["start", "--config", path.to_str().expect("UTF-8")]).await;
    assert_eq!(code, Some(1), "{name}: {out}{error}");
    assert!(!out.contains("is running") && !error.contains("panicked"), "{name}: {out}{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_who_it_claims_to_be_is_refused() {
    let mut cluster = Processes::start(3).await;
    let client = cluster.connect(1).await;
    create_table(&client).await;

    // A second process with the number of a node that runs, on another disk and on the same.
    let error = refused(&cluster, "impostor", &cluster.config_beside(2, "elsewhere")).await;
    assert!(error.contains("must not run as node 2") && error.contains("new id"), "{error}");
    let error = refused(&cluster, "twin", &cluster.config_beside(2, "data2")).await;
    assert!(error.contains("in use"), "{error}");
    // It did no harm.
    client.execute("INSERT INTO t VALUES (1, 'v')", &[]).await.expect("served");

    // A node of another cluster; one that finds another node than it expects.
    let other = cluster.config_beside(2, "other").replace("\"test\"", "\"other\"");
    let error = refused(&cluster, "other", &other).await;
    assert!(error.contains("belongs to cluster test, not to other"), "{error}");
    cluster.list(4);
    let swapped = cluster.config_beside(4, "swapped").replace("id = 1\n", "id = 9\n");
    cluster.list(3);
    let error = refused(&cluster, "swapped", &swapped).await;
    assert!(error.contains("node 1 is at this address, not node 9"), "{error}");

    // A node that comes back without its disk, then with another's, then with its own.
    cluster.kill(2);
    let whole = cluster.data(2);
    let away = whole.with_extension("away");
    std::fs::rename(&whole, &away).expect("moved");
    let error = refused(&cluster, "wiped", &cluster.config(2)).await;
    assert!(error.contains("must not run as node 2") && error.contains("new id"), "{error}");
    let third = cluster.config_beside(3, "data2.away");
    let error = refused(&cluster, "third", &third).await;
    assert!(error.contains("belongs to node 2 of cluster test, not to node 3"), "{error}");
    std::fs::remove_dir_all(&whole).expect("the wiped one's");
    std::fs::rename(&away, &whole).expect("moved back");
    cluster.spawn(2);
    cluster.up(2).await;
    caught_up(&client, 3).await;

    // One that lost its disk while nobody was there to tell: it waits, and then it is told.
    for node in 1..=3 {
        cluster.kill(node);
    }
    std::fs::remove_dir_all(&whole).expect("its folder");
    cluster.spawn(2);
    cluster.spawn(1);
    assert_eq!(cluster.ended(2).await, Some(1), "{}", cluster.stderr(2));
    assert!(cluster.stderr(2).contains("must not run as node 2"), "{}", cluster.stderr(2));
    cluster.spawn(3);
    cluster.up(3).await;
    let third = cluster.connect(3).await;
    let count = eventually("two of three serve", async || {
        third.query_one("SELECT count(*) FROM t", &[]).await
    });
    assert_eq!(count.await.get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node.toml");
    let config = |first: &str, second: &str| {
        format!(
            "cluster = \"x\"\nnode = 1\ndata_dir = \"data\"\n\
             [[nodes]]\nid = 1\nregion = \"a\"\naddress = \"{first}\"\n\
             [[nodes]]\nid = 2\nregion = \"b\"\naddress = \"{second}\"\n"
        )
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").to_string();
    let twice = config("127.0.0.1:7433", "127.0.0.1:7433");
    let busy = format!("sql = \"127.0.0.1:1\"\n{}", config(&taken, "127.0.0.1:7434"));
    for (text, part) in [
        (twice, "line 11: address 127.0.0.1:7433 is used twice, first in line 7"),
        (busy, "can't listen at 127.0.0.1:"),
    ] {
        std::fs::write(&path, text).expect("written");
        let (code, out, error) =
            run_to_end(&["start", "--config", path.to_str().expect("UTF-8")]).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{error}");
        assert!(error.contains(part), "{error}");
        assert!(!folder.path().join("data").exists(), "nothing is written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_by_a_longer_list() {
    let mut cluster = Processes::start(3).await;
    let client = cluster.connect(1).await;
    create_table(&client).await;
    let mut rows = Rows::default();
    rows.insert(&client, 5).await;
    // With five in the list, five would be the first voters of a new cluster.
    cluster.list(5);
    for node in 1..=3 {
        assert_eq!(cluster.stop(node).await, Some(0));
        cluster.spawn(node);
        cluster.up(node).await;
    }
    for node in [4, 5] {
        cluster.spawn(node);
    }
    for node in [4, 5] {
        cluster.up(node).await;
        let client = cluster.connect(node).await;
        rows.insert(&client, 5).await;
        rows.check(&client).await;
    }
    let fourth = cluster.connect(4).await;
    fourth.batch_execute("CREATE TABLE u (k bigint PRIMARY KEY)").await.expect("a table");
    fourth.execute("INSERT INTO u VALUES (1)", &[]).await.expect("a row");
    let voters = "SELECT replicas FROM meridian.tablets ORDER BY tablet LIMIT 1";
    let row = fourth.query_one(voters, &[]).await.expect("the system tablet");
    assert_eq!(row.get::<_, String>(0), "{1,2,3}");
    let led = "SELECT count(*) FROM meridian.tablets WHERE leader = 4 AND table_name = 'public.u'";
    assert_eq!(fourth.query_one(led, &[]).await.expect("its own").get::<_, i64>(0), 1);
}
