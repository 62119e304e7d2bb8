//! A bank over several tablets, while everything happens that a seed can think of: transfers between
//! accounts move money and make none, and whoever looks sees the same total.
//!
//! In the end every account can be written through every node: nothing is left in doubt or locked.
//! Where commits wait, timestamps agree with real time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use meridian_storage::KeyRange;
use meridian_truetime::{Env, EnvironmentExt, Timestamp, seeds};
use meridian_txn::locks::{Age, Mode};
use meridian_txn::{CommitProtocol, Node, SplitOptions, TxnError, Wait, table_range};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::chaos::{NODES, gateway, under_faults};
use crate::cluster::{Cluster, Setup, TABLE, key, run_setup};
use crate::kv::scan;

pub const ACCOUNTS: u64 = 12;
const CLIENTS: u64 = 4;
const READERS: u64 = 2;
const BALANCE: u64 = 1_000;
pub const TOTAL: u64 = ACCOUNTS * BALANCE;

/// How a transfer ended.
#[derive(Debug, Default)]
pub struct Counts {
    pub committed: u64,
    conflicts: u64,
    unknown: u64,
    refused: u64,
    read: u64,
    /// Of those acknowledged: when they began and ended, and their timestamps.
    acknowledged: Vec<(Timestamp, Timestamp, Timestamp)>,
}

pub type Shared = Arc<Mutex<Counts>>;

/// An account's key: they lie far apart, so that tablets are split between them.
pub fn account(number: u64) -> Vec<u8> {
    key(number * 5)
}

pub fn balance(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().expect("a number"))
}

/// One attempt at a transfer.
async fn transfer(
    node: &Arc<Node>,
    age: &mut Option<Age>,
    (from, to, amount): (u64, u64, u64),
    protocol: CommitProtocol,
    rng: &mut StdRng,
) -> Result<Timestamp, TxnError> {
    let txn = node.begin(*age, protocol, Timestamp::MIN);
    age.get_or_insert(txn.age());
    // Some say that they will write, and some deadlock for it.
    let mode = if rng.random_bool(0.7) { Mode::Update } else { Mode::Shared };
    let keys = [account(from), account(to)];
    let mut balances = Vec::new();
    for key in &keys {
        let rows = txn.get(vec![key.clone()], mode, Wait::Forever).await?;
        balances.push(balance(&rows[0].as_ref().expect("an account").value));
    }
    let moved = amount.min(balances[0]);
    txn.put(keys[0].clone(), (balances[0] - moved).to_be_bytes().to_vec());
    txn.put(keys[1].clone(), (balances[1] + moved).to_be_bytes().to_vec());
    txn.commit().await
}

pub async fn transfers(
    cluster: Arc<Cluster>,
    env: Env,
    until: Duration,
    protocol: CommitProtocol,
    counts: Shared,
) {
    let mut rng = env.fork_rng();
    let began = env.moment();
    while env.moment().since(began) < until {
        env.sleep(Duration::from_millis(rng.random_range(0..60))).await;
        let from = rng.random_range(0..ACCOUNTS);
        let to = (from + rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let what = (from, to, rng.random_range(1..200));
        let mut age = None;
        for _ in 0..5 {
            let Some(node) = gateway(&cluster, &mut rng) else { break };
            let begins = cluster.world.true_time();
            let attempt = transfer(&node, &mut age, what, protocol, &mut rng);
            // With its gateway gone, an answer never comes.
            let ended = env.timeout(Duration::from_secs(40), attempt).await;
            let mut counts = counts.lock().expect("no panics");
            match ended {
                Ok(Ok(at)) => {
                    counts.committed += 1;
                    let ends = cluster.world.true_time();
                    if protocol == CommitProtocol::CommitWait {
                        assert!(at >= begins && at < ends, "{at} is not in {begins} to {ends}");
                        counts.acknowledged.push((begins, ends, at));
                    }
                    break;
                }
                Ok(Err(TxnError::Conflict)) => counts.conflicts += 1,
                Ok(Err(TxnError::Unknown { .. })) | Err(_) => {
                    counts.unknown += 1;
                    break;
                }
                Ok(Err(error)) => {
                    assert!(!matches!(error, TxnError::Internal(_)), "{error}");
                    counts.refused += 1;
                    break;
                }
            }
        }
    }
}

/// Looks at all accounts, in a snapshot or in a transaction.
async fn look(node: &Arc<Node>, in_a_snapshot: bool) -> Result<u64, TxnError> {
    if in_a_snapshot {
        return Ok(scan(node).await?.into_iter().map(|(_, balance)| balance).sum());
    }
    let txn = node.begin(None, CommitProtocol::CommitWait, Timestamp::MIN);
    let rows = txn.scan(table_range(TABLE), Mode::Shared, Wait::Forever).await?;
    let total = rows.iter().map(|row| balance(&row.value)).sum();
    txn.commit().await?;
    Ok(total)
}

async fn looks(cluster: Arc<Cluster>, env: Env, until: Duration, counts: Shared) {
    let mut rng = env.fork_rng();
    let began = env.moment();
    while env.moment().since(began) < until {
        env.sleep(Duration::from_millis(rng.random_range(50..400))).await;
        let Some(node) = gateway(&cluster, &mut rng) else { continue };
        let in_a_snapshot = rng.random_bool(0.8);
        let looked = env.timeout(Duration::from_secs(20), look(&node, in_a_snapshot)).await;
        if let Ok(Ok(total)) = looked {
            assert_eq!(total, TOTAL, "in a snapshot: {in_a_snapshot}");
            counts.lock().expect("no panics").read += 1;
        }
    }
}

/// A cluster for a bank, and how it commits.
pub fn setup(seed: u64) -> (Setup, CommitProtocol) {
    let protocol =
        if seed % 4 == 3 { CommitProtocol::TwoPhase } else { CommitProtocol::CommitWait };
    let splits =
        SplitOptions { split_size: None, merge_after: None, ..SplitOptions::virtual_time() };
    let setup = Setup {
        seed,
        topology: ["us-eu-3", "metro-3"][usize::try_from(seed % 2).expect("small")],
        nodes: NODES,
        epsilon: Duration::from_millis([0, 2, 30][usize::try_from(seed % 3).expect("small")]),
        skewed: true,
        log_keep: seed.is_multiple_of(2).then_some(40),
        splits,
        ..Setup::default()
    };
    (setup, protocol)
}

/// Opens the accounts, in three tablets; as of when they are there.
pub async fn open(cluster: &Cluster, protocol: CommitProtocol) -> Timestamp {
    let node = cluster.node(1);
    node.refresh_directory().await.expect("read");
    let open = node.begin(None, protocol, Timestamp::MIN);
    for number in 0..ACCOUNTS {
        open.put(account(number), BALANCE.to_be_bytes().to_vec());
    }
    let at = open.commit().await.expect("committed");
    for number in [4, 8] {
        node.split(account(number)).await.expect("split");
    }
    at
}

fn history(seed: u64, seconds: u64) -> (u64, Counts) {
    let (setup, protocol) = setup(seed);
    run_setup(setup, |cluster| async move {
        cluster.create_tablet(seed % NODES + 1).await;
        let env: Env = cluster.world.node(10_000);
        open(&cluster, protocol).await;
        let until = Duration::from_secs(seconds);
        let counts = Shared::default();
        let mut clients: Vec<BoxFuture<'static, ()>> = Vec::new();
        for client in 0..CLIENTS + READERS {
            let (cluster, counts) = (Arc::clone(&cluster), Arc::clone(&counts));
            let env: Env = cluster.world.node(10_001 + client);
            clients.push(Box::pin(async move {
                if client < CLIENTS {
                    transfers(cluster, env, until, protocol, counts).await;
                } else {
                    looks(cluster, env, until, counts).await;
                }
            }));
        }
        under_faults(&cluster, &env, (until, Duration::from_millis(2_500)), seed, clients).await;
        // Nobody is in doubt any more, and every account can be written.
        for gateway in cluster.running() {
            let node = cluster.node(gateway);
            let mut age = None;
            let mut all = None;
            for _ in 0..20 {
                let txn = node.begin(age, protocol, Timestamp::MIN);
                age = Some(txn.age());
                let range = KeyRange { start: account(0), end: Some(key(ACCOUNTS * 5)) };
                let read = txn.scan(range, Mode::Update, Wait::Forever).await;
                let Ok(rows) = read else { continue };
                for row in &rows {
                    txn.put(row.key.clone(), row.value.clone());
                }
                if txn.commit().await.is_ok() {
                    all = Some(rows.iter().map(|row| balance(&row.value)).sum::<u64>());
                    break;
                }
            }
            assert_eq!(all, Some(TOTAL), "through node {gateway}");
        }
        let counts = std::mem::take(&mut *counts.lock().expect("no panics"));
        expect_external_consistency(&counts);
        (cluster.network.trace_hash(), counts)
    })
}

/// Who has begun after another was acknowledged has a later timestamp.
fn expect_external_consistency(counts: &Counts) {
    for (_, ended, first) in &counts.acknowledged {
        for (begun, _, second) in &counts.acknowledged {
            assert!(
                ended >= begun || first < second,
                "{first} ended {ended}, {second} began {begun}"
            );
        }
    }
}

#[test]
fn money_is_moved_and_never_made() {
    seeds::run("bank::money_is_moved_and_never_made", 0..6, |seed| {
        let (hash, counts) = history(seed, 20);
        let Counts { committed, conflicts, unknown, refused, read, .. } = counts;
        assert!(committed > 10 && read > 3, "{counts:?}");
        format!(
            "{committed} committed, {conflicts} conflicts, {unknown} unknown, {refused} refused, \
             {read} read, trace {hash:016x}"
        )
    });
}
