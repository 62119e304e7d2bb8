//! Everything at once, in SQL and drawn from a seed: tablets are split, merged, moved, placed and
//! handed over, nodes stop, crash and pause, links break and slow down, clocks err, tables come and
//! go, while clients at all nodes write, read and join.
//!
//! Each key has one writer, so what a read may find is known (`model`). What a client may be told
//! is known too: that it should try again, or that nobody knows; anything else is a failure. Others
//! move money between accounts in several tablets (`bank`). In the end, once all is healed, every acknowledged write is there, the replicas are equal, and the
//! directory is what the tablets say.

mod bank;
mod clients;
mod model;
mod nemesis;
mod session;
mod tables;

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, join_all};
use meridian_replication::net::Topology;
use meridian_server::cluster::Cluster;
use meridian_tests::virtual_cluster::start_nodes;
use meridian_truetime::{CostModel, Env, World, seeds};
use meridian_txn::rest;

use clients::{Done, read, read_all, write};
use model::Model;
use nemesis::Nemesis;
use session::Sessions;

const NODES: u64 = 5;
const WRITERS: i64 = 3;
const READERS: u64 = 2;
const MOVERS: i64 = 2;

/// How long clients and nemesis go on.
const LASTS: Duration = Duration::from_secs(25);

/// How long a cluster whose nodes all run and hear each other may take to come to rest.
const REST: Duration = Duration::from_secs(120);

const SCHEMA: [&str; 3] = [
    "CREATE TABLE parent (p int PRIMARY KEY, v bigint NOT NULL, n bigint NOT NULL)",
    "CREATE TABLE child (p int, c int, v bigint NOT NULL, n bigint NOT NULL, PRIMARY KEY (p, c))
        INTERLEAVE IN PARENT parent",
    "CREATE TABLE lone (k int PRIMARY KEY, v bigint NOT NULL, n bigint NOT NULL)",
];

/// What everybody who takes part has.
struct Stage {
    cluster: Arc<Cluster>,
    model: Model,
    done: Done,
    bank: bank::Bank,
}

/// Runs one seed; what it came to.
fn history(seed: u64) -> String {
    meridian_tests::support::log_if_asked();
    World::run_virtual(seed, CostModel::default(), |world| async move {
        let topology = Topology::load("us-eu-3").expect("shipped");
        let nodes = usize::try_from(NODES).expect("small");
        let epsilon = Duration::from_millis(seed % 8);
        let cluster = start_nodes(world.clone(), topology, nodes, epsilon).await;
        let (model, done, bank) = Default::default();
        let stage = Arc::new(Stage { cluster, model, done, bank });
        let env = |label: u64| -> Env { world.node(u64::MAX / 2 + label) };
        let mut first = Sessions::new(Arc::clone(&stage.cluster), env(0));
        for sql in SCHEMA.into_iter().chain(bank::SCHEMA) {
            first.run(sql).await.expect("created");
        }
        // An open session would keep its node's disk in use.
        drop(first);

        let until = env(0).moment().plus(LASTS);
        let mut running: Vec<BoxFuture<'static, ()>> = Vec::new();
        for writer in 0..WRITERS {
            let env = env(1 + writer.unsigned_abs());
            running.push(write(Arc::clone(&stage), env, writer, until).boxed());
        }
        for reader in 0..READERS {
            running.push(read(Arc::clone(&stage), env(100 + reader), until).boxed());
        }
        for mover in 0..MOVERS {
            let env = env(500 + mover.unsigned_abs());
            running.push(bank::transfer(Arc::clone(&stage), env, mover, until).boxed());
        }
        running.push(bank::audit(Arc::clone(&stage), env(600), until).boxed());
        let nemesis = Arc::new(Nemesis::new(Arc::clone(&stage.cluster), env(200), seed));
        running.push(Arc::clone(&nemesis).run(until).boxed());
        let tables = tables::Tables::new(Arc::clone(&stage.cluster), env(300));
        let (tables, _) = futures::join!(tables.come_and_go(until), join_all(running));

        nemesis.heal().await;
        let nodes: Vec<_> = (1..=NODES).filter_map(|n| stage.cluster.node(n)).collect();
        assert_eq!(nodes.len() as u64, NODES, "all nodes run");
        if let Err(why) = rest::settle(&nodes, REST).await {
            panic!("no rest: {why}");
        }
        for node in 1..=NODES {
            let mut session = Sessions::at(Arc::clone(&stage.cluster), env(400 + node), node);
            read_all(&stage, &mut session).await;
            bank::check(&stage, &mut session).await;
            tables.check(&mut session).await;
        }
        let nemesis = nemesis.summary();
        let trace = stage.cluster.network().trace_hash();
        let transfers = stage.bank.committed();
        format!("{}, {transfers} transfers, {nemesis}, trace {trace:016x}", stage.done)
    })
}

#[test]
fn sql_under_faults_is_right_and_nothing_is_lost() {
    seeds::run("chaos::sql_under_faults_is_right_and_nothing_is_lost", 0..4, history);
}
