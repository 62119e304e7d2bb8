//! What an operation takes is what the topology says, to the microsecond.

use std::time::Duration;

use meridian_storage::TabletId;
use meridian_truetime::Timestamp;
use meridian_txn::ReadAt;

use crate::cluster::{Cluster, insert, key, run};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

async fn write_takes(cluster: &Cluster, gateway: u64, k: u64) -> Duration {
    let node = cluster.node(gateway);
    // A gateway's first request to a tablet reads the directory.
    node.refresh_directory().await.expect("read");
    let (took, result) = cluster.time(node.write(insert(k, "x"))).await;
    result.expect("written");
    took
}

#[test]
fn a_write_takes_one_majority_round_trip_and_the_hop_to_the_leader() {
    run(1, "us-eu-3", Duration::ZERO, |cluster| async move {
        cluster.create_tablet(1).await;
        // From the leader: us-east to eu-west and back, 64 ms.
        let local = write_takes(&cluster, 1, 1).await;
        assert!(local >= millis(64) && local < millis(65), "{local:?}");
        let hop = write_takes(&cluster, 3, 2).await;
        assert!(hop >= millis(128) && hop < millis(129), "{hop:?}");
        let far = write_takes(&cluster, 2, 3).await;
        assert!(far >= millis(130) && far < millis(131), "{far:?}");
    });
}

#[test]
fn commit_wait_overlaps_with_replication() {
    // 2ε = 20 ms disappears behind the 64 ms of replication; 2ε = 80 ms is what one waits for.
    for (epsilon, floor) in [(10, 64), (40, 80)] {
        run(1, "us-eu-3", millis(epsilon), |cluster| async move {
            cluster.create_tablet(1).await;
            let took = write_takes(&cluster, 1, 1).await;
            assert!(took >= millis(floor) && took < millis(floor + 1), "{took:?}");
        });
    }
}

#[test]
fn a_strong_read_confirms_leadership_with_a_majority_and_an_unconfirmed_one_does_not() {
    run(1, "us-eu-3", millis(4), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        let read = |at| node.get(TabletId::new(2), vec![key(1)], at);
        let (strong, result) = cluster.time(read(ReadAt::Strong { min: Timestamp::MIN })).await;
        result.expect("read");
        // openraft confirms with one heartbeat at a time per follower, so that the nearer one's may
        // have to wait: 64 ms at best, 66 + 2 at worst.
        assert!(strong >= millis(64) && strong <= millis(68), "{strong:?}");
        let (unconfirmed, result) = cluster.time(read(ReadAt::Unconfirmed)).await;
        result.expect("read");
        assert!(unconfirmed < millis(1), "{unconfirmed:?}");
    });
}
