//! Worlds: the real one, in which time passes by itself, and the virtual one, in which it jumps to
//! the next timer.
//!
//! A world hands every node a [`NodeEnvironment`]. In the virtual world the whole cluster runs on
//! one thread under tokio's paused clock. tokio's timers are precise to a millisecond, so a
//! simulated microsecond is played as one of tokio's milliseconds; nobody but this file knows.
//!
//! Caveats. A task that blocks (a thread, `spawn_blocking`, a socket) is outside virtual time:
//! the clock runs away from it or stands still. Libraries that read tokio's clock themselves see
//! it run a thousand times faster and must be configured through [`Environment::tokio_millis`].
//! Virtual time ends after about nineteen hours, where tokio's longest timer ends.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use futures::future::{AbortHandle, BoxFuture, abortable};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{self, Handle};

use crate::entropy;
use crate::env::{CostModel, Environment, Moment, Work};
use crate::gate::Gate;
use crate::timer::Timer;
use crate::timestamp::{Timestamp, nanos};

/// How many of tokio's milliseconds one simulated millisecond takes.
const VIRTUAL_SCALE: u64 = 1_000;

/// When virtual worlds begin: 2026-01-01T00:00:00Z.
const VIRTUAL_EPOCH: Timestamp = Timestamp::from_nanos(1_767_225_600_000_000_000);

#[derive(Debug)]
enum Clockwork {
    Real { start: Instant, epoch: Timestamp, timer: Timer, runtimes: Option<Runtimes> },
    Virtual { start: tokio::time::Instant },
}

/// Where a real world's tasks run.
#[derive(Debug)]
struct Runtimes {
    node: Handle,
    computing: Handle,
}

#[derive(Debug)]
struct Inner {
    clockwork: Clockwork,
    seed: u64,
    cost: CostModel,
}

/// A world, shared by its nodes.
#[derive(Clone, Debug)]
pub struct World(Arc<Inner>);

impl World {
    /// The real world. The seed decides only what nodes draw at random, not what time does.
    ///
    /// Must be called inside a tokio runtime whose threads nodes may use.
    #[must_use]
    pub fn real(seed: u64) -> Self {
        Self::real_world(seed, None)
    }

    /// The real world, with a runtime for what computes for long
    /// ([`Environment::compute_boxed`]). All other tasks run on the runtime that this is called
    /// in, also those that a computing task starts.
    #[must_use]
    pub fn real_with_computing(seed: u64, computing: Handle) -> Self {
        Self::real_world(seed, Some(Runtimes { node: Handle::current(), computing }))
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where real time comes in")]
    fn real_world(seed: u64, runtimes: Option<Runtimes>) -> Self {
        let (start, epoch, timer) = (Instant::now(), wall_clock(), Timer::start());
        let clockwork = Clockwork::Real { start, epoch, timer, runtimes };
        Self(Arc::new(Inner { clockwork, seed, cost: CostModel::default() }))
    }

    /// Runs `scenario` to its end in a virtual world of its own, on this thread.
    ///
    /// Every source of chance in the process is seeded first ([`entropy`]), so that in a fresh
    /// process the same seed gives the same run, byte for byte.
    ///
    /// # Panics
    /// If the operating system refuses an event queue for the runtime.
    #[expect(clippy::disallowed_methods, reason = "the one place where virtual time comes in")]
    pub fn run_virtual<F, T>(seed: u64, cost: CostModel, scenario: F) -> T::Output
    where
        F: FnOnce(World) -> T,
        T: Future,
    {
        entropy::set_seed(seed);
        #[expect(clippy::expect_used, reason = "documented")]
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let clockwork = Clockwork::Virtual { start: tokio::time::Instant::now() };
            scenario(World(Arc::new(Inner { clockwork, seed, cost }))).await
        })
    }

    /// The environment of one node. `label` tells apart what the nodes draw at random; a node that
    /// starts again takes a label that it hasn't had before, or draws the same numbers again.
    #[must_use]
    pub fn node(&self, label: u64) -> Arc<NodeEnvironment> {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.0.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&label.to_le_bytes());
        Arc::new(NodeEnvironment {
            world: self.clone(),
            random: Mutex::new(StdRng::from_seed(seed)),
            tasks: Arc::default(),
            gate: Arc::default(),
            cores: Mutex::new(vec![Moment::START; self.0.cost.cores.max(1)]),
            disk: Mutex::new(vec![Moment::START]),
        })
    }

    /// The true time, which no node can know exactly: for simulated clocks and for judges.
    #[must_use]
    pub fn true_time(&self) -> Timestamp {
        let epoch = match &self.0.clockwork {
            Clockwork::Real { epoch, .. } => *epoch,
            Clockwork::Virtual { .. } => VIRTUAL_EPOCH,
        };
        epoch.plus(self.moment().since(Moment::START))
    }

    /// The world's steady clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where time comes in")]
    pub fn moment(&self) -> Moment {
        match &self.0.clockwork {
            Clockwork::Real { start, .. } => Moment::from_nanos(nanos(start.elapsed())),
            Clockwork::Virtual { start } => {
                let ticks = (tokio::time::Instant::now() - *start).as_millis();
                Moment::from_nanos(u64::try_from(ticks).unwrap_or(u64::MAX).saturating_mul(1_000))
            }
        }
    }

    /// Whether time jumps here.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        matches!(self.0.clockwork, Clockwork::Virtual { .. })
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where time comes in")]
    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()> {
        match &self.0.clockwork {
            Clockwork::Real { start, timer, .. } => {
                timer.sleep_until(*start + Duration::from_nanos(until.as_nanos())).boxed()
            }
            Clockwork::Virtual { start } => {
                let ticks = until.as_nanos().div_ceil(1_000_000 / VIRTUAL_SCALE);
                tokio::time::sleep_until(*start + Duration::from_millis(ticks)).boxed()
            }
        }
    }
}

/// What the operating system's clock says. It may step; a clock that must not is [`World`]'s.
#[expect(clippy::disallowed_methods, reason = "the one place where real time comes in")]
pub(crate) fn wall_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(nanos(since_epoch))
}

#[derive(Default)]
struct Tasks {
    running: BTreeMap<u64, AbortHandle>,
    next: u64,
    halted: bool,
}

/// One node's [`Environment`]. Its tasks end when it halts; what a crash leaves of the node is on
/// its disk.
pub struct NodeEnvironment {
    world: World,
    random: Mutex<StdRng>,
    tasks: Arc<Mutex<Tasks>>,
    gate: Arc<Gate>,
    cores: Mutex<Vec<Moment>>,
    disk: Mutex<Vec<Moment>>,
}

impl NodeEnvironment {
    /// Ends the node's tasks where they stand, and lets none start any more.
    pub fn halt(&self) {
        let running = {
            let mut tasks = lock(&self.tasks);
            tasks.halted = true;
            std::mem::take(&mut tasks.running)
        };
        running.values().for_each(AbortHandle::abort);
        // What waits for a paused node to go on has nothing more to wait for.
        self.gate.open();
    }

    /// Pauses the node, as SIGSTOP does a process: until [`NodeEnvironment::resume`] none of its
    /// tasks runs. Nothing is lost: timers that end meanwhile, and messages that arrive, are found
    /// late. Clocks go on. A task in the middle of a step ends that step first. False if the node
    /// was paused or has halted.
    ///
    /// What acts for the node outside of its tasks asks [`Environment::paused`].
    pub fn pause(&self) -> bool {
        let tasks = lock(&self.tasks);
        !tasks.halted && self.gate.close()
    }

    /// Lets a paused node go on. False if it wasn't paused.
    pub fn resume(&self) -> bool {
        self.gate.open()
    }

    /// Whether the node is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.gate.is_closed()
    }

    /// Whether [`NodeEnvironment::halt`] was called.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        lock(&self.tasks).halted
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where tasks start")]
    fn start(&self, task: BoxFuture<'static, ()>, on: &Handle) {
        let (task, abort) = abortable(self.gate.hold(task));
        let id = {
            let mut tasks = lock(&self.tasks);
            if tasks.halted {
                return;
            }
            tasks.next += 1;
            let id = tasks.next;
            tasks.running.insert(id, abort);
            id
        };
        let tasks = Arc::clone(&self.tasks);
        on.spawn(async move {
            // A task that panics is still taken off the list.
            let guard = Finished { tasks, id };
            let _ = task.await;
            drop(guard);
        });
    }

    /// The world that the node lives in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }
}

impl Environment for NodeEnvironment {
    fn moment(&self) -> Moment {
        self.world.moment()
    }

    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()> {
        self.world.sleep_until(until)
    }

    fn spawn_boxed(&self, task: BoxFuture<'static, ()>) {
        match &self.world.0.clockwork {
            Clockwork::Real { runtimes: Some(runtimes), .. } => self.start(task, &runtimes.node),
            _ => self.start(task, &Handle::current()),
        }
    }

    fn compute_boxed(&self, task: BoxFuture<'static, ()>) {
        match &self.world.0.clockwork {
            Clockwork::Real { runtimes: Some(runtimes), .. } => {
                self.start(task, &runtimes.computing);
            }
            _ => self.spawn_boxed(task),
        }
    }

    fn random(&self) -> u64 {
        lock(&self.random).next_u64()
    }

    fn work(&self, work: Work) -> BoxFuture<'static, ()> {
        let price = self.world.0.cost.price(work);
        if price.is_zero() {
            return futures::future::ready(()).boxed();
        }
        let mut servers = lock(if work == Work::Sync { &self.disk } else { &self.cores });
        let now = self.moment();
        let Some(first_free) = servers.iter_mut().min() else {
            return futures::future::ready(()).boxed();
        };
        let done = (*first_free).max(now).plus(price);
        *first_free = done;
        self.sleep_until(done)
    }

    fn may_block(&self) -> bool {
        !self.world.is_virtual()
    }

    fn paused(&self) -> Option<BoxFuture<'static, ()>> {
        let resumed = futures::future::ready(()).boxed();
        self.is_paused().then(|| self.gate.hold(resumed).boxed())
    }

    fn tokio_millis(&self, duration: Duration) -> u64 {
        let scale = if self.world.is_virtual() { VIRTUAL_SCALE } else { 1 };
        (nanos(duration).div_ceil(1_000_000 / scale)).max(1)
    }
}

impl fmt::Debug for NodeEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeEnvironment").field("moment", &self.moment()).finish_non_exhaustive()
    }
}

struct Finished {
    tasks: Arc<Mutex<Tasks>>,
    id: u64,
}

impl Drop for Finished {
    fn drop(&mut self) {
        lock(&self.tasks).running.remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::EnvironmentExt;

    #[test]
    fn virtual_time_jumps_and_is_exact() {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let env = world.node(1);
            env.sleep(Duration::from_micros(33_401)).await;
            assert_eq!(env.moment(), Moment::from_nanos(33_401_000));
            env.sleep(Duration::from_hours(1)).await;
            assert_eq!(world.true_time().since(VIRTUAL_EPOCH).as_micros(), 3_600_033_401);
        });
    }

    #[test]
    fn work_queues_for_the_cores() {
        let cost = CostModel { request: Duration::from_millis(2), cores: 2, ..Default::default() };
        World::run_virtual(1, cost, |world| async move {
            let env = world.node(1);
            let jobs: Vec<_> = (0..4).map(|_| env.work(Work::Request)).collect();
            futures::future::join_all(jobs).await;
            assert_eq!(env.moment(), Moment::from_nanos(4_000_000));
        });
    }

    #[test]
    fn a_halted_node_runs_nothing() {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let env = world.node(1);
            let (done, mut seen) = tokio::sync::mpsc::unbounded_channel();
            let sleep = env.sleep(Duration::from_millis(1));
            let late = done.clone();
            env.spawn(async move {
                sleep.await;
                let _ = done.send(());
            });
            env.halt();
            env.spawn(async move {
                let _ = late.send(());
            });
            assert_eq!(seen.recv().await, None);
        });
    }

    #[test]
    fn a_paused_node_finds_late_what_happened_meanwhile() {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let (env, other) = (world.node(1), world.node(2));
            let (done, mut seen) = tokio::sync::mpsc::unbounded_channel();
            let start = |node: &Arc<NodeEnvironment>, name: &'static str, millis: u64| {
                let (done, env) = (done.clone(), Arc::clone(node));
                node.spawn(async move {
                    env.sleep(Duration::from_millis(millis)).await;
                    let _ = done.send((name, env.moment().as_nanos() / 1_000_000));
                });
            };
            start(&env, "before the pause", 1);
            start(&env, "second", 20);
            start(&env, "first", 10);
            start(&env, "after the pause", 70);
            start(&other, "elsewhere", 30);
            other.sleep(Duration::from_millis(5)).await;
            assert!(env.pause() && !env.pause() && env.is_paused());
            // Started while it is paused: its sleep begins when it is resumed.
            start(&env, "started late", 10);
            other.sleep(Duration::from_millis(45)).await;
            assert!(env.resume() && !env.resume() && !env.is_paused());
            let mut story = Vec::new();
            for _ in 0..6 {
                story.push(seen.recv().await.expect("all of them end"));
            }
            let expected = [
                ("before the pause", 1),
                ("elsewhere", 30),
                // In the order in which they were started, not in that of their timers.
                ("second", 50),
                ("first", 50),
                ("started late", 60),
                ("after the pause", 70),
            ];
            assert_eq!(story, expected);
        });
    }

    #[test]
    fn others_can_wait_for_a_paused_node_to_go_on() {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let (env, other) = (world.node(1), world.node(2));
            assert!(env.paused().is_none());
            env.pause();
            let resumed = env.paused().expect("it is paused");
            let paused = Arc::clone(&env);
            let timer = other.sleep(Duration::from_millis(7));
            other.spawn(async move {
                timer.await;
                paused.resume();
            });
            resumed.await;
            assert_eq!(env.moment(), Moment::from_nanos(7_000_000));
        });
    }

    #[test]
    fn a_paused_node_can_halt_and_a_halted_one_cannot_pause() {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let env = world.node(1);
            let (kept, mut dropped) = tokio::sync::mpsc::unbounded_channel::<()>();
            env.spawn(async move {
                std::future::pending::<()>().await;
                drop(kept);
            });
            env.pause();
            let resumed = env.paused().expect("it is paused");
            env.halt();
            // Nobody is left waiting.
            resumed.await;
            assert_eq!(dropped.recv().await, None);
            assert!(!env.pause() && !env.is_paused());
        });
    }

    #[test]
    fn nodes_draw_their_own_numbers() {
        let draw = |seed, label| {
            World::run_virtual(seed, CostModel::default(), |world| async move {
                world.node(label).random()
            })
        };
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        assert_ne!(draw(1, 1), draw(2, 1));
    }

    #[test]
    fn what_computes_has_its_threads_and_what_it_starts_has_the_nodes() {
        let runtime = |name: &str| {
            let builder = &mut runtime::Builder::new_multi_thread();
            builder.worker_threads(1).thread_name(name).build().expect("a runtime")
        };
        let (node, query) = (runtime("node"), runtime("query"));
        let (tell, names) = std::sync::mpsc::channel();
        let env = {
            let _entered = node.enter();
            World::real_with_computing(1, query.handle().clone()).node(1)
        };
        let name = || std::thread::current().name().map(str::to_owned);
        let (inner, told) = (Arc::clone(&env), tell.clone());
        env.compute(async move {
            let _ = tell.send(name());
            inner.spawn(async move {
                let _ = told.send(name());
            });
        });
        let threads: Vec<_> = names.iter().take(2).flatten().collect();
        assert_eq!(threads, ["query", "node"]);
    }

    #[test]
    fn real_sleeps_end_after_their_deadline() {
        let runtime = runtime::Builder::new_multi_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let env = World::real(1).node(1);
            let until = env.moment().plus(Duration::from_micros(700));
            env.sleep_until(until).await;
            assert!(env.moment() >= until);
        });
    }
}
