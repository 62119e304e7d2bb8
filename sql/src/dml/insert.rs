//! INSERT.

use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast;

use super::values::{Defaults, Evaluator, is_default};
use super::{Changes, MAX_BYTES, Work, Write, add_rows, reading_plan, target};
use crate::catalog::TableInfo;
use crate::codec;
use crate::error::SqlError;
use crate::plan::errors::sql_error;
use crate::plan::planner::Scope;
use crate::session::{Inference, Parameters, QueryError, Reading, rewritten};
use crate::types::PgType;
use crate::types::assign::assign_array;

type Row = ast::Parens<Vec<ast::Expr>>;

/// The rows that an INSERT brings.
enum Source<'a> {
    /// VALUES, row by row.
    Rows(&'a [Row]),
    /// One row of defaults.
    Defaults,
    /// Any other query.
    Query(&'a ast::Query),
}

pub(super) async fn plan(
    work: &Work<'_>,
    insert: &ast::Insert,
    parameters: &Parameters,
) -> Result<Write, QueryError> {
    let Work { session, scope, .. } = *work;
    refuse(insert)?;
    let table = target::table(scope, table_name(insert)?)?;
    let targets = columns(&table, insert)?;
    let codec = codec::row_codec(&table)?;
    let evaluator = Evaluator::new(scope, parameters);
    let defaults = Defaults::new(&evaluator, &table)?;
    let mut changes = Changes::default();
    match source(insert) {
        Source::Defaults => {
            let arrays = value_columns(&table, &evaluator, &defaults, &[], &[&[]])?;
            add_rows(&table, &codec, &arrays, &mut changes)?;
            Ok(Write { table, changes, count: 1 })
        }
        Source::Rows(rows) => {
            let targets = check_widths(&targets, rows, insert)?;
            let rows: Vec<&[ast::Expr]> = rows.iter().map(|row| row.content.as_slice()).collect();
            let arrays = value_columns(&table, &evaluator, &defaults, targets, &rows)?;
            add_rows(&table, &codec, &arrays, &mut changes)?;
            Ok(Write { table, changes, count: rows.len() as u64 })
        }
        Source::Query(query) => {
            let plan = reading_plan(scope, query, parameters)?;
            let targets = check_width(&targets, plan.schema().fields().len(), insert)?;
            let types: Vec<PgType> =
                plan.schema().fields().iter().map(|field| PgType::of_field(field)).collect();
            let reading =
                Reading::run(session, scope, &plan, work.under(&table), MAX_BYTES).await?;
            let mut count = 0;
            for batch in &reading.batches {
                let rows = batch.num_rows();
                let column = |position: usize| match targets.iter().position(|&t| t == position) {
                    Some(source) => {
                        let (values, column) = (batch.column(source), &table.columns[position]);
                        let (from, to) = (types[source], column.pg_type);
                        assign_array(values, from, to, &column.name, &scope.format)
                    }
                    None => defaults.array(&table, position, rows),
                };
                let arrays: Result<Vec<_>, _> = (0..table.columns.len()).map(column).collect();
                add_rows(&table, &codec, &arrays?, &mut changes)?;
                count += rows as u64;
            }
            Ok(Write { table, changes, count })
        }
    }
}

/// The columns of rows of expressions; those that aren't given have their defaults.
fn value_columns(
    table: &TableInfo,
    evaluator: &Evaluator<'_>,
    defaults: &Defaults<'_>,
    targets: &[usize],
    rows: &[&[ast::Expr]],
) -> Result<Vec<ArrayRef>, SqlError> {
    let value = |position: usize, source: usize, row: &&[ast::Expr]| match row.get(source) {
        Some(expr) if is_default(expr) => defaults.value(table, position),
        Some(expr) => evaluator.value(expr, &table.columns[position]),
        None => Err(SqlError::internal("a row of VALUES is too short")),
    };
    let column = |position: usize| {
        let Some(source) = targets.iter().position(|&target| target == position) else {
            return defaults.array(table, position, rows.len());
        };
        let values: Result<Vec<_>, _> =
            rows.iter().map(|row| value(position, source, row)).collect();
        ScalarValue::iter_to_array(values?).map_err(|e| sql_error(&e))
    };
    (0..table.columns.len()).map(column).collect()
}

/// The table and the plan of the query that an INSERT reads, if it reads any.
pub(super) fn reading(
    scope: &Scope,
    insert: &ast::Insert,
    parameters: &Parameters,
) -> Result<(Arc<TableInfo>, Option<LogicalPlan>), SqlError> {
    refuse(insert)?;
    let table = target::table(scope, table_name(insert)?)?;
    let plan = match source(insert) {
        Source::Query(query) => Some(reading_plan(scope, query, parameters)?),
        Source::Rows(_) | Source::Defaults => None,
    };
    Ok((table, plan))
}

fn source(insert: &ast::Insert) -> Source<'_> {
    let Some(query) = &insert.source else {
        return Source::Defaults;
    };
    let plain = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
    match query.body.as_ref() {
        ast::SetExpr::Values(values) if plain => Source::Rows(&values.rows),
        _ => Source::Query(query),
    }
}

/// The columns that the statement gives values for: all of them in their order, if it doesn't say.
fn columns(table: &TableInfo, insert: &ast::Insert) -> Result<Vec<usize>, SqlError> {
    if insert.columns.is_empty() {
        return Ok((0..table.columns.len()).collect());
    }
    let names: Result<Vec<_>, _> =
        insert.columns.iter().map(|name| target::last_ident(name).cloned()).collect();
    target::columns(table, &names?)
}

fn check_widths<'c>(
    columns: &'c [usize],
    rows: &[Row],
    insert: &ast::Insert,
) -> Result<&'c [usize], SqlError> {
    let width = rows.first().map_or(0, |row| row.content.len());
    if rows.iter().any(|row| row.content.len() != width) {
        return Err(SqlError::syntax("VALUES lists must all be the same length"));
    }
    check_width(columns, width, insert)
}

/// Fewer expressions than columns are fine unless the columns are named.
fn check_width<'c>(
    columns: &'c [usize],
    width: usize,
    insert: &ast::Insert,
) -> Result<&'c [usize], SqlError> {
    if width > columns.len() {
        return Err(SqlError::syntax("INSERT has more expressions than target columns"));
    }
    if width < columns.len() && !insert.columns.is_empty() {
        return Err(SqlError::syntax("INSERT has more target columns than expressions"));
    }
    Ok(&columns[..width])
}

fn table_name(insert: &ast::Insert) -> Result<&ast::ObjectName, SqlError> {
    match &insert.table {
        ast::TableObject::TableName(name) => Ok(name),
        _ => Err(SqlError::unsupported("INSERT into anything but a table is not supported")),
    }
}

fn refuse(insert: &ast::Insert) -> Result<(), SqlError> {
    let unsupported = [
        (
            insert.source.as_ref().is_some_and(|query| !query.locks.is_empty()),
            "INSERT ... SELECT ... FOR UPDATE",
        ),
        (insert.on.is_some(), "INSERT ... ON CONFLICT"),
        (insert.returning.is_some(), "INSERT ... RETURNING"),
        (insert.overwrite || insert.replace_into || insert.or.is_some(), "INSERT OR REPLACE"),
        (!insert.assignments.is_empty(), "INSERT ... SET"),
        (insert.partitioned.is_some() || !insert.after_columns.is_empty(), "PARTITION"),
        (insert.settings.is_some() || insert.format_clause.is_some(), "SETTINGS and FORMAT"),
        (insert.output.is_some() || insert.multi_table_insert_type.is_some(), "this INSERT"),
    ];
    for (there, feature) in unsupported {
        if there {
            return Err(SqlError::unsupported(format!("{feature} is not supported")));
        }
    }
    Ok(())
}

/// The types of the parameters of an INSERT.
pub(crate) fn infer(
    scope: &Scope,
    insert: &ast::Insert,
    inference: &mut Inference,
) -> Result<(), SqlError> {
    refuse(insert)?;
    let table = target::table(scope, table_name(insert)?)?;
    let columns = columns(&table, insert)?;
    match source(insert) {
        Source::Defaults => {}
        Source::Rows(rows) => {
            let columns = check_widths(&columns, rows, insert)?;
            for row in rows {
                for (expr, &position) in row.content.iter().zip(columns) {
                    inference.expect(expr, table.columns[position].pg_type);
                }
            }
            let schema = datafusion::common::DFSchema::empty();
            for expr in
                rows.iter().flat_map(|row| &row.content).filter(|expr| has_placeholder(expr))
            {
                let planned = scope.plan_expression(expr.clone(), &schema, &inference.fields())?;
                inference.learn_expr(&planned).map_err(|e| sql_error(&e))?;
            }
        }
        Source::Query(query) => {
            if let ast::SetExpr::Select(select) = query.body.as_ref() {
                for (item, &position) in select.projection.iter().zip(&columns) {
                    if let ast::SelectItem::UnnamedExpr(expr) = item {
                        inference.expect(expr, table.columns[position].pg_type);
                    }
                }
            }
            let plan: LogicalPlan = scope.plan_query(rewritten(query)?, &inference.fields())?;
            let width = plan.schema().fields().len();
            check_width(&columns, width, insert)?;
            inference.learn(&plan)?;
        }
    }
    Ok(())
}

/// Whether planning the expression could tell something of a parameter.
fn has_placeholder(expr: &ast::Expr) -> bool {
    use std::ops::ControlFlow;
    if crate::session::placeholder(expr).is_some() || is_default(expr) {
        return false;
    }
    let found: ControlFlow<()> = ast::visit_expressions(expr, |inner| {
        if crate::session::placeholder(inner).is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    found.is_break()
}
