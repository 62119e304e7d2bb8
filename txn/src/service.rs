//! What a node does for other nodes' gateways.

use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use meridian_replication::net::{Service, ServiceError};
use meridian_replication::{ReplicaStatus, TabletDescriptor};
use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp, Work};
use serde::{Deserialize, Serialize};

use crate::command::{
    Command, Message, Outcome, ReadAt, Request, Row, ScanRequest, ScanResult, decode, encode,
};
use crate::error::TxnError;
use crate::node::Node;
use crate::once::Turn;

/// The name of the service.
pub(crate) const SERVICE: &str = "tablet";

/// A request that can't be served in this time (no majority, or a version that stays pending) is
/// given up; the gateway has given up before.
const PATIENCE: Duration = Duration::from_secs(15);

/// An answer carries about so many bytes of rows.
const MAX_ANSWER_BYTES: usize = 4 << 20;

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
            Request::Measure { tablet } => answer(match self.tablet(tablet) {
                Ok(tablet) => tablet.measured().await,
                Err(error) => Err(error),
            }),
            Request::Retire { tablet } => answer(self.serve_command(tablet, Command::Retire).await),
            Request::Remove { tablet } => answer(self.remove_tablet(tablet).await),
            Request::Status => answer(self.replicas()),
        }
    }

    async fn serve_command(&self, tablet: TabletId, command: Command) -> Outcome {
        self.tablet(tablet)?.command(command).await
    }

    async fn serve_get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    ) -> Result<(Timestamp, Vec<Option<Row>>), TxnError> {
        let tablet = self.tablet(tablet)?;
        let (Some(first), Some(last)) = (keys.iter().min(), keys.iter().max()) else {
            return Err(TxnError::Internal("a read of no keys".to_owned()));
        };
        let hull = KeyRange { start: first.clone(), end: Some([last, &[0][..]].concat()) };
        self.env().work(Work::Read(keys.len() as u64)).await;
        let read = tablet.read(at, &hull).await?;
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            let version = read.snapshot.get(&key, read.at)?;
            rows.push(
                version.and_then(|version| {
                    version.value.map(|value| Row { key, ts: version.ts, value })
                }),
            );
        }
        Ok((read.at, rows))
    }

    async fn serve_scan(
        &self,
        tablet: TabletId,
        scan: ScanRequest,
    ) -> Result<ScanResult, TxnError> {
        let tablet = self.tablet(tablet)?;
        let read = tablet.read(scan.at, &scan.range).await?;
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
