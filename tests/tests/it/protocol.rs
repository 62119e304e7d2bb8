//! The protocol's finer points, message by message.

use meridian_tests::support::{Raw, Server, cstr, field, kinds};

fn parse(name: &str, sql: &str) -> Vec<u8> {
    [cstr(name), cstr(sql), vec![0, 0]].concat()
}

/// A bind of text parameters, with results as text.
fn bind(portal: &str, statement: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = [cstr(portal), cstr(statement), vec![0, 0]].concat();
    body.extend(u16::try_from(parameters.len()).expect("few").to_be_bytes());
    for parameter in parameters {
        body.extend(u32::try_from(parameter.len()).expect("short").to_be_bytes());
        body.extend(parameter.as_bytes());
    }
    body.extend([0, 0]);
    body
}

fn execute(portal: &str, limit: i32) -> Vec<u8> {
    [&cstr(portal)[..], &limit.to_be_bytes()].concat()
}

/// The only column of the data rows among the answers.
fn values(answers: &[(u8, Vec<u8>)]) -> Vec<String> {
    let rows = answers.iter().filter(|(kind, _)| *kind == b'D');
    rows.map(|(_, body)| String::from_utf8_lossy(&body[6..]).into_owned()).collect()
}

fn tags(answers: &[(u8, Vec<u8>)]) -> Vec<String> {
    let tags = answers.iter().filter(|(kind, _)| *kind == b'C');
    let text = |body: &[u8]| String::from_utf8_lossy(&body[..body.len() - 1]).into_owned();
    tags.map(|(_, body)| text(body)).collect()
}

fn codes(answers: &[(u8, Vec<u8>)]) -> Vec<String> {
    let errors = answers.iter().filter(|(kind, _)| *kind == b'E');
    errors.filter_map(|(_, body)| field(body, b'C')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_as_in_postgresql() {
    let server = Server::local().await;
    greeting(server.port).await;
    let (mut raw, _) = Raw::session(server.port).await;
    raw.message(b'Q', &cstr("CREATE TABLE t (k integer PRIMARY KEY, v text)")).await;
    assert_eq!(tags(&raw.until(b'Z').await), ["CREATE TABLE"]);
    simple_queries(&mut raw).await;
    portals(&mut raw).await;
    errors_skip_to_sync(&mut raw).await;
    names(&mut raw).await;
    what_else_there_is(&mut raw).await;
    raw.message(b'X', b"").await;
    assert_eq!(raw.answer().await, None);
}

async fn greeting(port: u16) {
    let mut raw = Raw::connect(port).await;
    // SSLRequest: no.
    raw.send(&[0, 0, 0, 8, 4, 210, 22, 47]).await;
    assert_eq!(raw.bytes(1).await, b"N");
    raw.send(&Raw::startup(&[("user", "ann"), ("application_name", "it")])).await;
    let answers = raw.until(b'Z').await;
    assert_eq!(answers.first().map(|(kind, _)| *kind), Some(b'R'));
    assert_eq!(answers.last(), Some(&(b'Z', b"I".to_vec())));
    let said = |name: &str| {
        let prefix = cstr(name);
        let found = answers.iter().find(|(kind, body)| *kind == b'S' && body.starts_with(&prefix));
        let (_, body) = found.unwrap_or_else(|| panic!("{name} isn't reported"));
        String::from_utf8_lossy(&body[prefix.len()..body.len() - 1]).into_owned()
    };
    assert!(said("server_version").starts_with("15."), "{}", said("server_version"));
    for (name, value) in [
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("application_name", "it"),
        ("session_authorization", "ann"),
    ] {
        assert_eq!(said(name), value, "{name}");
    }
    assert!(!said("TimeZone").is_empty() && !said("is_superuser").is_empty());
}

async fn simple_queries(raw: &mut Raw) {
    raw.message(b'Q', &cstr("")).await;
    assert_eq!(kinds(&raw.until(b'Z').await), "IZ");
    raw.message(b'Q', &cstr(" ; ;")).await;
    assert_eq!(kinds(&raw.until(b'Z').await), "IZ");
    // Several statements; the first error ends the series.
    raw.message(b'Q', &cstr("INSERT INTO t VALUES (1, 'a'), (2, 'b')")).await;
    assert_eq!(tags(&raw.until(b'Z').await), ["INSERT 0 2"]);
    let sql = "SELECT v FROM t ORDER BY k; SELECT 1/0; INSERT INTO t VALUES (3, 'c')";
    raw.message(b'Q', &cstr(sql)).await;
    let answers = raw.until(b'Z').await;
    assert_eq!(values(&answers), ["a", "b"]);
    assert_eq!(tags(&answers), ["SELECT 2"]);
    assert_eq!(codes(&answers), ["22012"]);
    raw.message(b'Q', &cstr("SELECT count(*) FROM t; UPDATE t SET v = v; DELETE FROM t")).await;
    let answers = raw.until(b'Z').await;
    assert_eq!(values(&answers), ["2"]);
    assert_eq!(tags(&answers), ["SELECT 1", "UPDATE 2", "DELETE 2"]);
    // A syntax error anywhere: nothing runs.
    raw.message(b'Q', &cstr("INSERT INTO t VALUES (1, 'a'); SELEC")).await;
    assert_eq!(kinds(&raw.until(b'Z').await), "EZ");
    raw.message(b'Q', &cstr("SELECT k FROM t")).await;
    assert_eq!(kinds(&raw.until(b'Z').await), "TCZ");
    // Latin-1 is not UTF-8.
    raw.message(b'Q', b"SELECT '\xe9'\0").await;
    assert_eq!(codes(&raw.until(b'Z').await), ["22021"]);
}

async fn portals(raw: &mut Raw) {
    raw.message(b'Q', &cstr("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 5) AS g(i)"))
        .await;
    assert_eq!(tags(&raw.until(b'Z').await), ["INSERT 0 5"]);
    raw.message(b'P', &parse("s", "SELECT k FROM t WHERE k <> $1 ORDER BY k")).await;
    raw.message(b'D', &[&b"S"[..], &cstr("s")].concat()).await;
    raw.message(b'B', &bind("p", "s", &["3"])).await;
    raw.message(b'D', &[&b"P"[..], &cstr("p")].concat()).await;
    for limit in [3, 1, 0] {
        raw.message(b'E', &execute("p", limit)).await;
    }
    raw.message(b'H', b"").await;
    let mut answers = raw.until(b'C').await;
    raw.message(b'E', &execute("p", 0)).await;
    raw.message(b'S', b"").await;
    answers.extend(raw.until(b'Z').await);
    // Exactly four rows are left after three and one: whether that was all is only seen by asking.
    assert_eq!(kinds(&answers), "1tT2TDDDsDsCCZ");
    assert_eq!(values(&answers), ["1", "2", "4", "5"]);
    assert_eq!(tags(&answers), ["SELECT 0", "SELECT 0"]);
    // Outside of a transaction block a portal ends at Sync; the statement doesn't.
    raw.message(b'E', &execute("p", 0)).await;
    raw.message(b'B', &bind("", "s", &["1"])).await;
    raw.message(b'S', b"").await;
    assert_eq!(codes(&raw.until(b'Z').await), ["34000"]);
    raw.message(b'B', &bind("", "s", &["1"])).await;
    raw.message(b'E', &execute("", 0)).await;
    raw.message(b'S', b"").await;
    let answers = raw.until(b'Z').await;
    assert_eq!(values(&answers), ["2", "3", "4", "5"]);
    // A write runs once.
    raw.message(b'P', &parse("", "DELETE FROM t WHERE k = 5")).await;
    raw.message(b'B', &bind("", "", &[])).await;
    raw.message(b'E', &execute("", 0)).await;
    raw.message(b'E', &execute("", 0)).await;
    raw.message(b'S', b"").await;
    let answers = raw.until(b'Z').await;
    assert_eq!((kinds(&answers).as_str(), codes(&answers)), ("12CEZ", vec!["55000".to_owned()]));
}

async fn errors_skip_to_sync(raw: &mut Raw) {
    raw.message(b'P', &parse("", "SELECT nothing FROM t")).await;
    raw.message(b'B', &bind("", "", &[])).await;
    raw.message(b'Q', &cstr("DELETE FROM t")).await;
    raw.message(b'E', &execute("", 0)).await;
    raw.message(b'S', b"").await;
    let answers = raw.until(b'Z').await;
    assert_eq!((kinds(&answers).as_str(), codes(&answers)), ("EZ", vec!["42703".to_owned()]));
    raw.message(b'Q', &cstr("SELECT count(*) FROM t WHERE k < 5")).await;
    assert_eq!(values(&raw.until(b'Z').await), ["4"]);
    // Too few parameters, and a value that doesn't fit its type.
    for (parameters, code) in [(&[][..], "08P01"), (&["x"], "22P02"), (&["99999999999"], "22003")] {
        raw.message(b'P', &parse("", "SELECT k FROM t WHERE k = $1")).await;
        raw.message(b'B', &bind("", "", parameters)).await;
        raw.message(b'S', b"").await;
        assert_eq!(codes(&raw.until(b'Z').await), [code], "{parameters:?}");
    }
}

async fn names(raw: &mut Raw) {
    for (messages, code) in [
        (vec![(b'P', parse("s", "SELECT 1"))], "42P05"),
        (vec![(b'P', parse("", "SELECT 1; SELECT 2"))], "42601"),
        (vec![(b'B', bind("", "nobody", &[]))], "26000"),
        (vec![(b'D', [&b"P"[..], &cstr("nobody")].concat())], "34000"),
        (vec![(b'B', bind("p", "s", &["1"])), (b'B', bind("p", "s", &["1"]))], "42P03"),
    ] {
        for (kind, body) in &messages {
            raw.message(*kind, body).await;
        }
        raw.message(b'S', b"").await;
        assert_eq!(codes(&raw.until(b'Z').await), [code]);
    }
    // Closing what isn't there is no error; a closed name is free again.
    raw.message(b'C', &[&b"S"[..], &cstr("nobody")].concat()).await;
    raw.message(b'C', &[&b"S"[..], &cstr("s")].concat()).await;
    raw.message(b'P', &parse("s", "")).await;
    raw.message(b'B', &bind("", "s", &[])).await;
    raw.message(b'D', &[&b"P"[..], &cstr("")].concat()).await;
    raw.message(b'E', &execute("", 0)).await;
    raw.message(b'S', b"").await;
    assert_eq!(kinds(&raw.until(b'Z').await), "3312nIZ");
}

async fn what_else_there_is(raw: &mut Raw) {
    // COPY's messages outside of a COPY mean nothing.
    raw.message(b'd', b"1\t2\n").await;
    raw.message(b'c', b"").await;
    raw.message(b'Q', &cstr("SHOW server_encoding")).await;
    let answers = raw.until(b'Z').await;
    assert_eq!(
        (values(&answers), tags(&answers)),
        (vec!["UTF8".to_owned()], vec!["SHOW".to_owned()])
    );
    raw.message(b'Q', &cstr("SET application_name = 'renamed'")).await;
    let answers = raw.until(b'Z').await;
    assert_eq!(kinds(&answers), "CSZ");
    assert_eq!(answers[1].1, [cstr("application_name"), cstr("renamed")].concat());
    // PostgreSQL would look for the function.
    raw.message(b'F', &[0; 10]).await;
    assert_eq!(codes(&raw.until(b'Z').await), ["0A000"]);
}
