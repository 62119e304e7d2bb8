//! How fast virtual time runs: 60 simulated seconds of a mild load on three regions.
//!
//!     cargo bench --workspace --bench virtual_time

use std::time::{Duration, Instant};

use meridian_lab::Client;
use meridian_lab::mixed::{Mixed, Record};
use meridian_server::lab::NodeTime;
use meridian_tests::virtual_cluster::{session, start};
use meridian_truetime::{CostModel, World};

#[expect(clippy::disallowed_methods, reason = "measures real time from outside")]
fn main() {
    let workload = Mixed {
        table: "mixed".into(),
        duration: Duration::from_secs(60),
        think: Duration::from_millis(100),
        read_percent: 50,
    };
    let began = Instant::now();
    let (record, hash) = World::run_virtual(1, CostModel::default(), |world| async move {
        let cluster = start(world, "us-eu-3", Duration::from_millis(4)).await;
        let mut first = session(&cluster, 1);
        first.execute(&workload.schema()).await.expect("created");
        let runs = (1..=9).map(|number| {
            let node = u64::try_from(number % 3 + 1).expect("small");
            let mut client = session(&cluster, node);
            let time = NodeTime(cluster.env(node).expect("it runs"));
            let workload = workload.clone();
            async move { workload.run(number, &mut client, &time).await }
        });
        let mut record = Record::new();
        for other in futures::future::join_all(runs).await {
            record.merge(other);
        }
        (record, cluster.network().trace_hash())
    });
    let took = began.elapsed();
    println!("60 virtual seconds took {:.2} real ones", took.as_secs_f64());
    println!(
        "reads {} (median {} µs), writes {} (median {} µs), errors {}, trace {hash:016x}",
        record.reads.len(),
        record.reads.value_at_quantile(0.5),
        record.writes.len(),
        record.writes.value_at_quantile(0.5),
        record.errors.len(),
    );
}
