//! What a [feed](crate::feed) drives.

use std::fmt::Debug;
use std::io;

use bytes::Bytes;
use meridian_storage::{DataSnapshot, KeyRange, NodeId, WriteBatch};
use serde::{Deserialize, Serialize};

/// Where in its feed an entry stands. Later entries have greater positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Raft's term of the leader that proposed it; an epoch, where there are epochs.
    pub term: u64,
    /// Its index in the log, or in its epoch.
    pub index: u64,
}

/// The members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those who vote, of the new configuration while one replaces another; in order.
    pub voters: Vec<NodeId>,
    /// Those who follow without voting, in order.
    pub learners: Vec<NodeId>,
    /// One configuration is being replaced by another: both have to agree to everything.
    pub joint: bool,
}

/// A deterministic state machine over a node's data file.
///
/// Every replica applies the same commands in the same order to the same state, so `apply` may
/// look at nothing but its arguments and what earlier commands left behind: no clock, no random
/// number, no setting of the node. Effects go into the batch, which is committed together with the
/// log position; in-memory state that mirrors the batch changes in [`StateMachine::committed`].
///
/// A machine without state, a *blank* one, waits for its group's leader to send an image. Nothing
/// else can fill it: no log reaches back to before its group's birth.
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

    /// Whether the command changes what belongs to other state machines of this node. It is applied
    /// while nothing else is.
    fn concerns_others(&self, command: &[u8]) -> bool;

    /// Whether another state machine of this node has taken over what belonged to this one. Nothing
    /// must be applied any more.
    fn is_over(&self) -> bool;

    /// The group has other members from here on.
    fn members_changed(&self, members: &Members, batch: &mut WriteBatch);

    /// The batch of the last `apply` or `members_changed` is committed and visible.
    fn committed(&self);

    /// The rows that belong to the state that `view` shows; `None` if there is none.
    ///
    /// # Errors
    /// When the records can't be read or understood.
    fn range(&self, view: &DataSnapshot) -> io::Result<Option<KeyRange>>;

    /// The part of that range that no other replica here holds: an image replaces these rows.
    ///
    /// # Errors
    /// As [`StateMachine::range`].
    fn own(&self, view: &DataSnapshot) -> io::Result<Vec<KeyRange>> {
        Ok(self.range(view)?.into_iter().collect())
    }

    /// The prefix of the names of the records that belong to the state.
    fn records(&self) -> Vec<u8>;

    /// A leader offers an image with these records, which is to replace the state: the rows that
    /// will belong to it. From here on nothing else on this node may claim them, until
    /// [`StateMachine::restored`] or the next offer.
    ///
    /// # Errors
    /// When the rows belong to somebody else on this node, who has to give them up first.
    fn offered(&self, records: &[(Vec<u8>, Vec<u8>)]) -> io::Result<KeyRange>;

    /// An image with these records is about to replace the state: adds what ends the others that it
    /// takes over.
    ///
    /// # Errors
    /// When their records can't be read.
    fn take_over(
        &self,
        records: &[(Vec<u8>, Vec<u8>)],
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> io::Result<()>;

    /// The state was replaced by the image; `view` shows the new one.
    ///
    /// # Errors
    /// When the records can't be read or understood.
    fn restored(&self, view: &DataSnapshot) -> io::Result<()>;
}
