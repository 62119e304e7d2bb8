//! How much a range holds, without reading it each time.
//!
//! The key space is cut into buckets of about a mebibyte. A bucket is measured, by reading it,
//! when somebody first asks; from then on commits keep its count. What a commit can't count
//! cheaply (removal of a range, a bucket grown too large) makes a bucket unknown again, so that
//! errors don't add up: a version written twice counts twice until then.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::scan::{bounds, entries};
use super::{DataSnapshot, failed, split};
use crate::error::StorageError;
use crate::range::KeyRange;

/// About how much a bucket holds when it was just measured.
const BUCKET: u64 = 1 << 20;

/// How much each part of the key space holds. Knows nothing at first.
#[derive(Debug)]
pub(super) struct Sizes {
    /// By first key; the last bucket reaches to the end. `None` is unknown.
    buckets: Mutex<BTreeMap<Vec<u8>, Option<u64>>>,
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
        let touched: Vec<_> =
            cut(&buckets).into_iter().filter(|(bucket, _)| bucket.overlaps(range)).collect();
        for (bucket, _) in touched {
            buckets.insert(bucket.start, None);
        }
    }

    pub(super) fn of(
        &self,
        snapshot: &DataSnapshot,
        range: &KeyRange,
    ) -> Result<u64, StorageError> {
        let overlapping: Vec<_> =
            cut(&self.lock()).into_iter().filter(|(bucket, _)| bucket.overlaps(range)).collect();
        let mut total = 0;
        for (bucket, size) in overlapping {
            let pieces = match size {
                Some(size) => vec![(bucket.start.clone(), size)],
                None => measure(snapshot, &bucket)?,
            };
            if size.is_none() {
                // What this bucket was is replaced by what it is.
                self.lock().extend(pieces.iter().map(|(key, size)| (key.clone(), Some(*size))));
            }
            let whole = range.contains_range(&bucket);
            total += if whole {
                pieces.iter().map(|(_, size)| size).sum::<u64>()
            } else {
                let part = bucket.intersect(range);
                measure(snapshot, &part)?.iter().map(|(_, size)| size).sum()
            };
        }
        Ok(total)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Option<u64>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one version of a row occupies.
pub(super) fn weight(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64 + 8
}

/// The buckets as ranges.
fn cut(buckets: &BTreeMap<Vec<u8>, Option<u64>>) -> Vec<(KeyRange, Option<u64>)> {
    let ends = buckets.keys().skip(1).cloned().map(Some).chain([None]);
    let ranges = buckets.iter().zip(ends);
    ranges.map(|((start, size), end)| (KeyRange::new(start.clone(), end), *size)).collect()
}

/// Reads a range: the first keys of its buckets, and what they hold. The first is its start.
fn measure(snapshot: &DataSnapshot, range: &KeyRange) -> Result<Vec<(Vec<u8>, u64)>, StorageError> {
    let mut full = Vec::new();
    let mut start = range.start.clone();
    let mut last = Vec::new();
    let mut size = 0;
    for entry in entries(snapshot, &bounds(range))? {
        let (position, value) = entry.map_err(failed)?;
        let (key, _) = split(position.value());
        // All versions of a key are in one bucket.
        if size >= BUCKET && key != last {
            full.push((std::mem::replace(&mut start, key.to_vec()), size));
            size = 0;
        }
        size += weight(key, value.value());
        if key != last {
            last.clear();
            last.extend_from_slice(key);
        }
    }
    full.push((start, size));
    Ok(full)
}
