//! Transactions over tablets, and what they take.

use std::sync::Arc;
use std::time::Duration;

use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp};
use meridian_txn::locks::{Age, Mode};
use meridian_txn::{CommitProtocol, Node, Transaction, TxnError, Wait, table_range};

use crate::cluster::{Cluster, Setup, TABLE, key, run, run_setup};
use crate::kv::{get, put, scan};

const LEFT: u64 = 1;
const RIGHT: u64 = 500;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Two tablets: keys from 300 on are in the second one, which node `right` leads; node 1 leads the
/// first.
async fn two_tablets(cluster: &Cluster, right: u64) -> TabletId {
    cluster.create_tablet(1).await;
    let node = cluster.node(1);
    let child = node.split(key(300)).await.expect("split");
    if right != 1 {
        node.transfer_leader(child, NodeId::new(right)).await.expect("transferred");
    }
    for number in 1..=3 {
        let node = cluster.node(number);
        node.refresh_directory().await.expect("read");
        // It knows the leaders from here on.
        for k in [LEFT, RIGHT] {
            put(&node, k, 100).await.expect("written");
        }
    }
    child
}

fn begin(node: &Arc<Node>) -> Transaction {
    node.begin(None, CommitProtocol::CommitWait, Timestamp::MIN)
}

fn begin_as_old_as(node: &Arc<Node>, age: Age) -> Transaction {
    node.begin(Some(age), CommitProtocol::CommitWait, Timestamp::MIN)
}

async fn number(txn: &Transaction, k: u64, mode: Mode) -> Result<u64, TxnError> {
    let rows = txn.get(vec![key(k)], mode, Wait::Forever).await?;
    let row = rows.into_iter().next().flatten().expect("it exists");
    Ok(u64::from_be_bytes(row.value.try_into().expect("a number")))
}

fn set(txn: &Transaction, k: u64, value: u64) {
    txn.put(key(k), value.to_be_bytes().to_vec());
}

#[test]
fn a_transaction_over_two_tablets_is_seen_whole_or_not_at_all() {
    run(1, "us-eu-3", millis(4), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let node = cluster.node(2);
        let txn = begin(&node);
        let left = number(&txn, LEFT, Mode::Update).await.expect("read");
        let right = number(&txn, RIGHT, Mode::Update).await.expect("read");
        set(&txn, LEFT, left - 30);
        set(&txn, RIGHT, right + 30);
        assert_eq!(number(&txn, LEFT, Mode::Shared).await, Ok(70), "its own change");
        // Nobody else sees it yet.
        assert_eq!(scan(&cluster.node(1)).await, Ok(vec![(LEFT, 100), (RIGHT, 100)]));
        let at = txn.commit().await.expect("committed");
        assert!(at > Timestamp::MIN);
        for number in 1..=3 {
            let node = cluster.node(number);
            assert_eq!(get(&node, LEFT).await, Ok(Some(70)));
            assert_eq!(get(&node, RIGHT).await, Ok(Some(130)));
            assert_eq!(scan(&node).await, Ok(vec![(LEFT, 70), (RIGHT, 130)]));
        }
    });
}

#[test]
fn what_is_rolled_back_or_dropped_leaves_nothing_behind() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 2).await;
        let node = cluster.node(1);
        let txn = begin(&node);
        number(&txn, LEFT, Mode::Update).await.expect("read");
        set(&txn, LEFT, 1);
        set(&txn, RIGHT, 1);
        drop(txn);
        let (took, written) = cluster.time(put(&node, LEFT, 5)).await;
        written.expect("written");
        assert!(took < millis(100), "{took:?}");
        assert_eq!(get(&node, RIGHT).await, Ok(Some(100)));
    });
}

#[test]
fn an_older_transaction_wounds_and_a_younger_one_waits() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let [one, two] = [1, 2].map(|number| cluster.node(number));
        let old = begin(&one);
        let age = old.age();
        number(&old, RIGHT, Mode::Shared).await.expect("read");
        let young = begin(&two);
        number(&young, LEFT, Mode::Update).await.expect("read");
        // The younger one waits for the older one; that goes on, and takes what the younger one has.
        let waits = async {
            set(&young, RIGHT, 7);
            young.commit().await
        };
        let goes_on = async {
            one.env().sleep(millis(300)).await;
            let left = number(&old, LEFT, Mode::Update).await.expect("it is older");
            set(&old, LEFT, left + 1);
            old.commit().await
        };
        let (young, old) = futures::join!(waits, goes_on);
        old.expect("committed");
        assert_eq!(young, Err(TxnError::Conflict));
        // As old as its first attempt, it isn't wounded by any that has begun since.
        let again = begin_as_old_as(&two, age);
        assert_eq!(number(&again, LEFT, Mode::Update).await, Ok(101));
        set(&again, LEFT, 200);
        again.commit().await.expect("committed");
        assert_eq!(scan(&one).await, Ok(vec![(LEFT, 200), (RIGHT, 100)]));
    });
}

#[test]
fn a_range_that_was_read_has_no_phantoms() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let [one, two] = [1, 2].map(|number| cluster.node(number));
        let reader = begin(&one);
        let range = KeyRange { start: key(200), end: Some(key(400)) };
        assert_eq!(reader.scan(range.clone(), Mode::Shared, Wait::Forever).await, Ok(Vec::new()));
        let writes = async {
            let (took, written) = cluster.time(put(&two, 350, 1)).await;
            written.map(|_| took)
        };
        let reads = async {
            one.env().sleep(millis(1_500)).await;
            let found = reader.scan(range.clone(), Mode::Shared, Wait::Forever).await;
            assert_eq!(found, Ok(Vec::new()), "the range is empty still");
            reader.commit().await
        };
        let (wrote, read) = futures::join!(writes, reads);
        assert_eq!(read, Ok(Timestamp::MIN));
        assert!(wrote.expect("written") > millis(1_400), "it had to wait");
    });
}

#[test]
fn two_that_read_what_the_other_writes_are_not_both_committed() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let [one, three] = [1, 3].map(|number| cluster.node(number));
        let skew = async |node: &Arc<Node>, reads: u64, writes: u64| {
            let txn = begin(node);
            number(&txn, reads, Mode::Shared).await?;
            set(&txn, writes, 0);
            txn.commit().await
        };
        let (a, b) = futures::join!(skew(&one, LEFT, RIGHT), skew(&three, RIGHT, LEFT));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    });
}

#[test]
fn a_lock_is_waited_for_as_long_as_one_likes() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let node = cluster.node(1);
        let holder = begin(&node);
        number(&holder, RIGHT, Mode::Update).await.expect("read");
        let get = async |wait: Wait| {
            let txn = begin(&node);
            let read = txn.get(vec![key(RIGHT)], Mode::Update, wait).await;
            read.map(|rows| rows.len())
        };
        let (took, refused) = cluster.time(get(Wait::For(Duration::ZERO))).await;
        assert_eq!(refused, Err(TxnError::Locked));
        assert!(took < millis(70), "{took:?}: one round trip");
        for wait in [millis(500), millis(4_500)] {
            let (took, refused) = cluster.time(get(Wait::For(wait))).await;
            assert_eq!(refused, Err(TxnError::Locked));
            assert!(took >= wait && took < wait + millis(200), "{took:?} of {wait:?}");
        }
        let writes = async {
            let txn = begin(&node);
            txn.set_wait(Wait::For(millis(300)));
            set(&txn, RIGHT, 1);
            txn.commit().await
        };
        assert_eq!(writes.await, Err(TxnError::Locked));
        let ends = async {
            node.env().sleep(Duration::from_secs(20)).await;
            set(&holder, RIGHT, 5);
            holder.commit().await
        };
        let (waited, ended) = futures::join!(get(Wait::Forever), ends);
        assert_eq!(waited, Ok(1));
        ended.expect("nobody was older");
    });
}

#[test]
fn reads_of_one_transaction_go_on_side_by_side() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let (one, two) = (cluster.node(1), cluster.node(2));
        let txn = begin(&one);
        // The first request to a tablet goes alone.
        let both = futures::future::join(
            number(&txn, LEFT, Mode::Shared),
            number(&txn, LEFT, Mode::Update),
        );
        assert_eq!(both.await, (Ok(100), Ok(100)));
        // An older one takes the locks away: whatever is read later must not go unnoticed.
        let older = begin_as_old_as(&two, Age { began: Timestamp::MIN, ..txn.age() });
        number(&older, LEFT, Mode::Update).await.expect("it is older");
        let both = futures::future::join(
            number(&txn, LEFT, Mode::Shared),
            txn.get(vec![key(LEFT + 1)], Mode::Shared, Wait::Forever),
        );
        assert_eq!(both.await, (Err(TxnError::Conflict), Err(TxnError::Conflict)));
    });
}

#[test]
fn what_comes_after_a_savepoint_is_not_committed() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let node = cluster.node(1);
        let txn = begin(&node);
        set(&txn, LEFT, 1);
        let savepoint = txn.savepoint();
        set(&txn, LEFT, 2);
        set(&txn, RIGHT, 2);
        assert_eq!(number(&txn, RIGHT, Mode::Shared).await, Ok(2));
        txn.roll_back_to(savepoint);
        assert_eq!(number(&txn, RIGHT, Mode::Shared).await, Ok(100));
        txn.commit().await.expect("committed");
        assert_eq!(scan(&node).await, Ok(vec![(LEFT, 1), (RIGHT, 100)]));
    });
}

#[test]
fn under_two_phase_nobody_waits_for_clocks() {
    run(1, "metro-3", millis(100), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let node = cluster.node(1);
        node.env().sleep(millis(1_000)).await;
        let txn = node.begin(None, CommitProtocol::TwoPhase, Timestamp::MIN);
        set(&txn, LEFT, 1);
        set(&txn, RIGHT, 1);
        let (took, committed) = cluster.time(txn.commit()).await;
        committed.expect("committed");
        assert!(took < millis(20), "{took:?}");
        // Nor where the coordinator isn't.
        let (took, read) = cluster.time(get(&cluster.node(3), RIGHT)).await;
        assert_eq!(read, Ok(Some(1)));
        assert!(took < millis(20), "{took:?}");
    });
}

/// The clock of node 2, which leads the right tablet, is ahead by 200 ms of that of node 1, which leads
/// the left one.
#[test]
fn what_is_overwritten_after_it_was_read_is_overwritten_later_than_all_that_was_read() {
    let setup = Setup { epsilon: millis(100), skewed: true, ..on_metro() };
    run_setup(setup, |cluster| async move {
        two_tablets(&cluster, 2).await;
        let node = cluster.node(1);
        node.env().sleep(millis(1_000)).await;
        let begin = || node.begin(None, CommitProtocol::TwoPhase, Timestamp::MIN);
        let first = begin();
        set(&first, RIGHT, 1);
        let first = first.commit().await.expect("committed");
        let reader = begin();
        assert_eq!(number(&reader, RIGHT, Mode::Shared).await, Ok(1));
        assert_eq!(number(&reader, LEFT, Mode::Shared).await, Ok(100));
        reader.commit().await.expect("nothing has changed");
        let second = begin();
        set(&second, LEFT, 1);
        let second = second.commit().await.expect("committed");
        assert!(second > first, "{first} was read before {second} was written");
    });
}

fn on_metro() -> Setup {
    Setup { topology: "metro-3", ..Setup::default() }
}

#[test]
fn locks_go_with_their_gateway() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let txn = begin(&cluster.node(2));
        number(&txn, LEFT, Mode::Update).await.expect("read");
        std::mem::forget(txn);
        cluster.stop(2).await;
        let (took, written) = cluster.time(put(&cluster.node(1), LEFT, 5)).await;
        written.expect("written");
        println!("{took:?}");
        assert!(took > millis(1_500) && took < millis(4_000), "{took:?}");
    });
}

#[test]
fn a_split_in_the_middle_ends_a_transaction_or_does_not_touch_it() {
    run(1, "us-eu-3", millis(1), |cluster| async move {
        two_tablets(&cluster, 3).await;
        let node = cluster.node(1);
        let touched = begin(&node);
        let range = KeyRange { start: key(0), end: Some(key(200)) };
        touched.scan(range, Mode::Shared, Wait::Forever).await.expect("read");
        set(&touched, RIGHT, 1);
        let untouched = begin(&node);
        number(&untouched, LEFT, Mode::Update).await.expect("read");
        set(&untouched, LEFT, 9);
        node.split(key(100)).await.expect("split");
        assert_eq!(touched.commit().await, Err(TxnError::Conflict));
        untouched.commit().await.expect("committed");
        assert_eq!(scan(&node).await, Ok(vec![(LEFT, 9), (RIGHT, 100)]));
        assert_eq!(node.tablets(&table_range(TABLE)).await.expect("known").len(), 3);
    });
}
