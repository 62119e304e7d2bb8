//! What a client is told of the errors of DataFusion and of the tablets.
//!
//! Errors that this crate raised itself travel through DataFusion unchanged. DataFusion's own
//! mostly carry nothing but a text, so here, and only here, the code follows from the text.

use std::error::Error;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{Column, DataFusionError, SchemaError};
use meridian_txn::TxnError;

use crate::error::{SqlError, SqlState};
use crate::meridian_schema::functions::Function;
use crate::tablets::ReadError;

/// PostgreSQL's error for one of DataFusion's.
pub(crate) fn sql_error(error: &DataFusionError) -> SqlError {
    if let Some(found) = find::<SqlError>(error) {
        return found.clone();
    }
    match find::<ReadError>(error) {
        Some(ReadError::Sql(error)) => return error.clone(),
        Some(ReadError::Txn(error)) => return txn_error(error),
        None => {}
    }
    match error.find_root() {
        DataFusionError::SchemaError(error, _) => schema_error(error),
        DataFusionError::NotImplemented(text) => unsupported(text),
        DataFusionError::ResourcesExhausted(text) => {
            SqlError::new(SqlState::OUT_OF_MEMORY, "out of memory").detail(first_line(text))
        }
        DataFusionError::ArrowError(error, _) => arrow_error(error),
        DataFusionError::Plan(text)
        | DataFusionError::Execution(text)
        | DataFusionError::Configuration(text) => from_text(text),
        DataFusionError::SQL(error, _) => SqlError::syntax(error.to_string()),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => sql_error(first),
            None => SqlError::internal("an empty collection of errors"),
        },
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => {
            sql_error(inner)
        }
        DataFusionError::Shared(inner) => sql_error(inner),
        other => match from_known_text(&other.strip_backtrace()) {
            Some(error) => error,
            None => SqlError::internal(first_line(&other.strip_backtrace())),
        },
    }
}

/// The tablets' error that lies at the bottom, if one does: the caller may retry.
pub(crate) fn txn_cause(error: &DataFusionError) -> Option<&TxnError> {
    match find::<ReadError>(error)? {
        ReadError::Txn(error) => Some(error),
        ReadError::Sql(_) => None,
    }
}

/// PostgreSQL's error for one of the tablets'.
pub(crate) fn txn_error(error: &TxnError) -> SqlError {
    match error {
        TxnError::Conflict => SqlError::new(
            SqlState::SERIALIZATION_FAILURE,
            "could not serialize access due to concurrent update",
        )
        .hint("The transaction might succeed if retried."),
        TxnError::Moved { .. } => SqlError::new(
            SqlState::CANNOT_CONNECT_NOW,
            "the tablets that the statement touches keep changing",
        )
        .detail("They were split or moved each time that the statement was tried.")
        .hint("Nothing was changed; the statement might succeed if retried."),
        TxnError::SchemaChanged { .. } | TxnError::NoSuchTablet { .. } => SqlError::new(
            SqlState::SERIALIZATION_FAILURE,
            "the schema changed while the transaction ran",
        )
        .hint("The transaction might succeed if retried."),
        TxnError::Locked => {
            SqlError::new(SqlState::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout")
        }
        TxnError::DuplicateKey { .. } => SqlError::new(
            SqlState::UNIQUE_VIOLATION,
            "duplicate key value violates unique constraint",
        ),
        TxnError::NotLeader { tablet, .. } => {
            SqlError::new(SqlState::CANNOT_CONNECT_NOW, format!("tablet {tablet} has no leader"))
        }
        TxnError::Unavailable { tablet, reason } => {
            let message = format!("tablet {tablet} is unavailable");
            SqlError::new(SqlState::CANNOT_CONNECT_NOW, message)
                .detail(format!("{reason}."))
                .hint("Nothing was changed. Most of the tablet's replicas must be reachable.")
        }
        TxnError::Unknown { reason } => {
            let message = "the outcome of the write is unknown";
            SqlError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
                .detail(format!("{reason}."))
                .hint("It may have been carried out. Read what it wrote before repeating it.")
        }
        TxnError::TooLarge { size, limit } => {
            let message = format!("the write of {size} bytes is larger than {limit} bytes");
            SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
                .hint("Split the statement into several.")
        }
        TxnError::Refused { message, hint } => {
            let error = SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message.clone());
            match hint {
                Some(hint) => error.hint(hint.clone()),
                None => error,
            }
        }
        TxnError::TooFresh { tablet, safe, .. } => {
            let message = format!("no replica of tablet {tablet} can serve the read yet");
            SqlError::new(SqlState::CANNOT_CONNECT_NOW, message)
                .detail(format!("The last one that was asked can serve reads up to {safe}."))
        }
        TxnError::TooOld { horizon, .. } => {
            let message = "the timestamp of the read is older than the retention period";
            SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
                .detail(format!("The oldest that can be read is {horizon}."))
        }
        TxnError::Internal(text) => SqlError::internal(text.clone()),
    }
}

/// Looks for an error of type `E` below DataFusion's wrappings.
fn find<E: Error + 'static>(error: &DataFusionError) -> Option<&E> {
    match error {
        DataFusionError::External(inner) => find_boxed(inner.as_ref()),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => find(inner),
        DataFusionError::Shared(inner) => find(inner),
        DataFusionError::Collection(errors) => errors.iter().find_map(find),
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::ExternalError(inner) => find_boxed(inner.as_ref()),
            _ => None,
        },
        _ => None,
    }
}

fn find_boxed<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    if let Some(found) = error.downcast_ref::<E>() {
        return Some(found);
    }
    if let Some(inner) = error.downcast_ref::<DataFusionError>() {
        return find(inner);
    }
    if let Some(ArrowError::ExternalError(inner)) = error.downcast_ref::<ArrowError>() {
        return find_boxed(inner.as_ref());
    }
    None
}

fn schema_error(error: &SchemaError) -> SqlError {
    match error {
        SchemaError::FieldNotFound { field, .. } => undefined_column(field),
        SchemaError::AmbiguousReference { field } => SqlError::new(
            SqlState::AMBIGUOUS_COLUMN,
            format!("column reference \"{}\" is ambiguous", field.name),
        ),
        SchemaError::DuplicateQualifiedField { qualifier, .. } => SqlError::new(
            SqlState::DUPLICATE_ALIAS,
            format!("table name \"{}\" specified more than once", qualifier.table()),
        ),
        SchemaError::DuplicateUnqualifiedField { name } => SqlError::new(
            SqlState::DUPLICATE_COLUMN,
            format!("column \"{name}\" specified more than once"),
        ),
    }
}

fn undefined_column(column: &Column) -> SqlError {
    let message = match &column.relation {
        Some(relation) => format!("column {}.{} does not exist", relation.table(), column.name),
        None => format!("column \"{}\" does not exist", column.name),
    };
    SqlError::new(SqlState::UNDEFINED_COLUMN, message)
}

fn arrow_error(error: &ArrowError) -> SqlError {
    match error {
        ArrowError::DivideByZero => division_by_zero(),
        ArrowError::ArithmeticOverflow(text) => {
            SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range")
                .detail(sentence(text))
        }
        ArrowError::MemoryError(text) => {
            SqlError::new(SqlState::OUT_OF_MEMORY, "out of memory").detail(sentence(text))
        }
        ArrowError::NotYetImplemented(text) => unsupported(text),
        other => from_text(&other.to_string()),
    }
}

fn division_by_zero() -> SqlError {
    SqlError::new(SqlState::DIVISION_BY_ZERO, "division by zero")
}

fn unsupported(text: &str) -> SqlError {
    SqlError::unsupported(lower_first(&first_line(text)))
}

fn from_text(text: &str) -> SqlError {
    from_known_text(text).unwrap_or_else(|| {
        let code = SqlState::SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION;
        SqlError::new(code, lower_first(&first_line(text)))
    })
}

/// The texts of DataFusion and Arrow that stand for an error with a code of its own.
fn from_known_text(text: &str) -> Option<SqlError> {
    let between = |start: &str, end: &str| {
        let (_, rest) = text.split_once(start)?;
        Some(rest.split_once(end)?.0)
    };
    if text.contains("Divide by zero") || text.contains("divide by zero") {
        return Some(division_by_zero());
    }
    if let Some(name) = between("Invalid function '", "'") {
        return Some(undefined_function(name));
    }
    if let Some(call) = between("given name and argument types '", "'") {
        return Some(undefined_function(call));
    }
    if text.contains("Failed to coerce arguments") || text.contains("coercion from") {
        let name = between("function '", "'").or_else(|| between("'", "'")).unwrap_or("?");
        return Some(undefined_function(name));
    }
    if let Some(operation) = between("argument type for comparison operation ", " to valid")
        .or_else(|| text.split_once("argument type for comparison operation ").map(|(_, r)| r))
        .or_else(|| between("Cannot coerce arithmetic expression ", " to valid types"))
        .or_else(|| between("Cannot get result type for arithmetic operation ", ": "))
    {
        let message = format!("operator does not exist: {}", operator(operation));
        return Some(SqlError::new(SqlState::UNDEFINED_FUNCTION, message).hint(
            "No operator matches the given name and argument types. You might need to add \
             explicit type casts.",
        ));
    }
    if text.contains("GROUP BY") {
        return Some(SqlError::new(SqlState::GROUPING_ERROR, lower_first(&first_line(text))));
    }
    if text.contains("more than one row") {
        return Some(SqlError::new(
            SqlState::CARDINALITY_VIOLATION,
            "more than one row returned by a subquery used as an expression",
        ));
    }
    if text.contains("out of range") || text.contains("Overflow") || text.contains("overflow") {
        return Some(
            SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range")
                .detail(sentence(&first_line(text))),
        );
    }
    if text.contains("is too large to store in a Decimal")
        || text.contains("can't cast value")
        || text.contains("Can't cast value")
    {
        return Some(
            SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range")
                .detail(sentence(&first_line(text))),
        );
    }
    if let Some(value) = between("Cannot cast string '", "'") {
        return Some(SqlError::new(
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("invalid input syntax: \"{value}\""),
        ));
    }
    if text.contains("Error parsing timestamp") || text.contains("Parser error") {
        return Some(SqlError::new(
            SqlState::INVALID_DATETIME_FORMAT,
            lower_first(&first_line(text)),
        ));
    }
    if text.contains("Unsupported CAST") || text.contains("not supported") && text.contains("ast") {
        return Some(SqlError::new(SqlState::CANNOT_COERCE, lower_first(&first_line(text))));
    }
    if text.contains("same number of columns") {
        return Some(SqlError::syntax("each query must have the same number of columns"));
    }
    if text.contains("not supported") || text.contains("Unsupported") {
        return Some(unsupported(text));
    }
    None
}

fn undefined_function(call: &str) -> SqlError {
    let name = call.split('(').next().and_then(|name| name.strip_prefix("meridian."));
    if name.is_some_and(|name| Function::named(name).next().is_some()) {
        let name = name.unwrap_or_default();
        return SqlError::unsupported(format!("meridian.{name} is only called alone"))
            .hint(format!("SELECT meridian.{name}(...), with nothing else in the statement."));
    }
    let call = match call.split_once('(') {
        Some((name, arguments)) => format!("{name}({}", type_names(arguments)),
        None => call.to_owned(),
    };
    SqlError::new(SqlState::UNDEFINED_FUNCTION, format!("function {call} does not exist")).hint(
        "No function matches the given name and argument types. You might need to add explicit \
         type casts.",
    )
}

fn operator(operation: &str) -> String {
    type_names(&first_line(operation))
}

/// PostgreSQL's names for the most frequent of Arrow's types.
fn type_names(text: &str) -> String {
    const NAMES: [(&str, &str); 12] = [
        ("Utf8View", "text"),
        ("LargeUtf8", "text"),
        ("Utf8", "text"),
        ("Int16", "smallint"),
        ("Int32", "integer"),
        ("Int64", "bigint"),
        ("Float32", "real"),
        ("Float64", "double precision"),
        ("Boolean", "boolean"),
        ("Date32", "date"),
        ("FixedSizeBinary(16)", "uuid"),
        ("Binary", "bytea"),
    ];
    NAMES.iter().fold(text.to_owned(), |text, (arrow, name)| text.replace(arrow, name))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().trim_end_matches('.').to_owned()
}

fn sentence(text: &str) -> String {
    format!("{}.", text.trim_end_matches('.'))
}

fn lower_first(text: &str) -> String {
    let text = text.strip_prefix("Error during planning: ").unwrap_or(text);
    let mut characters = text.chars();
    let second_is_lower = text.chars().nth(1).is_some_and(|c| !c.is_uppercase());
    match characters.next() {
        Some(first) if second_is_lower => first.to_lowercase().chain(characters).collect(),
        _ => text.to_owned(),
    }
}
