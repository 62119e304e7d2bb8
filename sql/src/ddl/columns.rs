//! The columns and constraints of CREATE TABLE.

use datafusion::sql::sqlparser::ast;

use super::check_name;
use crate::catalog::ColumnInfo;
use crate::error::{SqlError, SqlState};
use crate::plan::names::fold;
use crate::plan::parse::parse_expression;
use crate::plan::planner::Scope;
use crate::types::PgType;

/// PostgreSQL's limit.
const MAX_COLUMNS: usize = 1_600;
/// PostgreSQL's limit on the columns of an index.
const MAX_KEY_COLUMNS: usize = 32;

/// The columns, and the positions of those of the primary key.
pub(super) fn columns(
    create: &ast::CreateTable,
) -> Result<(Vec<ColumnInfo>, Vec<usize>), SqlError> {
    let table = create.name.0.last().map(ToString::to_string).unwrap_or_default();
    if create.columns.len() > MAX_COLUMNS {
        let message = format!("tables can have at most {MAX_COLUMNS} columns");
        return Err(SqlError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    let mut columns: Vec<ColumnInfo> = Vec::new();
    let mut keys: Vec<Vec<usize>> = Vec::new();
    for (definition, id) in create.columns.iter().zip(1..) {
        let (column, is_key) = column(definition, id)?;
        if columns.iter().any(|other| other.name == column.name) {
            let message = format!("column \"{}\" specified more than once", column.name);
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        if is_key {
            keys.push(vec![columns.len()]);
        }
        columns.push(column);
    }
    for constraint in &create.constraints {
        keys.push(table_constraint(constraint, &columns)?);
    }
    if keys.len() > 1 {
        let message = format!("multiple primary keys for table \"{table}\" are not allowed");
        return Err(SqlError::new(SqlState::INVALID_TABLE_DEFINITION, message));
    }
    let Some(key) = keys.pop() else {
        return Err(SqlError::unsupported("a table without a primary key is not supported").hint(
            "Rows are stored in the order of their primary key: PRIMARY KEY (column, ...).",
        ));
    };
    if key.len() > MAX_KEY_COLUMNS {
        let message = format!("cannot use more than {MAX_KEY_COLUMNS} columns in an index");
        return Err(SqlError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    for &position in &key {
        let column = &mut columns[position];
        column.nullable = false;
        if column.pg_type == PgType::Jsonb {
            let message = format!("column \"{}\" of type jsonb in a primary key", column.name);
            return Err(SqlError::unsupported(format!("{message} is not supported")));
        }
    }
    Ok((columns, key))
}

fn column(definition: &ast::ColumnDef, id: u32) -> Result<(ColumnInfo, bool), SqlError> {
    let name = fold(&definition.name);
    check_name(&name)?;
    let type_name = definition.data_type.to_string().to_lowercase();
    if type_name.ends_with("serial") || type_name.starts_with("serial") {
        return Err(SqlError::unsupported(format!("type {type_name} is not supported"))
            .detail("There are no sequences."));
    }
    let pg_type = PgType::column_from_sql(&definition.data_type)?;
    let mut column = ColumnInfo { id, name, pg_type, nullable: true, default: None };
    let (mut is_key, mut null) = (false, None);
    for option in &definition.options {
        match &option.option {
            ast::ColumnOption::Null => null = Some(true),
            ast::ColumnOption::NotNull => {
                column.nullable = false;
                null = null.or(Some(false));
            }
            ast::ColumnOption::Default(expr) => column.default = Some(expr.to_string()),
            ast::ColumnOption::PrimaryKey(_) => is_key = true,
            other => return Err(unsupported_option(other)),
        }
    }
    if null == Some(true) && (!column.nullable || is_key) {
        let message =
            format!("conflicting NULL/NOT NULL declarations for column \"{}\"", column.name);
        return Err(SqlError::syntax(message));
    }
    Ok((column, is_key))
}

fn unsupported_option(option: &ast::ColumnOption) -> SqlError {
    let feature = match option {
        ast::ColumnOption::Unique(_) => "UNIQUE constraints are".to_owned(),
        ast::ColumnOption::ForeignKey(_) => "FOREIGN KEY constraints are".to_owned(),
        ast::ColumnOption::Check(_) => "CHECK constraints are".to_owned(),
        ast::ColumnOption::Generated { .. } | ast::ColumnOption::Identity(_) => {
            "generated columns are".to_owned()
        }
        ast::ColumnOption::Collation(_) => "COLLATE is".to_owned(),
        other => format!("{other} is"),
    };
    SqlError::unsupported(format!("{feature} not supported"))
}

/// The positions of the primary key's columns.
fn table_constraint(
    constraint: &ast::TableConstraint,
    columns: &[ColumnInfo],
) -> Result<Vec<usize>, SqlError> {
    let key = match constraint {
        ast::TableConstraint::PrimaryKey(key) => key,
        ast::TableConstraint::Unique(_) => {
            return Err(SqlError::unsupported("UNIQUE constraints are not supported"));
        }
        ast::TableConstraint::ForeignKey(_) => {
            return Err(SqlError::unsupported("FOREIGN KEY constraints are not supported"));
        }
        ast::TableConstraint::Check(_) => {
            return Err(SqlError::unsupported("CHECK constraints are not supported"));
        }
        other => return Err(SqlError::unsupported(format!("{other} is not supported"))),
    };
    let mut positions = Vec::new();
    for column in &key.columns {
        let ast::Expr::Identifier(ident) = &column.column.expr else {
            return Err(SqlError::syntax("a primary key consists of columns"));
        };
        let name = fold(ident);
        let Some(position) = columns.iter().position(|c| c.name == name) else {
            let message = format!("column \"{name}\" named in key does not exist");
            return Err(SqlError::new(SqlState::UNDEFINED_COLUMN, message));
        };
        if positions.contains(&position) {
            let message = format!("column \"{name}\" appears twice in primary key constraint");
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        positions.push(position);
    }
    Ok(positions)
}

/// A default must be an expression without columns, and fit its column if it is a constant.
pub(super) fn check_defaults(scope: &Scope, columns: &[ColumnInfo]) -> Result<(), SqlError> {
    let schema = datafusion::common::DFSchema::empty();
    for column in columns {
        let Some(default) = &column.default else {
            continue;
        };
        let expr = parse_expression(default)?;
        let has_column = |error: &SqlError| error.sqlstate == SqlState::UNDEFINED_COLUMN;
        let planned = match scope.plan_expression(expr, &schema, &[]) {
            Err(error) if has_column(&error) => {
                return Err(SqlError::unsupported(
                    "cannot use column reference in DEFAULT expression",
                ));
            }
            planned => planned?,
        };
        if planned.any_column_refs() {
            return Err(SqlError::unsupported("cannot use column reference in DEFAULT expression"));
        }
        crate::dml::check_default(scope, default, column)?;
    }
    Ok(())
}
