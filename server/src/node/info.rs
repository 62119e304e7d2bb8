//! What a node says of itself to others.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meridian_replication::net::{GrpcTransport, Service, ServiceError, ServiceName, Transport};
use meridian_storage::NodeId;
use meridian_truetime::{Timestamp, TrueTime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::config::StartConfig;

/// The name of the service.
pub(super) const SERVICE: ServiceName = "node";

/// What a node can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Question {
    /// For [`About`].
    About,
    /// For a [`Link`] to every other node.
    Links {
        /// How long the others may take to answer.
        patience: Duration,
    },
}

/// How a node stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// Where it serves clients.
    pub sql: String,
    /// When its process started.
    pub started: Timestamp,
    /// `TT.now()`.
    pub earliest: Timestamp,
    /// `TT.now()`.
    pub latest: Timestamp,
}

/// A node's way to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    /// The other.
    pub to: NodeId,
    /// How long a question and its answer took, if there was one.
    pub round_trip: Option<Duration>,
    /// Messages sent there.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Asks a node, itself too.
pub(super) async fn ask<T: DeserializeOwned>(
    transport: &GrpcTransport,
    node: NodeId,
    question: Question,
    patience: Duration,
) -> Result<T, String> {
    let request = postcard::to_stdvec(&question).map_err(|error| error.to_string())?;
    let answer = transport.call(node, SERVICE, request.into(), patience).await;
    let answer = answer.map_err(|error| error.to_string())?;
    postcard::from_bytes(&answer).map_err(|error| error.to_string())
}

/// Answers questions about a node.
pub(super) struct NodeService {
    config: Arc<StartConfig>,
    clock: Arc<dyn TrueTime>,
    started: Timestamp,
    transport: GrpcTransport,
}

impl NodeService {
    pub fn new(
        config: Arc<StartConfig>,
        clock: Arc<dyn TrueTime>,
        started: Timestamp,
        transport: GrpcTransport,
    ) -> Self {
        Self { config, clock, started, transport }
    }

    fn about(&self) -> About {
        let now = self.clock.now();
        let sql = self.config.own().and_then(|own| own.sql.clone());
        About {
            sql: sql.unwrap_or_else(|| self.config.sql.clone()),
            started: self.started,
            earliest: now.earliest,
            latest: now.latest,
        }
    }

    async fn links(&self, patience: Duration) -> Vec<Link> {
        let others = self.config.nodes.iter().map(|entry| entry.id);
        let links = others.filter(|to| *to != self.config.id).map(|to| async move {
            let begun = self.transport.moment();
            let answer = ask::<About>(&self.transport, to, Question::About, patience).await;
            let round_trip = answer.ok().map(|_| self.transport.moment().since(begun));
            let (messages, bytes) = self.transport.sent(to);
            Link { to, round_trip, messages, bytes }
        });
        futures::future::join_all(links).await
    }
}

#[async_trait]
impl Service for NodeService {
    async fn call(&self, _from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        let answer = match postcard::from_bytes(&request).map_err(ServiceError::new)? {
            Question::About => postcard::to_stdvec(&self.about()),
            Question::Links { patience } => postcard::to_stdvec(&self.links(patience).await),
        };
        Ok(answer.map_err(ServiceError::new)?.into())
    }
}
