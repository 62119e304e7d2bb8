//! What a node does for other nodes' gateways.

mod stale;

use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meridian_replication::net::{Service, ServiceError};
use meridian_replication::{ReplicaStatus, TabletDescriptor};
use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp, Work};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::command::{
    Command, Message, Outcome, ReadAt, Request, Row, ScanRequest, ScanResult, TxnLock, decode,
    encode,
};
use crate::commit::{Commit, Committed, Prepare};
use crate::error::TxnError;
use crate::locks::{Hold, Lock};
use crate::node::Node;
use crate::once::Turn;
use crate::tablet::TabletRead;

/// The name of the service.
pub(crate) const SERVICE: &str = "tablet";

/// A request that can't be served in this time (no majority, or a version that stays pending) is
/// given up; the gateway has given up before.
const PATIENCE: Duration = Duration::from_secs(15);

/// An answer carries about so many bytes of rows.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// A node tells of so many locks at most.
const MOST_LOCKS: usize = 10_000;

/// A lock in a tablet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TabletLock {
    /// The tablet.
    pub tablet: TabletId,
    /// The lock.
    pub lock: Lock,
}

/// How one replica of a tablet stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TabletStatus {
    /// The tablet's descriptor as this replica has it.
    pub descriptor: TabletDescriptor,
    /// Where the replica is.
    pub node: NodeId,
    /// The leader that it knows.
    pub leader: Option<NodeId>,
    /// Raft's term here.
    pub term: u64,
    /// The last entry in the log here.
    pub last_index: u64,
    /// The last applied entry here.
    pub applied_index: u64,
    /// The timestamp of the last applied write here.
    pub last_write: Timestamp,
    /// The bytes of rows with all their versions here, about.
    pub size_bytes: u64,
    /// How many requests per second, reads and writes, the tablet is asked, if this replica leads;
    /// over [`SplitOptions::load_window`](crate::SplitOptions::load_window).
    pub requests_per_second: Option<f64>,
}

/// The service behind a weak reference: the registry outlives a node that has stopped.
#[derive(Debug)]
pub(crate) struct TabletService(pub(crate) Weak<Node>);

#[async_trait]
impl Service for TabletService {
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        let Some(node) = self.0.upgrade() else {
            return Err(ServiceError::new("the node has stopped"));
        };
        let Message { number, request } = decode(&request).map_err(ServiceError::new)?;
        node.env().work(Work::Request).await;
        let late = || ServiceError::new("not served in time");
        let turn = number.map(|number| node.once.begin((from, number), node.env().moment()));
        let tell = match turn {
            None => None,
            Some(Turn::First(tell)) => Some(tell),
            Some(Turn::Copy(mut answer)) => {
                let answer = answer.wait_for(Option::is_some).await.map_err(|_| late())?;
                return answer.clone().ok_or_else(late);
            }
        };
        let answer = node.env().timeout(PATIENCE, node.serve(request)).await.map_err(|_| late())?;
        if let Some(tell) = tell {
            tell.send_replace(Some(answer.clone()));
        }
        Ok(answer)
    }
}

/// Encodes an answer; every answer is a `Result<T, TxnError>`.
fn answer<T: Serialize>(result: Result<T, TxnError>) -> Bytes {
    let encoded = encode(&result).or_else(|error| encode(&Err::<T, _>(error)));
    encoded.unwrap_or_default().into()
}

/// From the first key to the last.
fn hull(keys: &[Vec<u8>]) -> Result<KeyRange, TxnError> {
    let (Some(first), Some(last)) = (keys.iter().min(), keys.iter().max()) else {
        return Err(TxnError::Internal("a read of no keys".to_owned()));
    };
    Ok(KeyRange { start: first.clone(), end: Some([last, &[0][..]].concat()) })
}

impl Node {
    /// Carries out a request, from another node or from this one's own gateway.
    pub(crate) async fn serve(&self, request: Request) -> Bytes {
        match request {
            Request::Get { tablet, keys, at } => answer(self.serve_get(tablet, keys, at).await),
            Request::Scan { tablet, scan } => answer(self.serve_scan(tablet, scan).await),
            Request::Write(write) => answer(match self.tablet(write.tablet) {
                Ok(tablet) => {
                    self.env().work(Work::Write(write.mutations.len() as u64)).await;
                    tablet.write(write).await
                }
                Err(error) => Err(error),
            }),
            Request::Ensure { descriptor, lead } => {
                answer(self.open_tablet(&descriptor, lead).await)
            }
            Request::Confirm { tablet } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.confirm().await,
                Err(error) => Err(error),
            }),
            Request::Fence { tablet, table, version } => {
                answer(self.serve_command(tablet, Command::Fence { table, version }).await)
            }
            Request::Split { tablet, key, child, sticky } => {
                answer(self.serve_command(tablet, Command::Split { key, child, sticky }).await)
            }
            Request::Place { tablet, placement, preferred_leader, target } => {
                let place = Command::Place { placement, preferred_leader, target };
                answer(self.serve_command(tablet, place).await)
            }
            Request::Move { tablet, generation, preferred_leader, target } => {
                let change = Command::Move { generation, preferred_leader, target };
                answer(self.serve_command(tablet, change).await)
            }
            Request::Prefer { tablet, leader } => {
                answer(self.serve_command(tablet, Command::Prefer { leader }).await)
            }
            Request::Transfer { tablet, to } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.transfer(to).await,
                Err(error) => Err(error),
            }),
            Request::Freeze { tablet, into, unchanged } => {
                answer(self.serve_command(tablet, Command::Freeze { into, unchanged }).await)
            }
            Request::Stage { tablet, content, part, versions } => {
                let stage = Command::Stage { content, part, versions };
                answer(self.serve_command(tablet, stage).await)
            }
            Request::Absorb { tablet, absorb } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.absorb(absorb).await,
                Err(error) => Err(error),
            }),
            Request::Describe { tablet } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.describe().await,
                Err(error) => Err(error),
            }),
            Request::Wants { tablet, on } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.wants(on).await,
                Err(error) => Err(error),
            }),
            Request::Measure { tablet } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.measured().await,
                Err(error) => Err(error),
            }),
            Request::Retire { tablet } => answer(self.serve_command(tablet, Command::Retire).await),
            Request::Remove { tablet } => answer(self.remove_tablet(tablet).await),
            Request::Status => answer(self.replicas()),
            Request::Locks => answer(Ok(self.locks())),
            Request::LockedGet { tablet, lock, keys } => {
                answer(self.serve_locked_get(tablet, lock, keys).await)
            }
            Request::LockedScan { tablet, lock, scan } => {
                answer(self.serve_locked_scan(tablet, lock, scan).await)
            }
            Request::Prepare(prepare) => answer(self.serve_prepare(prepare).await),
            Request::Commit(commit) => answer(self.serve_commit(commit).await),
            other => self.serve_transaction(other).await,
        }
    }

    /// What transactions ask of a tablet besides reading and committing.
    async fn serve_transaction(&self, request: Request) -> Bytes {
        match request {
            Request::Vote { tablet, txn, by, vote } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.vote(txn, by, vote).await,
                Err(error) => Err(error),
            }),
            Request::Press { tablet, txn } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.press(txn).await,
                Err(error) => Err(error),
            }),
            Request::Finish { tablet, txn, commit, protocol } => {
                answer(match self.tablet(tablet) {
                    Ok(tablet) => tablet.settle(txn, commit, protocol).await,
                    Err(error) => Err(error),
                })
            }
            Request::Inquire { tablet, txn, anchor } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.inquire(txn, anchor).await,
                Err(error) => Err(error),
            }),
            Request::End { tablet, txn, held, floor } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.end(txn, held, floor).await,
                Err(error) => Err(error),
            }),
            Request::Alive { tablet, txns } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.alive(&txns).await,
                Err(error) => Err(error),
            }),
            Request::Stale(stale) => self.serve_stale(stale).await,
            other => answer(Err::<(), _>(TxnError::Internal(format!("not served: {other:?}")))),
        }
    }

    async fn serve_command(&self, tablet: TabletId, command: Command) -> Outcome {
        self.tablet(tablet)?.command(command).await
    }

    /// Lets a participant vote: the coordinator hears of it, the gateway only that it began.
    async fn serve_prepare(&self, prepare: Prepare) -> Result<(), TxnError> {
        let tablet = self.tablet(prepare.part.tablet)?;
        tablet.check_leads().await?;
        let node = self.this()?;
        self.env().spawn(async move {
            node.env().work(Work::Write(prepare.part.mutations.len() as u64)).await;
            let (coordinator, by) = (prepare.coordinator, prepare.part.tablet);
            let txn = prepare.part.txn.id;
            if let Some(vote) = tablet.prepare(prepare).await {
                // If it doesn't arrive, the transaction is aborted after a while.
                let _ = node.send_vote(coordinator, txn, by, vote).await;
            }
        });
        Ok(())
    }

    /// Coordinates a transaction, and goes on with it when the gateway is gone.
    async fn serve_commit(&self, commit: Commit) -> Result<Committed, TxnError> {
        let tablet = self.tablet(commit.part.tablet)?;
        tablet.check_leads().await?;
        let node = self.this()?;
        let (txn, protocol) = (commit.part.txn.id, commit.protocol);
        let participants = commit.participants.clone();
        let (tell, decided) = oneshot::channel();
        let (done, outcome) = oneshot::channel();
        let coordinator = tablet.clone();
        self.env().spawn(async move {
            node.env().work(Work::Write(commit.part.mutations.len() as u64)).await;
            let _ = done.send(coordinator.coordinate(commit, tell).await);
        });
        let node = self.this()?;
        self.env().spawn(async move {
            // Else the outcome isn't known here.
            if let Ok(commit) = decided.await {
                let all = node.tell_outcome(txn, participants, commit, protocol).await;
                tablet.told(txn, all);
            }
        });
        let stopped = || TxnError::Unknown { reason: "the coordinator has stopped".into() };
        outcome.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn serve_get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    ) -> Result<(Timestamp, Vec<Option<Row>>), TxnError> {
        let tablet = self.tablet(tablet)?;
        let hull = hull(&keys)?;
        self.env().work(Work::Read(keys.len() as u64)).await;
        let read = tablet.read(at, &hull).await?;
        Ok((read.at, Self::rows(&read, keys)?))
    }

    async fn serve_locked_get(
        &self,
        tablet: TabletId,
        lock: TxnLock,
        keys: Vec<Vec<u8>>,
    ) -> Result<((Timestamp, Option<Hold>), Vec<Option<Row>>), TxnError> {
        let tablet = self.tablet(tablet)?;
        self.env().work(Work::Read(keys.len() as u64)).await;
        let points = keys.iter().map(|key| KeyRange::point(key.clone())).collect();
        let read = tablet.read_locked(lock, points).await?;
        Ok(((read.at, read.hold), Self::rows(&read, keys)?))
    }

    fn rows(read: &TabletRead, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Row>>, TxnError> {
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let version = read.snapshot.get(&key, read.at)?;
            rows.push(
                version.and_then(|version| {
                    version.value.map(|value| Row { key, ts: version.ts, value })
                }),
            );
        }
        Ok(rows)
    }

    async fn serve_scan(
        &self,
        tablet: TabletId,
        scan: ScanRequest,
    ) -> Result<ScanResult, TxnError> {
        let tablet = self.tablet(tablet)?;
        let read = tablet.read(scan.at, &scan.range).await?;
        self.scanned(&read, &scan).await
    }

    async fn serve_locked_scan(
        &self,
        tablet: TabletId,
        lock: TxnLock,
        scan: ScanRequest,
    ) -> Result<((Timestamp, Option<Hold>), ScanResult), TxnError> {
        let tablet = self.tablet(tablet)?;
        let read = tablet.read_locked(lock, vec![scan.range.clone()]).await?;
        Ok(((read.at, read.hold), self.scanned(&read, &scan).await?))
    }

    async fn scanned(&self, read: &TabletRead, scan: &ScanRequest) -> Result<ScanResult, TxnError> {
        let direction = if scan.reverse {
            meridian_storage::Direction::Backward
        } else {
            meridian_storage::Direction::Forward
        };
        let mut result = ScanResult { at: read.at, rows: Vec::new(), more: false };
        let mut size = 0;
        for row in read.snapshot.scan(&scan.range, read.at, direction)? {
            let row = row?;
            if result.rows.len() as u64 >= scan.limit || size >= MAX_ANSWER_BYTES {
                result.more = true;
                break;
            }
            size += row.key.len() + row.value.len() + 16;
            result.rows.push(Row { key: row.key, ts: row.ts, value: row.value });
        }
        self.env().work(Work::Read(result.rows.len() as u64)).await;
        Ok(result)
    }

    /// The locks in the tablets that this node leads; of many, the first.
    #[must_use]
    pub fn locks(&self) -> Vec<TabletLock> {
        let tablets = self.open_tablets().into_iter();
        let locks = tablets.flat_map(|tablet| {
            let of = tablet.id();
            tablet.locks().into_iter().map(move |lock| TabletLock { tablet: of, lock })
        });
        locks.take(MOST_LOCKS).collect()
    }

    /// How this node's replicas stand.
    ///
    /// # Errors
    /// When the data can't be read.
    pub fn replicas(&self) -> Result<Vec<TabletStatus>, TxnError> {
        let mut found = Vec::new();
        for tablet in self.open_tablets() {
            let descriptor = tablet.descriptor();
            let last_write = tablet.machine().last_write();
            let ReplicaStatus { leader, term, last_index, applied_index, .. } =
                tablet.replica().status();
            let size_bytes = self.storage().data.snapshot()?.size_of(&descriptor.range)?;
            found.push(TabletStatus {
                descriptor,
                node: self.id(),
                leader,
                term,
                last_index,
                applied_index,
                last_write,
                size_bytes,
                requests_per_second: tablet.meter().standing().map(|standing| standing.rate),
            });
        }
        Ok(found)
    }
}
