//! Timers of the real world that are precise to about a tenth of a millisecond.
//!
//! tokio's timers have a granularity of one millisecond and round up, too coarse for a link of
//! 0.8 ms or a commit wait of 2 ms. One thread per world keeps the deadlines in a map and parks
//! until the first of them; the kernel wakes it within some 60 µs.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

#[derive(Debug, Default)]
struct Queue {
    /// Deadlines in order; the number tells equal ones apart.
    waiting: BTreeMap<(Instant, u64), Waker>,
    next_id: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The world's timer thread; it ends when the last handle is dropped.
#[derive(Debug)]
pub(crate) struct Timer {
    shared: Arc<Shared>,
}

impl Timer {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::downgrade(&shared);
        #[expect(clippy::expect_used, reason = "a process that can't start a thread can't run")]
        std::thread::Builder::new()
            .name("timer".into())
            .spawn(move || run(&theirs))
            .expect("the timer thread starts");
        Self { shared }
    }

    pub(crate) fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { shared: Arc::clone(&self.shared), deadline, id: None }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.changed.notify_one();
    }
}

#[expect(clippy::disallowed_methods, reason = "the real world's clock")]
fn run(shared: &Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            return;
        }
        let now = Instant::now();
        let mut due = Vec::new();
        while let Some(entry) = queue.waiting.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
        if due.is_empty() {
            let next = queue.waiting.first_key_value().map(|(key, _)| key.0);
            match next {
                Some(at) => drop(shared.changed.wait_timeout(queue, at - now)),
                None => drop(shared.changed.wait(queue)),
            }
        } else {
            drop(queue);
            due.into_iter().for_each(Waker::wake);
        }
    }
}

/// Ready at its deadline; leaves the queue when dropped before.
#[derive(Debug)]
pub(crate) struct Sleep {
    shared: Arc<Shared>,
    deadline: Instant,
    id: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    #[expect(clippy::disallowed_methods, reason = "the real world's clock")]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let deadline = self.deadline;
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let id = *self.id.get_or_insert_with(|| {
            queue.next_id += 1;
            queue.next_id
        });
        let before = queue.waiting.insert((deadline, id), context.waker().clone());
        if queue.waiting.first_key_value().is_some_and(|(key, _)| *key == (deadline, id)) {
            shared.changed.notify_one();
        }
        // A waker may be the last that holds a task, and that may hold a timer.
        drop(queue);
        drop(before);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let waker = queue.waiting.remove(&(self.deadline, id));
            drop(queue);
            drop(waker);
        }
    }
}
