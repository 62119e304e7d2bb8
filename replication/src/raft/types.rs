//! The types that openraft is instantiated with.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A command of the replicated state machine, opaque here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(pub Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What applying a command answered, opaque here. Empty for entries that Raft logs for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer(pub Bytes);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A member needs no data of its own: addresses belong to the transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member;

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("member")
    }
}

openraft::declare_raft_types!(
    /// One leader per term (`leader_id_std`), as in the Raft paper.
    pub RaftTypes:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Raft = openraft::Raft<RaftTypes, super::machine::Machine>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<RaftTypes>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<RaftTypes>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<RaftTypes>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<RaftTypes>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<RaftTypes>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<RaftTypes>;
pub(crate) type RpcError = openraft::errors::RPCError<RaftTypes>;
