use std::cmp::Ordering;

use proptest::prelude::*;

use super::{KeyBuilder, KeyReader, KeyType, KeyValue, Order};

fn kind_of(value: &KeyValue) -> Option<KeyType> {
    Some(match value {
        KeyValue::Null => return None,
        KeyValue::Bool(_) => KeyType::Bool,
        KeyValue::Int(_) => KeyType::Int,
        KeyValue::Float(_) => KeyType::Float,
        KeyValue::Decimal(_) => KeyType::Decimal,
        KeyValue::Text(_) => KeyType::Text,
        KeyValue::Bytes(_) => KeyType::Bytes,
        KeyValue::Date(_) => KeyType::Date,
        KeyValue::Time(_) => KeyType::Time,
        KeyValue::Timestamp(_) => KeyType::Timestamp,
        KeyValue::Interval(_) => KeyType::Interval,
        KeyValue::Uuid(_) => KeyType::Uuid,
    })
}

const KINDS: [KeyType; 11] = [
    KeyType::Bool,
    KeyType::Int,
    KeyType::Float,
    KeyType::Decimal,
    KeyType::Text,
    KeyType::Bytes,
    KeyType::Date,
    KeyType::Time,
    KeyType::Timestamp,
    KeyType::Interval,
    KeyType::Uuid,
];

/// PostgreSQL's order of two values of one column that sorts ascending.
fn compare(a: &KeyValue, b: &KeyValue) -> Ordering {
    match (a, b) {
        (KeyValue::Null, KeyValue::Null) => Ordering::Equal,
        (KeyValue::Null, _) => Ordering::Greater,
        (_, KeyValue::Null) => Ordering::Less,
        (KeyValue::Bool(a), KeyValue::Bool(b)) => a.cmp(b),
        (KeyValue::Int(a), KeyValue::Int(b))
        | (KeyValue::Time(a), KeyValue::Time(b))
        | (KeyValue::Timestamp(a), KeyValue::Timestamp(b)) => a.cmp(b),
        (KeyValue::Date(a), KeyValue::Date(b)) => a.cmp(b),
        (KeyValue::Decimal(a), KeyValue::Decimal(b))
        | (KeyValue::Interval(a), KeyValue::Interval(b)) => a.cmp(b),
        (KeyValue::Float(a), KeyValue::Float(b)) => {
            a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
        }
        (KeyValue::Text(a), KeyValue::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (KeyValue::Bytes(a), KeyValue::Bytes(b)) => a.cmp(b),
        (KeyValue::Uuid(a), KeyValue::Uuid(b)) => a.cmp(b),
        _ => unreachable!("two values of one type"),
    }
}

fn in_order(a: &KeyValue, b: &KeyValue, order: Order) -> Ordering {
    let ordering = compare(a, b);
    if order == Order::Desc { ordering.reverse() } else { ordering }
}

fn integers() -> impl Strategy<Value = i128> {
    prop_oneof![
        -300_i128..300,
        any::<i8>().prop_map(i128::from),
        any::<i32>().prop_map(i128::from),
        any::<i64>().prop_map(i128::from),
        any::<i128>(),
        // Where the number of bytes changes.
        (0_u32..127, -2_i128..3, any::<bool>()).prop_map(|(bits, near, negative)| {
            let value = (1_i128 << bits).saturating_add(near);
            if negative { -value } else { value }
        }),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![prop::sample::select(vec![0_u8, 1, 0xfe, 0xff]), any::<u8>()];
    prop::collection::vec(byte, 0..6)
}

#[expect(clippy::cast_possible_truncation, reason = "any number will do")]
fn value(kind: KeyType) -> BoxedStrategy<KeyValue> {
    let strategy = match kind {
        KeyType::Bool => any::<bool>().prop_map(KeyValue::Bool).boxed(),
        KeyType::Int => integers().prop_map(|v| KeyValue::Int(v as i64)).boxed(),
        KeyType::Time => integers().prop_map(|v| KeyValue::Time(v as i64)).boxed(),
        KeyType::Timestamp => integers().prop_map(|v| KeyValue::Timestamp(v as i64)).boxed(),
        KeyType::Date => integers().prop_map(|v| KeyValue::Date(v as i32)).boxed(),
        KeyType::Decimal => integers().prop_map(KeyValue::Decimal).boxed(),
        KeyType::Interval => integers().prop_map(KeyValue::Interval).boxed(),
        KeyType::Float => prop_oneof![
            prop::sample::select(vec![
                0.0,
                -0.0,
                1.0,
                -1.0,
                f64::NAN,
                -f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                f64::MIN_POSITIVE,
                f64::from_bits(1),
            ]),
            any::<u64>().prop_map(f64::from_bits),
        ]
        .prop_map(KeyValue::Float)
        .boxed(),
        KeyType::Text => prop_oneof![
            "[\u{0}\u{1}a-c\u{10ffff}]{0,5}".prop_map(KeyValue::Text),
            any::<String>().prop_map(KeyValue::Text),
        ]
        .boxed(),
        KeyType::Bytes => bytes().prop_map(KeyValue::Bytes).boxed(),
        KeyType::Uuid => any::<[u8; 16]>().prop_map(KeyValue::Uuid).boxed(),
    };
    prop_oneof![9 => strategy, 1 => Just(KeyValue::Null)].boxed()
}

type Column = (KeyType, Order);

fn column() -> impl Strategy<Value = Column> {
    (prop::sample::select(KINDS.to_vec()), prop::sample::select(vec![Order::Asc, Order::Desc]))
}

/// Two keys of one table: they share their columns, and often a prefix of their values.
fn two_rows() -> impl Strategy<Value = (Vec<Column>, Vec<KeyValue>, Vec<KeyValue>)> {
    prop::collection::vec(column(), 1..5).prop_flat_map(|columns| {
        let row = || columns.iter().map(|(kind, _)| value(*kind)).collect::<Vec<_>>();
        (Just(columns.clone()), row(), row(), 0..columns.len() + 1).prop_map(
            |(columns, a, mut b, shared)| {
                b[..shared].clone_from_slice(&a[..shared]);
                (columns, a, b)
            },
        )
    })
}

fn encode(columns: &[Column], row: &[KeyValue]) -> Vec<u8> {
    let key = columns
        .iter()
        .zip(row)
        .fold(KeyBuilder::new().table(7), |key, ((_, order), value)| key.value(value, *order));
    key.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_order_of_the_bytes_is_the_order_of_the_values((columns, a, b) in two_rows()) {
        let expected = columns
            .iter()
            .zip(a.iter().zip(&b))
            .map(|((_, order), (a, b))| in_order(a, b, *order))
            .find(|ordering| ordering.is_ne())
            .unwrap_or(Ordering::Equal);
        prop_assert_eq!(encode(&columns, &a).cmp(&encode(&columns, &b)), expected);
    }

    #[test]
    fn a_key_reads_back_as_its_values((columns, row, _) in two_rows()) {
        let key = encode(&columns, &row);
        let mut reader = KeyReader::new(&key);
        prop_assert_eq!(reader.table(), Ok(7));
        for ((kind, order), value) in columns.iter().zip(&row) {
            let read = reader.value(*kind, *order);
            let read = read.map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(kind_of(&read), kind_of(value));
            prop_assert_eq!(compare(&read, value), Ordering::Equal);
        }
        prop_assert!(reader.is_empty());
        prop_assert_eq!(reader.consumed(), key.as_slice());
    }

    #[test]
    fn no_encoding_is_a_prefix_of_another((columns, a, b) in two_rows()) {
        let (a, b) = (encode(&columns, &a), encode(&columns, &b));
        prop_assert!(a == b || !b.starts_with(&a) && !a.starts_with(&b));
    }

    /// Reading a damaged key gives an error or some value, and a value is its own encoding.
    #[test]
    fn garbage_is_refused_or_canonical(key in bytes(), (kind, order) in column()) {
        let mut reader = KeyReader::new(&key);
        if let Ok(value) = reader.value(kind, order)
            && !matches!(value, KeyValue::Float(_))
        {
            let again = KeyBuilder::new().value(&value, order).finish();
            prop_assert_eq!(again.as_slice(), reader.consumed());
        }
    }

    #[test]
    fn table_ids_sort_and_read_back(a: u64, b: u64) {
        let (x, y) = (KeyBuilder::new().table(a).finish(), KeyBuilder::new().table(b).finish());
        prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        prop_assert_eq!(KeyReader::new(&x).table(), Ok(a));
    }
}

#[test]
fn small_numbers_are_short() {
    assert_eq!(KeyBuilder::new().table(0).finish(), [0x80]);
    assert_eq!(KeyBuilder::new().table(7).finish(), [0x81, 7]);
    assert_eq!(KeyBuilder::new().table(300).finish(), [0x82, 1, 44]);
    let minus_one = KeyBuilder::new().value(&KeyValue::Int(-1), Order::Asc).finish();
    assert_eq!(minus_one, [0x7f]);
}

#[test]
fn a_directory_is_one_prefix() {
    let warehouse = |w| KeyBuilder::new().table(7).value(&KeyValue::Int(w), Order::Asc);
    let directory = crate::KeyRange::prefix(warehouse(1).finish());
    let district = warehouse(1).table(8).value(&KeyValue::Int(9), Order::Desc).finish();
    assert!(directory.contains(&warehouse(1).table(7).finish()));
    assert!(directory.contains(&district));
    assert!(!directory.contains(&warehouse(2).table(7).finish()));
    assert!(!directory.contains(&warehouse(256).table(7).finish()));
}

#[test]
fn nulls_sort_as_in_postgresql() {
    let key = |value: &KeyValue, order| KeyBuilder::new().value(value, order).finish();
    for value in [KeyValue::Int(i64::MAX), KeyValue::Float(f64::NAN), KeyValue::Text("z".into())] {
        assert!(key(&KeyValue::Null, Order::Asc) > key(&value, Order::Asc));
        assert!(key(&KeyValue::Null, Order::Desc) < key(&value, Order::Desc));
    }
}
