//! What holds a paused node's tasks back.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;

/// Open or closed. A closed gate lets no task of its node run; those that would have run meanwhile
/// do when it opens, in the order in which they were started.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Read without the lock by tasks that find the gate open.
    closed: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    tickets: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Gate {
    /// Whether it was open.
    pub(crate) fn close(&self) -> bool {
        let _waiting = self.lock();
        !self.closed.swap(true, Ordering::AcqRel)
    }

    /// Whether it was closed.
    pub(crate) fn open(&self) -> bool {
        let (was_closed, wakers) = {
            let mut waiting = self.lock();
            (self.closed.swap(false, Ordering::AcqRel), std::mem::take(&mut waiting.wakers))
        };
        wakers.into_values().for_each(Waker::wake);
        was_closed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The task, held back while the gate is closed.
    pub(crate) fn hold(self: &Arc<Self>, task: BoxFuture<'static, ()>) -> Held {
        let mut waiting = self.lock();
        waiting.tickets += 1;
        Held { gate: Arc::clone(self), ticket: waiting.tickets, task }
    }

    /// Has the task woken when the gate opens; false if it is open.
    fn wait(&self, ticket: u64, waker: &Waker) -> bool {
        if !self.is_closed() {
            return false;
        }
        let mut waiting = self.lock();
        // It may have been opened before the lock was taken.
        let closed = self.is_closed();
        if closed {
            waiting.wakers.insert(ticket, waker.clone());
        }
        closed
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task behind a gate.
pub(crate) struct Held {
    gate: Arc<Gate>,
    ticket: u64,
    task: BoxFuture<'static, ()>,
}

impl Future for Held {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.gate.wait(self.ticket, context.waker()) {
            return Poll::Pending;
        }
        self.task.as_mut().poll(context)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.gate.is_closed() {
            self.gate.lock().wakers.remove(&self.ticket);
        }
    }
}
