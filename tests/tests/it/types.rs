//! Every type, in and out, in text and in binary.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use meridian_tests::support::{Server, psql};

/// A value's binary form, of whatever type.
#[derive(Debug, PartialEq, Eq)]
struct Binary(Vec<u8>);

impl<'a> FromSql<'a> for Binary {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl ToSql for Binary {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

struct Case {
    sql_type: &'static str,
    /// What a user writes.
    literal: &'static str,
    /// What psql shows.
    text: &'static str,
    /// What the type's send function writes.
    binary: Vec<u8>,
}

fn case(
    sql_type: &'static str,
    literal: &'static str,
    text: &'static str,
    binary: impl Into<Vec<u8>>,
) -> Case {
    Case { sql_type, literal, text, binary: binary.into() }
}

/// Microseconds of a day.
const fn micros(hours: i64, minutes: i64, seconds: i64, micros: i64) -> i64 {
    ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros
}

const DAY: i64 = micros(24, 0, 0, 0);
/// 2024-02-29, in days since 2000-01-01.
const LEAP_DAY: i32 = 8_825;

fn numeric(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
    let count = u16::try_from(digits.len()).expect("few").to_be_bytes();
    let head = [count, weight.to_be_bytes(), sign.to_be_bytes(), scale.to_be_bytes()];
    head.into_iter().chain(digits.iter().map(|digit| digit.to_be_bytes())).flatten().collect()
}

fn interval(micros: i64, days: i32, months: i32) -> Vec<u8> {
    [&micros.to_be_bytes()[..], &days.to_be_bytes(), &months.to_be_bytes()].concat()
}

fn cases() -> Vec<Case> {
    let noon = i64::from(LEAP_DAY) * DAY + micros(12, 34, 56, 789_000);
    vec![
        case("boolean", "true", "t", [1]),
        case("boolean", "'no'", "f", [0]),
        case("smallint", "-32768", "-32768", i16::MIN.to_be_bytes()),
        case("integer", "2147483647", "2147483647", i32::MAX.to_be_bytes()),
        case("bigint", "-9223372036854775808", "-9223372036854775808", i64::MIN.to_be_bytes()),
        case("real", "1.5", "1.5", 1.5_f32.to_be_bytes()),
        case("real", "'-Infinity'", "-Infinity", f32::NEG_INFINITY.to_be_bytes()),
        case("double precision", "0.1", "0.1", 0.1_f64.to_be_bytes()),
        case("double precision", "1e300", "1e+300", 1e300_f64.to_be_bytes()),
        case(
            "numeric(12,4)",
            "-12345.6789",
            "-12345.6789",
            numeric(1, 0x4000, 4, &[1, 2345, 6789]),
        ),
        case("numeric(6,2)", "1", "1.00", numeric(0, 0, 2, &[1])),
        case(
            "numeric(38,0)",
            "99999999999999999999999999999999999999",
            "99999999999999999999999999999999999999",
            numeric(9, 0, 0, &[99, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999]),
        ),
        case("text", "'na''ïve 🦀'", "na'ïve 🦀", "na'ïve 🦀"),
        case("text", "''", "", ""),
        case("varchar(5)", "'abc'", "abc", "abc"),
        case("char(4)", "'ab'", "ab  ", "ab  "),
        case("bytea", r"'\x00ff10'", r"\x00ff10", [0, 255, 16]),
        case("date", "'2024-02-29'", "2024-02-29", LEAP_DAY.to_be_bytes()),
        case("date", "'1999-12-31'", "1999-12-31", (-1_i32).to_be_bytes()),
        case("time", "'23:59:59.999999'", "23:59:59.999999", (DAY - 1).to_be_bytes()),
        case(
            "timestamp",
            "'2024-02-29 12:34:56.789'",
            "2024-02-29 12:34:56.789",
            noon.to_be_bytes(),
        ),
        case(
            "timestamptz",
            "'2024-02-29 14:34:56.789+02'",
            "2024-02-29 12:34:56.789+00",
            noon.to_be_bytes(),
        ),
        case(
            "interval",
            "'1 year 2 mons -3 days 04:05:06.7'",
            "1 year 2 mons -3 days +04:05:06.7",
            interval(micros(4, 5, 6, 700_000), -3, 14),
        ),
        case(
            "uuid",
            "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11_u128.to_be_bytes(),
        ),
        case(
            "jsonb",
            r#"'{"b": 1.50, "a": [true, null, "ü"]}'"#,
            r#"{"a": [true, null, "ü"], "b": 1.50}"#,
            [&[1][..], r#"{"a": [true, null, "ü"], "b": 1.50}"#.as_bytes()].concat(),
        ),
    ]
}

/// The first column of a query's only row, as text.
async fn text(client: &tokio_postgres::Client, sql: &str) -> Option<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_survives_the_round_trip() {
    let server = Server::local().await;
    let client = server.connect(1).await;
    for (number, case) in cases().into_iter().enumerate() {
        let Case { sql_type, literal, text: expected, binary } = case;
        let what = format!("{sql_type} {literal}");
        let create = format!("CREATE TABLE t{number} (k integer PRIMARY KEY, v {sql_type})");
        client.batch_execute(&create).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        // In as text.
        let insert = format!("INSERT INTO t{number} VALUES (1, {literal}), (3, NULL)");
        client.batch_execute(&insert).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        // In as binary.
        let insert = format!("INSERT INTO t{number} VALUES (2, $1)");
        let value = Binary(binary);
        let inserted = client.execute(&insert, &[&value]).await;
        assert_eq!(inserted.unwrap_or_else(|e| panic!("{what}: {e:?}")), 1);
        for key in [1, 2] {
            let select = format!("SELECT v FROM t{number} WHERE k = {key}");
            let shown = text(&client, &select).await;
            assert_eq!(shown.as_deref(), Some(expected), "{what}, row {key} as text");
            let row =
                client.query_one(&select, &[]).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
            assert_eq!(row.get::<_, Binary>(0), value, "{what}, row {key} as binary");
            if let Some(run) = psql(server.port, &format!("{select};")) {
                assert_eq!((run.code, run.out), (Some(0), format!("{expected}\n")), "{what}");
            }
        }
        let null = format!("SELECT v FROM t{number} WHERE k = 3");
        assert_eq!(text(&client, &null).await, None, "{what}");
        let row = client.query_one(&null, &[]).await.expect("a row");
        assert_eq!(row.get::<_, Option<Binary>>(0), None, "{what}");
        // And as a parameter of a comparison, with its own type.
        let find = format!("SELECT k FROM t{number} WHERE v = $1 ORDER BY k");
        let found = client.query(&find, &[&value]).await;
        let found = found.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let keys: Vec<i32> = found.iter().map(|row| row.get(0)).collect();
        assert_eq!(keys, [1, 2], "{what}, found by value");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_own_types_fit() {
    use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
    let server = Server::local().await;
    let client = server.connect(2).await;
    client
        .batch_execute(
            "CREATE TABLE t (k uuid PRIMARY KEY, j jsonb, d date, m time, a timestamp,
             z timestamptz, b bytea, i smallint, f real)",
        )
        .await
        .expect("a table");
    let key = uuid::Uuid::from_u128(7);
    let json = serde_json::json!({"a": [1, 2, {"b": null}]});
    let date = NaiveDate::from_ymd_opt(2026, 11, 21).expect("a date");
    let time = NaiveTime::from_hms_micro_opt(1, 2, 3, 4).expect("a time");
    let naive = NaiveDateTime::new(date, time);
    let zoned: DateTime<Utc> = naive.and_utc();
    let (bytes, small, real) = (vec![0_u8, 1, 255], 7_i16, 0.25_f32);
    client
        .execute(
            "INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &[&key, &json, &date, &time, &naive, &zoned, &bytes, &small, &real],
        )
        .await
        .expect("a row");
    let row = client.query_one("SELECT * FROM t WHERE k = $1", &[&key]).await.expect("a row");
    assert_eq!(row.get::<_, uuid::Uuid>(0), key);
    assert_eq!(row.get::<_, serde_json::Value>(1), json);
    assert_eq!(row.get::<_, NaiveDate>(2), date);
    assert_eq!(row.get::<_, NaiveTime>(3), time);
    assert_eq!(row.get::<_, NaiveDateTime>(4), naive);
    assert_eq!(row.get::<_, DateTime<Utc>>(5), zoned);
    assert_eq!(row.get::<_, Vec<u8>>(6), bytes);
    assert_eq!((row.get::<_, i16>(7), row.get::<_, f32>(8)), (small, real));
}
