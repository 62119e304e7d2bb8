//! The rows of `information_schema`'s views.

use super::cell::Cell;
use super::definition::Definition;
use super::rows::{Row, Rows};
use super::types;
use super::world::{OWNER_NAME, Relation, World};
use crate::catalog::{OnDelete, TableInfo};
use crate::types::PgType;

/// What PostgreSQL calls the greatest length of a string without a limit, in bytes.
const MAX_OCTETS: i32 = 1 << 30;
/// The most bytes that UTF-8 needs for a character.
const OCTETS_PER_CHARACTER: i32 = 4;

/// What makes the rows of a view; nothing if it never has any.
pub(super) fn of(name: &str) -> Option<Rows> {
    Some(match name {
        "columns" => columns,
        "constraint_column_usage" => constraint_columns,
        "key_column_usage" => key_columns,
        "referential_constraints" => references,
        "schemata" => schemata,
        "table_constraints" => constraints,
        "tables" => tables,
        _ => return None,
    })
}

fn yes_or_no(yes: bool) -> Cell {
    Cell::from(if yes { "YES" } else { "NO" })
}

fn database(world: &World) -> Cell {
    Cell::from(&world.session.database)
}

fn user_tables(world: &World) -> impl Iterator<Item = &TableInfo> {
    world.snapshot.tables.iter().map(AsRef::as_ref)
}

fn schemata(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |(_, name): &(u32, String)| {
        definition.row([
            ("catalog_name", database(world)),
            ("schema_name", name.into()),
            ("schema_owner", OWNER_NAME.into()),
        ])
    };
    world.namespaces().iter().map(row).collect()
}

fn tables(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |relation: Relation| {
        let (kind, writable) = match relation {
            Relation::Table(table) => ("BASE TABLE", !table.is_system()),
            Relation::System(system) if system.kind == 'r' => ("BASE TABLE", false),
            Relation::System(_) | Relation::View(..) => ("VIEW", false),
            Relation::PrimaryKey(_) => return None,
        };
        Some(definition.row([
            ("table_catalog", database(world)),
            ("table_schema", relation.schema().to_owned().into()),
            ("table_name", relation.name().into()),
            ("table_type", kind.into()),
            ("is_insertable_into", yes_or_no(writable)),
            ("is_typed", "NO".into()),
        ]))
    };
    world.relations().filter_map(row).collect()
}

fn columns(world: &World, definition: &Definition) -> Vec<Row> {
    let mut rows = Vec::new();
    for relation in world.relations() {
        match relation {
            Relation::Table(table) => {
                for (position, column) in table.columns.iter().enumerate() {
                    let mut row = column_row(
                        world,
                        definition,
                        relation,
                        position,
                        &column.name,
                        column.pg_type,
                    );
                    let more = [
                        ("column_default", column.default.clone().into()),
                        ("is_nullable", yes_or_no(column.nullable)),
                        ("is_updatable", yes_or_no(!table.is_system())),
                    ];
                    definition.set(&mut row, more);
                    rows.push(row);
                }
            }
            Relation::View(view, _) => {
                for (position, (name, pg_type)) in view.columns.iter().enumerate() {
                    rows.push(column_row(world, definition, relation, position, name, *pg_type));
                }
            }
            Relation::System(_) | Relation::PrimaryKey(_) => {}
        }
    }
    rows
}

/// A column that may be NULL and can't be changed.
fn column_row(
    world: &World,
    definition: &Definition,
    relation: Relation,
    position: usize,
    name: &str,
    pg_type: PgType,
) -> Row {
    let facts = Facts::of(pg_type);
    definition.row([
        ("table_catalog", database(world)),
        ("table_schema", relation.schema().to_owned().into()),
        ("table_name", relation.name().into()),
        ("column_name", name.to_owned().into()),
        ("ordinal_position", (position + 1).into()),
        ("is_nullable", "YES".into()),
        ("data_type", types::format_type(pg_type.oid(), None).into()),
        ("character_maximum_length", facts.characters.into()),
        ("character_octet_length", facts.octets.into()),
        ("numeric_precision", facts.precision.into()),
        ("numeric_precision_radix", facts.radix.into()),
        ("numeric_scale", facts.scale.into()),
        ("datetime_precision", facts.time_digits.into()),
        ("udt_catalog", database(world)),
        ("udt_schema", "pg_catalog".into()),
        ("udt_name", pg_type.typname().into()),
        ("dtd_identifier", (position + 1).to_string().into()),
        ("is_self_referencing", "NO".into()),
        ("is_identity", "NO".into()),
        ("identity_cycle", "NO".into()),
        ("is_generated", "NEVER".into()),
        ("is_updatable", "NO".into()),
    ])
}

/// What the SQL standard wants to know of a type.
#[derive(Debug, Default, PartialEq)]
struct Facts {
    characters: Option<i32>,
    octets: Option<i32>,
    precision: Option<i32>,
    radix: Option<i32>,
    scale: Option<i32>,
    time_digits: Option<i32>,
}

impl Facts {
    fn of(pg_type: PgType) -> Self {
        let binary =
            |bits, scale| Self { precision: Some(bits), radix: Some(2), scale, ..Self::default() };
        match pg_type {
            PgType::Int2 => binary(16, Some(0)),
            PgType::Int4 => binary(32, Some(0)),
            PgType::Int8 => binary(64, Some(0)),
            PgType::Float4 => binary(24, None),
            PgType::Float8 => binary(53, None),
            PgType::Numeric { precision, scale } => Self {
                precision: Some(precision.into()),
                radix: Some(10),
                scale: Some(scale.into()),
                ..Self::default()
            },
            PgType::Varchar(Some(_)) | PgType::Char(Some(_)) => {
                let characters = types::length_modifier(pg_type.typmod());
                let octets = characters.map(|length| length.saturating_mul(OCTETS_PER_CHARACTER));
                Self { characters, octets, ..Self::default() }
            }
            PgType::Text | PgType::Varchar(None) => {
                Self { octets: Some(MAX_OCTETS), ..Self::default() }
            }
            PgType::Date => Self { time_digits: Some(0), ..Self::default() },
            PgType::Time | PgType::Timestamp | PgType::Timestamptz | PgType::Interval => {
                Self { time_digits: Some(6), ..Self::default() }
            }
            _ => Self::default(),
        }
    }
}

fn constraints(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |table: &TableInfo, name: String, kind: &'static str| {
        definition.row([
            ("constraint_catalog", database(world)),
            ("constraint_schema", (&table.schema).into()),
            ("constraint_name", name.into()),
            ("table_catalog", database(world)),
            ("table_schema", (&table.schema).into()),
            ("table_name", (&table.name).into()),
            ("constraint_type", kind.into()),
            ("is_deferrable", "NO".into()),
            ("initially_deferred", "NO".into()),
            ("enforced", "YES".into()),
        ])
    };
    let primary_key = |table: &TableInfo| row(table, table.primary_key_name(), "PRIMARY KEY");
    let foreign_key = |table: &TableInfo| row(table, table.interleave_name(), "FOREIGN KEY");
    let foreign_keys = world.interleaved().map(|(table, _)| foreign_key(table));
    user_tables(world).map(primary_key).chain(foreign_keys).collect()
}

/// What tables are interleaved in, as foreign keys.
fn references(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |(table, parent): (&TableInfo, &TableInfo)| {
        let on_delete = match table.interleaved.map(|interleaved| interleaved.on_delete) {
            Some(OnDelete::Cascade) => "CASCADE",
            _ => "NO ACTION",
        };
        definition.row([
            ("constraint_catalog", database(world)),
            ("constraint_schema", (&table.schema).into()),
            ("constraint_name", table.interleave_name().into()),
            ("unique_constraint_catalog", database(world)),
            ("unique_constraint_schema", (&parent.schema).into()),
            ("unique_constraint_name", parent.primary_key_name().into()),
            ("match_option", "NONE".into()),
            ("update_rule", "NO ACTION".into()),
            ("delete_rule", on_delete.into()),
        ])
    };
    world.interleaved().map(row).collect()
}

fn key_columns(world: &World, definition: &Definition) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |table: &TableInfo, name: String, columns: usize, foreign: bool| {
        for (position, column) in table.key_columns().take(columns).enumerate() {
            rows.push(definition.row([
                ("constraint_catalog", database(world)),
                ("constraint_schema", (&table.schema).into()),
                ("constraint_name", (&name).into()),
                ("table_catalog", database(world)),
                ("table_schema", (&table.schema).into()),
                ("table_name", (&table.name).into()),
                ("column_name", (&column.name).into()),
                ("ordinal_position", (position + 1).into()),
                ("position_in_unique_constraint", foreign.then_some(position + 1).into()),
            ]));
        }
    };
    for table in user_tables(world) {
        add(table, table.primary_key_name(), table.primary_key.len(), false);
    }
    for (table, parent) in world.interleaved() {
        add(table, table.interleave_name(), parent.primary_key.len(), true);
    }
    rows
}

fn constraint_columns(world: &World, definition: &Definition) -> Vec<Row> {
    let mut rows = Vec::new();
    // The columns of a table that a constraint of `owner`'s is about.
    let mut add = |table: &TableInfo, owner: &TableInfo, name: String| {
        for column in table.key_columns() {
            rows.push(definition.row([
                ("table_catalog", database(world)),
                ("table_schema", (&table.schema).into()),
                ("table_name", (&table.name).into()),
                ("column_name", (&column.name).into()),
                ("constraint_catalog", database(world)),
                ("constraint_schema", (&owner.schema).into()),
                ("constraint_name", (&name).into()),
            ]));
        }
    };
    for table in user_tables(world) {
        add(table, table, table.primary_key_name());
    }
    // A foreign key is about the columns that it refers to.
    for (table, parent) in world.interleaved() {
        add(parent, table, table.interleave_name());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    // What PostgreSQL 15 answers for columns of these types.
    #[test]
    fn types_have_the_standards_facts() {
        let numeric = Facts::of(PgType::Numeric { precision: 12, scale: 2 });
        assert_eq!(
            (numeric.precision, numeric.radix, numeric.scale),
            (Some(12), Some(10), Some(2))
        );
        let varchar = Facts::of(PgType::Varchar(Some(8)));
        assert_eq!((varchar.characters, varchar.octets), (Some(8), Some(32)));
        assert_eq!(Facts::of(PgType::Int8).precision, Some(64));
        assert_eq!(Facts::of(PgType::Timestamptz).time_digits, Some(6));
        assert_eq!(Facts::of(PgType::Uuid), Facts::default());
    }
}
