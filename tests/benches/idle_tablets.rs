//! What tablets cost while nobody asks for them: three nodes in one process, and a table that is
//! split into more and more tablets.
//!
//!     cargo build --release && cargo bench --workspace --bench idle_tablets
//!
//! The shares are of one core, for the three nodes together.

use std::time::{Duration, Instant};

use meridian_tests::support::{Server, real_time};
use meridian_truetime::EnvironmentExt;

/// How many tablets.
const STEPS: [u32; 5] = [1, 10, 100, 300, 1_000];
/// Sessions that split side by side.
const SESSIONS: u32 = 8;
/// How long an idle cluster is watched, and what it is given before to settle.
const IDLE: Duration = Duration::from_secs(20);
const SETTLE: Duration = Duration::from_secs(10);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let server = Server::start(&["--topology", "local", "--nodes", "3"]).await;
        let client = server.connect(1).await;
        client.batch_execute("CREATE TABLE t (k integer PRIMARY KEY)").await.expect("a table");
        let time = real_time();
        let mut tablets = 1;
        for step in STEPS {
            let begin = now();
            split(&server, tablets..step).await;
            let took = begin.elapsed();
            tablets = step;
            time.sleep(SETTLE).await;
            let before = server.usage();
            time.sleep(IDLE).await;
            let after = server.usage();
            let share = (after.cpu - before.cpu).as_secs_f64() / IDLE.as_secs_f64();
            let begin = now();
            let rows = client.query_one("SELECT count(*) FROM t", &[]).await.expect("counted");
            let count = begin.elapsed();
            assert_eq!(rows.get::<_, i64>(0), 0);
            println!(
                "{step:>6} tablets, split in {:>6.1} s: {:>6.1} % of a core, {:>5} MiB, \
                 count(*) over all {:>5} ms",
                took.as_secs_f64(),
                share * 100.0,
                after.memory >> 20,
                count.as_millis()
            );
        }
    });
}

/// Splits at one key for each of these numbers, neighbours in time far apart in the table.
async fn split(server: &Server, numbers: std::ops::Range<u32>) {
    let mut sessions = Vec::new();
    for session in 0..SESSIONS {
        let client = server.connect(1).await;
        let mut numbers = numbers.clone().filter(move |n| n % SESSIONS == session);
        sessions.push(async move {
            for number in &mut numbers {
                let key = number.reverse_bits() >> 1;
                let sql = format!("SELECT meridian.split('t', {key})");
                client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            }
        });
    }
    futures::future::join_all(sessions).await;
}

#[expect(clippy::disallowed_methods, reason = "measures real time from outside")]
fn now() -> Instant {
    Instant::now()
}
