//! Tablets split and merge by themselves, and nobody notices but those who look.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_storage::{KeyType, Order, TabletId};
use meridian_truetime::EnvironmentExt;
use meridian_txn::{Node, PlacementChange, SplitOptions, TabletStatus, table_range};
use rand::RngExt;

use crate::checks::settle;
use crate::cluster::{Cluster, Setup, TABLE, create_tablet, key, run_setup};
use crate::kv::{get, put, scan};

const SECOND: Duration = Duration::from_secs(1);

fn with(splits: SplitOptions) -> Setup {
    Setup { seed: 5, epsilon: Duration::from_millis(1), splits, ..Setup::default() }
}

fn off() -> SplitOptions {
    SplitOptions { split_size: None, split_load: None, merge_after: None, ..Default::default() }
}

async fn sleep(node: &Node, seconds: u32) {
    node.env().sleep(SECOND * seconds).await;
}

/// How many tablets the table has.
async fn count(node: &Node) -> usize {
    node.refresh_directory().await.expect("the directory is there");
    node.tablets(&table_range(TABLE)).await.expect("known").len()
}

/// The tablets of the table as their leaders have them.
fn led(cluster: &Cluster) -> Vec<TabletStatus> {
    let all = cluster.replicas().into_values().flatten();
    let led = all.filter(|status| status.leader == Some(status.node));
    led.filter(|status| table_range(TABLE).contains_range(&status.descriptor.range)).collect()
}

#[test]
fn a_table_that_grows_becomes_several_tablets() {
    const LIMIT: u64 = 2_000;
    const KEYS: u64 = 400;
    run_setup(with(SplitOptions { split_size: Some(LIMIT), ..off() }), |cluster| async move {
        cluster.create_tablet(1).await;
        let known = Arc::new(Mutex::new(BTreeMap::new()));
        let writers = (1..=3).map(|number| {
            let (node, known) = (cluster.node(number), Arc::clone(&known));
            async move {
                for k in (number - 1..KEYS).step_by(3) {
                    put(&node, k, 7 * k).await.expect("it serves, split or not");
                    known.lock().expect("no panics").insert(k, 7 * k);
                    node.env().sleep(Duration::from_millis(60)).await;
                }
            }
        });
        let scans = async {
            let node = cluster.node(2);
            for _ in 0..60 {
                let before = known.lock().expect("no panics").clone();
                let found = scan(&node).await.expect("it serves, split or not");
                assert!(found.is_sorted_by(|a, b| a.0 < b.0), "each key once: {found:?}");
                let found: BTreeMap<u64, u64> = found.into_iter().collect();
                assert!(before.iter().all(|(k, value)| found.get(k) == Some(value)), "none lost");
                node.env().sleep(Duration::from_millis(130)).await;
            }
        };
        futures::join!(futures::future::join_all(writers), scans);
        let node = cluster.node(3);
        sleep(&node, 5).await;
        settle(&cluster).await;
        let all: Vec<_> = (0..KEYS).map(|k| (k, 7 * k)).collect();
        assert_eq!(scan(&node).await.expect("scanned"), all);
        let led = led(&cluster);
        let sizes: Vec<u64> = led.iter().map(|status| status.size_bytes).collect();
        assert!(sizes.len() >= 5, "{sizes:?}");
        assert!(sizes.iter().all(|size| *size <= LIMIT), "{sizes:?}");
        assert!(sizes.iter().sum::<u64>() > KEYS * 16, "{sizes:?}");
    });
}

#[test]
fn a_directory_larger_than_the_threshold_stays_whole() {
    let splits = SplitOptions { split_size: Some(1_000), ..off() };
    run_setup(with(splits), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        for value in 0..200 {
            put(&node, 1, value).await.expect("written");
        }
        sleep(&node, 20).await;
        assert_eq!(count(&node).await, 1);
        assert!(led(&cluster)[0].size_bytes > 3_000);
        // With another behind it there is a boundary, once it is looked for again.
        for k in 2..5 {
            put(&node, k, k).await.expect("written");
        }
        for value in 200..500 {
            put(&node, 1, value).await.expect("written");
        }
        sleep(&node, 20).await;
        assert_eq!(count(&node).await, 2);
        settle(&cluster).await;
        assert_eq!(scan(&node).await.expect("scanned"), [(1, 499), (2, 2), (3, 3), (4, 4)]);
    });
}

const HOT: u32 = 40;

fn by_load() -> SplitOptions {
    let (split_load, load_window) = (Some(HOT), SECOND * 5);
    SplitOptions { split_load, load_window, ..off() }
}

/// For so long, asks each of three nodes about 50 times per second for one of these keys.
async fn read(cluster: &Cluster, seconds: u32, keys: std::ops::Range<u64>) {
    let readers = (1..=3).map(|number| {
        let (node, keys) = (cluster.node(number), keys.clone());
        async move {
            let mut rng = node.env().fork_rng();
            for _ in 0..seconds * 50 {
                let pause = node.env().sleep(SECOND / 50);
                let k = rng.random_range(keys.clone());
                let (took, found) = cluster.time(get(&node, k)).await;
                assert_eq!(found, Ok(Some(k)), "split or not");
                assert!(took < SECOND / 2, "a split took {took:?}");
                pause.await;
            }
        }
    });
    futures::future::join_all(readers).await;
}

async fn filled(cluster: &Cluster, keys: u64) -> Arc<Node> {
    cluster.create_tablet(1).await;
    let node = cluster.node(1);
    for k in 0..keys {
        put(&node, k, k).await.expect("written");
    }
    sleep(&node, 10).await;
    node
}

#[test]
fn a_hot_range_is_split_until_no_tablet_is_hot() {
    run_setup(with(by_load()), |cluster| async move {
        let node = filled(&cluster, 200).await;
        assert_eq!(count(&node).await, 1, "filling it was not hot enough");
        read(&cluster, 60, 100..132).await;
        let led = led(&cluster);
        let rates: Vec<f64> =
            led.iter().map(|status| status.requests_per_second.expect("measured")).collect();
        assert!(rates.iter().sum::<f64>() > 100.0, "{rates:?}");
        assert!(rates.iter().all(|rate| *rate <= f64::from(HOT)), "{rates:?}");
        assert!((4..=8).contains(&rates.len()), "{rates:?}");
        let starts: Vec<_> =
            led.iter().map(|status| status.descriptor.range.start.clone()).collect();
        assert!(
            starts[1..].iter().all(|start| (key(100)..=key(132)).contains(start)),
            "{starts:?}"
        );
        settle(&cluster).await;
        assert_eq!(scan(&node).await.expect("scanned").len(), 200);
    });
}

#[test]
fn one_hot_directory_is_left_alone() {
    run_setup(with(by_load()), |cluster| async move {
        let node = filled(&cluster, 20).await;
        read(&cluster, 30, 7..8).await;
        assert_eq!(count(&node).await, 1);
        assert!(led(&cluster)[0].requests_per_second.expect("measured") > 100.0);
    });
}

#[test]
fn what_load_has_split_is_merged_when_it_is_cold_but_not_what_a_hand_has() {
    let splits =
        SplitOptions { split_size: Some(1 << 20), merge_after: Some(SECOND * 20), ..by_load() };
    run_setup(with(splits), |cluster| async move {
        let node = filled(&cluster, 100).await;
        let by_hand = node.split(key(50)).await.expect("split");
        let other = {
            let id = node.new_tablet_id().await.expect("an id");
            let (range, root_key) = (table_range(TABLE + 1), vec![(KeyType::Int, Order::Asc)]);
            let placed = node.new_tablet(id, range, root_key, PlacementChange::default());
            placed.expect("can be placed")
        };
        create_tablet(&node, &other).await;
        read(&cluster, 40, 0..32).await;
        assert!(count(&node).await >= 5);
        let mut least = usize::MAX;
        for _ in 0..30 {
            sleep(&node, 10).await;
            let now = count(&node).await;
            assert!(now <= least.max(2), "cold tablets only merge");
            least = now;
        }
        let left = node.tablets(&table_range(TABLE)).await.expect("known");
        assert_eq!(
            left.iter().map(|tablet| tablet.id).collect::<Vec<_>>(),
            [TabletId::new(2), by_hand]
        );
        assert!(left[1].sticky && !left[0].sticky, "{left:?}");
        let range = table_range(TABLE + 1);
        assert_eq!(node.tablets(&range).await.expect("known")[0].id, other.id, "another table");
        assert_eq!(scan(&node).await.expect("scanned").len(), 100);
        // A hand may take back what a hand has done.
        node.merge(TabletId::new(2)).await.expect("merged");
        assert_eq!(count(&node).await, 1);
    });
}

#[test]
fn neighbours_that_are_placed_apart_stay_apart() {
    let splits =
        SplitOptions { split_size: Some(1 << 20), merge_after: Some(SECOND * 20), ..off() };
    let setup = Setup { topology: "us-eu-3", nodes: 3, ..with(splits) };
    run_setup(setup, |cluster| async move {
        let node = filled(&cluster, 20).await;
        let led_in = |region: &str| PlacementChange {
            leader_region: Some(Some(region.to_owned())),
            ..PlacementChange::default()
        };
        let mut right = table_range(TABLE);
        right.start = key(10);
        node.place(&right, led_in("eu-west")).await.expect("placed");
        sleep(&node, 120).await;
        assert_eq!(count(&node).await, 2, "they are to be led in different regions");
        node.place(&table_range(TABLE), led_in("us-east")).await.expect("placed");
        sleep(&node, 120).await;
        assert_eq!(count(&node).await, 1, "nothing keeps them apart any more");
        // The same, but a hand says that the boundary is to stay.
        node.place(&right, led_in("eu-west")).await.expect("placed");
        node.split(key(10)).await.expect("it begins there already");
        node.place(&table_range(TABLE), led_in("us-east")).await.expect("placed");
        sleep(&node, 120).await;
        assert_eq!(count(&node).await, 2);
        settle(&cluster).await;
        // Until a hand merges them: then the next boundary is one like any other.
        node.merge(TabletId::new(2)).await.expect("merged");
        node.place(&right, led_in("us-east")).await.expect("placed");
        assert_eq!(count(&node).await, 2);
        sleep(&node, 120).await;
        assert_eq!(count(&node).await, 1);
        settle(&cluster).await;
        assert_eq!(scan(&node).await.expect("scanned").len(), 20);
    });
}

#[test]
fn tablets_merge_after_the_crash_of_whoever_leads_them() {
    let splits =
        SplitOptions { split_size: Some(1 << 20), merge_after: Some(SECOND * 20), ..off() };
    for seed in 0..6 {
        run_setup(Setup { seed, ..with(splits) }, |cluster| async move {
            let node = filled(&cluster, 20).await;
            let mut right = table_range(TABLE);
            for k in [5, 10, 15] {
                right.start = key(k);
                node.place(&right, PlacementChange::default()).await.expect("placed");
            }
            assert_eq!(count(&node).await, 4);
            drop(node);
            // About when they begin to merge.
            let watching = cluster.node(2);
            watching
                .env()
                .sleep(SECOND * 19 + SECOND / 4 * u32::try_from(seed).expect("few"))
                .await;
            cluster.crash(1, seed).await;
            sleep(&watching, 5).await;
            cluster.restart(1).await;
            for k in 0..20 {
                put(&watching, k, 100 + k).await.expect("it serves");
            }
            sleep(&watching, 240).await;
            assert_eq!(count(&watching).await, 1, "seed {seed}");
            settle(&cluster).await;
            let all: Vec<_> = (0..20).map(|k| (k, 100 + k)).collect();
            assert_eq!(scan(&watching).await.expect("scanned"), all);
        });
    }
}

#[test]
fn a_hand_that_splits_where_two_are_being_merged_has_its_way() {
    let splits =
        SplitOptions { split_size: Some(1 << 20), merge_after: Some(SECOND * 20), ..off() };
    let mut found_merged = 0;
    for seed in 0..16 {
        let setup = Setup { seed, topology: "us-eu-3", ..with(splits) };
        found_merged += run_setup(setup, |cluster| async move {
            let node = filled(&cluster, 20).await;
            let mut right = table_range(TABLE);
            right.start = key(10);
            let by_itself = node.place(&right, PlacementChange::default()).await.expect("placed");
            let pause = SECOND * 20 + SECOND / 5 * u32::try_from(seed).expect("few");
            node.env().sleep(pause).await;
            let by_hand = cluster.node(3).split(key(10)).await.expect("split");
            sleep(&node, 100).await;
            let tablets = node.tablets(&table_range(TABLE)).await.expect("known");
            assert_eq!(tablets.len(), 2, "seed {seed}");
            assert!(tablets[1].sticky && tablets[1].id == by_hand, "seed {seed}: {tablets:?}");
            settle(&cluster).await;
            assert_eq!(scan(&node).await.expect("scanned").len(), 20);
            u32::from(by_hand != by_itself[0])
        });
    }
    assert!((1..16).contains(&found_merged), "before, meanwhile and after: {found_merged}");
}
