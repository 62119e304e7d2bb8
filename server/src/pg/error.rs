//! What a client is told when something goes wrong.
//!
//! A [`SqlError`] by itself ends the statement; as a [`Fatal`] it ends the session. A
//! [`Violation`] of the protocol is the reason for most of the latter.

use bytes::BytesMut;
use meridian_sql::{Notice, SqlError, SqlState};
use pgwire::messages::Message as _;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};

/// How a client broke the protocol. What follows in its stream can't be trusted any more, so the
/// connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A message that makes no sense.
    Malformed(&'static str),
    /// A message longer than it may be.
    TooLong {
        /// The length that it announces.
        length: usize,
        /// The longest that it may be.
        limit: usize,
    },
    /// A message of a kind that there isn't.
    UnknownMessage(u8),
    /// Text that isn't UTF-8, from where it goes wrong.
    NotUtf8(Vec<u8>),
}

impl Violation {
    /// A message that makes no sense.
    pub const fn malformed(what: &'static str) -> Self {
        Self::Malformed(what)
    }

    /// A message that ends too early.
    pub const fn short() -> Self {
        Self::Malformed("insufficient data left in message")
    }
}

impl From<Violation> for SqlError {
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::Malformed(what) => Self::new(SqlState::PROTOCOL_VIOLATION, what),
            Violation::UnknownMessage(kind) => Self::new(
                SqlState::PROTOCOL_VIOLATION,
                format!("invalid frontend message type {kind}"),
            ),
            Violation::NotUtf8(bytes) => bad_text(&bytes),
            Violation::TooLong { length, limit } => Self::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("a message of {length} bytes is longer than the {limit} bytes allowed"),
            )
            .hint("Send the rows in several statements."),
        }
    }
}

/// PostgreSQL's words for text in the wrong encoding.
pub fn bad_text(bytes: &[u8]) -> SqlError {
    let shown: Vec<String> = bytes.iter().map(|b| format!("0x{b:02x}")).collect();
    SqlError::new(
        SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" ")),
    )
}

/// Why a session ends.
#[derive(Debug)]
pub enum End {
    /// The client said good bye or is gone; there is nobody to tell.
    Gone,
    /// The last thing that the client hears.
    Fatal(SqlError),
}

impl End {
    /// An end with this reason.
    pub fn fatal(state: SqlState, message: impl Into<String>) -> Self {
        Self::Fatal(SqlError::new(state, message))
    }
}

impl From<Violation> for End {
    fn from(violation: Violation) -> Self {
        Self::Fatal(violation.into())
    }
}

/// Whether a session can go on after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It can.
    Error,
    /// It ends.
    Fatal,
}

/// Appends an error.
pub fn encode_error(severity: Severity, error: &SqlError, output: &mut BytesMut) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    let position = error.position.map(|position| position.to_string());
    let mut fields = fields(severity, error.sqlstate, &error.message);
    for (code, value) in [
        (b'D', error.detail.as_ref()),
        (b'H', error.hint.as_ref()),
        (b'P', position.as_ref()),
        (b'W', error.context.as_ref()),
        (b's', error.schema.as_ref()),
        (b't', error.table.as_ref()),
        (b'c', error.column.as_ref()),
        (b'n', error.constraint.as_ref()),
    ] {
        fields.extend(value.map(|value| (code, clean(value))));
    }
    // The only failure is a length beyond 2 GiB, and messages that long aren't made.
    let _ = ErrorResponse::new(fields).encode(output);
}

/// Appends a notice.
pub fn encode_notice(notice: &Notice, output: &mut BytesMut) {
    let mut fields = fields(notice.severity, notice.sqlstate, &notice.message);
    fields.extend(notice.detail.as_ref().map(|detail| (b'D', clean(detail))));
    let _ = NoticeResponse::new(fields).encode(output);
}

/// The fields that every error and notice has. The severity comes twice: the first may be
/// translated, the second never is.
fn fields(severity: &str, state: SqlState, message: &str) -> Vec<(u8, String)> {
    vec![
        (b'S', severity.to_owned()),
        (b'V', severity.to_owned()),
        (b'C', state.code().to_owned()),
        (b'M', clean(message)),
    ]
}

/// A zero byte would end the field; a message may quote one.
fn clean(value: &str) -> String {
    value.replace('\0', "\\0")
}
