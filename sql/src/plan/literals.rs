//! Constants as PostgreSQL types them.
//!
//! To PostgreSQL a quoted literal has no type until its context gives it one: in `id = '7'` it is
//! whatever `id` is, parsed as that type's text. DataFusion takes it for a string and converts the
//! other side. A small integer literal is an `integer` to PostgreSQL and a `bigint` to DataFusion.
//! [`PgExprPlanner`] settles both where an operator is planned; [`settle`] does the same for what
//! no hook sees (IN, BETWEEN) and for casts.

use std::sync::Arc;

use datafusion::common::metadata::FieldMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DataFusionError, ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{InList, Placeholder};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, TypePlanner};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Between, Cast, Expr, ExprSchemable, LogicalPlan};
use datafusion::sql::sqlparser::ast::{BinaryOperator, DataType as SqlType};

use super::cast;
use crate::error::{SqlError, SqlState};
use crate::types::{self, PgType, SessionFormat};

/// Resolves operands before DataFusion compares their types.
#[derive(Debug)]
pub(crate) struct PgExprPlanner {
    pub(crate) format: SessionFormat,
}

impl ExprPlanner for PgExprPlanner {
    fn plan_binary_op(
        &self,
        mut expr: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        let arithmetic = is_arithmetic(&expr.op);
        if !arithmetic && !is_comparison(&expr.op) {
            return Ok(PlannerResult::Original(expr));
        }
        if arithmetic {
            narrow_integers(&mut expr, schema);
            if let Some(folded) = fold_integers(&expr)? {
                return Ok(PlannerResult::Planned(folded));
            }
        }
        self.resolve_unknown(&expr.op, &mut expr.left, &expr.right, schema)?;
        self.resolve_unknown(&expr.op, &mut expr.right, &expr.left, schema)?;
        Ok(PlannerResult::Original(expr))
    }
}

fn is_arithmetic(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Divide, Minus, Modulo, Multiply, Plus};
    matches!(op, Plus | Minus | Multiply | Divide | Modulo)
}

fn is_comparison(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq)
}

/// The PostgreSQL type of an expression, if it has one yet.
fn type_of(expr: &Expr, schema: &dyn ExprSchema) -> Option<PgType> {
    match expr {
        Expr::Placeholder(Placeholder { field: None, .. })
        | Expr::Literal(ScalarValue::Null, _) => None,
        expr => Some(PgType::of_field(&expr.to_field(schema).ok()?.1)),
    }
}

/// The text of a quoted literal.
fn unknown_text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(Some(text)), None) => Some(text),
        _ => None,
    }
}

impl PgExprPlanner {
    /// Gives `operand` the type of `other`, if it is a quoted literal.
    fn resolve_unknown(
        &self,
        op: &BinaryOperator,
        operand: &mut Expr,
        other: &Expr,
        schema: &DFSchema,
    ) -> Result<()> {
        let Some(text) = unknown_text(operand) else {
            return Ok(());
        };
        let Some(mut target) = type_of(other, schema) else {
            return Ok(());
        };
        let of_time =
            matches!(target, PgType::Date | PgType::Time | PgType::Timestamp | PgType::Timestamptz);
        if matches!(op, BinaryOperator::Plus) && of_time {
            target = PgType::Interval;
        }
        if let Some(literal) = parsed(text, target, &self.format)? {
            *operand = literal;
        }
        Ok(())
    }
}

/// The literal that `text` is as that type; `None` where a string will do.
fn parsed(text: &str, target: PgType, format: &SessionFormat) -> Result<Option<Expr>> {
    if target.is_string() || matches!(target, PgType::Unknown | PgType::Array(_)) || target.is_oid()
    {
        return Ok(None);
    }
    let value = types::text::parse(compared(target), text, format).map_err(external)?;
    Ok(Some(literal(value, target)))
}

/// What a literal is parsed as that a value of this type is compared with: of a number any size.
fn compared(target: PgType) -> PgType {
    match target {
        PgType::Numeric { .. } => PgType::UnboundedNumeric,
        other => other,
    }
}

/// A literal that tells its type.
pub(crate) fn literal(value: ScalarValue, pg_type: PgType) -> Expr {
    let field = pg_type.field("", true);
    let metadata = (!field.metadata().is_empty()).then(|| FieldMetadata::from(&field));
    Expr::Literal(value, metadata)
}

fn small_literal(expr: &Expr) -> Option<i32> {
    match expr {
        Expr::Literal(ScalarValue::Int64(Some(value)), _) => i32::try_from(*value).ok(),
        Expr::Literal(ScalarValue::Int32(Some(value)), _) => Some(*value),
        _ => None,
    }
}

/// `1` is an integer beside an integer or a smallint.
fn narrow_integers(expr: &mut RawBinaryExpr, schema: &DFSchema) {
    let narrow = |expr: &Expr| {
        small_literal(expr).is_some()
            || matches!(type_of(expr, schema), Some(PgType::Int2 | PgType::Int4))
    };
    if narrow(&expr.left) && narrow(&expr.right) {
        for side in [&mut expr.left, &mut expr.right] {
            if let Some(value) = small_literal(side) {
                *side = Expr::Literal(ScalarValue::Int32(Some(value)), None);
            }
        }
    }
}

/// Arithmetic on two integer literals, done now, so that it can't wrap later.
fn fold_integers(expr: &RawBinaryExpr) -> Result<Option<Expr>> {
    use BinaryOperator::{Minus, Multiply, Plus};
    let integer = |expr: &Expr| match expr {
        Expr::Literal(ScalarValue::Int32(Some(v)), _) => Some((i128::from(*v), true)),
        Expr::Literal(ScalarValue::Int64(Some(v)), _) => Some((i128::from(*v), false)),
        _ => None,
    };
    let (Some((a, a_small)), Some((b, b_small))) = (integer(&expr.left), integer(&expr.right))
    else {
        return Ok(None);
    };
    let value = match expr.op {
        Plus => a + b,
        Minus => a - b,
        Multiply => a * b,
        _ => return Ok(None),
    };
    let out_of_range = |name: &str| {
        let message = format!("{name} out of range");
        external(SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message))
    };
    let value = if a_small && b_small {
        ScalarValue::Int32(Some(i32::try_from(value).map_err(|_| out_of_range("integer"))?))
    } else {
        ScalarValue::Int64(Some(i64::try_from(value).map_err(|_| out_of_range("bigint"))?))
    };
    Ok(Some(Expr::Literal(value, None)))
}

/// Types by their PostgreSQL names.
#[derive(Debug)]
pub(crate) struct PgTypePlanner;

impl TypePlanner for PgTypePlanner {
    fn plan_type_field(
        &self,
        sql_type: &SqlType,
    ) -> Result<Option<datafusion::arrow::datatypes::FieldRef>> {
        let pg_type = PgType::from_sql(sql_type).map_err(external)?;
        Ok(Some(Arc::new(pg_type.field("", true))))
    }
}

pub(crate) fn external(error: SqlError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Settles quoted literals and casts everywhere in a fresh plan.
pub(crate) fn settle(plan: LogicalPlan, format: &SessionFormat) -> Result<LogicalPlan> {
    let settled = plan.transform_up_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        let names = NamePreserver::new(&node);
        let node = node.map_expressions(|expr| {
            let name = names.save(&expr);
            let settled = expr.transform_up(|expr| settle_expr(expr, &schema, format))?;
            Ok(settled.update_data(|expr| name.restore(expr)))
        })?;
        if node.transformed {
            return Ok(Transformed::yes(node.data.recompute_schema()?));
        }
        // An input's types may have changed below.
        Ok(Transformed::no(node.data.recompute_schema()?))
    })?;
    Ok(settled.data)
}

fn settle_expr(expr: Expr, schema: &DFSchema, format: &SessionFormat) -> Result<Transformed<Expr>> {
    match expr {
        Expr::InList(InList { expr: needle, mut list, negated }) => {
            let mut changed = false;
            if let Some(target) = type_of(&needle, schema) {
                for item in &mut list {
                    changed |= settle_unknown(item, target, format)?;
                }
            }
            let expr = Expr::InList(InList { expr: needle, list, negated });
            Ok(if changed { Transformed::yes(expr) } else { Transformed::no(expr) })
        }
        Expr::Between(Between { expr: needle, negated, mut low, mut high }) => {
            let mut changed = false;
            if let Some(target) = type_of(&needle, schema) {
                changed |= settle_unknown(&mut low, target, format)?;
                changed |= settle_unknown(&mut high, target, format)?;
            }
            let expr = Expr::Between(Between { expr: needle, negated, low, high });
            Ok(if changed { Transformed::yes(expr) } else { Transformed::no(expr) })
        }
        Expr::Cast(Cast { expr: inner, field }) => {
            let target = PgType::of_field(&field);
            if let Expr::Placeholder(Placeholder { id, field: None }) = *inner {
                let field = Arc::new(target.field("", true));
                let typed = Expr::Placeholder(Placeholder { id, field: Some(field) });
                return Ok(Transformed::yes(typed));
            }
            cast::settle(*inner, target, field, schema, format)
        }
        // Beyond bigint a literal is numeric.
        Expr::Literal(ScalarValue::UInt64(Some(value)), None) => {
            let value = ScalarValue::Decimal128(Some(i128::from(value)), 20, 0);
            Ok(Transformed::yes(Expr::Literal(value, None)))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn settle_unknown(item: &mut Expr, target: PgType, format: &SessionFormat) -> Result<bool> {
    let Some(text) = unknown_text(item) else {
        return Ok(false);
    };
    match parsed(text, target, format)? {
        Some(literal) => {
            *item = literal;
            Ok(true)
        }
        None => Ok(false),
    }
}
