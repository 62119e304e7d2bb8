//! Raft's messages between nodes.
//!
//! Votes, a group's heartbeats and transfers are calls. Appends of one leader to one follower are a stream
//! of their own: requests go out without waiting for the answers of those before, so a commit costs
//! one round trip however many are under way. Each answer has a deadline, counted from the moment
//! when it became the next one due: openraft itself applies none to a stream.

use std::future::Future;
use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::{BoxFuture, Either, select};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{Env, EnvironmentExt, Timestamp};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::handover::Granted;
use super::heart::{Heart, Pulse};
use super::lease::Parting;
use super::liveness::Epoch;
use super::machine::{NumberedImage, RESUMABLE, RaftSnapshot};
use super::timing::Timing;
use super::types::{LogId, Member, RaftTypes, RpcError, SnapshotMeta, Vote};
use crate::codec::{decode, encode};
use crate::net::{Incoming, NetError, Outgoing, Transport};

/// The name of the service that carries Raft's messages.
pub(crate) const SERVICE: &str = "raft";

/// Appends that may be under way to one follower.
const PIPELINE: usize = 64;

/// A call of one replica to another of its group.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    /// A group's own heartbeat: nothing to append, and the leader's word that it leads.
    Heartbeat {
        epoch: Epoch,
        append: AppendEntriesRequest<RaftTypes>,
    },
    Vote(Candidacy),
    PreVote(VoteRequest<RaftTypes>),
    Transfer(Transfer),
    Granted(Granted),
}

/// A replica stands for election.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Candidacy {
    pub(crate) request: VoteRequest<RaftTypes>,
    /// The epoch of the candidate's node.
    pub(crate) epoch: Epoch,
    /// The leader that was the last to hand over, as far as the candidate has heard.
    pub(crate) ceased: Option<Ceased>,
}

/// A leader acts no more.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ceased {
    pub(crate) leader: NodeId,
    pub(crate) term: u64,
    /// Up to where it has taken timestamps.
    pub(crate) taken: Timestamp,
}

/// The answer to a candidate.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Voted {
    pub(crate) response: VoteResponse<RaftTypes>,
    /// What it has to know of earlier leaders.
    pub(crate) parting: Parting,
    /// What the voter's node promises to the candidate's.
    pub(crate) promised: Option<Timestamp>,
}

/// A leader hands over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) request: TransferLeaderRequest<RaftTypes>,
    /// Whether the voters are to vote unasked.
    pub(crate) unasked: bool,
    /// It acts no more, and has taken timestamps up to here.
    pub(crate) taken: Timestamp,
    /// The epoch of the new leader's node, if it is known.
    pub(crate) epoch: Option<Epoch>,
}

/// The first message of a stream says what it is for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Opening {
    Append {
        group: TabletId,
    },
    /// An image; `number` tells it from others. The answer says how many of its chunks are there
    /// already.
    Snapshot {
        group: TabletId,
        vote: Vote,
        meta: SnapshotMeta,
        number: u64,
    },
}

/// Makes a group's connections to its other replicas.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) env: Env,
    pub(crate) group: TabletId,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) timing: Timing,
    /// Not a strong one: it holds the replicas, and they hold this.
    pub(crate) heart: Weak<Heart>,
    pub(crate) pulse: Arc<Pulse>,
}

impl RaftNetworkFactory<RaftTypes> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Connection {
        Connection { network: self.clone(), target: NodeId::new(target), heartbeat: false }
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &Member) -> Connection {
        Connection { network: self.clone(), target: NodeId::new(target), heartbeat: true }
    }
}

/// A group's connection to one other replica.
#[derive(Debug)]
pub(crate) struct Connection {
    network: Network,
    target: NodeId,
    heartbeat: bool,
}

fn unreachable(error: &NetError) -> RpcError {
    if error.certainly_not_executed() {
        RPCError::Unreachable(Unreachable::new(error))
    } else {
        RPCError::Network(NetworkError::new(error))
    }
}

fn broken(error: &io::Error) -> RpcError {
    RPCError::Network(NetworkError::new(error))
}

impl Connection {
    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, RpcError> {
        let network = &self.network;
        let request = encode(&(network.group, call)).map_err(|error| broken(&error))?;
        let deadline = network.timing.deadline();
        let answer = network.transport.call(self.target, SERVICE, request, deadline).await;
        decode(&answer.map_err(|error| unreachable(&error))?).map_err(|error| broken(&error))
    }

    async fn open(&self, opening: &Opening) -> Result<(Outgoing, Incoming), RpcError> {
        let header = encode(opening).map_err(|error| broken(&error))?;
        let opened = self.network.transport.open(self.target, SERVICE).await;
        let (outgoing, incoming) = opened.map_err(|error| unreachable(&error))?;
        outgoing.send(header).await.map_err(|error| unreachable(&error))?;
        Ok((outgoing, incoming))
    }
}

impl RaftNetworkV2<RaftTypes> for Connection {
    type SnapshotData = NumberedImage;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<RaftTypes>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftTypes>, RpcError> {
        let Network { heart, pulse, .. } = &self.network;
        if pulse.handover.held(self.target, &rpc.vote).is_some() {
            return Ok(AppendEntriesResponse::Success);
        }
        let Some(heart) = heart.upgrade() else { return Err(closed()) };
        let [matched, committed] =
            [rpc.prev_log_id, rpc.leader_commit].map(|at| at.map_or(0, |at| at.index));
        let term = rpc.vote.leader_id.term;
        let telling = heart.telling(self.target, term, matched, committed);
        let epoch = heart.epoch();
        let call = Call::Heartbeat { epoch, append: rpc };
        let answer: AppendEntriesResponse<RaftTypes> = self.call(call).await?;
        if matches!(answer, AppendEntriesResponse::Success) {
            pulse.bound(self.target, term, epoch);
            if let Some(told) = telling {
                pulse.told(self.target, told);
            }
        }
        Ok(answer)
    }

    fn stream_append<S>(
        &mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        '_,
        Result<BoxStream<'_, Result<StreamAppendResult<RaftTypes>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<RaftTypes>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeat {
            return openraft::network::stream_append_sequential(self, input, option);
        }
        // Opened only when there is something to send: the input makes a sender wait that has just
        // failed, and without waiting for it an unreachable follower would be tried at once again.
        let pipeline =
            Pipeline { connection: self, input: Some(input), halves: None, under_way: 0 };
        let answers = futures::stream::unfold(Some(pipeline), |pipeline| async move {
            let mut pipeline = pipeline?;
            let answer = pipeline.next().await?;
            let go_on = matches!(answer, Ok(Ok(_)));
            Some((answer, go_on.then_some(pipeline)))
        });
        futures::future::ready(Ok(answers.boxed())).boxed()
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftTypes>,
        _option: RPCOption,
    ) -> Result<VoteResponse<RaftTypes>, RpcError> {
        let Network { heart, pulse, .. } = &self.network;
        if let Some(answer) = pulse.handover.answer(self.target, &rpc) {
            return Ok(answer);
        }
        let Some(heart) = heart.upgrade() else { return Err(closed()) };
        let epoch = heart.epoch();
        let candidacy = Candidacy { request: rpc.clone(), epoch, ceased: pulse.ceased() };
        let voted: Voted = self.call(Call::Vote(candidacy)).await?;
        let term = rpc.vote.leader_id.term;
        pulse.parted(term, voted.parting);
        if let Some(until) = voted.promised {
            heart.helped(self.target, epoch, until);
            pulse.bound(self.target, term, epoch);
        }
        pulse.handover.voted(self.target, &rpc, &voted.response);
        Ok(voted.response)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<RaftTypes>,
        _option: RPCOption,
    ) -> Result<VoteResponse<RaftTypes>, RpcError> {
        self.call(Call::PreVote(rpc)).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<RaftTypes>, StreamingError<RaftTypes>> {
        let send = self.send_snapshot(vote, snapshot.clone());
        match select(std::pin::pin!(send), std::pin::pin!(cancel)).await {
            Either::Left((Ok(answer), _)) => Ok(answer),
            Either::Left((Err(error), _)) => {
                self.keep(snapshot);
                Err(StreamingError::from(error))
            }
            Either::Right((closed, _)) => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<RaftTypes>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<RaftTypes>, RpcError> {
        let Network { heart, pulse, .. } = &self.network;
        let Some(heart) = heart.upgrade() else { return Err(closed()) };
        let unasked = req.last_log_id().is_some_and(|last| pulse.handover.is_caught_up(*last));
        let epoch = heart.epoch_of(NodeId::new(*req.to_node_id()));
        let transfer = Transfer { request: req, unasked, taken: pulse.cease(), epoch };
        self.call(Call::Transfer(transfer)).await
    }
}

impl Connection {
    /// Keeps an image that was interrupted for the next attempt.
    fn keep(&self, snapshot: RaftSnapshot) {
        let (env, pulse) = (&self.network.env, Arc::downgrade(&self.network.pulse));
        let (number, late) = (snapshot.snapshot.number, env.sleep(RESUMABLE));
        self.network.pulse.set_interrupted(snapshot);
        env.spawn(async move {
            late.await;
            if let Some(pulse) = pulse.upgrade() {
                pulse.drop_interrupted(number);
            }
        });
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: RaftSnapshot,
    ) -> Result<SnapshotResponse<RaftTypes>, RpcError> {
        let group = self.network.group;
        let NumberedImage { number, image } = snapshot.snapshot;
        let opening = Opening::Snapshot { group, vote, meta: snapshot.meta, number };
        let (outgoing, mut incoming) = self.open(&opening).await?;
        let held: u64 = received(incoming.next().await)?;
        for (place, chunk) in (0_u64..).zip(image.chunks()) {
            let chunk = chunk.map_err(|error| broken(&error))?;
            if place < held {
                continue;
            }
            outgoing.send(chunk).await.map_err(|error| unreachable(&error))?;
        }
        drop(outgoing);
        received(incoming.next().await)
    }
}

fn closed() -> RpcError {
    RPCError::Network(NetworkError::new(&AnyError::error("the stream was closed")))
}

enum Event {
    Answer(Result<StreamAppendResult<RaftTypes>, RpcError>),
    Request(Box<AppendEntriesRequest<RaftTypes>>),
    End,
}

/// Appends on their way to one follower.
struct Pipeline<'c, S> {
    connection: &'c Connection,
    input: Option<S>,
    /// The stream, once there was something to send.
    halves: Option<(Outgoing, Incoming)>,
    /// Sent and not answered; answers come in the order of the requests.
    under_way: usize,
}

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<RaftTypes>> + Unpin,
{
    /// Sends what there is to send until the next answer is in.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<RaftTypes>, RpcError>> {
        let env = &self.connection.network.env;
        let deadline = self.connection.network.timing.deadline();
        let mut due = env.sleep(deadline);
        loop {
            if self.input.is_none() && self.under_way == 0 {
                return None;
            }
            let may_send = self.under_way < PIPELINE;
            let input = self.input.as_mut().filter(|_| may_send);
            let send = async {
                match input {
                    Some(input) => input.next().await,
                    None => std::future::pending().await,
                }
            };
            let incoming = self.halves.as_mut().filter(|_| self.under_way > 0);
            let receive = async {
                match incoming {
                    Some((_, incoming)) => {
                        match select(std::pin::pin!(incoming.next()), &mut due).await {
                            Either::Left((answer, _)) => answer,
                            Either::Right(((), _)) => {
                                let to = self.connection.target;
                                Some(Err(NetError::DeadlineExceeded { to, deadline }))
                            }
                        }
                    }
                    None => std::future::pending().await,
                }
            };
            let event = match select(std::pin::pin!(receive), std::pin::pin!(send)).await {
                Either::Left((answer, _)) => Event::Answer(received(answer)),
                Either::Right((Some(request), _)) => Event::Request(Box::new(request)),
                Either::Right((None, _)) => Event::End,
            };
            match event {
                Event::Answer(answer) => {
                    self.under_way -= 1;
                    return Some(answer);
                }
                Event::Request(request) => {
                    if let Some(held) = self.held(&request) {
                        return Some(Ok(Ok(Some(held))));
                    }
                    if self.under_way == 0 {
                        due = env.sleep(deadline);
                    }
                    if let Err(error) = self.send(*request).await {
                        return Some(Err(error));
                    }
                }
                Event::End => self.input = None,
            }
        }
    }

    /// How much of a request the follower is known to hold.
    fn held(&self, request: &AppendEntriesRequest<RaftTypes>) -> Option<LogId> {
        let Connection { network, target, .. } = self.connection;
        let last = request.entries.last()?.log_id;
        let held = network.pulse.handover.held(*target, &request.vote)?;
        // Answers come in the order of the requests.
        (self.under_way == 0 && request.prev_log_id < Some(held)).then_some(last.min(held))
    }

    async fn send(&mut self, request: AppendEntriesRequest<RaftTypes>) -> Result<(), RpcError> {
        let message = encode(&request).map_err(|error| broken(&error))?;
        if self.halves.is_none() {
            let group = self.connection.network.group;
            self.halves = Some(self.connection.open(&Opening::Append { group }).await?);
        }
        if let Some((outgoing, _)) = &self.halves {
            outgoing.send(message).await.map_err(|error| unreachable(&error))?;
        }
        self.under_way += 1;
        Ok(())
    }
}

fn received<T: DeserializeOwned>(answer: Option<Result<Bytes, NetError>>) -> Result<T, RpcError> {
    match answer {
        Some(Ok(answer)) => decode(&answer).map_err(|error| broken(&error)),
        Some(Err(error)) => Err(unreachable(&error)),
        None => Err(closed()),
    }
}

/// The answer to one append of a stream, or to a call.
pub(crate) fn answer<T: Serialize>(value: &T) -> Result<Bytes, crate::net::ServiceError> {
    encode(value).map_err(crate::net::ServiceError::new)
}
