//! What PostgreSQL itself answered, and round trips through both wire formats.

use bytes::BytesMut;
use datafusion::arrow::array::types::IntervalMonthDayNano;
use datafusion::common::ScalarValue;
use proptest::prelude::*;

use super::*;
use crate::error::SqlError;

/// Undoes what COPY escapes.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('b') => '\u{8}',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    out
}

fn answer(pg_type: PgType, input: &str) -> String {
    let session = SessionFormat::default();
    let result = text::parse(pg_type, input, &session)
        .and_then(|value| text::format_scalar(&value, pg_type, &session));
    result.unwrap_or_else(|error| shown(&error))
}

fn shown(error: &SqlError) -> String {
    let mut out = format!("ERROR {}: {}", error.sqlstate, error.message);
    if let Some(detail) = &error.detail {
        out.push_str(&format!(" | DETAIL: {detail}"));
    }
    if let Some(hint) = &error.hint {
        out.push_str(&format!(" | HINT: {hint}"));
    }
    out
}

/// Where this server differs from PostgreSQL, and why.
const DEVIATIONS: &[(&str, &str)] = &[
    // strtod reads C's hexadecimal floats.
    ("real", "0x1p3"),
    ("real", "0x10"),
    ("double precision", "0x1p3"),
    ("double precision", "0x10"),
    // 256 bits hold 76 digits.
    ("numeric", "1e-100"),
    // 64 bits of microseconds since 1970, not 2000, the last of them `infinity`.
    ("timestamp", "294276-12-31 23:59:59.999999"),
    ("timestamp", "294247-01-10 04:00:54.775807"),
    ("timestamptz", "294276-12-31 23:59:59.999999"),
    ("timestamptz", "294247-01-10 04:00:54.775807"),
    // 64 bits of nanoseconds.
    ("interval", "2562048 hours"),
    ("interval", "2562047788 hours"),
    ("interval", "9223372036854.775807 s"),
    ("interval", "9223372037 s"),
    // Arrow's lists begin at 1.
    ("int[]", "[0:1]={1,2}"),
];

#[test]
fn input_and_output_are_postgresqls() {
    let recorded = include_str!("testdata/input.tsv");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for line in recorded.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<String> = line.split('\t').map(unescape).collect();
        let [type_name, input, expected] = fields.as_slice() else {
            panic!("not three fields: {line}");
        };
        let pg_type = PgType::from_text(type_name).expect(type_name);
        let answer = answer(pg_type, input);
        let deviates = DEVIATIONS.contains(&(type_name.as_str(), input.as_str()));
        seen += usize::from(deviates);
        if deviates == (answer == *expected) {
            wrong
                .push(format!("{type_name} {input:?}\n  expected {expected}\n  got      {answer}"));
        }
    }
    assert_eq!(seen, DEVIATIONS.len(), "a deviation that is not in the file");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_timestamptz_is_shown_in_the_sessions_zone() {
    let examples = [
        ("America/New_York", "2024-01-31 12:00:00+00", "2024-01-31 07:00:00-05"),
        ("America/New_York", "2024-07-31 12:00:00+00", "2024-07-31 08:00:00-04"),
        ("America/New_York", "1880-01-01 00:00:00+00", "1879-12-31 19:03:58-04:56:02"),
        ("Asia/Kolkata", "2024-01-31 12:00:00", "2024-01-31 12:00:00+05:30"),
        ("+5", "2024-01-31 12:00:00Z", "2024-01-31 17:00:00+05"),
        ("Europe/London", "2500-07-01 00:00:00", "2500-07-01 00:00:00+01"),
    ];
    for (zone, input, expected) in examples {
        let session = SessionFormat { time_zone: TimeZone::parse(zone).expect(zone) };
        let value = text::parse(PgType::Timestamptz, input, &session).expect(input);
        let shown = text::format_scalar(&value, PgType::Timestamptz, &session).expect(input);
        assert_eq!(shown, expected, "{zone}");
    }
}

#[test]
fn strings_fit_their_columns() {
    let session = SessionFormat::default();
    let shown = |pg_type, input: &str| {
        text::parse(pg_type, input, &session)
            .and_then(|value| text::format_scalar(&value, pg_type, &session))
            .unwrap_or_else(|error| shown(&error))
    };
    assert_eq!(shown(PgType::Varchar(Some(3)), "abc"), "abc");
    assert_eq!(shown(PgType::Varchar(Some(3)), "abc   "), "abc");
    assert_eq!(shown(PgType::Varchar(Some(3)), "ab "), "ab ");
    assert_eq!(shown(PgType::Varchar(Some(3)), "äöü"), "äöü");
    assert_eq!(
        shown(PgType::Varchar(Some(3)), "abcd"),
        "ERROR 22001: value too long for type character varying(3)"
    );
    assert_eq!(shown(PgType::Char(Some(3)), "a"), "a  ");
    assert_eq!(shown(PgType::Char(Some(3)), "a     "), "a  ");
    assert_eq!(shown(PgType::Char(Some(3)), "ä"), "ä  ");
    assert_eq!(
        shown(PgType::Char(Some(3)), "abcd"),
        "ERROR 22001: value too long for type character(3)"
    );
    assert!(shown(PgType::Text, "a\0b").starts_with("ERROR 22021"));
}

#[test]
fn binary_is_what_postgresql_sends() {
    // From `select encode(<type>_send('...'), 'hex')` in PostgreSQL 15.
    let examples = include_str!("testdata/binary.tsv");
    let session = SessionFormat::default();
    for line in examples.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<String> = line.split('\t').map(unescape).collect();
        let [type_name, input, hex] = fields.as_slice() else { panic!("not three: {line}") };
        let pg_type = PgType::from_text(type_name).expect(type_name);
        let value = text::parse(pg_type, input, &session).expect(input);
        let mut out = BytesMut::new();
        let array = value.to_array().expect("an array");
        binary::encode(&array, 0, pg_type, &mut out).expect(input);
        let found: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, *hex, "{type_name} {input}");
        let back = binary::decode(pg_type, &out).expect(input);
        assert_eq!(back, value, "{type_name} {input}");
    }
}

#[test]
fn malformed_binary_is_an_error() {
    let cases: &[(PgType, &[u8], &str)] = &[
        (PgType::Int4, &[0, 0, 0], "08P01"),
        (PgType::Int4, &[0, 0, 0, 0, 0], "22P03"),
        (PgType::Uuid, &[0; 15], "08P01"),
        (PgType::Text, &[0xff], "22021"),
        (PgType::Text, &[b'a', 0], "22021"),
        (PgType::Jsonb, &[2, b'1'], "22P03"),
        (PgType::Jsonb, &[1, b'{'], "22P02"),
        (PgType::Date, &[0x7f, 0xff, 0xff, 0xfe], "22008"),
        (PgType::Timestamp, &[0x80, 0, 0, 0, 0, 0, 0, 1], "22008"),
        (PgType::Time, &[0xff; 8], "22008"),
        (PgType::Interval, &[0x7f; 16], "22008"),
        (PgType::Varchar(Some(1)), b"ab", "22001"),
        (PgType::Array(BaseType::Int4), &[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 23], "22P03"),
        (PgType::Array(BaseType::Int4), &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25], "22P03"),
    ];
    for (pg_type, bytes, code) in cases {
        let error = binary::decode(*pg_type, bytes).expect_err("malformed");
        assert_eq!(error.sqlstate.code(), *code, "{pg_type} {bytes:?}: {error:?}");
    }
}

/// A type and a value of it that a column may hold.
pub(crate) fn typed_value() -> impl Strategy<Value = (PgType, ScalarValue)> {
    let numeric = (1_u8..=38).prop_flat_map(|precision| {
        (0..=precision.cast_signed(), any::<i128>()).prop_map(move |(scale, value)| {
            let value = value % 10_i128.pow(u32::from(precision));
            (
                PgType::Numeric { precision, scale },
                ScalarValue::Decimal128(Some(value), precision, scale),
            )
        })
    });
    let micros = prop_oneof![
        -210_866_803_200_000_000..i64::MAX,
        Just(i64::MIN),
        Just(i64::MAX),
        -10_000_000_i64..10_000_000,
    ];
    let interval = (any::<i32>(), any::<i32>(), -9_223_372_036_854_775..9_223_372_036_854_775_i64)
        .prop_map(|(months, days, micros)| {
            let value = IntervalMonthDayNano::new(months, days, micros * 1000);
            (PgType::Interval, ScalarValue::IntervalMonthDayNano(Some(value)))
        });
    let text = "[^\\x00]{0,20}";
    prop_oneof![
        any::<bool>().prop_map(|v| (PgType::Bool, ScalarValue::Boolean(Some(v)))),
        any::<i16>().prop_map(|v| (PgType::Int2, ScalarValue::Int16(Some(v)))),
        any::<i32>().prop_map(|v| (PgType::Int4, ScalarValue::Int32(Some(v)))),
        any::<i64>().prop_map(|v| (PgType::Int8, ScalarValue::Int64(Some(v)))),
        any::<f32>().prop_map(|v| (PgType::Float4, ScalarValue::Float32(Some(v)))),
        any::<f64>().prop_map(|v| (PgType::Float8, ScalarValue::Float64(Some(v)))),
        numeric,
        text.prop_map(|v| (PgType::Text, ScalarValue::Utf8(Some(v)))),
        text.prop_map(|v| (PgType::Varchar(None), ScalarValue::Utf8(Some(v)))),
        text.prop_map(|v| {
            let trimmed = v.trim_end_matches(' ').to_owned();
            (PgType::Char(Some(25)), ScalarValue::Utf8(Some(trimmed)))
        }),
        proptest::collection::vec(any::<u8>(), 0..20)
            .prop_map(|v| (PgType::Bytea, ScalarValue::Binary(Some(v)))),
        prop_oneof![-2_440_588..2_145_042_906, Just(i32::MIN), Just(i32::MAX)]
            .prop_map(|v| (PgType::Date, ScalarValue::Date32(Some(v)))),
        (0..=86_400_000_000_i64)
            .prop_map(|v| (PgType::Time, ScalarValue::Time64Microsecond(Some(v)))),
        micros
            .clone()
            .prop_map(|v| (PgType::Timestamp, ScalarValue::TimestampMicrosecond(Some(v), None))),
        micros.prop_map(|v| {
            (PgType::Timestamptz, ScalarValue::TimestampMicrosecond(Some(v), Some("UTC".into())))
        }),
        interval,
        any::<[u8; 16]>()
            .prop_map(|v| (PgType::Uuid, ScalarValue::FixedSizeBinary(16, Some(v.to_vec())))),
        proptest::collection::vec(any::<i32>(), 0..4).prop_map(|v| (
            PgType::Jsonb,
            ScalarValue::Utf8(Some(normalize_json(&format!("{v:?}")).expect("valid")))
        )),
    ]
}

fn same(a: &ScalarValue, b: &ScalarValue) -> bool {
    // NaN has many bit patterns, of which text keeps none.
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn text_reads_back((pg_type, value) in typed_value(), zone in 0_usize..3) {
        let zone = ["UTC", "+5", "America/New_York"][zone];
        let session = SessionFormat { time_zone: TimeZone::parse(zone).expect(zone) };
        // What is shown in local time may lie outside of the calendar, or occur twice a year.
        prop_assume!(pg_type != PgType::Timestamptz || zone != "America/New_York");
        let shown = text::format_scalar(&value, pg_type, &session).expect("formats");
        match text::parse(pg_type, &shown, &session) {
            Ok(back) => prop_assert!(same(&back, &value), "{shown}: {value:?} {back:?}"),
            Err(error) => prop_assert!(
                pg_type == PgType::Timestamptz && error.message.contains("out of range"),
                "{shown} {error:?}"
            ),
        }
    }

    #[test]
    fn binary_reads_back((pg_type, value) in typed_value()) {
        let mut out = BytesMut::new();
        binary::encode(&value.to_array().expect("an array"), 0, pg_type, &mut out).expect("encodes");
        let back = binary::decode(pg_type, &out).expect("decodes");
        prop_assert!(same(&back, &value), "{value:?} {back:?}");
    }

    #[test]
    fn random_input_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        input in "[-+0-9a-zA-Z:. /é{}\",\\\\]{0,25}",
        (pg_type, _) in typed_value(),
        array in any::<bool>(),
    ) {
        let pg_type = if array { PgType::Array(pg_type.base()) } else { pg_type };
        let session = SessionFormat::default();
        let _ = binary::decode(pg_type, &bytes);
        let _ = text::parse(pg_type, &input, &session);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = text::parse(pg_type, text, &session);
        }
    }

    #[test]
    fn dates_never_panic(input in "[-+0-9:.TZ /]{0,30}|(P|-)?[-0-9YMWDTHS.]{0,20}|([a-z]{1,5} ?[-0-9.:/+]{0,6} ?){0,4}") {
        let session = SessionFormat::default();
        for pg_type in [PgType::Date, PgType::Time, PgType::Timestamp, PgType::Timestamptz, PgType::Interval] {
            if let Ok(value) = text::parse(pg_type, &input, &session) {
                let _ = text::format_scalar(&value, pg_type, &session).expect("formats");
            }
        }
    }
}
