//! Where the middle of a tablet's bytes is.

use meridian_storage::KeyReader;

use meridian_replication::TabletDescriptor;

/// Directories' beginnings that lie closer together than one in so many parts of the whole are not
/// told apart.
const PARTS: u64 = 1_000;

/// Where the directory that has `key` begins: the root table's id and the root's primary key.
pub(crate) fn directory_of<'a>(key: &'a [u8], descriptor: &TabletDescriptor) -> Option<&'a [u8]> {
    let mut reader = KeyReader::new(key);
    reader.table().ok()?;
    for &(kind, order) in &descriptor.root_key {
        reader.value(kind, order).ok()?;
    }
    Some(reader.consumed())
}

/// Finds the directory boundary nearest to the middle while a tablet's rows pass by once.
#[derive(Debug)]
pub(crate) struct Middle {
    spacing: u64,
    total: u64,
    /// The directory of the last row.
    directory: Vec<u8>,
    /// Boundaries, each with how much lies before it.
    boundaries: Vec<(u64, Vec<u8>)>,
}

impl Middle {
    /// For a tablet of about so many bytes.
    pub(crate) fn new(about: u64) -> Self {
        let (directory, boundaries) = (Vec::new(), Vec::new());
        Self { spacing: about / PARTS, total: 0, directory, boundaries }
    }

    /// The next version of a row, in the order of keys.
    pub(crate) fn add(&mut self, key: &[u8], bytes: u64, descriptor: &TabletDescriptor) {
        if self.directory.is_empty() || !key.starts_with(&self.directory) {
            let directory = directory_of(key, descriptor).unwrap_or_default();
            let last = self.boundaries.last().map_or(0, |(before, _)| *before);
            // In front of the first one nothing can be split off.
            if self.total > 0 && !directory.is_empty() && self.total - last >= self.spacing {
                self.boundaries.push((self.total, directory.to_vec()));
            }
            self.directory = directory.to_vec();
        }
        self.total += bytes;
    }

    /// How many bytes there were.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The boundary; none if it is all one directory.
    pub(crate) fn key(self) -> Option<Vec<u8>> {
        let half = self.total / 2;
        let nearest = self.boundaries.into_iter().min_by_key(|(before, _)| before.abs_diff(half));
        nearest.map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use meridian_replication::{Generation, Placement};
    use meridian_storage::{KeyBuilder, KeyRange, KeyType, KeyValue, NodeId, Order, TabletId};

    use super::*;

    fn descriptor() -> TabletDescriptor {
        TabletDescriptor {
            id: TabletId::new(2),
            generation: Generation::FIRST,
            range: KeyRange::all(),
            sticky: false,
            root_key: vec![(KeyType::Int, Order::Asc), (KeyType::Text, Order::Desc)],
            voters: Vec::new(),
            read_only: Vec::new(),
            preferred_leader: NodeId::new(1),
            placement: Placement::default(),
        }
    }

    fn directory(number: i64) -> KeyBuilder {
        KeyBuilder::new()
            .table(100)
            .value(&KeyValue::Int(number), Order::Asc)
            .value(&KeyValue::Text("x".into()), Order::Desc)
    }

    /// The directory that is found to begin in the middle, of directories with so many bytes each.
    fn middle(sizes: &[u64]) -> Option<Vec<u8>> {
        let mut middle = Middle::new(sizes.iter().sum());
        for (number, &size) in (0..).zip(sizes) {
            // In two rows: the root's and one that is interleaved.
            for (table, bytes) in [(100, size / 2), (107, size - size / 2)] {
                middle.add(&directory(number).table(table).finish(), bytes, &descriptor());
            }
        }
        assert_eq!(middle.total(), sizes.iter().sum());
        middle.key()
    }

    #[test]
    fn the_middle_is_a_directory_boundary() {
        assert_eq!(middle(&[10; 10]), Some(directory(5).finish()));
        assert_eq!(middle(&[100, 10, 10, 10]), Some(directory(1).finish()));
        assert_eq!(middle(&[10, 10, 10, 100]), Some(directory(3).finish()));
        assert_eq!(middle(&[10, 100, 30]), Some(directory(2).finish()), "110 and 30");
    }

    #[test]
    fn one_directory_has_no_middle() {
        assert_eq!(middle(&[1_000]), None);
        assert_eq!(middle(&[]), None);
    }

    #[test]
    fn millions_of_directories_are_not_all_remembered() {
        let mut middle = Middle::new(100_000);
        for number in 0..100_000 {
            middle.add(&directory(number).finish(), 1, &descriptor());
        }
        assert!(middle.boundaries.len() <= 1_000);
        assert_eq!(middle.key(), Some(directory(50_000).finish()));
    }
}
