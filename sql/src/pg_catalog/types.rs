//! PostgreSQL's own types: `pg_type`, what [`format_type`] calls them, and which functions of
//! `pg_proc` read and write them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::types::BaseType;

/// A row of `pg_type`.
#[derive(Debug)]
pub(super) struct TypeInfo {
    pub(super) oid: u32,
    pub(super) name: &'static str,
    /// Bytes of a value, or -1 where they vary, or -2 for a C string.
    pub(super) length: i32,
    pub(super) by_value: bool,
    /// `b` a base type, `p` a pseudo-type.
    pub(super) kind: &'static str,
    pub(super) category: &'static str,
    pub(super) preferred: bool,
    /// The element's type if this is an array, or 0.
    pub(super) element: u32,
    /// The type of arrays of this, or 0.
    pub(super) array: u32,
    pub(super) align: &'static str,
    pub(super) storage: &'static str,
    /// The object id of the collation, or 0.
    pub(super) collation: u32,
    /// Input, output, receive, send, modifier in, modifier out: name and object id.
    pub(super) functions: [(&'static str, u32); 6],
}

/// The length of a type modifier's own header, which PostgreSQL adds to every length.
const HEADER: i32 = 4;

static TYPES: LazyLock<BTreeMap<u32, TypeInfo>> = LazyLock::new(|| {
    let lines = include_str!("data/pg_type.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(parse).map(|info| (info.oid, info)).collect()
});

fn parse(line: &'static str) -> Option<TypeInfo> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let mut info = TypeInfo {
        oid: next()?.parse().ok()?,
        name: next()?,
        length: next()?.parse().ok()?,
        by_value: next()? == "t",
        kind: next()?,
        category: next()?,
        preferred: next()? == "t",
        element: next()?.parse().ok()?,
        array: next()?.parse().ok()?,
        align: next()?,
        storage: next()?,
        collation: next()?.parse().ok()?,
        functions: [("-", 0); 6],
    };
    for function in &mut info.functions {
        if let Some((name, oid)) = next()?.split_once(':') {
            *function = (name, oid.parse().ok()?);
        }
    }
    Some(info)
}

/// All types, in order of their object ids.
pub(super) fn all() -> impl Iterator<Item = &'static TypeInfo> {
    TYPES.values()
}

pub(super) fn by_oid(oid: u32) -> Option<&'static TypeInfo> {
    TYPES.get(&oid)
}

/// The type of that name: its own, as SQL writes it, or with `[]` behind it.
pub(super) fn by_name(name: &str) -> Option<&'static TypeInfo> {
    if let Some(element) = name.strip_suffix("[]") {
        return by_oid(by_name(element)?.array);
    }
    let quoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
    if let Some(name) = quoted {
        return all().find(|info| info.name == name);
    }
    let name = name.to_ascii_lowercase();
    let name = match name.as_str() {
        "char" => "bpchar",
        "decimal" => "numeric",
        "int" => "int4",
        other => all().find(|info| sql_name(info) == other).map_or(other, |info| info.name),
    };
    all().find(|info| info.name == name)
}

/// Every function that reads or writes a type, by its object id.
pub(super) fn functions() -> BTreeMap<u32, &'static str> {
    let named = all().flat_map(|info| info.functions).filter(|(_, oid)| *oid != 0);
    named.map(|(name, oid)| (oid, name)).collect()
}

/// The object id of the type that a catalog's column has.
pub(super) fn oid_of(type_name: &str) -> u32 {
    let element = type_name.strip_suffix("[]");
    let info = all().find(|info| info.name == element.unwrap_or(type_name));
    info.map_or(0, |info| if element.is_some() { info.array } else { info.oid })
}

/// The name that SQL gives to a type.
fn sql_name(info: &'static TypeInfo) -> &'static str {
    match info.name {
        "timetz" => "time with time zone",
        "any" => "\"any\"",
        name => BaseType::from_oid(info.oid).map_or(name, |base| base.facts().display),
    }
}

/// A type's name with its modifier, as in `CREATE TABLE`: PostgreSQL's `format_type`. Without a
/// modifier (`None`) it is the plain name, else -1 is the modifier of a type that has none.
pub(super) fn format_type(oid: u32, modifier: Option<i32>) -> String {
    let Some(info) = by_oid(oid) else { return "???".to_owned() };
    if let Some(element) = by_oid(info.element).filter(|element| element.array == oid) {
        return format!("{}[]", format_type(element.oid, modifier));
    }
    let name = sql_name(info);
    let Some(modifier) = modifier.filter(|modifier| *modifier >= 0) else {
        // `character` alone is `character(1)`, so the type without a length goes by its own name.
        return if info.name == "bpchar" && modifier.is_some() { info.name } else { name }
            .to_owned();
    };
    match info.name {
        "bpchar" | "varchar" => format!("{name}({})", modifier - HEADER),
        "numeric" => {
            let (precision, scale) = numeric_modifier(modifier);
            format!("{name}({precision},{scale})")
        }
        "time" | "timetz" | "timestamp" | "timestamptz" => {
            let (base, zone) = name.split_once(' ').unwrap_or((name, ""));
            format!("{base}({modifier}) {zone}")
        }
        _ => name.to_owned(),
    }
}

/// Precision and scale out of the modifier of a `numeric`.
pub(super) fn numeric_modifier(modifier: i32) -> (i32, i32) {
    let packed = modifier - HEADER;
    // The scale is a signed number of eleven bits.
    (packed >> 16, ((packed & 0x7ff) ^ 1024) - 1024)
}

/// The greatest number of characters out of the modifier of a `varchar` or `char`.
pub(super) fn length_modifier(modifier: i32) -> Option<i32> {
    (modifier >= HEADER).then_some(modifier - HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_file_is_a_type() {
        assert_eq!(all().count(), 95);
        let info = by_oid(1700).unwrap();
        assert_eq!(
            (info.name, info.array, info.functions[0]),
            ("numeric", 1231, ("numeric_in", 1701))
        );
    }

    // What PostgreSQL 15 answers to the same calls.
    #[test]
    fn types_are_named_as_postgresql_names_them() {
        for (oid, modifier, expected) in [
            (20, Some(-1), "bigint"),
            (1700, Some(786_438), "numeric(12,2)"),
            (1700, Some(-1), "numeric"),
            (1043, Some(12), "character varying(8)"),
            (1043, None, "character varying"),
            (1042, Some(7), "character(3)"),
            (1042, Some(-1), "bpchar"),
            (1042, None, "character"),
            (18, Some(-1), "\"char\""),
            (1184, Some(-1), "timestamp with time zone"),
            (1184, Some(3), "timestamp(3) with time zone"),
            (1231, Some(786_438), "numeric(12,2)[]"),
            (1002, None, "\"char\"[]"),
            (22, None, "int2vector"),
            (99_999, None, "???"),
        ] {
            assert_eq!(format_type(oid, modifier), expected);
        }
    }

    #[test]
    fn types_are_found_by_each_of_their_names() {
        for (name, oid) in [
            ("int8", 20),
            ("bigint", 20),
            ("BIGINT", 20),
            ("char", 1042),
            ("\"char\"", 18),
            ("character varying", 1043),
            ("text[]", 1009),
            ("_text", 1009),
            ("timestamp with time zone", 1184),
        ] {
            assert_eq!(by_name(name).map(|info| info.oid), Some(oid), "{name}");
        }
        assert!(by_name("nothing").is_none());
        assert_eq!((oid_of("char"), oid_of("aclitem[]"), oid_of("int2vector")), (18, 1034, 22));
    }
}
