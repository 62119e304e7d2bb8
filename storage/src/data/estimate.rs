//! How much a range holds, without reading it each time.
//!
//! The key space is cut into buckets of about a mebibyte, and wherever a range that somebody asks
//! about begins or ends. A bucket is measured, by reading it, when somebody first asks; from then on
//! commits keep its count. What a commit can't count cheaply (removal of a range, a bucket grown too
//! large) makes a bucket unknown again, so that errors don't add up: a version written twice counts
//! twice until then, and one that is committed while its bucket is measured may not count.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::scan::{bounds, entries};
use super::{DataSnapshot, failed, split};
use crate::error::StorageError;
use crate::range::KeyRange;

/// About how much a bucket holds when it was just measured.
const BUCKET: u64 = 1 << 20;

/// By first key; the last bucket reaches to the end. `None` is unknown.
type Buckets = BTreeMap<Vec<u8>, Option<u64>>;

/// How much each part of the key space holds. Knows nothing at first.
#[derive(Debug)]
pub(super) struct Sizes {
    buckets: Mutex<Buckets>,
}

impl Sizes {
    pub(super) fn new() -> Self {
        Self { buckets: Mutex::new(BTreeMap::from([(Vec::new(), None)])) }
    }

    /// Versions were written: their keys, and how much each occupies.
    pub(super) fn added(&self, versions: &[(Vec<u8>, u64)]) {
        let mut buckets = self.lock();
        for (key, bytes) in versions {
            let through = (Bound::Unbounded, Bound::Included(key.as_slice()));
            if let Some((_, size)) = buckets.range_mut::<[u8], _>(through).next_back() {
                *size = size.map(|size| size + bytes).filter(|size| *size < 2 * BUCKET);
            }
        }
    }

    /// Something was removed from the range.
    pub(super) fn forget(&self, range: &KeyRange) {
        let mut buckets = self.lock();
        for bucket in overlapping(&buckets, range) {
            buckets.insert(bucket, None);
        }
    }

    /// What a range holds. If some bucket of it is unknown, measures one instead, or the first part
    /// of one, and answers `None`.
    pub(super) fn of(
        &self,
        snapshot: &DataSnapshot,
        range: &KeyRange,
    ) -> Result<Option<u64>, StorageError> {
        let unknown = {
            let mut buckets = self.lock();
            cut(&mut buckets, &range.start);
            if let Some(end) = &range.end {
                cut(&mut buckets, end);
            }
            match sum(&mut buckets, range) {
                Ok(total) => return Ok(Some(total)),
                Err(unknown) => unknown,
            }
        };
        let (size, rest) = measure(snapshot, &unknown)?;
        let mut buckets = self.lock();
        // Unless somebody else was faster.
        if bucket(&buckets, &unknown.start) == unknown {
            if let Some(rest) = rest {
                buckets.insert(rest, None);
            }
            buckets.insert(unknown.start, Some(size));
        }
        Ok(None)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Option<u64>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one version of a row occupies.
pub(super) fn weight(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64 + 8
}

/// Makes a bucket begin at `key`.
fn cut(buckets: &mut Buckets, key: &[u8]) {
    if buckets.contains_key(key) {
        return;
    }
    let before = (Bound::Unbounded, Bound::Excluded(key));
    if let Some((_, size)) = buckets.range_mut::<[u8], _>(before).next_back() {
        *size = None;
    }
    buckets.insert(key.to_vec(), None);
}

/// The bucket that begins at `start`.
fn bucket(buckets: &Buckets, start: &[u8]) -> KeyRange {
    let behind = (Bound::Excluded(start), Bound::Unbounded);
    let end = buckets.range::<[u8], _>(behind).next().map(|(key, _)| key.clone());
    KeyRange::new(start, end)
}

/// The first keys of the buckets that have keys of a range.
fn overlapping(buckets: &Buckets, range: &KeyRange) -> Vec<Vec<u8>> {
    if range.is_empty() {
        return Vec::new();
    }
    let start = range.start.as_slice();
    let through = (Bound::Unbounded, Bound::Included(start));
    let first = buckets.range::<[u8], _>(through).next_back();
    let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let others = buckets.range::<[u8], _>((Bound::Excluded(start), end));
    first.into_iter().chain(others).map(|(key, _)| key.clone()).collect()
}

/// What the buckets of a range hold, or the first that is unknown. Small neighbours become one: what
/// once was the end of a range need not be one any more.
fn sum(buckets: &mut Buckets, range: &KeyRange) -> Result<u64, KeyRange> {
    let mut total = 0;
    let mut before: Option<(Vec<u8>, u64)> = None;
    for start in overlapping(buckets, range) {
        let Some(Some(size)) = buckets.get(&start).copied() else {
            return Err(bucket(buckets, &start));
        };
        total += size;
        before = match before {
            Some((key, before)) if before + size < BUCKET => {
                buckets.remove(&start);
                buckets.insert(key.clone(), Some(before + size));
                Some((key, before + size))
            }
            _ => Some((start, size)),
        };
    }
    Ok(total)
}

/// Reads a bucket: how much it holds, up to where another one should begin if it is large.
fn measure(
    snapshot: &DataSnapshot,
    range: &KeyRange,
) -> Result<(u64, Option<Vec<u8>>), StorageError> {
    let mut last = Vec::new();
    let mut size = 0;
    for entry in entries(snapshot, &bounds(range))? {
        let (position, value) = entry.map_err(failed)?;
        let (key, _) = split(position.value());
        // All versions of a key are in one bucket.
        if size >= BUCKET && key != last {
            return Ok((size, Some(key.to_vec())));
        }
        size += weight(key, value.value());
        if key != last {
            last.clear();
            last.extend_from_slice(key);
        }
    }
    Ok((size, None))
}
