//! A mild mixture of inserts, updates and reads of single rows, by clients that think in between.
//!
//! It stresses nothing; it is what a cluster does while something else is looked at, and the yardstick
//! for how fast virtual time runs.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::client::{Client, ClientError, Environment, Outcome};

/// Latencies above ten minutes are recorded as ten minutes.
const LONGEST_MICROS: u64 = 600_000_000;

/// The workload's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixed {
    /// The name of its table.
    pub table: String,
    /// How long each client goes on.
    pub duration: Duration,
    /// The mean time that a client waits between two operations.
    pub think: Duration,
    /// Reads per hundred operations; of the others every second is an insert.
    pub read_percent: u64,
}

/// What a client did.
#[derive(Clone, Debug)]
pub struct Record {
    /// Latencies of reads, in microseconds.
    pub reads: Histogram<u64>,
    /// Latencies of writes, in microseconds.
    pub writes: Histogram<u64>,
    /// The keys of the rows whose insert was acknowledged.
    pub inserted: Vec<i64>,
    /// The keys of the rows whose insert has an unknown outcome.
    pub unknown: Vec<i64>,
    /// Everything else that failed.
    pub errors: Vec<ClientError>,
}

impl Record {
    /// A record of nothing.
    ///
    /// # Panics
    /// Never: the histogram's bounds are valid.
    #[must_use]
    pub fn new() -> Self {
        // Bounds that are given: one that grows would clamp what is recorded to what it holds now.
        let histogram =
            || Histogram::new_with_bounds(1, LONGEST_MICROS, 3).expect("three digits are allowed");
        Self {
            reads: histogram(),
            writes: histogram(),
            inserted: Vec::new(),
            unknown: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Adds what another client did.
    pub fn merge(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.inserted.extend(other.inserted);
        self.unknown.extend(other.unknown);
        self.errors.extend(other.errors);
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl Mixed {
    /// The statement that creates the table.
    #[must_use]
    pub fn schema(&self) -> String {
        format!("CREATE TABLE {} (k bigint PRIMARY KEY, v bigint NOT NULL)", self.table)
    }

    /// Runs one client, whose keys are told apart from the others' by its number.
    pub async fn run(
        &self,
        number: i64,
        client: &mut dyn Client,
        environment: &dyn Environment,
    ) -> Record {
        let mut record = Record::new();
        let end = environment.now() + self.duration;
        let mut next_key = number * 1_000_000;
        loop {
            let think = self.think.mul_f64(f64::from(percent(environment.random())) / 50.0);
            environment.sleep(think).await;
            let began = environment.now();
            if began >= end {
                return record;
            }
            let choice = environment.random() % 100;
            let picked = pick(&record.inserted, environment.random());
            let (sql, insert) = match picked {
                Some(key) if choice < self.read_percent => {
                    (format!("SELECT v FROM {} WHERE k = {key}", self.table), None)
                }
                Some(key) if choice.is_multiple_of(2) => {
                    (format!("UPDATE {} SET v = v + 1 WHERE k = {key}", self.table), None)
                }
                _ => {
                    next_key += 1;
                    let sql = format!("INSERT INTO {} VALUES ({next_key}, 0)", self.table);
                    (sql, Some(next_key))
                }
            };
            let result = client.execute(&sql).await;
            let took = environment.now().saturating_sub(began);
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            match result {
                Ok(_) => {
                    record.inserted.extend(insert);
                    let read = picked.is_some() && choice < self.read_percent;
                    let histogram = if read { &mut record.reads } else { &mut record.writes };
                    histogram.saturating_record(micros);
                }
                Err(error) => {
                    if error.outcome == Outcome::Unknown {
                        record.unknown.extend(insert);
                    }
                    record.errors.push(error);
                }
            }
        }
    }
}

/// 0 to 100, from a random number.
fn percent(random: u64) -> u8 {
    u8::try_from(random % 101).unwrap_or(100)
}

fn pick(keys: &[i64], random: u64) -> Option<i64> {
    let count = u64::try_from(keys.len()).ok().filter(|count| *count > 0)?;
    keys.get(usize::try_from(random % count).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::client::Reply;

    #[derive(Debug, Default)]
    struct Clock {
        micros: AtomicU64,
        random: AtomicU64,
    }

    #[async_trait]
    impl Environment for Clock {
        fn now(&self) -> Duration {
            Duration::from_micros(self.micros.load(Ordering::Relaxed))
        }

        async fn sleep(&self, duration: Duration) {
            let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
            self.micros.fetch_add(micros, Ordering::Relaxed);
        }

        fn random(&self) -> u64 {
            let z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
        }
    }

    /// Counts statements by their first word; each takes 64 ms, every fifth insert has an unknown
    /// outcome.
    struct Counting<'c>(BTreeMap<String, u64>, &'c Clock);

    #[async_trait]
    impl Client for Counting<'_> {
        async fn execute(&mut self, sql: &str) -> Result<Reply, ClientError> {
            let verb = sql.split(' ').next().unwrap_or_default();
            let count = self.0.entry(verb.into()).or_default();
            *count += 1;
            self.1.sleep(Duration::from_millis(64)).await;
            if verb == "INSERT" && count.is_multiple_of(5) {
                return Err(ClientError::new("08007", "unknown"));
            }
            Ok(Reply::default())
        }
    }

    #[test]
    fn counts_what_it_does() {
        let workload = Mixed {
            table: "t".into(),
            duration: Duration::from_secs(60),
            think: Duration::from_millis(10),
            read_percent: 50,
        };
        let clock = Clock::default();
        let mut client = Counting(BTreeMap::new(), &clock);
        let record = futures::executor::block_on(workload.run(3, &mut client, &clock));
        let count = |verb: &str| client.0.get(verb).copied().unwrap_or_default();
        assert_eq!(record.reads.len(), count("SELECT"));
        for latencies in [&record.reads, &record.writes] {
            let exact = |micros| latencies.equivalent(micros, 64_000);
            assert!(exact(latencies.min()) && exact(latencies.max()), "{latencies:?}");
        }
        assert_eq!(record.inserted.len() as u64, count("INSERT") - count("INSERT") / 5);
        assert_eq!(record.unknown.len() as u64, count("INSERT") / 5);
        assert_eq!(record.writes.len(), count("UPDATE") + record.inserted.len() as u64);
        assert!(count("SELECT") > 100 && count("UPDATE") > 50 && count("INSERT") > 50);
        assert!(record.inserted.iter().all(|key| (3_000_001..4_000_000).contains(key)));
    }
}
