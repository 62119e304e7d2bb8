//! Arithmetic that fails where it would wrap: DataFusion's wraps unless each expression is told.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::BinaryExpr;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::ProjectionExec;

/// The same expression with `+`, `-` and `*` that fail on overflow.
pub(crate) fn checked(expression: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
    expression
        .transform_up(|expression| {
            let Some(binary) = expression.downcast_ref::<BinaryExpr>() else {
                return Ok(Transformed::no(expression));
            };
            if !matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply) {
                return Ok(Transformed::no(expression));
            }
            let (left, right) = (Arc::clone(binary.left()), Arc::clone(binary.right()));
            let checked = BinaryExpr::new(left, *binary.op(), right).with_fail_on_overflow(true);
            Ok(Transformed::yes(Arc::new(checked) as _))
        })
        .data()
}

/// Applies [`checked`] to the projections and filters of a plan, where nearly all arithmetic is.
#[derive(Debug)]
pub(crate) struct CheckedArithmetic;

impl PhysicalOptimizerRule for CheckedArithmetic {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
                let expressions: Result<Vec<_>> = projection
                    .expr()
                    .iter()
                    .map(|e| {
                        let expr = checked(Arc::clone(&e.expr))?;
                        Ok(ProjectionExpr { expr, alias: e.alias.clone() })
                    })
                    .collect();
                let input = Arc::clone(projection.input());
                return Ok(Transformed::yes(Arc::new(ProjectionExec::try_new(
                    expressions?,
                    input,
                )?)));
            }
            if let Some(filter) = plan.downcast_ref::<FilterExec>() {
                let predicate = checked(Arc::clone(filter.predicate()))?;
                let filter = FilterExecBuilder::from(filter).with_predicate(predicate).build()?;
                return Ok(Transformed::yes(Arc::new(filter)));
            }
            Ok(Transformed::no(plan))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "checked_arithmetic"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
