//! The serving side: what the other nodes ask of this one.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::BoxStream;
use meridian_storage::NodeId;
use meridian_truetime::env::{EnvironmentExt, Work};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::passport::{Beginning, Claim, Passport};
use super::peer::{KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT};
use super::proto::mesh_server::{Mesh, MeshServer};
use super::proto::{CallRequest, CallResponse, Frame, MeetRequest, MeetResponse};
use super::{
    CLUSTER, CONNECTION_WINDOW, ENVELOPE, FROM, Finish, KNOWS, MAX_FRAME, SERVICE, STORE, TO,
    Traffic, WINDOW, arriving, receive, refused, status,
};
use crate::net::local::{self, Home};
use crate::net::{MAX_MESSAGE, NetError, Service, stream};

/// How long a server that is told to stop waits for the calls that it is executing.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// A node as the others' server.
pub(super) struct MeshNode {
    pub home: Home,
    pub passport: Option<Arc<Passport>>,
    pub traffic: Arc<Traffic>,
}

/// As it is while it serves.
struct Serving {
    node: MeshNode,
    stopping: watch::Receiver<bool>,
}

impl MeshNode {
    /// Serves until `shutdown`; then what is being executed is still answered for a while.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> io::Result<()> {
        let env = Arc::clone(&self.home.env);
        let (stop, mut stopping) = watch::channel(false);
        let serving = Serving { node: self, stopping: stopping.clone() };
        let mesh = MeshServer::new(serving)
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
            Either::Left((result, _)) => result.map_err(io::Error::other),
            Either::Right(_) => Ok(()),
        }
    }

    /// Whom a request is from, if this node is willing to talk to it.
    fn admit(&self, metadata: &MetadataMap) -> Result<NodeId, Status> {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let node = |key| text(key).and_then(|text| text.parse().ok()).map(NodeId::new);
        let missing = || Status::invalid_argument("not addressed as one Meridian node to another");
        let (from, to) = node(FROM).zip(node(TO)).ok_or_else(missing)?;
        let Some(passport) = &self.passport else {
            if to != self.home.id {
                let reason = format!("its address leads to node {}", self.home.id);
                return Err(status(&NetError::unreachable(to, reason)));
            }
            return Ok(from);
        };
        let store = |key| text(key).and_then(|text| text.parse().ok());
        let cluster = text(CLUSTER).unwrap_or("none").to_owned();
        let knows = store(KNOWS);
        let store = store(STORE).ok_or_else(missing)?;
        let claim = Claim { cluster, from, store, to, knows };
        passport.admit(&claim).map_err(|refusal| refused(to, &refusal))?;
        Ok(from)
    }

    /// Whom a request is from, and the service that it is for.
    fn addressed(&self, metadata: &MetadataMap) -> Result<(NodeId, Arc<dyn Service>), Status> {
        let from = self.admit(metadata)?;
        let name = metadata.get(SERVICE).and_then(|name| name.to_str().ok());
        let name = name.ok_or_else(|| Status::invalid_argument("no service is named"))?;
        let service = self.home.service(name).map_err(|error| status(&error))?;
        Ok((from, service))
    }
}

#[async_trait]
impl Mesh for Serving {
    async fn meet(&self, request: Request<MeetRequest>) -> Result<Response<MeetResponse>, Status> {
        let from = self.node.admit(request.metadata())?;
        let Some(passport) = &self.node.passport else {
            return Err(Status::unimplemented("this node introduces itself to nobody"));
        };
        let MeetRequest { voters, done } = request.into_inner();
        let theirs = Beginning { voters: voters.into_iter().map(NodeId::new).collect(), done };
        passport.agree(from, &theirs).map_err(|refusal| refused(self.node.home.id, &refusal))?;
        let Beginning { voters, done } = passport.beginning();
        Ok(Response::new(MeetResponse {
            store: passport.identity().store().to_string(),
            voters: voters.into_iter().map(NodeId::get).collect(),
            done,
        }))
    }

    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        let (from, service) = self.node.addressed(request.metadata())?;
        let request = request.into_inner().payload;
        let here = self.node.home.id;
        let work = self.node.home.env.work(Work::Request);
        let (done, answer) = oneshot::channel();
        // In a task of its own, because this future is dropped when the caller gives up.
        self.node.home.env.spawn(async move {
            work.await;
            let _ = done.send(local::execute(&*service, here, from, request).await);
        });
        let answer = answer.await.unwrap_or_else(|_| Err(local::gave_up(here)));
        let payload = answer.map_err(|error| status(&error))?;
        self.node.traffic.count(from, payload.len());
        Ok(Response::new(CallResponse { payload }))
    }

    type StreamStream = BoxStream<'static, Result<Frame, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (from, service) = self.node.addressed(request.metadata())?;
        let (outgoing, outlet, last_word) = stream::outgoing(from);
        let (inlet, incoming) = stream::incoming(from);
        // What is added to the latency, the opener adds.
        let mut frames = arriving(request.into_inner(), &self.node.home.env, Duration::ZERO);
        self.node.home.env.spawn(async move {
            match receive(&mut frames, &inlet).await {
                Ok(Finish::Ended) => {}
                // The service doesn't want it, but the opener may go on sending.
                Ok(Finish::ReaderGone) => while let Some(Ok(_)) = frames.next().await {},
                Err(status) => {
                    inlet.put(Err(NetError::broken(from, status.message())));
                }
            }
        });
        let here = self.node.home.id;
        self.node.home.env.spawn(local::serve(service, here, from, incoming, outgoing, last_word));
        let answers = futures::stream::unfold(
            (outlet, self.stopping.clone(), Arc::clone(&self.node.traffic)),
            move |(mut outlet, mut stopping, traffic)| async move {
                let item = {
                    let answer = std::pin::pin!(outlet.next());
                    let stop = std::pin::pin!(stopping.wait_for(|stopping| *stopping));
                    match select(answer, stop).await {
                        Either::Left((item, _)) => item?,
                        Either::Right(_) => Err(NetError::broken(here, "the node is stopping")),
                    }
                };
                let frame = item.map(|frame| {
                    traffic.count(from, frame.bytes.len());
                    Frame { payload: frame.bytes }
                });
                Some((frame.map_err(|error| status(&error)), (outlet, stopping, traffic)))
            },
        );
        Ok(Response::new(Box::pin(answers)))
    }
}
