//! What operators and accidents do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use meridian_lab::{ClientError, Reply};
use meridian_server::cluster::Cluster;
use meridian_storage::NodeId;
use meridian_truetime::{Env, EnvironmentExt, Moment};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::NODES;
use super::model::Table;
use super::session::{Sessions, is_fault};

const REGIONS: [&str; 3] = ["us-east", "us-west", "eu-west"];

pub struct Nemesis {
    cluster: Arc<Cluster>,
    env: Env,
    seed: u64,
    /// How many calls have not come to an end.
    under_way: AtomicU64,
    /// What was done, and how often.
    done: Mutex<BTreeMap<String, u64>>,
}

impl Nemesis {
    pub fn new(cluster: Arc<Cluster>, env: Env, seed: u64) -> Self {
        let under_way = AtomicU64::default();
        Self { cluster, env, seed, under_way, done: Mutex::default() }
    }

    pub async fn run(self: Arc<Self>, until: Moment) {
        let mut rng = self.env.fork_rng();
        while self.env.moment() < until {
            self.env.sleep(Duration::from_millis(rng.random_range(50..1_200))).await;
            self.disturb(&mut rng).await;
        }
    }

    async fn disturb(self: &Arc<Self>, rng: &mut StdRng) {
        let (a, b) = (place(rng), place(rng));
        match rng.random_range(0..100) {
            0..6 => self.stop_one(rng).await,
            6..20 => self.start_all(rng).await,
            // A restart of all at once, of which none had the time to sync.
            20..21 => {
                for node in 1..=NODES {
                    self.crash(node, rng).await;
                }
                self.start_all(rng).await;
            }
            21..26 => {
                let (node, millis) = (rng.random_range(1..=NODES), rng.random_range(10..6_000));
                self.call(format!("pause_node({node}, pause => '{millis}ms')"));
            }
            26..28 => self.call(format!("resume_node({})", rng.random_range(1..=NODES))),
            28..33 => self.call(format!("partition({a}, {b}, both => {})", rng.random_bool(0.7))),
            33..42 => self.call("heal()".to_owned()),
            42..45 => {
                let (rtt, jitter) = (rng.random_range(1..150), rng.random_range(0..40));
                let loss = f64::from(rng.random_range(0..8)) / 100.0;
                let links = format!("rtt => '{rtt}ms', jitter => '{jitter}ms', loss => {loss}");
                self.call(format!("set_latency({a}, {b}, {links})"));
            }
            45..48 => self.call("reset_latency()".to_owned()),
            48..51 => self.disorder(rng),
            51..53 => {
                // Wrong, but by less than it declares.
                let (epsilon, offset) = (rng.random_range(1..20), rng.random_range(-99..99));
                let offset = f64::from(epsilon) * f64::from(offset) / 100.0;
                let node = rng.random_range(1..=NODES);
                let clock = format!("epsilon => '{epsilon}ms', offset => '{offset}ms'");
                self.call(format!("set_clock({node}, {clock})"));
            }
            _ => self.change(rng),
        }
    }

    /// As one by one and one after the other as operators would, but the crash.
    async fn stop_one(&self, rng: &mut StdRng) {
        let running: Vec<u64> =
            (1..=NODES).filter(|node| self.cluster.node(*node).is_some()).collect();
        // Three replicas keep a majority only if one is gone at most.
        if running.len() as u64 != NODES {
            return;
        }
        let node = running[rng.random_range(0..running.len())];
        if rng.random_bool(0.5) {
            self.crash(node, rng).await;
        } else {
            self.ask(&format!("SELECT meridian.stop_node({node})")).await;
        }
    }

    async fn crash(&self, node: u64, rng: &mut StdRng) {
        self.count("crash");
        self.tell(&format!("crash {node}"));
        self.cluster.crash_node(node, self.seed ^ rng.next_u64()).await.expect("it exists");
    }

    async fn start_all(&self, rng: &mut StdRng) {
        for node in 1..=NODES {
            if self.cluster.node(node).is_some() {
                continue;
            }
            let sql = format!("SELECT meridian.start_node({node})");
            if rng.random_bool(0.8) && self.ask(&sql).await.is_some() {
                continue;
            }
            self.count("start");
            self.tell(&format!("start {node}"));
            self.cluster.start_node(node).await.expect("it starts");
        }
    }

    /// Calls that overtake each other, or happen twice: no function does that.
    fn disorder(&self, rng: &mut StdRng) {
        let node = |rng: &mut StdRng| NodeId::new(rng.random_range(1..=NODES));
        let (a, b) = (node(rng), node(rng));
        self.count("disorder");
        self.tell(&format!("disorder from {a} to {b}"));
        self.cluster.network().update_link(a, b, |link| {
            link.duplication = 0.1;
            link.reordering = 0.2;
        });
    }

    /// Calls a function, without waiting for what it does.
    fn call(self: &Arc<Self>, call: String) {
        self.spawn(|nemesis| async move {
            nemesis.ask(&format!("SELECT meridian.{call}")).await;
        });
    }

    fn spawn<F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let (nemesis, work) = (Arc::clone(self), work(Arc::clone(self)));
        self.env.spawn(async move {
            work.await;
            nemesis.under_way.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Changes the tablets. Any change may fail; none may do harm.
    fn change(self: &Arc<Self>, rng: &mut StdRng) {
        let mut rng = fork(rng);
        self.spawn(|nemesis| async move {
            let Some(tablets) = nemesis.tablets().await else { return };
            let (tablet, voters) = &tablets[rng.random_range(0..tablets.len())];
            let node = rng.random_range(1..=NODES);
            let region = REGIONS[rng.random_range(0..3)];
            let table = if rng.random_bool(0.5) { Table::Parent } else { Table::Lone };
            let (key, name) = (rng.random_range(1..table.keys()), table.name());
            let call = match rng.random_range(0..100) {
                0..8 => format!("split('accounts', {})", rng.random_range(1..9)),
                8..30 => format!("split('{name}', {key})"),
                30..55 => format!("merge({tablet})"),
                55..70 => format!("transfer_leader({tablet}, {node})"),
                70..88 => {
                    let from = voters[rng.random_range(0..voters.len())];
                    format!("move_replica({tablet}, {from}, {node})")
                }
                88..92 => {
                    let to = rng.random_range(key..table.keys()) + 1;
                    let range = format!("from_key => {key}, to_key => {to}");
                    format!("place('{name}', leader_region => '{region}', {range})")
                }
                92..96 => format!("place('{name}', leader_region => NULL)"),
                _ => {
                    let (voters, read_only) =
                        [(3, "{}"), (5, "{}"), (3, "{us-west}")][rng.random_range(0..3)];
                    format!("place('{name}', voters => {voters}, read_only => '{read_only}')")
                }
            };
            nemesis.ask(&format!("SELECT meridian.{call}")).await;
        });
    }

    /// Each tablet with its voters.
    async fn tablets(&self) -> Option<Vec<(String, Vec<u64>)>> {
        let reply = self.ask("SELECT tablet, voters FROM meridian.tablets").await?;
        let text = |value: &Option<String>| value.clone().expect("not null");
        let voters = |text: String| {
            let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
            digits.map(|part| part.parse().expect("a number")).collect()
        };
        let rows = reply.rows.iter().map(|row| (text(&row[0]), voters(text(&row[1]))));
        Some(rows.collect())
    }

    /// Runs a statement, which may fail.
    async fn ask(&self, sql: &str) -> Option<Reply> {
        let mut sessions = Sessions::new(Arc::clone(&self.cluster), Arc::clone(&self.env));
        match sessions.run(sql).await {
            Ok(reply) => {
                let call = sql.strip_prefix("SELECT meridian.").unwrap_or_default();
                if let Some((name, _)) = call.split_once('(') {
                    self.count(name);
                }
                Some(reply)
            }
            Err(error) => {
                assert!(may_refuse(&error), "{sql}: {error}");
                None
            }
        }
    }

    /// Shown when the seed fails.
    fn tell(&self, what: &str) {
        let now = self.env.moment().since(Moment::START).as_secs_f64();
        println!("{now:9.4}: {what}");
    }

    fn count(&self, what: &str) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done.entry(what.to_owned()).or_default() += 1;
    }

    /// Ends all faults, those included that are yet to happen.
    pub async fn heal(&self) {
        loop {
            for node in 1..=NODES {
                self.cluster.resume_node(node).expect("it exists");
            }
            if self.under_way.load(Ordering::Relaxed) == 0 {
                break;
            }
            self.env.sleep(Duration::from_millis(100)).await;
        }
        self.cluster.network().heal();
        for node in 1..=NODES {
            self.cluster.start_node(node).await.expect("it starts");
        }
        let mut sessions = Sessions::new(Arc::clone(&self.cluster), Arc::clone(&self.env));
        sessions.run("SELECT meridian.reset_latency()").await.expect("all nodes run");
    }

    pub fn summary(&self) -> String {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let done: Vec<_> = done.iter().map(|(what, times)| format!("{times} {what}")).collect();
        done.join(", ")
    }
}

/// What is asked for may make no sense any more, or not yet.
fn may_refuse(error: &ClientError) -> bool {
    is_fault(error) || error.sqlstate == "22023"
}

fn place(rng: &mut StdRng) -> String {
    match rng.random_range(0..NODES + 3) {
        node @ 1..=NODES => node.to_string(),
        _ => format!("'{}'", REGIONS[rng.random_range(0..3)]),
    }
}

fn fork(rng: &mut StdRng) -> StdRng {
    use rand::SeedableRng;
    StdRng::seed_from_u64(rng.next_u64())
}
