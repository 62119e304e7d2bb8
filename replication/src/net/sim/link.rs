//! One direction between two nodes: how it treats messages, and what it has seen.

use std::collections::VecDeque;
use std::time::Duration;

use meridian_storage::NodeId;
use meridian_truetime::env::Moment;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::wire::Message;

/// A stream's lost packet is sent again after two round trips, but no sooner than this, as TCP
/// does (Linux's `TCP_RTO_MIN`).
const MIN_RETRANSMISSION: Duration = Duration::from_millis(200);

/// A packet lost so often in a row gets through after all, so that a stream over a link that loses
/// everything is late rather than stuck. To stop a link, cut it.
const MAX_RETRANSMISSIONS: u32 = 16;

/// How far a message that is reordered may fall behind, at the least.
const MIN_REORDERING: Duration = Duration::from_millis(1);

/// How one direction between two nodes treats messages. The default is a perfect link that takes
/// no time. Probabilities are between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkSettings {
    /// What every message takes, one way.
    pub latency: Duration,
    /// A message takes up to this much longer, evenly distributed.
    pub jitter: Duration,
    /// The probability that a message is lost. A call's caller then waits for its deadline; a
    /// stream repeats the message after a while, and what is behind it waits.
    pub loss: f64,
    /// The probability that a call's request, once it is executed, is executed a second time, at
    /// once or as much later as jitter and reordering make it. Streams don't show duplication.
    pub duplication: f64,
    /// The probability that a message falls behind by up to the latency (at least 1 ms), so that
    /// calls overtake each other. In a stream it delays what is behind it.
    pub reordering: f64,
    /// Nothing arrives, but nothing is lost either: when the link drains, it all arrives.
    pub clogged: bool,
    /// Nothing arrives. Calls' messages are lost, those under way included; streams stall, repeat
    /// what was lost when the link is healed, and break if that takes too long.
    pub cut: bool,
}

impl LinkSettings {
    /// A perfect link with that latency, one way.
    #[must_use]
    pub fn with_latency(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }

    /// Whether nothing arrives.
    #[must_use]
    pub const fn is_stalled(&self) -> bool {
        self.clogged || self.cut
    }

    /// The same link with every fault gone; latency and jitter stay.
    #[must_use]
    pub fn healed(&self) -> Self {
        Self { latency: self.latency, jitter: self.jitter, ..Self::default() }
    }
}

/// One direction between two nodes, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkView {
    /// The sending node.
    pub from: NodeId,
    /// The receiving node.
    pub to: NodeId,
    /// How the link treats messages at present.
    pub settings: LinkSettings,
    /// Messages sent so far: requests, answers, and messages of streams.
    pub messages: u64,
    /// Their bytes, without any framing.
    pub bytes: u64,
    /// How many of the messages of calls were lost.
    pub lost: u64,
}

#[derive(Debug)]
pub(super) struct Link {
    pub settings: LinkSettings,
    pub messages: u64,
    pub bytes: u64,
    pub lost: u64,
    /// Since when nothing arrives.
    pub stalled_since: Option<Moment>,
    /// Messages of calls that arrived where the link is clogged.
    pub held: VecDeque<Message>,
    /// The link's own sequence, so that traffic on one link doesn't change the luck of another.
    random: StdRng,
}

impl Link {
    pub fn new(settings: LinkSettings, seed: u64, from: NodeId, to: NodeId) -> Self {
        let mut bytes = [0; 32];
        for (place, part) in bytes.chunks_mut(8).zip([seed, from.get(), to.get()]) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        Self {
            settings,
            messages: 0,
            bytes: 0,
            lost: 0,
            stalled_since: None,
            held: VecDeque::new(),
            random: StdRng::from_seed(bytes),
        }
    }

    pub fn count(&mut self, size: usize) {
        self.messages += 1;
        self.bytes += size as u64;
    }

    /// How long a call's message takes, unless it is lost.
    pub fn transit(&mut self) -> Option<Duration> {
        if self.settings.cut || self.chance(self.settings.loss) {
            self.lost += 1;
            return None;
        }
        Some(self.delay())
    }

    /// How long after a request its duplicate arrives, if there is one.
    pub fn duplicate(&mut self) -> Option<Duration> {
        let duplicated = self.chance(self.settings.duplication);
        duplicated.then(|| self.delay().saturating_sub(self.settings.latency))
    }

    /// How long a message takes that isn't lost.
    pub fn delay(&mut self) -> Duration {
        let LinkSettings { latency, jitter, reordering, .. } = self.settings;
        let mut delay = latency + self.up_to(jitter);
        if self.chance(reordering) {
            delay += self.up_to(latency.max(MIN_REORDERING));
        }
        delay
    }

    /// How long a stream's message takes, repeated until it gets through.
    pub fn stream_delay(&mut self, back: Duration) -> Duration {
        let again = (2 * (self.settings.latency + back)).max(MIN_RETRANSMISSION);
        let mut delay = self.delay();
        for _ in 0..MAX_RETRANSMISSIONS {
            if !self.chance(self.settings.loss) {
                break;
            }
            delay += again;
        }
        delay
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability.min(1.0))
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        if most.is_zero() { most } else { self.random.random_range(Duration::ZERO..=most) }
    }
}
