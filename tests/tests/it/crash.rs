//! `kill -9` in the middle of writing, and start again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meridian_truetime::EnvironmentExt;

use meridian_tests::support::{Server, eventually, real_time};

/// How many writers there are, each with rows and a counter of its own.
const WRITERS: u16 = 3;

/// Writes until the server is gone; counts what was acknowledged.
async fn write(client: tokio_postgres::Client, writer: u16, acknowledged: Arc<AtomicU64>) {
    for n in 1_i64.. {
        let key = i64::from(writer) * 1_000_000 + n;
        let insert = client.execute("INSERT INTO log VALUES ($1, $2)", &[&key, &n]).await;
        if insert.is_err() {
            return;
        }
        acknowledged.fetch_add(1, Ordering::SeqCst);
        // An increment that ran twice would show.
        let add = "UPDATE counters SET n = n + 1 WHERE writer = $1";
        if client.execute(add, &[&i32::from(writer)]).await.is_err() {
            return;
        }
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_row_survives_kill_9_and_none_is_there_twice() {
    let mut server = Server::local().await;
    let client = server.connect(1).await;
    client
        .batch_execute(
            "CREATE TABLE log (k bigint PRIMARY KEY, n bigint);
             CREATE TABLE counters (writer integer PRIMARY KEY, n bigint NOT NULL)",
        )
        .await
        .expect("tables");
    let mut counts = Vec::new();
    for writer in 1..=WRITERS {
        let insert = "INSERT INTO counters VALUES ($1, 0)";
        client.execute(insert, &[&i32::from(writer)]).await.expect("a counter");
        let count = Arc::new(AtomicU64::new(0));
        // Each through another node.
        let session = server.connect(writer).await;
        real_time().spawn(write(session, writer, Arc::clone(&count)));
        counts.push(count);
    }
    for round in 1..=2 {
        eventually("some writes are acknowledged", async || {
            let least = counts.iter().map(|count| count.load(Ordering::SeqCst)).min();
            if least >= Some(40) { Ok(()) } else { Err(least) }
        })
        .await;
        server.kill();
        server = server.start_again().await;
        let client = server.connect(round).await;
        for (writer, count) in (1_u16..).zip(&counts) {
            // Acknowledged were, in turn, an insert and an increment; one more may have happened.
            let acknowledged = count.load(Ordering::SeqCst);
            check(&client, writer, acknowledged).await;
        }
        if round == 2 {
            break;
        }
        for (writer, count) in (1_u16..).zip(&counts) {
            start_over(&client, writer).await;
            count.store(0, Ordering::SeqCst);
            real_time().spawn(write(server.connect(writer).await, writer, Arc::clone(count)));
        }
    }
}

async fn check(client: &tokio_postgres::Client, writer: u16, acknowledged: u64) {
    let acknowledged = i64::try_from(acknowledged).expect("few");
    let (inserts, increments) = (acknowledged.div_euclid(2) + acknowledged % 2, acknowledged / 2);
    let first = i64::from(writer) * 1_000_000;
    let rows = "SELECT count(*), count(DISTINCT k), coalesce(max(n), 0) FROM log
                WHERE k > $1 AND k < $1 + 1000000";
    let row = client.query_one(rows, &[&first]).await.expect("rows");
    let (count, distinct, last): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(count, distinct, "writer {writer}: a row is there twice");
    assert_eq!(count, last, "writer {writer}: a row is missing in between");
    let pending = i64::from(acknowledged % 2 == 0);
    assert!(
        (inserts..=inserts + pending).contains(&count),
        "writer {writer}: {count} rows, {inserts} acknowledged"
    );
    let counter = "SELECT n FROM counters WHERE writer = $1";
    let row = client.query_one(counter, &[&i32::from(writer)]).await.expect("a counter");
    let counted: i64 = row.get(0);
    assert!(
        (increments..=increments + 1 - pending).contains(&counted),
        "writer {writer}: counted {counted}, {increments} acknowledged"
    );
}

async fn start_over(client: &tokio_postgres::Client, writer: u16) {
    let first = i64::from(writer) * 1_000_000;
    let delete = "DELETE FROM log WHERE k > $1 AND k < $1 + 1000000";
    client.execute(delete, &[&first]).await.expect("deleted");
    let reset = "UPDATE counters SET n = 0 WHERE writer = $1";
    client.execute(reset, &[&i32::from(writer)]).await.expect("reset");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_version_is_refused() {
    let mut server = Server::local().await;
    server.signal("INT");
    server.ended().await;
    let mut changed = 0;
    change_versions(&server.data(), &mut changed);
    assert!(changed > 0, "no version file was found");
    let data = server.data();
    let port = meridian_tests::support::free_ports(3).to_string();
    let data = data.to_str().expect("UTF-8");
    let options = ["--topology", "local", "--port", &port, "--data-dir", data];
    let (code, _, error) = meridian_tests::support::run_to_end(&options).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("version"), "{error}");
}

fn change_versions(folder: &std::path::Path, changed: &mut usize) {
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            change_versions(&path, changed);
        } else if path.ends_with("format") {
            let text = std::fs::read_to_string(&path).expect("text");
            let digits = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c });
            std::fs::write(&path, digits.collect::<String>()).expect("writable");
            *changed += 1;
        }
    }
}
