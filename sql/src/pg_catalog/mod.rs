//! The system catalogs that psql and drivers ask for: `pg_catalog` and `information_schema`.
//!
//! Clients don't ask a server what it has with a protocol of its own, but with SQL over
//! PostgreSQL's catalogs, and in PostgreSQL's dialect of it. So there are three parts:
//!
//! - **relations**: tables built from one [`CatalogSnapshot`] at the moment they are scanned. Their
//!   columns come from a real PostgreSQL 15 (`data/`), so a client that asks for any column finds
//!   it; the rows are what is true of Meridian. A table has two object ids: its own and, one above,
//!   that of its primary key's index and constraint. Object ids never change.
//! - **functions**: what those queries call (`format_type`, `pg_get_indexdef`, ...), bound to the
//!   same snapshot and session.
//! - **[`rewrite_query`]**: a pass over the parsed statement that turns what DataFusion doesn't plan
//!   (`OPERATOR(pg_catalog.~)`, `'t'::regclass`, `ARRAY(SELECT ...)`, correlated subqueries that
//!   don't aggregate) into what it does. It changes the meaning of no statement.
//!
//! `testdata/` holds the queries exactly as psql 15 sends them for its backslash commands, which
//! the tests here plan and run. psql chooses its queries by `server_version`, so that must stay 15.

mod cell;
mod definition;
mod functions;
mod information_schema;
mod provider;
mod rewrite;
mod rows;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod tests;
mod types;
mod world;

use std::sync::Arc;

use datafusion::catalog::SchemaProvider;
use datafusion::logical_expr::ScalarUDF;

pub(crate) use functions::identifiers;
pub use rewrite::{rewrite_expression, rewrite_query};
pub use world::{Backend, SessionInfo, ViewInfo};

use crate::catalog::CatalogSnapshot;
use world::World;

/// The catalogs as one session sees them with one snapshot. Cheap to make and to clone.
#[derive(Clone, Debug)]
pub struct PgCatalog {
    world: Arc<World>,
}

impl PgCatalog {
    /// The catalogs of these tables and views, for this session.
    #[must_use]
    pub fn new(
        snapshot: Arc<CatalogSnapshot>,
        views: Arc<[ViewInfo]>,
        session: Arc<SessionInfo>,
    ) -> Self {
        Self { world: Arc::new(World::new(snapshot, session, views)) }
    }

    /// The schemas to register, with their names: `pg_catalog` and `information_schema`.
    #[must_use]
    pub fn schemas(&self) -> [(&'static str, Arc<dyn SchemaProvider>); 2] {
        ["pg_catalog", "information_schema"].map(|name| {
            let provider = provider::Schema::new(name, Arc::clone(&self.world));
            (name, Arc::new(provider) as Arc<dyn SchemaProvider>)
        })
    }

    /// The functions to register, by names without a schema. Some take the place of DataFusion's
    /// (`version`, `array_to_string`), so register them after those.
    #[must_use]
    pub fn functions(&self) -> Vec<ScalarUDF> {
        functions::all(&self.world)
    }
}
