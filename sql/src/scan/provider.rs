//! A table as DataFusion sees it.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Constraint, Constraints, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use meridian_storage::KeyRange;
use meridian_txn::TxnError;

use super::exec::{Part, Scan, ScanExec, external};
use super::ranges::key_ranges;
use crate::catalog::TableInfo;
use crate::codec;
use crate::tablets::{ReadError, SYSTEM_TABLET, Tablets};

/// A table of the catalog over its tablets.
#[derive(Debug)]
pub(crate) struct TabletTable {
    table: Arc<TableInfo>,
    tablets: Arc<dyn Tablets>,
    /// What a leader can call.
    functions: Arc<TaskContext>,
    schema: SchemaRef,
    constraints: Constraints,
}

impl TabletTable {
    pub(crate) fn new(
        table: Arc<TableInfo>,
        tablets: Arc<dyn Tablets>,
        functions: Arc<TaskContext>,
    ) -> Self {
        let schema = codec::schema(&table);
        let key = Constraint::PrimaryKey(table.primary_key.clone());
        let constraints = Constraints::new_unverified(vec![key]);
        Self { table, tablets, functions, schema, constraints }
    }

    pub(crate) fn table(&self) -> &Arc<TableInfo> {
        &self.table
    }
}

/// Assigns ranges to the tablets that hold them.
pub(crate) async fn locate(
    tablets: &dyn Tablets,
    ranges: Vec<KeyRange>,
) -> Result<Vec<Part>, TxnError> {
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
        return Ok(Vec::new());
    };
    let hull = KeyRange { start: first.start.clone(), end: last.end.clone() };
    let mut parts = Vec::new();
    for tablet in tablets.tablets(&hull).await? {
        let inside: Vec<KeyRange> = ranges
            .iter()
            .map(|range| range.intersect(&tablet.range))
            .filter(|range| !range.is_empty())
            .collect();
        if !inside.is_empty() {
            parts.push(Part { tablet, ranges: inside });
        }
    }
    if parts.is_empty() {
        // The directory lists no tablet: the table is gone. Any id serves to say so.
        return Err(TxnError::NoSuchTablet { tablet: SYSTEM_TABLET });
    }
    Ok(parts)
}

#[async_trait]
impl TableProvider for TabletTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let ranges = key_ranges(&self.table, filters);
        let parts =
            locate(self.tablets.as_ref(), ranges).await.map_err(|e| external(ReadError::Txn(e)))?;
        let all = || (0..self.table.columns.len()).collect();
        let scan = Scan {
            table: Arc::clone(&self.table),
            parts,
            projection: projection.cloned().unwrap_or_else(all),
            filters: filters.to_vec(),
            limit,
            reverse: false,
        };
        Ok(Arc::new(ScanExec::new(scan, Arc::clone(&self.tablets))))
    }

    /// A leader evaluates any expression over the columns of one row.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| {
                if self.runs_at_leader(filter) {
                    TableProviderFilterPushDown::Exact
                } else {
                    TableProviderFilterPushDown::Unsupported
                }
            })
            .collect())
    }
}

impl TabletTable {
    /// Whether a leader can evaluate the filter: no subqueries, and only functions that every node
    /// has (some are bound to a session).
    fn runs_at_leader(&self, filter: &Expr) -> bool {
        let foreign = filter.exists(|expr| {
            Ok(match expr {
                Expr::Exists(_)
                | Expr::InSubquery(_)
                | Expr::ScalarSubquery(_)
                | Expr::SetComparison(_)
                | Expr::OuterReferenceColumn(..)
                | Expr::ScalarVariable(..)
                | Expr::HigherOrderFunction(_) => true,
                Expr::ScalarFunction(call) => {
                    let known = self.functions.scalar_functions().get(call.func.name());
                    known.is_none_or(|known| known != &call.func)
                }
                _ => false,
            })
        });
        !filter.is_volatile() && matches!(foreign, Ok(false))
    }
}
