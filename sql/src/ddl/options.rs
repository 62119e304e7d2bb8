//! The options of a table: `WITH (...)`, `SET (...)` and `RESET (...)`.

use std::sync::Arc;

use datafusion::arrow::array::{Array, StringArray};
use datafusion::common::{ScalarValue, TableReference};
use datafusion::sql::sqlparser::ast::{self, SqlOption};
use meridian_txn::PlacementChange;

use super::reference;
use crate::catalog::OnDelete;
use crate::error::{SqlError, SqlState};
use crate::plan::names::fold;
use crate::plan::parse::parse_expression;
use crate::types::{BaseType, PgType, SessionFormat, text};

/// The region that leads.
const LEADER_REGION: &str = "leader_region";
/// How many replicas vote.
const VOTERS: &str = "voters";
/// The regions that the voters may be in.
const REGIONS: &str = "regions";
/// The regions with a replica that follows without voting.
const READ_ONLY: &str = "read_only";
/// `INTERLEAVE IN PARENT`.
pub(crate) const PARENT: &str = "interleave_in_parent";
/// `ON DELETE`, of that.
pub(crate) const ON_DELETE: &str = "interleave_on_delete";

/// All options of ours.
const KNOWN: [&str; 6] = [LEADER_REGION, VOTERS, REGIONS, READ_ONLY, PARENT, ON_DELETE];

/// PostgreSQL's own, for the storage that it has. Tools send them (`pgbench` a fillfactor); they
/// mean nothing here and are accepted.
const POSTGRESQL: [&str; 10] = [
    "fillfactor",
    "log_autovacuum_min_duration",
    "oids",
    "parallel_workers",
    "toast_tuple_target",
    "user_catalog_table",
    "vacuum_index_cleanup",
    "vacuum_max_eager_freeze_failure_rate",
    "vacuum_truncate",
    "log_autoanalyze_min_duration",
];

/// What a statement says of a table's place.
#[derive(Clone, Debug, Default)]
pub(super) struct TableOptions {
    pub(super) placement: PlacementChange,
    /// The options of the placement that were given.
    pub(super) placed: Vec<&'static str>,
    /// The number of voters is to be the cluster's own again.
    pub(super) resets_voters: bool,
    pub(super) parent: Option<TableReference>,
    pub(super) on_delete: Option<OnDelete>,
}

impl TableOptions {
    pub(super) fn read(options: &[SqlOption]) -> Result<Self, SqlError> {
        let mut read = Self::default();
        read.change(options)?;
        Ok(read)
    }

    /// Takes options over: those without a value are reset.
    pub(super) fn change(&mut self, options: &[SqlOption]) -> Result<(), SqlError> {
        for option in options {
            let (key, value) = match option {
                SqlOption::KeyValue { key, value } => (key, Some(value)),
                SqlOption::Ident(key) => (key, None),
                other => return Err(SqlError::syntax(format!("{other} is not an option"))),
            };
            let name = fold(key);
            match KNOWN.into_iter().find(|known| *known == name) {
                Some(name) => self.set(name, value)?,
                None if POSTGRESQL.contains(&name.as_str()) => {}
                None if name.starts_with("autovacuum_") => {}
                None => {
                    let message = format!("unrecognized parameter \"{name}\"");
                    return Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
                        .hint(format!("The options of a table are {}.", KNOWN.join(", "))));
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &'static str, value: Option<&ast::Expr>) -> Result<(), SqlError> {
        let twice = match name {
            PARENT => self.parent.is_some(),
            ON_DELETE => self.on_delete.is_some(),
            name => self.placed.contains(&name),
        };
        if twice {
            let message = format!("parameter \"{name}\" specified more than once");
            return Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        }
        let placement = &mut self.placement;
        match name {
            LEADER_REGION => {
                placement.leader_region = Some(value.map(|v| region(name, v)).transpose()?);
            }
            VOTERS => match value {
                Some(value) => placement.voters = Some(voters(value)?),
                None => self.resets_voters = true,
            },
            REGIONS => placement.regions = Some(regions_or_none(name, value)?),
            READ_ONLY => placement.read_only = Some(regions_or_none(name, value)?),
            PARENT => self.parent = Some(parent(required(name, value)?)?),
            _ => self.on_delete = Some(on_delete(required(name, value)?)?),
        }
        if name != PARENT && name != ON_DELETE {
            self.placed.push(name);
        }
        Ok(())
    }
}

fn invalid(name: &str, value: &ast::Expr, hint: &str) -> SqlError {
    let value = constant(value).unwrap_or_else(|| value.to_string());
    let message = format!("invalid value for option \"{name}\": \"{value}\"");
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message).hint(hint)
}

fn required<'v>(name: &str, value: Option<&'v ast::Expr>) -> Result<&'v ast::Expr, SqlError> {
    value.ok_or_else(|| {
        let message = format!("parameter \"{name}\" can't be reset");
        SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
    })
}

/// A string, a number, or a word that stands for itself.
fn constant(value: &ast::Expr) -> Option<String> {
    match value {
        ast::Expr::Value(value) => match value.value.clone() {
            ast::Value::Number(digits, _) => Some(digits),
            value => value.into_string(),
        },
        ast::Expr::Identifier(ident) => Some(fold(ident)),
        _ => None,
    }
}

fn region(name: &str, value: &ast::Expr) -> Result<String, SqlError> {
    let region = constant(value).filter(|region| !region.is_empty());
    region.ok_or_else(|| invalid(name, value, "The value is a region's name, such as 'eu-west'."))
}

fn voters(value: &ast::Expr) -> Result<u8, SqlError> {
    let voters = constant(value).and_then(|text| text.parse().ok()).filter(|voters| *voters > 0);
    voters.ok_or_else(|| invalid(VOTERS, value, "The value is a number of replicas, such as 3."))
}

fn regions_or_none(name: &str, value: Option<&ast::Expr>) -> Result<Vec<String>, SqlError> {
    value.map_or_else(|| Ok(Vec::new()), |value| regions(name, value))
}

/// `'{eu-west,us-east}'`
fn regions(name: &str, value: &ast::Expr) -> Result<Vec<String>, SqlError> {
    let refuse = || {
        let hint = "The value is an array of different regions, such as '{eu-west,us-east}'.";
        invalid(name, value, hint)
    };
    let text = constant(value).ok_or_else(refuse)?;
    let array = text::parse(PgType::Array(BaseType::Text), &text, &SessionFormat::default());
    let ScalarValue::List(list) = array.map_err(|_| refuse())? else {
        return Err(refuse());
    };
    let elements: Arc<dyn Array> =
        if list.is_empty() { return Err(refuse()) } else { list.value(0) };
    let strings = elements.as_any().downcast_ref::<StringArray>();
    // An empty array's elements may be of any type.
    if elements.is_empty() {
        return Ok(Vec::new());
    }
    let mut regions: Vec<String> = Vec::new();
    for region in strings.ok_or_else(refuse)? {
        let region = region.filter(|region| !region.is_empty()).ok_or_else(refuse)?;
        if regions.iter().any(|other| other == region) {
            return Err(refuse());
        }
        regions.push(region.to_owned());
    }
    Ok(regions)
}

/// A table's name: as such, or as a string that is read like one.
fn parent(value: &ast::Expr) -> Result<TableReference, SqlError> {
    let refuse = || invalid(PARENT, value, "The value is a table's name, such as 'warehouse'.");
    let name = match value {
        ast::Expr::Value(_) => {
            parse_expression(&constant(value).ok_or_else(refuse)?).map_err(|_| refuse())?
        }
        name => name.clone(),
    };
    let idents = match name {
        ast::Expr::Identifier(ident) => vec![ident],
        ast::Expr::CompoundIdentifier(idents) => idents,
        _ => return Err(refuse()),
    };
    reference(&ast::ObjectName::from(idents)).map_err(|_| refuse())
}

fn on_delete(value: &ast::Expr) -> Result<OnDelete, SqlError> {
    let text = constant(value).map(|text| text.to_lowercase());
    match text.as_deref() {
        Some("cascade") => Ok(OnDelete::Cascade),
        Some("no action") => Ok(OnDelete::NoAction),
        _ => Err(invalid(ON_DELETE, value, "The value is 'cascade' or 'no action'.")),
    }
}
