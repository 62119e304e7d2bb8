//! What a node does with Raft's messages.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use meridian_storage::{NodeId, TabletId};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use openraft::storage::Snapshot;

use super::host::{Replicas, lock};
use super::image::Image;
use super::network::{Call, Opening, answer};
use super::replica::Replica;
use super::types::{RaftTypes, SnapshotMeta, Vote, decode};
use crate::net::{Incoming, Outgoing, Service, ServiceError};

#[derive(Debug)]
pub(crate) struct RaftService {
    replicas: Arc<Replicas>,
}

fn malformed(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::new(error)
}

impl RaftService {
    pub(crate) fn new(replicas: Arc<Replicas>) -> Self {
        Self { replicas }
    }

    fn replica(&self, group: TabletId) -> Result<Replica, ServiceError> {
        let replica = lock(&self.replicas).get(&group).cloned();
        replica.ok_or_else(|| ServiceError::new(format_args!("no replica of {group} here")))
    }
}

#[async_trait]
impl Service for RaftService {
    async fn call(&self, _from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        let (group, call): (TabletId, Call) = decode(&request).map_err(malformed)?;
        let raft = self.replica(group)?.raft;
        match call {
            Call::Append(rpc) => answer(&raft.append_entries(rpc).await.map_err(malformed)?),
            Call::Vote(rpc) => answer(&raft.vote(rpc).await.map_err(malformed)?),
            Call::PreVote(rpc) => answer(&raft.pre_vote(rpc).await.map_err(malformed)?),
            Call::Transfer(rpc) => {
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
