//! The functions themselves.

use datafusion::logical_expr::Volatility;

use super::super::cell::Cell;
use super::super::types;
use super::super::world::{FUNCTIONS as FIRST_FUNCTION, PUBLIC, Relation, UTF8, World};
use super::names::{
    regclass_in, regclass_out, regnamespace_in, regnamespace_out, regproc_in, regproc_out,
    regrole_in, regtype_in, regtype_out,
};
use super::text::{
    array_lower, array_subscripts, array_to_string, array_upper, format_text, json_build_object,
    like_escape, quote_ident, quote_literal, quote_nullable, size_pretty, text_of,
};
use super::{Function as Known, Outcome};
use crate::error::{SqlError, SqlState};
use crate::meridian_schema::functions::{FUNCTIONS, Function};
use crate::types::{BaseType, PgType};

/// As many arguments as anybody gives to a function that takes any number.
const MANY: usize = 40;

/// Settings that PostgreSQL's clients read and that have nothing to set here.
const PRESETS: [(&str, &str); 5] = [
    ("block_size", "8192"),
    ("default_table_access_method", "heap"),
    ("jit", "off"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
];

/// Every function of the library.
pub(super) fn all() -> Vec<Known> {
    let mut functions = vec![
        strict("array_lower", 2..=2, PgType::Int4, array_lower),
        strict("array_upper", 2..=2, PgType::Int4, array_upper),
        strict("array_subscripts", 3..=3, PgType::Array(BaseType::Int4), array_subscripts),
        strict("array_to_string", 2..=3, PgType::Text, array_to_string),
        called("current_catalog", 0..=0, PgType::Name, current_database),
        called("current_database", 0..=0, PgType::Name, current_database),
        called("current_role", 0..=0, PgType::Name, current_user),
        called("current_schema", 0..=0, PgType::Name, current_schema),
        strict("current_schemas", 1..=1, PgType::Array(BaseType::Name), current_schemas),
        strict("current_setting", 1..=2, PgType::Text, current_setting),
        called("current_user", 0..=0, PgType::Name, current_user),
        called("format", 1..=MANY, PgType::Text, format_text),
        called("format_type", 2..=2, PgType::Text, format_type),
        called("json_build_object", 0..=MANY, PgType::Jsonb, json_build_object),
        called("getdatabaseencoding", 0..=0, PgType::Name, |_, _| Ok("UTF8".into())),
        strict("like_escape", 2..=2, PgType::Text, like_escape),
        called("pg_backend_pid", 0..=0, PgType::Int4, |w, _| Ok(w.session.backend.pid.into())),
        changing("pg_cancel_backend", 1..=1, PgType::Bool, cancel_backend),
        strict("pg_char_to_encoding", 1..=1, PgType::Int4, char_to_encoding),
        called("pg_client_encoding", 0..=0, PgType::Name, |_, _| Ok("UTF8".into())),
        strict("pg_encoding_to_char", 1..=1, PgType::Name, encoding_to_char),
        strict("pg_get_constraintdef", 1..=2, PgType::Text, constraint_definition),
        strict("pg_get_expr", 2..=3, PgType::Text, |_, args| Ok(args[0].clone())),
        strict("pg_function_is_visible", 1..=1, PgType::Bool, |w, args| {
            Ok((function_of(args).is_none() || w.is_visible("meridian")).into())
        }),
        strict("pg_get_function_arguments", 1..=1, PgType::Text, |_, args| {
            Ok(function_of(args).map(Function::arguments).into())
        }),
        strict("pg_get_function_identity_arguments", 1..=1, PgType::Text, |_, args| {
            Ok(function_of(args).map(Function::arguments).into())
        }),
        strict("pg_get_function_result", 1..=1, PgType::Text, |_, args| {
            Ok(function_of(args).map(|function| function.returns.to_string()).into())
        }),
        strict("pg_get_indexdef", 1..=3, PgType::Text, index_definition),
        strict("pg_get_userbyid", 1..=1, PgType::Name, user_by_id),
        called("pg_is_in_recovery", 0..=0, PgType::Bool, |_, _| Ok(false.into())),
        strict("pg_is_other_temp_schema", 1..=1, PgType::Bool, |_, _| Ok(false.into())),
        called("pg_my_temp_schema", 0..=0, PgType::Oid, |_, _| Ok(Cell::Int(0))),
        strict("pg_relation_is_publishable", 1..=1, PgType::Bool, relation_is_publishable),
        strict("pg_size_pretty", 1..=1, PgType::Text, size_pretty),
        strict("pg_table_is_visible", 1..=1, PgType::Bool, table_is_visible),
        strict("pg_tablespace_location", 1..=1, PgType::Text, |_, _| Ok("".into())),
        strict("quote_ident", 1..=1, PgType::Text, quote_ident),
        strict("quote_literal", 1..=1, PgType::Text, quote_literal),
        called("quote_nullable", 1..=1, PgType::Text, quote_nullable),
        strict("obj_description", 1..=2, PgType::Text, object_description),
        strict("regclassin", 1..=1, PgType::Regclass, regclass_in),
        strict("regclassout", 1..=1, PgType::Text, regclass_out),
        strict("regnamespacein", 1..=1, PgType::Regnamespace, regnamespace_in),
        strict("regnamespaceout", 1..=1, PgType::Text, regnamespace_out),
        strict("regprocin", 1..=1, PgType::Regproc, regproc_in),
        strict("regprocout", 1..=1, PgType::Text, regproc_out),
        strict("regrolein", 1..=1, PgType::Regrole, regrole_in),
        strict("regroleout", 1..=1, PgType::Text, user_by_id),
        strict("regtypein", 1..=1, PgType::Regtype, regtype_in),
        strict("regtypeout", 1..=1, PgType::Text, regtype_out),
        strict("row_security_active", 1..=1, PgType::Bool, |_, _| Ok(false.into())),
        called("session_user", 0..=0, PgType::Name, current_user),
        strict("to_regclass", 1..=1, PgType::Regclass, |w, a| Ok(found(regclass_in(w, a)))),
        strict("to_regnamespace", 1..=1, PgType::Regnamespace, |w, a| {
            Ok(found(regnamespace_in(w, a)))
        }),
        strict("to_regtype", 1..=1, PgType::Regtype, |w, a| Ok(found(regtype_in(w, a)))),
        called("user", 0..=0, PgType::Name, current_user),
        called("version", 0..=0, PgType::Text, version),
    ];
    functions.extend(visible_everywhere());
    functions.extend(privileges());
    functions.extend(without_answer());
    functions
}

/// Called whatever its arguments are.
fn called(
    name: &'static str,
    arity: std::ops::RangeInclusive<usize>,
    returns: PgType,
    body: super::Body,
) -> Known {
    Known { name, arity, returns, strict: false, volatility: Volatility::Stable, body }
}

/// NULL where an argument is.
fn strict(
    name: &'static str,
    arity: std::ops::RangeInclusive<usize>,
    returns: PgType,
    body: super::Body,
) -> Known {
    Known { strict: true, ..called(name, arity, returns, body) }
}

/// Changes something: called when the statement runs, and once.
fn changing(
    name: &'static str,
    arity: std::ops::RangeInclusive<usize>,
    returns: PgType,
    body: super::Body,
) -> Known {
    Known { volatility: Volatility::Volatile, ..strict(name, arity, returns, body) }
}

/// Interrupts what another session of the same node runs, as the protocol's cancel does.
fn cancel_backend(world: &World, args: &[Cell]) -> Outcome {
    let pid = args[0].as_int().and_then(|pid| i32::try_from(pid).ok());
    Ok(pid.is_some_and(|pid| (world.session.backend.cancel)(pid)).into())
}

/// Objects other than relations are all in `pg_catalog`, which is always on the search path.
fn visible_everywhere() -> impl Iterator<Item = Known> {
    let names = [
        "pg_collation_is_visible",
        "pg_conversion_is_visible",
        "pg_opclass_is_visible",
        "pg_operator_is_visible",
        "pg_opfamily_is_visible",
        "pg_statistics_obj_is_visible",
        "pg_ts_config_is_visible",
        "pg_type_is_visible",
    ];
    names.into_iter().map(|name| strict(name, 1..=1, PgType::Bool, |_, _| Ok(true.into())))
}

/// Every role may do everything.
fn privileges() -> impl Iterator<Item = Known> {
    let names = [
        "has_any_column_privilege",
        "has_column_privilege",
        "has_database_privilege",
        "has_function_privilege",
        "has_language_privilege",
        "has_schema_privilege",
        "has_sequence_privilege",
        "has_server_privilege",
        "has_table_privilege",
        "has_tablespace_privilege",
        "has_type_privilege",
        "pg_has_role",
    ];
    names.into_iter().map(|name| strict(name, 2..=4, PgType::Bool, |_, _| Ok(true.into())))
}

/// What is asked about things that Meridian has none of, or that the catalogs don't know (the
/// sizes of tables are in `meridian.tablets`).
fn without_answer() -> impl Iterator<Item = Known> {
    let texts = [
        "col_description",
        "pg_get_function_sqlbody",
        "pg_get_functiondef",
        "pg_get_partition_constraintdef",
        "pg_get_partkeydef",
        "pg_get_ruledef",
        "pg_get_serial_sequence",
        "pg_get_statisticsobjdef",
        "pg_get_statisticsobjdef_columns",
        "pg_get_triggerdef",
        "pg_get_viewdef",
        "shobj_description",
    ];
    let sizes = [
        "pg_database_size",
        "pg_indexes_size",
        "pg_relation_size",
        "pg_table_size",
        "pg_tablespace_size",
        "pg_total_relation_size",
    ];
    let texts = texts.into_iter().map(|name| (name, PgType::Text));
    let sizes = sizes.into_iter().map(|name| (name, PgType::Int8));
    texts.chain(sizes).map(|(name, returns)| called(name, 1..=3, returns, |_, _| Ok(Cell::Null)))
}

/// NULL in place of "there is no such thing".
fn found(outcome: Outcome) -> Cell {
    outcome.unwrap_or(Cell::Null)
}

/// The function of the schema `meridian` that has this object id.
fn function_of(args: &[Cell]) -> Option<&'static Function> {
    let position = args.first()?.as_oid()?.checked_sub(FIRST_FUNCTION)?;
    FUNCTIONS.get(usize::try_from(position).ok()?)
}

fn current_database(world: &World, _: &[Cell]) -> Outcome {
    Ok((&world.session.database).into())
}

fn current_user(world: &World, _: &[Cell]) -> Outcome {
    Ok((&world.session.user).into())
}

fn current_schema(world: &World, _: &[Cell]) -> Outcome {
    Ok(world.search_path().first().into())
}

fn current_schemas(world: &World, args: &[Cell]) -> Outcome {
    let mut path = world.search_path().to_vec();
    if args[0].is_true() && !path.iter().any(|schema| schema == "pg_catalog") {
        path.insert(0, "pg_catalog".to_owned());
    }
    Ok(path.into_iter().collect())
}

fn current_setting(world: &World, args: &[Cell]) -> Outcome {
    let name = text_of(&args[0]);
    let folded = name.to_ascii_lowercase();
    let preset = PRESETS.iter().find(|(preset, _)| *preset == folded);
    match (world.session.settings.get(&folded), preset) {
        (Some(value), _) => Ok(value.into()),
        (None, Some((_, value))) => Ok((*value).into()),
        (None, None) if args.get(1).is_some_and(Cell::is_true) => Ok(Cell::Null),
        (None, None) => Err(SqlError::new(
            SqlState::UNDEFINED_OBJECT,
            format!("unrecognized configuration parameter \"{name}\""),
        )),
    }
}

fn format_type(_: &World, args: &[Cell]) -> Outcome {
    let Some(oid) = args[0].as_oid() else { return Ok(Cell::Null) };
    if oid == 0 {
        return Ok("-".into());
    }
    let modifier = args[1].as_int().and_then(|modifier| i32::try_from(modifier).ok());
    Ok(types::format_type(oid, modifier).into())
}

fn char_to_encoding(_: &World, args: &[Cell]) -> Outcome {
    let name = text_of(&args[0]).to_ascii_lowercase();
    Ok(if matches!(name.as_str(), "utf8" | "utf-8" | "unicode") { UTF8 } else { -1 }.into())
}

fn encoding_to_char(_: &World, args: &[Cell]) -> Outcome {
    Ok(if args[0].as_int() == Some(UTF8.into()) { "UTF8" } else { "" }.into())
}

fn constraint_definition(world: &World, args: &[Cell]) -> Outcome {
    Ok(args[0].as_oid().and_then(|oid| world.constraint_definition(oid)).into())
}

fn index_definition(world: &World, args: &[Cell]) -> Outcome {
    let column = args.get(1).and_then(Cell::as_int).and_then(|column| usize::try_from(column).ok());
    let pretty = args.get(2).is_some_and(Cell::is_true);
    let table = args[0].as_oid().and_then(|oid| world.primary_key(oid));
    let definition = |table| world.index_definition(table, column.unwrap_or(0), pretty);
    Ok(table.and_then(definition).into())
}

fn user_by_id(world: &World, args: &[Cell]) -> Outcome {
    let name = args[0].as_oid().and_then(|oid| world.role_name(oid));
    Ok(name.unwrap_or_else(|| format!("unknown (OID={})", text_of(&args[0]))).into())
}

fn relation_is_publishable(world: &World, args: &[Cell]) -> Outcome {
    let relation = args[0].as_oid().and_then(|oid| world.relation(oid));
    Ok(relation.map(|found| matches!(found, Relation::Table(t) if !t.is_system())).into())
}

fn table_is_visible(world: &World, args: &[Cell]) -> Outcome {
    let relation = args[0].as_oid().and_then(|oid| world.relation(oid));
    Ok(relation.map(|found| world.is_visible(found.schema())).into())
}

fn object_description(_: &World, args: &[Cell]) -> Outcome {
    let public = args[0].as_oid() == Some(PUBLIC);
    let described = public && args.get(1).and_then(Cell::as_str) == Some("pg_namespace");
    Ok(described.then_some("standard public schema").into())
}

fn version(world: &World, _: &[Cell]) -> Outcome {
    let version = world.session.settings.get("server_version").map_or("15", String::as_str);
    Ok(format!("PostgreSQL {version} (Meridian {})", env!("CARGO_PKG_VERSION")).into())
}

/// Calls the function of that name over the sample catalog.
#[cfg(test)]
pub(super) fn call(name: &str, args: &[Cell]) -> Result<Cell, SqlError> {
    let function = all().into_iter().find(|function| function.name == name).expect("it exists");
    assert!(function.arity.contains(&args.len()));
    (function.body)(&super::super::sample::world(), args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_has_its_own_name() {
        let mut names: Vec<&str> = all().iter().map(|function| function.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn settings_are_read_and_unknown_ones_refused() {
        let version = call("current_setting", &[Cell::from("Server_Version")]).unwrap();
        assert_eq!(version, Cell::from("15.18"));
        let unknown = call("current_setting", &[Cell::from("nothing")]).unwrap_err();
        assert_eq!(unknown.sqlstate, SqlState::UNDEFINED_OBJECT);
        let missing_ok = [Cell::from("nothing"), Cell::Bool(true)];
        assert_eq!(call("current_setting", &missing_ok).unwrap(), Cell::Null);
    }
}
