//! Latency that is added to a real network: what passes arrives in order, that much later.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use meridian_truetime::env::{Env, EnvironmentExt, Moment};

/// The latency added between this node and another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// From here to there.
    pub there: Duration,
    /// From there to here.
    pub back: Duration,
}

/// The items of `source` and its end, in order, each `latency` after it was ready.
pub(super) fn delayed<S: Stream + Unpin>(env: Env, latency: Duration, source: S) -> Delayed<S> {
    Delayed { env, latency, source: Some(source), under_way: VecDeque::new(), timer: None }
}

pub(super) struct Delayed<S: Stream> {
    env: Env,
    latency: Duration,
    source: Option<S>,
    /// When each arrives; the last is the end.
    under_way: VecDeque<(Moment, Option<S::Item>)>,
    timer: Option<BoxFuture<'static, ()>>,
}

// Nothing is pinned inside.
impl<S: Stream + Unpin> Unpin for Delayed<S> {}

impl<S: Stream + Unpin> Stream for Delayed<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if self.latency.is_zero() {
            return match &mut self.source {
                Some(source) => source.poll_next_unpin(context),
                None => Poll::Ready(None),
            };
        }
        self.take_in(context);
        loop {
            let Some((due, _)) = self.under_way.front() else {
                return if self.source.is_some() { Poll::Pending } else { Poll::Ready(None) };
            };
            let due = *due;
            if self.env.moment() >= due {
                self.timer = None;
                let arrived = self.under_way.pop_front();
                return Poll::Ready(arrived.and_then(|(_, item)| item));
            }
            if self.timer.is_none() {
                self.timer = Some(self.env.sleep_until(due));
            }
            if let Some(timer) = &mut self.timer {
                if timer.poll_unpin(context).is_pending() {
                    return Poll::Pending;
                }
                self.timer = None;
            }
        }
    }
}

impl<S: Stream + Unpin> Delayed<S> {
    /// Takes what is ready at the source, and notes when it arrives.
    fn take_in(&mut self, context: &mut Context<'_>) {
        while let Some(source) = &mut self.source {
            let Poll::Ready(item) = source.poll_next_unpin(context) else { return };
            if item.is_none() {
                self.source = None;
            }
            let due = self.env.moment().plus(self.latency);
            self.under_way.push_back((due, item));
        }
    }
}

/// Waits, if there is anything to wait for.
pub(super) async fn pass(env: &Env, latency: Duration) {
    if !latency.is_zero() {
        env.sleep(latency).await;
    }
}

#[cfg(test)]
mod tests {
    use meridian_truetime::{CostModel, World};

    use super::*;

    #[test]
    fn everything_arrives_in_order_and_that_much_later() {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let env: Env = world.node(1);
            let (send, items) = futures::channel::mpsc::unbounded();
            let latency = Duration::from_millis(30);
            let mut arrivals = delayed(env.clone(), latency, items);
            let sender = env.clone();
            env.spawn(async move {
                for n in 0..3 {
                    let _ = send.unbounded_send(n);
                    sender.sleep(Duration::from_millis(10)).await;
                }
            });
            let mut seen = Vec::new();
            while let Some(n) = arrivals.next().await {
                seen.push((n, env.moment().as_nanos() / 1_000_000));
            }
            assert_eq!(seen, [(0, 30), (1, 40), (2, 50)]);
            assert_eq!(env.moment().as_nanos() / 1_000_000, 60, "the end travels too");
        });
    }
}
