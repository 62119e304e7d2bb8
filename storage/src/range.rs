//! Ranges of keys.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The keys from `start` to before `end`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key.
    pub start: Vec<u8>,
    /// The first key behind the range; `None`: it reaches to the end of the key space.
    pub end: Option<Vec<u8>>,
}

/// The smallest key above every key that begins with `prefix`; `None` if there is none.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

impl KeyRange {
    /// From `start` to before `end`.
    #[must_use]
    pub fn new(start: impl Into<Vec<u8>>, end: Option<Vec<u8>>) -> Self {
        Self { start: start.into(), end }
    }

    /// Every key.
    #[must_use]
    pub const fn all() -> Self {
        Self { start: Vec::new(), end: None }
    }

    /// The keys that begin with `prefix`, itself included.
    #[must_use]
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        Self { start, end }
    }

    /// One key.
    #[must_use]
    pub fn point(key: impl Into<Vec<u8>>) -> Self {
        let start = key.into();
        let mut end = start.clone();
        end.push(0);
        Self { start, end: Some(end) }
    }

    /// Whether no key is in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether the key is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && self.end.as_deref().is_none_or(|end| key < end)
    }

    /// Whether every key of `other` is in the range.
    #[must_use]
    pub fn contains_range(&self, other: &KeyRange) -> bool {
        other.is_empty()
            || self.start <= other.start && !ends_before(self.end.as_deref(), other.end.as_deref())
    }

    /// The keys in both ranges; an empty range if there are none.
    #[must_use]
    pub fn intersect(&self, other: &KeyRange) -> KeyRange {
        let start = self.start.clone().max(other.start.clone());
        let first =
            if ends_before(self.end.as_deref(), other.end.as_deref()) { self } else { other };
        let end = first.end.as_ref().map(|end| end.clone().max(start.clone()));
        KeyRange { start, end }
    }

    /// The keys in this range that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &KeyRange) -> Vec<KeyRange> {
        if !self.overlaps(other) {
            return vec![self.clone()];
        }
        let left = KeyRange { start: self.start.clone(), end: Some(other.start.clone()) };
        let right = other.end.as_ref().map(|end| KeyRange {
            start: end.clone().max(self.start.clone()),
            end: self.end.clone(),
        });
        [Some(left), right].into_iter().flatten().filter(|part| !part.is_empty()).collect()
    }

    /// Whether some key is in both ranges.
    #[must_use]
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && other.end.as_ref().is_none_or(|end| self.start < *end)
            && self.end.as_ref().is_none_or(|end| other.start < *end)
    }
}

/// Whether the first of two ends comes before the second.
fn ends_before(a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
    match (a, b) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(a), Some(b)) => a < b,
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", self.start.escape_ascii())?;
        match &self.end {
            Some(end) => write!(f, "{})", end.escape_ascii()),
            None => f.write_str("end)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0_u8, 1, 0x7f, 0xfe, 0xff]), 0..4)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), prop::option::of(key())).prop_map(|(start, end)| KeyRange { start, end })
    }

    proptest! {
        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix in key(), key in key()) {
            let range = KeyRange::prefix(prefix.clone());
            prop_assert_eq!(range.contains(&key), key.starts_with(&prefix));
        }

        #[test]
        fn an_intersection_holds_what_both_hold(a in range(), b in range(), key in key()) {
            let both = a.intersect(&b);
            prop_assert_eq!(both.contains(&key), a.contains(&key) && b.contains(&key));
            if both.contains(&key) {
                prop_assert!(a.overlaps(&b));
            }
            if a.contains_range(&b) && b.contains(&key) {
                prop_assert!(a.contains(&key));
            }
            prop_assert!(a.contains_range(&both) && b.contains_range(&both));
        }

        #[test]
        fn what_is_left_of_a_range_holds_what_the_other_does_not(
            a in range(), b in range(), key in key()
        ) {
            let holders = a.without(&b).iter().filter(|part| part.contains(&key)).count();
            prop_assert_eq!(holders, usize::from(a.contains(&key) && !b.contains(&key)));
        }

        #[test]
        fn a_point_holds_its_key_only(a in key(), b in key()) {
            prop_assert_eq!(KeyRange::point(a.clone()).contains(&b), a == b);
        }
    }
}
