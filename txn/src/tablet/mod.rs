//! A node's replica of a tablet: the replicated state machine and, on the leader, what serves it.

mod leader;
mod machine;

pub use leader::TabletRead;
pub(crate) use leader::{Tablet, TabletParts};
pub(crate) use machine::{
    Event, Frozen, State, TabletMachine, Target, Unchanged, creation, directory_begins, is_stored,
    removal, same_nodes, stored_tablets, wanted_record,
};
