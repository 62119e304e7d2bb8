//! Reads at timestamps in the past, at replicas that don't lead.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::{Env, EnvironmentExt, Timestamp, seeds};
use meridian_txn::{
    CommitProtocol, Mutation, Node, ReadAt, ReadSet, ScanRequest, TabletStatus, TxnError,
    table_range,
};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::bank::{self, ACCOUNTS, TOTAL, account, transfers};
use crate::chaos::{NODES, gateway, under_faults};
use crate::checks::settle;
use crate::cluster::{Cluster, Setup, TABLE, key, run, run_setup, write};
use crate::kv::{put, scan_at};

const TABLET: TabletId = TabletId::new(2);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn number_of(row: Option<&meridian_txn::Row>) -> Option<u64> {
    row.map(|row| u64::from_be_bytes(row.value.clone().try_into().expect("eight bytes")))
}

/// A key as it was at a timestamp, from the nearest replica.
async fn get_at(node: &Node, k: u64, at: Timestamp) -> Result<Option<u64>, TxnError> {
    let rows = node.get_stale(TABLET, vec![key(k)], at).await?;
    Ok(number_of(rows[0].as_ref()))
}

/// The same, from this node's replica or not at all.
async fn get_here(node: &Node, k: u64, at: Timestamp) -> Result<Option<u64>, TxnError> {
    let read = node.open_stale(TABLET, at, &KeyRange::point(key(k))).await?;
    let version = read.snapshot.get(&key(k), read.at).expect("readable");
    let value = version.and_then(|version| version.value);
    Ok(value.map(|value| u64::from_be_bytes(value.try_into().expect("eight bytes"))))
}

async fn know_the_tablets(cluster: &Cluster) {
    for number in cluster.running() {
        cluster.node(number).refresh_directory().await.expect("read");
    }
}

#[test]
fn a_stale_read_far_from_the_leader_is_local() {
    for (topology, far) in [("us-eu-3", 3), ("us-eu-3", 2), ("world-10", 3), ("metro-3", 2)] {
        for epsilon in [0, 4] {
            run(1, topology, millis(epsilon), |cluster| async move {
                cluster.create_tablet(1).await;
                know_the_tablets(&cluster).await;
                let (leader, node) = (cluster.node(1), cluster.node(far));
                let first = put(&leader, 1, 10).await.expect("written");
                // Quiet for a while.
                leader.env().sleep(millis(2_500)).await;
                let ago = |by| node.clock().now().earliest.minus(millis(by));
                let (took, read) = cluster.time(get_at(&node, 1, ago(1_000))).await;
                assert_eq!(read, Ok(Some(10)), "{topology}");
                assert!(took < millis(2), "{topology}, a second ago: {took:?}");
                // While somebody writes without a pause.
                let writes = async {
                    for value in 11..60 {
                        put(&leader, 1, value).await.expect("written");
                    }
                };
                let reads = async {
                    node.env().sleep(millis(1_000)).await;
                    for _ in 0..20 {
                        node.env().sleep(millis(70)).await;
                        let at = ago(1_500);
                        let (took, read) = cluster.time(get_at(&node, 1, at)).await;
                        let read = read.expect("read");
                        assert!(read >= Some(10) && at >= first);
                        assert!(took < millis(2), "{topology}, while it is written to: {took:?}");
                    }
                };
                futures::join!(writes, reads);
                node.env().sleep(millis(11_000)).await;
                let (took, read) = cluster.time(get_at(&node, 1, ago(10_000))).await;
                assert_eq!(read, Ok(Some(59)));
                assert!(took < millis(2), "{topology}, ten seconds ago: {took:?}");
                // What is too fresh here, the leader has.
                let (took, read) = cluster.time(get_at(&node, 1, ago(0))).await;
                assert_eq!(read, Ok(Some(59)));
                println!("{topology}: as of now, after {took:?}");
                let safe = node.safe_time_near(&[TABLET]).await.expect("known");
                let lag = node.clock().now().earliest.since(safe);
                println!("{topology}, ε = {epsilon} ms: the safe time lags by {lag:?}");
                assert!(lag < millis(1_000), "{lag:?}");
                assert_eq!(get_here(&node, 1, safe).await, Ok(Some(59)));
            });
        }
    }
}

/// Every clock is as far off as it may be: that of node 2 ahead, the others behind.
#[test]
fn no_replica_returns_a_version_before_its_timestamp_has_certainly_passed() {
    for (seed, epsilon) in [(1, 0), (2, 7), (3, 40), (4, 100)] {
        let setup = Setup {
            seed,
            topology: "metro-3",
            epsilon: millis(epsilon),
            skewed: true,
            ..Setup::default()
        };
        run_setup(setup, |cluster| async move {
            let led_from = 1 + seed % 2;
            cluster.create_tablet(led_from).await;
            know_the_tablets(&cluster).await;
            let leader = cluster.node(led_from);
            let versions = Arc::new(Mutex::new(BTreeMap::new()));
            let writes = async {
                for value in 1..40 {
                    let at = put(&leader, 1, value).await.expect("written");
                    versions.lock().expect("no panics").insert(value, at);
                    leader.env().sleep(millis(value % 7 * 20)).await;
                }
            };
            let reads = [3 - led_from, 3].map(|number| {
                let (cluster, versions) = (&cluster, Arc::clone(&versions));
                async move {
                    let node = cluster.node(number);
                    let (mut served, mut refused) = (0, 0);
                    for round in 0..900 {
                        node.env().sleep(millis(5)).await;
                        let now = node.clock().now();
                        let safe = node.safe_time(TABLET).expect("a replica");
                        // At what it says, around now, and somewhat before.
                        let at = match round % 3 {
                            0 => safe,
                            1 => now.latest,
                            _ => now.earliest.minus(millis(round % 300)),
                        };
                        match get_here(&node, 1, at).await {
                            Ok(found) => {
                                served += 1;
                                assert!(node.clock().now().earliest > at);
                                assert!(cluster.world.true_time() > at);
                                let known = versions.lock().expect("no panics");
                                if let Some(written) = found.and_then(|value| known.get(&value)) {
                                    assert!(*written <= at);
                                }
                            }
                            Err(TxnError::TooFresh { safe, .. }) => {
                                refused += 1;
                                assert!(at > safe);
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                    println!("node {number}: {served} were served, {refused} were too fresh");
                    assert!(served > 200 && refused > 200, "{served}, {refused}");
                }
            });
            futures::join!(writes, futures::future::join_all(reads));
        });
    }
}

#[test]
fn the_nearest_replica_that_answers_serves() {
    run(1, "us-eu-3", millis(4), |cluster| async move {
        cluster.create_tablet(1).await;
        know_the_tablets(&cluster).await;
        put(&cluster.node(1), 1, 10).await.expect("written");
        let node = cluster.node(3);
        node.env().sleep(millis(2_000)).await;
        let at = node.clock().now().earliest.minus(millis(1_000));
        // Without the leader, and without a majority.
        for other in [1, 2].map(NodeId::new) {
            cluster.network.cut(NodeId::new(3), other);
        }
        node.env().sleep(millis(5_000)).await;
        let (took, read) = cluster.time(get_at(&node, 1, at)).await;
        assert_eq!(read, Ok(Some(10)));
        assert!(took < millis(2), "{took:?}");
        assert!(matches!(
            get_here(&node, 1, node.clock().now().earliest.minus(millis(2_000))).await,
            Err(TxnError::TooFresh { .. })
        ));
        cluster.network.heal();
        // Nobody reads in the future, and the tablet doesn't wait for it either.
        let future = node.clock().now().latest.plus(Duration::from_secs(3_600));
        assert!(matches!(get_at(&node, 1, future).await, Err(TxnError::Refused { .. })));
        let (took, written) = cluster.time(put(&cluster.node(1), 1, 11)).await;
        written.expect("written");
        assert!(took < millis(3_000), "{took:?}");
    });
}

#[test]
fn a_timestamp_is_read_over_all_tablets_whoever_leads_them() {
    run(1, "us-eu-3", millis(4), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        for k in 0..10 {
            put(&node, k, 1).await.expect("written");
        }
        let child = node.split(key(5)).await.expect("split");
        node.transfer_leader(child, NodeId::new(2)).await.expect("transferred");
        know_the_tablets(&cluster).await;
        node.env().sleep(millis(2_000)).await;
        let at = node.clock().now().earliest.minus(millis(1_000));
        for number in 1..=3 {
            let node = cluster.node(number);
            let (took, found) = cluster.time(scan_at(&node, at)).await;
            assert_eq!(found, Ok((0..10).map(|k| (k, 1)).collect()));
            assert!(took < millis(2), "{took:?}");
        }
        let scan = ScanRequest {
            range: table_range(TABLE),
            at: ReadAt::Exact(at),
            limit: u64::MAX,
            reverse: false,
        };
        let both = node.scan_stale(TABLET, scan).await;
        assert!(matches!(both, Err(TxnError::Moved { .. })), "it covers a part only");
    });
}

/// Reads at a node's own replica, at the last timestamp that it serves, until told otherwise; then
/// asks the leader for the same.
async fn expect_what_the_leader_has(
    cluster: &Cluster,
    number: u64,
    k: u64,
    over: &AtomicBool,
) -> BTreeMap<Timestamp, Option<u64>> {
    let node = cluster.node(number);
    let mut found = BTreeMap::new();
    while !over.load(Ordering::SeqCst) {
        let safe = node.safe_time(TABLET).unwrap_or(Timestamp::MIN);
        if safe > Timestamp::MIN
            && let Ok(read) = get_here(&node, k, safe).await
        {
            assert_eq!(*found.entry(safe).or_insert(read), read, "at {safe}");
        }
        node.env().sleep(Duration::from_micros(400)).await;
    }
    for (at, read) in &found {
        let (_, rows) = node.get(TABLET, vec![key(k)], ReadAt::Exact(*at)).await.expect("read");
        assert_eq!(number_of(rows[0].as_ref()), *read, "at {at}");
    }
    found
}

#[test]
fn a_replica_that_lags_serves_no_more_than_it_has() {
    let setup = Setup { topology: "metro-3", request: millis(1), ..Setup::default() };
    run_setup(setup, |cluster| async move {
        cluster.create_tablet(1).await;
        know_the_tablets(&cluster).await;
        let leader = cluster.node(1);
        for value in 0..3 {
            cluster.stop(3).await;
            let mut writes = Vec::new();
            for round in 0..900 {
                let leader = Arc::clone(&leader);
                writes.push(async move { put(&leader, 1, value * 1_000 + round).await });
            }
            futures::future::join_all(writes).await;
            cluster.restart(3).await;
            let over = AtomicBool::new(false);
            let ends = async {
                // Now and then another one, whose entry is the last for a while.
                for round in 0..6 {
                    leader.env().sleep(millis(500)).await;
                    put(&leader, 1, value * 1_000 + 900 + round).await.expect("written");
                }
                over.store(true, Ordering::SeqCst);
            };
            let (found, ()) =
                futures::join!(expect_what_the_leader_has(&cluster, 3, 1, &over), ends);
            let values: std::collections::BTreeSet<_> = found.values().collect();
            println!("{} timestamps, {} values", found.len(), values.len());
            assert!(values.len() > 3, "{values:?}");
        }
    });
}

/// Node 1 leads and is cut off; another one is elected.
#[test]
fn who_has_no_lease_closes_nothing() {
    for (seed, topology, epsilon) in [(1, "us-eu-3", 0), (2, "metro-3", 40)] {
        let setup =
            Setup { seed, topology, epsilon: millis(epsilon), skewed: true, ..Setup::default() };
        run_setup(setup, |cluster| async move {
            cluster.create_tablet(1).await;
            know_the_tablets(&cluster).await;
            put(&cluster.node(1), 1, 1).await.expect("written");
            cluster.node(1).env().sleep(millis(1_000)).await;
            for other in [2, 3].map(NodeId::new) {
                cluster.network.cut(NodeId::new(1), other);
            }
            let over = AtomicBool::new(false);
            let other = cluster.node(2);
            let writes = async {
                for value in 2..40 {
                    while put(&other, 1, value).await.is_err() {}
                    other.env().sleep(millis(150)).await;
                }
                cluster.network.heal();
                other.env().sleep(millis(5_000)).await;
                over.store(true, Ordering::SeqCst);
            };
            let (found, ()) =
                futures::join!(expect_what_the_leader_has(&cluster, 1, 1, &over), writes);
            assert!(found.len() > 5, "{found:?}");
        });
    }
}

/// The right tablet is on other nodes than the left one, which takes it in; its replicas go later.
#[test]
fn a_tablet_that_is_absorbed_closes_nothing_more() {
    let setup = Setup { topology: "us-eu-3", nodes: 6, epsilon: millis(1), ..Setup::default() };
    run_setup(setup, |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        put(&node, 9, 1).await.expect("written");
        let mut reads = 0;
        for round in 1..=10 {
            let right = node.split(key(5)).await.expect("split");
            for number in 1..=3 {
                let (from, to) = (NodeId::new(number), NodeId::new(number + 3));
                node.move_replica(right, from, to).await.expect("moved");
            }
            know_the_tablets(&cluster).await;
            let over = AtomicBool::new(false);
            let writes = async {
                for value in 0.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    put(&node, 9, round * 10_000 + value).await.expect("written");
                }
            };
            let looks = (4..=6).map(|number| {
                let (cluster, over) = (&cluster, &over);
                async move {
                    let node = cluster.node(number);
                    let mut found = BTreeMap::new();
                    while !over.load(Ordering::SeqCst) {
                        node.env().sleep(millis(2)).await;
                        let Some(safe) = node.safe_time(right) else { continue };
                        let range = KeyRange::point(key(9));
                        let Ok(read) = node.open_stale(right, safe, &range).await else { continue };
                        let version = read.snapshot.get(&key(9), safe).expect("readable");
                        found.insert(safe, version.map(|version| version.ts));
                    }
                    found
                }
            });
            let merges = async {
                node.env().sleep(millis(700 + round * 37)).await;
                node.merge(TABLET).await.expect("merged");
                node.env().sleep(millis(500)).await;
                over.store(true, Ordering::SeqCst);
            };
            let looks = futures::future::join_all(looks);
            let (found, (), ()) = futures::join!(looks, writes, merges);
            know_the_tablets(&cluster).await;
            for (at, read) in found.into_iter().flatten() {
                let now = node.get(TABLET, vec![key(9)], ReadAt::Exact(at)).await.expect("read");
                assert_eq!(now.1[0].as_ref().map(|row| row.ts), read, "round {round}, at {at}");
                reads += 1;
            }
        }
        println!("{reads} timestamps");
        assert!(reads > 30, "{reads}");
    });
}

fn keeps(retention: Duration) -> Setup {
    Setup { topology: "us-eu-3", epsilon: millis(4), retention, ..Setup::default() }
}

/// How many versions of a key each running node has.
fn versions(cluster: &Cluster, k: u64) -> Vec<usize> {
    let range = KeyRange::point(key(k));
    cluster.running().into_iter().map(|number| cluster.versions(number, &range)).collect()
}

#[test]
fn old_versions_go_and_what_is_within_the_retention_period_stays() {
    run_setup(keeps(Duration::from_secs(4)), |cluster| async move {
        cluster.create_tablet(1).await;
        know_the_tablets(&cluster).await;
        let [leader, far] = [1, 3].map(|number| cluster.node(number));
        let mut written = Vec::new();
        for value in 1..=60 {
            written.push((put(&leader, 1, value).await.expect("written"), value));
            if value == 10 {
                put(&leader, 2, 7).await.expect("written");
            }
            leader.env().sleep(millis(100)).await;
        }
        // What is a moment old is there, what is older goes in time, and how old it is one is told.
        let (mut served, mut refused) = (0, 0);
        for (at, value) in &written {
            let age = far.clock().now().latest.since(*at);
            match get_at(&far, 1, *at).await {
                Ok(found) => {
                    assert_eq!(found, Some(*value));
                    served += 1;
                }
                Err(TxnError::TooOld { horizon, .. }) => {
                    assert!(horizon > *at && age > Duration::from_secs(4), "{age:?}");
                    assert_eq!(
                        get_at(&far, 1, horizon).await.map(|found| found >= Some(*value)),
                        Ok(true)
                    );
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        println!("{served} were served, {refused} were too old");
        assert!(served >= 20 && refused >= 10, "{served} were served, {refused} were too old");
        let (first, _) = written[0];
        let at = ReadAt::Exact(first);
        let at_leader = leader.get(TABLET, vec![key(1)], at).await;
        assert!(matches!(at_leader, Err(TxnError::TooOld { .. })), "{at_leader:?}");
        for number in 1..=3 {
            let here = get_here(&cluster.node(number), 1, first).await;
            assert!(matches!(here, Err(TxnError::TooOld { .. })), "{here:?}");
        }
        leader.env().sleep(Duration::from_secs(6)).await;
        assert_eq!(versions(&cluster, 1), [1, 1, 1], "on every replica");
        assert_eq!(versions(&cluster, 2), [1, 1, 1]);
        // The tablet is quiet since: everything from its last write on can be read, for ever.
        leader.env().sleep(Duration::from_secs(20)).await;
        let (last, value) = written[59];
        assert_eq!(get_at(&far, 1, last).await, Ok(Some(value)));
        assert_eq!(get_at(&far, 2, last).await, Ok(Some(7)));
    });
}

#[test]
fn what_was_deleted_goes_and_nothing_is_logged_for_who_rests() {
    run_setup(keeps(Duration::from_secs(4)), |cluster| async move {
        cluster.create_tablet(1).await;
        know_the_tablets(&cluster).await;
        let node = cluster.node(1);
        for k in 0..10 {
            put(&node, k, 1).await.expect("written");
        }
        let logged = || cluster.replicas()[&TABLET][0].last_index;
        let before = logged();
        node.env().sleep(Duration::from_secs(20)).await;
        assert_eq!(logged(), before, "there is nothing to collect");
        let txn = node.begin(None, CommitProtocol::CommitWait, Timestamp::MIN);
        for k in 5..10 {
            txn.delete(key(k));
        }
        let deleted = txn.commit().await.expect("committed");
        assert_eq!(scan_at(&node, deleted.prev()).await.map(|rows| rows.len()), Ok(10));
        node.env().sleep(Duration::from_secs(12)).await;
        for k in 0..10 {
            assert_eq!(versions(&cluster, k), [usize::from(k < 5); 3], "key {k}");
        }
        assert_eq!(scan_at(&node, deleted).await.map(|rows| rows.len()), Ok(5));
        let before = scan_at(&node, deleted.prev()).await;
        assert!(matches!(before, Err(TxnError::TooOld { .. })), "{before:?}");
        let before = logged();
        node.env().sleep(Duration::from_secs(20)).await;
        assert_eq!(logged(), before, "nobody has written to it since");
    });
}

#[test]
fn splits_inherit_the_horizon_and_merges_take_the_later_one() {
    run_setup(keeps(Duration::from_secs(4)), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        let mut written = Vec::new();
        for value in 1..=20 {
            written.push(put(&node, 1, value).await.expect("written"));
            put(&node, 9, value).await.expect("written");
        }
        node.env().sleep(Duration::from_secs(12)).await;
        let right = node.split(key(5)).await.expect("split");
        know_the_tablets(&cluster).await;
        let read =
            async |tablet, k| node.get(tablet, vec![key(k)], ReadAt::Exact(written[10])).await;
        for (tablet, k) in [(TABLET, 1), (right, 9)] {
            let read = read(tablet, k).await;
            assert!(matches!(read, Err(TxnError::TooOld { .. })), "{read:?}");
        }
        // Only the right one goes on.
        let at = put(&node, 9, 21).await.expect("written");
        for value in 22..=25 {
            put(&node, 9, value).await.expect("written");
        }
        node.env().sleep(Duration::from_secs(12)).await;
        node.merge(TABLET).await.expect("merged");
        know_the_tablets(&cluster).await;
        let read = node.get(TABLET, vec![key(1), key(9)], ReadAt::Exact(at)).await;
        assert!(matches!(read, Err(TxnError::TooOld { .. })), "{read:?}");
        let now = scan_at(&node, node.clock().now().earliest).await;
        assert_eq!(now, Ok(vec![(1, 20), (9, 25)]));
        settle(&cluster).await;
    });
}

/// A write that was computed from a range as it was before what was deleted there left no trace.
#[test]
fn what_was_computed_from_the_distant_past_is_not_written() {
    run_setup(keeps(Duration::from_secs(2)), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        put(&node, 1, 1).await.expect("written");
        let before = put(&node, 9, 1).await.expect("written");
        let txn = node.begin(None, CommitProtocol::CommitWait, Timestamp::MIN);
        txn.delete(key(9));
        txn.commit().await.expect("committed");
        put(&node, 1, 2).await.expect("written");
        node.env().sleep(Duration::from_secs(8)).await;
        assert_eq!(versions(&cluster, 9), [0, 0, 0]);
        let range = KeyRange { start: key(5), end: Some(key(20)) };
        let write = |at| {
            let reads = ReadSet { at, keys: Vec::new(), ranges: vec![range.clone()] };
            write(reads, vec![Mutation::Put { key: key(2), value: vec![0; 8] }])
        };
        assert_eq!(node.write(write(before)).await, Err(TxnError::Conflict));
        let now = ReadAt::Strong { min: Timestamp::MIN };
        let (at, _) = node.get(TABLET, vec![key(9)], now).await.expect("read");
        node.write(write(at)).await.expect("written");
    });
}

/// What was found of a key at a timestamp: the version's timestamp and its value.
type Found = Option<(Timestamp, u64)>;

/// What readers have seen.
#[derive(Debug, Default)]
struct Seen {
    /// By timestamp and key.
    rows: BTreeMap<Timestamp, BTreeMap<Vec<u8>, Found>>,
    whole: u64,
    at_replicas: u64,
    too_fresh: u64,
    too_old: u64,
    elsewhere: u64,
}

impl Seen {
    /// The same timestamp shows the same rows, whenever and wherever.
    fn see(&mut self, at: Timestamp, key: Vec<u8>, found: Found, by: &str) {
        let known = *self.rows.entry(at).or_default().entry(key.clone()).or_insert(found);
        assert_eq!(found, known, "{by} at {at}, key {key:?}");
    }

    fn count(&mut self, error: &TxnError) {
        match error {
            TxnError::TooFresh { .. } => self.too_fresh += 1,
            TxnError::TooOld { .. } => self.too_old += 1,
            error => {
                assert!(!matches!(error, TxnError::Internal(_)), "{error}");
                self.elsewhere += 1;
            }
        }
    }
}

/// One of the timestamps that were read at before, most often a late one; or a new one.
fn pick(node: &Node, seen: &Seen, rng: &mut StdRng) -> Timestamp {
    let count = seen.rows.len();
    if count == 0 || rng.random_bool(0.2) {
        return node.clock().now().earliest.minus(millis(rng.random_range(0..3_000)));
    }
    let back = if rng.random_bool(0.7) { count.min(20) } else { count };
    *seen.rows.keys().nth_back(rng.random_range(0..back)).expect("there are so many")
}

/// Reads what a node's own replica of a tablet has of the accounts.
async fn look_here(
    node: &Node,
    status: &TabletStatus,
    at: Timestamp,
    seen: &Mutex<Seen>,
) -> Result<(), TxnError> {
    let tablet = &status.descriptor;
    let read = node.open_stale(tablet.id, at, &tablet.range).await?;
    let mut seen = seen.lock().expect("no panics");
    let by = format!("{} of {}, led by {:?}", tablet.id, node.id(), status.leader);
    for key in (0..ACCOUNTS).map(account).filter(|key| tablet.range.contains(key)) {
        let version = read.snapshot.get(&key, read.at).expect("readable");
        let found = version.and_then(|v| Some((v.ts, bank::balance(&v.value?))));
        seen.see(at, key, found, &by);
    }
    seen.at_replicas += 1;
    Ok(())
}

async fn looks(
    cluster: Arc<Cluster>,
    env: Env,
    until: Duration,
    opened: Timestamp,
    all: Arc<Mutex<Seen>>,
) {
    let mut rng = env.fork_rng();
    let began = env.moment();
    while env.moment().since(began) < until {
        env.sleep(millis(rng.random_range(5..60))).await;
        let Some(node) = gateway(&cluster, &mut rng) else { continue };
        let known = pick(&node, &all.lock().expect("no panics"), &mut rng);
        if rng.random_bool(0.3) {
            let found = env.timeout(Duration::from_secs(20), scan_at(&node, known)).await;
            let mut seen = all.lock().expect("no panics");
            match found {
                Ok(Ok(rows)) => {
                    let total: u64 = rows.iter().map(|(_, balance)| balance).sum();
                    if known >= opened {
                        assert_eq!(total, TOTAL, "at {known}, through {}", node.id());
                    }
                    seen.whole += 1;
                }
                Ok(Err(error)) => seen.count(&error),
                Err(_) => {}
            }
            continue;
        }
        let Ok(replicas) = node.replicas() else { continue };
        for status in replicas.iter().filter(|status| status.descriptor.id > TabletId::new(1)) {
            let safe = node.safe_time(status.descriptor.id).unwrap_or(Timestamp::MIN);
            // Where it matters most: the last timestamp that it serves.
            let at = if rng.random_bool(0.4) && safe > opened { safe } else { known };
            let looked = look_here(&node, status, at, &all);
            if let Ok(Err(error)) = env.timeout(Duration::from_secs(20), looked).await {
                all.lock().expect("no panics").count(&error);
            }
        }
    }
}

/// No version was written later at or below a timestamp that was read at, and at each of them nothing
/// was half done: at the end, when all is still there.
async fn expect_the_past(cluster: &Cluster, seen: &Seen, opened: Timestamp) {
    let node = cluster.node(1);
    node.refresh_directory().await.expect("read");
    for (at, rows) in &seen.rows {
        let (mut total, mut whole) = (0, true);
        for key in (0..ACCOUNTS).map(account) {
            let found = loop {
                let tablets = node.tablets(&KeyRange::point(key.clone())).await.expect("known");
                match node.get(tablets[0].id, vec![key.clone()], ReadAt::Exact(*at)).await {
                    Ok((_, found)) => break Some(found),
                    Err(TxnError::TooOld { .. }) => break None,
                    // What was begun before still goes on.
                    Err(TxnError::Moved { .. } | TxnError::NoSuchTablet { .. }) => {
                        node.refresh_directory().await.expect("read");
                    }
                    Err(error) => panic!("its leader serves: {error}"),
                }
            };
            let Some(found) = found else {
                whole = false;
                continue;
            };
            let found = found[0].as_ref().map(|row| (row.ts, bank::balance(&row.value)));
            total += found.map_or(0, |(_, balance)| balance);
            if let Some(before) = rows.get(&key) {
                assert_eq!(*before, found, "at {at}, key {key:?}: not as it was seen");
            }
        }
        if whole && *at >= opened {
            assert_eq!(total, TOTAL, "at {at}");
        }
    }
}

fn history(seed: u64, seconds: u64) -> (u64, u64, Seen) {
    let (mut setup, protocol) = bank::setup(seed);
    if seed % 8 >= 4 {
        // What is read again may be gone.
        setup.retention = Duration::from_secs(3);
    }
    run_setup(setup, |cluster| async move {
        cluster.create_tablet(seed % NODES + 1).await;
        let env: Env = cluster.world.node(10_000);
        let opened = bank::open(&cluster, protocol).await;
        let until = Duration::from_secs(seconds);
        let (counts, seen) = (Arc::default(), Arc::<Mutex<Seen>>::default());
        let mut clients: Vec<BoxFuture<'static, ()>> = Vec::new();
        for client in 0..7 {
            let (cluster, counts, seen) =
                (Arc::clone(&cluster), Arc::clone(&counts), Arc::clone(&seen));
            let env: Env = cluster.world.node(10_001 + client);
            clients.push(Box::pin(async move {
                if client < 4 {
                    transfers(cluster, env, until, protocol, counts).await;
                } else {
                    looks(cluster, env, until, opened, seen).await;
                }
            }));
        }
        under_faults(&cluster, &env, (until, Duration::from_millis(2_500)), seed, clients).await;
        let seen = std::mem::take(&mut *seen.lock().expect("no panics"));
        expect_the_past(&cluster, &seen, opened).await;
        let committed = counts.lock().expect("no panics").committed;
        (cluster.network.trace_hash(), committed, seen)
    })
}

#[test]
fn a_timestamp_shows_the_same_wherever_and_whenever_it_is_read() {
    seeds::run(
        "stale::a_timestamp_shows_the_same_wherever_and_whenever_it_is_read",
        0..8,
        |seed| {
            let (hash, committed, seen) = history(seed, 12);
            let Seen { whole, at_replicas, too_fresh, too_old, elsewhere, rows } = seen;
            let counts = format!(
                "{committed} committed; {whole} reads of all, {at_replicas} at replicas, {} timestamps; \
             {too_fresh} too fresh, {too_old} too old, {elsewhere} elsewhere",
                rows.len()
            );
            assert!(committed > 10 && whole > 30 && at_replicas > 200, "{counts}");
            format!("{counts}, trace {hash:016x}")
        },
    );
}
