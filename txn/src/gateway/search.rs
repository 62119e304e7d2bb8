//! Who is asked for a tablet's leader, and in which order.

use std::time::Duration;

use meridian_replication::TabletDescriptor;
use meridian_storage::NodeId;

use super::PAUSE;

/// The order in which a gateway asks a tablet's replicas for their leader.
pub(super) struct Search {
    pub(super) replicas: Vec<NodeId>,
    /// Who is asked next.
    at: NodeId,
    /// How many were asked since the last pause.
    asked: usize,
    /// How many pauses were made.
    round: u32,
}

impl Search {
    pub(super) fn new(descriptor: TabletDescriptor, hint: Option<NodeId>) -> Self {
        // The preferred leader may not have a replica yet, or no longer.
        let preferred = Some(descriptor.preferred_leader).filter(|n| descriptor.voters.contains(n));
        let at = hint.or(preferred).or_else(|| descriptor.voters.first().copied());
        let at = at.unwrap_or(descriptor.preferred_leader);
        Self { replicas: descriptor.voters, at, asked: 0, round: 0 }
    }

    pub(super) fn node(&self) -> NodeId {
        self.at
    }

    /// A replica named the leader, or doesn't know it; the pause before that is asked, if any.
    pub(super) fn redirected(&mut self, leader: Option<NodeId>) -> Option<Duration> {
        match leader.filter(|leader| *leader != self.at) {
            Some(leader) => {
                self.at = leader;
                self.count()
            }
            None => self.next(),
        }
    }

    /// On to the next replica; the pause before it is asked, if any.
    pub(super) fn next(&mut self) -> Option<Duration> {
        let here = self.replicas.iter().position(|node| *node == self.at);
        let next = here.map_or(0, |here| (here + 1) % self.replicas.len().max(1));
        self.at = self.replicas.get(next).copied().unwrap_or(self.at);
        self.count()
    }

    fn count(&mut self) -> Option<Duration> {
        self.asked += 1;
        if self.asked < self.replicas.len() { None } else { Some(self.next_round()) }
    }

    pub(super) fn next_round(&mut self) -> Duration {
        self.asked = 0;
        let pause = (PAUSE.0 * 2_u32.saturating_pow(self.round)).min(PAUSE.1);
        self.round = (self.round + 1).min(16);
        pause
    }
}

#[cfg(test)]
mod tests {
    use meridian_replication::{Generation, Placement};
    use meridian_storage::{KeyRange, TabletId};

    use super::*;

    fn search() -> Search {
        Search::new(descriptor(), None)
    }

    fn descriptor() -> TabletDescriptor {
        let replicas: Vec<NodeId> = (1..=3).map(NodeId::new).collect();
        TabletDescriptor {
            id: TabletId::new(7),
            generation: Generation::FIRST,
            range: KeyRange { start: Vec::new(), end: None },
            sticky: false,
            preferred_leader: replicas[1],
            voters: replicas,
            read_only: Vec::new(),
            root_key: Vec::new(),
            placement: Placement::default(),
        }
    }

    #[test]
    fn begins_with_the_preferred_leader_and_goes_round() {
        let mut search = search();
        assert_eq!(search.node(), NodeId::new(2));
        assert_eq!(search.next(), None);
        assert_eq!(search.node(), NodeId::new(3));
        assert_eq!(search.next(), None);
        assert_eq!(search.node(), NodeId::new(1));
        assert_eq!(search.next(), Some(PAUSE.0), "all were asked");
    }

    #[test]
    fn begins_with_a_voter_if_the_preferred_leader_is_none() {
        let mut descriptor = descriptor();
        descriptor.preferred_leader = NodeId::new(9);
        let mut search = Search::new(descriptor, None);
        assert_eq!(search.node(), NodeId::new(1));
        search.next();
        assert_eq!(search.node(), NodeId::new(2));
        let mut led_elsewhere = Search::new(self::descriptor(), Some(NodeId::new(9)));
        assert_eq!(led_elsewhere.node(), NodeId::new(9));
        led_elsewhere.next();
        assert_eq!(led_elsewhere.node(), NodeId::new(1));
    }

    #[test]
    fn follows_a_redirect_but_not_in_circles() {
        let mut search = search();
        assert_eq!(search.redirected(Some(NodeId::new(1))), None);
        assert_eq!(search.node(), NodeId::new(1));
        assert_eq!(search.redirected(Some(NodeId::new(2))), None);
        assert_eq!(search.redirected(Some(NodeId::new(1))), Some(PAUSE.0));
    }
}
