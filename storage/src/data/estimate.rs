//! How much a range holds.

use super::DataSnapshot;
use super::failed;
use super::scan::{bounds, entries};
use crate::error::StorageError;
use crate::range::KeyRange;

pub(super) fn size_of(snapshot: &DataSnapshot, range: &KeyRange) -> Result<u64, StorageError> {
    let mut bytes = 0;
    for entry in entries(snapshot, &bounds(range))? {
        let (key, value) = entry.map_err(failed)?;
        bytes += key.value().len() as u64 + value.value().map_or(0, |value| value.len() as u64);
    }
    Ok(bytes)
}
