//! Tablets and where they are.

use meridian_storage::{KeyRange, KeyType, NodeId, Order, TabletId};
use serde::{Deserialize, Serialize};

/// Counts the changes of a tablet's descriptor. A request names the generation that it believes in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(u64);

impl Generation {
    /// The generation of a tablet that was just created.
    pub const FIRST: Generation = Generation(1);

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl From<u64> for Generation {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// Where a tablet's replicas should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// How many replicas vote.
    pub voters: u8,
    /// The regions that the voters may be in; any, if there are none here.
    pub regions: Vec<String>,
    /// Regions that have a replica each that follows without voting.
    pub read_only: Vec<String>,
    /// The region that leads whenever it can.
    pub leader_region: Option<String>,
}

/// A change of a [`Placement`]: what isn't given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementChange {
    /// See [`Placement::voters`].
    pub voters: Option<u8>,
    /// See [`Placement::regions`].
    pub regions: Option<Vec<String>>,
    /// See [`Placement::read_only`].
    pub read_only: Option<Vec<String>>,
    /// See [`Placement::leader_region`]; `Some(None)` takes it away.
    pub leader_region: Option<Option<String>>,
}

impl Placement {
    /// The placement with a change made to it.
    #[must_use]
    pub fn with(mut self, change: PlacementChange) -> Self {
        self.voters = change.voters.unwrap_or(self.voters);
        self.regions = change.regions.unwrap_or(self.regions);
        self.read_only = change.read_only.unwrap_or(self.read_only);
        self.leader_region = change.leader_region.unwrap_or(self.leader_region);
        self
    }
}

/// What a tablet covers and where its replicas are.
///
/// The copy in the tablet's own replicated state is the truth; the one in the directory is an index
/// that may lag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabletDescriptor {
    /// The tablet.
    pub id: TabletId,
    /// Counts its changes.
    pub generation: Generation,
    /// The keys that it covers.
    pub range: KeyRange,
    /// Where it begins was chosen by hand: nobody but a hand merges it into its left neighbour.
    pub sticky: bool,
    /// The types of the root table's key columns: what it takes to find where a directory ends, in
    /// which no tablet may be split.
    pub root_key: Vec<(KeyType, Order)>,
    /// The nodes with a voting replica.
    pub voters: Vec<NodeId>,
    /// The nodes with a replica that follows without voting.
    pub read_only: Vec<NodeId>,
    /// The replica that should lead whenever it can.
    pub preferred_leader: NodeId,
    /// Where the replicas should be.
    pub placement: Placement,
}

impl TabletDescriptor {
    /// All nodes with a replica, voters first.
    pub fn replicas(&self) -> impl Iterator<Item = NodeId> {
        self.voters.iter().chain(&self.read_only).copied()
    }
}
