//! What a client sees of the real binary, without the latency of a topology: statements one at a
//! time, many clients at once, many rows at once; and what a cluster uses while nobody asks it
//! anything.
//!
//!     cargo build --release && cargo bench --workspace --bench front_door
//!
//! The disk decides much of it, so its own figure comes first: a durable append of a small file.
//! Every write waits for one of those on two of three nodes, which share this machine's disk.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use meridian_tests::support::{Server, real_time};
use meridian_truetime::EnvironmentExt;
use tokio_postgres::Client;

/// Statements measured one at a time.
const SINGLE: usize = 2_000;
/// Rows of a bulk INSERT, and how many of them.
const BULK: (i32, i32) = (1_000, 50);
/// Clients at once, and statements of each.
const MANY: (i32, i32) = (32, 200);
/// How long an idle cluster is watched.
const IDLE: Duration = Duration::from_secs(20);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        disk();
        statements().await;
        idle().await;
    });
}

fn disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = File::create(folder.path().join("file")).expect("a file");
    let mut times = Times::default();
    for _ in 0..500 {
        times.take(|| {
            file.write_all(&[7; 256]).expect("written");
            file.sync_data().expect("durable");
        });
    }
    times.print("durable append to a file, 256 bytes");
}

async fn statements() {
    let server = Server::start(&["--topology", "local", "--epsilon", "0ms"]).await;
    let client = server.connect(1).await;
    let create = "CREATE TABLE t (k integer PRIMARY KEY, v integer NOT NULL, s text)";
    client.batch_execute(create).await.expect("a table");
    let insert = client.prepare("INSERT INTO t VALUES ($1, $2, 'some text')").await.expect("plan");
    let select = client.prepare("SELECT v FROM t WHERE k = $1").await.expect("plan");
    let update = client.prepare("UPDATE t SET v = v + 1 WHERE k = $1").await.expect("plan");
    let mut times = Times::default();
    let keys = || 0..i32::try_from(SINGLE).expect("small");
    for key in keys() {
        let begin = now();
        client.execute(&insert, &[&key, &key]).await.expect("inserted");
        times.0.push(begin.elapsed());
    }
    times.print("INSERT of a row, prepared");
    for key in keys() {
        let begin = now();
        let row = client.query_one(&select, &[&key]).await.expect("a row");
        times.0.push(begin.elapsed());
        assert_eq!(row.get::<_, i32>(0), key);
    }
    times.print("SELECT of a row by its key, prepared");
    for key in keys() {
        let sql = format!("SELECT v FROM t WHERE k = {key}");
        let begin = now();
        let answer = client.simple_query(&sql).await.expect("a row");
        times.0.push(begin.elapsed());
        assert_eq!(answer.len(), 3);
    }
    times.print("SELECT of a row by its key, simple protocol");
    for key in keys() {
        let begin = now();
        assert_eq!(client.execute(&update, &[&key]).await.expect("updated"), 1);
        times.0.push(begin.elapsed());
    }
    times.print("UPDATE of a row by its key, prepared");
    at_once(&server, "INSERT INTO t VALUES ($1, $1, 'some text')", "INSERTs").await;
    at_once(&server, "SELECT v FROM t WHERE k = $1", "SELECTs by key").await;
    bulk(&client).await;
    let begin = now();
    let rows = client.query_one("SELECT count(*), sum(v) FROM t", &[]).await.expect("a row");
    let count: i64 = rows.get(0);
    rate(&format!("rows read by SELECT count(*), sum(v) of {count}"), count, begin.elapsed());
}

/// The same statement from many clients.
async fn at_once(server: &Server, sql: &str, what: &str) {
    let (clients, each) = MANY;
    let mut sessions = Vec::new();
    for number in 0..clients {
        let client = server.connect(1).await;
        let statement = client.prepare(sql).await.expect("plan");
        sessions.push((number, client, statement));
    }
    let begin = now();
    let runs = sessions.iter().map(async |(number, client, statement)| {
        for key in 0..each {
            let key = 1_000_000 + number * each + key;
            client.query(statement, &[&key]).await.expect("done");
        }
    });
    futures::future::join_all(runs).await;
    rate(&format!("{what}, {clients} clients at once"), (clients * each).into(), begin.elapsed());
}

async fn bulk(client: &Client) {
    client
        .batch_execute("CREATE TABLE bulk (k integer PRIMARY KEY, v integer, s text)")
        .await
        .expect("a table");
    let (rows, statements) = BULK;
    let begin = now();
    for statement in 0..statements {
        let row = |row| format!("({}, {row}, 'some text')", statement * rows + row);
        let values: Vec<_> = (0..rows).map(row).collect();
        let sql = format!("INSERT INTO bulk VALUES {}", values.join(", "));
        client.batch_execute(&sql).await.expect("inserted");
    }
    let all = i64::from(rows * statements);
    rate(&format!("rows by INSERTs of {rows} rows, one client"), all, begin.elapsed());
}

async fn idle() {
    for options in [&["--topology", "us-eu-3"][..], &["--topology", "world-10", "--nodes", "9"]] {
        let server = Server::start(options).await;
        let time = real_time();
        time.sleep(Duration::from_secs(3)).await;
        let before = server.usage();
        time.sleep(IDLE).await;
        let after = server.usage();
        let share = (after.cpu - before.cpu).as_secs_f64() / IDLE.as_secs_f64();
        let memory = after.memory >> 20;
        println!(
            "{:<52} {:>8.1} % of a core, {memory} MiB",
            format!("idle, {}", options.join(" ")),
            share * 100.0
        );
    }
}

#[expect(clippy::disallowed_methods, reason = "measures real time from outside")]
fn now() -> Instant {
    Instant::now()
}

fn rate(what: &str, count: i64, took: Duration) {
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let rate = count as f64 / took.as_secs_f64();
    println!("{what:<52} {rate:>8.0} per second");
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn take(&mut self, run: impl FnOnce()) {
        let begin = now();
        run();
        self.0.push(begin.elapsed());
    }

    /// Prints what was taken, and forgets it.
    fn print(&mut self, what: &str) {
        self.0.sort_unstable();
        let at = |per_mille: usize| self.0[(self.0.len() - 1) * per_mille / 1_000].as_micros();
        println!("{what:<52} {:>8} µs median, {} µs at 99 %", at(500), at(990));
        self.0.clear();
    }
}
