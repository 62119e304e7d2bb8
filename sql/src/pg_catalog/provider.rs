//! The catalogs' relations as DataFusion's tables. Their rows are made when they are scanned.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;

use super::cell;
use super::definition::{self, Definition};
use super::world::World;
use super::{information_schema, rows};

/// A schema of system catalogs.
#[derive(Debug)]
pub(super) struct Schema {
    name: &'static str,
    world: Arc<World>,
}

impl Schema {
    pub(super) fn new(name: &'static str, world: Arc<World>) -> Self {
        Self { name, world }
    }

    fn definition(&self, name: &str) -> Option<&'static Definition> {
        definition::relations(self.name)?.get(name)
    }
}

#[async_trait]
impl SchemaProvider for Schema {
    fn table_names(&self) -> Vec<String> {
        let relations = definition::relations(self.name).into_iter().flatten();
        relations.map(|(name, _)| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let relation = |definition| Relation { definition, world: Arc::clone(&self.world) };
        Ok(self.definition(name).map(|found| Arc::new(relation(found)) as Arc<dyn TableProvider>))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.definition(name).is_some()
    }
}

/// A relation of a system catalog, over the world that its rows are made from.
#[derive(Debug)]
struct Relation {
    definition: &'static Definition,
    world: Arc<World>,
}

impl Relation {
    fn batch(&self) -> Result<RecordBatch> {
        let definition = self.definition;
        let make = match definition.schema {
            "information_schema" => information_schema::of(definition.name),
            _ => rows::of(definition.name),
        };
        let rows = make.map(|make| make(&self.world, definition)).unwrap_or_default();
        let fields = definition.arrow.fields().iter().enumerate();
        let arrays: Vec<ArrayRef> = fields
            .map(|(position, field)| {
                cell::array(field.data_type(), rows.iter().map(|row| &row[position]))
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&definition.arrow), arrays, &options)?)
    }
}

#[async_trait]
impl TableProvider for Relation {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.definition.arrow)
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
        let batches = [vec![self.batch()?]];
        Ok(MemorySourceConfig::try_new_exec(&batches, self.schema(), projection.cloned())?)
    }
}
