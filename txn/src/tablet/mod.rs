//! A node's replica of a tablet: the replicated state machine and, on the leader, what serves it.

mod commit;
mod follower;
mod leader;
mod locking;
mod machine;
mod state;

pub(crate) use follower::SOON;
pub use leader::TabletRead;
pub(crate) use leader::{Tablet, TabletParts};
pub(crate) use machine::TabletMachine;
pub(crate) use state::{
    Event, Frozen, State, Target, Unchanged, creation, directory_begins, is_stored, removal,
    same_nodes, stored_tablets, wanted_record,
};
