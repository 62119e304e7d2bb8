//! Everything at once, drawn from a seed: tablets are split, merged, moved, placed and handed over, nodes
//! stop and crash, links break, while clients write, read and scan. With some seeds tablets also split
//! by themselves: by size, or where the clients are at present, and merge again where they were.
//!
//! Every key has one writer, whose numbers grow. So a read is right if it is no older than what was
//! acknowledged when it began, and no newer than what was begun when it ended, or if it is what a
//! write left whose outcome its client did not learn: that may be carried out late. A scan at one
//! timestamp is right if that holds for each of its keys and it has each key once. In the end, once
//! all is healed, every acknowledged write is there, the replicas are equal, and the directory is
//! what the tablets say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use meridian_storage::NodeId;
use meridian_truetime::{Env, EnvironmentExt, seeds};
use meridian_txn::{Node, PlacementChange, SplitOptions, TxnError, table_range};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use crate::checks::settle;
use crate::cluster::{Cluster, Setup, TABLE, key, run_setup};
use crate::kv::{get, put, scan};

pub const NODES: u64 = 5;
const WRITERS: u64 = 4;
const KEYS: u64 = 60;

/// What clients know of a key.
#[derive(Clone, Debug, Default)]
struct Writes {
    /// The last number acknowledged.
    acknowledged: u64,
    /// The last number begun.
    begun: u64,
    /// Numbers that may be written at any time.
    unknown: BTreeSet<u64>,
}

type Known = Arc<Mutex<BTreeMap<u64, Writes>>>;

fn known(known: &Known, k: u64) -> Writes {
    known.lock().expect("no panics").get(&k).cloned().unwrap_or_default()
}

pub fn gateway(cluster: &Cluster, rng: &mut StdRng) -> Option<Arc<Node>> {
    let running = cluster.running();
    let number = *running.get(rng.random_range(0..running.len().max(1)))?;
    Some(cluster.node(number))
}

/// A tablet that is asked so often per second is hot, if tablets are split by load.
const HOT: u32 = 15;

/// When tablets split and merge by themselves.
fn splits(seed: u64) -> SplitOptions {
    let by_hand =
        SplitOptions { split_size: None, merge_after: None, ..SplitOptions::virtual_time() };
    match seed % 3 {
        1 => SplitOptions { split_size: Some(1_000), ..by_hand },
        2 => SplitOptions {
            split_size: Some(1 << 20),
            split_load: Some(HOT),
            load_window: Duration::from_secs(2),
            merge_after: Some(Duration::from_secs(3)),
        },
        _ => by_hand,
    }
}

/// One key of each writer: any, or where tablets are split by load, one of a few that are asked for
/// at present.
fn pick(cluster: &Cluster, env: &Env, rng: &mut StdRng) -> u64 {
    let all = KEYS / WRITERS;
    if cluster.setup.splits.split_load.is_none() {
        return rng.random_range(0..all) * WRITERS;
    }
    let period = env.moment().as_nanos() / 7_000_000_000;
    (period * 4 + rng.random_range(0..4)) % all * WRITERS
}

async fn write(cluster: Arc<Cluster>, env: Env, writer: u64, until: Duration, state: Known) -> u64 {
    let mut rng = env.fork_rng();
    let began = env.moment();
    let mut acknowledged = 0;
    while env.moment().since(began) < until {
        let k = pick(&cluster, &env, &mut rng) + writer;
        if let Some(node) = gateway(&cluster, &mut rng) {
            let value = known(&state, k).begun + 1;
            state.lock().expect("no panics").entry(k).or_default().begun = value;
            // With its gateway gone, an answer never comes.
            let written = env.timeout(Duration::from_secs(20), put(&node, k, value)).await;
            let mut state = state.lock().expect("no panics");
            let writes = state.entry(k).or_default();
            match written {
                Ok(Ok(_)) => {
                    acknowledged += 1;
                    writes.acknowledged = value;
                }
                Err(_) | Ok(Err(TxnError::Unknown { .. })) => {
                    writes.unknown.insert(value);
                }
                Ok(Err(_)) => {}
            }
        }
        env.sleep(Duration::from_millis(rng.random_range(0..80))).await;
    }
    acknowledged
}

fn check(k: u64, before: &Writes, found: u64, after: &Writes) {
    let in_order = found >= before.acknowledged && found <= after.begun;
    assert!(
        in_order || after.unknown.contains(&found),
        "key {k}: read {found}; before: {before:?}, now: {after:?}"
    );
}

async fn read(cluster: Arc<Cluster>, env: Env, until: Duration, state: Known) -> u64 {
    let mut rng = env.fork_rng();
    let began = env.moment();
    let mut read = 0;
    while env.moment().since(began) < until {
        env.sleep(Duration::from_millis(rng.random_range(0..150))).await;
        let Some(node) = gateway(&cluster, &mut rng) else { continue };
        let patience = Duration::from_secs(20);
        let scans = if cluster.setup.splits.split_load.is_none() { 0.3 } else { 0.1 };
        if !rng.random_bool(scans) {
            let k = pick(&cluster, &env, &mut rng) + rng.random_range(0..WRITERS);
            let before = known(&state, k);
            if let Ok(Ok(found)) = env.timeout(patience, get(&node, k)).await {
                check(k, &before, found.unwrap_or(0), &known(&state, k));
                read += 1;
            }
            continue;
        }
        let before: Vec<_> = (0..KEYS).map(|k| known(&state, k)).collect();
        if let Ok(Ok(found)) = env.timeout(patience, scan(&node)).await {
            assert!(found.is_sorted_by(|a, b| a.0 < b.0), "each key once, in order: {found:?}");
            let found: BTreeMap<u64, u64> = found.into_iter().collect();
            for (k, before) in (0..KEYS).zip(before) {
                let found = found.get(&k).copied().unwrap_or(0);
                check(k, &before, found, &known(&state, k));
            }
            read += 1;
        }
    }
    read
}

/// One thing that an operator or an accident does.
async fn disturb(cluster: &Arc<Cluster>, env: &Env, rng: &mut StdRng, seed: u64) {
    let random_node = |rng: &mut StdRng| NodeId::new(rng.random_range(1..=NODES));
    let dice = rng.random_range(0..100);
    match dice {
        0..15 => {
            let running = cluster.running();
            // Two of five may be gone; three replicas keep a majority only if one is.
            if running.len() as u64 == NODES {
                let number = running[rng.random_range(0..running.len())];
                if dice < 8 {
                    cluster.crash(number, seed ^ rng.next_u64()).await;
                } else {
                    cluster.stop(number).await;
                }
            }
        }
        15..32 => restart_all(cluster).await,
        32..35 => {
            // Its clients go on asking it.
            let alone = random_node(rng);
            for other in (1..=NODES).map(NodeId::new).filter(|other| *other != alone) {
                cluster.network.cut(alone, other);
            }
        }
        35..40 => {
            let (a, b) = (random_node(rng), random_node(rng));
            if dice < 38 {
                cluster.network.cut(a, b);
            } else {
                cluster.network.cut_one_way(a, b);
            }
        }
        40..52 => cluster.network.heal(),
        _ => {
            let Some(node) = gateway(cluster, rng) else { return };
            let changing = change(node, rng);
            // It goes on by itself when nobody waits any more.
            env.spawn(changing);
        }
    }
}

/// Lets clients do what they do while something happens from time to time, until then; no pause is
/// longer than the second. Then all is healed, and the cluster comes to rest.
pub async fn under_faults(
    cluster: &Arc<Cluster>,
    env: &Env,
    (until, pause): (Duration, Duration),
    seed: u64,
    clients: Vec<BoxFuture<'static, ()>>,
) {
    let nemesis = async {
        let mut rng = env.fork_rng();
        let began = env.moment();
        while env.moment().since(began) < until {
            env.sleep(rng.random_range(Duration::from_millis(100)..pause)).await;
            disturb(cluster, env, &mut rng, seed).await;
        }
    };
    futures::join!(futures::future::join_all(clients), nemesis);
    cluster.network.heal();
    restart_all(cluster).await;
    settle(cluster).await;
}

async fn restart_all(cluster: &Arc<Cluster>) {
    let running = cluster.running();
    for number in 1..=NODES {
        if !running.contains(&number) {
            cluster.restart(number).await;
        }
    }
}

/// A change of the tablets. Any of them may fail; none may do harm.
fn change(node: Arc<Node>, rng: &mut StdRng) -> impl Future<Output = ()> + Send + 'static {
    let dice = rng.random_range(0..100);
    let split_at = key(rng.random_range(1..KEYS));
    let to = NodeId::new(rng.random_range(1..=NODES));
    let pick = rng.next_u64();
    let region = ["us-east", "us-west", "eu-west"][rng.random_range(0..3)];
    async move {
        let Ok(tablets) = node.tablets(&table_range(TABLE)).await else { return };
        let index = usize::try_from(pick % tablets.len() as u64).expect("small");
        let tablet = &tablets[index];
        let outcome: Result<(), TxnError> = match dice {
            0..30 => node.split(split_at).await.map(drop),
            30..45 => node.merge(tablet.id).await.map(drop),
            45..65 => node.transfer_leader(tablet.id, to).await,
            65..85 => {
                let voters = &tablet.voters;
                let from = voters[usize::try_from(pick / 7).expect("64 bits") % voters.len()];
                node.move_replica(tablet.id, from, to).await
            }
            _ => {
                let change = PlacementChange {
                    leader_region: Some((dice < 95).then(|| region.to_owned())),
                    ..PlacementChange::default()
                };
                node.place(&tablet.range, change).await.map(drop)
            }
        };
        if let Err(error) = outcome {
            assert!(!matches!(error, TxnError::Internal(_)), "{error}");
        }
    }
}

/// The trace of one seed, and how many writes and reads went through.
fn history(seed: u64, seconds: u64) -> (u64, u64, u64) {
    let setup = Setup {
        seed,
        topology: "us-eu-3",
        nodes: NODES,
        epsilon: Duration::from_millis(
            [0, 1, 7, 40, 100][usize::try_from(seed % 5).expect("small")],
        ),
        skewed: true,
        log_keep: seed.is_multiple_of(2).then_some(40),
        splits: splits(seed),
        ..Setup::default()
    };
    run_setup(setup, |cluster| async move {
        cluster.create_tablet(seed % NODES + 1).await;
        let env: Env = cluster.world.node(10_000);
        let until = Duration::from_secs(seconds);
        let state = Known::default();
        let done = Arc::new(Mutex::new((0, 0)));
        let mut clients: Vec<BoxFuture<'static, ()>> = Vec::new();
        for client in 0..WRITERS + 2 {
            let (cluster, state, done) =
                (Arc::clone(&cluster), Arc::clone(&state), Arc::clone(&done));
            let env: Env = cluster.world.node(10_001 + client);
            clients.push(Box::pin(async move {
                if client < WRITERS {
                    let writes = write(cluster, env, client, until, state).await;
                    done.lock().expect("no panics").0 += writes;
                } else {
                    let reads = read(cluster, env, until, state).await;
                    done.lock().expect("no panics").1 += reads;
                }
            }));
        }
        under_faults(&cluster, &env, (until, Duration::from_secs(2)), seed, clients).await;
        let node = cluster.node(1);
        let found: BTreeMap<u64, u64> =
            scan(&node).await.expect("the cluster serves").into_iter().collect();
        for k in 0..KEYS {
            let known = known(&state, k);
            check(k, &known, found.get(&k).copied().unwrap_or(0), &known);
        }
        let tablets = node.tablets(&table_range(TABLE)).await.expect("known");
        let taken = node.new_tablet_id().await.expect("an id").get() - 2;
        println!("{taken} ids of tablets were taken, {} tablets are there", tablets.len());
        let (writes, reads) = *done.lock().expect("no panics");
        (cluster.network.trace_hash(), writes, reads)
    })
}

#[test]
fn tablets_change_under_faults_and_nothing_is_lost() {
    seeds::run("chaos::tablets_change_under_faults_and_nothing_is_lost", 0..8, |seed| {
        let (hash, writes, reads) = history(seed, 30);
        assert!(writes > 50 && reads > 5, "{writes} writes, {reads} reads");
        format!("{writes} writes, {reads} reads, trace {hash:016x}")
    });
}
