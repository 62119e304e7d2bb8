//! The adapter between openraft's state machine and ours, and the images that it ships.
//!
//! Applied data lives in the node's data file and is durable only after a flush. What tells how far
//! it got, the `applied` record, is written in the same batch as the data, so that a crash loses
//! both or neither and the log replays the rest. openraft purges a log only up to the last
//! snapshot it was told of; taking one here means flushing the data file, so nothing is purged
//! that isn't durably applied. The image itself is read when a follower needs it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::{Stream, StreamExt};
use meridian_storage::{DataSnapshot, DataStore, NodeId, TabletId, WriteBatch};
use meridian_truetime::{Env, Work};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};

use super::image::Image;
use super::log::to_io;
use super::types::{
    Answer, LeaderId, LogId, Member, Membership, RaftTypes, SnapshotMeta, StoredMembership, decode,
    encode,
};
use crate::state_machine::{Members, Position, StateMachine};

pub(crate) type RaftSnapshot = openraft::type_config::alias::SnapshotOf<RaftTypes, Image>;

/// The members that a configuration of openraft's means.
fn members(membership: &Membership) -> Members {
    let configs = membership.get_joint_config();
    let voters = configs.last().into_iter().flatten().copied().map(NodeId::new).collect();
    let learners = membership.learner_ids().map(NodeId::new).collect();
    Members { voters, learners, joint: configs.len() > 1 }
}

/// Where every group's log begins: an entry that nobody holds, because every first member is born
/// with what applying it would have come to. So no log reaches back to the beginning, and a replica
/// that is added later always begins with an image.
const BIRTH: u64 = 1;

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
    let at = LogId::new(LeaderId::new(0, 0).to_committed(), BIRTH);
    let membership = StoredMembership::new(Some(at), membership);
    let applied = Applied { last: Some(at), membership };
    batch.put_record(applied_record(group), encode(&applied)?.to_vec());
    Ok(())
}

/// Adds to a batch what ends a group on this node, beside its state machine's own records.
pub fn death(group: TabletId, batch: &mut WriteBatch) {
    batch.delete_record(applied_record(group));
}

/// Held while something is applied.
enum Guards<'l> {
    #[expect(dead_code, reason = "held")]
    Shared(RwLockReadGuard<'l, ()>),
    #[expect(dead_code, reason = "held")]
    Alone(RwLockWriteGuard<'l, ()>),
}

impl<'l> Guards<'l> {
    fn take(applying: &'l RwLock<()>, alone: bool) -> Self {
        if alone {
            Self::Alone(applying.write().unwrap_or_else(PoisonError::into_inner))
        } else {
            Self::Shared(applying.read().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

fn taken_over() -> io::Error {
    io::Error::other("another tablet has taken over what this replica held")
}

/// How far a replica has applied its log; one record per group.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Applied {
    last: Option<LogId>,
    membership: StoredMembership,
}

/// The name of a group's `applied` record.
pub(crate) fn applied_record(group: TabletId) -> Vec<u8> {
    let mut name = b"raft/".to_vec();
    name.extend_from_slice(&group.get().to_be_bytes());
    name
}

/// What the adapter and its snapshot builder share.
#[derive(Debug)]
struct Shared {
    env: Env,
    group: TabletId,
    data: DataStore,
    machine: Arc<dyn StateMachine>,
    /// Held alone by what concerns several groups of the node.
    applying: Arc<RwLock<()>>,
    applied: Mutex<Applied>,
}

impl Shared {
    fn applied(&self) -> Applied {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_applied(&self, applied: Applied) {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = applied;
    }
}

/// Waits until everything that a data file was given is durable.
pub(crate) async fn flush(data: &DataStore) -> io::Result<()> {
    let (done, durable) = oneshot::channel();
    data.flush(Box::new(move |result| {
        let _ = done.send(result);
    }));
    durable.await.map_err(io::Error::other)?.map_err(to_io)
}

/// A group's state machine as openraft drives it.
#[derive(Debug)]
pub(crate) struct Machine(Arc<Shared>);

impl Machine {
    /// Takes up where the data file left off.
    pub(crate) fn open(
        env: Env,
        group: TabletId,
        data: DataStore,
        machine: Arc<dyn StateMachine>,
        applying: Arc<RwLock<()>>,
    ) -> io::Result<Self> {
        let snapshot = data.snapshot().map_err(to_io)?;
        let applied = match snapshot.record(&applied_record(group)).map_err(to_io)? {
            Some(bytes) => decode(&bytes)?,
            None => Applied::default(),
        };
        let applied = Mutex::new(applied);
        Ok(Self(Arc::new(Shared { env, group, data, machine, applying, applied })))
    }

    /// Applies one entry: its effects and the `applied` record in one batch.
    fn apply_entry(&self, entry: &super::types::Entry) -> io::Result<Bytes> {
        let shared = &self.0;
        let log_id = entry.log_id();
        let concerns_others = match &entry.payload {
            EntryPayload::Normal(command) => shared.machine.concerns_others(&command.0),
            _ => false,
        };
        let _guards = Guards::take(&shared.applying, concerns_others);
        if shared.machine.is_over() {
            return Err(taken_over());
        }
        let mut applied = shared.applied();
        assert!(applied.last < Some(log_id), "an entry is applied once, in order");
        let mut batch = WriteBatch::default();
        let mut answer = Bytes::new();
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(command) => {
                let position =
                    Position { term: log_id.committed_leader_id().term, index: log_id.index };
                let view = shared.data.snapshot().map_err(to_io)?;
                answer = shared.machine.apply(position, &command.0, &view, &mut batch);
            }
            EntryPayload::Membership(_) => {
                if let Some(membership) = entry.payload.get_membership() {
                    shared.machine.members_changed(&members(&membership), &mut batch);
                    applied.membership = StoredMembership::new(Some(log_id), membership);
                }
            }
        }
        applied.last = Some(log_id);
        batch.put_record(applied_record(shared.group), encode(&applied)?.to_vec());
        shared.data.commit(batch).map_err(to_io)?;
        shared.machine.committed();
        shared.set_applied(applied);
        Ok(answer)
    }
}

impl RaftStateMachine<RaftTypes> for Machine {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.0.applied();
        Ok((applied.last, applied.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<RaftTypes>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.0.env.work(Work::Request).await;
            let answer = self.apply_entry(&entry)?;
            if let Some(responder) = responder {
                responder.send(Answer(answer));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder(Arc::clone(&self.0))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        image: Image,
    ) -> Result<(), io::Error> {
        let shared = &self.0;
        {
            let _guards = Guards::take(&shared.applying, true);
            if shared.machine.is_over() {
                return Err(taken_over());
            }
            let applied =
                Applied { last: meta.last_log_id, membership: meta.last_membership.clone() };
            let old = shared.data.snapshot().map_err(to_io)?;
            let records = image.records()?;
            let incoming = shared.machine.offered(&records)?;
            let ranges = shared.machine.range(&old)?.into_iter().chain([incoming]);
            let mut batch = WriteBatch::default();
            shared.machine.take_over(&records, &old, &mut batch)?;
            image.add_to(&mut batch, &old, ranges, &shared.machine.records())?;
            drop(old);
            batch.put_record(applied_record(shared.group), encode(&applied)?.to_vec());
            shared.data.commit(batch).map_err(to_io)?;
            let view = shared.data.snapshot().map_err(to_io)?;
            shared.machine.restored(&view)?;
            shared.set_applied(applied);
        }
        // openraft purges the log after this.
        flush(&shared.data).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        let applied = self.0.applied();
        if applied.last.is_none() {
            return Ok(None);
        }
        Builder(Arc::clone(&self.0)).build_snapshot().await.map(Some)
    }
}

/// Takes a snapshot: a consistent view of the data file at the applied position.
#[derive(Debug)]
pub(crate) struct Builder(Arc<Shared>);

impl Builder {
    /// The view and the position that it belongs to, which its own record names.
    fn view(&self) -> io::Result<(DataSnapshot, Applied)> {
        let view = self.0.data.snapshot().map_err(to_io)?;
        let applied = match view.record(&applied_record(self.0.group)).map_err(to_io)? {
            Some(bytes) => decode(&bytes)?,
            None => Applied::default(),
        };
        Ok((view, applied))
    }
}

impl RaftSnapshotBuilder<RaftTypes> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let (view, applied) = self.view()?;
        flush(&self.0.data).await?;
        let meta = SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership };
        // As of the view: it may have changed since.
        let range = self.0.machine.range(&view)?;
        let range = range.ok_or_else(|| io::Error::other("a blank replica"))?;
        let image = Image::of(view, range, self.0.machine.records());
        Ok(Snapshot { meta, snapshot: image })
    }
}
