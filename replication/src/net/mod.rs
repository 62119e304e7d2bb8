//! The network between nodes: byte-level services, called by name, over gRPC ([`grpc`]) or over a
//! simulated network ([`sim`]). Both are a [`Transport`], and whoever uses one can't tell which.
//!
//! Every crate owns its messages. What crosses here is bytes, addressed to a node and to the name
//! of a service that this node has put in its [`Registry`]. There are two ways to talk:
//!
//! - **A call** ([`Transport::call`]): one request, one answer, a deadline.
//! - **A stream** ([`Transport::open`]): two ordered sequences of messages, one each way.
//!
//! # What a call promises
//!
//! The caller waits for its answer no longer than its deadline. What it may conclude from an error
//! is in the error ([`NetError`]):
//!
//! ```text
//!  outcome            the request was executed      by
//!  ------------------ ----------------------------- --------------------------------------------
//!  Ok(answer)         once, or more often           the service
//!  Remote             once, or more often           the service, which refused it: so it would
//!                                                   again
//!  Unreachable        never                         nobody: no connection, or the node is down
//!  NoSuchService      never                         nobody: the node is up, but not ready for this
//!  TooLarge           never                         nobody: the sender itself refused
//!  DeadlineExceeded   never, once, more, or LATER   unknown
//!  Broken             never, once or more often     unknown
//! ```
//!
//! A call is therefore *not* at most once. An unanswered one may have been executed, may be
//! executed after the deadline, and a network that duplicates (the simulated one does if told to)
//! executes one call twice. A request that must not take effect twice carries its own identity and
//! its service recognizes it. [`NetError::certainly_not_executed`] tells who may blindly try again.
//! Calls are not ordered among each other.
//!
//! A request once begun runs to its end, even if its caller gave up or died, unless its own node
//! halts: services are never cancelled halfway, as they would be if they ran inside the caller's
//! future or inside an HTTP/2 handler.
//!
//! # What a stream promises
//!
//! ```text
//!     opener                                             service
//!     Outgoing ─── m1 m2 m3 ... (in order, none lost) ──▶ Incoming
//!     Incoming ◀── r1 r2 ... (likewise) ───────────────── Outgoing
//! ```
//!
//! Messages arrive in order, each once, until the stream ends or breaks. If it breaks, both sides
//! learn of it (each in its own time) as an error from [`Incoming::next`] and
//! [`Outgoing::send`]; which of the last messages arrived is unknown, so that protocols on streams
//! acknowledge what matters. A dead peer or link is noticed within some seconds, not at once.
//!
//! - Opening costs no round trip: `open` returns at once and what is sent right away travels with
//!   the opening. A peer that can't be reached shows as [`NetError::Unreachable`] from the halves.
//! - Dropping an [`Outgoing`] ends its direction: the reader gets what was sent and then `None`.
//!   For the service's half this holds only once [`Service::stream`] has returned `Ok`; if it
//!   returns an error, panics or its node halts, the opener gets an error instead. So the `None`
//!   that an opener reads is never a truncated result.
//! - The service has the last word: when its direction has ended, the stream is over, and the
//!   opener can't send any more.
//! - An opener that drops its [`Incoming`] cancels the stream; the service's [`Outgoing`] breaks and
//!   its [`Incoming`] ends or breaks. A service that drops its [`Incoming`] throws away what is
//!   still sent to it.
//!
//! # Flow control
//!
//! A direction holds at most [`STREAM_WINDOW`] bytes (or one message, if that is larger) that the
//! reader hasn't taken; [`Outgoing::send`] waits for room. Over gRPC, HTTP/2 windows of the same
//! size lie between two such buffers. A reader that stops reading therefore costs bounded memory,
//! stops only its own stream, and makes its writer wait, not fail.
//!
//! # Caveats
//!
//! - Nodes are not authenticated: a sender says who it is and is believed, but for mistakes
//!   ([`grpc::Passport`]).
//! - A node's calls and streams to itself touch no network: no delay, no faults, the same rules.
//! - The network prices a call's handling as [`Work::Request`](meridian_truetime::env::Work) on
//!   the node that serves it, unless it is the caller itself. A service prices what else it does,
//!   and stream messages.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meridian_storage::NodeId;

pub mod grpc;
mod local;
pub mod sim;
mod stream;
pub mod topology;

pub use grpc::GrpcTransport;
pub use sim::{LinkSettings, LinkView, SimulatedNetwork};
pub use stream::{Incoming, Outgoing};
pub use topology::{Topology, TopologyError};

/// The name under which a node's service is called: "raft", "tablet", "sql", "node".
pub type ServiceName = &'static str;

/// The largest message, in bytes: a request, an answer, or one message of a stream.
pub const MAX_MESSAGE: usize = 64 << 20;

/// How many bytes of a stream's direction may wait for its reader.
pub const STREAM_WINDOW: usize = 1 << 20;

/// A service's own refusal. It says that the same request would be refused again; what a caller
/// can react to belongs in the answer's bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ServiceError(String);

impl ServiceError {
    /// A refusal, with the reason for people.
    #[must_use]
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// Why a call has no answer, or a stream no more messages. See the module's table for what each
/// says about whether the request was executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The node can't be reached; it got nothing.
    #[error("node {to} is unreachable: {reason}")]
    Unreachable {
        /// The node called.
        to: NodeId,
        /// For people.
        reason: String,
    },
    /// The node is there, but hasn't registered such a service (yet).
    #[error("node {to} offers no service {service:?}")]
    NoSuchService {
        /// The node called.
        to: NodeId,
        /// The name asked for.
        service: String,
    },
    /// The request exceeds [`MAX_MESSAGE`] and was not sent.
    #[error("a message of {size} bytes exceeds the limit of {MAX_MESSAGE} bytes")]
    TooLarge {
        /// The message's size in bytes.
        size: usize,
    },
    /// No answer came in time; the request may have been executed, or may be yet.
    #[error("node {to} did not answer within {deadline:?}")]
    DeadlineExceeded {
        /// The node called.
        to: NodeId,
        /// The caller's deadline.
        deadline: Duration,
    },
    /// The connection broke; what was on its way may have arrived or not.
    #[error("the connection to node {peer} broke: {reason}")]
    Broken {
        /// The node at the other end.
        peer: NodeId,
        /// For people.
        reason: String,
    },
    /// The service refused the request, and would again.
    #[error("node {from} refused: {error}")]
    Remote {
        /// The node that refused.
        from: NodeId,
        /// Its reason.
        error: ServiceError,
    },
}

impl NetError {
    /// Whether the request has certainly not been executed and never will be, so that it may be
    /// tried again, elsewhere too.
    #[must_use]
    pub const fn certainly_not_executed(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoSuchService { .. } | Self::TooLarge { .. } => true,
            Self::DeadlineExceeded { .. } | Self::Broken { .. } | Self::Remote { .. } => false,
        }
    }

    pub(crate) fn unreachable(to: NodeId, reason: impl fmt::Display) -> Self {
        Self::Unreachable { to, reason: reason.to_string() }
    }

    pub(crate) fn broken(peer: NodeId, reason: impl fmt::Display) -> Self {
        Self::Broken { peer, reason: reason.to_string() }
    }

    pub(crate) fn no_such_service(to: NodeId, service: &str) -> Self {
        Self::NoSuchService { to, service: service.to_owned() }
    }
}

/// Refuses a message larger than [`MAX_MESSAGE`].
pub(crate) fn check_size(message: &[u8]) -> Result<(), NetError> {
    let size = message.len();
    if size > MAX_MESSAGE { Err(NetError::TooLarge { size }) } else { Ok(()) }
}

/// What a node offers to the others under a [`ServiceName`].
#[async_trait]
pub trait Service: Send + Sync {
    /// Answers one request of node `from`.
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError>;

    /// Serves one stream that node `from` has opened, until it is done with it. The opener sees
    /// the end once this has returned and `outgoing` is dropped.
    async fn stream(
        &self,
        from: NodeId,
        incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<(), ServiceError> {
        drop((incoming, outgoing));
        Err(ServiceError::new(format_args!("this service takes no streams (from node {from})")))
    }
}

/// The services of one node, shared by all its parts; a clone is the same registry.
#[derive(Clone, Default)]
pub struct Registry(Arc<RwLock<Services>>);

type Services = BTreeMap<ServiceName, Arc<dyn Service>>;

impl Registry {
    /// A registry with no service in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers `service` under `name`, in place of what was offered there.
    pub fn register(&self, name: ServiceName, service: Arc<dyn Service>) {
        let replaced = self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, service);
        drop(replaced);
    }

    /// The service of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<dyn Service>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Lets go of every service. Services commonly own the node that owns this registry; a node
    /// that stops breaks that circle here.
    pub fn clear(&self) {
        let services = std::mem::take(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner));
        drop(services);
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.0.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(services.keys()).finish()
    }
}

/// One node's way to the others (and to itself).
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync {
    /// Asks `service` at node `to`, and waits for the answer up to `deadline`.
    ///
    /// # Errors
    /// See [`NetError`]; the request may have been executed unless
    /// [`NetError::certainly_not_executed`].
    async fn call(
        &self,
        to: NodeId,
        service: ServiceName,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError>;

    /// Opens a stream to `service` at node `to`, without waiting for it to be accepted.
    ///
    /// # Errors
    /// If it is known at once that there can be no stream; otherwise the halves say so.
    async fn open(
        &self,
        to: NodeId,
        service: ServiceName,
    ) -> Result<(Outgoing, Incoming), NetError>;
}
