//! What clients know of each key, and what a read may find.
//!
//! Each key has one writer, which writes the numbers 1, 2, 3, ... in turn, or takes the row away in
//! place of one of them. Each row also counts the writes since it was inserted. So a read is right
//! if it is no older than what was acknowledged, or seen by anybody, when it began; no newer than
//! what was begun when it ended; nothing that was refused; and with all acknowledged writes counted
//! once, and no other one twice.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Parent,
    /// By the parent: its rows are only ever written together.
    Child,
    Lone,
}

impl Table {
    pub const ALL: [Self; 3] = [Self::Parent, Self::Child, Self::Lone];

    pub const fn keys(self) -> i64 {
        match self {
            Self::Parent | Self::Child => 12,
            Self::Lone => 24,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Parent => "parent",
            Self::Child => "child",
            Self::Lone => "lone",
        }
    }

    pub const fn key(self) -> &'static str {
        match self {
            Self::Parent | Self::Child => "p",
            Self::Lone => "k",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Insert,
    Update,
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Acknowledged,
    /// It was not done, and will not be.
    Refused,
    Unknown,
}

/// The writes of one key; the first one wrote 1.
#[derive(Clone, Debug, Default)]
pub struct Key {
    writes: Vec<(Kind, Fate)>,
    /// The greatest number that a read has found.
    seen: usize,
}

/// What a row holds: the number written, and how many writes it has had.
pub type Row = (i64, i64);

impl Key {
    /// Whether there is a row, if its writer knows.
    pub fn present(&self) -> Option<bool> {
        let mut settled = self.writes.iter().rev().filter(|(_, fate)| *fate != Fate::Refused);
        match settled.next() {
            None => Some(false),
            Some((_, Fate::Unknown)) => None,
            Some((kind, _)) => Some(*kind != Kind::Remove),
        }
    }

    /// Whether an insert may yet happen. Nothing would keep it from happening after a removal.
    pub fn haunted(&self) -> bool {
        self.writes.contains(&(Kind::Insert, Fate::Unknown))
    }

    /// No read that begins now may find less.
    pub fn least(&self) -> usize {
        let acknowledged = self.writes.iter().rposition(|(_, fate)| *fate == Fate::Acknowledged);
        acknowledged.map_or(0, |last| last + 1).max(self.seen)
    }

    fn most(&self) -> usize {
        self.writes.len()
    }

    /// Whether a read that began at `least` may find no row.
    fn may_be_absent(&self, least: usize) -> bool {
        let removed = |(kind, fate): &(Kind, Fate)| *kind == Kind::Remove && *fate != Fate::Refused;
        least == 0 || self.writes[least - 1..].iter().any(removed)
    }

    /// The numbers of writes that the row may have had when `v` was written.
    fn counts(&self, v: usize) -> (usize, usize) {
        let behind = |wanted: &dyn Fn(Fate) -> bool| {
            let removal = |(kind, fate): &(Kind, Fate)| *kind == Kind::Remove && wanted(*fate);
            self.writes[..v].iter().rposition(removal).map_or(0, |at| at + 1)
        };
        let count = |from: usize, wanted: &dyn Fn(Fate) -> bool| {
            self.writes[from..v - 1].iter().filter(|(_, fate)| wanted(*fate)).count()
        };
        let certain = |fate| fate == Fate::Acknowledged;
        let possible = |fate| fate != Fate::Refused;
        (1 + count(behind(&possible), &certain), 1 + count(behind(&certain), &possible))
    }

    /// Whether a read that began at `least` may find this.
    fn explains(&self, least: usize, found: Option<Row>) -> bool {
        let Some((v, n)) = found else { return self.may_be_absent(least) };
        let (Ok(v), Ok(n)) = (usize::try_from(v), usize::try_from(n)) else { return false };
        if v < least.max(1) || v > self.most() {
            return false;
        }
        let (kind, fate) = self.writes[v - 1];
        if kind == Kind::Remove || fate == Fate::Refused {
            return false;
        }
        let (fewest, most) = self.counts(v);
        (fewest..=most).contains(&n)
    }
}

/// What is known of every key.
#[derive(Debug, Default)]
pub struct Model(Mutex<BTreeMap<(Table, i64), Key>>);

impl Model {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Table, i64), Key>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn key(&self, table: Table, key: i64) -> Key {
        self.lock().get(&(table, key)).cloned().unwrap_or_default()
    }

    /// A write begins: the number that it writes.
    pub fn begin(&self, table: Table, key: i64, kind: Kind) -> usize {
        let mut keys = self.lock();
        let key = keys.entry((table, key)).or_default();
        key.writes.push((kind, Fate::Unknown));
        key.writes.len()
    }

    pub fn end(&self, table: Table, key: i64, number: usize, fate: Fate) {
        self.lock().entry((table, key)).or_default().writes[number - 1].1 = fate;
    }

    /// What a read that begins now may find at the least.
    pub fn least(&self, table: Table, keys: impl Iterator<Item = i64>) -> BTreeMap<i64, usize> {
        keys.map(|key| (key, self.key(table, key).least())).collect()
    }

    /// Judges a read of a key that began when `least` was known.
    ///
    /// # Panics
    /// When it is wrong.
    pub fn check(&self, table: Table, key: i64, least: usize, found: Option<Row>) {
        let mut keys = self.lock();
        let known = keys.entry((table, key)).or_default();
        assert!(
            known.explains(least, found),
            "{table:?} {key}: read {found:?}, which cannot be; {least} was known before; {:?}",
            known.writes
        );
        if let Some((v, _)) = found {
            known.seen = known.seen.max(usize::try_from(v).expect("explained"));
        }
    }

    /// Judges a count of rows and the sum of their numbers.
    ///
    /// # Panics
    /// When they are wrong.
    pub fn check_sum(&self, table: Table, least: &BTreeMap<i64, usize>, count: i64, sum: i64) {
        let (mut rows, mut numbers) = ((0, 0), (0, 0));
        for (key, least) in least {
            let known = self.key(table, *key);
            let number = |n: usize| i64::try_from(n).expect("small");
            rows.1 += i64::from(known.most() > 0);
            numbers.1 += number(known.most());
            if !known.may_be_absent(*least) {
                rows.0 += 1;
                numbers.0 += number(*least);
            }
        }
        assert!(
            (rows.0..=rows.1).contains(&count) && (numbers.0..=numbers.1).contains(&sum),
            "{table:?}: {count} rows of {rows:?}, their sum {sum} of {numbers:?}"
        );
    }
}

/// A checker that can't fail is none.
#[test]
fn the_model_knows_right_from_wrong() {
    use Fate::{Acknowledged, Refused, Unknown};
    use Kind::{Insert, Remove, Update};
    let key = |writes: &[(Kind, Fate)]| Key { writes: writes.to_vec(), seen: 0 };
    let known = key(&[
        (Insert, Acknowledged),
        (Update, Unknown),
        (Update, Refused),
        (Update, Acknowledged),
        (Update, Unknown),
    ]);
    assert_eq!((known.least(), known.present(), known.haunted()), (4, None, false));
    for right in [(4, 2), (4, 3), (5, 3), (5, 4)] {
        assert!(known.explains(4, Some(right)), "{right:?}");
    }
    // Lost, refused, never written; lost in the middle, done twice; gone.
    for wrong in [(1, 1), (3, 2), (6, 4), (4, 1), (4, 4), (0, 0)] {
        assert!(!known.explains(4, Some(wrong)), "{wrong:?}");
    }
    assert!(!known.explains(4, None) && key(&[(Insert, Unknown)]).explains(0, None));
    assert!(known.explains(1, Some((2, 2))), "it was the latest when the read began");

    let gone = key(&[(Insert, Acknowledged), (Remove, Unknown), (Insert, Acknowledged)]);
    assert!(gone.explains(2, None) && !gone.explains(3, None));
    assert!(gone.explains(3, Some((3, 1))) && !gone.explains(2, Some((2, 2))));
    assert_eq!(key(&[(Insert, Acknowledged), (Remove, Acknowledged)]).present(), Some(false));
}
