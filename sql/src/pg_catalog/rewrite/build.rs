//! Small pieces of syntax, made and taken apart.

use datafusion::sql::sqlparser::ast::{
    Array, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    Ident, ObjectName, Value,
};

use super::fold;

/// A function called with these arguments.
pub(super) fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)));
    call_with(name, args.collect())
}

/// `count(*)`
pub(super) fn count() -> Expr {
    call_with("count", vec![FunctionArg::Unnamed(FunctionArgExpr::Wildcard)])
}

fn call_with(name: &str, args: Vec<FunctionArg>) -> Expr {
    let list = FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() };
    function(name, list)
}

/// A function called with this list of arguments.
pub(super) fn function(name: &str, list: FunctionArgumentList) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(list),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

pub(super) fn null() -> Expr {
    Expr::value(Value::Null)
}

pub(super) fn number(number: u32) -> Expr {
    Expr::value(Value::Number(number.to_string(), false))
}

/// The expression, with NULL left in its place.
pub(super) fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, null())
}

/// The items of a string literal such as `'{a,b}'`, if they are plain words or numbers.
fn items(expr: &Expr) -> Option<Vec<&str>> {
    let Expr::Value(value) = expr else { return None };
    let Value::SingleQuotedString(text) = &value.value else { return None };
    let inside = text.strip_prefix('{')?.strip_suffix('}')?;
    let is_plain = |item: &str| {
        let plain = item.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
        plain && !item.is_empty() && !item.eq_ignore_ascii_case("null")
    };
    let items: Vec<&str> = inside.split(',').map(str::trim).collect();
    items.iter().all(|item| is_plain(item)).then_some(items)
}

fn string(text: &str) -> Expr {
    Expr::value(Value::SingleQuotedString(text.to_owned()))
}

/// The items of such a literal, each as a string, whose type the context gives.
pub(super) fn list_literal(expr: &Expr) -> Option<Vec<Expr>> {
    Some(items(expr)?.into_iter().map(string).collect())
}

/// The array that such a literal is: of numbers if it holds nothing else.
pub(super) fn array_literal(expr: &Expr) -> Option<Expr> {
    let items = items(expr)?;
    let numbers = items.iter().all(|item| item.parse::<i64>().is_ok());
    let item = |item: &str| {
        if numbers { Expr::value(Value::Number(item.to_owned(), false)) } else { string(item) }
    };
    Some(Expr::Array(Array { elem: items.into_iter().map(item).collect(), named: true }))
}

/// The name of a column, without its relation's.
pub(super) fn column_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(name) => Some(fold(name)),
        Expr::CompoundIdentifier(parts) => parts.last().map(fold),
        _ => None,
    }
}
