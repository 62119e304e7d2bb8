//! A node's replica of a tablet: the replicated state machine and, on the leader, what serves it.

mod leader;
mod machine;

pub(crate) use leader::Tablet;
pub use leader::TabletRead;
pub(crate) use machine::{TabletMachine, removal, stored_tablets};
