//! Clients that break the protocol, by mistake or on purpose. Each gets a clear error or a closed
//! connection, and a session beside them doesn't notice.

use std::time::Duration;

use meridian_truetime::EnvironmentExt;

use meridian_tests::support::{Raw, Server, cstr, eventually, field, frame, kinds, real_time};

/// A statement that runs until it is stopped.
const FOREVER: &str = "SELECT count(*) FROM generate_series(1, 100000) AS a(i), \
                       generate_series(1, 100000) AS b(j) WHERE (i * j) % 7 = 8";

#[tokio::test(flavor = "multi_thread")]
async fn one_client_breaks_the_protocol_and_another_works_on() {
    let server = Server::local().await;
    let client = server.connect(1).await;
    client.batch_execute("CREATE TABLE t (k integer PRIMARY KEY)").await.expect("a table");
    let mut key = 0;
    let mut still_works = async |after: &str| {
        key += 1;
        let insert = client.execute("INSERT INTO t VALUES ($1)", &[&key]).await;
        assert_eq!(insert.unwrap_or_else(|e| panic!("after {after}: {e:?}")), 1);
    };

    for (what, bytes, state) in openings() {
        let mut raw = Raw::connect(server.port).await;
        raw.send(&bytes).await;
        assert_eq!(raw.last_word().await.as_deref(), Some(state), "{what}");
        still_works(what).await;
    }
    for (what, bytes, state) in messages() {
        let (mut raw, _) = Raw::session(server.port).await;
        raw.send(&bytes).await;
        assert_eq!(raw.last_word().await.as_deref(), Some(state), "{what}");
        still_works(what).await;
    }
    // Cut off in the middle of a packet, of a message, of a series of them.
    for bytes in [&b""[..], b"\0\0", &Raw::startup(&[("user", "x")])[..9]] {
        let mut raw = Raw::connect(server.port).await;
        raw.send(bytes).await;
        drop(raw);
        still_works("a startup packet cut off").await;
    }
    for bytes in [&b"Q"[..], b"Q\0\0\0\x20SELECT", &frame(b'P', b"s\0SELECT 1\0\0\0")] {
        let (mut raw, _) = Raw::session(server.port).await;
        raw.send(bytes).await;
        drop(raw);
        still_works("a message cut off").await;
    }
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

type BadInput = (&'static str, Vec<u8>, &'static str);

fn openings() -> Vec<BadInput> {
    let nobody = Raw::startup(&[("database", "x")]);
    let mut old = Raw::startup(&[("user", "x")]);
    old[5] = 2;
    let mut two = [&[0, 0, 0, 8, 4, 210, 22, 47][..], &Raw::startup(&[("user", "x")])].concat();
    two.truncate(12);
    vec![
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "08P01"),
        ("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "08P01"),
        ("a startup packet of a gigabyte", b"\x3f\xff\xff\xff\0\x03\0\0".to_vec(), "08P01"),
        ("a startup packet just too long", 10_001_u32.to_be_bytes().to_vec(), "08P01"),
        ("a startup packet too short", vec![0, 0, 0, 4], "08P01"),
        ("a startup packet without an end", frame_of(&[0, 3, 0, 0, b'u', b's']), "08P01"),
        ("nobody", nobody, "28000"),
        ("protocol 2", old, "0A000"),
        ("bytes after a request for TLS", two, "08P01"),
        ("a short cancel request", frame_of(&[4, 210, 22, 46, 0, 0]), "08P01"),
    ]
}

fn messages() -> Vec<BadInput> {
    let query = |body: &[u8]| frame(b'Q', body);
    vec![
        ("a message of two gigabytes", b"Q\x7f\xff\xff\xff".to_vec(), "54000"),
        ("a message of negative length", b"Q\xff\xff\xff\xff".to_vec(), "54000"),
        ("a message shorter than its length", b"Q\0\0\0\x03".to_vec(), "08P01"),
        ("an unknown kind", frame(b'!', b""), "08P01"),
        ("a password that nobody asked for", frame(b'p', b"secret\0"), "08P01"),
        ("a query without an end", query(b"SELECT 1"), "08P01"),
        ("a query with something behind it", query(b"SELECT 1\0more\0"), "08P01"),
        ("a long Sync", frame(b'S', b"x"), "08P01"),
        ("a Describe of nothing known", frame(b'D', b"Xname\0"), "08P01"),
        ("a Bind that promises too much", frame(b'B', b"\0\0\0\0\xff\xff"), "08P01"),
        ("a Bind with a value too long", frame(b'B', b"\0\0\0\0\0\x01\0\0\x10\0ab\0\0"), "08P01"),
        ("a Parse cut off", frame(b'P', b"s\0SELECT 1\0\0\x02\0\0"), "08P01"),
    ]
}

fn frame_of(body: &[u8]) -> Vec<u8> {
    frame(0, body).split_off(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_needs_the_right_key() {
    let server = Server::local().await;
    let (mut raw, key) = Raw::session(server.port).await;
    let cancel = async |key: [u8; 8]| {
        let mut request = Raw::connect(server.port).await;
        request.send(&frame_of(&[&[4, 210, 22, 46][..], &key].concat())).await;
        // The server says nothing to it, right or wrong.
        assert_eq!(request.answer().await, None);
    };
    // While nothing runs, it means nothing.
    cancel(key).await;
    raw.message(b'Q', &cstr("SELECT 1")).await;
    assert_eq!(kinds(&raw.until(b'Z').await), "TDCZ");

    raw.message(b'Q', &cstr(FOREVER)).await;
    let mut wrong = key;
    wrong[7] ^= 1;
    cancel(wrong).await;
    let early = real_time().timeout(Duration::from_millis(300), raw.answer()).await;
    assert!(!matches!(early, Ok(Some((b'E' | b'Z', _)))), "a wrong key stopped it: {early:?}");
    cancel(key).await;
    let answers = raw.until(b'Z').await;
    let error = answers.iter().find(|(kind, _)| *kind == b'E').expect("an error");
    assert_eq!(field(&error.1, b'C').as_deref(), Some("57014"));
    raw.message(b'Q', &cstr("SELECT 1")).await;
    assert_eq!(kinds(&raw.until(b'Z').await), "TDCZ");

    // Another session of the same node needs none.
    let pid = i32::from_be_bytes([key[0], key[1], key[2], key[3]]);
    let (mut other, _) = Raw::session(server.port).await;
    raw.message(b'Q', &cstr(FOREVER)).await;
    let ended = async {
        let answers = raw.until(b'Z').await;
        answers.into_iter().find(|(kind, _)| *kind == b'E').expect("an error")
    };
    // It may not have begun yet.
    let cancels = async {
        loop {
            let sql = format!("SELECT pg_cancel_backend({pid}), pg_cancel_backend(-1)");
            other.message(b'Q', &cstr(&sql)).await;
            let answers = other.until(b'Z').await;
            let row = answers.iter().find(|(kind, _)| *kind == b'D').expect("a row");
            assert_eq!(row.1, [&[0, 2, 0, 0, 0, 1][..], b"t", &[0, 0, 0, 1], b"f"].concat());
            real_time().sleep(Duration::from_millis(50)).await;
        }
    };
    match futures::future::select(std::pin::pin!(ended), std::pin::pin!(cancels)).await {
        futures::future::Either::Left((error, _)) => {
            assert_eq!(field(&error.1, b'C').as_deref(), Some("57014"));
        }
        futures::future::Either::Right(((), _)) => unreachable!("it goes on"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_frees_what_it_had() {
    let server = Server::start(&["--topology", "local", "--epsilon", "0ms", "--nodes", "1"]).await;
    // Far more than may be connected at a time, one after the other, each in the middle of
    // something. Who comes later finds a place only if the earlier ones' places came free.
    for _ in 0..40 {
        let mut sessions = Vec::new();
        for _ in 0..20 {
            sessions.push(Raw::session(server.port).await.0);
        }
        for (number, session) in sessions.iter_mut().enumerate() {
            match number % 4 {
                0 => session.message(b'Q', &cstr("SELECT 1")).await,
                // Much output that nobody reads.
                1 => {
                    session.message(b'Q', &cstr("SELECT * FROM generate_series(1, 1000000)")).await;
                }
                2 => session.send(b"Q\0\x10\0\0SELECT").await,
                _ => {}
            }
        }
    }
    let mut last = Raw::session(server.port).await.0;
    last.message(b'Q', &cstr("SELECT 1")).await;
    assert_eq!(kinds(&last.until(b'Z').await), "TDCZ");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_connections_is_said_and_lifts() {
    let server = Server::start(&["--topology", "local", "--epsilon", "0ms", "--nodes", "1"]).await;
    let mut sessions = Vec::new();
    let refused = loop {
        let mut raw = Raw::connect(server.port).await;
        raw.send(&Raw::startup(&[("user", "many")])).await;
        let answers = raw.until(b'Z').await;
        if let Some((_, error)) = answers.iter().find(|(kind, _)| *kind == b'E') {
            break field(error, b'C');
        }
        sessions.push(raw);
        assert!(sessions.len() < 10_000, "there is no limit");
    };
    assert_eq!(refused.as_deref(), Some("53300"));
    drop(sessions);
    eventually("places come free", async || server.try_connect(1).await.map(|_| ())).await;
}
