//! Statements that need no plan: SET, SHOW, DISCARD.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::datatypes::Schema;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;

use super::{ColumnDescription, Notice, Outcome, Session, TransactionStatus};
use crate::error::{SqlError, SqlState};
use crate::plan::errors::sql_error;
use crate::plan::names::fold;
use crate::types::PgType;

/// The columns of a statement's result, if it is one of those that are run here: `Some(None)` for
/// one that has no result.
#[expect(clippy::option_option, reason = "not ours, or without a result, or with one")]
pub(super) fn columns(
    session: &Session,
    statement: &ast::Statement,
) -> Result<Option<Option<Arc<[ColumnDescription]>>>, SqlError> {
    let columns = match statement {
        ast::Statement::ShowVariable { variable } if is_all(variable) => {
            ["name", "setting", "description"]
                .map(|name| ColumnDescription::new(name, PgType::Text))
                .to_vec()
        }
        ast::Statement::ShowVariable { variable } => {
            let (name, _) = session.settings.get(&shown_name(variable))?;
            vec![ColumnDescription::new(name, PgType::Text)]
        }
        ast::Statement::Query(_)
        | ast::Statement::Insert(_)
        | ast::Statement::Update(_)
        | ast::Statement::Delete(_)
        | ast::Statement::Explain { .. } => return Ok(None),
        _ => return Ok(Some(None)),
    };
    Ok(Some(Some(columns.into())))
}

/// Runs a statement that is neither a query nor a change of tables or rows.
pub(super) fn run(session: &mut Session, statement: &ast::Statement) -> Result<Outcome, SqlError> {
    use ast::Statement;
    match statement {
        Statement::Set(set) => run_set(session, set),
        Statement::Reset(reset) => {
            let changes = match &reset.reset {
                ast::Reset::ALL => session.settings.reset_all(),
                ast::Reset::ConfigurationParameter(name) => {
                    session.settings.reset(&object_name(name))?.into_iter().collect()
                }
            };
            changed(session, changes);
            done("RESET")
        }
        Statement::ShowVariable { variable } if is_all(variable) => show_all(session),
        Statement::ShowVariable { variable } => {
            let (name, mut value) = session.settings.get(&shown_name(variable))?;
            let shown = match name {
                "meridian.min_read_timestamp" => Some(session.has_seen()),
                "meridian.last_commit" => Some(session.shown_commit()),
                _ => None,
            };
            value = shown.as_deref().unwrap_or(value);
            if name == "transaction_read_only" {
                value = if session.is_read_only() { "on" } else { "off" };
            }
            let columns = vec![ColumnDescription::new(name, PgType::Text)];
            let value: ArrayRef = Arc::new(StringArray::from(vec![value]));
            rows(columns, vec![value], "SHOW", false)
        }
        Statement::Discard { object_type } => {
            if matches!(object_type, ast::DiscardObject::ALL) {
                session.check_outside("DISCARD ALL")?;
                let changes = session.settings.reset_all();
                changed(session, changes);
            }
            done(&format!("DISCARD {object_type}"))
        }
        // Prepared statements belong to the connection; PREPARE is refused, so there is none here.
        Statement::Deallocate { name, .. } => {
            done(if fold(name) == "all" { "DEALLOCATE ALL" } else { "DEALLOCATE" })
        }
        Statement::Prepare { .. } | Statement::Execute { .. } => {
            Err(SqlError::unsupported("PREPARE and EXECUTE as statements are not supported")
                .hint("Drivers prepare statements through the protocol."))
        }
        other => {
            let text = other.to_string();
            let words: Vec<&str> = text.split_whitespace().take(2).collect();
            Err(SqlError::unsupported(format!("{} is not supported", words.join(" "))))
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every statement may fail but these")]
fn done(tag: &str) -> Result<Outcome, SqlError> {
    Ok(Outcome::Done { tag: tag.to_owned() })
}

fn changed(session: &mut Session, changes: impl IntoIterator<Item = (String, String)>) {
    session.changes.extend(changes);
    session.epoch += 1;
}

fn run_set(session: &mut Session, set: &ast::Set) -> Result<Outcome, SqlError> {
    match set {
        ast::Set::SingleAssignment { scope, variable, values, .. } => {
            let name = object_name(variable);
            let local = matches!(scope, Some(ast::ContextModifier::Local));
            if local && session.transaction_status() == TransactionStatus::Idle {
                let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
                let message = "SET LOCAL can only be used in transaction blocks";
                session.notice(Notice { severity: "WARNING", ..Notice::new(code, message) });
                return done("SET");
            }
            if name.eq_ignore_ascii_case("meridian.min_read_timestamp") {
                session.see(&setting_value(values)?)?;
                return done("SET");
            }
            if name.eq_ignore_ascii_case("transaction_read_only") {
                let value = setting_value(values)?;
                session.settings.clone().set(&name, &value)?;
                let on = matches!(value.to_lowercase().as_str(), "on" | "true" | "yes" | "1");
                session.set_read_only(on)?;
                return done("SET");
            }
            let is_default = matches!(
                values.as_slice(),
                [ast::Expr::Identifier(ident)] if ident.value.eq_ignore_ascii_case("default")
            );
            let change = if is_default {
                session.settings.reset(&name)?
            } else {
                session.settings.set_for(&name, &setting_value(values)?, local)?
            };
            changed(session, change);
        }
        ast::Set::SetTimeZone { value, .. } => {
            let change =
                session.settings.set("timezone", &setting_value(std::slice::from_ref(value))?)?;
            changed(session, change);
        }
        ast::Set::SetNames { charset_name, .. } => {
            let change = session.settings.set("client_encoding", &charset_name.value)?;
            changed(session, change);
        }
        ast::Set::SetNamesDefault {} => {
            let change = session.settings.reset("client_encoding")?;
            changed(session, change);
        }
        other => {
            return Err(SqlError::unsupported(format!("SET {other} is not supported")));
        }
    }
    done("SET")
}

/// A value as a setting takes it: a list is joined with commas.
fn setting_value(values: &[ast::Expr]) -> Result<String, SqlError> {
    let one = |expr: &ast::Expr| match expr {
        ast::Expr::Value(value) => match value.value.clone() {
            ast::Value::Number(digits, _) => Ok(digits),
            ast::Value::Boolean(value) => Ok(if value { "on" } else { "off" }.to_owned()),
            other => other
                .into_string()
                .ok_or_else(|| SqlError::syntax("a setting's value must be a constant")),
        },
        ast::Expr::Identifier(ident) => Ok(if ident.quote_style.is_some() {
            format!("\"{}\"", ident.value)
        } else {
            ident.value.to_lowercase()
        }),
        ast::Expr::UnaryOp { .. } | ast::Expr::CompoundIdentifier(_) => Ok(expr.to_string()),
        _ => Err(SqlError::syntax("a setting's value must be a constant")),
    };
    let values: Result<Vec<_>, _> = values.iter().map(one).collect();
    Ok(values?.join(", "))
}

fn object_name(name: &ast::ObjectName) -> String {
    let parts: Vec<_> = name
        .0
        .iter()
        .map(|part| match part {
            ast::ObjectNamePart::Identifier(ident) => ident.value.clone(),
            other @ ast::ObjectNamePart::Function(_) => other.to_string(),
        })
        .collect();
    parts.join(".")
}

fn is_all(variable: &[ast::Ident]) -> bool {
    matches!(variable, [ident] if ident.value.eq_ignore_ascii_case("all"))
}

/// `SHOW TIME ZONE` and `SHOW TRANSACTION ISOLATION LEVEL` are settings too.
fn shown_name(variable: &[ast::Ident]) -> String {
    let words: Vec<_> = variable.iter().map(|ident| ident.value.to_lowercase()).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["time", "zone"] => "timezone".to_owned(),
        ["transaction", "isolation", "level"] => "transaction_isolation".to_owned(),
        ["session", "authorization"] => "session_authorization".to_owned(),
        words => words.join("."),
    }
}

fn show_all(session: &Session) -> Result<Outcome, SqlError> {
    let all: Vec<_> = session.settings.all().collect();
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(all.iter().map(|s| s.0)));
    let values: ArrayRef = Arc::new(StringArray::from_iter_values(all.iter().map(|s| s.1)));
    let notes: ArrayRef = Arc::new(StringArray::from_iter_values(all.iter().map(|s| s.2)));
    let columns = ["name", "setting", "description"]
        .map(|name| ColumnDescription::new(name, PgType::Text))
        .to_vec();
    rows(columns, vec![names, values, notes], "SHOW", false)
}

/// A result that is known already.
pub(crate) fn rows(
    columns: Vec<ColumnDescription>,
    arrays: Vec<ArrayRef>,
    tag: &'static str,
    counted: bool,
) -> Result<Outcome, SqlError> {
    let fields: Vec<_> =
        columns.iter().map(|column| column.pg_type.field(&column.name, true)).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .map_err(|e| sql_error(&e.into()))?;
    let batches = futures::stream::iter([Ok(batch)]).boxed();
    Ok(Outcome::Rows { columns: columns.into(), batches, tag, counted })
}
