//! The network of real clusters: gRPC between processes, one HTTP/2 connection to each peer.
//!
//! A node is a client of every other node (through [`GrpcTransport`], which connects when it first
//! has something to send, and again whenever the connection is gone) and a server for all of them
//! ([`GrpcTransport::serve`]). The messages are in `proto/mesh.proto`; who sends what to which
//! service is in the metadata.
//!
//! Which errors say that a request was certainly not executed: those of connecting, and those that
//! this server gives before it has called the service, marked as ours in the metadata. Whatever
//! else HTTP/2 or gRPC report, the outcome is unknown.
//!
//! The connection's window is far larger than the streams' windows, so that a stream whose reader
//! sleeps doesn't hold up the others. Keep-alives notice a peer that vanished.
//!
//! With a [`Passport`], nodes tell each other who they are and refuse whom they don't know as such.
//! With a [`Latency`], a peer seems farther away than it is: whoever calls or opens a stream delays
//! both directions of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, Either, select};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use meridian_storage::NodeId;
use meridian_truetime::env::{Elapsed, Env, EnvironmentExt, Moment};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, ConnectError, Request, Status, Streaming};

use super::local::Home;
use super::stream::{self, Inlet, Outlet, Window};
use super::{
    Incoming, NetError, Outgoing, Registry, STREAM_WINDOW, ServiceError, ServiceName, Transport,
    check_size,
};

mod delay;
mod passport;
mod peer;
#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated code")]
mod proto {
    tonic::include_proto!("meridian.mesh.v1");
}
mod server;

use delay::{delayed, pass};
use passport::Beginning;
use peer::{Client, Connected, Peers};
use proto::{CallRequest, Frame, MeetRequest};
use server::MeshNode;

pub use delay::Latency;
pub use passport::{MeetError, Passport, Refusal, Verdict};

/// How long a node may take to answer a greeting.
const MEETING: Duration = Duration::from_secs(2);

/// What a message may take on the wire beyond its bytes.
const ENVELOPE: usize = 64;

/// The connection's window is no limit; its streams' windows are.
const CONNECTION_WINDOW: u32 = 1 << 30;
const WINDOW: u32 = 1 << 20;
const _: () = assert!(WINDOW as usize == STREAM_WINDOW, "streams are bounded alike everywhere");
const MAX_FRAME: u32 = 1 << 18;

/// The longest reason that a status carries, in bytes; HTTP/2 bounds its headers.
const MAX_REASON: usize = 2_000;

const FROM: &str = "meridian-from";
const TO: &str = "meridian-to";
const SERVICE: &str = "meridian-service";

/// The sender's cluster and store, and the store by which it knows the receiver.
const CLUSTER: &str = "meridian-cluster";
const STORE: &str = "meridian-store";
const KNOWS: &str = "meridian-knows";

/// In the metadata of a status: which [`NetError`] our own server meant.
const OUTCOME: &str = "meridian-outcome";
const UNREACHABLE: &str = "unreachable";
const NO_SUCH_SERVICE: &str = "no-such-service";
const REFUSED: &str = "refused";

/// In the metadata of a status: which [`Verdict`] keeps the nodes apart.
const VERDICT: &str = "meridian-verdict";

/// Messages and their bytes that this node has sent, by receiver.
#[derive(Debug, Default)]
struct Traffic(Mutex<BTreeMap<NodeId, (u64, u64)>>);

impl Traffic {
    fn count(&self, to: NodeId, size: usize) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (messages, bytes) = sent.entry(to).or_default();
        *messages += 1;
        *bytes += size as u64;
    }
}

/// One node's way to the others over gRPC; a clone is the same one.
#[derive(Clone)]
pub struct GrpcTransport(Arc<Shared>);

struct Shared {
    home: Home,
    peers: Peers,
    passport: Option<Arc<Passport>>,
    latencies: BTreeMap<NodeId, Latency>,
    traffic: Arc<Traffic>,
}

impl GrpcTransport {
    /// The transport of node `id`, which finds the others at `addresses` (host and port). Nothing
    /// is connected yet. It believes whoever it talks to.
    #[must_use]
    pub fn new(
        id: NodeId,
        addresses: BTreeMap<NodeId, String>,
        env: Env,
        registry: Registry,
    ) -> Self {
        Self::build(Home { id, env, registry }, addresses, None, BTreeMap::new())
    }

    /// The transport of the passport's node, which talks only to those who are who it thinks they
    /// are, and as if they were `latencies` farther away.
    #[must_use]
    pub fn with_passport(
        passport: Arc<Passport>,
        addresses: BTreeMap<NodeId, String>,
        latencies: BTreeMap<NodeId, Latency>,
        env: Env,
        registry: Registry,
    ) -> Self {
        let id = passport.identity().node();
        Self::build(Home { id, env, registry }, addresses, Some(passport), latencies)
    }

    fn build(
        home: Home,
        addresses: BTreeMap<NodeId, String>,
        passport: Option<Arc<Passport>>,
        latencies: BTreeMap<NodeId, Latency>,
    ) -> Self {
        let (peers, traffic) = (Peers::new(addresses), Arc::default());
        Self(Arc::new(Shared { home, peers, passport, latencies, traffic }))
    }

    /// Says where to find a node from now on.
    pub fn set_address(&self, node: NodeId, address: String) {
        self.0.peers.set_address(node, address);
    }

    /// How many messages this node has sent to another since it started, and how many bytes they
    /// had: requests, answers, and messages of streams, without any framing.
    #[must_use]
    pub fn sent(&self, to: NodeId) -> (u64, u64) {
        let sent = self.0.traffic.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.get(&to).copied().unwrap_or_default()
    }

    /// The node's steady clock, for measuring its calls.
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.0.home.env.moment()
    }

    /// The latency added between this node and another.
    #[must_use]
    pub fn latency(&self, to: NodeId) -> Latency {
        self.0.latencies.get(&to).copied().unwrap_or_default()
    }

    /// Introduces this node to another, and learns what that knows of the cluster's beginning.
    ///
    /// # Errors
    /// When the other can't be reached, or one of the two refuses to talk to the other.
    pub async fn meet(&self, to: NodeId, deadline: Duration) -> Result<(), MeetError> {
        let meeting = async {
            let connected = self.connect(to).await?;
            // A new connection has just been greeted, but what an old one has learnt is old.
            self.introduce(connected.client, to).await
        };
        let met = self.0.home.env.timeout(deadline, meeting).await;
        met.unwrap_or_else(|Elapsed| Err(NetError::DeadlineExceeded { to, deadline }.into()))
    }

    /// Says who this node is, and learns who the other is.
    async fn introduce(&self, mut client: Client, to: NodeId) -> Result<(), MeetError> {
        let Some(passport) = &self.0.passport else { return Ok(()) };
        let Beginning { voters, done } = passport.beginning();
        let voters = voters.into_iter().map(NodeId::get).collect();
        let mut request = Request::new(MeetRequest { voters, done });
        self.sign(request.metadata_mut(), to)?;
        let answer = match client.meet(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                self.heed(&status);
                let reason = status.message().to_owned();
                return Err(match verdict(&status) {
                    Some(verdict) => Refusal { verdict, reason }.into(),
                    None => meaning(&status, to, "meeting").into(),
                });
            }
        };
        let store = answer.store.parse().map_err(|error| NetError::broken(to, error))?;
        let voters = answer.voters.into_iter().map(NodeId::new).collect();
        passport.remember(to, store)?;
        passport.agree(to, &Beginning { voters, done: answer.done })?;
        Ok(())
    }

    /// A connection to a node that this one has met.
    fn connect(&self, to: NodeId) -> BoxFuture<'_, Result<Connected, MeetError>> {
        let transport = self.clone();
        let greet = move |client| {
            async move {
                let met = transport.introduce(client, to);
                let silent = || NetError::unreachable(to, "it doesn't say who it is");
                let met = transport.0.home.env.timeout(MEETING, met).await;
                met.unwrap_or_else(|Elapsed| Err(silent().into()))
            }
            .boxed()
        };
        self.0.peers.connect(&self.0.home.env, to, greet).boxed()
    }

    /// As [`GrpcTransport::connect`]; whatever is in the way, nothing was executed.
    async fn reach(&self, to: NodeId) -> Result<Connected, NetError> {
        self.connect(to).await.map_err(|error| match error {
            MeetError::Unreachable(error @ NetError::Unreachable { .. }) => error,
            error => NetError::unreachable(to, error),
        })
    }

    /// Says from whom a request is and to whom.
    fn sign(&self, metadata: &mut MetadataMap, to: NodeId) -> Result<(), NetError> {
        metadata.insert(FROM, self.0.home.id.get().into());
        metadata.insert(TO, to.get().into());
        let Some(passport) = &self.0.passport else { return Ok(()) };
        let claim = passport.claim(to);
        let knows = claim.knows.map(|store| (KNOWS, store.to_string()));
        let said = [(CLUSTER, claim.cluster), (STORE, claim.store.to_string())];
        for (key, value) in said.into_iter().chain(knows) {
            let value = AsciiMetadataValue::try_from(value)
                .map_err(|error| NetError::unreachable(to, error))?;
            metadata.insert(key, value);
        }
        Ok(())
    }

    fn address<T>(
        &self,
        to: NodeId,
        service: ServiceName,
        body: T,
    ) -> Result<Request<T>, NetError> {
        let mut request = Request::new(body);
        let metadata = request.metadata_mut();
        self.sign(metadata, to)?;
        let name = AsciiMetadataValue::try_from(service)
            .map_err(|_| NetError::no_such_service(to, service))?;
        metadata.insert(SERVICE, name);
        Ok(request)
    }

    /// What a status says about a request, with the consequences for this node.
    fn failed(
        &self,
        status: &Status,
        to: NodeId,
        service: ServiceName,
        connected: &Connected,
    ) -> NetError {
        if status.source().is_some() {
            self.0.peers.lost(to, connected);
        }
        self.heed(status);
        meaning(status, to, service)
    }

    /// Takes note of another node's verdict.
    fn heed(&self, status: &Status) {
        if let (Some(verdict), Some(passport)) = (verdict(status), &self.0.passport) {
            passport.complain(status.message());
            if verdict == Verdict::Impostor {
                passport.expose(status.message());
            }
        }
    }

    /// Serves the other nodes' calls and streams until `shutdown`. Then calls that are being
    /// executed are still answered, if it doesn't take too long; streams break.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> std::io::Result<()> {
        let Shared { home, passport, traffic, .. } = &*self.0;
        let node = MeshNode {
            home: home.clone(),
            passport: passport.clone(),
            traffic: Arc::clone(traffic),
        };
        node.serve(listener, shutdown).await
    }

    /// Carries one stream from its opening to its end, or until its opener stops reading.
    async fn carry(
        self,
        body: BoxStream<'static, stream::Frame>,
        inlet: Inlet,
        to: NodeId,
        service: ServiceName,
    ) -> Result<(), NetError> {
        let connected = match select(self.reach(to).boxed(), inlet.closed().boxed()).await {
            Either::Left((connected, _)) => connected?,
            Either::Right(_) => return Ok(()),
        };
        let (env, latency) = (&self.0.home.env, self.latency(to));
        let traffic = Arc::clone(&self.0.traffic);
        let frames = delayed(Arc::clone(env), latency.there, body).map(move |frame| {
            traffic.count(to, frame.bytes.len());
            Frame { payload: frame.bytes }
        });
        let request = self.address(to, service, frames.boxed())?;
        let mut client = connected.client.clone();
        let opening = client.stream(request).boxed();
        let answers = match select(opening, inlet.closed().boxed()).await {
            Either::Left((Ok(response), _)) => response.into_inner(),
            Either::Left((Err(status), _)) => {
                return Err(self.failed(&status, to, service, &connected));
            }
            Either::Right(_) => return Ok(()),
        };
        match receive(&mut arriving(answers, env, latency.back), &inlet).await {
            Ok(Finish::Ended | Finish::ReaderGone) => Ok(()),
            Err(status) => Err(self.failed(&status, to, service, &connected)),
        }
    }
}

impl fmt::Debug for GrpcTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcTransport").field("node", &self.0.home.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for GrpcTransport {
    async fn call(
        &self,
        to: NodeId,
        service: ServiceName,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        let Shared { home, traffic, .. } = &*self.0;
        if to == home.id {
            return home.call(service, request, deadline).await;
        }
        check_size(&request)?;
        let give_up = home.env.moment().plus(deadline);
        let connected = match home.env.timeout(deadline, self.reach(to)).await {
            Ok(connected) => connected?,
            Err(Elapsed) => {
                let reason = format!("no connection within {deadline:?}");
                return Err(NetError::unreachable(to, reason));
            }
        };
        let latency = self.latency(to);
        let size = request.len();
        let request = self.address(to, service, CallRequest { payload: request })?;
        let mut client = connected.client.clone();
        let exchange = async {
            pass(&home.env, latency.there).await;
            traffic.count(to, size);
            let answer = client.call(request).await;
            pass(&home.env, latency.back).await;
            answer
        };
        match home.env.timeout(give_up.since(home.env.moment()), exchange).await {
            Ok(Ok(response)) => Ok(response.into_inner().payload),
            Ok(Err(status)) => Err(self.failed(&status, to, service, &connected)),
            Err(Elapsed) => Err(NetError::DeadlineExceeded { to, deadline }),
        }
    }

    async fn open(
        &self,
        to: NodeId,
        service: ServiceName,
    ) -> Result<(Outgoing, Incoming), NetError> {
        if to == self.0.home.id {
            return self.0.home.open(service);
        }
        self.0.peers.check(to)?;
        let (outgoing, outlet, _) = stream::outgoing(to);
        let (inlet, incoming) = stream::incoming(to);
        let gate = Arc::clone(&outlet.gate);
        let (body, lent) = lend(outlet);
        let transport = self.clone();
        self.0.home.env.spawn(async move {
            let error = transport.carry(body, inlet.clone(), to, service).await.err();
            let over = || NetError::broken(to, "the stream is over");
            gate.shut(error.clone().unwrap_or_else(over));
            if let Some(error) = error {
                inlet.put(Err(error));
            }
            drop(lent);
        });
        Ok((outgoing, incoming))
    }
}

/// What the opener sends, as the body of a request. A body that is dropped gives the outlet back,
/// so that its gate is shut by the one who knows why.
fn lend(outlet: Outlet) -> (BoxStream<'static, stream::Frame>, oneshot::Receiver<Outlet>) {
    struct Lent(Option<(Outlet, oneshot::Sender<Outlet>)>);
    impl Drop for Lent {
        fn drop(&mut self) {
            if let Some((outlet, back)) = self.0.take() {
                let _ = back.send(outlet);
            }
        }
    }
    let (back, lent) = oneshot::channel();
    let body = futures::stream::unfold(Lent(Some((outlet, back))), |mut lent| async move {
        let (outlet, _) = lent.0.as_mut()?;
        let frame = outlet.next().await?.ok()?;
        Some((frame, lent))
    });
    (body.boxed(), lent)
}

/// Why no more of a stream is handed to its reader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    Ended,
    ReaderGone,
}

/// What arrives, `latency` later, and no more than a window of it that the reader hasn't taken.
fn arriving(
    frames: Streaming<Frame>,
    env: &Env,
    latency: Duration,
) -> BoxStream<'static, Result<stream::Frame, Status>> {
    let admitted = futures::stream::unfold(Some((frames, Window::new())), |open| async move {
        let (mut frames, window) = open?;
        match frames.message().await {
            Ok(Some(frame)) => {
                let frame = window.admit(frame.payload).await?;
                Some((Ok(frame), Some((frames, window))))
            }
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    });
    delayed(Arc::clone(env), latency, admitted.boxed()).boxed()
}

/// Hands what arrives to the reader.
async fn receive(
    arriving: &mut BoxStream<'static, Result<stream::Frame, Status>>,
    inlet: &Inlet,
) -> Result<Finish, Status> {
    let mut unread = std::pin::pin!(inlet.closed());
    loop {
        match select(arriving.next(), unread.as_mut()).await {
            Either::Left((Some(frame), _)) => drop(inlet.put(Ok(frame?))),
            Either::Left((None, _)) => return Ok(Finish::Ended),
            Either::Right(_) => return Ok(Finish::ReaderGone),
        }
    }
}

/// Serves the calls and streams of nodes that are believed, until `shutdown`; otherwise as
/// [`GrpcTransport::serve`].
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    id: NodeId,
    registry: Registry,
    env: Env,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let transport = GrpcTransport::new(id, BTreeMap::new(), env, registry);
    transport.serve(listener, shutdown).await
}

/// An error of ours as the status in which it travels.
fn status(error: &NetError) -> Status {
    let (code, outcome, reason) = match error {
        NetError::Unreachable { reason, .. } => {
            (Code::Unavailable, Some(UNREACHABLE), reason.clone())
        }
        NetError::NoSuchService { .. } => {
            (Code::Unimplemented, Some(NO_SUCH_SERVICE), error.to_string())
        }
        NetError::Remote { error, .. } => {
            (Code::FailedPrecondition, Some(REFUSED), error.to_string())
        }
        NetError::Broken { reason, .. } => (Code::Aborted, None, reason.clone()),
        NetError::TooLarge { .. } | NetError::DeadlineExceeded { .. } => {
            (Code::Aborted, None, error.to_string())
        }
    };
    let end = reason.floor_char_boundary(MAX_REASON);
    let mut status = Status::new(code, &reason[..end]);
    if let Some(outcome) = outcome {
        status.metadata_mut().insert(OUTCOME, AsciiMetadataValue::from_static(outcome));
    }
    status
}

/// A refusal to talk as the status in which it travels: the request was not executed.
fn refused(to: NodeId, refusal: &Refusal) -> Status {
    let mut status = status(&NetError::unreachable(to, &refusal.reason));
    let verdict = AsciiMetadataValue::from_static(refusal.verdict.name());
    status.metadata_mut().insert(VERDICT, verdict);
    status
}

/// The verdict that a status carries.
fn verdict(status: &Status) -> Option<Verdict> {
    Verdict::from_name(status.metadata().get(VERDICT)?.to_str().ok()?)
}

/// What a status says about a request to `service` at node `to`.
fn meaning(status: &Status, to: NodeId, service: ServiceName) -> NetError {
    match status.metadata().get(OUTCOME).and_then(|outcome| outcome.to_str().ok()) {
        Some(UNREACHABLE) => return NetError::unreachable(to, status.message()),
        Some(NO_SUCH_SERVICE) => return NetError::no_such_service(to, service),
        Some(REFUSED) => {
            return NetError::Remote { from: to, error: ServiceError::new(status.message()) };
        }
        _ => {}
    }
    let mut reason = status.message().to_owned();
    let mut connecting = false;
    let mut cause = status.source();
    while let Some(error) = cause {
        connecting |= error.is::<ConnectError>();
        reason = error.to_string();
        cause = error.source();
    }
    if connecting { NetError::unreachable(to, reason) } else { NetError::broken(to, reason) }
}

#[cfg(test)]
mod tests;
