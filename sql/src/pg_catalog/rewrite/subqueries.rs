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

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CaseWhen, DuplicateTreatment, Expr, FunctionArg, FunctionArgExpr,
    FunctionArgumentClause, FunctionArgumentList, FunctionArguments, GroupByExpr, JoinOperator,
    OrderByExpr, OrderByKind, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins,
    Value, Visit, VisitMut, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken;

use super::super::definition::{self, Definition};
use super::super::{information_schema, rows};
use super::{build, fold};

/// The relations of a FROM, by the names under which columns are qualified.
#[derive(Default)]
struct Scope {
    tables: Vec<(String, Option<&'static Definition>)>,
}

impl Scope {
    fn of(from: &[TableWithJoins]) -> Self {
        let mut scope = Self::default();
        for table in from {
            scope.add_joined(table);
        }
        scope
    }

    fn add_joined(&mut self, table: &TableWithJoins) {
        self.add(&table.relation);
        for join in &table.joins {
            self.add(&join.relation);
        }
    }

    fn add(&mut self, factor: &TableFactor) {
        let (alias, definition) = match factor {
            TableFactor::NestedJoin { table_with_joins, .. } => {
                return self.add_joined(table_with_joins);
            }
            TableFactor::Table { name, alias, args, .. } => {
                let definition = definition_of(factor).filter(|_| args.is_none());
                let own = name.0.last().and_then(|part| part.as_ident()).map(fold);
                (alias.as_ref().map(|alias| fold(&alias.name)).or(own), definition)
            }
            TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. } => {
                (alias.as_ref().map(|alias| fold(&alias.name)), None)
            }
            _ => (None, None),
        };
        self.tables.push((alias.unwrap_or_default(), definition));
    }

    fn has_alias(&self, name: &str) -> bool {
        self.tables.iter().any(|(alias, _)| alias == name)
    }

    fn has_column(&self, name: &str) -> bool {
        let mut definitions = self.tables.iter().filter_map(|(_, definition)| *definition);
        definitions.any(|found| found.columns.iter().any(|column| column.name == name))
    }

    fn is_of_catalogs(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(|(_, definition)| definition.is_some())
    }

    fn has_catalogs(&self) -> bool {
        self.tables.iter().any(|(_, definition)| definition.is_some())
    }

    /// Whether a column belongs here; nothing if the expression isn't a column.
    fn owns(&self, expr: &Expr) -> Option<bool> {
        match expr {
            Expr::Identifier(name) => Some(self.has_column(&fold(name))),
            Expr::CompoundIdentifier(_) => Some(self.has_alias(&qualifier(expr)?)),
            _ => None,
        }
    }
}

/// The relation in a column's name: `t` in `t.c` and in `s.t.c`.
fn qualifier(column: &Expr) -> Option<String> {
    match column {
        Expr::CompoundIdentifier(parts) => parts.iter().rev().nth(1).map(fold),
        _ => None,
    }
}

/// The system catalog that a table in a FROM is.
fn definition_of(factor: &TableFactor) -> Option<&'static Definition> {
    let TableFactor::Table { name, alias, .. } = factor else { return None };
    if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) {
        return None;
    }
    let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(fold)).collect();
    let (schema, name) = match parts?.as_slice() {
        [name] => ("pg_catalog".to_owned(), name.clone()),
        [schema, name] | [_, schema, name] => (schema.clone(), name.clone()),
        _ => return None,
    };
    definition::relations(&schema)?.get(name.as_str())
}

fn is_always_empty(definition: &Definition) -> bool {
    match definition.schema {
        "information_schema" => information_schema::of(definition.name).is_none(),
        _ => rows::of(definition.name).is_none(),
    }
}

/// Whether the FROM yields no row because it joins with a catalog that has none.
fn yields_nothing(from: &[TableWithJoins]) -> bool {
    let empty = |factor: &TableFactor| definition_of(factor).is_some_and(is_always_empty);
    from.iter().any(|table| {
        let inner = |operator: &JoinOperator| {
            matches!(
                operator,
                JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_)
            )
        };
        let left = |operator: &JoinOperator| {
            matches!(operator, JoinOperator::Left(_) | JoinOperator::LeftOuter(_))
        };
        let keeps_left = table.joins.iter().all(|j| inner(&j.join_operator) || left(&j.join_operator));
        keeps_left
            && (empty(&table.relation)
                || table.joins.iter().any(|j| inner(&j.join_operator) && empty(&j.relation)))
    })
}

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
    columns.iter().any(|column| outer.owns(column) == Some(true) && scope.owns(column) == Some(false))
}

/// The select of a query that is nothing but one.
fn only_select(query: &Query) -> Option<&Select> {
    let plain = query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none();
    match query.body.as_ref() {
        SetExpr::Select(select) if plain => Some(select),
        _ => None,
    }
}

fn is_grouped(select: &Select) -> bool {
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

fn with_body(query: &Query, select: Select) -> Query {
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
fn aggregates(value: &Expr) -> bool {
    const AGGREGATES: [&str; 11] = [
        "array_agg", "avg", "bool_and", "bool_or", "count", "every", "first_value", "max", "min",
        "string_agg", "sum",
    ];
    struct Finder;
    impl Visitor for Finder {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
            let name = function.name.0.last().and_then(|part| part.as_ident()).map(fold);
            if name.is_some_and(|name| AGGREGATES.contains(&name.as_str())) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        }
    }
    value.visit(&mut Finder).is_break()
}

/// `ARRAY(SELECT x FROM ... ORDER BY y)` as `(SELECT array_agg(x ORDER BY y) FROM ...)`, or an empty
/// array where that is NULL.
pub(super) fn array_of(query: &Query) -> Option<Expr> {
    let order = match &query.order_by {
        None => Vec::new(),
        Some(order) => match &order.kind {
            OrderByKind::Expressions(order) => order.clone(),
            OrderByKind::All(_) => return None,
        },
    };
    let mut plain = query.clone();
    plain.order_by = None;
    let mut select = only_select(&plain)?.clone();
    let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] =
        select.projection.as_slice()
    else {
        return None;
    };
    if is_grouped(&select) || aggregates(item) {
        return None;
    }
    let item = item.clone();
    let duplicate_treatment = select.distinct.take().map(|_| DuplicateTreatment::Distinct);
    let order: Vec<OrderByExpr> = order
        .into_iter()
        .map(|mut by| {
            if matches!(&by.expr, Expr::Value(v) if matches!(v.value, Value::Number(..))) {
                by.expr = item.clone();
            }
            by
        })
        .collect();
    let clauses =
        if order.is_empty() { vec![] } else { vec![FunctionArgumentClause::OrderBy(order)] };
    let args = vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(item))];
    let list = FunctionArgumentList { duplicate_treatment, args, clauses };
    select.projection = vec![SelectItem::UnnamedExpr(build::function("array_agg", list))];
    let query = with_body(&plain, select);
    let aggregate = decorrelate(&query).unwrap_or_else(|| Expr::Subquery(Box::new(query)));
    Some(build::call("coalesce", vec![aggregate, build::call("make_array", vec![])]))
}

/// `generate_subscripts(x, 1)` as `unnest(array_subscripts(x, 1, first))`. Arrays count from 1, but
/// `int2vector` and `oidvector` from 0, which only the catalogs have.
pub(super) fn subscripts_of(args: &FunctionArguments) -> Option<Expr> {
    let FunctionArguments::List(list) = args else { return None };
    let [
        FunctionArg::Unnamed(FunctionArgExpr::Expr(array)),
        FunctionArg::Unnamed(FunctionArgExpr::Expr(dimension)),
    ] = list.args.as_slice()
    else {
        return None;
    };
    let name = build::column_name(array);
    let is_vector = definition::all().flat_map(|relation| &relation.columns).any(|column| {
        Some(column.name) == name.as_deref() && column.type_name.ends_with("vector")
    });
    let first = build::number(u32::from(!is_vector));
    let args = vec![array.clone(), dimension.clone(), first];
    Some(build::call("unnest", vec![build::call("array_subscripts", args)]))
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
