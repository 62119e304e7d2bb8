//! Iterators over a snapshot. They own what they need and may be sent to another thread.

use std::ops::Bound;

use meridian_truetime::Timestamp;
use redb::{OwnedAccessGuard, OwnedRange, ReadOnlyTable};

use super::rowkey::{RowKey, encode, split};
use super::{DataSnapshot, Row, failed};
use crate::error::StorageError;
use crate::range::{KeyRange, prefix_end};

/// Which end of a range a scan begins at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Direction {
    /// From the first key to the last.
    #[default]
    Forward,
    /// From the last key to the first.
    Backward,
}

type Entries = OwnedRange<RowKey, Option<&'static [u8]>>;
type EntryKey = OwnedAccessGuard<RowKey>;
type EntryValue = OwnedAccessGuard<Option<&'static [u8]>>;
type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// How many versions of a key are stepped over before the tree is descended again: a descent
/// costs about as much as that many steps.
const PATIENCE: u32 = 8;

/// Where the versions of a range's keys lie.
pub(super) fn bounds(range: &KeyRange) -> Bounds {
    let start = Bound::Included(encode(&range.start, Timestamp::MAX));
    let end = match &range.end {
        Some(end) => Bound::Excluded(encode(end, Timestamp::MAX)),
        None => Bound::Unbounded,
    };
    (start, end)
}

pub(super) fn entries(snapshot: &DataSnapshot, bounds: &Bounds) -> Result<Entries, StorageError> {
    let range = (bounds.0.as_ref().map(Vec::as_slice), bounds.1.as_ref().map(Vec::as_slice));
    snapshot.inner.rows.range_owned::<&[u8]>(range).map_err(failed)
}

/// The rows of a range at a timestamp; see [`DataSnapshot::scan`].
pub struct Scan {
    snapshot: DataSnapshot,
    at: Timestamp,
    direction: Direction,
    /// What is still to be looked at.
    bounds: Bounds,
    entries: Entries,
    /// The key that was decided last; meaningless before the first.
    key: Vec<u8>,
    decided: bool,
    /// The first entry of the next key, met while the one before was decided.
    ahead: Option<(EntryKey, EntryValue)>,
    failed: bool,
}

impl Scan {
    pub(super) fn new(
        snapshot: DataSnapshot,
        range: &KeyRange,
        at: Timestamp,
        direction: Direction,
    ) -> Result<Self, StorageError> {
        let bounds = bounds(range);
        let entries = entries(&snapshot, &bounds)?;
        Ok(Self {
            snapshot,
            at,
            direction,
            bounds,
            entries,
            key: Vec::new(),
            decided: false,
            ahead: None,
            failed: false,
        })
    }

    fn forward(&mut self) -> Result<Option<Row>, StorageError> {
        let mut skipped = 0;
        loop {
            let Some(entry) = self.entries.next() else { return Ok(None) };
            let (position, value) = entry.map_err(failed)?;
            let (key, ts) = split(position.value());
            let is_older = self.decided && key == self.key;
            if is_older || ts > self.at {
                skipped += 1;
                if skipped == PATIENCE {
                    // Behind the oldest version that the key can have, or to the one looked for.
                    self.bounds.0 = if is_older {
                        Bound::Excluded(encode(key, Timestamp::MIN))
                    } else {
                        Bound::Included(encode(key, self.at))
                    };
                    self.entries = entries(&self.snapshot, &self.bounds)?;
                    skipped = 0;
                }
                continue;
            }
            skipped = 0;
            self.decided = true;
            self.key.clear();
            self.key.extend_from_slice(key);
            if let Some(value) = value.value() {
                return Ok(Some(Row { key: self.key.clone(), ts, value: value.to_vec() }));
            }
        }
    }

    fn backward(&mut self) -> Result<Option<Row>, StorageError> {
        loop {
            let first = match self.ahead.take() {
                Some(entry) => entry,
                None => match self.entries.next_back() {
                    Some(entry) => entry.map_err(failed)?,
                    None => return Ok(None),
                },
            };
            self.key.clear();
            self.key.extend_from_slice(split(first.0.value()).0);
            if let Some((ts, value)) = self.decide_backward(first)? {
                return Ok(Some(Row { key: self.key.clone(), ts, value }));
            }
        }
    }

    /// The row of the key whose oldest version is `entry`, if it exists at the timestamp.
    fn decide_backward(
        &mut self,
        mut entry: (EntryKey, EntryValue),
    ) -> Result<Option<(Timestamp, Vec<u8>)>, StorageError> {
        let mut newest = None;
        let mut steps = 0;
        loop {
            let (key, ts) = split(entry.0.value());
            if key != self.key {
                self.ahead = Some(entry);
                break;
            }
            if ts > self.at {
                self.pass_key()?;
                break;
            }
            steps += 1;
            if steps == PATIENCE {
                self.pass_key()?;
                let found = self.snapshot.get(&self.key, self.at)?;
                return Ok(found.and_then(|found| Some((found.ts, found.value?))));
            }
            newest = Some((ts, entry.1));
            match self.entries.next_back() {
                Some(next) => entry = next.map_err(failed)?,
                None => break,
            }
        }
        Ok(newest.and_then(|(ts, value)| Some((ts, value.value()?.to_vec()))))
    }

    /// Goes to the last entry before the newest version that the key can have.
    fn pass_key(&mut self) -> Result<(), StorageError> {
        self.bounds.1 = Bound::Excluded(encode(&self.key, Timestamp::MAX));
        self.entries = entries(&self.snapshot, &self.bounds)?;
        Ok(())
    }
}

impl Iterator for Scan {
    type Item = Result<Row, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = match self.direction {
            Direction::Forward => self.forward(),
            Direction::Backward => self.backward(),
        };
        self.failed = row.is_err();
        row.transpose()
    }
}

/// See [`DataSnapshot::changed_since`].
pub(super) fn changed_since(
    snapshot: &DataSnapshot,
    range: &KeyRange,
    since: Timestamp,
) -> Result<bool, StorageError> {
    let mut bounds = bounds(range);
    let mut found = entries(snapshot, &bounds)?;
    let mut last: Option<Vec<u8>> = None;
    let mut skipped = 0;
    while let Some(entry) = found.next() {
        let (position, _) = entry.map_err(failed)?;
        let (key, ts) = split(position.value());
        // A key's first entry is its newest.
        if ts > since {
            return Ok(true);
        }
        if last.as_deref() != Some(key) {
            let buffer = last.get_or_insert_default();
            buffer.clear();
            buffer.extend_from_slice(key);
            skipped = 0;
            continue;
        }
        skipped += 1;
        if skipped == PATIENCE {
            bounds.0 = Bound::Excluded(encode(key, Timestamp::MIN));
            found = entries(snapshot, &bounds)?;
        }
    }
    Ok(false)
}

/// All versions of a range; see [`DataSnapshot::versions`].
pub struct Versions {
    entries: Entries,
}

impl Versions {
    pub(super) fn new(snapshot: &DataSnapshot, range: &KeyRange) -> Result<Self, StorageError> {
        Ok(Self { entries: entries(snapshot, &bounds(range))? })
    }
}

impl Iterator for Versions {
    type Item = Result<(Vec<u8>, Timestamp, Option<Vec<u8>>), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next()?;
        Some(entry.map_err(failed).map(|(position, value)| {
            let (key, ts) = split(position.value());
            (key.to_vec(), ts, value.value().map(<[u8]>::to_vec))
        }))
    }
}

/// Records by name; see [`DataSnapshot::records`].
pub struct Records {
    entries: OwnedRange<&'static [u8], &'static [u8]>,
}

impl Records {
    pub(super) fn new(
        table: &ReadOnlyTable<&'static [u8], &'static [u8]>,
        prefix: &[u8],
    ) -> Result<Self, StorageError> {
        let end = prefix_end(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let range = (Bound::Included(prefix), end);
        Ok(Self { entries: table.range_owned::<&[u8]>(range).map_err(failed)? })
    }
}

impl Iterator for Records {
    type Item = Result<(Vec<u8>, Vec<u8>), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next()?;
        Some(
            entry
                .map_err(failed)
                .map(|(name, value)| (name.value().to_vec(), value.value().to_vec())),
        )
    }
}
