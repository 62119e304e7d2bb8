//! Replicated logs over key ranges, and the network between nodes.
//!
//! * [`net`]: byte-level services between nodes, over gRPC or a simulated network.
//! * [`raft`]: Raft groups on openraft, one of the feeds of a [`StateMachine`].
//! * [`feed`]: what applies the entries of an ordered source to a [`StateMachine`].
//! * [`tablet`]: descriptors, which say what a tablet covers and where its replicas are.

mod codec;
pub mod feed;
mod image;
pub mod net;
pub mod raft;
pub mod state_machine;
pub mod tablet;

pub use feed::{Applier, Entry, Progress};
pub use raft::{
    ConfirmError, Host, ProposeError, Replica, ReplicaStatus, Submitted, Timing, birth, death,
};
pub use state_machine::{Members, Position, StateMachine};
pub use tablet::{Generation, Placement, PlacementChange, TabletDescriptor};
