//! A client that says exactly what a test wants it to say.

use meridian_truetime::EnvironmentExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PATIENCE, real_time};

/// A connection, byte by byte.
pub struct Raw(TcpStream);

/// A message of the server: its kind and what it carries.
pub type Answer = (u8, Vec<u8>);

/// A text as the protocol writes it.
pub fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// A message of a session.
pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
    [&[kind][..], &length, body].concat()
}

impl Raw {
    /// A connection on which nothing was said.
    pub async fn connect(port: u16) -> Self {
        Self(TcpStream::connect(("127.0.0.1", port)).await.expect("the port is open"))
    }

    /// A session, and its process id and secret.
    pub async fn session(port: u16) -> (Self, [u8; 8]) {
        let mut raw = Self::connect(port).await;
        raw.send(&Self::startup(&[("user", "raw"), ("database", "meridian")])).await;
        let mut key = None;
        for (kind, body) in raw.until(b'Z').await {
            match kind {
                b'K' => key = body.try_into().ok(),
                b'E' => panic!("no session: {}", String::from_utf8_lossy(&body)),
                _ => {}
            }
        }
        (raw, key.expect("a key"))
    }

    /// A startup packet of protocol 3.0.
    pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut body = vec![0, 3, 0, 0];
        for (name, value) in parameters {
            body.extend([cstr(name), cstr(value)].concat());
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [&length[..], &body].concat()
    }

    /// Sends bytes as they are. That the server has hung up is seen when reading.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// Sends a message of a session.
    pub async fn message(&mut self, kind: u8, body: &[u8]) {
        self.send(&frame(kind, body)).await;
    }

    /// The next `count` bytes, or what comes before the end of the connection.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = (&mut self.0).take(count as u64).read_to_end(&mut bytes).await;
        let _ = read;
        bytes
    }

    /// The next message; `None` at the end of the connection.
    pub async fn answer(&mut self) -> Option<Answer> {
        let read = async {
            let kind = self.0.read_u8().await.ok()?;
            let length = usize::try_from(self.0.read_u32().await.ok()?).ok()?;
            let mut body = vec![0; length - 4];
            self.0.read_exact(&mut body).await.ok()?;
            Some((kind, body))
        };
        real_time().timeout(PATIENCE, read).await.expect("the server answers or hangs up")
    }

    /// The messages up to and with one of this kind, or to the end of the connection.
    pub async fn until(&mut self, last: u8) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(answer) = self.answer().await {
            let done = answer.0 == last;
            answers.push(answer);
            if done {
                break;
            }
        }
        answers
    }

    /// The SQLSTATE of the last error before the server hangs up, if there was one.
    pub async fn last_word(&mut self) -> Option<String> {
        let answers = self.until(0).await;
        answers.iter().rev().find(|(kind, _)| *kind == b'E').and_then(|(_, body)| field(body, b'C'))
    }
}

/// A field of an error: `C` is the SQLSTATE, `M` the message.
pub fn field(error: &[u8], name: u8) -> Option<String> {
    let mut fields = error.split(|byte| *byte == 0);
    let found = fields.find(|field| field.first() == Some(&name))?;
    Some(String::from_utf8_lossy(&found[1..]).into_owned())
}

/// The kinds of messages, as a word: `T`, `D`, `C`, `Z` for a query.
pub fn kinds(answers: &[Answer]) -> String {
    answers.iter().map(|(kind, _)| char::from(*kind)).collect()
}
