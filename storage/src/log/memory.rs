//! What the log store keeps in memory. No I/O, no lock, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::{Change, LogMeta};
use crate::error::StorageError;
use crate::ids::TabletId;

/// One group's log, as of the last submitted change.
#[derive(Debug, Default)]
pub(super) struct Group {
    bounds: Option<(u64, u64)>,
    purged: Option<u64>,
    meta: BTreeMap<LogMeta, Bytes>,
    /// The log's last entries; the ones before are in the file.
    tail: VecDeque<TailEntry>,
}

#[derive(Debug)]
struct TailEntry {
    /// The change that brought it. It is in the file once that one is durable.
    sequence: u64,
    entry: Bytes,
}

impl TailEntry {
    /// What it is taken to occupy.
    fn size(&self) -> usize {
        self.entry.len() + 64
    }
}

impl Group {
    pub(super) fn new(
        bounds: Option<(u64, u64)>,
        purged: Option<u64>,
        meta: BTreeMap<LogMeta, Bytes>,
    ) -> Self {
        Self { bounds, purged, meta, tail: VecDeque::new() }
    }

    pub(super) fn bounds(&self) -> Option<(u64, u64)> {
        self.bounds
    }

    pub(super) fn purged(&self) -> Option<u64> {
        self.purged
    }

    pub(super) fn meta(&self, meta: LogMeta) -> Option<Bytes> {
        self.meta.get(&meta).cloned()
    }

    /// The index of the tail's first entry, or of the next entry if there is none.
    fn tail_start(&self) -> u64 {
        self.bounds.map_or(0, |(_, last)| last + 1 - self.tail.len() as u64)
    }

    fn tail_at(&self, index: u64) -> Option<&TailEntry> {
        let position = index.checked_sub(self.tail_start())?;
        self.tail.get(usize::try_from(position).ok()?)
    }

    /// Refuses entries that would leave a hole or overwrite.
    fn check_append(&self, id: TabletId, entries: &[(u64, Bytes)]) -> Result<(), StorageError> {
        let Some((start, _)) = entries.first() else { return Ok(()) };
        let fits = match (self.bounds, self.purged) {
            (Some((_, last)), _) => *start == last + 1,
            (None, Some(purged)) => *start > purged,
            (None, None) => true,
        };
        let misfit = if fits {
            (*start..).zip(entries).find(|(expected, (index, _))| expected != index)
        } else {
            entries.first().map(|first| (*start, first))
        };
        match misfit {
            None => Ok(()),
            Some((_, (index, _))) => Err(StorageError::OutOfOrder {
                group: id,
                index: *index,
                state: match (self.bounds, self.purged) {
                    (Some((first, last)), _) => format!("holds {first} to {last}"),
                    (None, Some(purged)) => format!("is purged through {purged}"),
                    (None, None) => "is empty".to_owned(),
                },
            }),
        }
    }

    /// Cuts the tail to the bounds after the log was cut; gives the bytes that are free now.
    fn shrink_to(&mut self, bounds: Option<(u64, u64)>) -> usize {
        let Some((_, old_last)) = self.bounds else { return 0 };
        let old_start = self.tail_start();
        self.bounds = bounds;
        let mut freed = 0;
        let (first, last) = bounds.unwrap_or((u64::MAX, 0));
        for _ in (last + 1).max(old_start)..=old_last {
            freed += self.tail.pop_back().map_or(0, |entry| entry.size());
        }
        for _ in old_start..first.min(old_last + 1) {
            freed += self.tail.pop_front().map_or(0, |entry| entry.size());
        }
        freed
    }

    fn truncated(&self, keep_through: Option<u64>) -> Option<(u64, u64)> {
        let (first, last) = self.bounds?;
        let last = last.min(keep_through?);
        (first <= last).then_some((first, last))
    }

    fn purged_to(&self, index: u64) -> Option<(u64, u64)> {
        let (first, last) = self.bounds?;
        (index < last).then_some((first.max(index + 1), last))
    }
}

/// All groups, and the order in which their tails are given up.
#[derive(Debug)]
pub(super) struct LogMemory {
    groups: BTreeMap<TabletId, Group>,
    /// Tail entries in the order in which they came, with some that are gone by now.
    order: VecDeque<(TabletId, u64, u64)>,
    tail_entries: usize,
    tail_bytes: usize,
    limit: usize,
    submitted: u64,
    durable: u64,
    stopped: Option<StorageError>,
}

impl LogMemory {
    pub(super) fn new(groups: BTreeMap<TabletId, Group>, limit: usize) -> Self {
        Self {
            groups,
            order: VecDeque::new(),
            tail_entries: 0,
            tail_bytes: 0,
            limit,
            submitted: 0,
            durable: 0,
            stopped: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), StorageError> {
        self.stopped.as_ref().map_or(Ok(()), |error| Err(error.clone()))
    }

    pub(super) fn group(&self, group: TabletId) -> Option<&Group> {
        self.groups.get(&group)
    }

    pub(super) fn groups(&self) -> Vec<TabletId> {
        self.groups.keys().copied().collect()
    }

    /// The part of `range` that is to be read from the file, and the entries of the rest.
    pub(super) fn entries(
        &self,
        group: TabletId,
        range: Range<u64>,
    ) -> (Range<u64>, Vec<(u64, Bytes)>) {
        let Some((group, (first, last))) =
            self.groups.get(&group).and_then(|group| Some((group, group.bounds?)))
        else {
            return (0..0, vec![]);
        };
        let start = range.start.max(first);
        let end = range.end.min(last + 1);
        let tail_start = group.tail_start();
        let recent = (start.max(tail_start)..end)
            .filter_map(|index| Some((index, group.tail_at(index)?.entry.clone())))
            .collect();
        (start..end.min(tail_start), recent)
    }

    /// Applies a change and gives its number, or refuses it and changes nothing.
    pub(super) fn apply(&mut self, id: TabletId, change: &Change) -> Result<u64, StorageError> {
        self.check()?;
        let sequence = self.submitted + 1;
        match change {
            Change::Append(entries, with) => {
                self.append(id, entries, sequence)?;
                if let Some((meta, value)) = with {
                    self.groups.entry(id).or_default().meta.insert(*meta, value.clone());
                }
            }
            Change::Truncate(keep_through) => self.cut(id, |group| {
                let bounds = group.truncated(*keep_through);
                group.shrink_to(bounds)
            }),
            Change::Purge(index) => {
                let group = self.groups.entry(id).or_default();
                group.purged = group.purged.max(Some(*index));
                self.cut(id, |group| {
                    let bounds = group.purged_to(*index);
                    group.shrink_to(bounds)
                });
            }
            Change::PutMeta(meta, value) => {
                self.groups.entry(id).or_default().meta.insert(*meta, value.clone());
            }
            Change::Remove => {
                self.cut(id, |group| group.shrink_to(None));
                let vote = self.groups.remove(&id).and_then(|group| group.meta(LogMeta::Vote));
                if let Some(vote) = vote {
                    let meta = BTreeMap::from([(LogMeta::Vote, vote)]);
                    self.groups.insert(id, Group::new(None, None, meta));
                }
            }
        }
        self.submitted = sequence;
        Ok(sequence)
    }

    fn append(
        &mut self,
        id: TabletId,
        entries: &[(u64, Bytes)],
        sequence: u64,
    ) -> Result<(), StorageError> {
        let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) else {
            return Ok(());
        };
        match self.groups.get(&id) {
            Some(group) => group.check_append(id, entries)?,
            None => Group::default().check_append(id, entries)?,
        }
        let group = self.groups.entry(id).or_default();
        group.bounds = Some((group.bounds.map_or(*first, |(first, _)| first), *last));
        for (index, entry) in entries {
            let entry = TailEntry { sequence, entry: entry.clone() };
            self.tail_bytes += entry.size();
            group.tail.push_back(entry);
            self.order.push_back((id, *index, sequence));
        }
        self.tail_entries += entries.len();
        Ok(())
    }

    /// Lets `cut` shorten a group's log, and keeps count.
    fn cut(&mut self, id: TabletId, cut: impl FnOnce(&mut Group) -> usize) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = group.tail.len();
        self.tail_bytes -= cut(group);
        self.tail_entries -= before - group.tail.len();
        // What is gone is swept from the order when it makes up most of it.
        if self.order.len() > 2 * self.tail_entries + 1_024 {
            let groups = &self.groups;
            self.order.retain(|(id, index, sequence)| is_in_tail(groups, *id, *index, *sequence));
        }
    }

    /// Everything up to that change is in the file, so the tail may be cut to its limit.
    pub(super) fn durable(&mut self, sequence: u64) {
        self.durable = sequence;
        while self.tail_bytes > self.limit {
            let Some((id, index, sequence)) = self.order.front().copied() else { break };
            if sequence > self.durable {
                break;
            }
            self.order.pop_front();
            if !is_in_tail(&self.groups, id, index, sequence) {
                continue;
            }
            // The oldest of the store is the oldest of its group.
            if let Some(group) = self.groups.get_mut(&id)
                && let Some(entry) = group.tail.pop_front()
            {
                self.tail_bytes -= entry.size();
                self.tail_entries -= 1;
            }
        }
    }

    pub(super) fn stop(&mut self, cause: &StorageError) {
        self.stopped = Some(cause.stopped());
    }
}

fn is_in_tail(groups: &BTreeMap<TabletId, Group>, id: TabletId, index: u64, sequence: u64) -> bool {
    groups
        .get(&id)
        .and_then(|group| group.tail_at(index))
        .is_some_and(|entry| entry.sequence == sequence)
}

#[cfg(test)]
impl LogMemory {
    /// Whether the books are right and what is kept is bounded.
    pub(super) fn tail_is_within_limits(&self) -> bool {
        let tails = || self.groups.values().flat_map(|group| &group.tail);
        self.tail_entries == tails().count()
            && self.tail_bytes == tails().map(TailEntry::size).sum::<usize>()
            && self.tail_bytes <= self.limit
            && self.order.len() <= 2 * self.tail_entries + 1_024
    }
}
