//! A node stops, the others go on, it comes back.

use tokio_postgres::error::SqlState;

use meridian_tests::support::{Server, eventually};

async fn count(client: &tokio_postgres::Client) -> Result<i64, tokio_postgres::Error> {
    Ok(client.query_one("SELECT count(*) FROM t", &[]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_serve_and_the_third_catches_up() {
    let server = Server::local().await;
    let client = server.connect(1).await;
    client.batch_execute("CREATE TABLE t (k integer PRIMARY KEY, v text)").await.expect("a table");
    let insert = "INSERT INTO t VALUES ($1, 'v')";
    client.execute(insert, &[&0]).await.expect("a row");
    let at_third = server.connect(3).await;

    client.query("SELECT meridian.stop_node(3)", &[]).await.expect("stopped");
    // Its sessions are gone, and who comes is told.
    eventually("the session ends", async || {
        at_third.simple_query("SELECT 1").await.map_or(Ok(()), |_| Err("it answers"))
    })
    .await;
    let refused = server.try_connect(3).await.map(|_| ()).expect_err("stopped");
    assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
    for k in 1..=50 {
        client.execute(insert, &[&k]).await.expect("two of three are enough");
    }
    let second = server.connect(2).await;
    assert_eq!(count(&second).await.expect("served"), 51);

    client.query("SELECT meridian.start_node(3)", &[]).await.expect("started");
    let third = server.connect(3).await;
    assert_eq!(count(&third).await.expect("served"), 51);
    // Every replica has applied what its leader has.
    eventually("the third catches up", async || {
        let behind = "SELECT count(*) FROM meridian.replicas r JOIN meridian.replicas l
                      ON r.tablet = l.tablet WHERE l.leads AND r.applied_index < l.applied_index";
        let behind: i64 = client.query_one(behind, &[]).await.expect("rows").get(0);
        let of_third = "SELECT count(*) FROM meridian.replicas WHERE node = 3";
        let of_third: i64 = client.query_one(of_third, &[]).await.expect("rows").get(0);
        if behind == 0 && of_third > 0 { Ok(()) } else { Err((behind, of_third)) }
    })
    .await;
    // Now the third is needed for every write, so it has to have what it missed.
    client.query("SELECT meridian.stop_node(2)", &[]).await.expect("stopped");
    client.execute(insert, &[&51]).await.expect("one and three are enough");
    client.query("SELECT meridian.start_node(2)", &[]).await.expect("started");
    // And it can lead what the first led.
    third.query("SELECT meridian.stop_node(1)", &[]).await.expect("stopped");
    let rows = eventually("two and three serve", async || count(&third).await).await;
    assert_eq!(rows, 52);
    eventually("two and three write", async || third.execute(insert, &[&52]).await).await;
    third.query("SELECT meridian.start_node(1)", &[]).await.expect("started");
    let first = server.connect(1).await;
    assert_eq!(eventually("all three serve", async || count(&first).await).await, 53);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_there_can_be_neither_stopped_nor_started() {
    let server = Server::local().await;
    let client = server.connect(1).await;
    for sql in ["SELECT meridian.stop_node(4)", "SELECT meridian.start_node(0)"] {
        let error = client.query(sql, &[]).await.map(|_| ()).expect_err(sql);
        let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
        assert!(error.message().contains("node"), "{error:?}");
    }
    client.query("SELECT 1", &[]).await.expect("nothing happened");
}
