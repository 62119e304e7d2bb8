//! The system tables, whose descriptions are code: the catalog is read through them.

use std::sync::Arc;

use super::model::{ColumnInfo, TableInfo};
use crate::types::PgType;

/// The schema of the system's own tables.
pub(crate) const SCHEMA: &str = "meridian";

/// Ids of user tables begin here; those below are in the system tablet.
pub(crate) const FIRST_USER_TABLE: u64 = 100;

/// `(schema, name)` of each table; a row here is what makes a name taken.
pub(crate) const NAMES: u64 = 20;
/// One row per table.
pub(crate) const TABLES: u64 = 21;
/// One row per column.
pub(crate) const COLUMNS: u64 = 22;
/// The next free ids.
pub(crate) const COUNTERS: u64 = 23;

/// All system tables.
pub(crate) fn tables() -> Vec<Arc<TableInfo>> {
    vec![names(), system_tables(), columns(), counters()]
}

fn names() -> Arc<TableInfo> {
    table(
        NAMES,
        "catalog_names",
        &[
            ("schema_name", PgType::Text, false),
            ("name", PgType::Text, false),
            ("table_id", PgType::Int8, false),
        ],
        2,
    )
}

fn system_tables() -> Arc<TableInfo> {
    table(
        TABLES,
        "catalog_tables",
        &[
            ("table_id", PgType::Int8, false),
            ("schema_name", PgType::Text, false),
            ("name", PgType::Text, false),
            ("version", PgType::Int8, false),
            ("root_id", PgType::Int8, false),
            ("parent_id", PgType::Int8, true),
            ("on_delete", PgType::Text, true),
        ],
        1,
    )
}

fn columns() -> Arc<TableInfo> {
    table(
        COLUMNS,
        "catalog_columns",
        &[
            ("table_id", PgType::Int8, false),
            ("ordinal", PgType::Int4, false),
            ("column_id", PgType::Int4, false),
            ("name", PgType::Text, false),
            ("type", PgType::Text, false),
            ("nullable", PgType::Bool, false),
            ("default_expression", PgType::Text, true),
            ("key_position", PgType::Int4, true),
        ],
        2,
    )
}

fn counters() -> Arc<TableInfo> {
    table(
        COUNTERS,
        "catalog_counters",
        &[("name", PgType::Text, false), ("next", PgType::Int8, false)],
        1,
    )
}

fn table(id: u64, name: &str, columns: &[(&str, PgType, bool)], key: usize) -> Arc<TableInfo> {
    let columns = columns
        .iter()
        .zip(1..)
        .map(|(&(name, pg_type, nullable), id)| ColumnInfo {
            id,
            name: name.to_owned(),
            pg_type,
            nullable,
            default: None,
        })
        .collect();
    Arc::new(TableInfo {
        id,
        schema: SCHEMA.to_owned(),
        name: name.to_owned(),
        version: 1,
        root: id,
        interleaved: None,
        columns,
        primary_key: (0..key).collect(),
    })
}
