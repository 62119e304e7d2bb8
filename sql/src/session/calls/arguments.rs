//! The arguments of a call: which parameter each is for, and its value.
//!
//! PostgreSQL's rules: those without a name come first, in the parameters' order; the others are
//! named; a call that fits no signature means a function that doesn't exist.

use std::time::Duration;

use datafusion::arrow::array::types::IntervalMonthDayNano;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast;
use meridian_storage::{NodeId, TabletId};

use crate::cluster_view::Place;
use crate::error::{SqlError, SqlState};
use crate::meridian_schema::SCHEMA;
use crate::meridian_schema::functions::{Function, Kind, Parameter};
use crate::plan::names::fold;
use crate::session::{Parameters, placeholder};
use crate::types::{BaseType, PgType, SessionFormat, assign, text};

/// The longest of any duration but a pause: what a topology may name.
const LONGEST: Duration = Duration::from_secs(60);

/// The expressions of a call, by the position of the parameter that each is for.
#[derive(Clone, Debug)]
pub(super) struct Matched<'a> {
    pub(super) function: &'static Function,
    pub(super) given: Vec<(usize, &'a ast::Expr)>,
}

impl<'a> Matched<'a> {
    /// Finds the signature that the arguments fit.
    ///
    /// # Errors
    /// `42601` where no signature could be fitted, `42883` where none is.
    pub(super) fn new(name: &str, arguments: &'a [ast::FunctionArg]) -> Result<Self, SqlError> {
        let arguments = Written::all(arguments)?;
        let mut why = Vec::new();
        for function in Function::named(name) {
            match fit(function, &arguments) {
                Ok(given) => return Ok(Self { function, given }),
                Err(reason) => why.push(reason),
            }
        }
        let types: Vec<_> = arguments.iter().map(Written::shown).collect();
        let error = undefined(name, &types.join(", "));
        // With several signatures there are as many reasons; the hint has to do.
        Err(match why.as_slice() {
            [reason] => error.detail(reason.clone()),
            _ => error,
        })
    }

    /// The parameter and the expressions given for it.
    pub(super) fn by_parameter(
        &self,
    ) -> impl Iterator<Item = (&'static Parameter, &'a ast::Expr)> + '_ {
        self.given.iter().filter_map(|&(at, expr)| Some((self.function.parameters.get(at)?, expr)))
    }
}

/// `42883` with the signatures that there are.
fn undefined(name: &str, types: &str) -> SqlError {
    let signatures: Vec<_> = Function::named(name).map(ToString::to_string).collect();
    let message = format!("function {SCHEMA}.{name}({types}) does not exist");
    SqlError::new(SqlState::UNDEFINED_FUNCTION, message)
        .hint(format!("There is {}.", signatures.join(" and ")))
}

/// An argument as it is written.
#[derive(Debug)]
struct Written<'a> {
    name: Option<String>,
    expr: &'a ast::Expr,
}

impl<'a> Written<'a> {
    fn all(arguments: &'a [ast::FunctionArg]) -> Result<Vec<Self>, SqlError> {
        let mut all: Vec<Self> = Vec::new();
        for argument in arguments {
            let (name, value) = match argument {
                ast::FunctionArg::Unnamed(value) => (None, value),
                ast::FunctionArg::Named { name, arg, .. } => (Some(fold(name)), arg),
                ast::FunctionArg::ExprNamed { name, .. } => {
                    let message = format!("syntax error at or near \"{name}\"");
                    return Err(SqlError::syntax(message));
                }
            };
            let ast::FunctionArgExpr::Expr(expr) = value else {
                return Err(SqlError::syntax(format!("syntax error at or near \"{value}\"")));
            };
            match &name {
                None if all.last().is_some_and(|last| last.name.is_some()) => {
                    let message = "positional argument cannot follow named argument";
                    return Err(SqlError::syntax(message));
                }
                Some(name) if all.iter().any(|other| other.name.as_ref() == Some(name)) => {
                    let message = format!("argument name \"{name}\" used more than once");
                    return Err(SqlError::syntax(message));
                }
                _ => all.push(Self { name, expr }),
            }
        }
        Ok(all)
    }

    /// As PostgreSQL writes it in its message: `integer`, `pause => unknown`.
    fn shown(&self) -> String {
        let of = written_type(self.expr);
        match &self.name {
            Some(name) => format!("{name} => {of}"),
            None => of,
        }
    }
}

/// The type of a constant, as far as it can be seen.
fn written_type(expr: &ast::Expr) -> String {
    match read(expr, None, &SessionFormat::default()) {
        Ok(given) => given.type_name(),
        Err(_) => PgType::Unknown.display_name(),
    }
}

/// Which parameter each argument is for, or why the function doesn't take them.
fn fit<'a>(
    function: &'static Function,
    arguments: &[Written<'a>],
) -> Result<Vec<(usize, &'a ast::Expr)>, String> {
    let parameters = function.parameters;
    let mut given: Vec<(usize, &ast::Expr)> = Vec::new();
    for (position, argument) in arguments.iter().enumerate() {
        let at = match &argument.name {
            None => match parameters.last() {
                Some(last) if last.kind == Kind::KeyColumns => position.min(parameters.len() - 1),
                _ if position < parameters.len() => position,
                _ => return Err(format!("It takes at most {} arguments.", parameters.len())),
            },
            Some(name) => {
                let named = |p: &Parameter| p.name == name && p.kind != Kind::KeyColumns;
                let at = parameters.iter().position(named);
                let at = at.ok_or_else(|| format!("It has no parameter \"{name}\"."))?;
                if given.iter().any(|(other, _)| *other == at) {
                    return Err(format!("The parameter \"{name}\" is given twice."));
                }
                at
            }
        };
        given.push((at, argument.expr));
    }
    for (at, parameter) in parameters.iter().enumerate() {
        if parameter.default.is_none() && !given.iter().any(|(other, _)| *other == at) {
            return Err(format!("The parameter \"{}\" is missing.", parameter.name));
        }
    }
    Ok(given)
}

/// A value as the statement gives it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    Null,
    /// A quoted literal: what it is for says what it is.
    Text(String),
    Value(ScalarValue, PgType),
    /// `ARRAY[...]`
    Array(Vec<Given>),
    /// `ROW(...)` or `(..., ...)`
    Row(Vec<Given>),
}

impl Given {
    fn type_name(&self) -> String {
        match self {
            Self::Null | Self::Text(_) => PgType::Unknown.display_name(),
            Self::Value(_, pg_type) => pg_type.display_name(),
            Self::Array(elements) => match elements.first() {
                Some(Self::Value(_, pg_type)) => format!("{}[]", pg_type.display_name()),
                _ => "text[]".to_owned(),
            },
            Self::Row(_) => PgType::Record.display_name(),
        }
    }
}

/// The value of a constant expression or a parameter. Without parameters (before they are bound),
/// one stands for a value of an unknown type.
fn read(
    expr: &ast::Expr,
    parameters: Option<&Parameters>,
    format: &SessionFormat,
) -> Result<Given, SqlError> {
    let several = |exprs: &[ast::Expr]| {
        exprs.iter().map(|expr| read(expr, parameters, format)).collect::<Result<Vec<_>, _>>()
    };
    if let Some(position) = placeholder(expr) {
        let bound = parameters.and_then(|parameters| {
            parameters.values.get(position).zip(parameters.types.get(position))
        });
        return Ok(match bound {
            Some((value, pg_type)) => typed(value.clone(), *pg_type),
            None => Given::Text(String::new()),
        });
    }
    match expr {
        ast::Expr::Nested(inner) => read(inner, parameters, format),
        ast::Expr::Value(value) => literal(&value.value, format)?.ok_or_else(|| not_constant(expr)),
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr: inner } => match inner.as_ref() {
            ast::Expr::Value(value) => match &value.value {
                ast::Value::Number(digits, _) => number(&format!("-{digits}"), format),
                _ => Err(not_constant(expr)),
            },
            _ => Err(not_constant(expr)),
        },
        ast::Expr::Cast { expr: inner, data_type, .. } => {
            let inner = read(inner, parameters, format)?;
            // The name of a table stays one.
            if *data_type == ast::DataType::Regclass {
                return Ok(inner);
            }
            cast(inner, PgType::from_sql(data_type)?, format)
        }
        ast::Expr::TypedString(string) => match string.value.clone().into_string() {
            Some(text) => cast(Given::Text(text), PgType::from_sql(&string.data_type)?, format),
            None => Err(not_constant(expr)),
        },
        ast::Expr::Interval(interval) => {
            let value = read(&interval.value, parameters, format)?;
            let unit = interval.leading_field.as_ref().map(ToString::to_string);
            match (value, interval.last_field.is_some()) {
                (Given::Text(value), false) => {
                    let text = format!("{value} {}", unit.unwrap_or_default());
                    cast(Given::Text(text), PgType::Interval, format)
                }
                _ => Err(not_constant(expr)),
            }
        }
        ast::Expr::Array(array) => Ok(Given::Array(several(&array.elem)?)),
        ast::Expr::Tuple(values) => Ok(Given::Row(several(values)?)),
        ast::Expr::Function(function) => match row(function) {
            Some(values) => {
                let values = values.map(|value| read(value, parameters, format));
                Ok(Given::Row(values.collect::<Result<_, _>>()?))
            }
            None => Err(not_constant(expr)),
        },
        ast::Expr::Identifier(name) => {
            let message = format!("column \"{}\" does not exist", fold(name));
            Err(SqlError::new(SqlState::UNDEFINED_COLUMN, message)
                .hint("Names of tables, regions and the like are texts here: quote them with '."))
        }
        _ => Err(not_constant(expr)),
    }
}

/// The values of `ROW(...)`, which the parser takes for a function.
pub(super) fn row(function: &ast::Function) -> Option<impl Iterator<Item = &ast::Expr>> {
    let [ast::ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else { return None };
    let ast::FunctionArguments::List(list) = &function.args else { return None };
    let value = |argument: &'_ ast::FunctionArg| {
        matches!(argument, ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(_)))
    };
    let is_row = name.quote_style.is_none()
        && name.value.eq_ignore_ascii_case("row")
        && list.args.iter().all(value);
    let values = list.args.iter().filter_map(|argument| match argument {
        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(value)) => Some(value),
        _ => None,
    });
    is_row.then_some(values)
}

fn not_constant(expr: &ast::Expr) -> SqlError {
    SqlError::unsupported(format!("an argument of a function of {SCHEMA} can't be computed"))
        .detail(format!("It is {expr}."))
        .hint("Give a constant, a cast of one, or a parameter.")
}

fn typed(value: ScalarValue, pg_type: PgType) -> Given {
    match value {
        value if value.is_null() => Given::Null,
        ScalarValue::Utf8(Some(text)) if pg_type == PgType::Unknown => Given::Text(text),
        value => Given::Value(value, pg_type),
    }
}

fn literal(value: &ast::Value, format: &SessionFormat) -> Result<Option<Given>, SqlError> {
    use ast::Value;
    Ok(Some(match value {
        Value::Number(digits, _) => number(digits, format)?,
        Value::Boolean(value) => Given::Value(ScalarValue::Boolean(Some(*value)), PgType::Bool),
        Value::Null => Given::Null,
        Value::SingleQuotedString(text)
        | Value::EscapedStringLiteral(text)
        | Value::UnicodeStringLiteral(text) => Given::Text(text.clone()),
        Value::DollarQuotedString(quoted) => Given::Text(quoted.value.clone()),
        _ => return Ok(None),
    }))
}

fn number(digits: &str, format: &SessionFormat) -> Result<Given, SqlError> {
    let digits = digits.replace('_', "");
    let pg_type = match (digits.parse::<i32>(), digits.parse::<i64>()) {
        (Ok(_), _) => PgType::Int4,
        (_, Ok(_)) => PgType::Int8,
        _ => PgType::UnboundedNumeric,
    };
    Ok(Given::Value(text::parse(pg_type, &digits, format)?, pg_type))
}

fn cast(given: Given, target: PgType, format: &SessionFormat) -> Result<Given, SqlError> {
    let (value, source) = match given {
        Given::Null => return Ok(Given::Null),
        Given::Text(text) if target.is_array() => {
            return Ok(typed(text::parse(target, &text, format)?, target));
        }
        Given::Text(text) => (ScalarValue::Utf8(Some(text)), PgType::Unknown),
        Given::Value(value, source) => (value, source),
        Given::Array(elements) => {
            let PgType::Array(element) = target else {
                return Err(cannot_cast(&Given::Array(elements), target));
            };
            let elements = elements.into_iter().map(|value| cast(value, element.plain(), format));
            return Ok(Given::Array(elements.collect::<Result<_, _>>()?));
        }
        row @ Given::Row(_) => return Err(cannot_cast(&row, target)),
    };
    Ok(typed(assign::cast(&value, source, target, format)?, target))
}

fn cannot_cast(given: &Given, target: PgType) -> SqlError {
    let message = format!("cannot cast type {} to {}", given.type_name(), target.display_name());
    SqlError::new(SqlState::CANNOT_COERCE, message)
}

/// The values of a call's arguments.
#[derive(Debug)]
pub(super) struct Arguments<'s> {
    function: &'static Function,
    values: Vec<(usize, Given)>,
    format: &'s SessionFormat,
}

impl<'s> Arguments<'s> {
    /// Reads what a call was given.
    ///
    /// # Errors
    /// `22004` for NULL in a parameter that needs a value; whatever is wrong with a constant.
    pub(super) fn read(
        matched: &Matched<'_>,
        parameters: &Parameters,
        format: &'s SessionFormat,
    ) -> Result<Self, SqlError> {
        let function = matched.function;
        let value = |&(at, expr): &(usize, &ast::Expr)| {
            let value = read(expr, Some(parameters), format)?;
            match function.parameters.get(at) {
                Some(parameter) if parameter.default.is_none() && value == Given::Null => {
                    Err(is_null(function, parameter))
                }
                _ => Ok((at, value)),
            }
        };
        let values = matched.given.iter().map(value).collect::<Result<_, _>>()?;
        Ok(Self { function, values, format })
    }

    /// Whether every value is one for its parameter; keys, which need their table, aside.
    pub(super) fn check(&self) -> Result<(), SqlError> {
        let parameters = self.function.parameters.iter();
        let mut typed = parameters.filter(|parameter| parameter.kind.pg_type().is_some());
        typed.try_for_each(|parameter| self.value(parameter.name).map(|_| ()))
    }

    fn position(&self, name: &str) -> Result<usize, SqlError> {
        let position = self.function.parameters.iter().position(|p| p.name == name);
        position.ok_or_else(|| SqlError::internal(format!("no parameter {name}")))
    }

    /// What is given for a parameter, NULL too.
    pub(super) fn given(&self, name: &str) -> Result<Option<&Given>, SqlError> {
        let position = self.position(name)?;
        Ok(self.values.iter().find(|(at, _)| *at == position).map(|(_, value)| value))
    }

    /// All that is given for the last parameter, which takes any number.
    pub(super) fn rest(&self) -> Vec<&Given> {
        let last = self.function.parameters.len().saturating_sub(1);
        self.values.iter().filter(|(at, _)| *at == last).map(|(_, value)| value).collect()
    }

    /// What a value of the parameter's type was made of; `None` where nothing or NULL is given.
    fn value(&self, name: &str) -> Result<Option<(ScalarValue, &'static Parameter)>, SqlError> {
        let parameter = self.function.parameters.get(self.position(name)?);
        let parameter = parameter.ok_or_else(|| SqlError::internal("a parameter is missing"))?;
        let pg_type = parameter.kind.pg_type();
        let pg_type = pg_type.ok_or_else(|| SqlError::internal("a key is no single value"))?;
        let mismatch = |given: &Given| {
            let types: Vec<_> = self.values.iter().map(|(_, value)| value.type_name()).collect();
            undefined(self.function.name, &types.join(", ")).detail(format!(
                "The parameter \"{name}\" is of type {}, not {}.",
                pg_type.display_name(),
                given.type_name()
            ))
        };
        let value = match self.given(name)? {
            None | Some(Given::Null) => return Ok(None),
            Some(Given::Text(text)) => text::parse(pg_type, text, self.format)?,
            Some(given @ Given::Value(value, source)) => {
                if !is_implicit(*source, parameter.kind, pg_type) {
                    return Err(mismatch(given));
                }
                assign::cast(value, *source, pg_type, self.format)?
            }
            Some(Given::Array(elements)) if pg_type == PgType::Array(BaseType::Text) => {
                self.texts_of(elements, parameter)?
            }
            Some(given) => return Err(mismatch(given)),
        };
        Ok(Some((value, parameter)))
    }

    fn texts_of(&self, elements: &[Given], parameter: &Parameter) -> Result<ScalarValue, SqlError> {
        let element = |given: &Given| match given {
            Given::Text(text) => Ok(ScalarValue::Utf8(Some(text.clone()))),
            Given::Value(value @ ScalarValue::Utf8(Some(_)), _) => Ok(value.clone()),
            Given::Null => Err(is_null(self.function, parameter)),
            other => Err(cannot_cast(other, PgType::Text)),
        };
        let elements: Vec<_> = elements.iter().map(element).collect::<Result<_, _>>()?;
        let text = datafusion::arrow::datatypes::DataType::Utf8;
        Ok(ScalarValue::List(ScalarValue::new_list_nullable(&elements, &text)))
    }

    /// A parameter that has to be given.
    fn needed<T>(&self, name: &str, value: Option<T>) -> Result<T, SqlError> {
        value.ok_or_else(|| {
            SqlError::internal(format!("{} was called without {name}", self.function.name))
        })
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, SqlError> {
        Ok(match self.value(name)? {
            Some((ScalarValue::Utf8(Some(text)), _)) => Some(text),
            _ => None,
        })
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, SqlError> {
        Ok(match self.value(name)? {
            Some((ScalarValue::Boolean(value), _)) => value,
            _ => None,
        })
    }

    fn integer(&self, name: &str) -> Result<Option<i64>, SqlError> {
        Ok(match self.value(name)? {
            Some((ScalarValue::Int32(value), _)) => value.map(i64::from),
            Some((ScalarValue::Int64(value), _)) => value,
            _ => None,
        })
    }

    /// A number between two others.
    pub(super) fn between(
        &self,
        name: &str,
        least: f64,
        most: f64,
    ) -> Result<Option<f64>, SqlError> {
        let Some((ScalarValue::Float64(Some(value)), _)) = self.value(name)? else {
            return Ok(None);
        };
        if (least..=most).contains(&value) {
            return Ok(Some(value));
        }
        Err(out_of_range(name, &format!("between {least} and {most}")))
    }

    /// A count from 1 to what a byte holds.
    pub(super) fn count(&self, name: &str) -> Result<Option<u8>, SqlError> {
        let Some(value) = self.integer(name)? else { return Ok(None) };
        match u8::try_from(value) {
            Ok(value @ 1..) => Ok(Some(value)),
            _ => Err(out_of_range(name, "between 1 and 255")),
        }
    }

    pub(super) fn node(&self, name: &str) -> Result<NodeId, SqlError> {
        let number = self.needed(name, self.integer(name)?)?;
        let number = u64::try_from(number).map_err(|_| no_number("node", number))?;
        Ok(NodeId::new(number))
    }

    pub(super) fn tablet(&self, name: &str) -> Result<TabletId, SqlError> {
        let number = self.needed(name, self.integer(name)?)?;
        let number = u64::try_from(number).map_err(|_| no_number("tablet", number))?;
        Ok(TabletId::new(number))
    }

    /// A node by its number, or a region.
    pub(super) fn place(&self, name: &str) -> Result<Place, SqlError> {
        let text = self.needed(name, self.text(name)?)?;
        Ok(match text.parse() {
            Ok(number) => Place::Node(NodeId::new(number)),
            Err(_) => Place::Region(text),
        })
    }

    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<String>>, SqlError> {
        let Some((ScalarValue::List(list), parameter)) = self.value(name)? else {
            return Ok(None);
        };
        let elements = ScalarValue::convert_array_to_scalar_vec(list.as_ref());
        let elements = elements.map_err(|e| SqlError::internal(e.to_string()))?;
        let text = |value: ScalarValue| match value {
            ScalarValue::Utf8(Some(text)) => Ok(text),
            _ => Err(is_null(self.function, parameter)),
        };
        let all = elements.into_iter().flatten().flatten().map(text);
        Ok(Some(all.collect::<Result<_, _>>()?))
    }

    /// Nanoseconds, negative ones too, up to a minute either way.
    pub(super) fn signed_nanos(&self, name: &str) -> Result<Option<i64>, SqlError> {
        let Some((ScalarValue::IntervalMonthDayNano(Some(interval)), _)) = self.value(name)? else {
            return Ok(None);
        };
        let nanos = nanos(name, interval)?;
        let longest = i128::try_from(LONGEST.as_nanos()).unwrap_or(i128::MAX);
        match i64::try_from(nanos) {
            Ok(fits) if nanos.abs() <= longest => Ok(Some(fits)),
            _ => Err(out_of_range(name, "at most a minute either way")),
        }
    }

    /// A duration up to a minute.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, SqlError> {
        self.duration_up_to(name, LONGEST)
    }

    pub(super) fn duration_up_to(
        &self,
        name: &str,
        longest: Duration,
    ) -> Result<Option<Duration>, SqlError> {
        let Some((ScalarValue::IntervalMonthDayNano(Some(interval)), _)) = self.value(name)? else {
            return Ok(None);
        };
        let nanos = nanos(name, interval)?;
        match u64::try_from(nanos).map(Duration::from_nanos) {
            Ok(duration) if duration <= longest => Ok(Some(duration)),
            _ => Err(out_of_range(name, &format!("between 0 and {longest:?}"))),
        }
    }

    /// Whether nothing is given at all.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(super) fn format(&self) -> &'s SessionFormat {
        self.format
    }
}

/// Whether a value of a type may stand for the parameter without a cast. Texts may also be
/// durations, and numbers of nodes places.
fn is_implicit(source: PgType, kind: Kind, target: PgType) -> bool {
    let integer = matches!(source, PgType::Int2 | PgType::Int4 | PgType::Int8);
    match kind {
        Kind::Node | Kind::Tablet | Kind::Int => integer,
        Kind::Float => source.is_number(),
        Kind::Place => integer || source.is_string(),
        Kind::Duration => source == target || source.is_string(),
        Kind::Text | Kind::Table => source.is_string(),
        Kind::Texts => matches!(source, PgType::Array(BaseType::Text | BaseType::Varchar)),
        Kind::Bool => source == target,
        Kind::Key | Kind::KeyColumns => false,
    }
}

/// A month has no length.
fn nanos(name: &str, interval: IntervalMonthDayNano) -> Result<i128, SqlError> {
    if interval.months != 0 {
        return Err(out_of_range(name, "given without months"));
    }
    let days = i128::from(interval.days) * 86_400_000_000_000;
    Ok(days + i128::from(interval.nanoseconds))
}

fn out_of_range(name: &str, should: &str) -> SqlError {
    let message = format!("{name} must be {should}");
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn no_number(what: &str, number: i64) -> SqlError {
    let message = format!("there is no {what} {number}");
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
        .hint(format!("meridian.{what}s shows the {what}s."))
}

pub(super) fn is_null(function: &Function, parameter: &Parameter) -> SqlError {
    let (function, name) = (function.name, parameter.name);
    let message = format!("the argument \"{name}\" of {SCHEMA}.{function} must not be null");
    SqlError::new(SqlState::NULL_VALUE_NOT_ALLOWED, message)
}
