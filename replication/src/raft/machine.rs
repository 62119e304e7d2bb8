//! The adapter between openraft's state machine and a [feed](crate::feed), and the images that it
//! ships.
//!
//! Applied data is durable only after a flush of the data file. openraft purges a log only up to the
//! last snapshot it was told of; taking one here means flushing the data file, so nothing is purged
//! that isn't durably applied. The image itself is read when a follower needs it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use meridian_storage::{LogStore, NodeId, TabletId, WriteBatch};
use meridian_truetime::{Env, Work};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::heart::Pulse;
use super::types::{
    Answer, LeaderId, LogId, Member, Membership, RaftTypes, SnapshotMeta, StoredMembership,
};
use crate::codec::{decode, encode};
use crate::feed::{self, Applier, Entry, Progress};
use crate::image::Image;
use crate::state_machine::{Members, Position};

/// For how long an image can be gone on with, on either side.
pub(crate) const RESUMABLE: Duration = Duration::from_mins(1);

/// An image, with a number that tells it from others of its group.
#[derive(Clone, Debug)]
pub(crate) struct NumberedImage {
    pub(crate) number: u64,
    pub(crate) image: Image,
}

pub(crate) type RaftSnapshot = openraft::type_config::alias::SnapshotOf<RaftTypes, NumberedImage>;

/// The members that a configuration of openraft's means.
fn members(membership: &Membership) -> Members {
    let configs = membership.get_joint_config();
    let voters: Vec<_> = configs.last().into_iter().flatten().copied().map(NodeId::new).collect();
    // Those who vote no longer will follow; until the old configuration is gone they still vote.
    let others = membership.nodes().map(|(id, _)| NodeId::new(*id));
    let learners = others.filter(|node| !voters.contains(node)).collect();
    Members { voters, learners, joint: configs.len() > 1 }
}

/// Where every group's log begins: an entry that nobody holds, because every first member is born
/// with what applying it would have come to. So no log reaches back to the beginning, and a replica
/// that is added later always begins with an image.
const BIRTH: Position = Position { term: 0, index: 1 };

fn log_id(at: Position) -> LogId {
    LogId::new(LeaderId::new(at.term, 0).to_committed(), at.index)
}

fn position(log_id: &LogId) -> Position {
    Position { term: log_id.committed_leader_id().term, index: log_id.index }
}

/// Raft's memo: the members, and the entry that made them so.
fn applied(progress: &Progress) -> io::Result<(Option<LogId>, StoredMembership)> {
    match progress.at {
        Some(at) => Ok((Some(log_id(at)), decode(&progress.memo)?)),
        None => Ok((None, StoredMembership::default())),
    }
}

/// Adds to a batch what makes a group known to a node that is one of its first members: together
/// with the state machine's own first records. Every first member does the same, whenever it
/// learns of the group.
///
/// # Errors
/// When the members make no configuration.
pub fn birth(group: TabletId, members: &Members, batch: &mut WriteBatch) -> io::Result<()> {
    let voters = members.voters.iter().map(|node| node.get()).collect();
    let all = members.voters.iter().chain(&members.learners);
    let all: BTreeMap<u64, Member> = all.map(|node| (node.get(), Member)).collect();
    let membership = Membership::new(vec![voters], all).map_err(io::Error::other)?;
    let membership = StoredMembership::new(Some(log_id(BIRTH)), membership);
    let progress = Progress { at: Some(BIRTH), memo: encode(&membership)?.to_vec() };
    progress.record(group, batch)
}

/// Adds to a batch what ends a group on this node, beside its state machine's own records.
pub fn death(group: TabletId, batch: &mut WriteBatch) {
    feed::forget(group, batch);
}

/// A group's state machine as openraft drives it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    env: Env,
    applier: Arc<Applier>,
    logs: LogStore,
    pulse: Arc<Pulse>,
}

impl Machine {
    pub(crate) fn new(env: Env, applier: Applier, logs: LogStore, pulse: Arc<Pulse>) -> Self {
        let machine = Self { env, applier: Arc::new(applier), logs, pulse };
        machine.say_applied();
        machine
    }

    fn say_applied(&self) {
        self.pulse.set_applied(self.applier.progress().at.map_or(0, |at| at.index));
    }
}

impl RaftStateMachine<RaftTypes> for Machine {
    type SnapshotData = NumberedImage;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        applied(&self.applier.progress())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<RaftTypes>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.env.work(Work::Request).await;
            let log_id = entry.log_id();
            let at = position(&log_id);
            let answer = match &entry.payload {
                EntryPayload::Blank => self.applier.apply(at, Entry::Nothing, None)?,
                EntryPayload::Normal(command) => {
                    if self.applier.concerns_others(&command.0) {
                        self.pulse.take_interrupted();
                    }
                    self.applier.apply(at, Entry::Command(&command.0), None)?
                }
                EntryPayload::Membership(_) => {
                    let membership = entry.payload.get_membership().unwrap_or_default();
                    let members = members(&membership);
                    let memo = encode(&StoredMembership::new(Some(log_id), membership))?;
                    self.applier.apply(at, Entry::Members(&members), Some(memo.to_vec()))?
                }
            };
            self.say_applied();
            if let Some(responder) = responder {
                responder.send(Answer(answer));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    /// openraft purges the log after this.
    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        image: NumberedImage,
    ) -> Result<(), io::Error> {
        let memo = encode(&meta.last_membership)?.to_vec();
        let progress = Progress { at: meta.last_log_id.as_ref().map(position), memo };
        self.applier.install(progress, image.image).await?;
        self.say_applied();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        if self.applier.progress().at.is_none() {
            return Ok(None);
        }
        // A follower that was interrupted need not begin anew, if the log goes on from there, and
        // holds no split or merge since then: their history is no business of who comes later.
        let purged = self.logs.purged(self.applier.group()).unwrap_or(0);
        if let (Some(last), Some(range)) = (self.pulse.take_interrupted(), self.applier.range()?)
            && last.meta.last_log_id.is_some_and(|at| at.index >= purged)
            && last.snapshot.image.range() == Some(&range)
        {
            return Ok(Some(last));
        }
        self.build_snapshot().await.map(Some)
    }
}

impl RaftSnapshotBuilder<RaftTypes> for Machine {
    type SnapshotData = NumberedImage;

    /// A consistent view of the data file at the position that it itself names.
    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let (progress, image) = self.applier.image().await?;
        let (last_log_id, last_membership) = applied(&progress)?;
        let meta = SnapshotMeta { last_log_id, last_membership };
        Ok(Snapshot { meta, snapshot: NumberedImage { number: self.env.random(), image } })
    }
}
