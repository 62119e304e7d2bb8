//! UPDATE and DELETE: the rows concerned are read by a SELECT of the old columns and new values.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast;

use super::values::{Defaults, Evaluator, is_default};
use super::{Changes, MAX_BYTES, Work, Write, add_rows, reading_plan, target};
use crate::catalog::TableInfo;
use crate::codec;
use crate::error::SqlError;
use crate::plan::errors::sql_error;
use crate::plan::names::fold;
use crate::plan::parse::parse_one;
use crate::plan::planner::Scope;
use crate::session::{Inference, Parameters, QueryError, Reading, placeholder, rewritten};
use crate::types::PgType;
use crate::types::assign::assign_array;

/// Where a new value comes from.
enum New<'a> {
    /// The column's default.
    Default,
    /// A constant or parameter.
    Constant(&'a ast::Expr),
    /// A column of the reading part, by position.
    Read(usize),
}

/// One `column = value`.
struct Assignment<'a> {
    position: usize,
    new: New<'a>,
}

/// An UPDATE in parts.
struct Parts<'a> {
    table: Arc<TableInfo>,
    assignments: Vec<Assignment<'a>>,
    /// Reads all old columns, then the new values that have to be computed.
    query: ast::Query,
}

pub(super) async fn plan_update(
    work: &Work<'_>,
    update: &ast::Update,
    parameters: &Parameters,
) -> Result<Write, QueryError> {
    let Work { session, scope, .. } = *work;
    let Parts { table, assignments, query } = parts(scope, update)?;
    let plan = reading_plan(scope, &query, parameters)?;
    let types: Vec<PgType> =
        plan.schema().fields().iter().map(|field| PgType::of_field(field)).collect();
    let reading = Reading::run(session, scope, &plan, work.under(&table), MAX_BYTES).await?;
    let codec = codec::row_codec(&table)?;
    let evaluator = Evaluator::new(scope, parameters);
    let defaults = Defaults::new(&evaluator, &table)?;
    let constants = constants(&table, &assignments, &evaluator)?;
    let mut changes = Changes::default();
    let mut count = 0;
    for batch in &reading.batches {
        let rows = batch.num_rows();
        let old = &batch.columns()[..table.columns.len()];
        let mut new = old.to_vec();
        for (assignment, constant) in assignments.iter().zip(&constants) {
            let position = assignment.position;
            let column = &table.columns[position];
            new[position] = match (&assignment.new, constant) {
                (_, Some(constant)) => {
                    constant.to_array_of_size(rows).map_err(|e| sql_error(&e))?
                }
                (New::Read(source), None) => {
                    let (values, from) = (batch.column(*source), types[*source]);
                    assign_array(values, from, column.pg_type, &column.name, &scope.format)?
                }
                (New::Default | New::Constant(_), None) => {
                    defaults.array(&table, position, rows)?
                }
            };
        }
        let encoder = codec.encoder(old)?;
        for row in 0..rows {
            changes.remove(encoder.key(row))?;
        }
        add_rows(&table, &codec, &new, &mut changes)?;
        count += rows as u64;
    }
    Ok(Write { table, changes, count })
}

/// The values that are the same for every row.
fn constants(
    table: &TableInfo,
    assignments: &[Assignment<'_>],
    evaluator: &Evaluator<'_>,
) -> Result<Vec<Option<ScalarValue>>, SqlError> {
    assignments
        .iter()
        .map(|assignment| match assignment.new {
            New::Constant(expr) => {
                evaluator.value(expr, &table.columns[assignment.position]).map(Some)
            }
            New::Default | New::Read(_) => Ok(None),
        })
        .collect()
}

pub(super) async fn plan_delete(
    work: &Work<'_>,
    delete: &ast::Delete,
    parameters: &Parameters,
) -> Result<Write, QueryError> {
    let Work { session, scope, .. } = *work;
    let (table, query) = delete_parts(scope, delete)?;
    let plan = reading_plan(scope, &query, parameters)?;
    let reading = Reading::run(session, scope, &plan, work.under(&table), MAX_BYTES).await?;
    let codec = codec::row_codec(&table)?;
    let mut changes = Changes::default();
    let mut count = 0;
    for batch in &reading.batches {
        codec.keys_of(batch.columns())?.into_iter().try_for_each(|key| changes.remove(key))?;
        count += batch.num_rows() as u64;
    }
    Ok(Write { table, changes, count })
}

pub(super) fn reading_of_update(
    scope: &Scope,
    update: &ast::Update,
    parameters: &Parameters,
) -> Result<(Arc<TableInfo>, LogicalPlan), SqlError> {
    let Parts { table, query, .. } = parts(scope, update)?;
    let plan = reading_plan(scope, &query, parameters)?;
    Ok((table, plan))
}

pub(super) fn reading_of_delete(
    scope: &Scope,
    delete: &ast::Delete,
    parameters: &Parameters,
) -> Result<(Arc<TableInfo>, LogicalPlan), SqlError> {
    let (table, query) = delete_parts(scope, delete)?;
    let plan = reading_plan(scope, &query, parameters)?;
    Ok((table, plan))
}

fn parts<'a>(scope: &Scope, update: &'a ast::Update) -> Result<Parts<'a>, SqlError> {
    let unsupported = [
        (update.from.is_some(), "UPDATE ... FROM"),
        (update.returning.is_some(), "UPDATE ... RETURNING"),
        (update.or.is_some() || update.output.is_some(), "this UPDATE"),
        (!update.order_by.is_empty() || update.limit.is_some(), "UPDATE with ORDER BY or LIMIT"),
        (!update.table.joins.is_empty(), "UPDATE of a join"),
    ];
    refuse(&unsupported)?;
    let (table, name) = relation(scope, &update.table.relation)?;
    let mut assignments = Vec::new();
    let mut computed = Vec::new();
    for (names, exprs) in targets(&update.assignments)? {
        for (position, expr) in target::columns(&table, &names)?.into_iter().zip(exprs) {
            if assignments.iter().any(|a: &Assignment<'_>| a.position == position) {
                let column = &table.columns[position].name;
                let message = format!("multiple assignments to same column \"{column}\"");
                return Err(SqlError::syntax(message));
            }
            let new = if is_default(expr) {
                New::Default
            } else if is_constant(expr) {
                New::Constant(expr)
            } else {
                computed.push(expr.clone());
                New::Read(table.columns.len() + computed.len() - 1)
            };
            assignments.push(Assignment { position, new });
        }
    }
    let old = (0..table.columns.len()).map(|position| column_of(&table, &name, position));
    let query = select(old.chain(computed), update.table.clone(), update.selection.clone())?;
    Ok(Parts { table, assignments, query })
}

/// `a = 1`, and `(a, b) = (1, 2)` taken apart.
fn targets(
    assignments: &[ast::Assignment],
) -> Result<Vec<(Vec<ast::Ident>, Vec<&ast::Expr>)>, SqlError> {
    assignments
        .iter()
        .map(|assignment| match &assignment.target {
            ast::AssignmentTarget::ColumnName(name) => {
                Ok((vec![target::last_ident(name)?.clone()], vec![&assignment.value]))
            }
            ast::AssignmentTarget::Tuple(names) => {
                let names: Result<Vec<_>, _> =
                    names.iter().map(|name| target::last_ident(name).cloned()).collect();
                let names = names?;
                match &assignment.value {
                    ast::Expr::Tuple(values) if values.len() == names.len() => {
                        Ok((names, values.iter().collect()))
                    }
                    ast::Expr::Tuple(_) => {
                        Err(SqlError::syntax("number of columns does not match number of values"))
                    }
                    _ => Err(SqlError::unsupported(
                        "UPDATE with a subquery for several columns is not supported",
                    )),
                }
            }
        })
        .collect()
}

fn delete_parts(
    scope: &Scope,
    delete: &ast::Delete,
) -> Result<(Arc<TableInfo>, ast::Query), SqlError> {
    let unsupported = [
        (delete.using.is_some() || !delete.tables.is_empty(), "DELETE ... USING"),
        (delete.returning.is_some(), "DELETE ... RETURNING"),
        (delete.output.is_some(), "this DELETE"),
        (!delete.order_by.is_empty() || delete.limit.is_some(), "DELETE with ORDER BY or LIMIT"),
    ];
    refuse(&unsupported)?;
    let (ast::FromTable::WithFromKeyword(from) | ast::FromTable::WithoutKeyword(from)) =
        &delete.from;
    let [from] = from.as_slice() else {
        return Err(SqlError::unsupported("DELETE from several tables is not supported"));
    };
    refuse(&[(!from.joins.is_empty(), "DELETE from a join")])?;
    let (table, name) = relation(scope, &from.relation)?;
    let key = table.primary_key.iter().map(|&position| column_of(&table, &name, position));
    let query = select(key, from.clone(), delete.selection.clone())?;
    Ok((table, query))
}

fn refuse(features: &[(bool, &str)]) -> Result<(), SqlError> {
    match features.iter().find(|(there, _)| *there) {
        Some((_, feature)) => Err(SqlError::unsupported(format!("{feature} is not supported"))),
        None => Ok(()),
    }
}

/// The table written to, and what its columns are qualified with.
fn relation(
    scope: &Scope,
    relation: &ast::TableFactor,
) -> Result<(Arc<TableInfo>, Vec<ast::Ident>), SqlError> {
    let ast::TableFactor::Table { name, alias, .. } = relation else {
        return Err(SqlError::syntax("a table's name is expected"));
    };
    let table = target::table(scope, name)?;
    let qualifier = match alias {
        Some(alias) => vec![alias.name.clone()],
        None => name
            .0
            .iter()
            .filter_map(|part| match part {
                ast::ObjectNamePart::Identifier(ident) => Some(ident.clone()),
                ast::ObjectNamePart::Function(_) => None,
            })
            .collect(),
    };
    Ok((table, qualifier))
}

fn column_of(table: &TableInfo, qualifier: &[ast::Ident], position: usize) -> ast::Expr {
    let mut path: Vec<_> =
        qualifier.iter().map(|ident| ast::Ident::with_quote('"', fold(ident))).collect();
    path.push(ast::Ident::with_quote('"', table.columns[position].name.clone()));
    ast::Expr::CompoundIdentifier(path)
}

/// Whether the value is the same for every row and needs no planning.
fn is_constant(expr: &ast::Expr) -> bool {
    match expr {
        ast::Expr::Value(_) => true,
        ast::Expr::Nested(inner) => is_constant(inner),
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => {
            matches!(expr.as_ref(), ast::Expr::Value(v) if matches!(v.value, ast::Value::Number(..)))
        }
        expr => placeholder(expr).is_some(),
    }
}

/// `SELECT items FROM table WHERE condition`
fn select(
    items: impl Iterator<Item = ast::Expr>,
    from: ast::TableWithJoins,
    selection: Option<ast::Expr>,
) -> Result<ast::Query, SqlError> {
    let projection = items
        .enumerate()
        .map(|(position, expr)| match expr {
            column @ ast::Expr::CompoundIdentifier(_) => ast::SelectItem::UnnamedExpr(column),
            expr => {
                let alias = ast::Ident::with_quote('"', format!("\u{1}{position}"));
                ast::SelectItem::ExprWithAlias { expr, alias }
            }
        })
        .collect();
    let mut query = template()?;
    if let ast::SetExpr::Select(select) = query.body.as_mut() {
        select.projection = projection;
        select.from = vec![from];
        select.selection = selection;
    }
    Ok(query)
}

fn template() -> Result<ast::Query, SqlError> {
    let statement = parse_one("SELECT 1")?;
    match statement.ast().map(AsRef::as_ref) {
        Some(ast::Statement::Query(query)) => Ok(ast::Query::clone(query)),
        _ => Err(SqlError::internal("a SELECT is not a query")),
    }
}

/// The types of the parameters of an UPDATE.
pub(crate) fn infer_update(
    scope: &Scope,
    update: &ast::Update,
    inference: &mut Inference,
) -> Result<(), SqlError> {
    let parts = parts(scope, update)?;
    for assignment in &parts.assignments {
        if let New::Constant(expr) = assignment.new {
            inference.expect(expr, parts.table.columns[assignment.position].pg_type);
        }
    }
    let plan = scope.plan_query(rewritten(&parts.query)?, &inference.fields())?;
    inference.learn(&plan)
}

/// The types of the parameters of a DELETE.
pub(crate) fn infer_delete(
    scope: &Scope,
    delete: &ast::Delete,
    inference: &mut Inference,
) -> Result<(), SqlError> {
    let (_, query) = delete_parts(scope, delete)?;
    let plan = scope.plan_query(rewritten(&query)?, &inference.fields())?;
    inference.learn(&plan)
}
