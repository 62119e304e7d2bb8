//! The node's environment: everything that a node may take from its surroundings but disk and
//! network.
//!
//! The same node runs in three worlds (real, demo, virtual), and what differs between them is
//! behind [`Environment`]. A node never asks the operating system for the time, a timer, a task
//! or a random number; clippy's disallowed lists (`clippy.toml`) keep it so.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, select};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::timestamp::nanos;

/// A point on the world's steady clock, in nanoseconds since the world began. It measures
/// durations and sets timers; it says nothing of the calendar, and no node's clock fault moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// When the world began.
    pub const START: Moment = Moment(0);

    /// `nanos` nanoseconds after the world began.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the world began.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment `by` later; saturates.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }

    /// How much later this is than `earlier`; zero if it isn't.
    #[must_use]
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Work that takes a node time. Free in the real world, where doing it takes time enough; priced
/// by the world's [`CostModel`] in the virtual one, where computing takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A request or message handled.
    Request,
    /// That many rows read.
    Read(u64),
    /// That many rows written.
    Write(u64),
    /// One durable write of the node's disk; syncs queue behind each other.
    Sync,
}

/// What [`Work`] costs in virtual time. The default is nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostModel {
    /// Per request.
    pub request: Duration,
    /// Per row read.
    pub row_read: Duration,
    /// Per row written.
    pub row_written: Duration,
    /// Per durable write.
    pub sync: Duration,
    /// How many pieces of work (but syncs) a node does at once; at least one.
    pub cores: usize,
}

impl Default for CostModel {
    fn default() -> Self {
        let zero = Duration::ZERO;
        Self { request: zero, row_read: zero, row_written: zero, sync: zero, cores: 2 }
    }
}

impl CostModel {
    /// The virtual time that a piece of work takes once it has its turn.
    #[must_use]
    pub fn price(&self, work: Work) -> Duration {
        let times = |per: Duration, n: u64| per * u32::try_from(n).unwrap_or(u32::MAX);
        match work {
            Work::Request => self.request,
            Work::Read(rows) => times(self.row_read, rows),
            Work::Write(rows) => times(self.row_written, rows),
            Work::Sync => self.sync,
        }
    }
}

/// A node's view of its world.
pub trait Environment: Debug + Send + Sync {
    /// The world's steady clock.
    fn moment(&self) -> Moment;

    /// Completes at `until`, never before: to the microsecond in virtual time, to about a tenth
    /// of a millisecond in real time.
    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()>;

    /// Runs a task until it ends or the node halts, whichever comes first. On a halted node the
    /// task never runs.
    fn spawn_boxed(&self, task: BoxFuture<'static, ()>);

    /// As [`Environment::spawn_boxed`], for a task that may compute for long without a pause. In
    /// the real world such tasks have threads of their own where the world was given some
    /// ([`World::real_with_computing`](crate::World::real_with_computing)), so that they keep
    /// neither timers nor heartbeats nor other sessions waiting.
    fn compute_boxed(&self, task: BoxFuture<'static, ()>);

    /// The next number of the node's own seeded random sequence.
    fn random(&self) -> u64;

    /// Takes the time that `work` costs.
    fn work(&self, work: Work) -> BoxFuture<'static, ()>;

    /// Whether a component may run a thread of its own beside the tasks and block in it. Not in
    /// virtual time, which would run away from the thread.
    fn may_block(&self) -> bool;

    /// While the node is paused, what completes when it goes on. Its tasks are held back without
    /// asking; this is for what acts for the node outside of them.
    fn paused(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// `duration` in milliseconds of tokio's clock, rounded up, for a library that sets its timers
    /// itself (Raft). Virtual time runs a thousand times finer than tokio's timers, so there one
    /// simulated microsecond is one of tokio's milliseconds.
    fn tokio_millis(&self, duration: Duration) -> u64;
}

/// A shared environment; every part of a node holds one.
pub type Env = Arc<dyn Environment>;

/// The deadline passed before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline exceeded")]
pub struct Elapsed;

/// Conveniences over [`Environment`].
pub trait EnvironmentExt: Environment {
    /// Completes `duration` from now.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.moment().plus(duration))
    }

    /// Runs a task until it ends or the node halts.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(task.boxed());
    }

    /// Runs a task that may compute for long, until it ends or the node halts.
    fn compute(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.compute_boxed(task.boxed());
    }

    /// `future`'s output, unless `duration` passes first.
    fn timeout<F: Future + Send>(
        &self,
        duration: Duration,
        future: F,
    ) -> impl Future<Output = Result<F::Output, Elapsed>> + Send {
        let deadline = self.sleep(duration);
        async move {
            let future = std::pin::pin!(future);
            match select(future, deadline).await {
                Either::Left((output, _)) => Ok(output),
                Either::Right(((), _)) => Err(Elapsed),
            }
        }
    }

    /// A random sequence of its own for one component, forked from the node's.
    fn fork_rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.random())
    }
}

impl<T: Environment + ?Sized> EnvironmentExt for T {}
