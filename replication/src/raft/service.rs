//! What a node does with Raft's messages.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use meridian_storage::{NodeId, TabletId};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};
use openraft::storage::Snapshot;

use super::heart::Heart;
use super::host::{Replicas, lock};
use super::network::{Call, Opening, answer};
use super::replica::Replica;
use super::types::{RaftTypes, SnapshotMeta, Vote};
use crate::codec::decode;
use crate::image::Image;
use crate::net::{Incoming, Outgoing, Service, ServiceError};

#[derive(Debug)]
pub(crate) struct RaftService {
    replicas: Arc<Replicas>,
    heart: Arc<Heart>,
}

fn malformed(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::new(error)
}

impl RaftService {
    pub(crate) fn new(replicas: Arc<Replicas>, heart: Arc<Heart>) -> Self {
        Self { replicas, heart }
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
                }
                answer(&response)
            }
            Call::PreVote(rpc) => match self.heart.verdict(&replica, from, &rpc).await {
                Some(verdict) => answer(&verdict),
                None => answer(&raft.pre_vote(rpc).await.map_err(malformed)?),
            },
            Call::Vote(mut rpc) => {
                if !rpc.leadership_transfer {
                    let verdict = self.heart.verdict(&replica, from, &rpc).await;
                    if let Some(refusal) = verdict.filter(|verdict| !verdict.vote_granted) {
                        return answer(&refusal);
                    }
                    // openraft's lease has nothing to say.
                    rpc.leadership_transfer = true;
                }
                answer(&raft.vote(rpc).await.map_err(malformed)?)
            }
            Call::Transfer(rpc) => {
                replica.pulse.vouches_no_more(rpc.from_leader());
                answer(&raft.handle_transfer_leader(rpc).await.map_err(malformed)?)
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
            Opening::Snapshot { group, vote, meta } => {
                install(&self.replica(group)?, vote, meta, incoming, outgoing).await
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

/// Receives a snapshot whole and installs it.
async fn install(
    replica: &Replica,
    vote: Vote,
    meta: SnapshotMeta,
    mut incoming: Incoming,
    outgoing: Outgoing,
) -> Result<(), ServiceError> {
    let mut chunks = Vec::new();
    while let Some(chunk) = incoming.next().await {
        let chunk = chunk.map_err(malformed)?;
        if chunks.is_empty() {
            // Whoever still has these rows here must give them up first; the leader tries again.
            let records = Image::records_of(&chunk).map_err(malformed)?;
            replica.machine.offered(&records).map_err(malformed)?;
        }
        chunks.push(chunk);
    }
    let snapshot = Snapshot { meta, snapshot: Image::Received(chunks) };
    let result = replica.raft.install_full_snapshot(vote, snapshot).await.map_err(malformed)?;
    outgoing.send(answer(&result)?).await.map_err(malformed)
}
