//! Group commit: many requests, one durable write.
//!
//! A durable write costs a sync of the disk whether it carries one request or a thousand. So one
//! writer per file takes all that is waiting, writes it in one go, and then tells the requests in
//! the order in which they came. While it writes, the next group gathers: under load groups grow
//! by themselves, and a lone request waits for nobody.
//!
//! What is done with a group is a [`Sink`], a plain function. It is driven by a thread where the
//! environment lets a component block, and by a task otherwise: a thread would stand beside
//! virtual time. The task pays for the sync in virtual time before it writes, with its group
//! already closed, as a disk would.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use meridian_truetime::{Env, EnvironmentExt, Work};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::error::StorageError;

/// Called once when a request is durable or has failed. It may run on the writer's thread, so it
/// must not block. It is dropped without a call if the node halts first.
pub type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// A [`Done`] and the future that it completes; [`StorageError::Closed`] if it is dropped.
#[must_use]
pub fn completion() -> (Done, Completion) {
    let (sender, receiver) = oneshot::channel();
    let done: Done = Box::new(move |result| {
        let _ = sender.send(result);
    });
    (done, Completion(receiver))
}

/// Ready when its [`Done`] was called.
#[derive(Debug)]
pub struct Completion(oneshot::Receiver<Result<(), StorageError>>);

impl Completion {
    /// Blocks the thread until its [`Done`] was called: for threads outside of any runtime.
    ///
    /// # Errors
    /// What the writer reported.
    pub fn wait(self) -> Result<(), StorageError> {
        self.0.blocking_recv().unwrap_or(Err(StorageError::Closed))
    }
}

impl Future for Completion {
    type Output = Result<(), StorageError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|result| result.unwrap_or(Err(StorageError::Closed)))
    }
}

/// What a writer does with a group.
pub(crate) trait Sink: Send + 'static {
    /// A request.
    type Operation: Send + 'static;

    /// About how many bytes the request writes.
    fn weight(operation: &Self::Operation) -> usize;

    /// Makes a group durable, all or nothing. After an error it is never called again.
    fn commit_batch(&mut self, group: Vec<Self::Operation>) -> Result<(), StorageError>;

    /// The first failure; the writer refuses everything from now on.
    fn stop(&mut self, cause: &StorageError);
}

/// A group is closed when it holds this many bytes, or requests: so that a flood of requests is
/// answered along the way.
const MAX_GROUP_BYTES: usize = 8 << 20;
const MAX_GROUP: usize = 4_096;

type Request<T> = (T, Done);

/// The front of a writer. Dropping it lets the writer finish what is waiting, and waits for it.
#[derive(Debug)]
pub(crate) struct Writer<T> {
    /// Taken when it is dropped.
    queue: Option<UnboundedSender<Request<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Writer<T> {
    /// Starts a writer over `sink`.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub(crate) fn start<S>(env: &Env, name: &str, sink: S) -> Result<Self, StorageError>
    where
        S: Sink<Operation = T>,
    {
        let (queue, requests) = unbounded_channel();
        let mut driver = Driver { requests, sink, stopped: None };
        let thread = if env.may_block() {
            let thread = std::thread::Builder::new().name(name.to_owned());
            let started = thread.spawn(move || driver.run_blocking());
            Some(started.map_err(|error| StorageError::io(name, error))?)
        } else {
            let disk = Env::clone(env);
            env.spawn(async move { driver.run(disk).await });
            None
        };
        Ok(Self { queue: Some(queue), thread })
    }

    /// Hands a request over. Gives `done` back, to be called with [`StorageError::Closed`], if
    /// the writer is gone.
    #[must_use]
    pub(crate) fn submit(&self, operation: T, done: Done) -> Option<Done> {
        match &self.queue {
            Some(queue) => queue.send((operation, done)).err().map(|rejected| rejected.0.1),
            None => Some(done),
        }
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            // The last handle of a store may be dropped by a `Done`, on the writer's own thread.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

struct Driver<S: Sink> {
    requests: UnboundedReceiver<Request<S::Operation>>,
    sink: S,
    stopped: Option<StorageError>,
}

impl<S: Sink> Driver<S> {
    fn run_blocking(&mut self) {
        while let Some(first) = self.requests.blocking_recv() {
            let group = self.gather(first);
            self.commit(group);
        }
    }

    async fn run(&mut self, env: Env) {
        while let Some(first) = self.requests.recv().await {
            let group = self.gather(first);
            env.work(Work::Sync).await;
            self.commit(group);
        }
    }

    /// What is waiting.
    fn gather(&mut self, first: Request<S::Operation>) -> Vec<Request<S::Operation>> {
        let mut bytes = S::weight(&first.0);
        let mut group = vec![first];
        while bytes < MAX_GROUP_BYTES && group.len() < MAX_GROUP {
            let Ok(next) = self.requests.try_recv() else { break };
            bytes += S::weight(&next.0);
            group.push(next);
        }
        group
    }

    fn commit(&mut self, group: Vec<Request<S::Operation>>) {
        let (operations, dones): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let result = match &self.stopped {
            Some(stopped) => Err(stopped.clone()),
            None => self.commit_or_stop(operations),
        };
        for done in dones {
            done(result.clone());
        }
    }

    fn commit_or_stop(&mut self, operations: Vec<S::Operation>) -> Result<(), StorageError> {
        let sink = &mut self.sink;
        // A panic in the storage engine must not leave requests without an answer.
        let result = catch_unwind(AssertUnwindSafe(|| sink.commit_batch(operations)))
            .unwrap_or_else(|panic| Err(panicked(&*panic)));
        if let Err(error) = &result {
            self.stopped = Some(error.stopped());
            self.sink.stop(error);
        }
        result
    }
}

/// The error for a panic of the storage engine, which happens on files damaged beyond its checks.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> StorageError {
    let detail = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no reason given");
    StorageError::damaged("the storage engine's file", format!("it panicked: {detail}"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use meridian_truetime::{CostModel, World};

    use super::*;

    /// Reports the groups that it gets; fails on a group that holds a zero, panics on a one.
    struct Reporter(Sender<Vec<u64>>);

    impl Sink for Reporter {
        type Operation = u64;

        fn weight(operation: &u64) -> usize {
            if *operation == 99 { MAX_GROUP_BYTES } else { 1 }
        }

        fn commit_batch(&mut self, group: Vec<u64>) -> Result<(), StorageError> {
            let fails = group.contains(&0);
            assert!(!group.contains(&1), "told to");
            let _ = self.0.send(group);
            if fails { Err(StorageError::damaged("f", "told to")) } else { Ok(()) }
        }

        fn stop(&mut self, _: &StorageError) {
            let _ = self.0.send(vec![]);
        }
    }

    fn drained<T>(receiver: &Receiver<T>) -> Vec<T> {
        receiver.try_iter().collect()
    }

    #[test]
    fn what_waits_during_a_sync_is_the_next_group_and_answers_come_in_order() {
        let cost = CostModel { sync: Duration::from_millis(1), ..CostModel::default() };
        World::run_virtual(1, cost, |world| async move {
            let env: Env = world.node(1);
            let (report, reported) = channel();
            let writer = Writer::start(&env, "test", Reporter(report)).expect("a task");
            let (answer, answers) = channel();
            for operation in [2, 3, 99, 4, 5] {
                let answer = answer.clone();
                let done: Done = Box::new(move |_| answer.send(operation).expect("listening"));
                assert!(writer.submit(operation, done).is_none());
            }
            env.sleep(Duration::from_micros(1_500)).await;
            assert_eq!(drained(&answers), [2, 3, 99]);
            let (done, completion) = completion();
            assert!(writer.submit(6, done).is_none());
            completion.await.expect("durable");
            assert_eq!(env.moment().as_nanos(), 3_000_000);
            assert_eq!(drained(&answers), [4, 5]);
            assert_eq!(drained(&reported), [vec![2, 3, 99], vec![4, 5], vec![6]]);
        });
    }

    #[test]
    fn after_a_failure_everything_is_refused() {
        for poison in [0, 1] {
            World::run_virtual(1, CostModel::default(), |world| async move {
                let env: Env = world.node(1);
                let (report, reported) = channel();
                let writer = Writer::start(&env, "test", Reporter(report)).expect("a task");
                let mut results = vec![];
                for operation in [7, poison, 8] {
                    let (done, completion) = completion();
                    assert!(writer.submit(operation, done).is_none());
                    results.push(completion.await);
                }
                assert!(results[0].is_ok());
                assert!(matches!(results[1], Err(StorageError::Damaged { .. })));
                assert!(matches!(results[2], Err(StorageError::Stopped { .. })));
                assert!(!drained(&reported).contains(&vec![8]));
            });
        }
    }

    #[test]
    fn a_thread_finishes_what_waits_before_it_ends() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let env: Env = World::real(1).node(1);
        let (report, reported) = channel();
        let writer = Writer::start(&env, "test", Reporter(report)).expect("a thread");
        for operation in 2..1_000 {
            assert!(writer.submit(operation, Box::new(|result| result.expect("fine"))).is_none());
        }
        drop(writer);
        let written: Vec<u64> = drained(&reported).concat();
        assert_eq!(written, (2..1_000).collect::<Vec<_>>());
    }
}
