//! What the sessions of one node share.

use std::fmt;
use std::sync::Arc;

use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionState;
use futures::FutureExt;
use meridian_txn::{CommitProtocol, Node};

use crate::catalog::{Catalog, CatalogSnapshot};
use crate::cluster::{ClusterTablets, FragmentService, SERVICE};
use crate::cluster_view::ClusterView;
use crate::error::SqlError;
use crate::meridian_schema;
use crate::plan::cache::PlanCache;
use crate::plan::errors::sql_error;
use crate::plan::planner::{Relations, base_state};
use crate::scan::TabletTable;
use crate::session::{Session, SessionParameters};
use crate::tablets::Tablets;

/// The most memory that the operators of all queries of a node hold at once.
const QUERY_MEMORY: usize = 1 << 30;

/// The SQL engine of one node.
pub struct Engine {
    pub(crate) tablets: Arc<dyn Tablets>,
    pub(crate) catalog: Catalog,
    pub(crate) cluster: Arc<dyn ClusterView>,
    pub(crate) runtime: Arc<RuntimeEnv>,
    pub(crate) plans: PlanCache,
    /// DataFusion's state, before a session's settings and functions.
    pub(crate) base: SessionState,
    /// How transactions commit, where a session says nothing.
    pub(crate) protocol: CommitProtocol,
    /// The functions that a fragment may call.
    functions: Arc<TaskContext>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("tablets", &self.tablets).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over a node of a cluster; also serves the fragments of other nodes' queries.
    ///
    /// # Errors
    /// When DataFusion can't be set up.
    pub fn new(
        node: Arc<Node>,
        cluster: Arc<dyn ClusterView>,
        protocol: CommitProtocol,
    ) -> Result<Arc<Self>, SqlError> {
        let tablets = Arc::new(ClusterTablets::new(Arc::clone(&node)));
        let engine = Self::over(tablets, cluster, protocol)?;
        let service = FragmentService::new(Arc::downgrade(&node), Arc::clone(&engine.functions));
        node.registry().register(SERVICE, Arc::new(service));
        Ok(engine)
    }

    /// An engine over anything that serves tablets.
    pub(crate) fn over(
        tablets: Arc<dyn Tablets>,
        cluster: Arc<dyn ClusterView>,
        protocol: CommitProtocol,
    ) -> Result<Arc<Self>, SqlError> {
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(QUERY_MEMORY)))
            .with_disk_manager_builder(disk)
            .build_arc()
            .map_err(|e| sql_error(&e))?;
        let base = base_state(Arc::clone(&runtime));
        let functions = base.task_ctx();
        let catalog = Catalog::new(Arc::clone(&tablets));
        let plans = PlanCache::default();
        Ok(Arc::new(Self { tablets, catalog, cluster, runtime, plans, base, protocol, functions }))
    }

    /// A session of one client.
    ///
    /// # Errors
    /// `22023` for an option with a value that its setting doesn't take.
    pub fn session(self: &Arc<Self>, parameters: SessionParameters) -> Result<Session, SqlError> {
        Session::new(Arc::clone(self), parameters)
    }

    /// The tables of a snapshot, of the schema `meridian` and of PostgreSQL's own schemas.
    pub(crate) fn relations(
        &self,
        snapshot: Arc<CatalogSnapshot>,
        postgres: [(&'static str, Arc<dyn SchemaProvider>); 2],
    ) -> Arc<dyn Relations> {
        Arc::new(AllRelations {
            snapshot,
            tablets: Arc::clone(&self.tablets),
            cluster: Arc::clone(&self.cluster),
            functions: Arc::clone(&self.functions),
            postgres,
        })
    }
}

struct AllRelations {
    snapshot: Arc<CatalogSnapshot>,
    tablets: Arc<dyn Tablets>,
    cluster: Arc<dyn ClusterView>,
    functions: Arc<TaskContext>,
    postgres: [(&'static str, Arc<dyn SchemaProvider>); 2],
}

impl Relations for AllRelations {
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
        if let Some(table) = self.snapshot.table(schema, name) {
            let tablets = Arc::clone(&self.tablets);
            let functions = Arc::clone(&self.functions);
            return Some(Arc::new(TabletTable::new(Arc::clone(table), tablets, functions)));
        }
        if schema == meridian_schema::SCHEMA {
            return meridian_schema::table(name, &self.snapshot, &self.cluster);
        }
        let (_, provider) = self.postgres.iter().find(|(postgres, _)| *postgres == schema)?;
        // The catalogs' tables are built in memory: their futures are ready.
        provider.table(name).now_or_never()?.ok()?
    }

    fn has_schema(&self, schema: &str) -> bool {
        schema == "public"
            || schema == meridian_schema::SCHEMA
            || self.postgres.iter().any(|(postgres, _)| *postgres == schema)
    }
}
