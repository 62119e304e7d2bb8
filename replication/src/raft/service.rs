//! What a node does with Raft's messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{Env, EnvironmentExt};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult, TransferLeaderResponse,
};
use openraft::storage::Snapshot;
use openraft::vote::RaftLeaderId;

use super::heart::Heart;
use super::host::{Replicas, lock};
use super::lease::Parting;
use super::machine::{NumberedImage, RESUMABLE};
use super::network::{Call, Candidacy, Opening, Voted, answer};
use super::replica::Replica;
use super::types::RaftTypes;
use crate::codec::decode;
use crate::image::Image;
use crate::net::{Incoming, Outgoing, Service, ServiceError};

#[derive(Debug)]
pub(crate) struct RaftService {
    replicas: Arc<Replicas>,
    heart: Arc<Heart>,
    env: Env,
    partial: Arc<Mutex<Partial>>,
}

/// Images that were interrupted, for a while: their numbers, and the chunks that arrived.
type Partial = BTreeMap<TabletId, (u64, Vec<Bytes>)>;

fn malformed(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::new(error)
}

impl RaftService {
    pub(crate) fn new(replicas: Arc<Replicas>, heart: Arc<Heart>, env: Env) -> Self {
        Self { replicas, heart, env, partial: Arc::default() }
    }

    fn replica(&self, group: TabletId) -> Result<Replica, ServiceError> {
        let replica = lock(&self.replicas).get(&group).cloned();
        replica.ok_or_else(|| ServiceError::new(format_args!("no replica of {group} here")))
    }
}

#[async_trait]
impl Service for RaftService {
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        let (group, call): (TabletId, Call) = decode(&request).map_err(malformed)?;
        let replica = self.replica(group)?;
        let raft = &replica.raft;
        match call {
            Call::Heartbeat { epoch, append } => {
                let vote = append.vote;
                let response = raft.append_entries(append).await.map_err(malformed)?;
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    replica.pulse.vouched(&vote, epoch);
                    let leader = NodeId::new(*vote.leader_id.node_id());
                    self.heart.bind(&replica, leader, epoch, vote.leader_id.term);
                }
                answer(&response)
            }
            Call::PreVote(rpc) => match self.heart.verdict(&replica, from, &rpc).await {
                Some(verdict) => answer(&verdict),
                None => answer(&raft.pre_vote(rpc).await.map_err(malformed)?),
            },
            Call::Vote(Candidacy { request: mut rpc, epoch, ceased }) => {
                let handed_over = rpc.leadership_transfer;
                if let Some(ceased) = ceased {
                    // It may have come sooner than the leader's own word.
                    replica.pulse.release(ceased);
                }
                if !handed_over {
                    let verdict = self.heart.verdict(&replica, from, &rpc).await;
                    if let Some(refusal) = verdict.filter(|verdict| !verdict.vote_granted) {
                        let (parting, promised) = (Parting::NONE, None);
                        return answer(&Voted { response: refusal, parting, promised });
                    }
                    // openraft's lease has nothing to say.
                    rpc.leadership_transfer = true;
                }
                // Before the vote: what is promised after it is promised to nobody else.
                let parted = self.heart.part(&replica, from);
                let parting = parted.parting;
                let term = rpc.vote.leader_id.term;
                let response = raft.vote(rpc).await.map_err(malformed)?;
                if !response.vote_granted {
                    self.heart.stay(&replica, parted);
                }
                // Nobody else stands; in an election, who loses would have to be parted from again.
                let helps = handed_over && response.vote_granted;
                let help = || self.heart.help(&replica, from, epoch, term);
                let promised = helps.then(help).flatten();
                answer(&Voted { response, parting, promised })
            }
            Call::Transfer(transfer) => {
                replica.handing.handle(&replica, transfer).await;
                let handled: TransferLeaderResponse<RaftTypes> = Ok(());
                answer(&handled)
            }
            Call::Granted(granted) => {
                replica.handing.granted(&replica, from, granted);
                answer(&())
            }
        }
    }

    async fn stream(
        &self,
        _from: NodeId,
        mut incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<(), ServiceError> {
        let Some(header) = incoming.next().await else { return Ok(()) };
        match decode(&header.map_err(malformed)?).map_err(malformed)? {
            Opening::Append { group } => append(&self.replica(group)?, incoming, outgoing).await,
            Opening::Snapshot { group, vote, meta, number } => {
                let replica = self.replica(group)?;
                let image = self.receive(&replica, number, incoming, &outgoing).await?;
                let snapshot = Snapshot { meta, snapshot: NumberedImage { number, image } };
                let installed = replica.raft.install_full_snapshot(vote, snapshot).await;
                outgoing.send(answer(&installed.map_err(malformed)?)?).await.map_err(malformed)
            }
        }
    }
}

/// Answers a leader's appends in their order; ends with the first that isn't accepted.
async fn append(
    replica: &Replica,
    incoming: Incoming,
    outgoing: Outgoing,
) -> Result<(), ServiceError> {
    let requests = futures::stream::unfold(incoming, |mut incoming| async move {
        let message = incoming.next().await?.ok()?;
        let request: AppendEntriesRequest<RaftTypes> = match decode(&message) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%error, "an append can't be decoded");
                return None;
            }
        };
        Some((request, incoming))
    });
    let answers = replica.raft.stream_append(requests);
    futures::pin_mut!(answers);
    while let Some(result) = answers.next().await {
        let result: StreamAppendResult<RaftTypes> = result.map_err(malformed)?;
        outgoing.send(answer(&result)?).await.map_err(malformed)?;
    }
    Ok(())
}

impl RaftService {
    fn partial(&self) -> MutexGuard<'_, Partial> {
        self.partial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives an image whole. Where the stream breaks, what has arrived is kept for the next
    /// attempt.
    async fn receive(
        &self,
        replica: &Replica,
        number: u64,
        mut incoming: Incoming,
        outgoing: &Outgoing,
    ) -> Result<Image, ServiceError> {
        let group = replica.group;
        let partial = self.partial().remove(&group).filter(|(of, _)| *of == number);
        let mut chunks = partial.map(|(_, chunks)| chunks).unwrap_or_default();
        if !chunks.is_empty() {
            tracing::info!(tablet = %group, chunks = chunks.len(), "goes on with an image");
        }
        outgoing.send(answer(&(chunks.len() as u64))?).await.map_err(malformed)?;
        let broken = loop {
            match incoming.next().await {
                Some(Ok(chunk)) => {
                    if chunks.is_empty() {
                        // Whoever still has these rows here must give them up first; the leader
                        // tries again.
                        let records = Image::records_of(&chunk).map_err(malformed)?;
                        replica.machine.offered(&records).map_err(malformed)?;
                    }
                    chunks.push(chunk);
                }
                Some(Err(error)) => break malformed(error),
                None if chunks.last().is_some_and(|last| Image::ends_with(last)) => {
                    return Ok(Image::Received(chunks));
                }
                None => break ServiceError::new("an image ends too early"),
            }
        };
        self.partial().insert(group, (number, chunks));
        let (env, partial) = (Arc::clone(&self.env), Arc::clone(&self.partial));
        self.env.spawn(async move {
            env.sleep(RESUMABLE).await;
            let mut partial = partial.lock().unwrap_or_else(PoisonError::into_inner);
            if partial.get(&group).is_some_and(|(of, _)| *of == number) {
                partial.remove(&group);
            }
        });
        Err(broken)
    }
}
