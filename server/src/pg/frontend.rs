//! The messages that a client sends, decoded from one complete frame.
//!
//! pgwire has decoders for these too, but they read from the connection's buffer: one whose frame
//! is shorter than its contents goes on into the next message, and one that is cut off panics.
//! Here a frame is split off first, and every read is checked against its end.

use bytes::{Buf, Bytes, BytesMut};

use super::error::Violation;

/// PostgreSQL's limit on what a client may send before it is known (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_FRAME: usize = 10_000;
/// PostgreSQL's limit on messages that have no reason to be long (`PQ_SMALL_MESSAGE_LIMIT`).
const MAX_SMALL_FRAME: usize = 10_000;

/// What a client may open a connection with.
#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    /// Asks for TLS.
    Ssl,
    /// Asks for GSSAPI encryption.
    GssEncryption,
    /// Asks to cancel what another connection runs.
    Cancel {
        /// The other connection's process id.
        pid: i32,
        /// The other connection's secret.
        secret: i32,
    },
    /// Starts a session.
    Startup {
        /// Major and minor version of the protocol.
        version: (u16, u16),
        /// Names and values, in the client's order.
        parameters: Vec<(String, String)>,
    },
}

impl Opening {
    /// Splits an opening message off `input`; `None` while it is incomplete.
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, Violation> {
        let Some(length) = peek_length(input, 0) else { return Ok(None) };
        if !(8..=MAX_STARTUP_FRAME).contains(&length) {
            return Err(Violation::malformed("invalid length of startup packet"));
        }
        if input.len() < length {
            return Ok(None);
        }
        let mut body = Body(input.split_to(length).freeze());
        body.0.advance(4);
        match (body.u16()?, body.u16()?) {
            (1234, 5678) if length == 16 => {
                Ok(Some(Self::Cancel { pid: body.i32()?, secret: body.i32()? }))
            }
            (1234, 5678) => Err(Violation::malformed("invalid length of cancel request packet")),
            (1234, 5679) => body.end().map(|()| Some(Self::Ssl)),
            (1234, 5680) => body.end().map(|()| Some(Self::GssEncryption)),
            version => Self::startup(version, body).map(Some),
        }
    }

    fn startup(version: (u16, u16), mut body: Body) -> Result<Self, Violation> {
        let mut parameters = Vec::new();
        // Another major version's packet may look different from here on.
        if version.0 == 3 {
            loop {
                let name = body.string()?;
                if name.is_empty() {
                    break;
                }
                parameters.push((name, body.string()?));
            }
            body.end()?;
        }
        Ok(Self::Startup { version, parameters })
    }
}

/// What a prepared statement and a portal have in common: a name each, empty for the unnamed one.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// A prepared statement.
    Statement(String),
    /// A portal: a statement with its parameters, ready to run.
    Portal(String),
}

/// What a client may send in a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Run these statements.
    Query(String),
    /// Prepare a statement.
    Parse {
        /// The statement's name.
        name: String,
        /// Its text.
        sql: String,
        /// The types that the client gives its parameters; 0 leaves one open.
        types: Vec<u32>,
    },
    /// Make a portal of a statement.
    Bind(Bind),
    /// Say what a statement takes and returns.
    Describe(Target),
    /// Run a portal.
    Execute {
        /// The portal's name.
        portal: String,
        /// The number of rows to return; 0 or less for all.
        limit: i32,
    },
    /// Forget a statement or portal.
    Close(Target),
    /// Send what is ready.
    Flush,
    /// End of a series of extended messages.
    Sync,
    /// Call a function by its object id.
    FunctionCall,
    /// Part of a COPY, of which there are none.
    Copy,
    /// Good bye.
    Terminate,
    /// A sound message with text that isn't UTF-8.
    NotUtf8 {
        /// Whether it was a [`Message::Query`].
        simple: bool,
        /// Where the text goes wrong.
        bytes: Vec<u8>,
    },
}

/// Makes a portal of a statement.
#[derive(Debug, PartialEq, Eq)]
pub struct Bind {
    /// The portal's name.
    pub portal: String,
    /// The statement's name.
    pub statement: String,
    /// None (all text), one for all, or one per parameter.
    pub parameter_formats: Vec<i16>,
    /// The parameters; `None` for NULL.
    pub parameters: Vec<Option<Bytes>>,
    /// None (all text), one for all, or one per column.
    pub result_formats: Vec<i16>,
}

/// Whether the client has sent a Sync already, with nothing before it that runs a statement.
pub fn sync_follows(mut input: &[u8]) -> bool {
    while let [kind, a, b, c, d, ..] = *input {
        match kind {
            b'S' => return true,
            // Close, Describe, Flush.
            b'C' | b'D' | b'H' => {}
            _ => return false,
        }
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        match input.get(length.saturating_add(1)..) {
            Some(rest) => input = rest,
            None => return false,
        }
    }
    false
}

impl Message {
    /// Splits a message off `input`; `None` while it is incomplete.
    ///
    /// The length is judged as soon as it is there, before the rest is waited for.
    pub fn decode(input: &mut BytesMut, longest: usize) -> Result<Option<Self>, Violation> {
        let (Some(&kind), Some(length)) = (input.first(), peek_length(input, 1)) else {
            // A wrong first byte is refused without waiting for four more.
            return match input.first() {
                Some(&kind) => limit_of(kind, longest).map(|_| None),
                None => Ok(None),
            };
        };
        let limit = limit_of(kind, longest)?;
        if length < 4 {
            return Err(Violation::malformed("invalid message length"));
        }
        if length > limit {
            return Err(Violation::TooLong { length, limit });
        }
        if input.len() < 1 + length {
            return Ok(None);
        }
        let mut frame = input.split_to(1 + length);
        frame.advance(5);
        match Self::decode_body(kind, Body(frame.freeze())) {
            Err(Violation::NotUtf8(bytes)) => {
                Ok(Some(Self::NotUtf8 { simple: kind == b'Q', bytes }))
            }
            decoded => decoded.map(Some),
        }
    }

    fn decode_body(kind: u8, mut body: Body) -> Result<Self, Violation> {
        let message = match kind {
            b'Q' => Self::Query(body.string()?),
            b'P' => {
                let (name, sql) = (body.string()?, body.string()?);
                let types = body.list(4, |b| b.i32().map(i32::cast_unsigned))?;
                Self::Parse { name, sql, types }
            }
            b'B' => Self::Bind(Bind {
                portal: body.string()?,
                statement: body.string()?,
                parameter_formats: body.list(2, Body::i16)?,
                parameters: body.list(4, Body::value)?,
                result_formats: body.list(2, Body::i16)?,
            }),
            b'D' => Self::Describe(body.target()?),
            b'C' => Self::Close(body.target()?),
            b'E' => Self::Execute { portal: body.string()?, limit: body.i32()? },
            b'H' => Self::Flush,
            b'S' => Self::Sync,
            b'X' => Self::Terminate,
            // What they carry is of no interest, as nothing of it is done.
            b'F' => return Ok(Self::FunctionCall),
            b'd' | b'c' | b'f' => return Ok(Self::Copy),
            other => return Err(Violation::UnknownMessage(other)),
        };
        body.end()?;
        Ok(message)
    }
}

/// The length that a message of this kind may have, its own four bytes included.
fn limit_of(kind: u8, longest: usize) -> Result<usize, Violation> {
    match kind {
        b'Q' | b'P' | b'B' | b'F' | b'd' => Ok(longest),
        b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => Ok(MAX_SMALL_FRAME.min(longest)),
        other => Err(Violation::UnknownMessage(other)),
    }
}

/// A frame's length field. One that is negative counts as longer than everything.
fn peek_length(input: &[u8], at: usize) -> Option<usize> {
    let field = input.get(at..at + 4)?.try_into().ok()?;
    Some(usize::try_from(u32::from_be_bytes(field)).unwrap_or(usize::MAX))
}

/// The rest of a frame.
struct Body(Bytes);

impl Body {
    fn u16(&mut self) -> Result<u16, Violation> {
        self.0.try_get_u16().map_err(|_| Violation::short())
    }

    fn i16(&mut self) -> Result<i16, Violation> {
        self.0.try_get_i16().map_err(|_| Violation::short())
    }

    fn i32(&mut self) -> Result<i32, Violation> {
        self.0.try_get_i32().map_err(|_| Violation::short())
    }

    fn string(&mut self) -> Result<String, Violation> {
        let length = self.0.iter().position(|&b| b == 0);
        let length = length.ok_or(Violation::malformed("invalid string in message"))?;
        let text = self.0.split_to(length);
        self.0.advance(1);
        String::from_utf8(text.into()).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Violation::NotUtf8(error.as_bytes().iter().skip(at).take(2).copied().collect())
        })
    }

    fn value(&mut self) -> Result<Option<Bytes>, Violation> {
        let length = self.i32()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| Violation::short())?;
        if length > self.0.len() {
            return Err(Violation::short());
        }
        Ok(Some(self.0.split_to(length)))
    }

    fn target(&mut self) -> Result<Target, Violation> {
        let kind = self.0.try_get_u8().map_err(|_| Violation::short())?;
        let name = self.string()?;
        match kind {
            b'S' => Ok(Target::Statement(name)),
            b'P' => Ok(Target::Portal(name)),
            _ => Err(Violation::malformed("invalid message subtype")),
        }
    }

    /// A counted list, each of whose items takes at least `least` bytes.
    fn list<T>(
        &mut self,
        least: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, Violation>,
    ) -> Result<Vec<T>, Violation> {
        let count = usize::from(self.u16()?);
        if count * least > self.0.len() {
            return Err(Violation::short());
        }
        (0..count).map(|_| item(self)).collect()
    }

    fn end(&self) -> Result<(), Violation> {
        if self.0.is_empty() { Ok(()) } else { Err(Violation::malformed("invalid message format")) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    const LONGEST: usize = 1 << 20;

    fn frame(kind: u8, body: &[u8]) -> BytesMut {
        let mut frame = BytesMut::new();
        frame.put_u8(kind);
        frame.put_u32(u32::try_from(body.len() + 4).expect("short"));
        frame.put_slice(body);
        frame
    }

    fn opening(code: (u16, u16), body: &[u8]) -> BytesMut {
        let mut frame = BytesMut::new();
        frame.put_u32(u32::try_from(body.len() + 8).expect("short"));
        frame.put_u16(code.0);
        frame.put_u16(code.1);
        frame.put_slice(body);
        frame
    }

    #[test]
    fn openings() {
        let decode = |mut input: BytesMut| Opening::decode(&mut input);
        assert_eq!(decode(opening((1234, 5679), b"")), Ok(Some(Opening::Ssl)));
        assert_eq!(decode(opening((1234, 5680), b"")), Ok(Some(Opening::GssEncryption)));
        assert_eq!(
            decode(opening((1234, 5678), &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff])),
            Ok(Some(Opening::Cancel { pid: 7, secret: -1 }))
        );
        assert_eq!(
            decode(opening((3, 0), b"user\0ann\0database\0\0\0")),
            Ok(Some(Opening::Startup {
                version: (3, 0),
                parameters: vec![
                    ("user".to_owned(), "ann".to_owned()),
                    ("database".to_owned(), String::new())
                ],
            }))
        );
        assert!(decode(opening((3, 0), b"user\0ann\0\0rest")).is_err());
        assert!(decode(opening((3, 0), b"user\0ann\0")).is_err());
        assert!(decode(opening((1234, 5678), b"\0\0\0\x01")).is_err());
        assert_eq!(decode(opening((3, 0), b"us").split_to(9)), Ok(None));
    }

    #[test]
    fn a_startup_packet_is_refused_by_its_length_alone() {
        for length in [0_u32, 7, 10_001, u32::MAX] {
            let mut input = BytesMut::from(&length.to_be_bytes()[..]);
            assert!(Opening::decode(&mut input).is_err(), "{length}");
        }
    }

    #[test]
    fn a_bind_is_read_whole_and_the_next_message_stays() {
        let body = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x03abc\xff\xff\xff\xff\0\0";
        let mut input = frame(b'B', body);
        input.put_slice(&frame(b'S', b""));
        assert_eq!(
            Message::decode(&mut input, LONGEST),
            Ok(Some(Message::Bind(Bind {
                portal: "p".to_owned(),
                statement: "s".to_owned(),
                parameter_formats: vec![1],
                parameters: vec![Some(Bytes::from_static(b"abc")), None],
                result_formats: vec![],
            })))
        );
        assert_eq!(Message::decode(&mut input, LONGEST), Ok(Some(Message::Sync)));
        assert_eq!(Message::decode(&mut input, LONGEST), Ok(None));
    }

    #[test]
    fn a_body_that_is_shorter_than_it_says_never_reaches_into_the_next_message() {
        // The string's end is missing; the next frame has a zero byte.
        let mut input = frame(b'Q', b"select 1");
        input.put_slice(&frame(b'S', b""));
        assert!(Message::decode(&mut input, LONGEST).is_err());
    }

    #[test]
    fn text_that_is_not_utf8_is_told_apart_from_a_broken_frame() {
        assert_eq!(
            Message::decode(&mut frame(b'Q', b"select '\xe9t\xe9'\0"), LONGEST),
            Ok(Some(Message::NotUtf8 { simple: true, bytes: b"\xe9t".to_vec() }))
        );
    }

    #[test]
    fn length_and_kind_are_judged_before_the_body_arrives() {
        let mut long = BytesMut::from(&b"Q\x7f\xff\xff\xff"[..]);
        assert_eq!(
            Message::decode(&mut long, LONGEST),
            Err(Violation::TooLong { length: 0x7fff_ffff, limit: LONGEST })
        );
        let mut small = BytesMut::from(&b"S\0\x01\0\0"[..]);
        assert!(Message::decode(&mut small, LONGEST).is_err());
        let mut unknown = BytesMut::from(&b"G"[..]);
        assert_eq!(Message::decode(&mut unknown, LONGEST), Err(Violation::UnknownMessage(b'G')));
    }

    proptest! {
        /// Whatever arrives is a message, an error or the beginning of one; nothing panics, and
        /// progress is made.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Message::decode(&mut input, LONGEST) {}
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Opening::decode(&mut input) {}
        }

        #[test]
        fn any_body_is_survived(
            kind in prop::sample::select(b"QPBDECHSXFdcf".to_vec()),
            body in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..40),
        ) {
            let mut input = frame(kind, &body);
            let _ = Message::decode(&mut input, LONGEST);
            prop_assert!(input.is_empty());
        }
    }
}
