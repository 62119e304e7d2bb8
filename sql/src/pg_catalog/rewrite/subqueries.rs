//! Subqueries over the catalogs.
//!
//! DataFusion turns a correlated subquery into a join if it aggregates and if what ties it to the
//! outer row are equalities. psql's queries do neither:
//!
//! ```sql
//! SELECT (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d
//!          WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef), ...
//!        (SELECT c.collname FROM pg_collation c, pg_type t
//!          WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation)
//!   FROM pg_attribute a
//! ```
//!
//! Three steps, each of which keeps the result, make them so:
//!
//! 1. A condition on the outer row alone goes around the subquery: `CASE WHEN a.atthasdef THEN`.
//! 2. What an equality says of an outer column holds in every other condition too: the last one
//!    above becomes `c.oid <> t.typcollation`.
//! 3. The value is aggregated, `first_value(...)`: a scalar subquery has one row at the most. Only
//!    here does an error get lost (21000, more than one row), so this is for catalogs alone.
//!
//! Where the outer relation is a catalog that is always empty (`pg_policy`), the subquery never
//! runs and NULL stands for it, whatever it looks like; and so it does for a subquery over one.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CaseWhen, Expr, FunctionArguments, GroupByExpr, ObjectNamePart, Query, Select,
    SelectItem, SetExpr, TableFactor, Visit, VisitMut, Visitor, VisitorMut,
};

use super::scope::{Scope, qualifier, yields_nothing};
use super::{build, fold};

/// Puts NULL for the correlated subqueries of a select list whose FROM never yields a row.
pub(super) fn drop_what_never_runs(select: &mut Select) {
    struct Dropper(Scope);
    impl VisitorMut for Dropper {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            let query = match expr {
                Expr::Subquery(query) | Expr::Exists { subquery: query, .. } => Some(&*query),
                Expr::Function(function) => match &function.args {
                    FunctionArguments::Subquery(query) => Some(query),
                    _ => None,
                },
                _ => None,
            };
            if query.is_some_and(|query| looks_at(query, &self.0)) {
                *expr = build::null();
            }
            ControlFlow::Continue(())
        }
    }
    if yields_nothing(&select.from) {
        let mut dropper = Dropper(Scope::of(&select.from));
        for item in &mut select.projection {
            let _ = item.visit(&mut dropper);
        }
    }
}

/// Whether a query refers to columns of the scope around it.
fn looks_at(query: &Query, outer: &Scope) -> bool {
    #[derive(Default)]
    struct Inside {
        scope: Scope,
        columns: Vec<Expr>,
    }
    impl Visitor for Inside {
        type Break = ();
        fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
            if !matches!(factor, TableFactor::NestedJoin { .. }) {
                self.scope.add(factor);
            }
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if build::column_name(expr).is_some() {
                self.columns.push(expr.clone());
            }
            ControlFlow::Continue(())
        }
    }
    let mut inside = Inside::default();
    let _ = query.visit(&mut inside);
    let Inside { scope, columns } = inside;
    columns
        .iter()
        .any(|column| outer.owns(column) == Some(true) && scope.owns(column) == Some(false))
}

/// The select of a query that is nothing but one.
pub(super) fn only_select(query: &Query) -> Option<&Select> {
    let plain = query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none();
    match query.body.as_ref() {
        SetExpr::Select(select) if plain => Some(select),
        _ => None,
    }
}

pub(super) fn is_grouped(select: &Select) -> bool {
    let GroupByExpr::Expressions(groups, modifiers) = &select.group_by else { return true };
    !groups.is_empty() || !modifiers.is_empty() || select.having.is_some()
}

/// The subquery in a form that DataFusion can join with, if it is over catalogs and correlated.
pub(super) fn decorrelate(query: &Query) -> Option<Expr> {
    let select = only_select(query)?;
    let scope = Scope::of(&select.from);
    let [SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }] =
        select.projection.as_slice()
    else {
        return None;
    };
    if !scope.is_of_catalogs() || is_grouped(select) || select.distinct.is_some() {
        return None;
    }
    let is_aggregate = aggregates(value);
    if !is_aggregate && yields_nothing(&select.from) {
        return Some(build::null());
    }
    let mut value = value.clone();
    let mut conditions = Vec::new();
    split(select.selection.as_ref()?, &mut conditions);

    let known: Vec<(Expr, Expr)> =
        conditions.iter().filter_map(|condition| equality(condition, &scope)).collect();
    substitute(&mut value, &known);
    let mut around = Vec::new();
    let mut inside = Vec::new();
    for mut condition in conditions {
        if equality(&condition, &scope).is_none() {
            substitute(&mut condition, &known);
        }
        let outer_only = !is_aggregate && belongs_outside(&condition, &scope);
        if outer_only { &mut around } else { &mut inside }.push(condition);
    }
    if known.is_empty() && around.is_empty() {
        return None;
    }

    let mut select = select.clone();
    select.selection = join(inside);
    let value = if is_aggregate { value } else { build::call("first_value", vec![value]) };
    select.projection = vec![SelectItem::UnnamedExpr(value)];
    let subquery = Expr::Subquery(Box::new(with_body(query, select)));
    Some(match join(around) {
        None => subquery,
        Some(condition) => Expr::Case {
            case_token: AttachedToken::empty(),
            end_token: AttachedToken::empty(),
            operand: None,
            conditions: vec![CaseWhen { condition, result: subquery }],
            else_result: None,
        },
    })
}

pub(super) fn with_body(query: &Query, select: Select) -> Query {
    let mut query = query.clone();
    query.body = Box::new(SetExpr::Select(Box::new(select)));
    query
}

/// The conditions that AND holds together.
fn split(condition: &Expr, conditions: &mut Vec<Expr>) {
    match condition {
        Expr::Nested(inner) => split(inner, conditions),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            split(left, conditions);
            split(right, conditions);
        }
        other => conditions.push(other.clone()),
    }
}

fn join(conditions: Vec<Expr>) -> Option<Expr> {
    conditions.into_iter().reduce(|left, right| Expr::BinaryOp {
        left: Box::new(left),
        op: BinaryOperator::And,
        right: Box::new(right),
    })
}

/// The outer column and the inner one that a condition says are equal.
fn equality(condition: &Expr, scope: &Scope) -> Option<(Expr, Expr)> {
    let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = condition else { return None };
    match (scope.owns(left)?, scope.owns(right)?) {
        (true, false) => Some((right.as_ref().clone(), left.as_ref().clone())),
        (false, true) => Some((left.as_ref().clone(), right.as_ref().clone())),
        _ => None,
    }
}

fn substitute(expr: &mut Expr, known: &[(Expr, Expr)]) {
    struct Substitution<'a>(&'a [(Expr, Expr)]);
    impl VisitorMut for Substitution<'_> {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Some((_, inner)) = self.0.iter().find(|(outer, _)| outer == expr) {
                *expr = inner.clone();
            }
            ControlFlow::Continue(())
        }
    }
    let _ = expr.visit(&mut Substitution(known));
}

/// Whether a condition is about outer columns only.
fn belongs_outside(condition: &Expr, scope: &Scope) -> bool {
    struct Columns<'a> {
        scope: &'a Scope,
        outer: bool,
    }
    impl Visitor for Columns<'_> {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match self.scope.owns(expr) {
                Some(true) => return ControlFlow::Break(()),
                Some(false) => self.outer = true,
                None => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut columns = Columns { scope, outer: false };
    condition.visit(&mut columns).is_continue() && columns.outer
}

/// Whether the value is made of aggregates.
pub(super) fn aggregates(value: &Expr) -> bool {
    const AGGREGATES: [&str; 11] = [
        "array_agg",
        "avg",
        "bool_and",
        "bool_or",
        "count",
        "every",
        "first_value",
        "max",
        "min",
        "string_agg",
        "sum",
    ];
    struct Finder;
    impl Visitor for Finder {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
            let name = function.name.0.last().and_then(ObjectNamePart::as_ident).map(fold);
            if name.is_some_and(|name| AGGREGATES.contains(&name.as_str())) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        }
    }
    value.visit(&mut Finder).is_break()
}

/// In a select list, `EXISTS (SELECT ...)` over catalogs as `(SELECT count(*) ...) > 0`: DataFusion
/// joins with that.
pub(super) fn count_what_exists(select: &mut Select) {
    struct Counter;
    impl VisitorMut for Counter {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::Exists { subquery, negated } = expr
                && let Some(select) = only_select(subquery)
                && Scope::of(&select.from).is_of_catalogs()
                && !is_grouped(select)
            {
                let mut select = select.clone();
                select.projection = vec![SelectItem::UnnamedExpr(build::count())];
                let query = with_body(subquery, select);
                let count = decorrelate(&query).unwrap_or_else(|| Expr::Subquery(Box::new(query)));
                let op = if *negated { BinaryOperator::Eq } else { BinaryOperator::Gt };
                let (left, right) = (Box::new(count), Box::new(build::number(0)));
                *expr = Expr::Nested(Box::new(Expr::BinaryOp { left, op, right }));
            }
            ControlFlow::Continue(())
        }
    }
    for item in &mut select.projection {
        let _ = item.visit(&mut Counter);
    }
}

/// Puts a catalog's object id for its hidden column `tableoid`.
pub(super) fn name_the_tables(select: &mut Select) {
    struct Namer(Scope);
    impl VisitorMut for Namer {
        type Break = ();
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if build::column_name(expr).as_deref() != Some("tableoid") {
                return ControlFlow::Continue(());
            }
            let definition = match (qualifier(expr), self.0.tables.as_slice()) {
                (Some(alias), tables) => tables.iter().find(|(own, _)| *own == alias),
                (None, [only]) => Some(only),
                _ => None,
            };
            if let Some((_, Some(definition))) = definition {
                *expr = build::call("regclassin", vec![build::number(definition.oid)]);
            }
            ControlFlow::Continue(())
        }
    }
    let scope = Scope::of(&select.from);
    if scope.has_catalogs() {
        let _ = select.visit(&mut Namer(scope));
    }
}
