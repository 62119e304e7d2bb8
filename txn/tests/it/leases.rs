//! One leader at a time, by leases: who reads at a leader needs no majority, and yet no read is stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_storage::NodeId;
use meridian_truetime::EnvironmentExt;

use crate::cluster::{Setup, run_setup};
use crate::kv::{get, put};

fn on(topology: &'static str, seed: u64, epsilon: u64) -> Setup {
    let epsilon = Duration::from_millis(epsilon);
    Setup { seed, topology, nodes: 3, epsilon, skewed: true, ..Setup::default() }
}

/// Node 1 leads and is cut off. Clients beside it read on; another client writes elsewhere.
#[test]
fn a_leader_that_is_cut_off_answers_no_stale_read() {
    for (seed, topology, epsilon) in
        [(1, "us-eu-3", 0), (2, "us-eu-3", 40), (3, "metro-3", 100), (4, "world-10", 7)]
    {
        run_setup(on(topology, seed, epsilon), |cluster| async move {
            cluster.create_tablet(1).await;
            let [cut_off, other] = [1, 2].map(|number| cluster.node(number));
            other.refresh_directory().await.expect("read");
            put(&cut_off, 1, 1).await.expect("written");
            for other in [2, 3].map(NodeId::new) {
                cluster.network.cut(NodeId::new(1), other);
            }
            let acknowledged = Arc::new(AtomicU64::new(1));
            let (served, refused) = (AtomicU64::new(0), AtomicU64::new(0));
            let begin = cluster.world.moment();
            let reads = async {
                while cluster.world.moment().since(begin) < Duration::from_secs(20) {
                    let before = acknowledged.load(Ordering::SeqCst);
                    let read = get(&cut_off, 1);
                    match cut_off.env().timeout(Duration::from_millis(100), read).await {
                        Ok(Ok(found)) => {
                            assert!(found >= Some(before), "{found:?} after {before}");
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                        _ => drop(refused.fetch_add(1, Ordering::SeqCst)),
                    }
                    cut_off.env().sleep(Duration::from_millis(3)).await;
                }
            };
            let writes = async {
                for value in 2..40 {
                    // The first one asks in vain whoever led last.
                    while put(&other, 1, value).await.is_err() {}
                    if value == 2 {
                        let took = cluster.world.moment().since(begin);
                        println!("{topology}, ε = {epsilon} ms: served again after {took:?}");
                    }
                    acknowledged.store(value, Ordering::SeqCst);
                }
            };
            futures::join!(reads, writes);
            // Its lease lasts a while, and then it has none.
            let (served, refused) = (served.into_inner(), refused.into_inner());
            println!("{served} reads were served, {refused} were not");
            assert!(served > 50 && refused > 50);
        });
    }
}
