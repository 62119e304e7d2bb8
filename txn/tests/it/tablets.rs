//! Tablets split and move, and nobody notices but those who look: the races, one by one.

use std::sync::Arc;
use std::time::Duration;

use meridian_storage::{NodeId, TabletId};
use meridian_truetime::EnvironmentExt;
use meridian_txn::{Node, PlacementChange, TxnError, table_range};

use crate::checks::settle;
use crate::cluster::{Cluster, Setup, key, run_setup};
use crate::kv::{put, scan};

fn on(nodes: u64, seed: u64) -> Setup {
    let epsilon = Duration::from_millis(2);
    Setup { seed, topology: "us-eu-3", nodes, epsilon, ..Setup::default() }
}

async fn filled(cluster: &Cluster, leader: u64) -> Arc<Node> {
    cluster.create_tablet(leader).await;
    let node = cluster.node(leader);
    for k in 0..20 {
        put(&node, k, k).await.expect("written");
    }
    node
}

async fn expect_all(node: &Node, value: impl Fn(u64) -> u64) {
    let found = scan(node).await.expect("scanned");
    let wanted: Vec<(u64, u64)> = (0..20).map(|k| (k, value(k))).collect();
    assert_eq!(found, wanted);
}

#[test]
fn a_request_that_an_old_directory_routes_finds_its_tablet() {
    run_setup(on(3, 1), |cluster| async move {
        let node = filled(&cluster, 1).await;
        // Node 3 knows one tablet.
        let old = cluster.node(3);
        expect_all(&old, |k| k).await;
        assert_eq!(old.tablets(&table_range(100)).await.expect("known").len(), 1);
        let right = node.split(key(10)).await.expect("split");
        assert_ne!(right, TabletId::new(2));
        put(&old, 15, 115).await.expect("routed to the new tablet");
        put(&old, 5, 105).await.expect("to the old one");
        let changed = |k| if k == 5 || k == 15 { 100 + k } else { k };
        expect_all(&old, changed).await;
        expect_all(&cluster.node(2), changed).await;
        assert_eq!(old.tablets(&table_range(100)).await.expect("known").len(), 2);
        assert_eq!(node.split(key(10)).await, Ok(right), "it begins there already");
        settle(&cluster).await;
    });
}

#[test]
fn a_split_where_no_directory_begins_changes_nothing() {
    run_setup(on(3, 1), |cluster| async move {
        let node = filled(&cluster, 1).await;
        let inside = [key(10), vec![0x81, 1]].concat();
        for bad in [inside, Vec::new()] {
            let refused = node.split(bad.clone()).await;
            assert!(matches!(refused, Err(TxnError::Refused { .. })), "{bad:?}: {refused:?}");
        }
        let nowhere = node.split(vec![0xff]).await;
        assert!(matches!(nowhere, Err(TxnError::NoSuchTablet { .. })), "{nowhere:?}");
        assert_eq!(node.tablets(&table_range(100)).await.expect("known").len(), 1);
        expect_all(&node, |k| k).await;
    });
}

#[test]
fn two_splits_at_once_both_happen() {
    run_setup(on(3, 1), |cluster| async move {
        filled(&cluster, 1).await;
        let nodes = [cluster.node(1), cluster.node(2), cluster.node(3)];
        let splits = [(0, 5), (1, 10), (2, 10), (0, 15), (1, 3)];
        let splits = splits.map(|(node, at)| nodes[node].split(key(at)));
        let done: Vec<TabletId> = futures::future::join_all(splits)
            .await
            .into_iter()
            .map(|split| split.expect("split"))
            .collect();
        assert_eq!(done[1], done[2], "both asked for the same tablet");
        settle(&cluster).await;
        assert_eq!(nodes[0].tablets(&table_range(100)).await.expect("known").len(), 5);
        expect_all(&nodes[2], |k| k).await;
    });
}

#[test]
fn a_replica_that_slept_through_splits_takes_part_again() {
    for log_keep in [None, Some(10)] {
        let setup = Setup { log_keep, ..on(3, 3) };
        run_setup(setup, |cluster| async move {
            let node = filled(&cluster, 1).await;
            cluster.stop(3).await;
            node.split(key(10)).await.expect("split");
            for round in 0..3 {
                for k in 0..20 {
                    put(&node, k, round * 100 + k).await.expect("two of three");
                }
            }
            node.split(key(15)).await.expect("split");
            cluster.restart(3).await;
            settle(&cluster).await;
            expect_all(&cluster.node(3), |k| 200 + k).await;
        });
    }
}

#[test]
fn a_crash_between_a_splits_apply_and_its_durability_loses_nothing() {
    for seed in 0..10 {
        run_setup(on(3, seed), |cluster| async move {
            let node = filled(&cluster, 1).await;
            let split = node.split(key(10));
            let crash = node.env().sleep(Duration::from_millis(100 + seed * 20));
            drop(futures::future::select(Box::pin(split), crash).await);
            for number in 1..=3 {
                cluster.crash(number, seed + number).await;
            }
            drop(node);
            for number in 1..=3 {
                cluster.restart(number).await;
            }
            settle(&cluster).await;
            expect_all(&cluster.node(2), |k| k).await;
            put(&cluster.node(2), 12, 112).await.expect("it serves");
            settle(&cluster).await;
        });
    }
}

#[test]
fn a_replica_moves_while_its_tablet_is_split_and_written_to() {
    run_setup(on(5, 4), |cluster| async move {
        let node = filled(&cluster, 1).await;
        let tablet = TabletId::new(2);
        let moving = node.move_replica(tablet, NodeId::new(3), NodeId::new(5));
        let splitting = async {
            node.env().sleep(Duration::from_millis(150)).await;
            cluster.node(2).split(key(10)).await
        };
        let writing = async {
            for k in 0..20 {
                put(&cluster.node(4), k, 100 + k).await.expect("it serves meanwhile");
            }
        };
        let (moved, split, ()) = futures::join!(moving, splitting, writing);
        moved.expect("moved");
        split.expect("split");
        settle(&cluster).await;
        expect_all(&node, |k| 100 + k).await;
        for descriptor in &node.tablets(&table_range(100)).await.expect("known") {
            assert!(descriptor.voters.contains(&NodeId::new(5)), "{descriptor:?}");
            assert!(!descriptor.voters.contains(&NodeId::new(3)), "{descriptor:?}");
        }
    });
}

#[test]
fn a_move_survives_the_crash_of_the_leader_that_drives_it() {
    for seed in 0..6 {
        run_setup(on(5, seed), |cluster| async move {
            filled(&cluster, 1).await;
            let gateway = cluster.node(2);
            let tablet = TabletId::new(2);
            // The leader itself is to go.
            let moving = gateway.move_replica(tablet, NodeId::new(1), NodeId::new(4));
            let crash = async {
                gateway.env().sleep(Duration::from_millis(250 + seed * 80)).await;
                cluster.crash(1, seed).await;
                gateway.env().sleep(Duration::from_secs(3)).await;
                cluster.restart(1).await;
            };
            let (moved, ()) = futures::join!(moving, crash);
            // The request may have died with the leader; then it is made again.
            if moved.is_err() {
                let again = gateway.move_replica(tablet, NodeId::new(1), NodeId::new(4)).await;
                again.unwrap_or_else(|error| panic!("seed {seed}: {error} after {moved:?}"));
            }
            settle(&cluster).await;
            expect_all(&gateway, |k| k).await;
            let descriptor = &gateway.tablets(&table_range(100)).await.expect("known")[0];
            assert!(!descriptor.voters.contains(&NodeId::new(1)), "{descriptor:?}");
        });
    }
}

#[test]
fn leadership_goes_where_it_is_asked_to_and_returns_when_it_can() {
    run_setup(on(3, 5), |cluster| async move {
        let node = filled(&cluster, 1).await;
        let tablet = TabletId::new(2);
        node.transfer_leader(tablet, NodeId::new(3)).await.expect("transferred");
        put(&cluster.node(3), 1, 101).await.expect("finds the leader");
        let (took, _) = cluster.time(put(&cluster.node(3), 1, 101)).await;
        assert!(took < Duration::from_millis(100), "led from node 3, a write there took {took:?}");
        cluster.stop(3).await;
        put(&node, 2, 102).await.expect("another leads");
        cluster.restart(3).await;
        settle(&cluster).await;
        node.env().sleep(Duration::from_secs(10)).await;
        assert_eq!(cluster.leader(tablet), Some(NodeId::new(3)), "it is back");
        let nowhere = node.transfer_leader(tablet, NodeId::new(9)).await;
        assert!(matches!(nowhere, Err(TxnError::Refused { .. })), "{nowhere:?}");
    });
}

#[test]
fn a_range_is_placed_and_the_rest_stays() {
    run_setup(on(6, 6), |cluster| async move {
        let node = filled(&cluster, 1).await;
        let mut range = table_range(100);
        range.start = key(10);
        let change = PlacementChange {
            leader_region: Some(Some("eu-west".to_owned())),
            read_only: Some(vec!["us-west".to_owned()]),
            regions: Some(vec!["eu-west".to_owned(), "us-east".to_owned()]),
            ..PlacementChange::default()
        };
        let placed = node.place(&range, change).await.expect("placed");
        assert_eq!(placed.len(), 1);
        settle(&cluster).await;
        node.env().sleep(Duration::from_secs(10)).await;
        let all = node.tablets(&table_range(100)).await.expect("known");
        assert_eq!(all.len(), 2);
        let region = |id: &NodeId| (id.get() - 1) % 3;
        let leader = cluster.leader(placed[0]).expect("led");
        assert_eq!(region(&leader), 2, "{:?}", all[1]);
        assert!(all[1].voters.iter().all(|id| region(id) != 1), "{:?}", all[1]);
        assert_eq!(all[1].read_only.len(), 1);
        assert_eq!(cluster.leader(TabletId::new(2)), Some(NodeId::new(1)));
        expect_all(&node, |k| k).await;

        for bad in [
            PlacementChange { voters: Some(7), ..PlacementChange::default() },
            PlacementChange {
                regions: Some(vec!["atlantis".to_owned()]),
                ..PlacementChange::default()
            },
        ] {
            let refused = node.place(&table_range(100), bad).await;
            assert!(matches!(refused, Err(TxnError::Refused { .. })), "{refused:?}");
        }
        assert_eq!(node.tablets(&table_range(100)).await.expect("known"), all);
    });
}

#[test]
fn two_tablets_of_different_leaders_become_one_again() {
    run_setup(on(5, 7), |cluster| async move {
        let node = filled(&cluster, 1).await;
        let right = node.split(key(10)).await.expect("split");
        node.move_replica(right, NodeId::new(2), NodeId::new(5)).await.expect("moved");
        node.transfer_leader(right, NodeId::new(3)).await.expect("transferred");
        let before = node.clock().now();
        let writing = async {
            let mut longest = Duration::ZERO;
            for k in 0..20 {
                let (took, written) = cluster.time(put(&cluster.node(4), k, 100 + k)).await;
                written.expect("it serves, after the merge if not before");
                longest = longest.max(took);
            }
            longest
        };
        let gateway = cluster.node(2);
        let (merged, _) = futures::join!(gateway.merge(TabletId::new(2)), writing);
        assert_eq!(merged, Ok(TabletId::new(2)));
        expect_all(&node, |k| 100 + k).await;
        settle(&cluster).await;
        let all = node.tablets(&table_range(100)).await.expect("known");
        assert_eq!(all.len(), 1);
        assert!(!cluster.replicas().contains_key(&right), "nothing is left of it");
        // Timestamps go on above those of both.
        let after = put(&node, 1, 200).await.expect("written");
        assert!(after > before.latest);
        let last = node.merge(TabletId::new(2)).await;
        assert!(matches!(last, Err(TxnError::Refused { .. })), "{last:?}");
        let again = node.split(key(10)).await.expect("split again");
        assert!(again > right, "an id is never used twice");
        settle(&cluster).await;
    });
}

#[test]
fn a_merge_takes_one_neighbour_and_no_more() {
    for seed in 0..12 {
        // Led nearby or far away: who enters what first depends on it.
        let leader = seed % 3 + 1;
        run_setup(on(3, seed), |cluster| async move {
            let node = filled(&cluster, leader).await;
            let mut left = TabletId::new(2);
            for k in [4, 8, 12, 16] {
                node.split(key(k)).await.expect("split");
            }
            settle(&cluster).await;
            for tablets in (2..5).rev() {
                let gateway = cluster.node(tablets % 3 + 1);
                assert_eq!(gateway.merge(left).await, Ok(left));
                settle(&cluster).await;
                let all = node.tablets(&table_range(100)).await.expect("known");
                assert_eq!(all.len() as u64, tablets, "seed {seed}: {all:?}");
                left = all[usize::try_from(seed % (tablets - 1)).expect("small")].id;
            }
            expect_all(&node, |k| k).await;
        });
    }
}

#[test]
fn a_replica_that_slept_through_a_merge_takes_part_again() {
    for log_keep in [None, Some(10)] {
        for sleeper in [2, 3] {
            let setup = Setup { log_keep, ..on(3, 8) };
            run_setup(setup, |cluster| async move {
                let node = filled(&cluster, 1).await;
                node.split(key(10)).await.expect("split");
                node.split(key(15)).await.expect("split");
                cluster.stop(sleeper).await;
                node.split(key(5)).await.expect("split");
                node.merge(TabletId::new(2)).await.expect("the left two");
                for k in 0..20 {
                    put(&node, k, 100 + k).await.expect("written");
                }
                node.merge(TabletId::new(2)).await.expect("with the third");
                node.merge(TabletId::new(2)).await.expect("with the last");
                node.split(key(12)).await.expect("and split elsewhere");
                cluster.restart(sleeper).await;
                settle(&cluster).await;
                expect_all(&cluster.node(sleeper), |k| 100 + k).await;
            });
        }
    }
}

#[test]
fn a_merge_survives_the_crash_of_everybody_who_drives_it() {
    for seed in 0..10 {
        run_setup(on(3, seed), |cluster| async move {
            let node = filled(&cluster, 1).await;
            let right = node.split(key(10)).await.expect("split");
            node.transfer_leader(right, NodeId::new(2)).await.expect("transferred");
            let gateway = cluster.node(3);
            let merge = gateway.merge(TabletId::new(2));
            let crash = async {
                gateway.env().sleep(Duration::from_millis(100 + seed * 60)).await;
                cluster.crash(2, seed).await;
                cluster.crash(1, seed + 1).await;
                cluster.restart(1).await;
                cluster.restart(2).await;
            };
            drop(node);
            let (merged, ()) = futures::join!(merge, crash);
            settle(&cluster).await;
            // Who asked for it may have been told that nobody knows.
            let tablets = gateway.tablets(&table_range(100)).await.expect("known").len();
            assert!(tablets == 1 || merged.is_err(), "seed {seed}: {tablets} tablets");
            if tablets > 1 {
                let again = gateway.merge(TabletId::new(2)).await;
                again.unwrap_or_else(|error| panic!("seed {seed}: {error} after {merged:?}"));
                settle(&cluster).await;
            }
            expect_all(&cluster.node(1), |k| k).await;
        });
    }
}
