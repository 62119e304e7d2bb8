//! The schema `meridian`: the cluster as tables, and the functions that change it.

pub(crate) mod functions;
mod locks;

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, TableSource, TableType};
use datafusion::physical_plan::ExecutionPlan;
use meridian_storage::NodeId;
use meridian_truetime::Timestamp;
use meridian_txn::Placement;

use crate::catalog::{CatalogSnapshot, bootstrap};
use crate::cluster_view::{ClockRow, ClusterView, LinkRow, NodeRow, ReplicaRow, TabletRow};
use crate::error::SqlError;
use crate::explain::{readable_bound, table_of_key};
use crate::pg_catalog::ViewInfo;
use crate::plan::literals::external;
use crate::types::{PgType, normalize_json};

/// The schema's name.
pub(crate) const SCHEMA: &str = bootstrap::SCHEMA;

#[derive(Clone, Copy, Debug)]
enum View {
    Nodes,
    Clocks,
    Links,
    Tablets,
    Replicas,
    Transactions,
    Locks,
}

const VIEWS: [(&str, View); 7] = [
    ("nodes", View::Nodes),
    ("clocks", View::Clocks),
    ("links", View::Links),
    ("tablets", View::Tablets),
    ("replicas", View::Replicas),
    ("transactions", View::Transactions),
    ("locks", View::Locks),
];

/// The view of that name.
pub(crate) fn table(
    name: &str,
    snapshot: &Arc<CatalogSnapshot>,
    cluster: &Arc<dyn ClusterView>,
) -> Option<Arc<dyn TableProvider>> {
    let &(_, view) = VIEWS.iter().find(|(known, _)| *known == name)?;
    let fields: Vec<_> =
        columns(view).iter().map(|(name, pg_type)| pg_type.field(name, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let (snapshot, cluster) = (Arc::clone(snapshot), Arc::clone(cluster));
    Some(Arc::new(ViewTable { view, schema, snapshot, cluster }))
}

/// The views as PostgreSQL's catalogs list them.
pub(crate) fn views() -> Arc<[ViewInfo]> {
    static INFO: LazyLock<Arc<[ViewInfo]>> = LazyLock::new(|| {
        let info = |&(name, view): &(&str, View)| ViewInfo {
            schema: SCHEMA.to_owned(),
            name: name.to_owned(),
            columns: columns(view).iter().map(|&(name, of)| (name.to_owned(), of)).collect(),
        };
        VIEWS.iter().map(info).collect()
    });
    Arc::clone(&INFO)
}

fn columns(view: View) -> &'static [(&'static str, PgType)] {
    match view {
        View::Nodes => &[
            ("node", PgType::Int8),
            ("region", PgType::Text),
            ("sql_address", PgType::Text),
            ("state", PgType::Text),
            ("started", PgType::Timestamptz),
        ],
        View::Clocks => &[
            ("node", PgType::Int8),
            ("earliest", PgType::Timestamptz),
            ("latest", PgType::Timestamptz),
            ("epsilon_ms", PgType::Float8),
            ("offset_ms", PgType::Float8),
            ("drift_ppm", PgType::Float8),
        ],
        View::Links => &[
            ("from_node", PgType::Int8),
            ("to_node", PgType::Int8),
            ("rtt_ms", PgType::Float8),
            ("jitter_ms", PgType::Float8),
            ("loss", PgType::Float8),
            ("state", PgType::Text),
            ("messages", PgType::Int8),
            ("bytes", PgType::Int8),
        ],
        View::Tablets => &[
            ("tablet", PgType::Int8),
            ("table_name", PgType::Text),
            ("range_start", PgType::Text),
            ("range_end", PgType::Text),
            ("replicas", PgType::Text),
            ("leader", PgType::Int8),
            ("leader_region", PgType::Text),
            ("voters", PgType::Text),
            ("read_only", PgType::Text),
            ("preferred_leader", PgType::Int8),
            ("placement", PgType::Jsonb),
            ("size_bytes", PgType::Int8),
            ("requests_per_second", PgType::Float8),
            ("raft_term", PgType::Int8),
            ("applied_index", PgType::Int8),
            ("generation", PgType::Int8),
        ],
        View::Replicas => &[
            ("tablet", PgType::Int8),
            ("node", PgType::Int8),
            ("role", PgType::Text),
            ("leads", PgType::Bool),
            ("raft_term", PgType::Int8),
            ("last_index", PgType::Int8),
            ("applied_index", PgType::Int8),
            ("lag", PgType::Int8),
            ("last_write", PgType::Timestamptz),
            ("size_bytes", PgType::Int8),
        ],
        View::Transactions => locks::TRANSACTIONS,
        View::Locks => locks::LOCKS,
    }
}

/// Whether it is one of the views whose rows need nothing of the catalog.
pub(crate) fn shows_the_cluster(source: &Arc<dyn TableSource>) -> bool {
    let Ok(provider) = source_as_provider(source) else { return false };
    let view = provider.downcast_ref::<ViewTable>().map(|table| table.view);
    view.is_some_and(|view| !matches!(view, View::Tablets | View::Locks))
}

#[derive(Debug)]
struct ViewTable {
    view: View,
    schema: SchemaRef,
    snapshot: Arc<CatalogSnapshot>,
    cluster: Arc<dyn ClusterView>,
}

#[async_trait]
impl TableProvider for ViewTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = self.columns().await.map_err(external)?;
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        let batches = [vec![batch]];
        let source =
            MemorySourceConfig::try_new_exec(&batches, self.schema(), projection.cloned())?;
        Ok(source)
    }
}

impl ViewTable {
    async fn columns(&self) -> Result<Vec<ArrayRef>, SqlError> {
        let cluster = &self.cluster;
        Ok(match self.view {
            View::Nodes => nodes(&cluster.nodes().await?),
            View::Clocks => clocks(&cluster.clocks().await?),
            View::Links => links(&cluster.links().await?),
            View::Tablets => {
                let mut rows = cluster.tablets().await?;
                rows.sort_by_key(|row| row.tablet);
                tablets(&rows, &self.snapshot)
            }
            View::Replicas => {
                let mut rows = cluster.replicas().await?;
                rows.sort_by_key(|row| (row.tablet, row.node));
                replicas(&rows)
            }
            View::Transactions => locks::transactions(&cluster.locks().await?),
            View::Locks => {
                let mut rows = cluster.locks().await?;
                rows.sort_by_cached_key(|row| {
                    (row.locked.tablet, row.locked.lock.range.start.clone())
                });
                locks::locks(&rows, &self.snapshot)
            }
        })
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn node(node: NodeId) -> i64 {
    number(node.get())
}

fn integers(values: impl Iterator<Item = Option<u64>>) -> ArrayRef {
    Arc::new(values.map(|value| value.map(number)).collect::<Int64Array>())
}

fn floats(values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
    Arc::new(values.collect::<Float64Array>())
}

fn texts<S: AsRef<str>>(values: impl Iterator<Item = Option<S>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn times(values: impl Iterator<Item = Option<Timestamp>>) -> ArrayRef {
    let micros = values.map(|at| at.map(|at| number(at.as_micros())));
    Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

fn nodes(rows: &[NodeRow]) -> Vec<ArrayRef> {
    vec![
        integers(rows.iter().map(|row| Some(row.node.get()))),
        texts(rows.iter().map(|row| Some(&row.region))),
        texts(rows.iter().map(|row| row.sql_address.as_ref())),
        texts(rows.iter().map(|row| Some(&row.state))),
        times(rows.iter().map(|row| row.started)),
    ]
}

fn clocks(rows: &[ClockRow]) -> Vec<ArrayRef> {
    let epsilon = |row: &ClockRow| row.interval.epsilon().as_secs_f64() * 1_000.0;
    vec![
        integers(rows.iter().map(|row| Some(row.node.get()))),
        times(rows.iter().map(|row| Some(row.interval.earliest))),
        times(rows.iter().map(|row| Some(row.interval.latest))),
        floats(rows.iter().map(|row| Some(epsilon(row)))),
        floats(rows.iter().map(|row| row.offset_ms)),
        floats(rows.iter().map(|row| row.drift_ppm)),
    ]
}

fn links(rows: &[LinkRow]) -> Vec<ArrayRef> {
    vec![
        integers(rows.iter().map(|row| Some(row.from.get()))),
        integers(rows.iter().map(|row| Some(row.to.get()))),
        floats(rows.iter().map(|row| Some(row.rtt_ms))),
        floats(rows.iter().map(|row| Some(row.jitter_ms))),
        floats(rows.iter().map(|row| Some(row.loss))),
        texts(rows.iter().map(|row| Some(&row.state))),
        integers(rows.iter().map(|row| Some(row.messages))),
        integers(rows.iter().map(|row| Some(row.bytes))),
    ]
}

fn replicas(rows: &[ReplicaRow]) -> Vec<ArrayRef> {
    let leads: BooleanArray = rows.iter().map(|row| Some(row.leads)).collect();
    vec![
        integers(rows.iter().map(|row| Some(row.tablet.get()))),
        integers(rows.iter().map(|row| Some(row.node.get()))),
        texts(rows.iter().map(|row| row.role)),
        Arc::new(leads),
        integers(rows.iter().map(|row| Some(row.raft_term))),
        integers(rows.iter().map(|row| Some(row.last_index))),
        integers(rows.iter().map(|row| Some(row.applied_index))),
        integers(rows.iter().map(|row| row.lag)),
        times(rows.iter().map(|row| Some(row.last_write))),
        integers(rows.iter().map(|row| Some(row.size_bytes))),
    ]
}

/// Nodes as the text of an array.
fn list(nodes: &[NodeId]) -> String {
    let list: Vec<_> = nodes.iter().map(|&replica| node(replica).to_string()).collect();
    format!("{{{}}}", list.join(","))
}

/// A placement as jsonb.
fn placement(placement: &Placement) -> String {
    let json = serde_json::json!({
        "voters": placement.voters,
        "regions": placement.regions,
        "read_only": placement.read_only,
        "leader_region": placement.leader_region,
    });
    let text = json.to_string();
    normalize_json(&text).unwrap_or(text)
}

fn tablets(rows: &[TabletRow], snapshot: &CatalogSnapshot) -> Vec<ArrayRef> {
    let table_name = |row: &TabletRow| {
        table_of_key(snapshot, &row.start).map(|table| format!("{}.{}", table.schema, table.name))
    };
    vec![
        integers(rows.iter().map(|row| Some(row.tablet.get()))),
        texts(rows.iter().map(table_name)),
        texts(rows.iter().map(|row| Some(readable_bound(snapshot, Some(&row.start))))),
        texts(rows.iter().map(|row| Some(readable_bound(snapshot, row.end.as_deref())))),
        texts(rows.iter().map(|row| Some(list(&row.replicas)))),
        integers(rows.iter().map(|row| row.leader.map(NodeId::get))),
        texts(rows.iter().map(|row| row.leader_region.as_ref())),
        texts(rows.iter().map(|row| Some(list(&row.voters)))),
        texts(rows.iter().map(|row| Some(list(&row.read_only)))),
        integers(rows.iter().map(|row| Some(row.preferred_leader.get()))),
        texts(rows.iter().map(|row| Some(placement(&row.placement)))),
        integers(rows.iter().map(|row| row.size_bytes)),
        floats(rows.iter().map(|row| row.requests_per_second)),
        integers(rows.iter().map(|row| row.raft_term)),
        integers(rows.iter().map(|row| row.applied_index)),
        integers(rows.iter().map(|row| Some(row.generation))),
    ]
}
