//! Who may be interrupted, and how.
//!
//! A cancel request comes over a connection of its own, with the process id and the secret that
//! the session was given at its start. It interrupts what that session runs at that moment; a
//! session that runs nothing doesn't notice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A session's ear for cancel requests.
#[derive(Debug, Default)]
pub struct Cancel {
    requested: AtomicBool,
    wake: Notify,
}

impl Cancel {
    /// Forgets requests that came before: they meant what ran then.
    pub fn arm(&self) {
        self.requested.store(false, Ordering::Release);
    }

    /// Completes at the next request since [`Cancel::arm`].
    pub async fn requested(&self) {
        // A wake-up may be left over from before `arm`; the flag decides.
        while !self.requested.swap(false, Ordering::AcqRel) {
            self.wake.notified().await;
        }
    }

    fn request(&self) {
        self.requested.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

/// The sessions of one port, by process id.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    running: BTreeMap<i32, (i32, Arc<Cancel>)>,
    last: i32,
}

impl Sessions {
    /// Enters a session, which leaves when the returned value is dropped.
    pub fn enter(self: &Arc<Self>, secret: i32) -> Registered {
        let mut entries = self.lock();
        let mut pid = entries.last;
        loop {
            pid = if pid == i32::MAX { 1 } else { pid + 1 };
            if !entries.running.contains_key(&pid) {
                break;
            }
        }
        entries.last = pid;
        let cancel = Arc::new(Cancel::default());
        entries.running.insert(pid, (secret, Arc::clone(&cancel)));
        drop(entries);
        Registered { sessions: Arc::clone(self), pid, secret, cancel }
    }

    /// Interrupts a session if the secret is its own. The asker isn't told which.
    pub fn cancel(&self, pid: i32, secret: i32) {
        let entries = self.lock();
        if let Some((expected, cancel)) = entries.running.get(&pid)
            && *expected == secret
        {
            cancel.request();
        }
    }

    /// Interrupts a session, as another one asks for; whether there is one of that number.
    pub fn cancel_any(&self, pid: i32) -> bool {
        let entries = self.lock();
        let running = entries.running.get(&pid);
        running.inspect(|(_, cancel)| cancel.request()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's entry.
#[derive(Debug)]
pub struct Registered {
    sessions: Arc<Sessions>,
    /// The session's process id.
    pub pid: i32,
    /// What a cancel request must know.
    pub secret: i32,
    /// Where a cancel request arrives.
    pub cancel: Arc<Cancel>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.sessions.lock().running.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn only_the_right_secret_cancels_and_only_what_runs_now() {
        let sessions = Arc::new(Sessions::default());
        let (a, b) = (sessions.enter(11), sessions.enter(22));
        assert_ne!(a.pid, b.pid);
        a.cancel.arm();
        sessions.cancel(a.pid, 22);
        sessions.cancel(b.pid, 22);
        assert!(a.cancel.requested().now_or_never().is_none());
        assert!(b.cancel.requested().now_or_never().is_some());
        sessions.cancel(a.pid, 11);
        a.cancel.arm();
        assert!(a.cancel.requested().now_or_never().is_none());
        sessions.cancel(a.pid, 11);
        assert!(a.cancel.requested().now_or_never().is_some());
    }

    #[test]
    fn a_session_that_left_is_forgotten() {
        let sessions = Arc::new(Sessions::default());
        let pid = sessions.enter(1).pid;
        assert!(sessions.lock().running.is_empty());
        assert_ne!(sessions.enter(1).pid, pid);
    }
}
