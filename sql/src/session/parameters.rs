//! The types of a statement's parameters: as given, or from where they stand.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::ast;

use super::query::{rewritten, template};
use super::{ColumnDescription, Session, cluster_call};
use crate::dml;
use crate::error::{SqlError, SqlState};
use crate::explain;
use crate::plan::cache::CachedPlan;
use crate::plan::errors::sql_error;
use crate::plan::planner::Scope;
use crate::types::PgType;

/// The most parameters that the protocol can carry.
const MAX_PARAMETERS: usize = 65_535;

/// Types as far as they are known, by position.
pub(crate) struct Inference {
    types: Vec<Option<PgType>>,
}

impl Inference {
    /// What to plan with.
    pub(crate) fn fields(&self) -> Vec<Option<FieldRef>> {
        self.types.iter().map(|t| t.map(|t| Arc::new(t.field("", true)))).collect()
    }

    /// A parameter stands where a value of that type is expected.
    pub(crate) fn expect(&mut self, expr: &ast::Expr, pg_type: PgType) {
        if let Some(position) = placeholder(expr)
            && let Some(slot @ None) = self.types.get_mut(position)
        {
            *slot = Some(pg_type);
        }
    }

    /// Takes over what planning found out.
    pub(crate) fn learn(&mut self, plan: &LogicalPlan) -> Result<(), SqlError> {
        plan.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                self.learn_expr(expr)?;
                Ok(TreeNodeRecursion::Continue)
            })
        })
        .map_err(|e| sql_error(&e))?;
        Ok(())
    }

    pub(crate) fn learn_expr(
        &mut self,
        expr: &Expr,
    ) -> datafusion::common::Result<TreeNodeRecursion> {
        expr.apply(|expr| {
            if let Expr::Placeholder(placeholder) = expr
                && let Some(field) = &placeholder.field
                && let Some(position) = position(&placeholder.id)
                && let Some(slot @ None) = self.types.get_mut(position)
                && !field.data_type().is_null()
            {
                *slot = Some(PgType::of_field(field));
            }
            Ok(TreeNodeRecursion::Continue)
        })
    }

    /// What no place has told is text.
    fn finish(self) -> Vec<PgType> {
        self.types.into_iter().map(|t| t.unwrap_or(PgType::Text)).collect()
    }
}

fn position(placeholder: &str) -> Option<usize> {
    placeholder.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)
}

/// The position of a parameter that stands alone.
pub(crate) fn placeholder(expr: &ast::Expr) -> Option<usize> {
    match expr {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::Placeholder(name) => position(name),
            _ => None,
        },
        ast::Expr::Nested(inner) => placeholder(inner),
        _ => None,
    }
}

/// The types of the parameters and the columns of the result.
pub(super) fn describe(
    session: &Session,
    scope: &Scope,
    sql: Option<Arc<str>>,
    statement: &ast::Statement,
    given: &[Option<PgType>],
) -> Result<(Vec<PgType>, Option<Arc<[ColumnDescription]>>), SqlError> {
    let count = count(statement)?.max(given.len());
    let given =
        |position: usize| given.get(position).copied().flatten().filter(|t| *t != PgType::Unknown);
    let mut inference = Inference { types: (0..count).map(given).collect() };
    match statement {
        ast::Statement::Query(query) => {
            if let Some(call) = cluster_call(query) {
                let columns = call.describe(scope, &mut inference)?;
                return Ok((inference.finish(), Some(columns)));
            }
            let columns = describe_query(session, scope, sql, query, &mut inference)?;
            Ok((inference.finish(), Some(columns)))
        }
        ast::Statement::Insert(insert) => {
            dml::infer_insert(scope, insert, &mut inference)?;
            Ok((inference.finish(), None))
        }
        ast::Statement::Update(update) => {
            dml::infer_update(scope, update, &mut inference)?;
            Ok((inference.finish(), None))
        }
        ast::Statement::Delete(delete) => {
            dml::infer_delete(scope, delete, &mut inference)?;
            Ok((inference.finish(), None))
        }
        ast::Statement::Explain { statement, .. } => {
            let given: Vec<_> = inference.types;
            let (types, _) = describe(session, scope, None, statement, &given)?;
            Ok((types, Some(explain::columns())))
        }
        _ if count > 0 => Err(SqlError::new(
            SqlState::UNDEFINED_PARAMETER,
            "there is no parameter $1 in this kind of statement",
        )),
        _ => Ok((Vec::new(), None)),
    }
}

fn describe_query(
    session: &Session,
    scope: &Scope,
    sql: Option<Arc<str>>,
    query: &ast::Query,
    inference: &mut Inference,
) -> Result<Arc<[ColumnDescription]>, SqlError> {
    expect_limits(query, inference);
    if inference.types.iter().any(Option::is_none) {
        let plan = scope.plan_query(rewritten(query)?, &inference.fields())?;
        inference.learn(&plan)?;
        for slot in &mut inference.types {
            slot.get_or_insert(PgType::Text);
        }
    }
    let CachedPlan { plan, optimized } = template(session, scope, sql, query, &inference.fields())?;
    // Analysis settles the types.
    let plan = if optimized { plan } else { Arc::new(scope.optimize(&plan)?) };
    Ok(ColumnDescription::of_schema(plan.schema()))
}

/// LIMIT and OFFSET take a bigint.
fn expect_limits(query: &ast::Query, inference: &mut Inference) {
    match &query.limit_clause {
        Some(ast::LimitClause::LimitOffset { limit, offset, .. }) => {
            if let Some(limit) = limit {
                inference.expect(limit, PgType::Int8);
            }
            if let Some(offset) = offset {
                inference.expect(&offset.value, PgType::Int8);
            }
        }
        Some(ast::LimitClause::OffsetCommaLimit { .. }) | None => {}
    }
}

/// How many parameters the statement has.
fn count(statement: &ast::Statement) -> Result<usize, SqlError> {
    #[derive(Default)]
    struct Count {
        seen: BTreeMap<usize, ()>,
        wrong: Option<String>,
    }
    impl ast::Visitor for Count {
        type Break = ();
        fn pre_visit_value(&mut self, value: &ast::ValueWithSpan) -> ControlFlow<()> {
            if let ast::Value::Placeholder(name) = &value.value {
                match position(name) {
                    Some(position) if position < MAX_PARAMETERS => {
                        self.seen.insert(position, ());
                    }
                    _ => self.wrong = Some(name.clone()),
                }
            }
            ControlFlow::Continue(())
        }
    }
    let mut count = Count::default();
    let _: ControlFlow<()> = ast::Visit::visit(statement, &mut count);
    if let Some(name) = count.wrong {
        let message = format!("there is no parameter {name}");
        return Err(SqlError::new(SqlState::UNDEFINED_PARAMETER, message));
    }
    Ok(count.seen.last_key_value().map_or(0, |(last, ())| last + 1))
}
