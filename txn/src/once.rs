//! Requests that must not take effect twice.
//!
//! A network may deliver a request twice (`meridian_replication::net`). A write that was carried out
//! would conflict with its copy, and if the copy's answer came first, the gateway would take the
//! write for undone and do it again. So such requests have numbers, and a node remembers for a while
//! which it has begun: a copy gets the answer of the first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use meridian_storage::NodeId;
use meridian_truetime::Moment;
use tokio::sync::watch;

/// How long a copy may be under way, well above what a network takes.
const LASTS: Duration = Duration::from_secs(30);

/// No more are remembered than this.
const MOST: usize = 1 << 14;

/// Who asks, and a number that it uses for one request.
pub(crate) type RequestId = (NodeId, u64);

/// The requests that a node has begun.
#[derive(Debug, Default)]
pub(crate) struct Once(Mutex<Begun>);

#[derive(Debug, Default)]
struct Begun {
    answers: BTreeMap<RequestId, watch::Receiver<Option<Bytes>>>,
    order: VecDeque<(Moment, RequestId)>,
}

/// What to do with a request.
pub(crate) enum Turn {
    /// Carry it out and tell the others.
    First(watch::Sender<Option<Bytes>>),
    /// Wait for the answer; it never comes if the first has none.
    Copy(watch::Receiver<Option<Bytes>>),
}

impl Once {
    pub(crate) fn begin(&self, id: RequestId, now: Moment) -> Turn {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = begun.answers.get(&id) {
            return Turn::Copy(answer.clone());
        }
        while begun.order.len() >= MOST
            || begun.order.front().is_some_and(|(at, _)| now.since(*at) > LASTS)
        {
            let Some((_, old)) = begun.order.pop_front() else { break };
            begun.answers.remove(&old);
        }
        let (tell, answer) = watch::channel(None);
        begun.answers.insert(id, answer);
        begun.order.push_back((now, id));
        Turn::First(tell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_waits_for_the_first_and_old_ones_are_forgotten() {
        let (once, id) = (Once::default(), (NodeId::new(1), 7));
        let Turn::First(tell) = once.begin(id, Moment::START) else { panic!("it is new") };
        tell.send_replace(Some(Bytes::from_static(b"done")));
        let Turn::Copy(answer) = once.begin(id, Moment::START) else { panic!("it was begun") };
        assert_eq!(answer.borrow().as_deref(), Some(&b"done"[..]));
        assert!(matches!(once.begin((NodeId::new(2), 7), Moment::START), Turn::First(_)));

        let later = Moment::START.plus(LASTS * 2);
        assert!(matches!(once.begin((NodeId::new(1), 8), later), Turn::First(_)));
        assert!(matches!(once.begin(id, later), Turn::First(_)));
        for number in 0..2 * MOST as u64 {
            once.begin((NodeId::new(3), number), later);
        }
        let begun = once.0.lock().expect("unharmed");
        assert!(begun.answers.len() == MOST && begun.order.len() == MOST);
    }
}
