//! The rows of `pg_catalog`'s tables and views. What has no function here is always empty.

mod fixed;

use std::collections::BTreeSet;

use super::cell::Cell;
use super::definition::{self, Definition};
use super::types::{self, TypeInfo};
use super::world::{BTREE, HEAP, OWNER, OWNER_NAME, Relation, World};
use crate::catalog::{ColumnInfo, OnDelete, TableInfo};
use crate::types::PgType;

pub(super) type Row = Vec<Cell>;
/// Makes the rows of one relation.
pub(super) type Rows = fn(&World, &Definition) -> Vec<Row>;

/// What makes the rows of a relation of `pg_catalog`; nothing if it never has any.
pub(super) fn of(name: &str) -> Option<Rows> {
    Some(match name {
        "pg_am" => fixed::access_methods,
        "pg_attrdef" => defaults,
        "pg_attribute" => attributes,
        "pg_authid" | "pg_roles" => fixed::roles,
        "pg_class" => classes,
        "pg_collation" => fixed::collations,
        "pg_constraint" => constraints,
        "pg_database" => fixed::databases,
        "pg_depend" => dependencies,
        "pg_description" => fixed::descriptions,
        "pg_index" => indexes,
        "pg_indexes" => index_list,
        "pg_language" => fixed::languages,
        "pg_namespace" => fixed::namespaces,
        "pg_opclass" => fixed::operator_classes,
        "pg_proc" => fixed::functions,
        "pg_settings" => fixed::settings,
        "pg_shadow" | "pg_user" => fixed::users,
        "pg_tables" => tables,
        "pg_tablespace" => fixed::tablespaces,
        "pg_type" => fixed::all_types,
        "pg_views" => views,
        _ => return None,
    })
}

/// The object id of a relation of `pg_catalog`.
fn catalog_oid(name: &str) -> u32 {
    let relations = definition::relations("pg_catalog");
    relations.and_then(|relations| relations.get(name)).map_or(0, |found| found.oid)
}

fn user_tables(world: &World) -> impl Iterator<Item = &TableInfo> {
    world.snapshot.tables.iter().map(AsRef::as_ref)
}

/// The number of a column as the catalogs count: from 1.
fn attribute_number(position: usize) -> Cell {
    Cell::from(position + 1)
}

fn classes(world: &World, definition: &Definition) -> Vec<Row> {
    // PostgreSQL keeps foreign keys with triggers, on both sides; psql looks for them only there.
    let with_triggers: BTreeSet<u64> =
        world.interleaved().flat_map(|(table, parent)| [table.id, parent.id]).collect();
    let row = |relation: Relation| {
        let triggers = match relation {
            Relation::Table(table) => with_triggers.contains(&table.id),
            _ => false,
        };
        let (kind, access, columns) = match relation {
            Relation::Table(table) => ('r', HEAP, table.columns.len()),
            Relation::PrimaryKey(table) => ('i', BTREE, table.primary_key.len()),
            Relation::View(view, _) => ('v', 0, view.columns.len()),
            Relation::System(system) if system.kind == 'r' => ('r', HEAP, system.columns.len()),
            Relation::System(system) => (system.kind, 0, system.columns.len()),
        };
        let has_file = if kind == 'v' { 0 } else { relation.oid() };
        definition.row([
            ("oid", relation.oid().into()),
            ("relname", relation.name().into()),
            ("relnamespace", world.namespace_oid(relation.schema()).into()),
            ("relowner", OWNER.into()),
            ("relam", access.into()),
            ("relfilenode", has_file.into()),
            ("reltuples", (-1).into()),
            ("relhasindex", matches!(relation, Relation::Table(_)).into()),
            ("relpersistence", 'p'.into()),
            ("relkind", kind.into()),
            ("relnatts", columns.into()),
            ("relhasrules", (kind == 'v').into()),
            ("relhastriggers", triggers.into()),
            ("relispopulated", true.into()),
            ("relreplident", if kind == 'r' { 'd' } else { 'n' }.into()),
        ])
    };
    world.relations().map(row).collect()
}

/// A column of a relation, of whatever kind, as `pg_attribute` shows it.
struct Attribute<'a> {
    relation: u32,
    name: &'a str,
    type_oid: u32,
    modifier: i32,
    not_null: bool,
    has_default: bool,
}

fn attributes(world: &World, definition: &Definition) -> Vec<Row> {
    let attributes = world.relations().flat_map(Attribute::all);
    attributes.map(|(position, attribute)| attribute.row(definition, position)).collect()
}

impl<'a> Attribute<'a> {
    /// The columns of a relation, with their positions.
    fn all(relation: Relation<'a>) -> Vec<(usize, Self)> {
        let oid = relation.oid();
        let typed = |name: &'a str, pg_type: PgType| Self {
            relation: oid,
            name,
            type_oid: pg_type.oid(),
            modifier: pg_type.typmod(),
            not_null: false,
            has_default: false,
        };
        let attributes: Vec<Self> = match relation {
            Relation::Table(table) => {
                let of_column = |column: &'a ColumnInfo| Self {
                    not_null: !column.nullable,
                    has_default: column.default.is_some(),
                    ..typed(&column.name, column.pg_type)
                };
                table.columns.iter().map(of_column).collect()
            }
            Relation::PrimaryKey(table) => {
                table.key_columns().map(|column| typed(&column.name, column.pg_type)).collect()
            }
            Relation::View(view, _) => {
                view.columns.iter().map(|(name, pg_type)| typed(name, *pg_type)).collect()
            }
            Relation::System(system) => {
                let of_column = |column: &'static definition::Column| Self {
                    relation: oid,
                    name: column.name,
                    type_oid: types::oid_of(column.type_name),
                    modifier: -1,
                    not_null: column.not_null,
                    has_default: false,
                };
                system.columns.iter().map(of_column).collect()
            }
        };
        attributes.into_iter().enumerate().collect()
    }

    fn row(&self, definition: &Definition, position: usize) -> Row {
        let info = types::by_oid(self.type_oid);
        let facts = |of: fn(&TypeInfo) -> Cell| info.map_or(Cell::Null, of);
        definition.row([
            ("attrelid", self.relation.into()),
            ("attname", self.name.to_owned().into()),
            ("atttypid", self.type_oid.into()),
            ("attstattarget", (-1).into()),
            ("attlen", facts(|info| info.length.into())),
            ("attnum", attribute_number(position)),
            ("attcacheoff", (-1).into()),
            ("atttypmod", self.modifier.into()),
            ("attbyval", facts(|info| info.by_value.into())),
            ("attalign", facts(|info| info.align.into())),
            ("attstorage", facts(|info| info.storage.into())),
            ("attnotnull", self.not_null.into()),
            ("atthasdef", self.has_default.into()),
            ("attislocal", true.into()),
            ("attcollation", facts(|info| info.collation.into())),
        ])
    }
}

/// The object ids of defaults follow from the table's and the column's, above those of relations.
fn default_oid(table: &TableInfo, position: usize) -> u32 {
    let position = u32::try_from(position).unwrap_or(u32::MAX);
    0x8000_0000_u32.wrapping_add(table.oid().wrapping_mul(1024)).wrapping_add(position)
}

fn defaults(world: &World, definition: &Definition) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in user_tables(world) {
        for (position, column) in table.columns.iter().enumerate() {
            if let Some(default) = &column.default {
                rows.push(definition.row([
                    ("oid", default_oid(table, position).into()),
                    ("adrelid", table.oid().into()),
                    ("adnum", attribute_number(position)),
                    ("adbin", default.into()),
                ]));
            }
        }
    }
    rows
}

fn key_numbers(table: &TableInfo) -> Cell {
    table.primary_key.iter().map(|&position| position + 1).collect()
}

fn indexes(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |table: &TableInfo| {
        let count = table.primary_key.len();
        let info = |column: usize| types::by_oid(table.columns[column].pg_type.oid());
        let collation = |&column: &usize| info(column).map_or(0, |info| info.collation);
        let class = |&column: &usize| info(column).map_or(0, fixed::operator_class_oid);
        definition.row([
            ("indexrelid", table.primary_key_oid().into()),
            ("indrelid", table.oid().into()),
            ("indnatts", count.into()),
            ("indnkeyatts", count.into()),
            ("indisunique", true.into()),
            ("indisprimary", true.into()),
            ("indimmediate", true.into()),
            ("indisvalid", true.into()),
            ("indisready", true.into()),
            ("indislive", true.into()),
            ("indkey", key_numbers(table)),
            ("indcollation", table.primary_key.iter().map(collation).collect()),
            ("indclass", table.primary_key.iter().map(class).collect()),
            ("indoption", table.primary_key.iter().map(|_| 0).collect()),
        ])
    };
    user_tables(world).map(row).collect()
}

fn index_list(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |table: &TableInfo| {
        definition.row([
            ("schemaname", (&table.schema).into()),
            ("tablename", (&table.name).into()),
            ("indexname", table.primary_key_name().into()),
            ("indexdef", world.index_definition(table, 0, false).into()),
        ])
    };
    user_tables(world).map(row).collect()
}

/// Primary keys, and what tables are interleaved in, as foreign keys.
fn constraints(world: &World, definition: &Definition) -> Vec<Row> {
    let primary_key = |table: &TableInfo| {
        definition.row([
            ("oid", table.primary_key_oid().into()),
            ("conname", table.primary_key_name().into()),
            ("connamespace", world.namespace_oid(&table.schema).into()),
            ("contype", 'p'.into()),
            ("convalidated", true.into()),
            ("conrelid", table.oid().into()),
            ("conindid", table.primary_key_oid().into()),
            ("confupdtype", ' '.into()),
            ("confdeltype", ' '.into()),
            ("confmatchtype", ' '.into()),
            ("conislocal", true.into()),
            ("connoinherit", true.into()),
            ("conkey", key_numbers(table)),
        ])
    };
    let foreign_key = |(table, parent): (&TableInfo, &TableInfo)| {
        let on_delete = match table.interleaved.map(|interleaved| interleaved.on_delete) {
            Some(OnDelete::Cascade) => 'c',
            _ => 'a',
        };
        let own = table.primary_key.iter().take(parent.primary_key.len());
        definition.row([
            ("oid", table.interleave_oid().into()),
            ("conname", table.interleave_name().into()),
            ("connamespace", world.namespace_oid(&table.schema).into()),
            ("contype", 'f'.into()),
            ("convalidated", true.into()),
            ("conrelid", table.oid().into()),
            ("conindid", parent.primary_key_oid().into()),
            ("confrelid", parent.oid().into()),
            ("confupdtype", 'a'.into()),
            ("confdeltype", on_delete.into()),
            ("confmatchtype", 's'.into()),
            ("conislocal", true.into()),
            ("connoinherit", true.into()),
            ("conkey", own.map(|&position| position + 1).collect()),
            ("confkey", key_numbers(parent)),
        ])
    };
    let primary_keys = user_tables(world).map(primary_key);
    primary_keys.chain(world.interleaved().map(foreign_key)).collect()
}

/// An index belongs to its constraint, and that to its table; a foreign key needs the other table.
fn dependencies(world: &World, definition: &Definition) -> Vec<Row> {
    let (class, constraint) = (catalog_oid("pg_class"), catalog_oid("pg_constraint"));
    let mut rows = Vec::new();
    for table in user_tables(world) {
        rows.push(definition.row([
            ("classid", class.into()),
            ("objid", table.primary_key_oid().into()),
            ("refclassid", constraint.into()),
            ("refobjid", table.primary_key_oid().into()),
            ("deptype", 'i'.into()),
        ]));
        for column in &table.primary_key {
            rows.push(definition.row([
                ("classid", constraint.into()),
                ("objid", table.primary_key_oid().into()),
                ("refclassid", class.into()),
                ("refobjid", table.oid().into()),
                ("refobjsubid", attribute_number(*column)),
                ("deptype", 'a'.into()),
            ]));
        }
    }
    for (table, parent) in world.interleaved() {
        for (of, how) in [(table, 'a'), (parent, 'n')] {
            for column in of.primary_key.iter().take(parent.primary_key.len()) {
                rows.push(definition.row([
                    ("classid", constraint.into()),
                    ("objid", table.interleave_oid().into()),
                    ("refclassid", class.into()),
                    ("refobjid", of.oid().into()),
                    ("refobjsubid", attribute_number(*column)),
                    ("deptype", how.into()),
                ]));
            }
        }
    }
    rows
}

fn tables(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |relation: Relation| {
        let has_indexes = match relation {
            Relation::Table(_) => true,
            Relation::System(system) if system.kind == 'r' => false,
            _ => return None,
        };
        Some(definition.row([
            ("schemaname", relation.schema().to_owned().into()),
            ("tablename", relation.name().into()),
            ("tableowner", OWNER_NAME.into()),
            ("hasindexes", has_indexes.into()),
            ("hasrules", false.into()),
            ("hastriggers", false.into()),
            ("rowsecurity", false.into()),
        ]))
    };
    world.relations().filter_map(row).collect()
}

fn views(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |relation: Relation| {
        let is_view = match relation {
            Relation::View(..) => true,
            Relation::System(system) => system.kind == 'v',
            Relation::Table(_) | Relation::PrimaryKey(_) => false,
        };
        is_view.then(|| {
            definition.row([
                ("schemaname", relation.schema().to_owned().into()),
                ("viewname", relation.name().into()),
                ("viewowner", OWNER_NAME.into()),
            ])
        })
    };
    world.relations().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pg_catalog::sample;

    fn column(name: &str, column: &str) -> Vec<Cell> {
        let definition = &definition::relations("pg_catalog").unwrap()[name];
        let position = definition.columns.iter().position(|c| c.name == column).unwrap();
        let rows = of(name).unwrap()(&sample::interleaved(), definition);
        rows.into_iter().map(|mut row| row.swap_remove(position)).collect()
    }

    #[test]
    fn object_ids_are_unique_in_each_catalog_that_has_them() {
        for definition in definition::relations("pg_catalog").unwrap().values() {
            if of(definition.name).is_some() && definition.columns[0].name == "oid" {
                let oids = column(definition.name, "oid");
                let distinct: BTreeSet<String> = oids.iter().map(|o| format!("{o:?}")).collect();
                assert_eq!(distinct.len(), oids.len(), "{}", definition.name);
            }
        }
    }

    #[test]
    fn columns_that_name_an_object_name_one_that_is_there() {
        for (from, by, to, key) in [
            ("pg_class", "relnamespace", "pg_namespace", "oid"),
            ("pg_attribute", "attrelid", "pg_class", "oid"),
            ("pg_attribute", "atttypid", "pg_type", "oid"),
            ("pg_attrdef", "adrelid", "pg_class", "oid"),
            ("pg_index", "indexrelid", "pg_class", "oid"),
            ("pg_index", "indrelid", "pg_class", "oid"),
            ("pg_constraint", "conrelid", "pg_class", "oid"),
            ("pg_constraint", "conindid", "pg_index", "indexrelid"),
            ("pg_depend", "objid", "pg_constraint", "oid"),
            ("pg_database", "dattablespace", "pg_tablespace", "oid"),
            ("pg_database", "datdba", "pg_roles", "oid"),
            ("pg_type", "typoutput", "pg_proc", "oid"),
        ] {
            let known = column(to, key);
            let unknown = column(from, by).into_iter().find(|oid| !known.contains(oid));
            assert_eq!(unknown, None, "{from}.{by} -> {to}.{key}");
        }
    }

    #[test]
    fn columns_that_may_not_be_null_are_not() {
        for definition in definition::all() {
            let Some(rows) = of(definition.name).filter(|_| definition.schema == "pg_catalog")
            else {
                continue;
            };
            for row in rows(&sample::interleaved(), definition) {
                assert_eq!(row.len(), definition.columns.len());
                for (cell, column) in row.iter().zip(&definition.columns) {
                    let name = column.name;
                    assert!(
                        !(column.not_null && *cell == Cell::Null),
                        "{}.{name}",
                        definition.name
                    );
                }
            }
        }
    }
}
