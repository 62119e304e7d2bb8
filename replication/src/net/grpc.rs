//! The network of real clusters: gRPC between processes, one HTTP/2 connection to each peer.
//!
//! A node is a client of every other node (through [`GrpcTransport`], which connects when it first
//! has something to send, and again whenever the connection is gone) and a server for all of them
//! ([`serve`]). The messages are in `proto/mesh.proto`; who sends what to which service is in the
//! metadata.
//!
//! Which errors say that a request was certainly not executed: those of connecting, and those that
//! this server gives before it has called the service, marked as ours in the metadata. Whatever
//! else HTTP/2 or gRPC report, the outcome is unknown.
//!
//! The connection's window is far larger than the streams' windows, so that a stream whose reader
//! sleeps doesn't hold up the others. Keep-alives notice a peer that vanished.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::future::{Either, select};
use futures::stream::BoxStream;
use meridian_storage::NodeId;
use meridian_truetime::env::{Elapsed, Env, EnvironmentExt, Work};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, ConnectError, Request, Response, Status, Streaming};

use super::local::{self, Home};
use super::stream::{self, Inlet, Outlet, Window};
use super::{
    Incoming, MAX_MESSAGE, NetError, Outgoing, Registry, STREAM_WINDOW, Service, ServiceError,
    ServiceName, Transport, check_size,
};

#[allow(missing_docs, unused_qualifications, clippy::pedantic, reason = "generated code")]
mod proto {
    tonic::include_proto!("meridian.mesh.v1");
}

use proto::mesh_client::MeshClient;
use proto::mesh_server::{Mesh, MeshServer};
use proto::{CallRequest, CallResponse, Frame};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// An idle peer is pinged this often, and given up if it doesn't answer in time: after some five
/// seconds in all.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a server that is told to stop waits for the calls that it is executing.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

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

/// In the metadata of a status: which [`NetError`] our own server meant.
const OUTCOME: &str = "meridian-outcome";
const UNREACHABLE: &str = "unreachable";
const NO_SUCH_SERVICE: &str = "no-such-service";
const REFUSED: &str = "refused";

/// One node's way to the others over gRPC.
pub struct GrpcTransport {
    home: Home,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

struct Peer {
    address: String,
    client: Option<MeshClient<Channel>>,
}

impl GrpcTransport {
    /// The transport of node `id`, which finds the others at `addresses` (host and port). Nothing
    /// is connected yet.
    #[must_use]
    pub fn new(
        id: NodeId,
        addresses: BTreeMap<NodeId, String>,
        env: Env,
        registry: Registry,
    ) -> Self {
        let peer = |(id, address)| (id, Peer { address, client: None });
        let peers = Mutex::new(addresses.into_iter().map(peer).collect());
        Self { home: Home { id, env, registry }, peers }
    }

    /// Says where to find a node from now on.
    pub fn set_address(&self, node: NodeId, address: String) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.get(&node).is_none_or(|peer| peer.address != address) {
            peers.insert(node, Peer { address, client: None });
        }
    }

    /// The client of a node's connection, which connects by itself when it is used.
    fn client(&self, to: NodeId) -> Result<MeshClient<Channel>, NetError> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = || NetError::unreachable(to, "its address is not known");
        let peer = peers.get_mut(&to).ok_or_else(unknown)?;
        if let Some(client) = &peer.client {
            return Ok(client.clone());
        }
        let channel = endpoint(&peer.address)
            .map_err(|error| NetError::unreachable(to, format_args!("bad address: {error}")))?
            .connect_lazy();
        let client = MeshClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE + ENVELOPE)
            .max_encoding_message_size(MAX_MESSAGE + ENVELOPE);
        peer.client = Some(client.clone());
        Ok(client)
    }

    fn address<T>(
        &self,
        to: NodeId,
        service: ServiceName,
        body: T,
    ) -> Result<Request<T>, NetError> {
        let mut request = Request::new(body);
        let metadata = request.metadata_mut();
        metadata.insert(FROM, self.home.id.get().into());
        metadata.insert(TO, to.get().into());
        let name = AsciiMetadataValue::try_from(service)
            .map_err(|_| NetError::no_such_service(to, service))?;
        metadata.insert(SERVICE, name);
        Ok(request)
    }
}

fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

impl fmt::Debug for GrpcTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcTransport").field("node", &self.home.id).finish_non_exhaustive()
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
        if to == self.home.id {
            return self.home.call(service, request, deadline).await;
        }
        check_size(&request)?;
        let mut client = self.client(to)?;
        let request = self.address(to, service, CallRequest { payload: request })?;
        match self.home.env.timeout(deadline, client.call(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner().payload),
            Ok(Err(status)) => Err(meaning(&status, to, service)),
            Err(Elapsed) => Err(NetError::DeadlineExceeded { to, deadline }),
        }
    }

    async fn open(
        &self,
        to: NodeId,
        service: ServiceName,
    ) -> Result<(Outgoing, Incoming), NetError> {
        if to == self.home.id {
            return self.home.open(service);
        }
        let client = self.client(to)?;
        let (outgoing, outlet, _) = stream::outgoing(to);
        let (inlet, incoming) = stream::incoming(to);
        let gate = Arc::clone(&outlet.gate);
        let (body, lent) = lend(outlet);
        let request = self.address(to, service, body)?;
        self.home.env.spawn(async move {
            let error = carry(client, request, &inlet, to, service).await.err();
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
fn lend(outlet: Outlet) -> (impl Stream<Item = Frame> + Send, oneshot::Receiver<Outlet>) {
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
        Some((Frame { payload: frame.bytes }, lent))
    });
    (body, lent)
}

/// Carries one stream from its opening to its end, or until its opener stops reading.
async fn carry(
    mut client: MeshClient<Channel>,
    request: Request<impl Stream<Item = Frame> + Send + 'static>,
    inlet: &Inlet,
    to: NodeId,
    service: ServiceName,
) -> Result<(), NetError> {
    let opening = std::pin::pin!(client.stream(request));
    let unread = std::pin::pin!(inlet.closed());
    let mut answers = match select(opening, unread).await {
        Either::Left((Ok(response), _)) => response.into_inner(),
        Either::Left((Err(status), _)) => return Err(meaning(&status, to, service)),
        Either::Right(_) => return Ok(()),
    };
    match receive(&mut answers, inlet).await {
        Ok(Finish::Ended | Finish::ReaderGone) => Ok(()),
        Err(status) => Err(meaning(&status, to, service)),
    }
}

/// Why no more of a stream is handed to its reader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    Ended,
    ReaderGone,
}

/// Hands what arrives to the reader, no more than its window at a time.
async fn receive(frames: &mut Streaming<Frame>, inlet: &Inlet) -> Result<Finish, Status> {
    let window = Window::new();
    let mut unread = std::pin::pin!(inlet.closed());
    loop {
        let frame = match select(std::pin::pin!(frames.message()), unread.as_mut()).await {
            Either::Left((frame, _)) => frame?,
            Either::Right(_) => return Ok(Finish::ReaderGone),
        };
        let Some(frame) = frame else { return Ok(Finish::Ended) };
        match select(std::pin::pin!(window.admit(frame.payload)), unread.as_mut()).await {
            Either::Left((Some(frame), _)) => drop(inlet.put(Ok(frame))),
            Either::Left((None, _)) | Either::Right(_) => return Ok(Finish::ReaderGone),
        }
    }
}

/// Serves the other nodes' calls and streams until `shutdown`. Then calls that are being executed
/// are still answered, if it doesn't take too long; streams break.
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
    let (stop, mut stopping) = watch::channel(false);
    let home = Home { id, env: Arc::clone(&env), registry };
    let mesh = MeshServer::new(MeshNode { home, stopping: stopping.clone() })
        .max_decoding_message_size(MAX_MESSAGE + ENVELOPE)
        .max_encoding_message_size(MAX_MESSAGE + ENVELOPE);
    let signal = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    let serving = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(u32::MAX)
        .http2_max_pending_accept_reset_streams(Some(10_000))
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .serve_with_incoming_shutdown(
            mesh,
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            signal,
        );
    let out_of_patience = async move {
        if stopping.wait_for(|stopping| *stopping).await.is_err() {
            std::future::pending::<()>().await;
        }
        env.sleep(SHUTDOWN_GRACE).await;
    };
    match select(std::pin::pin!(serving), std::pin::pin!(out_of_patience)).await {
        Either::Left((result, _)) => result.map_err(std::io::Error::other),
        Either::Right(_) => Ok(()),
    }
}

/// A node as the others' server.
struct MeshNode {
    home: Home,
    stopping: watch::Receiver<bool>,
}

impl MeshNode {
    /// Whom a request is from, and the service that it is for.
    fn addressed(&self, metadata: &MetadataMap) -> Result<(NodeId, Arc<dyn Service>), Status> {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let node = |key| text(key).and_then(|text| text.parse().ok()).map(NodeId::new);
        let missing = || Status::invalid_argument("not addressed as one Meridian node to another");
        let (from, to) = node(FROM).zip(node(TO)).ok_or_else(missing)?;
        let service = text(SERVICE).ok_or_else(missing)?;
        if to != self.home.id {
            let reason = format!("its address leads to node {}", self.home.id);
            return Err(status(&NetError::unreachable(to, reason)));
        }
        let service = self.home.service(service).map_err(|error| status(&error))?;
        Ok((from, service))
    }
}

#[async_trait]
impl Mesh for MeshNode {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        let (from, service) = self.addressed(request.metadata())?;
        let request = request.into_inner().payload;
        let here = self.home.id;
        let work = self.home.env.work(Work::Request);
        let (done, answer) = oneshot::channel();
        // In a task of its own, because this future is dropped when the caller gives up.
        self.home.env.spawn(async move {
            work.await;
            let _ = done.send(local::execute(&*service, here, from, request).await);
        });
        let answer = answer.await.unwrap_or_else(|_| Err(local::gave_up(here)));
        let payload = answer.map_err(|error| status(&error))?;
        Ok(Response::new(CallResponse { payload }))
    }

    type StreamStream = BoxStream<'static, Result<Frame, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (from, service) = self.addressed(request.metadata())?;
        let (outgoing, outlet, last_word) = stream::outgoing(from);
        let (inlet, incoming) = stream::incoming(from);
        let mut frames = request.into_inner();
        self.home.env.spawn(async move {
            match receive(&mut frames, &inlet).await {
                Ok(Finish::Ended) => {}
                // The service doesn't want it, but the opener may go on sending.
                Ok(Finish::ReaderGone) => while let Ok(Some(_)) = frames.message().await {},
                Err(status) => {
                    inlet.put(Err(NetError::broken(from, status.message())));
                }
            }
        });
        let here = self.home.id;
        self.home.env.spawn(local::serve(service, here, from, incoming, outgoing, last_word));
        let answers = futures::stream::unfold(
            (outlet, self.stopping.clone()),
            move |(mut outlet, mut stopping)| async move {
                let item = {
                    let answer = std::pin::pin!(outlet.next());
                    let stop = std::pin::pin!(stopping.wait_for(|stopping| *stopping));
                    match select(answer, stop).await {
                        Either::Left((item, _)) => item?,
                        Either::Right(_) => Err(NetError::broken(here, "the node is stopping")),
                    }
                };
                let frame = item.map(|frame| Frame { payload: frame.bytes });
                Some((frame.map_err(|error| status(&error)), (outlet, stopping)))
            },
        );
        Ok(Response::new(Box::pin(answers)))
    }
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
