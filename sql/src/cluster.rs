//! Tablets of a cluster: this node's own without a detour, all others through their leaders.
//!
//! A fragment goes to the tablet's leader as one stream of the service `"sql"`. The opener sends
//! the fragment; the leader answers with a header (the timestamp of the read, or why there is none)
//! and then the batches, each in Arrow's IPC format. The end of the stream is the end of the rows;
//! an error in the middle is the last message.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::TaskContext;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use meridian_replication::net::{Incoming, NetError, Outgoing, Service, ServiceError};
use meridian_storage::{DataSnapshot, Direction, KeyRange, KeyType, NodeId, Order, TabletId};
use meridian_truetime::{Env, EnvironmentExt, Timestamp, TtInterval};
use meridian_txn::locks::{Age, Hold, Mode};
use meridian_txn::{
    Changes, CommitProtocol, CommitReport, DirectoryRead, Node, PlacementChange, ReadAt, Row,
    Savepoint, ScanRequest, ScanResult, TabletDescriptor, TabletRead, TxnError, Wait, WriteRequest,
};
use serde::{Deserialize, Serialize};

use crate::error::SqlError;
use crate::fragment::{self, Access, Fragment, RowView, first_rows};
use crate::tablets::{FragmentRead, ReadError, Tablets, Transaction, Visit};

/// The name of the service that runs fragments.
pub(crate) const SERVICE: &str = "sql";

/// How long a gateway waits for a leader's header.
const HEADER: Duration = Duration::from_secs(5);

/// The tablets of a cluster, through one of its nodes.
#[derive(Clone, Debug)]
pub(crate) struct ClusterTablets {
    node: Arc<Node>,
}

impl ClusterTablets {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Runs a fragment at `leader`, if that leads.
    async fn fragment_at(
        &self,
        leader: NodeId,
        tablet: TabletId,
        fragment: &Fragment,
        trips: &AtomicU32,
    ) -> Result<Result<FragmentRead, ReadError>, TxnError> {
        let lost = |reason: &str| TxnError::Unavailable { tablet, reason: reason.to_owned() };
        let env = self.node.env();
        if leader == self.node.id() {
            let opened = env.timeout(HEADER, open(&self.node, tablet, fragment.clone())).await;
            return opened.unwrap_or_else(|_| Err(lost("its leader did not answer in time")));
        }
        let request = match fragment.encode().map(|fragment| Request { tablet, fragment }) {
            Ok(request) => request,
            Err(error) => return Ok(Err(error.into())),
        };
        trips.fetch_add(1, Ordering::Relaxed);
        let failed = |error: &NetError| lost(&error.to_string());
        let (outgoing, mut incoming) =
            self.node.transport().open(leader, SERVICE).await.map_err(|e| failed(&e))?;
        outgoing.send(encode(&request)?).await.map_err(|e| failed(&e))?;
        let header = env.timeout(HEADER, incoming.next()).await;
        let header = match header {
            Err(_) => return Err(lost("its leader did not answer in time")),
            Ok(None) => return Err(lost("its leader ended the stream")),
            Ok(Some(Err(error))) => return Err(failed(&error)),
            Ok(Some(Ok(header))) => decode::<Header>(&header)?,
        };
        match header {
            Header::Opened { at, hold, lock_wait } => {
                let batches = receive(outgoing, incoming);
                let round_trips = trips.load(Ordering::Relaxed);
                let visit = Visit { node: leader, round_trips, lock_wait };
                Ok(Ok(FragmentRead { at, hold, visit, batches }))
            }
            Header::Refused(ReadError::Txn(error)) => Err(error),
            Header::Refused(error) => Ok(Err(error)),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Request {
    tablet: TabletId,
    fragment: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
enum Header {
    Opened { at: Timestamp, hold: Option<Hold>, lock_wait: Duration },
    Refused(ReadError),
}

#[derive(Serialize, Deserialize)]
enum Message {
    Batch(Vec<u8>),
    Failed(ReadError),
    /// That was all. A stream that ends without it was cut off.
    End,
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, TxnError> {
    let bytes = postcard::to_stdvec(value).map_err(|e| TxnError::Internal(e.to_string()))?;
    Ok(bytes.into())
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, TxnError> {
    postcard::from_bytes(bytes).map_err(|e| TxnError::Internal(e.to_string()))
}

/// The batches of a stream. Holding `outgoing` keeps the stream's other direction open; dropping
/// both cancels the fragment.
fn receive(
    outgoing: Outgoing,
    incoming: Incoming,
) -> BoxStream<'static, Result<RecordBatch, ReadError>> {
    let batches = stream::try_unfold((outgoing, incoming), |(outgoing, mut incoming)| async {
        let message = match incoming.next().await {
            // What was read so far is gone; the whole statement may be run again.
            None => return Err(ReadError::Sql(broken("The stream was cut off"))),
            Some(Err(error)) => return Err(ReadError::Sql(broken(&error.to_string()))),
            Some(Ok(message)) => message,
        };
        match decode::<Message>(&message)? {
            Message::Failed(error) => Err(error),
            Message::End => Ok(None),
            Message::Batch(bytes) => Ok(Some((read_batch(&bytes)?, (outgoing, incoming)))),
        }
    });
    batches.boxed()
}

fn broken(detail: &str) -> SqlError {
    SqlError::new(
        crate::error::SqlState::CANNOT_CONNECT_NOW,
        "the connection to the tablet's leader was lost",
    )
    .detail(format!("{detail}."))
    .hint("The statement only read; it might succeed if retried.")
}

fn read_batch(bytes: &[u8]) -> Result<RecordBatch, SqlError> {
    let arrow = |e: datafusion::arrow::error::ArrowError| SqlError::internal(e.to_string());
    let mut reader = StreamReader::try_new(bytes, None).map_err(arrow)?;
    match reader.next() {
        Some(batch) => batch.map_err(arrow),
        None => Err(SqlError::internal("a message without a batch")),
    }
}

fn write_batch(batch: &RecordBatch) -> Result<Vec<u8>, SqlError> {
    let arrow = |e: datafusion::arrow::error::ArrowError| SqlError::internal(e.to_string());
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, batch.schema_ref()).map_err(arrow)?;
    writer.write(batch).map_err(arrow)?;
    writer.finish().map_err(arrow)?;
    drop(writer);
    Ok(bytes)
}

/// Opens a fragment at this node, if it leads the tablet.
async fn open(
    node: &Node,
    tablet: TabletId,
    fragment: Fragment,
) -> Result<Result<FragmentRead, ReadError>, TxnError> {
    let hull = match (fragment.ranges.first(), fragment.ranges.last()) {
        (Some(first), Some(last)) => KeyRange { start: first.start.clone(), end: last.end.clone() },
        _ => return Ok(Err(SqlError::internal("a fragment without ranges").into())),
    };
    let read = match fragment.access {
        Access::At(at) => node.open_read(tablet, at, &hull).await?,
        Access::Stale(at) => node.open_stale(tablet, at, &hull).await?,
        Access::Locked(lock) => node.open_locked(tablet, lock, fragment.ranges.clone()).await?,
    };
    let TabletRead { at, hold, lock_wait, snapshot } = read;
    let view = Arc::new(SnapshotView { at, snapshot });
    let batches = fragment::run(fragment, view, Arc::clone(node.env()));
    let visit = Visit { node: node.id(), round_trips: 0, lock_wait };
    Ok(batches.map(|batches| FragmentRead { at, hold, visit, batches }).map_err(ReadError::from))
}

struct SnapshotView {
    at: Timestamp,
    snapshot: DataSnapshot,
}

impl RowView for SnapshotView {
    fn read(
        &self,
        range: &KeyRange,
        reverse: bool,
        rows: usize,
        bytes: usize,
    ) -> Result<(Vec<Row>, bool), SqlError> {
        let storage = |e: meridian_storage::StorageError| SqlError::internal(e.to_string());
        let direction = if reverse { Direction::Backward } else { Direction::Forward };
        let scan = self.snapshot.scan(range, self.at, direction).map_err(storage)?;
        let row = |row: meridian_storage::Row| Row { key: row.key, ts: row.ts, value: row.value };
        first_rows(scan.map(|found| found.map(row).map_err(storage)), rows, bytes)
    }
}

/// A transaction over the tablets of a cluster.
#[derive(Debug)]
struct ClusterTransaction {
    inner: meridian_txn::Transaction,
    tablets: ClusterTablets,
}

#[async_trait]
impl Transaction for ClusterTransaction {
    fn age(&self) -> Age {
        self.inner.age()
    }

    fn seen(&self) -> Timestamp {
        self.inner.seen()
    }

    fn planned_under(&self, table: u64, version: u64) -> Result<(), TxnError> {
        self.inner.planned_under(table, version)
    }

    fn set_wait(&self, wait: Wait) {
        self.inner.set_wait(wait);
    }

    fn changes(&self) -> Arc<Changes> {
        self.inner.changes()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn savepoint(&self) -> Savepoint {
        self.inner.savepoint()
    }

    fn roll_back_to(&self, savepoint: Savepoint) {
        self.inner.roll_back_to(savepoint);
    }

    async fn get(
        &self,
        keys: Vec<Vec<u8>>,
        mode: Mode,
        wait: Wait,
    ) -> Result<Vec<Option<Row>>, TxnError> {
        self.inner.get(keys, mode, wait).await
    }

    async fn fragment(
        &self,
        tablet: TabletId,
        mut fragment: Fragment,
        mode: Mode,
        wait: Wait,
    ) -> Result<FragmentRead, ReadError> {
        let locking = self.inner.locking(tablet, mode, wait)?;
        let (env, began) = (self.tablets.env(), self.tablets.env().moment());
        loop {
            // What went by before was spent waiting, and asking again.
            let waited = env.moment().since(began);
            fragment.access = Access::Locked(locking.lock());
            match self.tablets.fragment(tablet, fragment.clone()).await {
                Err(ReadError::Txn(error)) if locking.goes_on(&error) => {}
                Err(error) => return Err(error),
                Ok(mut read) => {
                    self.inner.granted(&locking, read.at, read.hold)?;
                    read.visit.lock_wait += waited;
                    return Ok(read);
                }
            }
        }
    }

    fn insert(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), TxnError> {
        self.inner.insert(key, value)
    }

    fn put(&self, key: Vec<u8>, value: Vec<u8>) {
        self.inner.put(key, value);
    }

    fn delete(&self, key: Vec<u8>) {
        self.inner.delete(key);
    }

    async fn commit(&self) -> Result<Timestamp, TxnError> {
        self.inner.commit().await
    }

    fn report(&self) -> CommitReport {
        self.inner.report()
    }

    fn roll_back(&self) {
        self.inner.roll_back();
    }
}

#[async_trait]
impl Tablets for ClusterTablets {
    fn env(&self) -> &Env {
        self.node.env()
    }

    fn now(&self) -> TtInterval {
        self.node.clock().now()
    }

    async fn tablets(&self, range: &KeyRange) -> Result<Vec<TabletDescriptor>, TxnError> {
        self.node.tablets(range).await
    }

    async fn scan(&self, tablet: TabletId, request: ScanRequest) -> Result<ScanResult, TxnError> {
        self.node.scan(tablet, request).await
    }

    async fn get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    ) -> Result<(Timestamp, Vec<Option<Row>>), TxnError> {
        self.node.get(tablet, keys, at).await
    }

    async fn fragment(
        &self,
        tablet: TabletId,
        fragment: Fragment,
    ) -> Result<FragmentRead, ReadError> {
        let (fragment, trips) = (&fragment, &AtomicU32::default());
        self.node
            .at_leader(tablet, |leader| self.fragment_at(leader, tablet, fragment, trips))
            .await?
    }

    async fn fragment_near(
        &self,
        tablet: TabletId,
        fragment: Fragment,
    ) -> Result<FragmentRead, ReadError> {
        let (fragment, trips) = (&fragment, &AtomicU32::default());
        self.node.at_nearest(tablet, |node| self.fragment_at(node, tablet, fragment, trips)).await?
    }

    async fn safe_time_near(&self, tablets: &[TabletId]) -> Result<Timestamp, TxnError> {
        self.node.safe_time_near(tablets).await
    }

    fn begin(
        &self,
        age: Option<Age>,
        protocol: CommitProtocol,
        after: Timestamp,
    ) -> Arc<dyn Transaction> {
        let inner = self.node.begin(age, protocol, after);
        Arc::new(ClusterTransaction { inner, tablets: self.clone() })
    }

    async fn write(&self, request: WriteRequest) -> Result<Timestamp, TxnError> {
        self.node.write(request).await
    }

    async fn directory(&self) -> Result<DirectoryRead, TxnError> {
        self.node.read_directory().await
    }

    async fn new_tablet_id(&self) -> Result<TabletId, TxnError> {
        self.node.new_tablet_id().await
    }

    fn new_tablet(
        &self,
        id: TabletId,
        range: KeyRange,
        root_key: Vec<(KeyType, Order)>,
        change: PlacementChange,
    ) -> Result<TabletDescriptor, TxnError> {
        self.node.new_tablet(id, range, root_key, change)
    }

    async fn ensure_tablet(&self, descriptor: &TabletDescriptor) -> Result<(), TxnError> {
        self.node.ensure_tablet(descriptor).await
    }

    async fn fence_table(
        &self,
        range: &KeyRange,
        table: u64,
        version: u64,
    ) -> Result<(), TxnError> {
        self.node.fence_table(range, table, version).await
    }

    async fn split(&self, key: Vec<u8>) -> Result<TabletId, TxnError> {
        self.node.split(key).await
    }

    async fn merge(&self, tablet: TabletId) -> Result<TabletId, TxnError> {
        self.node.merge(tablet).await
    }

    async fn place(
        &self,
        range: &KeyRange,
        change: PlacementChange,
    ) -> Result<Vec<TabletId>, TxnError> {
        self.node.place(range, change).await
    }

    async fn transfer_leader(&self, tablet: TabletId, node: NodeId) -> Result<(), TxnError> {
        self.node.transfer_leader(tablet, node).await
    }

    async fn move_replica(
        &self,
        tablet: TabletId,
        from: NodeId,
        to: NodeId,
    ) -> Result<(), TxnError> {
        self.node.move_replica(tablet, from, to).await
    }

    async fn retire_tablet(&self, descriptor: &TabletDescriptor) -> Result<(), TxnError> {
        self.node.retire_tablet(descriptor).await
    }

    fn leader(&self, tablet: &TabletDescriptor) -> NodeId {
        self.node.leader_hint(tablet.id).unwrap_or(tablet.preferred_leader)
    }

    fn region(&self, node: NodeId) -> Option<String> {
        let member = self.node.members().iter().find(|member| member.id == node)?;
        Some(member.region.clone())
    }
}

/// Runs the fragments that other nodes send.
pub(crate) struct FragmentService {
    node: Weak<Node>,
    functions: Arc<TaskContext>,
}

impl FragmentService {
    pub(crate) fn new(node: Weak<Node>, functions: Arc<TaskContext>) -> Self {
        Self { node, functions }
    }

    async fn open(&self, request: &[u8]) -> Result<FragmentRead, ReadError> {
        let request: Request = decode(request)?;
        let fragment = Fragment::decode(&request.fragment, &self.functions)?;
        let node = self.node.upgrade().ok_or(TxnError::Unavailable {
            tablet: request.tablet,
            reason: "the node stops".to_owned(),
        })?;
        open(&node, request.tablet, fragment).await?
    }
}

#[async_trait]
impl Service for FragmentService {
    async fn call(&self, _: NodeId, _: Bytes) -> Result<Bytes, ServiceError> {
        Err(ServiceError::new("fragments come as streams"))
    }

    async fn stream(
        &self,
        _: NodeId,
        mut incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<(), ServiceError> {
        let Some(Ok(request)) = incoming.next().await else {
            return Ok(());
        };
        let opened = self.open(&request).await;
        let (header, batches) = match opened {
            Ok(FragmentRead { at, hold, visit, batches }) => {
                (Header::Opened { at, hold, lock_wait: visit.lock_wait }, Some(batches))
            }
            Err(error) => (Header::Refused(error), None),
        };
        let message = encode(&header).map_err(ServiceError::new)?;
        // A send fails when the gateway has gone away: then nobody is interested any more.
        if outgoing.send(message).await.is_err() {
            return Ok(());
        }
        let Some(mut batches) = batches else {
            return Ok(());
        };
        loop {
            let message = match batches.next().await {
                None => Message::End,
                Some(Ok(batch)) => write_batch(&batch)
                    .map_or_else(|error| Message::Failed(error.into()), Message::Batch),
                Some(Err(error)) => Message::Failed(error),
            };
            let last = !matches!(message, Message::Batch(_));
            let bytes = encode(&message).map_err(ServiceError::new)?;
            if outgoing.send(bytes).await.is_err() || last {
                return Ok(());
            }
        }
    }
}
