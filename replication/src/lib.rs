//! Replicated logs over key ranges, and the network between nodes.
//!
//! * [`net`]: byte-level services between nodes, over gRPC or a simulated network.
//! * [`raft`]: Raft groups on openraft, generic over the [`StateMachine`] that they feed.
//! * [`tablet`]: descriptors, which say what a tablet covers and where its replicas are.

pub mod net;
pub mod raft;
pub mod state_machine;
pub mod tablet;

pub use raft::{
    ConfirmError, Host, ProposeError, Replica, ReplicaStatus, Submitted, Timing, birth, death,
};
pub use state_machine::{Members, Position, StateMachine};
pub use tablet::{Generation, Placement, PlacementChange, TabletDescriptor};
