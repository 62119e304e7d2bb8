//! The gateway side: requests to tablets wherever they are led.

pub(crate) mod attending;
pub(crate) mod buffer;
mod changes;
mod committing;
mod routes;
mod search;
pub(crate) mod stale;
pub(crate) mod transaction;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use meridian_replication::TabletDescriptor;
use meridian_replication::net::NetError;
use meridian_storage::{NodeId, TabletId};
use meridian_truetime::{Elapsed, EnvironmentExt, Moment, Timestamp};
use serde::de::DeserializeOwned;

use search::Search;

use crate::command::{
    Message, Mutation, ReadAt, ReadSet, Request, Row, ScanRequest, ScanResult, WholeTxn,
    WriteRequest, decode, encode,
};
use crate::commit::{CommitProtocol, Committed};
use crate::directory::{DirectoryRow, SYSTEM_TABLET};
use crate::error::{TxnError, not_executed};
use crate::node::Node;
use crate::service::{SERVICE, TabletLock, TabletStatus};

/// How long a gateway looks for a leader that serves: several elections.
const PATIENCE: Duration = Duration::from_secs(12);

/// How long it waits for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The first pause after every replica was asked in vain, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

/// What a failed call means for the request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Asking again is harmless.
    Repeatable,
    /// If it may have been carried out, the outcome is unknown.
    Once,
}

impl Node {
    /// Reads rows of a range of one tablet.
    ///
    /// # Errors
    /// [`TxnError`].
    pub async fn scan(&self, tablet: TabletId, scan: ScanRequest) -> Result<ScanResult, TxnError> {
        self.ask_leader(tablet, Request::Scan { tablet, scan }, Effect::Repeatable).await
    }

    /// Reads rows of one tablet by their keys; `None` for those that don't exist.
    ///
    /// # Errors
    /// [`TxnError`].
    pub async fn get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    ) -> Result<(Timestamp, Vec<Option<Row>>), TxnError> {
        self.ask_leader(tablet, Request::Get { tablet, keys, at }, Effect::Repeatable).await
    }

    /// Carries out a write, as a transaction of its own; its commit timestamp.
    ///
    /// # Errors
    /// [`TxnError::Unknown`] when the write may have been carried out; otherwise it was not.
    pub async fn write(&self, mut request: WriteRequest) -> Result<Timestamp, TxnError> {
        let tablet = request.tablet;
        let (stamp, held, wait) = (self.new_stamp(), None, ANSWER);
        request.txn = Some(WholeTxn { stamp, held, protocol: CommitProtocol::default(), wait });
        let deadline = self.env().moment().plus(PATIENCE);
        loop {
            let request = Request::Write(request.clone());
            let written: Result<Committed, _> =
                self.ask_leader(tablet, request, Effect::Once).await;
            match written {
                Err(TxnError::Locked) if self.env().moment() < deadline => {}
                outcome => return outcome.map(|committed| committed.at),
            }
        }
    }

    /// Changes rows of the system tablet, if what was read still holds.
    pub(crate) async fn write_system(
        &self,
        reads: ReadSet,
        mutations: Vec<Mutation>,
    ) -> Result<Timestamp, TxnError> {
        self.write(WriteRequest {
            tablet: SYSTEM_TABLET,
            schema: Vec::new(),
            reads,
            mutations,
            after: Timestamp::MIN,
            txn: None,
        })
        .await
    }

    /// How a node's replicas stand.
    ///
    /// # Errors
    /// When the node can't be reached.
    pub async fn status_of(&self, node: NodeId) -> Result<Vec<TabletStatus>, TxnError> {
        self.ask(node, SYSTEM_TABLET, Request::Status, Effect::Repeatable).await
    }

    /// The locks in the tablets that a node leads; of very many, some.
    ///
    /// # Errors
    /// When the node can't be reached.
    pub async fn locks_of(&self, node: NodeId) -> Result<Vec<TabletLock>, TxnError> {
        self.ask(node, SYSTEM_TABLET, Request::Locks, Effect::Repeatable).await
    }

    /// One request to one node. What is harmless to ask again never ends with an unknown outcome.
    async fn ask<T: DeserializeOwned>(
        &self,
        node: NodeId,
        tablet: TabletId,
        request: Request,
        effect: Effect,
    ) -> Result<T, TxnError> {
        let answer = self.ask_once(node, tablet, request, effect).await;
        match answer.and_then(|answer| decode::<Result<T, TxnError>>(&answer)?) {
            Err(TxnError::Unknown { reason }) if effect == Effect::Repeatable => {
                Err(TxnError::Unavailable { tablet, reason })
            }
            answer => answer,
        }
    }

    async fn ask_once(
        &self,
        node: NodeId,
        tablet: TabletId,
        request: Request,
        effect: Effect,
    ) -> Result<Bytes, TxnError> {
        if node == self.id() {
            // As patient as with another node: a leader alone may never hear from a majority.
            let answer = self.env().timeout(ANSWER, Box::pin(self.serve(request))).await;
            return answer.map_err(|Elapsed| TxnError::Unknown { reason: late() });
        }
        let number = (effect == Effect::Once).then(|| self.env().random());
        let message = encode(&Message { number, request })?;
        let answer = self.transport().call(node, SERVICE, message.into(), ANSWER).await;
        answer.map_err(|error| {
            if error.certainly_not_executed() {
                not_executed(tablet, &error)
            } else {
                unknown(&error)
            }
        })
    }

    async fn ask_leader<T: DeserializeOwned + Send>(
        &self,
        tablet: TabletId,
        request: Request,
        effect: Effect,
    ) -> Result<T, TxnError> {
        self.at_leader(tablet, |node| self.ask(node, tablet, request.clone(), effect)).await
    }

    /// Finds the leader of a tablet and makes `attempt` there. What certainly wasn't done
    /// ([`TxnError::NotLeader`], [`TxnError::TooFresh`], [`TxnError::Unavailable`], a replica that
    /// isn't there) is attempted again elsewhere, for several elections; any other error ends it.
    ///
    /// # Errors
    /// The attempt's last error.
    pub async fn at_leader<T, F, A>(&self, tablet: TabletId, mut attempt: A) -> Result<T, TxnError>
    where
        F: Future<Output = Result<T, TxnError>> + Send,
        A: FnMut(NodeId) -> F + Send,
    {
        let deadline = self.env().moment().plus(PATIENCE);
        let mut search = Search::new(self.replicas_of(tablet).await?, self.leader_hint(tablet));
        loop {
            let node = search.node();
            let error = match attempt(node).await {
                Ok(done) => {
                    self.set_leader_hint(tablet, node);
                    return Ok(done);
                }
                Err(TxnError::Unknown { reason }) => {
                    // It doesn't answer: the next request begins elsewhere.
                    search.next();
                    self.set_leader_hint(tablet, search.node());
                    return Err(TxnError::Unknown { reason });
                }
                Err(TxnError::Moved { tablet, known }) => {
                    self.directory().learn(known.iter().cloned().map(DirectoryRow::Live));
                    return Err(TxnError::Moved { tablet, known });
                }
                Err(error) => error,
            };
            let pause = match &error {
                TxnError::NotLeader { leader, .. } | TxnError::TooFresh { leader, .. } => {
                    search.redirected(*leader)
                }
                TxnError::Unavailable { .. } => search.next(),
                TxnError::NoSuchTablet { .. } => {
                    // The replica may not be opened yet, or the tablet may be gone.
                    search.replicas = self.replicas_of_refreshed(tablet).await?.voters;
                    search.next();
                    Some(search.next_round())
                }
                _ => return Err(error),
            };
            if let Some(pause) = pause {
                self.pause(pause, deadline, error).await?;
            }
        }
    }

    async fn pause(
        &self,
        pause: Duration,
        deadline: Moment,
        error: TxnError,
    ) -> Result<(), TxnError> {
        if self.env().moment().plus(pause) > deadline {
            return Err(match error {
                TxnError::NotLeader { tablet, .. } => {
                    TxnError::Unavailable { tablet, reason: "it has no leader".into() }
                }
                error => error,
            });
        }
        self.env().sleep(pause).await;
        Ok(())
    }

    async fn replicas_of(&self, tablet: TabletId) -> Result<TabletDescriptor, TxnError> {
        match self.directory().get(tablet) {
            Some(descriptor) => Ok(descriptor),
            None => self.replicas_of_refreshed(tablet).await,
        }
    }

    async fn replicas_of_refreshed(&self, tablet: TabletId) -> Result<TabletDescriptor, TxnError> {
        if tablet != SYSTEM_TABLET {
            Box::pin(self.refresh_directory()).await?;
        }
        self.directory().get(tablet).ok_or(TxnError::NoSuchTablet { tablet })
    }
}

fn late() -> String {
    format!("the leader didn't answer within {} s", ANSWER.as_secs())
}

fn unknown(error: &NetError) -> TxnError {
    TxnError::Unknown { reason: error.to_string() }
}
