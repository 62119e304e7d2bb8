//! SELECT ... FOR UPDATE and FOR SHARE.

use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast;
use meridian_txn::Wait;
use meridian_txn::locks::Mode;
use std::time::Duration;

use super::Session;
use super::skip_locked::Skipping;
use crate::error::{SqlError, SqlState};
use crate::plan::errors::sql_error;
use crate::plan::names::fold;
use crate::plan::planner::Scope;
use crate::scan::Modes;

/// A query and the locks that it takes on what it reads.
pub(crate) struct Locking {
    /// Without its FOR clauses.
    pub(crate) query: ast::Query,
    pub(crate) modes: Modes,
    pub(crate) wait: Wait,
    /// Rows of this table that others have locked are passed over.
    pub(crate) skipping: Option<Skipping>,
}

impl Locking {
    /// Takes a query's own FOR clauses apart; those of its subqueries stay, and are refused.
    pub(crate) fn of(
        session: &Session,
        scope: &Scope,
        query: &ast::Query,
    ) -> Result<Self, SqlError> {
        let mut query = query.clone();
        let clauses = std::mem::take(&mut query.locks);
        let (modes, wait) = (Modes::default(), session.lock_wait());
        let mut this = Self { query, modes, wait, skipping: None };
        let Some(first) = clauses.first() else { return Ok(this) };
        session.check_may_write(&format!("SELECT {}", name(first)))?;
        let ast::SetExpr::Select(select) = this.query.body.as_ref() else {
            let what = if matches!(*this.query.body, ast::SetExpr::Values(_)) {
                "VALUES"
            } else {
                "UNION/INTERSECT/EXCEPT"
            };
            return Err(not_allowed(first, what));
        };
        refuse(first, select)?;
        let mut tables = Vec::new();
        for from in &select.from {
            named(&from.relation, &mut tables);
            from.joins.iter().for_each(|join| named(&join.relation, &mut tables));
        }
        for clause in &clauses {
            let mode = match clause.lock_type {
                ast::LockType::Update => Mode::Update,
                ast::LockType::Share => Mode::Shared,
            };
            match clause.nonblock {
                Some(ast::NonBlock::Nowait) => this.wait = Wait::For(Duration::ZERO),
                Some(ast::NonBlock::SkipLocked) | None => {}
            }
            let skips = clause.nonblock == Some(ast::NonBlock::SkipLocked);
            let one = matches!(select.from.as_slice(), [ast::TableWithJoins { relation, joins }]
                if joins.is_empty() && matches!(relation, ast::TableFactor::Table { .. }));
            if skips && (!one || clauses.len() != 1) {
                let message = "SKIP LOCKED is supported for one table and one FOR clause only";
                return Err(SqlError::unsupported(message));
            }
            let of = clause.of.as_ref().map(ToString::to_string);
            let of = of.map(|of| of.trim_matches('"').to_lowercase());
            let mut met = false;
            for (alias, table) in &tables {
                if of.as_ref().is_some_and(|of| of != alias) {
                    continue;
                }
                met = true;
                let reference = object_name_to_table_reference((*table).clone(), true);
                let reference = reference.map_err(|e| sql_error(&e))?;
                if let Some(table) = scope.table_named(&reference) {
                    this.modes.set(table.id, mode);
                    let alias = alias.clone();
                    this.skipping = skips.then_some(Skipping { table, alias, mode });
                }
            }
            if let (Some(of), false) = (of, met) {
                let message = format!(
                    "relation \"{of}\" in {} clause not found in FROM clause",
                    name(clause)
                );
                return Err(SqlError::new(SqlState::UNDEFINED_TABLE, message));
            }
        }
        Ok(this)
    }
}

fn name(clause: &ast::LockClause) -> &'static str {
    match clause.lock_type {
        ast::LockType::Update => "FOR UPDATE",
        ast::LockType::Share => "FOR SHARE",
    }
}

fn not_allowed(clause: &ast::LockClause, what: &str) -> SqlError {
    let message = format!("{} is not allowed with {what}", name(clause));
    SqlError::unsupported(message)
}

/// Where rows of the result are not rows of a table, there is nothing to lock.
fn refuse(clause: &ast::LockClause, select: &ast::Select) -> Result<(), SqlError> {
    if select.distinct.is_some() {
        return Err(not_allowed(clause, "DISTINCT clause"));
    }
    let groups = match &select.group_by {
        ast::GroupByExpr::All(_) => true,
        ast::GroupByExpr::Expressions(expressions, _) => !expressions.is_empty(),
    };
    if groups {
        return Err(not_allowed(clause, "GROUP BY clause"));
    }
    if select.having.is_some() {
        return Err(not_allowed(clause, "HAVING clause"));
    }
    Ok(())
}

/// The tables of a FROM item with the names that they go by there.
fn named<'q>(factor: &'q ast::TableFactor, tables: &mut Vec<(String, &'q ast::ObjectName)>) {
    match factor {
        ast::TableFactor::Table { name, alias, .. } => {
            let last = name.0.last().and_then(|part| match part {
                ast::ObjectNamePart::Identifier(ident) => Some(fold(ident)),
                ast::ObjectNamePart::Function(_) => None,
            });
            let alias = alias.as_ref().map(|alias| fold(&alias.name)).or(last);
            tables.push((alias.unwrap_or_default(), name));
        }
        ast::TableFactor::NestedJoin { table_with_joins, .. } => {
            named(&table_with_joins.relation, tables);
            table_with_joins.joins.iter().for_each(|join| named(&join.relation, tables));
        }
        ast::TableFactor::Derived { subquery, alias, .. } => {
            let mut inner = Vec::new();
            if let ast::SetExpr::Select(select) = subquery.body.as_ref() {
                for from in &select.from {
                    named(&from.relation, &mut inner);
                    from.joins.iter().for_each(|join| named(&join.relation, &mut inner));
                }
            }
            let alias = alias.as_ref().map(|alias| fold(&alias.name)).unwrap_or_default();
            tables.extend(inner.into_iter().map(|(_, table)| (alias.clone(), table)));
        }
        _ => {}
    }
}
