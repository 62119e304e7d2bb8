//! From a parsed statement to a plan that runs.

pub(crate) mod cache;
pub(crate) mod cast;
pub(crate) mod checked;
pub(crate) mod clock_functions;
pub(crate) mod control;
pub(crate) mod dialect;
pub(crate) mod errors;
mod grammar;
pub(crate) mod literals;
pub(crate) mod names;
pub mod parse;
pub(crate) mod planner;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::logical_expr::Expr;
use datafusion::prelude::Column;

/// The expression with columns named without their tables.
pub(crate) fn strip_qualifiers(expr: &Expr) -> Expr {
    let stripped = expr.clone().transform(|expr| {
        Ok(match expr {
            Expr::Column(column) if column.relation.is_some() => {
                Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))
            }
            other => Transformed::no(other),
        })
    });
    // The closure above never fails.
    stripped.data().unwrap_or_else(|_| expr.clone())
}
