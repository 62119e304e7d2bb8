//! What a replicated log drives.

use std::fmt::Debug;
use std::io;

use bytes::Bytes;
use meridian_storage::{DataSnapshot, KeyRange, WriteBatch};

/// Where in its log an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// A deterministic state machine over a node's data file.
///
/// Every replica applies the same commands in the same order to the same state, so `apply` may
/// look at nothing but its arguments and what earlier commands left behind: no clock, no random
/// number, no setting of the node. Effects go into the batch, which is committed together with the
/// log position; in-memory state that mirrors the batch changes in [`StateMachine::committed`].
pub trait StateMachine: Debug + Send + Sync + 'static {
    /// Applies one command. `view` shows everything that was applied before.
    ///
    /// A command that can't be decoded, or that the storage fails under, must not be skipped on
    /// one replica and applied on another: the implementation panics instead.
    fn apply(
        &self,
        position: Position,
        command: &[u8],
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Bytes;

    /// The batch of the last `apply` is committed and visible.
    fn committed(&self);

    /// The rows that belong to the state.
    fn range(&self) -> KeyRange;

    /// The prefix of the names of the records that belong to the state.
    fn records(&self) -> Vec<u8>;

    /// The state was replaced by a leader's snapshot; `view` shows the new one.
    ///
    /// # Errors
    /// When the records can't be read or understood.
    fn restore(&self, view: &DataSnapshot) -> io::Result<()>;
}
