use std::cmp::Ordering;
use std::ops::Bound;

use datafusion::arrow::array::ArrayRef;
use datafusion::common::ScalarValue;
use meridian_storage::{KeyRange, Order};
use proptest::prelude::*;

use super::column::normalized;
use super::*;
use crate::error::SqlState;
use crate::types::tests::typed_value;
use crate::types::{SessionFormat, text};

fn null(pg_type: PgType) -> ScalarValue {
    ScalarValue::try_from(&pg_type.arrow_type()).expect("a type with a NULL")
}

fn table(columns: &[(PgType, bool)], key: &[(usize, Order)], root_key_columns: usize) -> RowCodec {
    let columns = (0_u32..)
        .zip(columns)
        .map(|(index, (pg_type, nullable))| RowColumn {
            // Gaps, as dropped columns leave them.
            id: index * 3 + 1,
            name: format!("c{index}"),
            pg_type: *pg_type,
            nullable: *nullable,
        })
        .collect();
    let key = key.iter().map(|(position, order)| KeyColumn { position: *position, order: *order });
    let own = if root_key_columns == key.len() { 7 } else { 8 };
    RowCodec::new(RowSchema { root: 7, table: own, columns, key: key.collect(), root_key_columns })
        .expect("a table")
}

/// How PostgreSQL orders two values of a type, NULLs last.
fn compare(a: &ScalarValue, b: &ScalarValue) -> Ordering {
    match (a.is_null(), b.is_null()) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        _ => {}
    }
    let floats = |a: f64, b: f64| match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ => a.partial_cmp(&b).expect("numbers"),
    };
    match (a, b) {
        (ScalarValue::Float32(Some(a)), ScalarValue::Float32(Some(b))) => {
            floats(f64::from(*a), f64::from(*b))
        }
        (ScalarValue::Float64(Some(a)), ScalarValue::Float64(Some(b))) => floats(*a, *b),
        (
            ScalarValue::IntervalMonthDayNano(Some(a)),
            ScalarValue::IntervalMonthDayNano(Some(b)),
        ) => normalized(*a).cmp(&normalized(*b)),
        _ => a.partial_cmp(b).expect("values of one type"),
    }
}

fn same(a: &ScalarValue, b: &ScalarValue) -> bool {
    match (a, b) {
        (ScalarValue::Float32(Some(a)), ScalarValue::Float32(Some(b))) => {
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
        }
        (ScalarValue::Float64(Some(a)), ScalarValue::Float64(Some(b))) => {
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
        }
        _ => a == b,
    }
}

/// Columns with a few rows of values, some of them NULL.
fn rows() -> impl Strategy<Value = (Vec<PgType>, Vec<Vec<ScalarValue>>)> {
    // A type and five values of it: a value of each column's type is found by asking often enough.
    let column = (typed_value(), any::<u64>()).prop_map(|((pg_type, value), seed)| {
        let values = (0..5_u32).map(|row| match (seed >> (row * 2)) & 3 {
            0 => null(pg_type),
            _ => value.clone(),
        });
        (pg_type, values.collect::<Vec<_>>())
    });
    proptest::collection::vec(column, 2..8).prop_map(|columns| {
        let types = columns.iter().map(|(pg_type, _)| *pg_type).collect();
        let rows = (0..5)
            .map(|row| columns.iter().map(|(_, values)| values[row].clone()).collect())
            .collect();
        (types, rows)
    })
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Asc), Just(Order::Desc)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn rows_read_back(
        (types, rows) in rows(),
        orders in (order(), order()),
        interleaved in any::<bool>(),
        wanted in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let columns: Vec<_> = types.iter().map(|pg_type| (*pg_type, true)).collect();
        let keys: Vec<usize> =
            (0..types.len()).filter(|i| key_type(types[*i]).is_some()).take(2).collect();
        prop_assume!(keys.len() == 2);
        let key = [(keys[1], orders.0), (keys[0], orders.1)];
        let codec = table(&columns, &key, if interleaved { 1 } else { 2 });
        let mut projection: Vec<usize> =
            wanted.iter().map(|index| index.index(types.len())).collect();
        let mut seen = std::collections::BTreeSet::new();
        projection.retain(|position| seen.insert(*position));
        let mut decoder = codec.decoder(&projection, 4);
        for row in &rows {
            let (key, value) = codec.encode_scalars(row).expect("encodes");
            prop_assert!(codec.owns(&key).expect("a key"));
            decoder.push(&key, &value).expect("decodes");
            let all = codec.decode_scalars(&key, &value).expect("decodes");
            for (found, expected) in all.iter().zip(row) {
                prop_assert!(same(found, expected), "{found:?} {expected:?}");
            }
        }
        prop_assert_eq!(decoder.len(), rows.len());
        let batch = decoder.finish().expect("a batch");
        prop_assert_eq!(batch.num_rows(), rows.len());
        for (column, position) in batch.columns().iter().zip(&projection) {
            for (index, row) in rows.iter().enumerate() {
                let found = ScalarValue::try_from_array(column, index).expect("a cell");
                prop_assert!(same(&found, &row[*position]));
            }
        }
    }

    #[test]
    fn keys_sort_as_their_values(
        (pg_type, a) in typed_value(),
        others in proptest::collection::vec(typed_value(), 40),
        order in order(),
    ) {
        prop_assume!(key_type(pg_type).is_some());
        let codec = table(&[(pg_type, true)], &[(0, order)], 1);
        let key = |value: &ScalarValue| codec.key_of(std::slice::from_ref(value)).expect("a key");
        let of_type = others.into_iter().filter(|(other, _)| *other == pg_type);
        for b in of_type.map(|(_, value)| value).chain([null(pg_type), a.clone()]) {
            let expected = match order {
                Order::Asc => compare(&a, &b),
                Order::Desc => compare(&b, &a),
            };
            prop_assert_eq!(key(&a).cmp(&key(&b)), expected, "{:?} {:?}", a, b);
        }
    }

    #[test]
    fn a_range_holds_what_its_bounds_say(
        bounds in (0..4_u8, 0..4_u8, -3..3_i32, -3..3_i32),
        order in order(),
        prefixed in any::<bool>(),
    ) {
        let (lower, upper, low, high) = bounds;
        let columns = [(PgType::Int4, true), (PgType::Int4, true), (PgType::Text, true)];
        let codec = table(&columns, &[(0, Order::Desc), (1, order)], 2);
        let prefix = if prefixed { vec![ScalarValue::Int32(Some(1))] } else { vec![] };
        let (low, high) = (ScalarValue::Int32(Some(low)), ScalarValue::Int32(Some(high)));
        let bound = |kind, value| match kind {
            0 => Bound::Unbounded,
            1 => Bound::Included(value),
            _ => Bound::Excluded(value),
        };
        let (lower, upper) = (bound(lower, &low), bound(upper, &high));
        let range = codec.key_range(&prefix, lower, upper).expect("a range");
        let unbounded = matches!((lower, upper), (Bound::Unbounded, Bound::Unbounded));
        let cells = || (-4..4).map(|n| ScalarValue::Int32(Some(n))).chain([null(PgType::Int4)]);
        for first in cells() {
            for second in cells() {
                let bounded = if prefixed { &second } else { &first };
                let inside = !bounded.is_null()
                    && match lower {
                        Bound::Included(low) => bounded >= low,
                        Bound::Excluded(low) => bounded > low,
                        Bound::Unbounded => true,
                    }
                    && match upper {
                        Bound::Included(high) => bounded <= high,
                        Bound::Excluded(high) => bounded < high,
                        Bound::Unbounded => true,
                    };
                let expected = (!prefixed || first == prefix[0]) && (unbounded || inside);
                let key = codec.key_of(&[first.clone(), second.clone()]).expect("a key");
                prop_assert_eq!(range.contains(&key), expected, "{:?} {:?}", first, second);
            }
        }
    }

    // A directory: all rows below a root's row, in tables nested to any depth, have keys between the
    // root row's prefix and its end; each is told from the others', and finds the one above it.
    #[test]
    fn a_directory_is_one_range(
        (root_type, root_value) in typed_value(),
        others in proptest::collection::vec(typed_value(), 40),
        below in proptest::collection::vec((any::<i64>(), ".{0,3}", 0..4_u64), 0..6),
    ) {
        prop_assume!(key_type(root_type).is_some());
        // Table 7 and, each interleaved in the one before, 8, 9 and 10: keys of 1, 2, 3, 3 columns.
        let columns =
            [(root_type, false), (PgType::Int8, false), (PgType::Text, false), (PgType::Text, true)];
        let codecs: Vec<RowCodec> = [(7, 1), (8, 2), (9, 3), (10, 3)]
            .map(|(id, key): (u64, usize)| {
                let key: Vec<_> = (0..key).map(|position| (position, Order::Asc)).collect();
                let mut schema = table(&columns, &key, 1).schema().clone();
                schema.table = id;
                RowCodec::new(schema).expect("a table")
            })
            .into();
        let key = |root: &ScalarValue, (number, text, level): &(i64, String, u64)| {
            let values = [
                root.clone(),
                ScalarValue::Int64(Some(*number)),
                ScalarValue::Utf8(Some(text.replace('\u{1}', "\0"))),
            ];
            let level = usize::try_from(*level).expect("small");
            codecs[level].key_of(&values[..codecs[level].schema().key.len()]).expect("a key")
        };
        let own = codecs[0].key_of(std::slice::from_ref(&root_value)).expect("a key");
        let directory = codecs[0].split(&own).expect("a key").directory.to_vec();
        let range = KeyRange::prefix(directory);
        let roots = others.into_iter().filter(|(other, _)| *other == root_type);
        let roots = roots.map(|(_, value)| value).chain([root_value.clone()]);
        for root in roots {
            let same = codecs[0].key_of(std::slice::from_ref(&root)).expect("a key") == own;
            for row in &below {
                let key = key(&root, row);
                prop_assert_eq!(range.contains(&key), same, "{:?} {:?}", root, row);
                for (level, codec) in codecs.iter().enumerate() {
                    let owns = codec.owns(&key).expect("a key");
                    prop_assert_eq!(owns, u64::try_from(level).expect("small") == row.2);
                }
                // Up one by one, and down again.
                for level in (1..=usize::try_from(row.2).expect("small")).rev() {
                    let (child, parent) = (&codecs[level], &codecs[level - 1]);
                    let child_key = key_at(child, &key);
                    let above = child
                        .key_above(&child_key, parent.schema().table, parent.schema().key.len())
                        .expect("a key");
                    prop_assert!(parent.owns(&above).expect("a key"));
                    prop_assert!(range.contains(&above) == same && above < child_key);
                    let prefix = parent.prefix_below(&above, child.schema().table).expect("ok");
                    prop_assert!(child_key.starts_with(&prefix));
                }
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(
        key in proptest::collection::vec(any::<u8>(), 0..24),
        value in proptest::collection::vec(any::<u8>(), 0..24),
    ) {
        let columns = [
            (PgType::Int4, false),
            (PgType::Interval, false),
            (PgType::Text, true),
            (PgType::Numeric { precision: 5, scale: 2 }, true),
        ];
        let codec = table(&columns, &[(0, Order::Asc), (1, Order::Desc)], 1);
        let whole = [&[0x81, 7], key.as_slice()].concat();
        let value = [&[1], value.as_slice()].concat();
        for key in [&key, &whole] {
            let _ = codec.decode_scalars(key, &value);
            let _ = codec.owns(key);
            let _ = codec.describe_key(key, &SessionFormat::default());
        }
    }
}

/// The key of the row of this table that the row of a key lies below, or is.
fn key_at(codec: &RowCodec, key: &[u8]) -> Vec<u8> {
    let schema = codec.schema();
    let split = codec.split(key).expect("a key");
    let whole = [&split.of(schema.table), split.rest].concat();
    codec.key_above(&whole, schema.table, schema.key.len()).expect("a key")
}

#[test]
fn what_a_key_loses_is_in_the_value() {
    let columns = [(PgType::Float8, false), (PgType::Interval, false), (PgType::Int4, true)];
    let codec = table(&columns, &[(0, Order::Asc), (1, Order::Desc)], 2);
    let session = SessionFormat::default();
    let parse = |pg_type, input: &str| text::parse(pg_type, input, &session).expect(input);
    let row = |float: &str, interval: &str| {
        [
            parse(PgType::Float8, float),
            parse(PgType::Interval, interval),
            ScalarValue::Int32(Some(1)),
        ]
    };
    let (zero, month) = codec.encode_scalars(&row("0", "1 mon")).expect("encodes");
    let (minus, days) = codec.encode_scalars(&row("-0", "30 days")).expect("encodes");
    assert_eq!(zero, minus, "PostgreSQL holds them equal");
    let shown = |value: &[u8]| {
        let row = codec.decode_scalars(&zero, value).expect("decodes");
        let cell = |i: usize, pg_type| text::format_scalar(&row[i], pg_type, &session).expect("ok");
        [cell(0, PgType::Float8), cell(1, PgType::Interval)]
    };
    assert_eq!(shown(&month), ["0", "1 mon"]);
    assert_eq!(shown(&days), ["-0", "30 days"]);
}

#[test]
fn columns_come_and_go() {
    let session = SessionFormat::default();
    let old = table(
        &[(PgType::Int4, false), (PgType::Text, true), (PgType::Int4, true)],
        &[(0, Order::Asc)],
        1,
    );
    let row = [
        ScalarValue::Int32(Some(1)),
        ScalarValue::Utf8(Some("gone".to_owned())),
        ScalarValue::Int32(Some(-5)),
    ];
    let (key, value) = old.encode_scalars(&row).expect("encodes");
    let mut schema = old.schema().clone();
    schema.columns.remove(1);
    schema.columns[1].pg_type = PgType::Int8;
    schema.columns.push(RowColumn {
        id: 9,
        name: "added".to_owned(),
        pg_type: PgType::Uuid,
        nullable: true,
    });
    let new = RowCodec::new(schema).expect("a table");
    let read = new.decode_scalars(&key, &value).expect("decodes");
    assert_eq!(
        read,
        [ScalarValue::Int32(Some(1)), ScalarValue::Int64(Some(-5)), null(PgType::Uuid)]
    );
    assert_eq!(new.describe_key(&key, &session), Ok("(c0)=(1)".to_owned()));
}

#[test]
fn interleaved_rows_lie_inside_their_root() {
    let columns = [(PgType::Int4, false), (PgType::Int4, false)];
    let root = table(&columns, &[(0, Order::Asc)], 1);
    let child = table(&columns, &[(0, Order::Asc), (1, Order::Asc)], 1);
    let one = ScalarValue::Int32(Some(1));
    let two = ScalarValue::Int32(Some(2));
    let root_key = root.key_of(std::slice::from_ref(&one)).expect("a key");
    let child_key = child.key_of(&[one.clone(), two.clone()]).expect("a key");
    let next_root = root.key_of(std::slice::from_ref(&two)).expect("a key");
    assert!(root_key < child_key && child_key < next_root);
    assert!(root.owns(&root_key).expect("a key") && !root.owns(&child_key).expect("a key"));
    assert!(child.owns(&child_key).expect("a key") && !child.owns(&root_key).expect("a key"));
    assert!(root.root_range().contains(&child_key));
    let only = child
        .key_range(std::slice::from_ref(&one), Bound::Included(&two), Bound::Unbounded)
        .expect("a range");
    assert!(only.contains(&child_key) && !only.contains(&root_key) && !only.contains(&next_root));
}

#[test]
fn many_rows_are_encoded_column_by_column() {
    let columns = [(PgType::Int8, false), (PgType::Text, true)];
    let codec = table(&columns, &[(0, Order::Asc)], 1);
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(datafusion::arrow::array::Int64Array::from_iter_values(0..1000)),
        Arc::new(
            (0..1000)
                .map(|n| (n % 3 > 0).then(|| format!("row {n}")))
                .collect::<datafusion::arrow::array::StringArray>(),
        ),
    ];
    let encoder = codec.encoder(&arrays).expect("fits");
    let mut decoder = codec.decoder(&[1, 0], 1000);
    for row in 0..1000 {
        decoder.push(&encoder.key(row), &encoder.value(row)).expect("decodes");
    }
    let batch = decoder.finish().expect("a batch");
    assert_eq!(batch.column(0).as_ref(), arrays[1].as_ref());
    assert_eq!(batch.column(1).as_ref(), arrays[0].as_ref());
    assert!(decoder.is_empty());
    assert!(codec.encoder(&arrays[..1]).is_err());
    let swapped: Vec<ArrayRef> = arrays.iter().rev().cloned().collect();
    assert!(codec.encoder(&swapped).is_err());
}

#[test]
fn a_missing_value_is_noticed() {
    let nullable = table(&[(PgType::Int4, false), (PgType::Int4, true)], &[(0, Order::Asc)], 1);
    let row = [ScalarValue::Int32(Some(1)), ScalarValue::Int32(None)];
    let (key, value) = nullable.encode_scalars(&row).expect("encodes");
    let strict = table(&[(PgType::Int4, false), (PgType::Int4, false)], &[(0, Order::Asc)], 1);
    let error = strict.decode_scalars(&key, &value).expect_err("not null");
    assert_eq!(error.sqlstate, SqlState::DATA_CORRUPTED);
    let error = strict.decode_scalars(&key, &[]).expect_err("nothing");
    assert_eq!(error.sqlstate, SqlState::DATA_CORRUPTED);
    let error = strict.decode_scalars(&key, &[9]).expect_err("a later version");
    assert!(error.message.contains("unknown version 9"));
}

#[test]
fn tables_that_cannot_be_stored_are_refused() {
    let column = |id, pg_type| RowColumn { id, name: "c".to_owned(), pg_type, nullable: false };
    let key = vec![KeyColumn { position: 0, order: Order::Asc }];
    let refused = |columns: Vec<RowColumn>| {
        let schema =
            RowSchema { root: 1, table: 1, columns, key: key.clone(), root_key_columns: 1 };
        RowCodec::new(schema).expect_err("refused").sqlstate
    };
    assert_eq!(refused(vec![column(1, PgType::Jsonb)]), SqlState::FEATURE_NOT_SUPPORTED);
    assert_eq!(refused(vec![column(1, PgType::UnboundedNumeric)]), SqlState::FEATURE_NOT_SUPPORTED);
    let twice = vec![column(1, PgType::Int4), column(2, PgType::Int4), column(2, PgType::Int4)];
    assert_eq!(refused(twice), SqlState::INTERNAL_ERROR);
    assert_eq!(refused(vec![column(0, PgType::Int4)]), SqlState::INTERNAL_ERROR);
}
