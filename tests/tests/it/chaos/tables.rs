//! A client that creates tables, uses them and drops them again.

use std::sync::Arc;
use std::time::Duration;

use meridian_lab::{ClientError, Outcome};
use meridian_server::cluster::Cluster;
use meridian_truetime::{Env, EnvironmentExt, Moment};
use rand::RngExt;

use super::session::{Sessions, is_fault};

const NAMES: [&str; 2] = ["x", "y"];

/// A table as its only client knows it.
#[derive(Clone, Debug)]
struct Table {
    name: &'static str,
    /// None if the outcome of a CREATE or DROP isn't known.
    exists: Option<bool>,
    /// How often it was created. All its rows say so, or they are of another life.
    life: i64,
    /// How many rows there are, numbered from 0 on.
    rows: i64,
    /// Whether there may be one more.
    doubt: bool,
}

/// The tables, and the client's way to them.
pub struct Tables {
    env: Env,
    sessions: Sessions,
    known: Vec<Table>,
}

impl Tables {
    pub fn new(cluster: Arc<Cluster>, env: Env) -> Self {
        let table = |name| Table { name, exists: Some(false), life: 0, rows: 0, doubt: false };
        let sessions = Sessions::new(cluster, Arc::clone(&env));
        Self { env, sessions, known: NAMES.map(table).to_vec() }
    }

    pub async fn come_and_go(mut self, until: Moment) -> Self {
        let mut rng = self.env.fork_rng();
        while self.env.moment() < until {
            self.env.sleep(Duration::from_millis(rng.random_range(0..1_000))).await;
            let table = &mut self.known[rng.random_range(0..NAMES.len())];
            let dice = rng.random_range(0..100);
            match table.exists {
                Some(true) if dice < 45 => table.insert(&mut self.sessions).await,
                Some(true) if dice < 65 => table.drop(&mut self.sessions).await,
                Some(false) if dice < 75 => table.create(&mut self.sessions).await,
                None => table.drop(&mut self.sessions).await,
                _ => {
                    if let Err(error) = table.read(&mut self.sessions).await {
                        assert!(is_fault(&error), "{table:?}: {error}");
                    }
                }
            }
        }
        self
    }

    /// Judges what is there in the end.
    ///
    /// # Panics
    /// When it is wrong.
    pub async fn check(&self, sessions: &mut Sessions) {
        for table in &self.known {
            table.read(sessions).await.expect("healed, it serves");
        }
    }
}

impl Table {
    /// What a statement that makes or ends the table came to.
    fn settle(&mut self, sql: &str, wanted: bool, done: Result<(), ClientError>) {
        match done {
            Ok(()) => self.exists = Some(wanted),
            Err(error) => {
                assert!(is_fault(&error), "{sql}: {error}; {self:?}");
                if error.outcome == Outcome::Unknown {
                    self.exists = None;
                }
            }
        }
    }

    async fn create(&mut self, sessions: &mut Sessions) {
        let sql = format!("CREATE TABLE {} (k int PRIMARY KEY, life bigint NOT NULL)", self.name);
        let created = sessions.run(&sql).await.map(drop);
        self.settle(&sql, true, created);
        self.life += 1;
        (self.rows, self.doubt) = (0, false);
    }

    async fn drop(&mut self, sessions: &mut Sessions) {
        let if_exists = if self.exists.is_none() { "IF EXISTS " } else { "" };
        let sql = format!("DROP TABLE {if_exists}{}", self.name);
        let dropped = sessions.run(&sql).await.map(drop);
        self.settle(&sql, false, dropped);
    }

    async fn insert(&mut self, sessions: &mut Sessions) {
        let sql = format!("INSERT INTO {} VALUES ({}, {})", self.name, self.rows, self.life);
        match sessions.run(&sql).await {
            Ok(_) => (self.rows, self.doubt) = (self.rows + 1, false),
            Err(error) if error.sqlstate == "23505" && self.doubt => {
                (self.rows, self.doubt) = (self.rows + 1, false);
            }
            Err(error) => {
                assert!(is_fault(&error), "{sql}: {error}; {self:?}");
                self.doubt |= error.outcome == Outcome::Unknown;
            }
        }
    }

    async fn read(&self, sessions: &mut Sessions) -> Result<(), ClientError> {
        let sql = format!("SELECT k, life FROM {} ORDER BY k", self.name);
        let reply = match sessions.run(&sql).await {
            Ok(reply) => reply,
            Err(error) if error.sqlstate == "42P01" => {
                assert_ne!(self.exists, Some(true), "{sql}: {error}; {self:?}");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        assert_ne!(self.exists, Some(false), "{sql}: {reply:?}; {self:?}");
        if self.exists.is_none() {
            return Ok(());
        }
        let mut rows = 0;
        for row in &reply.rows {
            let expected = [rows, self.life].map(|number| Some(number.to_string()));
            assert_eq!(row[..], expected, "{sql}: {reply:?}; {self:?}");
            rows += 1;
        }
        let all = rows == self.rows || (self.doubt && rows == self.rows + 1);
        assert!(all, "{sql}: {reply:?}; {self:?}");
        Ok(())
    }
}
