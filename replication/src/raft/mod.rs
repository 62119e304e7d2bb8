//! Raft groups on openraft.
//!
//! A node holds many groups, one per tablet. They share the node's log file (one durable write
//! serves all that is waiting), its data file and its connections. openraft drives each group; this
//! module gives it storage and network, lets its timers run only where a leader is missing
//! (liveness), and gives the layers above a [`Replica`]: submit a
//! command, confirm that this replica leads, see how the group stands.
//!
//! # What is promised
//!
//! * The vote and every entry are durable on a node before that node acknowledges them (Ongaro,
//!   *Consensus: Bridging Theory and Practice*, section 3.8).
//! * A command that [`Submitted::outcome`] answers is committed: it is on a majority's disks and
//!   survives whatever leaves a majority.
//! * After [`Replica::confirm`] in a term, everything that any leader had committed before the call
//!   is applied here (Raft's read index, section 6.4). No clock is involved: openraft's own lease
//!   read assumes clocks that don't drift, which is just what Meridian varies.
//!
//! # Caveats
//!
//! * A proposal that fails with [`ProposeError::Unknown`] may be committed later or never.
//! * Commands are applied at least once after a crash (the log replays what the data file lost), so
//!   state machines are deterministic and their effects replace each other exactly.
//! * A node whose disk was wiped must not come back under its old id: it would have forgotten votes.

mod handover;
mod heart;
mod host;
pub mod lease;
mod liveness;
mod log;
mod machine;
mod network;
mod replica;
mod service;
mod timing;
mod types;

pub use host::Host;
pub use machine::{birth, death};
pub use replica::{ConfirmError, ProposeError, Replica, ReplicaStatus, Submitted};
pub use timing::Timing;
