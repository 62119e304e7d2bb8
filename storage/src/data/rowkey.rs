//! A version's key in the file: the row's key, then the complement of the timestamp.

use std::borrow::Cow;
use std::cmp::Ordering;

use meridian_truetime::Timestamp;

/// The bytes of a timestamp.
const STAMP: usize = 8;

/// redb's name for the encoding below.
#[derive(Debug)]
pub(super) struct RowKey;

/// The place of the version of `key` at `ts`.
pub(super) fn encode(key: &[u8], ts: Timestamp) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + STAMP);
    encode_into(&mut bytes, key, ts);
    bytes
}

/// [`encode`] into a buffer that is used again and again.
pub(super) fn encode_into(bytes: &mut Vec<u8>, key: &[u8], ts: Timestamp) {
    bytes.clear();
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&(!ts.as_nanos()).to_be_bytes());
}

/// The key and the timestamp of a version.
pub(super) fn split(bytes: &[u8]) -> (&[u8], Timestamp) {
    let (key, stamp) = parts(bytes);
    // Only a damaged file holds a key that is too short.
    let stamp = stamp.try_into().map_or(0, u64::from_be_bytes);
    (key, Timestamp::from_nanos(!stamp))
}

fn parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len().saturating_sub(STAMP))
}

impl redb::Value for RowKey {
    type SelfType<'a> = &'a [u8];
    type AsBytes<'a> = &'a [u8];

    fn fixed_width() -> Option<usize> {
        None
    }

    fn from_bytes<'a>(data: &'a [u8]) -> &'a [u8]
    where
        Self: 'a,
    {
        data
    }

    fn as_bytes<'a, 'b: 'a>(value: &'a &'b [u8]) -> &'a [u8]
    where
        Self: 'b,
    {
        value
    }

    fn type_name() -> redb::TypeName {
        redb::TypeName::new("meridian::RowKey")
    }
}

impl redb::Key for RowKey {
    fn compare(a: &[u8], b: &[u8]) -> Ordering {
        parts(a).cmp(&parts(b))
    }

    /// The shortest beginning of the right key that lies above the left one, so that the inner
    /// nodes of the tree hold more children.
    fn separator<'a>(left: &'a [u8], right: &'a [u8]) -> Cow<'a, [u8]> {
        let ((a, _), (b, _)) = (parts(left), parts(right));
        let shared = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        // If one byte more than what they share is still shorter than the right key, it lies
        // strictly between the two, whatever the timestamp.
        if shared + 1 < b.len() && shared + 1 < a.len() {
            return Cow::Owned(encode(&b[..=shared], Timestamp::MAX));
        }
        Cow::Borrowed(left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redb::Key;

    use super::*;

    fn version() -> impl Strategy<Value = (Vec<u8>, u64)> {
        let byte = prop::sample::select(vec![0_u8, 1, 0xff]);
        (prop::collection::vec(byte, 0..6), prop_oneof![0..3_u64, any::<u64>()])
    }

    proptest! {
        #[test]
        fn versions_sort_by_key_then_newest_first((a, s) in version(), (b, t) in version()) {
            let (x, y) = (encode(&a, Timestamp::from_nanos(s)), encode(&b, Timestamp::from_nanos(t)));
            let ordering = RowKey::compare(&x, &y);
            prop_assert_eq!(ordering, a.cmp(&b).then(t.cmp(&s)));
            prop_assert_eq!(split(&x), (a.as_slice(), Timestamp::from_nanos(s)));
            if ordering.is_lt() {
                let between = RowKey::separator(&x, &y);
                prop_assert!(RowKey::compare(&x, &between).is_le());
                prop_assert!(RowKey::compare(&between, &y).is_lt());
                prop_assert!(between.len() <= x.len());
            }
        }
    }
}
