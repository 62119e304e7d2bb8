//! Latency is at least what the topology says. There are no upper limits here: on a busy machine
//! they would fail, and benchmarks measure them.

use std::time::Duration;

use meridian_truetime::Environment;

use meridian_tests::support::{Server, real_time};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_takes_the_round_trips_that_it_needs() {
    let server = Server::start(&["--topology", "us-eu-3", "--epsilon", "0ms"]).await;
    let east = server.connect(1).await;
    let europe = server.connect(3).await;
    let create = "CREATE TABLE t (k integer PRIMARY KEY, v integer)";
    east.batch_execute(create).await.expect("a table led in us-east");
    // Once each without looking: sessions and caches are warm then.
    east.execute("INSERT INTO t VALUES (1, 0)", &[]).await.expect("a row");
    europe.execute("INSERT INTO t VALUES (2, 0)", &[]).await.expect("a row");
    let env = real_time();
    for (client, first, least) in [(&east, 10, 64), (&europe, 20, 64 + 64)] {
        for k in first..first + 3 {
            let insert = format!("INSERT INTO t VALUES ({k}, 0)");
            let start = env.moment();
            client.execute(&insert, &[]).await.expect("a row");
            let took = env.moment().since(start);
            assert!(took >= Duration::from_millis(least), "{insert} took {took:?} only");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_wait_lasts_twice_the_uncertainty() {
    let server = Server::start(&["--topology", "local", "--epsilon", "30ms"]).await;
    let client = server.connect(1).await;
    let create = "CREATE TABLE t (k integer PRIMARY KEY, v integer)";
    client.batch_execute(create).await.expect("a table");
    client.execute("INSERT INTO t VALUES (1, 0)", &[]).await.expect("a row");
    let env = real_time();
    for k in 10..13 {
        let start = env.moment();
        client.execute("INSERT INTO t VALUES ($1, 0)", &[&k]).await.expect("a row");
        let took = env.moment().since(start);
        assert!(took >= Duration::from_millis(60), "a write took {took:?} only");
    }
}
