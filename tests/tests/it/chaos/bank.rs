//! Money that is moved between accounts in several tablets, with an entry in a ledger for each time.
//!
//! Whatever happens, no money is made or lost, every balance is what the ledger says, every transfer
//! that was acknowledged is in the ledger, and none that has failed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use meridian_lab::{ClientError, Outcome, Reply};
use meridian_truetime::{Env, EnvironmentExt, Moment};
use rand::RngExt;

use super::Stage;
use super::session::{Sessions, is_fault};

const ACCOUNTS: i64 = 9;
const BALANCE: i64 = 100;
const TOTAL: i64 = ACCOUNTS * BALANCE;

pub const SCHEMA: [&str; 5] = [
    "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL)",
    "CREATE TABLE ledger (id int PRIMARY KEY, source int, target int, amount bigint NOT NULL)",
    "SELECT meridian.split('accounts', 3)",
    "SELECT meridian.split('accounts', 6)",
    "INSERT INTO accounts VALUES (0, 100), (1, 100), (2, 100), (3, 100), (4, 100), (5, 100),
        (6, 100), (7, 100), (8, 100)",
];

/// What became of the transfers.
#[derive(Debug, Default)]
pub struct Bank(Mutex<BTreeMap<i64, Fate>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    Failed,
    Unknown,
}

impl Bank {
    /// How many were committed.
    pub fn committed(&self) -> usize {
        self.fates().values().filter(|fate| **fate == Fate::Committed).count()
    }

    fn fates(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Fate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn numbers(reply: &Reply) -> Vec<Vec<i64>> {
    let number =
        |cell: &Option<String>| cell.as_deref().expect("no NULL").parse().expect("a number");
    reply.rows.iter().map(|row| row.iter().map(number).collect()).collect()
}

/// Runs a transaction in one session, to which nobody comes back if it fails.
async fn block(
    sessions: &mut Sessions,
    begin: &str,
    work: impl AsyncFnOnce(&mut Sessions) -> Result<(), ClientError>,
) -> Result<(), (ClientError, bool)> {
    let mut committing = false;
    let done = async {
        sessions.run(begin).await?;
        sessions.stay(true);
        work(sessions).await?;
        committing = true;
        let ended = sessions.run("COMMIT").await?;
        assert_eq!(ended.tag, "COMMIT");
        Ok(())
    };
    let done = done.await;
    if done.is_err() {
        sessions.leave();
    }
    sessions.stay(false);
    done.map_err(|error| (error, committing))
}

/// Moves money between two accounts, again and again.
pub async fn transfer(stage: Arc<Stage>, env: Env, mover: i64, until: Moment) {
    let mut rng = env.fork_rng();
    let mut sessions = Sessions::new(Arc::clone(&stage.cluster), Arc::clone(&env));
    for number in 0.. {
        env.sleep(std::time::Duration::from_millis(rng.random_range(0..400))).await;
        if env.moment() > until {
            return;
        }
        let id = mover * 1_000_000 + number;
        let source = rng.random_range(0..ACCOUNTS);
        let target = (source + rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let most = rng.random_range(1..60);
        let locks = if rng.random_bool(0.7) { " FOR UPDATE" } else { "" };
        let moved = block(&mut sessions, "BEGIN", async |sessions| {
            let balance = format!("SELECT balance FROM accounts WHERE id = {source}{locks}");
            let balance = numbers(&sessions.run(&balance).await?)[0][0];
            let amount = balance.min(most);
            for (account, amount) in [(source, -amount), (target, amount)] {
                let change = format!("balance = balance + {amount}");
                let sql = format!("UPDATE accounts SET {change} WHERE id = {account}");
                assert_eq!(sessions.run(&sql).await?.tag, "UPDATE 1");
            }
            let row = format!("({id}, {source}, {target}, {amount})");
            sessions.run(&format!("INSERT INTO ledger VALUES {row}")).await.map(drop)
        });
        let fate = match moved.await {
            Ok(()) => Fate::Committed,
            Err((error, committing)) => {
                assert!(is_fault(&error), "{error:?}");
                // What was not committed is nowhere, whatever the client was told.
                let unknown = committing && error.outcome == Outcome::Unknown;
                if unknown { Fate::Unknown } else { Fate::Failed }
            }
        };
        stage.bank.fates().insert(id, fate);
    }
}

/// Adds all accounts up in the ways that there are, again and again.
pub async fn audit(stage: Arc<Stage>, env: Env, until: Moment) {
    let mut rng = env.fork_rng();
    let mut sessions = Sessions::new(Arc::clone(&stage.cluster), Arc::clone(&env));
    while env.moment() < until {
        env.sleep(std::time::Duration::from_millis(rng.random_range(0..900))).await;
        let sum = "SELECT sum(balance) FROM accounts";
        let low = format!("{sum} WHERE id < 4");
        let high = format!("{sum} WHERE id >= 4");
        let mut total = None;
        let done = match rng.random_range(0..4) {
            0 => sessions.run(sum).await.map(|reply| total = Some(numbers(&reply)[0][0])),
            3 => {
                // Wherever the nearest replicas are; there may have been no accounts then.
                let back = rng.random_range(0..4_000);
                let sum = format!("SELECT coalesce(sum(balance), {TOTAL}) FROM accounts");
                let past = format!("{sum} AS OF SYSTEM TIME '-{back}ms'");
                sessions.run(&past).await.map(|reply| total = Some(numbers(&reply)[0][0]))
            }
            kind => {
                let begin = if kind == 1 { "BEGIN READ ONLY" } else { "BEGIN" };
                let mut parts = 0;
                let done = block(&mut sessions, begin, async |sessions| {
                    parts = numbers(&sessions.run(&low).await?)[0][0];
                    parts += numbers(&sessions.run(&high).await?)[0][0];
                    Ok(())
                });
                let done = done.await.map_err(|(error, _)| error);
                done.map(|()| total = Some(parts))
            }
        };
        match done {
            Ok(()) => assert_eq!(total, Some(TOTAL), "money was made or lost"),
            Err(error) => assert!(is_fault(&error), "{error:?}"),
        }
    }
}

/// Once all is healed: what the books say.
pub async fn check(stage: &Stage, sessions: &mut Sessions) {
    let accounts = sessions.run("SELECT id, balance FROM accounts").await.expect("read");
    let ledger = sessions.run("SELECT id, source, target, amount FROM ledger").await.expect("read");
    let mut balances: BTreeMap<i64, i64> = (0..ACCOUNTS).map(|id| (id, BALANCE)).collect();
    let fates = stage.bank.fates().clone();
    let mut entered = 0;
    for row in numbers(&ledger) {
        let [id, source, target, amount] = row[..] else { panic!("{row:?}") };
        assert_ne!(fates.get(&id), Some(&Fate::Failed), "{row:?} was not to be");
        entered += usize::from(fates.get(&id) == Some(&Fate::Committed));
        *balances.entry(source).or_default() -= amount;
        *balances.entry(target).or_default() += amount;
    }
    assert_eq!(entered, stage.bank.committed(), "acknowledged transfers are missing");
    let found: BTreeMap<i64, i64> =
        numbers(&accounts).into_iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(found, balances, "the balances are not what the ledger says");
}
