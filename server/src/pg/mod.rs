//! The PostgreSQL front end: version 3.0 of the frontend/backend protocol
//! (PostgreSQL 15's manual, chapter 55), one session per connection.
//!
//! ```text
//!   client ──bytes──▶ Wire.input ──frontend::Message──▶ Connection ──▶ meridian_sql::Session
//!          ◀──bytes── Wire.output ◀──DataRow, ...────── Connection ◀── batches of Arrow arrays
//! ```
//!
//! **What of pgwire is used.** Its backend messages and their encoding. Not its connection loop
//! and handler traits: they hand a query to a handler and look at the socket again when it is
//! done, so that a client that vanishes isn't noticed while its statement runs; a handler's result
//! is a stream of finished rows, where this module writes values from the arrays into the output
//! buffer; and its timers are tokio's, where ours are the node's. Not its frontend decoders either:
//! see `frontend.rs`.
//!
//! **Memory.** What a connection holds is bounded: a message being received
//! ([`Limits::message`]), some read-ahead while a statement runs, a batch of rows, and an output
//! buffer that is sent on at 32 KiB. A client that doesn't read stops its own statement there,
//! and is given up when it has taken nothing for [`Limits::stall`].
//!
//! **Interruptions.** Every wait for the SQL layer ends early when a cancel request comes, the
//! client closes its connection or the server stops; the wait is dropped, and with it what the
//! statement holds. A canceled statement ends with 57014. A canceled commit may already be
//! replicated: PostgreSQL doesn't interrupt one, but here it can wait for a quorum that is gone, so it
//! is interrupted and the client told that the outcome is unknown (08007), never that it failed.
//!
//! **Transactions.** The statements of one simple query, and the extended messages up to a Sync, are
//! one transaction unless the client begins and ends others. Every error goes to the session too
//! ([`Session::fail`](meridian_sql::Session::fail)), for it fails the transaction that it occurs in.
//!
//! **Caveats.** There is no TLS and no password, so the command listens on the loopback address only.
//! Function calls and COPY are refused.

mod cancel;
mod connection;
mod error;
mod extended;
mod frontend;
mod rows;
mod startup;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use meridian_sql::{Backend, Engine, Session, SessionParameters, SqlState};
use meridian_truetime::{Env, EnvironmentExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use cancel::Sessions;
use connection::Connection;
use error::End;
use startup::{Request, Startup};
use wire::Wire;

/// What clients may take of a node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sessions at a time. As many connections again may be starting.
    pub sessions: usize,
    /// How long a connection may take to become a session.
    pub startup: Duration,
    /// How long a client may take no byte of its output.
    pub stall: Duration,
    /// The longest message of a session, in bytes.
    pub message: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 500,
            startup: Duration::from_secs(60),
            stall: Duration::from_secs(300),
            message: 64 << 20,
        }
    }
}

/// The engine of the node behind a port and the node's environment; `None` while it is stopped.
pub type NodeSource = Arc<dyn Fn() -> Option<(Arc<Engine>, Env)> + Send + Sync>;

/// One port at which clients are served.
#[derive(Clone)]
pub struct FrontEnd {
    env: Env,
    node: NodeSource,
    limits: Limits,
    sessions: Arc<Sessions>,
    /// One permit per session.
    places: Arc<Semaphore>,
    /// One permit per connection that isn't a session yet.
    doorway: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
}

impl FrontEnd {
    /// A front end that turns its clients away once `shutdown` says true. `env` outlives the
    /// node's; what runs in a session runs in the node's.
    #[must_use]
    pub fn new(
        env: Env,
        node: NodeSource,
        limits: Limits,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self {
            env,
            node,
            limits,
            sessions: Arc::default(),
            places: Arc::new(Semaphore::new(limits.sessions)),
            doorway: Arc::new(Semaphore::new(limits.sessions)),
            shutdown,
        }
    }

    /// Accepts clients until the server stops.
    pub async fn serve(self, listener: TcpListener) {
        let mut shutdown = self.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                _ = shutdown.wait_for(|stopping| *stopping) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) => self.admit(socket),
                Err(error) => {
                    // Out of file descriptors, most likely: some will come free.
                    tracing::warn!(%error, "a client could not be accepted");
                    self.env.sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(&self, socket: TcpStream) {
        // A flood of connections that never say anything is cut off without a word.
        let Ok(doorway) = Arc::clone(&self.doorway).try_acquire_owned() else { return };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let (reader, writer) = socket.into_split();
        let front_end = self.clone();
        self.env.spawn(async move { front_end.greet(reader, writer, doorway).await });
    }

    /// Takes a connection to its session.
    async fn greet<R, W>(self, reader: R, writer: W, doorway: OwnedSemaphorePermit)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let stall = self.limits.stall;
        let mut wire =
            Wire::new(reader, writer, Arc::clone(&self.env), stall, self.shutdown.clone());
        let negotiated = self.env.timeout(self.limits.startup, startup::negotiate(&mut wire)).await;
        let ended = match negotiated {
            Ok(Ok(Request::Session(wishes))) => match self.open(wishes, &mut wire) {
                Ok(opened) => {
                    drop(doorway);
                    self.start(wire, opened);
                    return;
                }
                Err(end) => end,
            },
            Ok(Ok(Request::Cancel { pid, secret })) => {
                self.sessions.cancel(pid, secret);
                End::Gone
            }
            Ok(Err(end)) => end,
            Err(_) => {
                End::fatal(SqlState::PROTOCOL_VIOLATION, "canceling authentication due to timeout")
            }
        };
        wire.close(ended).await;
    }

    /// Makes a session, and writes the greeting.
    fn open<R, W>(&self, wishes: Startup, wire: &mut Wire<R, W>) -> Result<Opened, End> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            End::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        })?;
        let (engine, env) = (self.node)().ok_or_else(|| {
            End::fatal(SqlState::CANNOT_CONNECT_NOW, "the node behind this port is stopped")
        })?;
        let secret = (env.random() >> 32) as u32;
        let registered = self.sessions.enter(secret.cast_signed());
        let sessions = Arc::clone(&self.sessions);
        let cancel = Arc::new(move |pid| sessions.cancel_any(pid));
        let parameters = SessionParameters {
            user: wishes.user.clone(),
            database: wishes.database.clone(),
            backend: Backend { pid: registered.pid, cancel },
            options: wishes.settings.clone(),
        };
        let session = engine.session(parameters).map_err(End::Fatal)?;
        wishes.accept(
            session.reported_parameters(),
            (registered.pid, registered.secret),
            &mut wire.output,
        );
        Ok(Opened { env, session, registered, place })
    }

    /// Runs a session on its node, with which it ends.
    fn start<R, W>(&self, wire: Wire<R, W>, opened: Opened)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let Opened { env, session, registered, place } = opened;
        let longest = self.limits.message;
        env.spawn(async move {
            let cancel = Arc::clone(&registered.cancel);
            Connection::new(wire, session, cancel, longest).serve().await;
            drop((registered, place));
        });
    }

    /// Completes when every session has ended.
    pub async fn drained(&self) {
        let all = u32::try_from(self.limits.sessions).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }
}

/// A session about to start.
struct Opened {
    env: Env,
    session: Session,
    registered: cancel::Registered,
    place: OwnedSemaphorePermit,
}
