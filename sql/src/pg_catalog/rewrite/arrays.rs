//! Arrays out of rows, and rows out of arrays.

use datafusion::sql::sqlparser::ast::{
    DuplicateTreatment, Expr, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
    FunctionArgumentList, FunctionArguments, LambdaFunction, LambdaFunctionParameter, LambdaSyntax,
    OneOrManyWithParens, OrderByExpr, OrderByKind, Query, Select, SelectItem, TableFactor,
    TableWithJoins, Value,
};

use super::super::definition;
use super::subqueries::{aggregates, decorrelate, is_grouped, only_select, with_body};
use super::{build, catalog_name};

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
    if let Some(array) = each_of(&select, item).filter(|_| order.is_empty()) {
        return Some(array);
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
    Some(or_empty(aggregate))
}

/// `SELECT f(x) FROM unnest(a) x` as `array_transform(a, x -> f(x))`, or an empty array.
fn each_of(select: &Select, item: &Expr) -> Option<Expr> {
    let [TableWithJoins { relation, joins }] = select.from.as_slice() else { return None };
    if !joins.is_empty() || select.selection.is_some() || select.distinct.is_some() {
        return None;
    }
    let (array, alias) = match relation {
        TableFactor::UNNEST { array_exprs, alias: Some(alias), .. } => match array_exprs.as_slice()
        {
            [array] => (array, alias),
            _ => return None,
        },
        TableFactor::Table { name, alias: Some(alias), args: Some(args), .. } => {
            match args.args.as_slice() {
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(array))]
                    if catalog_name(name).as_deref() == Some("unnest") =>
                {
                    (array, alias)
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    if !alias.columns.is_empty() {
        return None;
    }
    let parameter = LambdaFunctionParameter { name: alias.name.clone(), data_type: None };
    let lambda = Expr::Lambda(LambdaFunction {
        params: OneOrManyWithParens::One(parameter),
        body: Box::new(item.clone()),
        syntax: LambdaSyntax::Arrow,
    });
    Some(or_empty(build::call("array_transform", vec![array.clone(), lambda])))
}

/// An array, empty for NULL.
fn or_empty(array: Expr) -> Expr {
    build::call("coalesce", vec![array, build::call("make_array", vec![])])
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
    let is_vector = definition::all()
        .flat_map(|relation| &relation.columns)
        .any(|column| Some(column.name) == name.as_deref() && column.type_name.ends_with("vector"));
    let first = build::number(u32::from(!is_vector));
    let args = vec![array.clone(), dimension.clone(), first];
    Some(build::call("unnest", vec![build::call("array_subscripts", args)]))
}
