//! From a fresh connection to a session: encryption refused, the client's wishes read, a session
//! made or the reason given why not.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use meridian_sql::{SqlError, SqlState};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::{End, Violation};
use super::frontend::Opening;
use super::wire::Wire;

/// The one version that is spoken, 3.0.
const PROTOCOL: i32 = 3 << 16;

/// What a client wants, once it has said so.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// A session.
    Session(Startup),
    /// To interrupt what another session runs.
    Cancel {
        /// The other session's process id.
        pid: i32,
        /// The other session's secret.
        secret: i32,
    },
}

/// The wishes of a client that starts a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// Who it says it is.
    pub user: String,
    /// The database it wants; the user's name if it doesn't say.
    pub database: String,
    /// Settings for the session.
    pub settings: BTreeMap<String, String>,
    /// Protocol extensions that it would like and that there aren't.
    unknown: Vec<String>,
    /// Whether it would like a newer protocol than there is.
    newer: bool,
}

/// Reads messages until the client asks for a session or a cancellation.
pub async fn negotiate<R, W>(wire: &mut Wire<R, W>) -> Result<Request, End>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let (mut asked_tls, mut asked_gss) = (false, false);
    loop {
        let asked = match wire.receive(Opening::decode).await? {
            Opening::Ssl => &mut asked_tls,
            Opening::GssEncryption => &mut asked_gss,
            Opening::Cancel { pid, secret } => return Ok(Request::Cancel { pid, secret }),
            Opening::Startup { version, parameters } => {
                return Startup::read(version, parameters)
                    .map(Request::Session)
                    .map_err(End::Fatal);
            }
        };
        if std::mem::replace(asked, true) {
            return Err(Violation::malformed("encryption was requested twice").into());
        }
        // Whoever sends more before the answer isn't waiting for it: perhaps somebody in between,
        // whose bytes would later pass for the client's (CVE-2021-23214).
        if !wire.input.is_empty() {
            return Err(Violation::malformed("received unencrypted data after SSL request").into());
        }
        wire.output.put_u8(b'N');
        wire.flush().await?;
    }
}

impl Startup {
    fn read(version: (u16, u16), parameters: Vec<(String, String)>) -> Result<Self, SqlError> {
        let (major, minor) = version;
        if major != 3 {
            return Err(SqlError::unsupported(format!(
                "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0"
            )));
        }
        let mut startup = Self { newer: minor > 0, ..Self::default() };
        for (name, value) in parameters {
            match name.as_str() {
                "user" => startup.user = value,
                "database" => startup.database = value,
                "options" => startup.settings.extend(command_line_options(&value)?),
                "replication" => refuse_replication(&value)?,
                _ if name.starts_with("_pq_.") => startup.unknown.push(name),
                // What a client asks for in the C locale: bytes as they are, and those are UTF-8.
                "client_encoding" if value.eq_ignore_ascii_case("SQL_ASCII") => {}
                _ => startup.settings.extend([(name, value)]),
            }
        }
        if startup.user.is_empty() {
            return Err(SqlError::new(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "no PostgreSQL user name specified in startup packet",
            ));
        }
        if startup.database.is_empty() {
            startup.database.clone_from(&startup.user);
        }
        Ok(startup)
    }

    /// Appends the answer to a client that gets its session, up to but without `ReadyForQuery`.
    pub fn accept(
        self,
        status: Vec<(String, String)>,
        (pid, secret): (i32, i32),
        output: &mut BytesMut,
    ) {
        let mut put = |message: PgWireBackendMessage| {
            // Lengths are checked here; the names and values are short.
            if let Err(error) = message.encode(output) {
                tracing::warn!(%error, "left out of the greeting");
            }
        };
        if self.newer || !self.unknown.is_empty() {
            let offer = NegotiateProtocolVersion::new(PROTOCOL, self.unknown);
            put(PgWireBackendMessage::NegotiateProtocolVersion(offer));
        }
        put(PgWireBackendMessage::Authentication(Authentication::Ok));
        for (name, value) in status {
            put(PgWireBackendMessage::ParameterStatus(ParameterStatus::new(name, value)));
        }
        let key = BackendKeyData::new(pid, SecretKey::I32(secret));
        put(PgWireBackendMessage::BackendKeyData(key));
    }
}

fn refuse_replication(value: &str) -> Result<(), SqlError> {
    match value {
        "" | "false" | "off" | "no" | "0" => Ok(()),
        _ => Err(SqlError::unsupported("replication connections are not supported")),
    }
}

/// The settings in the startup parameter `options`: `-c name=value` and `--name=value`, with
/// backslashes before blanks that belong to a value.
fn command_line_options(options: &str) -> Result<Vec<(String, String)>, SqlError> {
    let mut words = split_options(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next(),
            Some(rest) => Some(rest.to_owned()),
            None => word.strip_prefix("--").map(|long| {
                let (name, value) = long.split_once('=').unwrap_or((long, ""));
                format!("{}={value}", name.replace('-', "_"))
            }),
        };
        match setting.as_deref().and_then(|setting| setting.split_once('=')) {
            Some((name, value)) => settings.push((name.to_owned(), value.to_owned())),
            None => {
                return Err(SqlError::new(
                    SqlState::SYNTAX_ERROR,
                    format!("invalid command-line argument for server process: {word}"),
                )
                .hint("Options are given as \"-c name=value\"."));
            }
        }
    }
    Ok(settings)
}

fn split_options(options: &str) -> Vec<String> {
    let (mut words, mut word, mut inside) = (Vec::new(), String::new(), false);
    let mut rest = options.chars();
    while let Some(c) = rest.next() {
        if c.is_ascii_whitespace() {
            if std::mem::take(&mut inside) {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        inside = true;
        word.extend(if c == '\\' { rest.next() } else { Some(c) });
    }
    if inside {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use meridian_truetime::{CostModel, Env, World};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::watch;

    use super::*;

    /// What becomes of a client that sends these pieces, each after one byte of answer.
    fn negotiated(pieces: &[&[u8]]) -> Result<Request, String> {
        World::run_virtual(1, CostModel::default(), |world| async move {
            let env: Env = world.node(1);
            let (mut client, server) = tokio::io::duplex(1024);
            let (reader, writer) = tokio::io::split(server);
            let (_stop, stopping) = watch::channel(false);
            let stall = Duration::from_secs(1);
            let mut wire = Wire::new(reader, writer, Arc::clone(&env), stall, stopping);
            let talk = async {
                for (number, piece) in pieces.iter().enumerate() {
                    if number > 0 && !matches!(client.read_u8().await, Ok(b'N')) {
                        return;
                    }
                    client.write_all(piece).await.expect("room");
                }
                client.shutdown().await.expect("open");
            };
            let (outcome, ()) = futures::join!(negotiate(&mut wire), talk);
            outcome.map_err(|end| match end {
                End::Gone => "gone".to_owned(),
                End::Fatal(error) => format!("{} {}", error.sqlstate, error.message),
            })
        })
    }

    const SSL: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
    const GSS: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];
    const START: &[u8] = b"\0\0\0\x10\0\x03\0\0user\0u\0\0";

    #[test]
    fn encryption_is_declined_and_the_session_goes_on_without() {
        for pieces in [&[START][..], &[SSL, START], &[SSL, GSS, START], &[GSS, SSL, START]] {
            let request = negotiated(pieces).expect("a session");
            assert!(matches!(request, Request::Session(Startup { user, .. }) if user == "u"));
        }
        let cancel = &[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 7, 0, 0, 0, 9];
        let request = negotiated(&[SSL, cancel]).expect("a request");
        assert_eq!(request, Request::Cancel { pid: 7, secret: 9 });
    }

    #[test]
    fn what_was_sent_before_the_answer_is_not_taken_for_what_comes_after() {
        let injected = [SSL, START].concat();
        let refused = negotiated(&[&injected]).expect_err("refused");
        assert_eq!(refused, "08P01 received unencrypted data after SSL request");
        assert!(negotiated(&[SSL, SSL]).expect_err("refused").starts_with("08P01"));
        assert_eq!(negotiated(&[SSL, b"\0\0"]), Err("gone".to_owned()));
    }

    fn read(parameters: &[(&str, &str)]) -> Result<Startup, SqlError> {
        let owned = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Startup::read((3, 0), owned.collect())
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn settings_come_from_parameters_and_from_options() {
        let startup = read(&[
            ("user", "ann"),
            ("application_name", "psql"),
            ("options", r"-c statement_timeout=5s --search-path=a\ b  -cgeqo=off"),
        ])
        .expect("valid");
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("ann", "ann"));
        assert_eq!(
            startup.settings,
            BTreeMap::from([
                pair("application_name", "psql"),
                pair("statement_timeout", "5s"),
                pair("search_path", "a b"),
                pair("geqo", "off"),
            ])
        );
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_its_code() {
        let code = |result: Result<Startup, SqlError>| result.expect_err("refused").sqlstate.code();
        assert_eq!(code(read(&[("database", "d")])), "28000");
        assert_eq!(code(read(&[("user", "u"), ("replication", "database")])), "0A000");
        assert_eq!(code(read(&[("user", "u"), ("options", "-x")])), "42601");
        assert_eq!(code(Startup::read((2, 0), Vec::new())), "0A000");
    }

    #[test]
    fn a_newer_protocol_is_talked_down() {
        let parameters = vec![pair("user", "u"), pair("_pq_.extra", "1")];
        let startup = Startup::read((3, 2), parameters).expect("valid");
        let mut output = BytesMut::new();
        startup.accept(vec![pair("a", "b")], (7, 9), &mut output);
        let expected = b"v\0\0\0\x17\0\x03\0\0\0\0\0\x01_pq_.extra\0\
            R\0\0\0\x08\0\0\0\0\
            S\0\0\0\x08a\0b\0\
            K\0\0\0\x0c\0\0\0\x07\0\0\0\x09";
        assert_eq!(&output[..], &expected[..]);
    }
}
