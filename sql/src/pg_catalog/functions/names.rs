//! Object ids that go by names (`regclass` and its like): from text, and back.

use super::super::cell::Cell;
use super::super::types;
use super::super::world::{World, quote_identifier};
use super::Outcome;
use super::text::text_of;
use crate::error::{SqlError, SqlState};

/// An object id stands for itself, `-` for none; anything else is a name to look up.
fn by_number_or<'a>(args: &'a [Cell], look_up: impl FnOnce(&'a str) -> Outcome) -> Outcome {
    match &args[0] {
        Cell::Text(text) if text == "-" => Ok(Cell::Int(0)),
        Cell::Text(text) => match text.parse::<u32>() {
            Ok(oid) => Ok(oid.into()),
            Err(_) => look_up(text),
        },
        cell => Ok(cell.as_oid().into()),
    }
}

pub(super) fn regclass_in(world: &World, args: &[Cell]) -> Outcome {
    by_number_or(args, |text| Ok(relation_by_text(world, text)?.into()))
}

/// The object id of the relation that a text names as SQL would: folded unless quoted, with a
/// schema or without.
fn relation_by_text(world: &World, text: &str) -> Result<u32, SqlError> {
    let parts = identifiers(text)?;
    let relation = match parts.as_slice() {
        [name] => world.find_relation(None, name),
        [schema, name] | [_, schema, name] => world.find_relation(Some(schema), name),
        _ => None,
    };
    relation.map(|relation| relation.oid()).ok_or_else(|| {
        let name = parts.join(".");
        SqlError::new(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"))
    })
}

/// The parts of a dotted name: `a."B c"` is `a` and `B c`.
pub(crate) fn identifiers(text: &str) -> Result<Vec<String>, SqlError> {
    let invalid = || SqlError::new(SqlState::INVALID_NAME, "invalid name syntax");
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let mut part = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let (before, after) = rest.split_once('"').ok_or_else(invalid)?;
                part.push_str(before);
                let Some(after) = after.strip_prefix('"').inspect(|_| part.push('"')) else {
                    rest = after;
                    break;
                };
                rest = after;
            }
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            part = rest[..end].trim().to_ascii_lowercase();
            rest = &rest[end..];
        }
        if part.is_empty() {
            return Err(invalid());
        }
        parts.push(part);
        match rest.trim_start().strip_prefix('.') {
            Some(after) => rest = after.trim_start(),
            None if rest.trim().is_empty() => return Ok(parts),
            None => return Err(invalid()),
        }
    }
}

pub(super) fn regclass_out(world: &World, args: &[Cell]) -> Outcome {
    Ok(args[0]
        .as_oid()
        .map(|oid| if oid == 0 { "-".into() } else { world.regclass_name(oid) })
        .into())
}

pub(super) fn regnamespace_in(world: &World, args: &[Cell]) -> Outcome {
    by_number_or(args, |text| {
        let name = identifiers(text)?.join(".");
        world.namespace_oid(&name).map(Cell::from).ok_or_else(|| {
            let message = format!("schema \"{name}\" does not exist");
            SqlError::new(SqlState::INVALID_SCHEMA_NAME, message)
        })
    })
}

pub(super) fn regnamespace_out(world: &World, args: &[Cell]) -> Outcome {
    let name = args[0].as_oid().and_then(|oid| world.namespace_name(oid));
    Ok(name.map_or_else(|| text_of(&args[0]), quote_identifier).into())
}

pub(super) fn regproc_in(_: &World, args: &[Cell]) -> Outcome {
    by_number_or(args, |text| {
        let name = text.strip_prefix("pg_catalog.").unwrap_or(text);
        let known = types::functions().into_iter().find(|(_, known)| *known == name);
        known.map(|(oid, _)| Cell::from(oid)).ok_or_else(|| {
            let message = format!("function \"{text}\" does not exist");
            SqlError::new(SqlState::UNDEFINED_FUNCTION, message)
        })
    })
}

pub(super) fn regproc_out(_: &World, args: &[Cell]) -> Outcome {
    let Some(oid) = args[0].as_oid() else { return Ok(Cell::Null) };
    let name = types::functions().get(&oid).map(|name| (*name).to_owned());
    Ok(name.unwrap_or_else(|| if oid == 0 { "-".to_owned() } else { oid.to_string() }).into())
}

pub(super) fn regrole_in(world: &World, args: &[Cell]) -> Outcome {
    by_number_or(args, |text| {
        let name = identifiers(text)?.join(".");
        let role = world.roles().into_iter().find(|(_, role)| *role == name);
        role.map(|(oid, _)| Cell::from(oid)).ok_or_else(|| {
            SqlError::new(SqlState::UNDEFINED_OBJECT, format!("role \"{name}\" does not exist"))
        })
    })
}

pub(super) fn regtype_in(_: &World, args: &[Cell]) -> Outcome {
    by_number_or(args, |text| {
        let info = types::by_name(text.strip_prefix("pg_catalog.").unwrap_or(text));
        info.map(|info| info.oid.into()).ok_or_else(|| SqlError::undefined_type(text))
    })
}

pub(super) fn regtype_out(_: &World, args: &[Cell]) -> Outcome {
    let Some(oid) = args[0].as_oid() else { return Ok(Cell::Null) };
    Ok(match types::by_oid(oid) {
        Some(_) => types::format_type(oid, None),
        None if oid == 0 => "-".to_owned(),
        None => oid.to_string(),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::super::library::call;
    use super::*;
    use crate::pg_catalog::sample;

    #[test]
    fn names_are_looked_up_as_sql_writes_them() {
        let world = sample::world();
        let oid = |name| world.snapshot.table("public", name).map(|table| table.oid());
        for (text, name) in [
            ("accounts", "accounts"),
            ("ACCOUNTS", "accounts"),
            ("public.accounts", "accounts"),
            (" public . \"accounts\" ", "accounts"),
            ("\"Odd Name\"", "Odd Name"),
        ] {
            let found = call("regclassin", &[Cell::from(text)]).unwrap();
            assert_eq!(found, Cell::from(oid(name)), "{text}");
        }
        assert_eq!(call("regclassin", &[Cell::from("pg_class")]).unwrap(), Cell::Int(1259));
        assert_eq!(call("regclassin", &[Cell::from("17")]).unwrap(), Cell::Int(17));
        for (text, code) in [
            ("nothing", SqlState::UNDEFINED_TABLE),
            ("\"ACCOUNTS\"", SqlState::UNDEFINED_TABLE),
            ("a.", SqlState::INVALID_NAME),
            ("\"a", SqlState::INVALID_NAME),
            ("", SqlState::INVALID_NAME),
        ] {
            let error = call("regclassin", &[Cell::from(text)]).unwrap_err();
            assert_eq!(error.sqlstate, code, "{text}");
            assert_eq!(call("to_regclass", &[Cell::from(text)]).unwrap(), Cell::Null);
        }
    }
}
