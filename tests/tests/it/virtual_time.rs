//! The whole database in virtual time: SQL in sessions of this process, the leader crashed in the
//! middle, and the same history again from the same seed.

use std::time::Duration;

use meridian_lab::mixed::{Mixed, Record};
use meridian_lab::{Client, Outcome};
use meridian_server::lab::NodeTime;
use meridian_tests::support::trace_in_a_fresh_process;
use meridian_tests::virtual_cluster::{session, start};
use meridian_truetime::{CostModel, EnvironmentExt, World};

/// Tells the test, in a process of its own, which seed to run.
const SEED: &str = "MERIDIAN_TEST_SEED";

/// Clients at two nodes go on while the third, which leads, crashes and comes back. Everything that
/// was acknowledged is there in the end; the hash of all that crossed the network.
fn story(seed: u64) -> (u64, usize) {
    World::run_virtual(seed, CostModel::default(), |world| async move {
        let cluster = start(world, "us-eu-3", Duration::from_millis(4)).await;
        let workload = Mixed {
            table: "mixed".into(),
            duration: Duration::from_secs(20),
            think: Duration::from_millis(200),
            read_percent: 40,
        };
        let mut first = session(&cluster, 1);
        first.execute(&workload.schema()).await.expect("created");
        drop(first);

        let runs = (1..=4).map(|number| {
            let node = 2 + u64::try_from(number % 2).expect("small");
            let mut client = session(&cluster, node);
            let time = NodeTime(cluster.env(node).expect("it runs"));
            let workload = workload.clone();
            async move { workload.run(number, &mut client, &time).await }
        });
        let trouble = async {
            let env = cluster.env(2).expect("it runs");
            env.sleep(Duration::from_secs(6)).await;
            cluster.crash_node(1, seed).await.expect("crashes");
            env.sleep(Duration::from_secs(6)).await;
            cluster.start_node(1).await.expect("starts");
        };
        let (records, ()) = futures::join!(futures::future::join_all(runs), trouble);
        let mut record = Record::new();
        records.into_iter().for_each(|other| record.merge(other));
        assert!(record.inserted.len() > 30, "only {} inserts", record.inserted.len());
        let failed: Vec<_> =
            record.errors.iter().filter(|error| error.outcome == Outcome::Failed).collect();
        assert!(failed.is_empty(), "{failed:?}");

        cluster.env(2).expect("it runs").sleep(Duration::from_secs(5)).await;
        let mut last = session(&cluster, 1);
        let rows = last.execute("SELECT k FROM mixed").await.expect("read").rows;
        let mut found: Vec<i64> = rows
            .into_iter()
            .map(|row| row[0].as_deref().expect("not null").parse().expect("a number"))
            .collect();
        found.sort_unstable();
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "a row is there twice");
        for key in &record.inserted {
            assert!(found.binary_search(key).is_ok(), "seed {seed}: lost row {key}");
        }
        for key in &found {
            let known = record.inserted.contains(key) || record.unknown.contains(key);
            assert!(known, "seed {seed}: row {key} was refused, but is there");
        }
        (cluster.network().trace_hash(), found.len())
    })
}

/// Runs the story when told to by [`SEED`], and prints what identifies the run.
#[test]
fn story_of_one_seed() {
    let Ok(seed) = std::env::var(SEED) else { return };
    let (hash, rows) = story(seed.parse().expect("a number"));
    println!("trace {hash:016x} rows {rows}");
}

fn in_a_fresh_process(seed: u64) -> String {
    trace_in_a_fresh_process("virtual_time::story_of_one_seed", SEED, seed)
}

#[test]
fn the_same_seed_gives_the_same_history_and_another_seed_another() {
    let first = in_a_fresh_process(1);
    assert_eq!(first, in_a_fresh_process(1), "the same seed");
    assert_ne!(first, in_a_fresh_process(2), "another seed");
}

#[test]
fn acknowledged_rows_survive_the_crash_of_the_leader() {
    for seed in 10..14 {
        in_a_fresh_process(seed);
    }
}
