//! Tablets in memory, for tests: one node, the rules of the real ones, no replication.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::execution::TaskContext;
use meridian_storage::{KeyRange, KeyType, NodeId, Order, TabletId};
use meridian_truetime::{CostModel, Env, Timestamp, TtInterval, World};
use meridian_txn::locks::{Age, Mode, TxnId};
use meridian_txn::{
    Changes, CommitProtocol, CommitReport, DirectoryRead, DirectoryRow, Generation, Mutation,
    Placement, PlacementChange, ReadAt, ReadSet, Row, Savepoint, ScanRequest, ScanResult,
    TabletDescriptor, TxnError, Wait, WriteBuffer, WriteRequest, row_of, table_range,
};

use crate::cluster_view::{
    ClockChange, ClockRow, ClusterView, Effect, LinkChange, LinkRow, LockRow, NodeRow, Place,
    ReplicaRow, TabletRow,
};
use crate::error::SqlError;
use crate::fragment::{self, Access, Fragment, RowView};
use crate::session::Notice;
use crate::tablets::{FragmentRead, ReadError, SYSTEM_TABLET, Tablets, Transaction, Visit};

/// The versions of one key, oldest first; `None` is a deletion.
type Versions = Vec<(Timestamp, Option<Vec<u8>>)>;

/// Everything in one place.
#[derive(Clone, Debug)]
pub(crate) struct FakeTablets {
    env: Env,
    state: Arc<Mutex<State>>,
    functions: Arc<TaskContext>,
    /// Rows that fragments have read.
    pub(crate) reads: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct State {
    now: u64,
    rows: BTreeMap<Vec<u8>, Versions>,
    tablets: Vec<TabletDescriptor>,
    /// Errors that the next writes end with.
    failures: Vec<TxnError>,
    last_tablet: u64,
    /// What was asked of the tablets besides reading and writing.
    calls: Vec<String>,
    /// Every fragment that was run.
    fragments: Vec<Fragment>,
    writes: Vec<WriteRequest>,
    /// The keys of every request for rows by their keys.
    gets: Vec<Vec<Vec<u8>>>,
    /// The oldest version of each table that may still write.
    fences: BTreeMap<u64, u64>,
}

impl FakeTablets {
    pub(crate) fn new(world: &World) -> Self {
        let system = TabletDescriptor {
            id: SYSTEM_TABLET,
            generation: Generation::FIRST,
            range: KeyRange { start: Vec::new(), end: Some(table_range(100).start) },
            sticky: false,
            root_key: Vec::new(),
            voters: vec![NodeId::new(1)],
            read_only: Vec::new(),
            preferred_leader: NodeId::new(1),
            placement: Placement::default(),
        };
        let state =
            State { now: 1_790_000_000_000_000_000, tablets: vec![system], ..State::default() };
        let functions = crate::plan::planner::base_state(Arc::default()).task_ctx();
        Self {
            env: world.node(1),
            state: Arc::new(Mutex::new(state)),
            functions,
            reads: Arc::default(),
        }
    }

    fn call(&self, call: String) {
        self.lock().calls.push(call);
    }

    /// What was asked of the tablets besides reading and writing, since the last time.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().calls)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }

    /// The next write ends with this error, without effect.
    pub(crate) fn fail_next_write(&self, error: TxnError) {
        self.lock().failures.push(error);
    }

    pub(crate) fn take_fragments(&self) -> Vec<Fragment> {
        std::mem::take(&mut self.lock().fragments)
    }

    pub(crate) fn take_writes(&self) -> Vec<WriteRequest> {
        std::mem::take(&mut self.lock().writes)
    }

    pub(crate) fn take_gets(&self) -> Vec<Vec<Vec<u8>>> {
        std::mem::take(&mut self.lock().gets)
    }

    /// Splits the tablet that has the key.
    pub(crate) fn split(&self, at: Vec<u8>) {
        let mut state = self.lock();
        let next = state.tablets.iter().map(|t| t.id.get()).max().unwrap_or(0) + 1_000;
        let position =
            state.tablets.iter().position(|t| t.range.contains(&at)).expect("a tablet has it");
        let mut right = state.tablets[position].clone();
        right.id = TabletId::new(next);
        right.range.start.clone_from(&at);
        state.tablets[position].range.end = Some(at);
        state.tablets.push(right);
    }
}

impl State {
    fn tick(&mut self) -> Timestamp {
        self.now += 1_000;
        Timestamp::from_nanos(self.now)
    }

    /// The directory is rows too; here it is derived from them.
    fn sync_directory(&mut self, mutation: &Mutation) {
        let directory = table_range(99);
        match mutation {
            Mutation::Put { key, value } if directory.contains(key) => {
                match DirectoryRow::decode(value).expect("a row of the directory") {
                    DirectoryRow::Live(descriptor) => self.tablets.push(descriptor),
                    DirectoryRow::Gone { tablet, .. } => self.tablets.retain(|t| t.id != tablet),
                }
            }
            _ => {}
        }
    }

    fn check(&self, tablet: TabletId, range: &KeyRange) -> Result<(), TxnError> {
        match self.tablets.iter().find(|t| t.id == tablet) {
            Some(found) if found.range.contains_range(range) => Ok(()),
            _ => Err(TxnError::NoSuchTablet { tablet }),
        }
    }

    fn validate(&self, request: &WriteRequest) -> Result<(), TxnError> {
        for mutation in &request.mutations {
            if !self.tablets.iter().any(|tablet| tablet.range.contains(mutation.key())) {
                return Err(TxnError::NoSuchTablet { tablet: request.tablet });
            }
        }
        for (table, version) in &request.schema {
            if self.fences.get(table).is_some_and(|oldest| version < oldest) {
                return Err(TxnError::SchemaChanged { table: *table });
            }
        }
        let newest = |key: &[u8]| self.rows.get(key).and_then(|versions| versions.last());
        for (key, seen) in &request.reads.keys {
            let there = newest(key).filter(|v| v.1.is_some()).map(|v| v.0);
            if there != *seen {
                return Err(TxnError::Conflict);
            }
        }
        for range in &request.reads.ranges {
            let mut inside = self.rows.iter().filter(|(key, _)| range.contains(key));
            if inside.any(|(_, v)| v.last().is_some_and(|v| v.0 > request.reads.at)) {
                return Err(TxnError::Conflict);
            }
        }
        for mutation in &request.mutations {
            if let Mutation::Insert { key, .. } = mutation
                && newest(key).is_some_and(|v| v.1.is_some())
            {
                return Err(TxnError::DuplicateKey { key: key.clone() });
            }
        }
        Ok(())
    }

    fn apply(&mut self, request: &WriteRequest) -> Result<Timestamp, TxnError> {
        self.validate(request)?;
        let at = self.tick();
        for mutation in &request.mutations {
            self.sync_directory(mutation);
            let value = match mutation {
                Mutation::Insert { value, .. } | Mutation::Put { value, .. } => Some(value.clone()),
                Mutation::Delete { .. } => None,
            };
            self.rows.entry(mutation.key().to_vec()).or_default().push((at, value));
        }
        for (table, version) in &request.schema {
            self.fence(*table, *version);
        }
        Ok(at)
    }

    fn fence(&mut self, table: u64, version: u64) {
        let oldest = self.fences.entry(table).or_default();
        *oldest = version.max(*oldest);
    }

    fn at(&self, at: ReadAt) -> Timestamp {
        match at {
            ReadAt::Exact(at) => at,
            ReadAt::Strong { .. } | ReadAt::Unconfirmed => Timestamp::from_nanos(self.now),
        }
    }

    fn visible(&self, range: &KeyRange, at: Timestamp) -> Vec<Row> {
        let rows = self.rows.iter().filter(|(key, _)| range.contains(key));
        rows.filter_map(|(key, versions)| {
            let (ts, value) = versions.iter().rev().find(|(ts, _)| *ts <= at)?;
            Some(Row { key: key.clone(), ts: *ts, value: value.clone()? })
        })
        .collect()
    }
}

struct FakeView {
    tablets: FakeTablets,
    at: Timestamp,
}

impl RowView for FakeView {
    fn read(
        &self,
        range: &KeyRange,
        reverse: bool,
        rows: usize,
        _: usize,
    ) -> Result<(Vec<Row>, bool), SqlError> {
        let mut all = self.tablets.lock().visible(range, self.at);
        if reverse {
            all.reverse();
        }
        // Few at a time, so that going on is exercised.
        let rows = rows.min(3 + all.len() / 10);
        let more = all.len() > rows;
        all.truncate(rows);
        self.tablets.reads.fetch_add(all.len(), Ordering::Relaxed);
        Ok((all, more))
    }
}

/// A transaction without locks: nobody is beside it.
#[derive(Debug)]
struct FakeTransaction {
    tablets: FakeTablets,
    age: Age,
    after: Timestamp,
    buffer: Mutex<WriteBuffer>,
    schema: Mutex<BTreeMap<u64, u64>>,
}

impl FakeTransaction {
    fn buffer(&self) -> MutexGuard<'_, WriteBuffer> {
        self.buffer.lock().expect("no test panics while it holds the lock")
    }
}

#[async_trait]
impl Transaction for FakeTransaction {
    fn age(&self) -> Age {
        self.age
    }

    fn seen(&self) -> Timestamp {
        self.after
    }

    fn planned_under(&self, table: u64, version: u64) -> Result<(), TxnError> {
        let mut schema = self.schema.lock().expect("no panics");
        match *schema.entry(table).or_insert(version) {
            before if before == version => Ok(()),
            _ => Err(TxnError::SchemaChanged { table }),
        }
    }

    fn set_wait(&self, _: Wait) {}

    fn changes(&self) -> Arc<Changes> {
        Arc::clone(self.buffer().changes())
    }

    fn size(&self) -> usize {
        self.buffer().size()
    }

    fn savepoint(&self) -> Savepoint {
        self.buffer().savepoint()
    }

    fn roll_back_to(&self, savepoint: Savepoint) {
        self.buffer().roll_back(savepoint);
    }

    async fn get(
        &self,
        keys: Vec<Vec<u8>>,
        _: Mode,
        _: Wait,
    ) -> Result<Vec<Option<Row>>, TxnError> {
        let own = self.changes();
        let mut state = self.tablets.lock();
        state.gets.push(keys.clone());
        let at = Timestamp::from_nanos(state.now);
        let row = |key: Vec<u8>| match own.get(&key) {
            Some(change) => row_of(change),
            None => state.visible(&KeyRange::point(key), at).pop(),
        };
        Ok(keys.into_iter().map(row).collect())
    }

    async fn fragment(
        &self,
        tablet: TabletId,
        mut fragment: Fragment,
        _: Mode,
        _: Wait,
    ) -> Result<FragmentRead, ReadError> {
        fragment.access = Access::At(ReadAt::Unconfirmed);
        self.tablets.fragment(tablet, fragment).await
    }

    fn insert(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), TxnError> {
        self.buffer().insert(key, value)
    }

    fn put(&self, key: Vec<u8>, value: Vec<u8>) {
        self.buffer().put(key, value);
    }

    fn delete(&self, key: Vec<u8>) {
        self.buffer().delete(key);
    }

    async fn commit(&self) -> Result<Timestamp, TxnError> {
        let mutations: Vec<_> = self.buffer().take().into_values().collect();
        if mutations.is_empty() {
            return Ok(Timestamp::MIN);
        }
        let mut state = self.tablets.lock();
        if !state.failures.is_empty() {
            return Err(state.failures.remove(0));
        }
        let holds = |t: &&TabletDescriptor| t.range.contains(mutations[0].key());
        let tablet = state.tablets.iter().find(holds).map_or(SYSTEM_TABLET, |tablet| tablet.id);
        let schema = self.schema.lock().expect("no panics").clone().into_iter().collect();
        let (reads, after) = (ReadSet::default(), self.after);
        let request = WriteRequest { tablet, schema, reads, mutations, after, txn: None };
        let result = state.apply(&request);
        state.writes.push(request);
        result
    }

    fn report(&self) -> CommitReport {
        CommitReport { participants: 1, ..CommitReport::default() }
    }

    fn roll_back(&self) {
        self.buffer().take();
    }
}

#[async_trait]
impl Tablets for FakeTablets {
    fn env(&self) -> &Env {
        &self.env
    }

    fn now(&self) -> TtInterval {
        let now = self.lock().tick();
        TtInterval { earliest: now, latest: now }
    }

    async fn tablets(&self, range: &KeyRange) -> Result<Vec<TabletDescriptor>, TxnError> {
        let state = self.lock();
        let mut found: Vec<_> =
            state.tablets.iter().filter(|t| t.range.overlaps(range)).cloned().collect();
        found.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        if found.is_empty() {
            return Err(TxnError::NoSuchTablet { tablet: TabletId::new(0) });
        }
        Ok(found)
    }

    async fn scan(&self, tablet: TabletId, request: ScanRequest) -> Result<ScanResult, TxnError> {
        let state = self.lock();
        state.check(tablet, &request.range)?;
        let at = state.at(request.at);
        let mut rows = state.visible(&request.range, at);
        if request.reverse {
            rows.reverse();
        }
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX).min(5);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok(ScanResult { at, rows, more })
    }

    async fn get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    ) -> Result<(Timestamp, Vec<Option<Row>>), TxnError> {
        let mut state = self.lock();
        state.gets.push(keys.clone());
        let at = state.at(at);
        let mut rows = Vec::new();
        for key in keys {
            let range = KeyRange::point(key);
            state.check(tablet, &range)?;
            rows.push(state.visible(&range, at).pop());
        }
        Ok((at, rows))
    }

    async fn fragment(
        &self,
        tablet: TabletId,
        fragment: Fragment,
    ) -> Result<FragmentRead, ReadError> {
        let at = {
            let mut state = self.lock();
            for range in &fragment.ranges {
                state.check(tablet, range)?;
            }
            state.fragments.push(fragment.clone());
            match fragment.access {
                Access::At(at) => state.at(at),
                Access::Stale(at) => at,
                Access::Locked(_) => Timestamp::from_nanos(state.now),
            }
        };
        // Everything that travels must survive the journey.
        let fragment = Fragment::decode(&fragment.encode()?, &self.functions)?;
        let view = Arc::new(FakeView { tablets: self.clone(), at });
        let batches = fragment::run(fragment, view, Arc::clone(&self.env))?;
        let visit = Visit { node: NodeId::new(1), round_trips: 0, lock_wait: Duration::ZERO };
        Ok(FragmentRead { at, hold: None, visit, batches })
    }

    async fn fragment_near(
        &self,
        tablet: TabletId,
        fragment: Fragment,
    ) -> Result<FragmentRead, ReadError> {
        self.fragment(tablet, fragment).await
    }

    async fn safe_time_near(&self, _: &[TabletId]) -> Result<Timestamp, TxnError> {
        Ok(Timestamp::from_nanos(self.lock().now))
    }

    fn begin(&self, age: Option<Age>, _: CommitProtocol, after: Timestamp) -> Arc<dyn Transaction> {
        let number = self.env.random();
        let id = TxnId { gateway: NodeId::new(1), number };
        let age = age.unwrap_or(Age { began: Timestamp::from_nanos(self.lock().now), first: id });
        let (buffer, schema) = (Mutex::default(), Mutex::default());
        Arc::new(FakeTransaction { tablets: self.clone(), age, after, buffer, schema })
    }

    async fn write(&self, request: WriteRequest) -> Result<Timestamp, TxnError> {
        let mut state = self.lock();
        if !state.failures.is_empty() {
            return Err(state.failures.remove(0));
        }
        let result = state.apply(&request);
        state.writes.push(request);
        result
    }

    async fn directory(&self) -> Result<DirectoryRead, TxnError> {
        let state = self.lock();
        let at = Timestamp::from_nanos(state.now);
        let rows = KeyRange::point(Vec::new());
        Ok(DirectoryRead { at, rows, tablets: state.tablets.clone() })
    }

    async fn new_tablet_id(&self) -> Result<TabletId, TxnError> {
        let mut state = self.lock();
        state.last_tablet = state.last_tablet.max(SYSTEM_TABLET.get()) + 1;
        Ok(TabletId::new(state.last_tablet))
    }

    fn new_tablet(
        &self,
        id: TabletId,
        range: KeyRange,
        root_key: Vec<(KeyType, Order)>,
        change: PlacementChange,
    ) -> Result<TabletDescriptor, TxnError> {
        Ok(TabletDescriptor {
            id,
            generation: Generation::FIRST,
            range,
            sticky: false,
            root_key,
            voters: vec![NodeId::new(1)],
            read_only: Vec::new(),
            preferred_leader: NodeId::new(1),
            placement: Placement { voters: 3, ..Placement::default() }.with(change),
        })
    }

    async fn ensure_tablet(&self, _: &TabletDescriptor) -> Result<(), TxnError> {
        Ok(())
    }

    async fn fence_table(
        &self,
        range: &KeyRange,
        table: u64,
        version: u64,
    ) -> Result<(), TxnError> {
        self.call(format!("fence {range:?} {table} {version}"));
        self.lock().fence(table, version);
        Ok(())
    }

    async fn split(&self, key: Vec<u8>) -> Result<TabletId, TxnError> {
        self.call(format!("split {key:02x?}"));
        Ok(TabletId::new(7))
    }

    async fn merge(&self, tablet: TabletId) -> Result<TabletId, TxnError> {
        self.call(format!("merge {tablet}"));
        Ok(tablet)
    }

    async fn place(
        &self,
        range: &KeyRange,
        change: PlacementChange,
    ) -> Result<Vec<TabletId>, TxnError> {
        self.call(format!("place {range:?} {change:?}"));
        Ok(vec![TabletId::new(7)])
    }

    async fn transfer_leader(&self, tablet: TabletId, node: NodeId) -> Result<(), TxnError> {
        self.call(format!("transfer {tablet} to {node}"));
        Ok(())
    }

    async fn move_replica(
        &self,
        tablet: TabletId,
        from: NodeId,
        to: NodeId,
    ) -> Result<(), TxnError> {
        self.call(format!("move {tablet} from {from} to {to}"));
        Ok(())
    }

    async fn retire_tablet(&self, _: &TabletDescriptor) -> Result<(), TxnError> {
        Ok(())
    }

    fn leader(&self, tablet: &TabletDescriptor) -> NodeId {
        tablet.preferred_leader
    }

    fn region(&self, _: NodeId) -> Option<String> {
        Some("us-east".to_owned())
    }
}

/// A cluster of one node that records what it is told.
#[derive(Debug, Default)]
pub(crate) struct FakeCluster {
    pub(crate) calls: Mutex<Vec<String>>,
}

#[async_trait]
impl ClusterView for FakeCluster {
    async fn nodes(&self) -> Result<Vec<NodeRow>, SqlError> {
        Ok(vec![NodeRow {
            node: NodeId::new(1),
            region: "us-east".to_owned(),
            sql_address: Some("127.0.0.1:5433".to_owned()),
            state: "running".to_owned(),
            started: Some(Timestamp::from_nanos(1_790_000_000_000_000_000)),
        }])
    }

    async fn clocks(&self) -> Result<Vec<ClockRow>, SqlError> {
        Ok(Vec::new())
    }

    async fn links(&self) -> Result<Vec<LinkRow>, SqlError> {
        Ok(Vec::new())
    }

    async fn tablets(&self) -> Result<Vec<TabletRow>, SqlError> {
        let range = table_range(100);
        Ok(vec![TabletRow {
            tablet: TabletId::new(2),
            start: range.start,
            end: range.end,
            replicas: vec![NodeId::new(1), NodeId::new(2)],
            voters: vec![NodeId::new(1)],
            read_only: vec![NodeId::new(2)],
            preferred_leader: NodeId::new(1),
            placement: Placement {
                voters: 1,
                leader_region: Some("us-east".to_owned()),
                ..Placement::default()
            },
            leader: Some(NodeId::new(1)),
            leader_region: Some("us-east".to_owned()),
            size_bytes: Some(17),
            requests_per_second: Some(0.5),
            raft_term: Some(1),
            applied_index: Some(2),
            generation: 1,
        }])
    }

    async fn replicas(&self) -> Result<Vec<ReplicaRow>, SqlError> {
        Ok(Vec::new())
    }

    async fn locks(&self) -> Result<Vec<LockRow>, SqlError> {
        Ok(Vec::new())
    }

    async fn stop_node(&self, node: NodeId) -> Result<bool, SqlError> {
        self.told(format!("stop {node}"));
        Ok(true)
    }

    async fn start_node(&self, node: NodeId) -> Result<bool, SqlError> {
        self.told(format!("start {node}"));
        Ok(true)
    }

    async fn pause_node(&self, node: NodeId, pause: Option<Duration>) -> Result<Effect, SqlError> {
        self.told(format!("pause {node} {pause:?}"));
        Ok(true.into())
    }

    async fn partition(&self, a: &Place, b: &Place, both: bool) -> Result<Effect, SqlError> {
        self.told(format!("partition {a:?} {b:?} {both}"));
        Ok(true.into())
    }

    async fn heal(&self, between: Option<&[Place; 2]>) -> Result<Effect, SqlError> {
        self.told(format!("heal {between:?}"));
        Ok(false.into())
    }

    async fn set_latency(
        &self,
        a: &Place,
        b: &Place,
        change: LinkChange,
    ) -> Result<Effect, SqlError> {
        self.told(format!("latency {a:?} {b:?} {change:?}"));
        Ok(Effect { changed: true, notices: vec![Notice::remark("far")] })
    }

    async fn set_clock(&self, node: NodeId, change: ClockChange) -> Result<Effect, SqlError> {
        self.told(format!("clock {node} {change:?}"));
        Ok(Effect { changed: true, notices: vec![Notice::warning("wrong")] })
    }
}

impl FakeCluster {
    fn told(&self, call: String) {
        self.calls.lock().expect("no panics").push(call);
    }
}

/// Runs a test in virtual time.
pub(crate) fn in_world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    World::run_virtual(0, CostModel::default(), test);
}
