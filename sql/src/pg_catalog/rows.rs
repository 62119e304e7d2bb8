//! The rows of `pg_catalog`'s tables and views. What has no function here is always empty.

use super::cell::Cell;
use super::definition::{self, Definition};
use super::types::{self, TypeInfo};
use super::world::{
    self, BTREE, COLLATION, DATABASE, HEAP, OWNER, OWNER_NAME, Relation, UTF8, World,
};
use crate::catalog::TableInfo;

pub(super) type Row = Vec<Cell>;
/// Makes the rows of one relation.
pub(super) type Rows = fn(&World, &Definition) -> Vec<Row>;

/// The object ids of the default collation and of `C`.
const DEFAULT_COLLATION: u32 = 100;
const C_COLLATION: u32 = 950;
/// The tablespace of everything.
const TABLESPACE: u32 = 1663;

/// What makes the rows of a relation of `pg_catalog`; nothing if it never has any.
pub(super) fn of(name: &str) -> Option<Rows> {
    Some(match name {
        "pg_am" => access_methods,
        "pg_attrdef" => defaults,
        "pg_attribute" => attributes,
        "pg_authid" | "pg_roles" => roles,
        "pg_class" => classes,
        "pg_collation" => collations,
        "pg_constraint" => constraints,
        "pg_database" => databases,
        "pg_depend" => dependencies,
        "pg_description" => descriptions,
        "pg_index" => indexes,
        "pg_indexes" => index_list,
        "pg_language" => languages,
        "pg_namespace" => namespaces,
        "pg_opclass" => operator_classes,
        "pg_proc" => functions,
        "pg_settings" => settings,
        "pg_shadow" | "pg_user" => users,
        "pg_tables" => tables,
        "pg_tablespace" => tablespaces,
        "pg_type" => all_types,
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
    let row = |relation: Relation| {
        let (kind, access, columns) = match relation {
            Relation::Table(table) => ('r', HEAP, table.columns.len()),
            Relation::PrimaryKey(table) => ('i', BTREE, table.primary_key.len()),
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
    let mut rows = Vec::new();
    for table in user_tables(world) {
        for (position, column) in table.columns.iter().enumerate() {
            rows.push(Attribute {
                relation: table.oid(),
                name: &column.name,
                type_oid: column.pg_type.oid(),
                modifier: column.pg_type.typmod(),
                not_null: !column.nullable,
                has_default: column.default.is_some(),
            }
            .row(definition, position));
        }
        for (position, column) in table.key_columns().enumerate() {
            rows.push(Attribute {
                relation: table.primary_key_oid(),
                name: &column.name,
                type_oid: column.pg_type.oid(),
                modifier: column.pg_type.typmod(),
                not_null: false,
                has_default: false,
            }
            .row(definition, position));
        }
    }
    for system in definition::all() {
        for (position, column) in system.columns.iter().enumerate() {
            rows.push(Attribute {
                relation: system.oid,
                name: column.name,
                type_oid: types::oid_of(column.type_name),
                modifier: -1,
                not_null: column.not_null,
                has_default: false,
            }
            .row(definition, position));
        }
    }
    rows
}

impl Attribute<'_> {
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
        let class = |&column: &usize| info(column).map_or(0, operator_class_oid);
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

fn constraints(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |table: &TableInfo| {
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
    user_tables(world).map(row).collect()
}

/// An index belongs to its constraint, and that to its table.
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

fn views(_: &World, definition: &Definition) -> Vec<Row> {
    let row = |system: &Definition| {
        definition.row([
            ("schemaname", system.schema.into()),
            ("viewname", system.name.into()),
            ("viewowner", OWNER_NAME.into()),
        ])
    };
    definition::all().filter(|system| system.kind == 'v').map(row).collect()
}

fn namespaces(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |(oid, name): (u32, String)| {
        definition.row([
            ("oid", oid.into()),
            ("nspname", name.into()),
            ("nspowner", OWNER.into()),
        ])
    };
    world.namespaces().into_iter().map(row).collect()
}

fn roles(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |(oid, name): (u32, String)| {
        definition.row([
            ("oid", oid.into()),
            ("rolname", name.into()),
            ("rolsuper", true.into()),
            ("rolinherit", true.into()),
            ("rolcreaterole", true.into()),
            ("rolcreatedb", true.into()),
            ("rolcanlogin", true.into()),
            ("rolreplication", true.into()),
            ("rolbypassrls", true.into()),
            ("rolconnlimit", (-1).into()),
        ])
    };
    world.roles().into_iter().map(row).collect()
}

fn users(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |(oid, name): (u32, String)| {
        definition.row([
            ("usename", name.into()),
            ("usesysid", oid.into()),
            ("usecreatedb", true.into()),
            ("usesuper", true.into()),
            ("userepl", true.into()),
            ("usebypassrls", true.into()),
        ])
    };
    world.roles().into_iter().map(row).collect()
}

fn databases(world: &World, definition: &Definition) -> Vec<Row> {
    vec![definition.row([
        ("oid", DATABASE.into()),
        ("datname", (&world.session.database).into()),
        ("datdba", OWNER.into()),
        ("encoding", UTF8.into()),
        ("datlocprovider", 'c'.into()),
        ("datallowconn", true.into()),
        ("datconnlimit", (-1).into()),
        ("dattablespace", TABLESPACE.into()),
        ("datcollate", COLLATION.into()),
        ("datctype", COLLATION.into()),
    ])]
}

fn tablespaces(_: &World, definition: &Definition) -> Vec<Row> {
    vec![definition.row([
        ("oid", TABLESPACE.into()),
        ("spcname", "pg_default".into()),
        ("spcowner", OWNER.into()),
    ])]
}

fn access_methods(_: &World, definition: &Definition) -> Vec<Row> {
    let methods = [(HEAP, "heap", 't'), (BTREE, "btree", 'i')];
    let row = |(oid, name, kind): (u32, &'static str, char)| {
        definition.row([("oid", oid.into()), ("amname", name.into()), ("amtype", kind.into())])
    };
    methods.map(row).into()
}

fn collations(_: &World, definition: &Definition) -> Vec<Row> {
    let collations = [(DEFAULT_COLLATION, "default", 'd'), (C_COLLATION, "C", 'c')];
    let row = |(oid, name, provider): (u32, &'static str, char)| {
        let locale = (provider == 'c').then_some("C");
        definition.row([
            ("oid", oid.into()),
            ("collname", name.into()),
            ("collnamespace", world::PG_CATALOG.into()),
            ("collowner", OWNER.into()),
            ("collprovider", provider.into()),
            ("collisdeterministic", true.into()),
            ("collencoding", (-1).into()),
            ("collcollate", locale.into()),
            ("collctype", locale.into()),
        ])
    };
    collations.map(row).into()
}

fn descriptions(_: &World, definition: &Definition) -> Vec<Row> {
    vec![definition.row([
        ("objoid", world::PUBLIC.into()),
        ("classoid", catalog_oid("pg_namespace").into()),
        ("description", "standard public schema".into()),
    ])]
}

fn languages(_: &World, definition: &Definition) -> Vec<Row> {
    let languages = [(12_u32, "internal"), (14, "sql")];
    let row = |(oid, name): (u32, &'static str)| {
        definition.row([
            ("oid", oid.into()),
            ("lanname", name.into()),
            ("lanowner", OWNER.into()),
            ("lanpltrusted", (name == "sql").into()),
        ])
    };
    languages.map(row).into()
}

/// The default operator class of a type's B-trees, numbered after the type.
fn operator_class_oid(info: &TypeInfo) -> u32 {
    10_000 + info.oid
}

fn operator_classes(_: &World, definition: &Definition) -> Vec<Row> {
    let ordered = types::all().filter(|info| info.kind == "b" && info.category != "A");
    let row = |info: &TypeInfo| {
        definition.row([
            ("oid", operator_class_oid(info).into()),
            ("opcmethod", BTREE.into()),
            ("opcname", format!("{}_ops", info.name).into()),
            ("opcnamespace", world::PG_CATALOG.into()),
            ("opcowner", OWNER.into()),
            ("opcintype", info.oid.into()),
            ("opcdefault", true.into()),
        ])
    };
    ordered.map(row).collect()
}

fn all_types(_: &World, definition: &Definition) -> Vec<Row> {
    let row = |info: &TypeInfo| {
        let [input, output, receive, send, modifier_in, modifier_out] =
            info.functions.map(|(_, oid)| Cell::from(oid));
        definition.row([
            ("oid", info.oid.into()),
            ("typname", info.name.into()),
            ("typnamespace", world::PG_CATALOG.into()),
            ("typowner", OWNER.into()),
            ("typlen", info.length.into()),
            ("typbyval", info.by_value.into()),
            ("typtype", info.kind.into()),
            ("typcategory", info.category.into()),
            ("typispreferred", info.preferred.into()),
            ("typisdefined", true.into()),
            ("typdelim", ','.into()),
            ("typelem", info.element.into()),
            ("typarray", info.array.into()),
            ("typinput", input),
            ("typoutput", output),
            ("typreceive", receive),
            ("typsend", send),
            ("typmodin", modifier_in),
            ("typmodout", modifier_out),
            ("typalign", info.align.into()),
            ("typstorage", info.storage.into()),
            ("typtypmod", (-1).into()),
            ("typcollation", info.collation.into()),
        ])
    };
    types::all().map(row).collect()
}

/// Only the functions that read and write types: drivers look up what `pg_type` names.
fn functions(_: &World, definition: &Definition) -> Vec<Row> {
    let row = |(oid, name): (u32, &'static str)| {
        definition.row([
            ("oid", oid.into()),
            ("proname", name.into()),
            ("pronamespace", world::PG_CATALOG.into()),
            ("proowner", OWNER.into()),
            ("prolang", 12.into()),
            ("procost", 1.into()),
            ("prokind", 'f'.into()),
            ("proisstrict", true.into()),
            ("provolatile", 'i'.into()),
            ("proparallel", 's'.into()),
            ("prosrc", name.into()),
        ])
    };
    types::functions().into_iter().map(row).collect()
}

fn settings(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |(name, value): (&String, &String)| {
        definition.row([
            ("name", name.into()),
            ("setting", value.into()),
            ("category", "Meridian".into()),
            ("short_desc", "".into()),
            ("context", "user".into()),
            ("vartype", "string".into()),
            ("source", "default".into()),
            ("boot_val", value.into()),
            ("reset_val", value.into()),
            ("pending_restart", false.into()),
        ])
    };
    world.session.settings.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pg_catalog::sample;

    fn column(name: &str, column: &str) -> Vec<Cell> {
        let definition = &definition::relations("pg_catalog").unwrap()[name];
        let position = definition.columns.iter().position(|c| c.name == column).unwrap();
        let rows = of(name).unwrap()(&sample::world(), definition);
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
            for row in rows(&sample::world(), definition) {
                assert_eq!(row.len(), definition.columns.len());
                for (cell, column) in row.iter().zip(&definition.columns) {
                    let name = column.name;
                    assert!(!(column.not_null && *cell == Cell::Null), "{}.{name}", definition.name);
                }
            }
        }
    }
}
