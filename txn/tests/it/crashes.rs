//! Nodes crash, with what they had not synced; what was acknowledged stays.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_storage::{NodeId, TabletId};
use meridian_truetime::EnvironmentExt;
use meridian_txn::TxnError;

use crate::checks::settle;
use crate::cluster::{Cluster, Setup, insert, run, run_setup, value};

/// Acknowledged inserts survive the crash of the leader, and the cluster goes on without it.
fn leader_crash(seed: u64) -> (u64, usize) {
    run(seed, "us-eu-3", Duration::from_millis(2), |cluster| async move {
        cluster.create_tablet(1).await;
        let mut outcomes: BTreeMap<u64, Result<(), TxnError>> = BTreeMap::new();
        let gateway = cluster.node(2);
        for k in 0..30 {
            if k == 10 {
                cluster.crash(1, seed).await;
            }
            if k == 20 {
                cluster.restart(1).await;
            }
            outcomes.insert(k, gateway.write(insert(k, "x")).await.map(drop));
        }
        gateway.env().sleep(Duration::from_secs(5)).await;
        for (k, outcome) in &outcomes {
            let found = value(&cluster.node(1), *k).await.expect("the cluster serves");
            match outcome {
                Ok(()) => assert!(found.is_some(), "seed {seed}: lost row {k}"),
                Err(TxnError::Unknown { .. }) => {}
                Err(error) => assert_eq!(found, None, "seed {seed}: {error}, but row {k} is there"),
            }
        }
        let acknowledged = outcomes.values().filter(|outcome| outcome.is_ok()).count();
        (cluster.network.trace_hash(), acknowledged)
    })
}

#[test]
fn acknowledged_writes_survive_the_leader() {
    for seed in 0..20 {
        let (_, acknowledged) = leader_crash(seed);
        assert!(acknowledged >= 28, "seed {seed}: only {acknowledged} of 30 went through");
    }
}

/// Every node crashes at once, in the middle of writes, and all come back.
#[test]
fn acknowledged_writes_survive_the_whole_cluster() {
    for seed in 0..20 {
        run(seed, "us-eu-3", Duration::ZERO, |cluster| async move {
            cluster.create_tablet(2).await;
            let node = cluster.node(2);
            for k in 0..10 {
                node.write(insert(k, "x")).await.expect("inserted");
            }
            let under_way: Vec<_> = (10..20)
                .map(|k| {
                    let node = cluster.node(k % 3 + 1);
                    async move { (k, node.write(insert(k, "x")).await) }
                })
                .collect();
            let under_way = futures::future::join_all(under_way);
            let crash = node.env().sleep(Duration::from_millis(40 + seed * 7));
            let acknowledged = match futures::future::select(Box::pin(under_way), crash).await {
                futures::future::Either::Left((done, _)) => done,
                futures::future::Either::Right(_) => Vec::new(),
            };
            drop(node);
            for number in 1..=3 {
                cluster.crash(number, seed + number).await;
            }
            for number in 1..=3 {
                cluster.restart(number).await;
            }
            let node = cluster.node(1);
            for k in 0..10 {
                let found = value(&node, k).await.expect("the cluster serves");
                assert!(found.is_some(), "seed {seed}: lost row {k}");
            }
            for (k, _) in acknowledged.iter().filter(|(_, outcome)| outcome.is_ok()) {
                let found = value(&node, *k).await.expect("the cluster serves");
                assert!(found.is_some(), "seed {seed}: lost row {k}");
            }
        });
    }
}

/// A node that sleeps through more than the log keeps catches up by a snapshot.
#[test]
fn a_node_that_missed_much_catches_up() {
    run(5, "local", Duration::ZERO, |cluster| async move {
        cluster.create_tablet(1).await;
        cluster.crash(3, 0).await;
        let node = cluster.node(1);
        for batch in 0..300_u64 {
            let writes = (0..40).map(|i| {
                let node = cluster.node(1);
                async move { node.write(insert(batch * 40 + i, "row")).await.expect("inserted") }
            });
            futures::future::join_all(writes).await;
        }
        cluster.restart(3).await;
        node.env().sleep(Duration::from_secs(10)).await;
        let status = |tablets: Vec<meridian_txn::TabletStatus>| {
            let tablet = tablets.into_iter().find(|t| t.descriptor.id.get() == 2).expect("there");
            (tablet.applied_index, tablet.last_write, tablet.size_bytes > 0)
        };
        let behind = status(node.status_of(NodeId::new(3)).await.expect("up"));
        let ahead = status(node.status_of(NodeId::new(1)).await.expect("up"));
        assert_eq!(behind, ahead);
        assert!(behind.0 > 10_000);
        // The two that are left are a majority only if node 3 really has the data.
        cluster.crash(1, 1).await;
        let node = cluster.node(3);
        assert_eq!(value(&node, 11_999).await, Ok(Some("row".into())));
    });
}

/// Bytes sent from one node to another so far.
fn sent(cluster: &Cluster, from: u64, to: u64) -> u64 {
    let links = cluster.network.links();
    let ends = (NodeId::new(from), NodeId::new(to));
    let link = links.iter().find(|link| (link.from, link.to) == ends).expect("a link");
    link.bytes
}

/// A new replica gets its image once, although the link breaks meanwhile.
#[test]
fn an_image_goes_on_where_it_was_interrupted() {
    const ROW: usize = 100_000;
    const ROWS: u64 = 100;
    let setup = Setup { seed: 5, topology: "us-eu-3", nodes: 5, ..Setup::default() };
    run_setup(setup, |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        cluster.network.set_stream_patience(Duration::from_secs(2));
        let value_of = |k: u64| char::from(b'a' + u8::try_from(k % 26).expect("small")).to_string();
        for k in 1..=ROWS {
            node.write(insert(k, &value_of(k).repeat(ROW))).await.expect("inserted");
        }
        let image = ROWS * ROW as u64;
        let before = sent(&cluster, 1, 5);
        let moved = node.move_replica(TabletId::new(2), NodeId::new(3), NodeId::new(5));
        let broken = async {
            while sent(&cluster, 1, 5) < before + image / 2 {
                node.env().sleep(Duration::from_millis(1)).await;
            }
            cluster.network.cut(NodeId::new(1), NodeId::new(5));
            // Long enough for the stream to break on both sides, and for attempts to fail.
            node.env().sleep(Duration::from_secs(6)).await;
            cluster.network.heal();
        };
        let (moved, ()) = futures::join!(moved, broken);
        moved.expect("moved");
        settle(&cluster).await;
        let sent = sent(&cluster, 1, 5) - before;
        // Sent twice is what was on its way when the link broke.
        assert!(sent < image + image / 3, "{sent} bytes for an image of {image}");
        for k in 1..=ROWS {
            let found = value(&cluster.node(5), k).await.expect("read");
            assert_eq!(found, Some(value_of(k).repeat(ROW)), "row {k}");
        }
    });
}
