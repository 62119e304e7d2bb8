//! The names of a query's columns.
//!
//! DataFusion names an unnamed expression after its text and refuses two columns of one name;
//! PostgreSQL names it after its function or `?column?` and doesn't mind. So each item of the
//! outermost select list gets PostgreSQL's name as its alias, made unique by a suffix that is taken
//! off again where the columns are described.

use std::collections::BTreeSet;

use datafusion::sql::sqlparser::ast::{
    self, CastKind, Expr, Ident, ObjectNamePart, SelectItem, SetExpr, Value,
};

/// Separates a name from what makes it unique.
const MARK: char = '\u{1}';
const UNNAMED: &str = "?column?";

/// Gives every item of the outermost select list a name.
pub(crate) fn name_columns(query: &mut ast::Query) {
    let mut body = query.body.as_mut();
    loop {
        match body {
            SetExpr::Select(select) => return name_items(&mut select.projection),
            SetExpr::Query(query) => body = query.body.as_mut(),
            SetExpr::SetOperation { left, .. } => body = left.as_mut(),
            _ => return,
        }
    }
}

/// The name as a client sees it.
pub(crate) fn shown(name: &str) -> &str {
    name.split(MARK).next().unwrap_or(name)
}

fn name_items(items: &mut [SelectItem]) {
    let mut taken = BTreeSet::new();
    for (position, item) in items.iter_mut().enumerate() {
        let (mut expr, name) = match item {
            SelectItem::UnnamedExpr(expr) => {
                let name = name_of(expr, 0).unwrap_or_else(|| UNNAMED.to_owned());
                (expr.clone(), name)
            }
            SelectItem::ExprWithAlias { expr, alias } => (expr.clone(), fold(alias)),
            _ => continue,
        };
        let plain = matches!(item, SelectItem::UnnamedExpr(e) if is_column(e));
        let unique = taken.insert(name.clone());
        // A column keeps its table's name with it, which ORDER BY may use.
        if plain && unique {
            continue;
        }
        let name = if unique { name } else { format!("{name}{MARK}{position}") };
        type_integer(&mut expr);
        *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
    }
}

fn is_column(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_))
}

/// A small integer on its own is an `integer`.
fn type_integer(expr: &mut Expr) {
    let digits = match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => digits.clone(),
            _ => return,
        },
        Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, _) => format!("-{digits}"),
                _ => return,
            },
            _ => return,
        },
        _ => return,
    };
    if digits.parse::<i32>().is_ok() {
        let inner = std::mem::replace(expr, Expr::value(Value::Null));
        *expr = Expr::Cast {
            kind: CastKind::DoubleColon,
            expr: Box::new(inner),
            data_type: ast::DataType::Int4(None),
            array: false,
            format: None,
        };
    }
}

/// PostgreSQL's `FigureColname`. The depth is bounded where the statement is parsed.
fn name_of(expr: &Expr, depth: usize) -> Option<String> {
    if depth > 64 {
        return None;
    }
    match expr {
        Expr::Identifier(name) => Some(fold(name)),
        Expr::CompoundIdentifier(names) => names.last().map(fold),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => name_of(inner, depth + 1),
        Expr::Function(function) => match function.name.0.last() {
            Some(ObjectNamePart::Identifier(name)) => Some(fold(name)),
            _ => None,
        },
        Expr::Cast { expr, data_type, .. } => {
            name_of(expr, depth + 1).or_else(|| Some(type_name(data_type)))
        }
        Expr::Case { else_result, .. } => else_result
            .as_ref()
            .and_then(|expr| name_of(expr, depth + 1))
            .or_else(|| Some("case".to_owned())),
        Expr::Exists { .. } => Some("exists".to_owned()),
        Expr::Array(_) => Some("array".to_owned()),
        Expr::Extract { .. } => Some("extract".to_owned()),
        Expr::Position { .. } => Some("position".to_owned()),
        Expr::Substring { .. } => Some("substring".to_owned()),
        Expr::Trim { .. } => Some("btrim".to_owned()),
        Expr::Ceil { .. } => Some("ceil".to_owned()),
        Expr::Floor { .. } => Some("floor".to_owned()),
        Expr::Overlay { .. } => Some("overlay".to_owned()),
        Expr::Interval(_) => Some("interval".to_owned()),
        Expr::TypedString(typed) => Some(type_name(&typed.data_type)),
        Expr::Value(value) if matches!(value.value, Value::Boolean(_)) => Some("bool".to_owned()),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first()? {
                SelectItem::UnnamedExpr(expr) => name_of(expr, depth + 1),
                SelectItem::ExprWithAlias { alias, .. } => Some(fold(alias)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

fn type_name(data_type: &ast::DataType) -> String {
    crate::types::PgType::from_sql(data_type)
        .map_or_else(|_| data_type.to_string().to_lowercase(), crate::types::PgType::typname)
}

/// An identifier as PostgreSQL folds it.
pub(crate) fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::parse::parse;

    fn names(sql: &str) -> Vec<String> {
        let statement = parse(sql).expect("parses").remove(0);
        let ast::Statement::Query(mut query) =
            ast::Statement::clone(statement.ast().expect("not empty"))
        else {
            panic!("not a query");
        };
        name_columns(&mut query);
        let SetExpr::Select(select) = *query.body else {
            panic!("not a select");
        };
        let name = |item: &SelectItem| match item {
            SelectItem::ExprWithAlias { alias, .. } => shown(&alias.value).to_owned(),
            other => other.to_string(),
        };
        select.projection.iter().map(name).collect()
    }

    #[test]
    fn expressions_are_named_as_postgresql_names_them() {
        assert_eq!(
            names(
                "select 1, 2, a, A, \"A\", t.b, count(*), sum(a) as S, a::text, '1'::int4, case \
                   when a then b else c end, 1 + 1, true, pg_catalog.version(), (select max(x)), *"
            ),
            [
                "?column?", "?column?", "a", "a", "\"A\"", "t.b", "count", "s", "a", "int4", "c",
                "?column?", "bool", "version", "max", "*"
            ]
        );
    }
}
