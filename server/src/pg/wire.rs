//! A client's connection as two buffers, with an eye on everything that may interrupt a wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use meridian_sql::{SqlError, SqlState};
use meridian_truetime::{Env, EnvironmentExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::cancel::Cancel;
use super::error::{End, Severity, Violation, encode_error};

/// Output is sent on when it is this long.
const FLUSH_AT: usize = 32 * 1024;
/// The least room for what the client sends.
const READ_AT_ONCE: usize = 8 * 1024;
/// How far the server reads ahead while a statement runs.
const READ_AHEAD: usize = 64 * 1024;
/// How much of what a client still sends is read after the server's last word, so that the client
/// can read that word: closing on unread bytes resets the connection.
const LINGER: (usize, Duration) = (64 << 20, Duration::from_secs(2));

/// A connection.
pub struct Wire<R, W> {
    reader: R,
    writer: W,
    /// What the client has sent and nobody has looked at.
    pub input: BytesMut,
    /// What the client is still to be sent.
    pub output: BytesMut,
    env: Env,
    /// How long a client may take no byte of its output.
    stall: Duration,
    shutdown: watch::Receiver<bool>,
}

/// Why a wait ended without its result.
#[derive(Debug)]
pub enum Interrupt {
    /// Another connection asked for it.
    Canceled,
    /// The connection ends.
    End(End),
}

impl<R, W> Wire<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    /// A connection over these two halves.
    pub fn new(
        reader: R,
        writer: W,
        env: Env,
        stall: Duration,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { reader, writer, input, output, env, stall, shutdown }
    }

    /// The timers that it goes by.
    pub fn env(&self) -> Env {
        Arc::clone(&self.env)
    }

    /// Splits the next message off the input, waiting for it as long as it takes.
    pub async fn receive<M>(
        &mut self,
        mut decode: impl FnMut(&mut BytesMut) -> Result<Option<M>, Violation>,
    ) -> Result<M, End> {
        loop {
            if let Some(message) = decode(&mut self.input)? {
                return Ok(message);
            }
            // The memory of a long message isn't kept for the next one.
            if self.input.is_empty() && self.input.capacity() > READ_AHEAD {
                self.input = BytesMut::new();
            }
            self.input.reserve(READ_AT_ONCE);
            tokio::select! {
                biased;
                () = shut_down(&mut self.shutdown) => return Err(going_down()),
                read = self.reader.read_buf(&mut self.input) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(End::Gone),
                },
            }
        }
    }

    /// `work`'s result, unless a cancel request comes, the client vanishes or the server stops
    /// first. Then `work` is dropped where it stands.
    pub async fn run<T>(
        &mut self,
        cancel: &Arc<Cancel>,
        work: impl Future<Output = T>,
    ) -> Result<T, Interrupt> {
        let Self { reader, input, shutdown, .. } = self;
        tokio::select! {
            // In this order, so that work which is always ready can be interrupted too.
            biased;
            () = cancel.requested() => Err(Interrupt::Canceled),
            () = shut_down(shutdown) => Err(Interrupt::End(going_down())),
            result = work => Ok(result),
            () = vanished(reader, input) => Err(Interrupt::End(End::Gone)),
        }
    }

    /// Sends the output if there is enough of it.
    pub async fn flush_if_long(&mut self) -> Result<(), End> {
        if self.output.len() < FLUSH_AT { Ok(()) } else { self.flush().await }
    }

    /// Sends the output. A client that takes none of it for too long is given up.
    pub async fn flush(&mut self) -> Result<(), End> {
        while self.output.has_remaining() {
            let write = self.writer.write_buf(&mut self.output);
            match self.env.timeout(self.stall, write).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) | Err(_) => return Err(End::Gone),
            }
        }
        match self.env.timeout(self.stall, self.writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(End::Gone),
        }
    }

    /// Ends the connection, with a last word if there is one.
    pub async fn close(mut self, end: End) {
        if let End::Fatal(error) = end {
            encode_error(Severity::Fatal, &error, &mut self.output);
            if self.flush().await.is_err() {
                return;
            }
        }
        let Self { mut reader, mut writer, env, .. } = self;
        let linger = async {
            if writer.shutdown().await.is_err() {
                return;
            }
            let mut scrap = vec![0; 8 * 1024];
            let mut left = LINGER.0;
            while let Ok(read @ 1..) = reader.read(&mut scrap).await {
                left = left.saturating_sub(read);
                if left == 0 {
                    return;
                }
            }
        };
        let _ = env.timeout(LINGER.1, linger).await;
    }
}

/// Completes when the client has closed its side; takes in what it sends until then.
async fn vanished<R: AsyncRead + Unpin>(reader: &mut R, input: &mut BytesMut) {
    while input.len() < READ_AHEAD {
        input.reserve(READ_AT_ONCE);
        match reader.read_buf(input).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
    std::future::pending::<()>().await;
}

/// Completes when the server stops.
async fn shut_down(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stopping| *stopping).await.is_err() {
        // Whoever could say so is gone without saying so.
        std::future::pending::<()>().await;
    }
}

/// PostgreSQL's words for it.
fn going_down() -> End {
    End::Fatal(SqlError::new(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    ))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use futures::FutureExt;
    use meridian_truetime::{CostModel, World};
    use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

    use super::super::cancel::Sessions;
    use super::*;

    const STALL: Duration = Duration::from_secs(10);

    struct Setting {
        wire: Wire<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
        client: DuplexStream,
        env: Env,
        stop: watch::Sender<bool>,
    }

    /// A connection that buffers so many bytes either way, in virtual time.
    fn with_wire<F: Future<Output = ()>>(buffer: usize, scenario: impl FnOnce(Setting) -> F) {
        World::run_virtual(1, CostModel::default(), |world| {
            let env: Env = world.node(1);
            let (client, server) = tokio::io::duplex(buffer);
            let (reader, writer) = tokio::io::split(server);
            let (stop, stopping) = watch::channel(false);
            let wire = Wire::new(reader, writer, Arc::clone(&env), STALL, stopping);
            scenario(Setting { wire, client, env, stop })
        });
    }

    #[test]
    fn a_client_that_reads_slowly_is_served_and_one_that_stops_is_given_up() {
        with_wire(16, |mut it| async move {
            it.wire.output.put_bytes(b'x', 100);
            let mut received = vec![0; 100];
            let slow = async {
                for chunk in received.chunks_mut(10) {
                    it.env.sleep(STALL / 2).await;
                    it.client.read_exact(chunk).await.expect("sent");
                }
            };
            let (flushed, ()) = futures::join!(it.wire.flush(), slow);
            assert!(flushed.is_ok());
            assert_eq!(received, [b'x'; 100]);

            it.wire.output.put_bytes(b'x', 100);
            let start = it.env.moment();
            assert!(matches!(it.wire.flush().await, Err(End::Gone)));
            assert_eq!(it.env.moment().since(start), STALL);
        });
    }

    #[test]
    fn waits_are_interrupted_by_a_cancellation_and_by_the_end_of_either_side() {
        with_wire(16, |mut it| async move {
            let sessions = Arc::new(Sessions::default());
            let session = sessions.enter(1);
            let never = std::future::pending::<()>;
            assert!(matches!(it.wire.run(&session.cancel, async { 5 }).await, Ok(5)));
            sessions.cancel(session.pid, 1);
            let canceled = it.wire.run(&session.cancel, never()).await;
            assert!(matches!(canceled, Err(Interrupt::Canceled)));
            // What is always ready can be interrupted too.
            sessions.cancel(session.pid, 1);
            let canceled = it.wire.run(&session.cancel, async { 5 }).await;
            assert!(matches!(canceled, Err(Interrupt::Canceled)));
            // What the client sends meanwhile isn't lost.
            it.client.write_all(b"more").await.expect("room");
            let waited = it.wire.run(&session.cancel, never()).now_or_never();
            assert!(waited.is_none());
            assert_eq!(&it.wire.input[..], b"more");
            it.stop.send_replace(true);
            let stopped = it.wire.run(&session.cancel, never()).await;
            assert!(matches!(stopped, Err(Interrupt::End(End::Fatal(_)))));
            it.stop.send_replace(false);
            drop(it.client);
            let gone = it.wire.run(&session.cancel, never()).await;
            assert!(matches!(gone, Err(Interrupt::End(End::Gone))));
        });
    }

    #[test]
    fn the_last_word_is_read_by_a_client_that_is_still_sending() {
        with_wire(64, |mut it| async move {
            let fatal = End::Fatal(SqlError::new(SqlState::PROTOCOL_VIOLATION, "no"));
            let talk = async {
                it.client.write_all(&[0; 100]).await.expect("taken");
                let mut heard = Vec::new();
                it.client.read_to_end(&mut heard).await.expect("said");
                heard
            };
            let (heard, ()) = futures::join!(talk, it.wire.close(fatal));
            assert!(heard.starts_with(b"E") && heard.ends_with(b"C08P01\0Mno\0\0"), "{heard:?}");
        });
    }
}
