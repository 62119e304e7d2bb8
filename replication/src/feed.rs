//! What drives a state machine: a *feed*, an ordered source of entries.
//!
//! A tablet's replica is a deterministic state machine and one feed. The feed is the replica's own
//! Raft log ([`raft`](crate::raft)), or whatever else puts the same entries into the same order on
//! every replica, as Calvin's merged sequencer log does. The feed decides the order, and makes sure
//! that an entry isn't lost; what happens to an entry then is the same for all feeds and is here.
//!
//! # What is promised
//!
//! * Entries are applied one at a time, each once, in the order of their positions: an entry at or
//!   below the last position is a mistake of the feed, and ends the node's process.
//! * An entry's effects, the position, and the *memo* (what the feed wants to find again: Raft keeps
//!   the members there) are one batch. A crash loses all of them or none, and loses no entry without
//!   all that came after it.
//!
//! # Caveats
//!
//! * Applying makes nothing durable. After a crash the feed has to deliver again what comes after
//!   [`Applier::progress`], so it may forget an entry only after a flush of the data file that came
//!   after applying it.
//! * What concerns several state machines of a node is applied while none of the others is.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use futures::channel::oneshot;
use meridian_storage::{DataSnapshot, DataStore, KeyRange, TabletId, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::codec::{decode, encode, to_io};
use crate::image::Image;
use crate::state_machine::{Members, Position, StateMachine};

/// How far a state machine has come; a record of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The last entry that was applied.
    pub at: Option<Position>,
    /// What the feed wants to find again.
    pub memo: Vec<u8>,
}

impl Progress {
    /// Adds to a batch that a group has come so far.
    ///
    /// # Errors
    /// When it can't be encoded.
    pub(crate) fn record(&self, group: TabletId, batch: &mut WriteBatch) -> io::Result<()> {
        batch.put_record(progress_record(group), encode(self)?.to_vec());
        Ok(())
    }

    fn read(group: TabletId, view: &DataSnapshot) -> io::Result<Self> {
        match view.record(&progress_record(group)).map_err(to_io)? {
            Some(bytes) => decode(&bytes),
            None => Ok(Self::default()),
        }
    }
}

/// The name of a group's progress.
fn progress_record(group: TabletId) -> Vec<u8> {
    let mut name = b"feed/".to_vec();
    name.extend_from_slice(&group.get().to_be_bytes());
    name
}

/// Adds to a batch that nothing is known of a group's progress.
pub(crate) fn forget(group: TabletId, batch: &mut WriteBatch) {
    batch.delete_record(progress_record(group));
}

/// One entry of a feed.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'e> {
    /// Only takes a position.
    Nothing,
    /// A command of the state machine.
    Command(&'e [u8]),
    /// The group has other members from here on.
    Members(&'e Members),
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

/// Waits until everything that a data file was given is durable.
pub(crate) async fn flush(data: &DataStore) -> io::Result<()> {
    let (done, durable) = oneshot::channel();
    data.flush(Box::new(move |result| {
        let _ = done.send(result);
    }));
    durable.await.map_err(io::Error::other)?.map_err(to_io)
}

/// Applies what a feed delivers to one state machine.
#[derive(Debug)]
pub struct Applier {
    group: TabletId,
    data: DataStore,
    machine: Arc<dyn StateMachine>,
    /// Held alone by what concerns several groups of the node.
    applying: Arc<RwLock<()>>,
    progress: Mutex<Progress>,
}

impl Applier {
    /// Takes up where the data file left off. `applying` is shared by all groups of a node.
    ///
    /// # Errors
    /// When the data file can't be read.
    pub fn open(
        group: TabletId,
        data: DataStore,
        machine: Arc<dyn StateMachine>,
        applying: Arc<RwLock<()>>,
    ) -> io::Result<Self> {
        let progress = Progress::read(group, &data.snapshot().map_err(to_io)?)?;
        Ok(Self { group, data, machine, applying, progress: Mutex::new(progress) })
    }

    /// The group whose replica it is.
    #[must_use]
    pub fn group(&self) -> TabletId {
        self.group
    }

    /// Whether a command concerns other state machines of the node.
    pub(crate) fn concerns_others(&self, command: &[u8]) -> bool {
        self.machine.concerns_others(command)
    }

    /// The rows that belong to the state now.
    pub(crate) fn range(&self) -> io::Result<Option<KeyRange>> {
        self.machine.range(&self.data.snapshot().map_err(to_io)?)
    }

    /// How far the state machine has come. The feed goes on after it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_progress(&self, progress: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// Applies the entry at a position, and keeps `memo` instead of the last one, if there is one.
    /// What the command answered.
    ///
    /// # Errors
    /// When the data file fails, or what the state machine held was taken over by another.
    ///
    /// # Panics
    /// When the feed repeats itself.
    pub fn apply(
        &self,
        at: Position,
        entry: Entry<'_>,
        memo: Option<Vec<u8>>,
    ) -> io::Result<Bytes> {
        let concerns_others = match entry {
            Entry::Command(command) => self.machine.concerns_others(command),
            _ => false,
        };
        let _guards = Guards::take(&self.applying, concerns_others);
        if self.machine.is_over() {
            return Err(taken_over());
        }
        let mut progress = self.progress();
        assert!(progress.at < Some(at), "an entry is applied once, in order");
        let mut batch = WriteBatch::default();
        let mut answer = Bytes::new();
        match entry {
            Entry::Nothing => {}
            Entry::Command(command) => {
                let view = self.data.snapshot().map_err(to_io)?;
                answer = self.machine.apply(at, command, &view, &mut batch);
            }
            Entry::Members(members) => self.machine.members_changed(members, &mut batch),
        }
        progress.at = Some(at);
        if let Some(memo) = memo {
            progress.memo = memo;
        }
        progress.record(self.group, &mut batch)?;
        self.data.commit(batch).map_err(to_io)?;
        self.machine.committed();
        self.set_progress(progress);
        Ok(answer)
    }

    /// An image of the state and the progress that belongs to it, which is durable by then.
    ///
    /// # Errors
    /// When the data file fails, or the state machine is blank.
    pub(crate) async fn image(&self) -> io::Result<(Progress, Image)> {
        let view = self.data.snapshot().map_err(to_io)?;
        // Both as of the view: they may have changed since.
        let progress = Progress::read(self.group, &view)?;
        let range = self.machine.range(&view)?;
        flush(&self.data).await?;
        let range = range.ok_or_else(|| io::Error::other("a blank replica"))?;
        Ok((progress, Image::of(view, range, self.machine.records())))
    }

    /// Replaces the state by an image, durably.
    ///
    /// # Errors
    /// When the image is incomplete, the data file fails, or the rows belong to somebody else.
    pub(crate) async fn install(&self, progress: Progress, image: Image) -> io::Result<()> {
        {
            let _guards = Guards::take(&self.applying, true);
            if self.machine.is_over() {
                return Err(taken_over());
            }
            let old = self.data.snapshot().map_err(to_io)?;
            let records = image.records()?;
            let incoming = self.machine.offered(&records)?;
            let ranges = self.machine.own(&old)?.into_iter().chain([incoming]);
            let mut batch = WriteBatch::default();
            self.machine.take_over(&records, &old, &mut batch)?;
            image.add_to(&mut batch, &old, ranges, &self.machine.records())?;
            drop(old);
            progress.record(self.group, &mut batch)?;
            self.data.commit(batch).map_err(to_io)?;
            tracing::info!(tablet = %self.group, at = ?progress.at, "installs an image");
            self.machine.restored(&self.data.snapshot().map_err(to_io)?)?;
            self.set_progress(progress);
        }
        flush(&self.data).await
    }
}

#[cfg(test)]
mod tests;
