//! From PostgreSQL's dialect, as clients use it on the catalogs, to what DataFusion plans.
//!
//! The rules look at the parsed statement, not at its text, and hold for every statement, the
//! user's own included, so each keeps the meaning. Those that know more than SQL says (which
//! catalogs are always empty, which of their subqueries find at most one row) apply only where
//! every relation concerned is a system catalog.
//!
//! | written | becomes |
//! |---|---|
//! | `pg_catalog.f(x)`, `a OPERATOR(pg_catalog.~) b` | `f(x)`, `a ~ b` |
//! | `x COLLATE "C"`, or `pg_catalog.default` | `x`: every string is ordered by its bytes |
//! | `x::regclass` (`regtype`, `regproc`, ...) | `regclassin(x)`, an object id |
//! | the same shown, or cast to text | `regclassout(regclassin(x))`, a name |
//! | `generate_subscripts(x, 1)` | `unnest(array_subscripts(x, 1, first))` |
//! | `ARRAY(SELECT x ...)` | `(SELECT array_agg(x) ...)`, empty for NULL |
//! | `x = ANY('{a,b}')`, `x <> ALL('{a,b}')` | `x IN ('a', 'b')`, `x NOT IN ('a', 'b')` |
//! | `x LIKE y ESCAPE '/'` | `x LIKE like_escape(y, '/')` |
//! | `x IN (SELECT pg_partition_ancestors(y) UNION ALL VALUES (z))` | `x IN (z)`: no table is partitioned |
//! | a correlated subquery that doesn't aggregate, an EXISTS in the select list | see [`subqueries`] |

mod arrays;
mod build;
mod scope;
mod subqueries;

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Expr, FunctionArguments, Ident, ObjectName, Query, Select, SelectItem,
    SetExpr, SetOperator, TableFactor, Value, VisitMut, VisitorMut,
};

use super::definition;
use crate::error::SqlError;

/// Rewrites a query in place.
///
/// # Errors
/// None yet: what can't be rewritten is left as it is, for the planner to refuse.
pub fn rewrite_query(query: &mut Query) -> Result<(), SqlError> {
    let _ = query.visit(&mut Dialect);
    show_names(&mut query.body);
    Ok(())
}

/// Rewrites a lone expression in place: a column's default, a condition.
///
/// # Errors
/// As [`rewrite_query`].
pub fn rewrite_expression(expression: &mut Expr) -> Result<(), SqlError> {
    let _ = expression.visit(&mut Dialect);
    Ok(())
}

/// An identifier as PostgreSQL folds it.
fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

/// The name without its schema, if that is `pg_catalog` or none.
fn catalog_name(name: &ObjectName) -> Option<String> {
    let parts: Option<Vec<&Ident>> = name.0.iter().map(ast::ObjectNamePart::as_ident).collect();
    match parts?.as_slice() {
        [name] => Some(fold(name)),
        [schema, name] if fold(schema) == "pg_catalog" => Some(fold(name)),
        _ => None,
    }
}

/// Takes `pg_catalog.` off a name.
fn unqualify(name: &mut ObjectName) {
    if name.0.len() == 2 && catalog_name(name).is_some() {
        name.0.remove(0);
    }
}

/// The rules that need no more than the expression that they change.
struct Dialect;

impl VisitorMut for Dialect {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        without_ancestors(expr);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        subqueries::drop_what_never_runs(select);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        subqueries::count_what_exists(select);
        subqueries::name_the_tables(select);
        tell_apart(&mut select.projection);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } =
            factor
        {
            unqualify(name);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => {
                unqualify(&mut function.name);
                let name = catalog_name(&function.name);
                let rewritten = match (name.as_deref(), &function.args) {
                    (Some("array"), FunctionArguments::Subquery(query)) => arrays::array_of(query),
                    (Some("generate_subscripts"), args) => arrays::subscripts_of(args),
                    _ => None,
                };
                if let Some(rewritten) = rewritten {
                    *expr = rewritten;
                }
            }
            Expr::Identifier(name)
                // Reserved in PostgreSQL, but to the parser just a name.
                if name.quote_style.is_none()
                    && matches!(fold(name).as_str(), "current_schema" | "current_role")
                => {
                    *expr = build::call(&fold(name), vec![]);
                }
            Expr::BinaryOp { left, op, right } => binary(left, op, right),
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                if let Some(list) = build::list_literal(right) {
                    *expr = Expr::InList { expr: left.clone(), list, negated: false };
                }
            }
            Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => {
                if let Some(list) = build::list_literal(right) {
                    *expr = Expr::InList { expr: left.clone(), list, negated: true };
                }
            }
            Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
                // DataFusion knows the backslash only.
                if let Some(escape) = escape_char.take_if(|escape| !is_backslash(escape)) {
                    let args = vec![build::take(pattern), Expr::Value(escape)];
                    **pattern = build::call("like_escape", args);
                }
            }
            Expr::Collate { expr: inner, collation } if is_by_bytes(collation) => {
                *expr = build::take(inner);
            }
            Expr::Cast { .. } => cast(expr),
            Expr::Subquery(query) => {
                if let Some(rewritten) = subqueries::decorrelate(query) {
                    *expr = rewritten;
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// No table is partitioned, so none has ancestors: psql asks for them where it asks for what refers
/// to a table.
fn without_ancestors(expr: &mut Expr) {
    if let Expr::InSubquery { expr: inner, subquery, negated } = expr
        && let SetExpr::SetOperation { op: SetOperator::Union, left, right, .. } =
            subquery.body.as_mut()
        && let (SetExpr::Select(select), SetExpr::Values(values)) = (left.as_ref(), right.as_mut())
        && let [SelectItem::UnnamedExpr(Expr::Function(function))] = select.projection.as_slice()
        && catalog_name(&function.name).as_deref() == Some("pg_partition_ancestors")
    {
        let list = values.rows.iter_mut().flat_map(|row| std::mem::take(&mut row.content));
        let (list, negated) = (list.collect(), *negated);
        *expr = Expr::InList { expr: Box::new(build::take(inner)), list, negated };
    }
}

fn is_backslash(escape: &ast::ValueWithSpan) -> bool {
    matches!(&escape.value, Value::SingleQuotedString(text) if text == "\\")
}

/// Whether a collation compares bytes, as all comparisons here do.
fn is_by_bytes(collation: &ObjectName) -> bool {
    let name = catalog_name(collation);
    matches!(name.as_deref(), Some("default" | "C" | "c" | "POSIX" | "posix" | "ucs_basic"))
}

fn binary(left: &mut Expr, op: &mut BinaryOperator, right: &mut Expr) {
    if let BinaryOperator::PGCustomBinaryOperator(name) = op
        && let [schema, symbol] = name.as_slice()
        && schema.eq_ignore_ascii_case("pg_catalog")
        && let Some(known) = operator(symbol)
    {
        *op = known;
    }
    match op {
        BinaryOperator::StringConcat => {
            show_name(left);
            show_name(right);
        }
        BinaryOperator::Eq | BinaryOperator::NotEq => {
            if is_array_column(left)
                && let Some(array) = build::array_literal(right)
            {
                *right = array;
            }
        }
        _ => {}
    }
}

fn operator(symbol: &str) -> Option<BinaryOperator> {
    Some(match symbol {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "%" => BinaryOperator::Modulo,
        "||" => BinaryOperator::StringConcat,
        _ => return None,
    })
}

/// Whether the expression is named like an array in the catalogs, as `polroles` is.
fn is_array_column(expr: &Expr) -> bool {
    let Some(name) = build::column_name(expr) else { return false };
    definition::all().any(|relation| {
        relation
            .columns
            .iter()
            .any(|column| column.name == name && column.type_name.ends_with("[]"))
    })
}

/// The kinds of object ids that go by names, with the functions that read and write them.
const OBJECT_NAMES: [(&str, &str, &str); 5] = [
    ("regclass", "regclassin", "regclassout"),
    ("regnamespace", "regnamespacein", "regnamespaceout"),
    ("regproc", "regprocin", "regprocout"),
    ("regrole", "regrolein", "regroleout"),
    ("regtype", "regtypein", "regtypeout"),
];

fn cast(expr: &mut Expr) {
    let Expr::Cast { expr: inner, data_type, .. } = expr else { return };
    let name = match data_type {
        ast::DataType::Regclass => Some("regclass".to_owned()),
        ast::DataType::Custom(name, _) => catalog_name(name),
        ast::DataType::Text | ast::DataType::Varchar(_) => Some("text".to_owned()),
        _ => None,
    };
    let Some(name) = name else { return };
    if matches!(name.as_str(), "text" | "name" | "varchar") {
        show_name(inner);
    }
    let name = if name == "regprocedure" { "regproc" } else { name.as_str() };
    if let Some((_, input, _)) = OBJECT_NAMES.iter().find(|(kind, ..)| *kind == name) {
        *expr = build::call(input, vec![build::take(inner)]);
    }
}

/// Turns an object id that goes by a name into that name.
fn show_name(expr: &mut Expr) {
    match expr {
        Expr::Nested(inner) => show_name(inner),
        Expr::Function(function) => {
            let called = catalog_name(&function.name);
            let known = OBJECT_NAMES.iter().find(|(_, input, _)| called.as_deref() == Some(*input));
            if let Some((_, _, output)) = known {
                let shown = build::take(expr);
                *expr = build::call(output, vec![shown]);
            }
        }
        _ => {}
    }
}

/// In a result, object ids that go by names are shown as those.
fn show_names(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => {
            for item in &mut select.projection {
                if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item
                {
                    show_name(expr);
                }
            }
        }
        SetExpr::Query(query) => show_names(&mut query.body),
        SetExpr::SetOperation { left, right, .. } => {
            show_names(left);
            show_names(right);
        }
        _ => {}
    }
}

/// Gives names to all but the first of the expressions that look alike: DataFusion wants each
/// column of a select list to have its own. Nobody sees these names: the outermost list has been
/// named before.
fn tell_apart(items: &mut [SelectItem]) {
    let mut seen = std::collections::BTreeSet::new();
    for (position, item) in items.iter_mut().enumerate() {
        if let SelectItem::UnnamedExpr(expr) = item
            && !seen.insert(expr.to_string())
        {
            let expr = build::take(expr);
            let alias = Ident::with_quote('"', format!("?column?{position}"));
            *item = SelectItem::ExprWithAlias { expr, alias };
        }
    }
}
