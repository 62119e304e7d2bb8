//! Catalogs whose rows don't depend on what tables there are.

use super::super::definition::Definition;
use super::super::types::{self, TypeInfo};
use super::super::world::{self, BTREE, COLLATION, DATABASE, HEAP, OWNER, UTF8, World};
use super::{Cell, Row, catalog_oid};
use crate::meridian_schema::functions::{FUNCTIONS, Kind, Parameter};
use crate::types::PgType;

/// The object ids of the default collation and of `C`.
const DEFAULT_COLLATION: u32 = 100;
const C_COLLATION: u32 = 950;
/// The object id of the pseudo-type `"any"`.
const ANY: u32 = 2276;
/// The tablespace of everything.
const TABLESPACE: u32 = 1663;

pub(super) fn namespaces(world: &World, definition: &Definition) -> Vec<Row> {
    let row = |(oid, name): &(u32, String)| {
        definition.row([
            ("oid", (*oid).into()),
            ("nspname", name.into()),
            ("nspowner", OWNER.into()),
        ])
    };
    world.namespaces().iter().map(row).collect()
}

pub(super) fn roles(world: &World, definition: &Definition) -> Vec<Row> {
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

pub(super) fn users(world: &World, definition: &Definition) -> Vec<Row> {
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

pub(super) fn databases(world: &World, definition: &Definition) -> Vec<Row> {
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

pub(super) fn tablespaces(_: &World, definition: &Definition) -> Vec<Row> {
    vec![definition.row([
        ("oid", TABLESPACE.into()),
        ("spcname", "pg_default".into()),
        ("spcowner", OWNER.into()),
    ])]
}

pub(super) fn access_methods(_: &World, definition: &Definition) -> Vec<Row> {
    let methods = [(HEAP, "heap", 't'), (BTREE, "btree", 'i')];
    let row = |(oid, name, kind): (u32, &'static str, char)| {
        definition.row([("oid", oid.into()), ("amname", name.into()), ("amtype", kind.into())])
    };
    methods.map(row).into()
}

pub(super) fn collations(_: &World, definition: &Definition) -> Vec<Row> {
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

pub(super) fn descriptions(_: &World, definition: &Definition) -> Vec<Row> {
    vec![definition.row([
        ("objoid", world::PUBLIC.into()),
        ("classoid", catalog_oid("pg_namespace").into()),
        ("description", "standard public schema".into()),
    ])]
}

pub(super) fn languages(_: &World, definition: &Definition) -> Vec<Row> {
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
pub(super) fn operator_class_oid(info: &TypeInfo) -> u32 {
    10_000 + info.oid
}

pub(super) fn operator_classes(_: &World, definition: &Definition) -> Vec<Row> {
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

pub(super) fn all_types(_: &World, definition: &Definition) -> Vec<Row> {
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

/// The functions that read and write types, because drivers look up what `pg_type` names, and those
/// of the schema `meridian`.
pub(super) fn functions(world: &World, definition: &Definition) -> Vec<Row> {
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
    let mut rows: Vec<_> = types::functions().into_iter().map(row).collect();
    rows.extend((world::FUNCTIONS..).zip(FUNCTIONS).map(|(oid, function)| {
        let parameters = || function.parameters.iter();
        let of = |p: &Parameter| p.kind.pg_type().map_or(ANY, PgType::oid);
        let variadic = parameters().any(|p| p.kind == Kind::KeyColumns);
        definition.row([
            ("oid", oid.into()),
            ("proname", function.name.into()),
            ("pronamespace", world.namespace_oid("meridian").into()),
            ("proowner", OWNER.into()),
            ("prolang", 12.into()),
            ("procost", 1.into()),
            ("provariadic", if variadic { ANY } else { 0 }.into()),
            ("prokind", 'f'.into()),
            ("proretset", function.returns.is_set().into()),
            ("provolatile", 'v'.into()),
            ("proparallel", 'u'.into()),
            ("pronargs", function.parameters.len().into()),
            ("pronargdefaults", parameters().filter(|p| p.default.is_some()).count().into()),
            ("prorettype", function.returns.pg_type().oid().into()),
            ("proargtypes", parameters().map(of).collect()),
            ("proargnames", parameters().map(|p| p.name).collect()),
            ("prosrc", function.name.into()),
        ])
    }));
    rows
}

pub(super) fn settings(world: &World, definition: &Definition) -> Vec<Row> {
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
