//! Transfers between tablets that different processes lead, while each of these is killed with -9 and
//! started again: the total holds, every acknowledged transfer is there, and none is half there.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_tests::support::{Processes, connect, eventually, real_time};
use meridian_truetime::{Environment, EnvironmentExt};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

const ACCOUNTS: i64 = 9;
const CLIENTS: i64 = 4;

/// What the clients know of the transfers.
#[derive(Debug, Default)]
struct Known {
    acknowledged: BTreeSet<i64>,
    /// They may be there or not.
    unknown: BTreeSet<i64>,
    /// They are certainly not.
    failed: u64,
}

/// One transfer. An error without a code is one of the connection.
async fn transfer(
    client: &Client,
    (number, from, to): (i64, i64, i64),
) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let lock = "SELECT balance FROM accounts WHERE id = $1 FOR UPDATE";
    let balance: i64 = client.query_one(lock, &[&from]).await?.get(0);
    let amount = balance.min(1 + number % 30);
    for (id, change) in [(from, -amount), (to, amount)] {
        let update = "UPDATE accounts SET balance = balance + $2 WHERE id = $1";
        client.execute(update, &[&id, &change]).await?;
    }
    let enter = "INSERT INTO transfers VALUES ($1, $2, $3, $4)";
    client.execute(enter, &[&number, &from, &to, &amount]).await?;
    Ok(())
}

async fn client(ports: [u16; 3], number: i64, over: Arc<AtomicBool>, known: Arc<Mutex<Known>>) {
    let env = real_time();
    let mut session = None;
    let mut next = number;
    while !over.load(Ordering::Relaxed) {
        let port = ports[usize::try_from(env.random() % 3).expect("small")];
        let open = match session.take() {
            Some(open) => open,
            None => match connect(port).await {
                Ok(open) => open,
                Err(_) => {
                    env.sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let from = i64::try_from(env.random() % 9).expect("small");
        let to = (from + 1 + i64::try_from(env.random() % 8).expect("small")) % ACCOUNTS;
        let begun = transfer(&open, (next, from, to)).await;
        let committed = match &begun {
            Ok(()) => open.batch_execute("COMMIT").await,
            Err(_) => Ok(()),
        };
        {
            let mut known = known.lock().expect("no panics");
            match (&begun, &committed) {
                (Ok(()), Ok(())) => drop(known.acknowledged.insert(next)),
                (Err(_), _) => known.failed += 1,
                (Ok(()), Err(error)) => match error.code() {
                    None | Some(&SqlState::TRANSACTION_RESOLUTION_UNKNOWN) => {
                        known.unknown.insert(next);
                    }
                    // The session's end cut the commit short.
                    Some(&SqlState::ADMIN_SHUTDOWN) => drop(known.unknown.insert(next)),
                    Some(_) => known.failed += 1,
                },
            }
        }
        next += CLIENTS;
        let broken = begun.is_err() && open.batch_execute("ROLLBACK").await.is_err();
        if !broken && !open.is_closed() {
            session = Some(open);
        }
    }
}

/// Waits until an account in each tablet can be written, through a node that lives.
async fn serves(cluster: &Processes, through: u16) {
    let client = cluster.connect(through).await;
    for id in [0, 4, 8] {
        eventually("an account can be written", async || {
            let update = "UPDATE accounts SET balance = balance WHERE id = $1";
            client.execute(update, &[&i64::from(id)]).await
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_survive_kill_9_of_each_process_in_turn() {
    let mut cluster = Processes::start(3).await;
    let first = cluster.connect(1).await;
    first
        .batch_execute(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);
             CREATE TABLE transfers (id bigint PRIMARY KEY, from_id bigint, to_id bigint,
                                     amount bigint);
             INSERT INTO accounts SELECT i, 100 FROM generate_series(0, 8) i",
        )
        .await
        .expect("tables");
    for (at, node) in [(3, 2), (6, 3)] {
        let split = format!("SELECT meridian.split('accounts', {at})");
        let tablet: i64 = first.query_one(&split, &[]).await.expect("split").get(0);
        let lead = format!("SELECT meridian.transfer_leader({tablet}, {node})");
        eventually("another leader", async || first.query(&lead, &[]).await).await;
    }
    let ports = [1, 2, 3].map(|node| cluster.sql_port(node));
    let (over, known) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Known>>::default());
    let (done, mut ended) = tokio::sync::mpsc::channel::<()>(1);
    for number in 0..CLIENTS {
        let (over, known, done) = (Arc::clone(&over), Arc::clone(&known), done.clone());
        real_time().spawn(async move {
            client(ports, number, over, known).await;
            drop(done);
        });
    }
    drop(done);
    let env = real_time();
    for node in 1..=3 {
        env.sleep(Duration::from_millis(1_500)).await;
        cluster.kill(node);
        let killed = env.moment();
        serves(&cluster, node % 3 + 1).await;
        println!(
            "node {node} is killed: all accounts serve after {:?}",
            env.moment().since(killed)
        );
        env.sleep(Duration::from_millis(500)).await;
        cluster.spawn(node);
        cluster.up(node).await;
    }
    env.sleep(Duration::from_millis(1_500)).await;
    over.store(true, Ordering::Relaxed);
    assert_eq!(ended.recv().await, None, "nobody says anything");

    let known = std::mem::take(&mut *known.lock().expect("no panics"));
    let check = cluster.connect(2).await;
    let numbers = "SELECT id FROM transfers";
    let rows = eventually("the transfers", async || check.query(numbers, &[]).await).await;
    let found: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let lost: Vec<_> = known.acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let all: BTreeSet<i64> = known.acknowledged.union(&known.unknown).copied().collect();
    let made: Vec<_> = found.difference(&all).collect();
    assert!(made.is_empty(), "they had failed: {made:?}");
    // One statement, one timestamp.
    let wrong = "SELECT a.id, a.balance, 100 + coalesce(sum(CASE WHEN t.to_id = a.id THEN t.amount
                 ELSE -t.amount END), 0)::bigint AS expected
                 FROM accounts a LEFT JOIN transfers t ON t.from_id = a.id OR t.to_id = a.id
                 GROUP BY a.id, a.balance";
    let rows = eventually("the balances", async || check.query(wrong, &[]).await).await;
    assert_eq!(rows.len(), 9);
    for row in rows {
        let (id, balance, expected): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(balance, expected, "account {id}");
    }
    let Known { acknowledged, unknown, failed } = known;
    println!("{} acknowledged, {} unknown, {failed} failed", acknowledged.len(), unknown.len());
    assert!(acknowledged.len() > 20, "too few to say anything");
}
