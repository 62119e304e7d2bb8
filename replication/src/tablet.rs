//! Tablets and where they are.

use meridian_storage::{KeyRange, NodeId, TabletId};
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
    /// The nodes with a voting replica.
    pub replicas: Vec<NodeId>,
    /// The replica that should lead whenever it can.
    pub preferred_leader: NodeId,
    /// The tables whose rows may lie in it, each with its schema version.
    pub tables: Vec<(u64, u64)>,
}
