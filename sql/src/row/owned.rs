//! Telling a table's own rows from those of the tables interleaved with it, in the order of a scan.

use meridian_storage::{KeyRange, prefix_end};

use super::RowCodec;
use crate::error::SqlError;

/// What a scan has learnt from the keys that it met.
pub(crate) struct Owned {
    codec: RowCodec,
    reverse: bool,
    /// What the keys of this table's rows begin with in the directory that was met last. Only for
    /// an interleaved table: another has one row in each directory.
    here: Option<Vec<u8>>,
    /// Before this key (behind it, in reverse) no more own rows are to come.
    next: Option<Vec<u8>>,
}

impl RowCodec {
    /// For a scan of this table's rows.
    pub(crate) fn owned(&self, reverse: bool) -> Owned {
        Owned { codec: self.clone(), reverse, here: None, next: None }
    }
}

impl Owned {
    /// Whether the row is one of this table's. To be asked of each row that is met.
    ///
    /// # Errors
    /// `XX001`
    pub(crate) fn has(&mut self, key: &[u8]) -> Result<bool, SqlError> {
        if let Some(here) = &self.here
            && key.starts_with(here)
        {
            return Ok(true);
        }
        if self.passes(key) {
            return Ok(false);
        }
        let schema = self.codec.schema();
        let split = self.codec.split(key)?;
        if split.table == schema.table {
            if schema.root != schema.table {
                self.here = Some(split.of(schema.table));
            }
            return Ok(true);
        }
        let own = split.of(schema.table);
        self.next = match (self.reverse, key < own.as_slice()) {
            (false, true) => Some(own),
            (false, false) => prefix_end(split.directory),
            (true, true) => Some(split.directory.to_vec()),
            (true, false) => prefix_end(&own),
        };
        Ok(false)
    }

    fn passes(&self, key: &[u8]) -> bool {
        match &self.next {
            None => false,
            Some(next) if self.reverse => key >= next.as_slice(),
            Some(next) => key < next.as_slice(),
        }
    }

    /// Cuts off what of the range is known to hold no own rows.
    pub(crate) fn leap(&self, range: &mut KeyRange) {
        let Some(next) = &self.next else { return };
        if self.reverse {
            if range.end.as_ref().is_none_or(|end| end > next) {
                range.end = Some(next.clone());
            }
        } else if range.start < *next {
            range.start.clone_from(next);
        }
    }
}
