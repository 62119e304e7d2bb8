//! Values that a statement brings along: constants without DataFusion, anything else through it.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatchOptions, new_null_array};
use datafusion::arrow::datatypes::{FieldRef, Schema};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{EmptyRelation, Expr, LogicalPlan, Projection};
use datafusion::physical_expr::create_physical_expr;
use datafusion::sql::sqlparser::ast;

use crate::catalog::{ColumnInfo, TableInfo};
use crate::error::{SqlError, SqlState};
use crate::plan::checked::checked;
use crate::plan::errors::sql_error;
use crate::plan::literals::settle;
use crate::plan::parse::parse_expression;
use crate::plan::planner::Scope;
use crate::session::{Parameters, placeholder};
use crate::types::assign::assign;
use crate::types::{PgType, SessionFormat, text};

/// A value of a row that is to be written, and its type; quoted literals have none.
pub(super) enum Given {
    /// A quoted literal: the column says what it is.
    Text(String),
    /// A value with a type.
    Value(ScalarValue, PgType),
}

/// Evaluates the expressions of one statement.
pub(super) struct Evaluator<'s> {
    scope: &'s Scope,
    parameters: &'s Parameters,
    fields: Vec<Option<FieldRef>>,
}

impl<'s> Evaluator<'s> {
    pub(super) fn new(scope: &'s Scope, parameters: &'s Parameters) -> Self {
        Self { scope, parameters, fields: parameters.fields() }
    }

    /// The value of an expression, ready for its column.
    pub(super) fn value(
        &self,
        expr: &ast::Expr,
        column: &ColumnInfo,
    ) -> Result<ScalarValue, SqlError> {
        let given = match self.constant(expr)? {
            Some(given) => given,
            None => self.general(expr)?,
        };
        given.assign(column, &self.scope.format)
    }

    /// A constant or a parameter.
    pub(super) fn constant(&self, expr: &ast::Expr) -> Result<Option<Given>, SqlError> {
        if let Some(position) = placeholder(expr) {
            let value =
                self.parameters.values.get(position).zip(self.parameters.types.get(position));
            return Ok(value.map(|(value, pg_type)| Given::Value(value.clone(), *pg_type)));
        }
        constant(expr, &self.scope.format)
    }

    /// Any expression without columns and subqueries.
    fn general(&self, expr: &ast::Expr) -> Result<Given, SqlError> {
        let df = |e| sql_error(&e);
        let schema = Arc::new(DFSchema::empty());
        let planned = self.scope.plan_expression(expr.clone(), &schema, &self.fields)?;
        if planned.contains_outer() || has_subquery(&planned) {
            return Err(SqlError::unsupported("subqueries in VALUES are not supported")
                .hint("Use INSERT ... SELECT."));
        }
        // The rules for literals work on plans.
        let plan = LogicalPlan::EmptyRelation(EmptyRelation {
            produce_one_row: true,
            schema: Arc::clone(&schema),
        });
        let plan = Projection::try_new(vec![planned.alias("value")], Arc::new(plan)).map_err(df)?;
        let plan = settle(LogicalPlan::Projection(plan), &self.scope.format).map_err(df)?;
        let plan = crate::session::bind(plan, &self.parameters.values)?;
        let plan = self.scope.optimize(&plan)?;
        let LogicalPlan::Projection(Projection { mut expr, .. }) = plan else {
            return Err(SqlError::internal("the projection of a constant was optimized away"));
        };
        let Some(expr) = expr.pop() else {
            return Err(SqlError::internal("the projection of a constant is empty"));
        };
        let expr = expr.unalias();
        let props = self.scope.state.execution_props();
        let context = PhysicalPlanningContext::default();
        let physical =
            create_physical_expr(&expr, &schema, props, &context).and_then(checked).map_err(df)?;
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)
            .map_err(|e| sql_error(&e.into()))?;
        let field = physical.return_field(row.schema_ref()).map_err(df)?;
        let array = physical.evaluate(&row).and_then(|value| value.into_array(1)).map_err(df)?;
        let value = ScalarValue::try_from_array(&array, 0).map_err(df)?;
        Ok(Given::Value(value, PgType::of_field(&field)))
    }
}

impl Given {
    /// As a value of the column.
    pub(super) fn assign(
        self,
        column: &ColumnInfo,
        format: &SessionFormat,
    ) -> Result<ScalarValue, SqlError> {
        match self {
            Self::Text(text) => text::parse(column.pg_type, &text, format),
            Self::Value(value, pg_type) => match direct(&value, column.pg_type) {
                Some(value) => Ok(value),
                None => assign(&value, pg_type, column.pg_type, &column.name, format),
            },
        }
    }
}

/// The conversions of integers that bulk inserts consist of.
fn direct(value: &ScalarValue, target: PgType) -> Option<ScalarValue> {
    match (value, target) {
        (ScalarValue::Int32(Some(_)), PgType::Int4)
        | (ScalarValue::Int64(Some(_)), PgType::Int8) => Some(value.clone()),
        (ScalarValue::Int32(Some(value)), PgType::Int8) => {
            Some(ScalarValue::Int64(Some(i64::from(*value))))
        }
        _ => None,
    }
}

/// A constant as it is written.
fn constant(expr: &ast::Expr, format: &SessionFormat) -> Result<Option<Given>, SqlError> {
    use ast::Value;
    Ok(match expr {
        ast::Expr::Nested(inner) => constant(inner, format)?,
        ast::Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => Some(number(digits, format)?),
            Value::SingleQuotedString(text)
            | Value::EscapedStringLiteral(text)
            | Value::UnicodeStringLiteral(text) => Some(Given::Text(text.clone())),
            Value::DollarQuotedString(quoted) => Some(Given::Text(quoted.value.clone())),
            Value::Boolean(value) => {
                Some(Given::Value(ScalarValue::Boolean(Some(*value)), PgType::Bool))
            }
            Value::Null => Some(Given::Value(ScalarValue::Null, PgType::Unknown)),
            _ => None,
        },
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match expr.as_ref() {
            ast::Expr::Value(value) => match &value.value {
                Value::Number(digits, _) => Some(number(&format!("-{digits}"), format)?),
                _ => None,
            },
            _ => None,
        },
        ast::Expr::TypedString(typed) => match typed.value.clone().into_string() {
            Some(text) => {
                let pg_type = PgType::from_sql(&typed.data_type)?;
                Some(Given::Value(text::parse(pg_type, &text, format)?, pg_type))
            }
            None => None,
        },
        _ => None,
    })
}

fn number(digits: &str, format: &SessionFormat) -> Result<Given, SqlError> {
    let digits = digits.replace('_', "");
    if let Ok(value) = digits.parse::<i32>() {
        return Ok(Given::Value(ScalarValue::Int32(Some(value)), PgType::Int4));
    }
    if let Ok(value) = digits.parse::<i64>() {
        return Ok(Given::Value(ScalarValue::Int64(Some(value)), PgType::Int8));
    }
    match text::parse(PgType::UnboundedNumeric, &digits, format) {
        Ok(value) => Ok(Given::Value(value, PgType::UnboundedNumeric)),
        // More digits than a decimal holds, such as 1e300: the column's type reads it as it can.
        Err(error) if error.sqlstate == SqlState::FEATURE_NOT_SUPPORTED => Ok(Given::Text(digits)),
        Err(error) => Err(error),
    }
}

fn has_subquery(expr: &Expr) -> bool {
    expr.exists(|e| {
        Ok(matches!(
            e,
            Expr::ScalarSubquery(_)
                | Expr::Exists(_)
                | Expr::InSubquery(_)
                | Expr::SetComparison(_)
        ))
    })
    .unwrap_or(true)
}

/// The defaults of a table's columns.
pub(super) struct Defaults<'e> {
    evaluator: &'e Evaluator<'e>,
    expressions: Vec<Option<ast::Expr>>,
}

impl<'e> Defaults<'e> {
    pub(super) fn new(evaluator: &'e Evaluator<'e>, table: &TableInfo) -> Result<Self, SqlError> {
        let parse =
            |column: &ColumnInfo| column.default.as_deref().map(parse_expression).transpose();
        let expressions: Result<Vec<_>, _> = table.columns.iter().map(parse).collect();
        Ok(Self { evaluator, expressions: expressions? })
    }

    /// New default values for the column of so many rows.
    pub(super) fn array(
        &self,
        table: &TableInfo,
        position: usize,
        rows: usize,
    ) -> Result<ArrayRef, SqlError> {
        if self.expressions[position].is_none() || rows == 0 {
            return Ok(new_null_array(&table.columns[position].pg_type.arrow_type(), rows));
        }
        let values: Result<Vec<_>, _> = (0..rows).map(|_| self.value(table, position)).collect();
        ScalarValue::iter_to_array(values?).map_err(|e| sql_error(&e))
    }

    /// A new default value for the column; NULL if it has none.
    pub(super) fn value(
        &self,
        table: &TableInfo,
        position: usize,
    ) -> Result<ScalarValue, SqlError> {
        let column = &table.columns[position];
        match &self.expressions[position] {
            Some(expr) => self.evaluator.value(expr, column),
            None => ScalarValue::try_from(&column.pg_type.arrow_type()).map_err(|e| sql_error(&e)),
        }
    }
}

/// Whether the expression is the keyword DEFAULT.
pub(super) fn is_default(expr: &ast::Expr) -> bool {
    matches!(
        expr,
        ast::Expr::Identifier(ident)
            if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default")
    )
}
