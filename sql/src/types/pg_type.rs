//! The types themselves, and what `pg_type` says of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The greatest precision of a stored `numeric(p,s)`: what 128 bits hold.
pub const MAX_NUMERIC_PRECISION: u8 = 38;

/// The bytes that PostgreSQL counts into a type modifier (`VARHDRSZ`).
const MODIFIER_OFFSET: i32 = 4;

/// A type without its modifier: a row of `pg_type`.
///
/// The variants' order is that of the object ids and is part of the stored catalog: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are PostgreSQL's")]
pub enum BaseType {
    Bool,
    Bytea,
    InternalChar,
    Name,
    Int8,
    Int2,
    Int2Vector,
    Int4,
    Regproc,
    Text,
    Oid,
    Xid,
    OidVector,
    NodeTree,
    Float4,
    Float8,
    Unknown,
    AclItem,
    Char,
    Varchar,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Numeric,
    Regclass,
    Regtype,
    Record,
    Void,
    Uuid,
    Jsonb,
    Regnamespace,
    Regrole,
}

/// A row of `pg_type`, as far as clients ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeFacts {
    /// Its object id.
    pub oid: u32,
    /// `typname`, e.g. `int4`.
    pub name: &'static str,
    /// The name in SQL, as `format_type` gives it without a modifier, e.g. `integer`.
    pub display: &'static str,
    /// `typlen`: the size in bytes, -1 if it varies.
    pub length: i16,
    /// `typcategory`.
    pub category: char,
    /// `typispreferred`.
    pub preferred: bool,
    /// The object id of the array of it, 0 if there is none.
    pub array_oid: u32,
}

const fn facts(
    oid: u32,
    name: &'static str,
    display: &'static str,
    length: i16,
    category: char,
    array_oid: u32,
) -> TypeFacts {
    let preferred = matches!(oid, 16 | 25 | 26 | 701 | 1184 | 1186);
    TypeFacts { oid, name, display, length, category, preferred, array_oid }
}

impl BaseType {
    /// Every type, by object id.
    pub const ALL: [Self; 34] = [
        Self::Bool,
        Self::Bytea,
        Self::InternalChar,
        Self::Name,
        Self::Int8,
        Self::Int2,
        Self::Int2Vector,
        Self::Int4,
        Self::Regproc,
        Self::Text,
        Self::Oid,
        Self::Xid,
        Self::OidVector,
        Self::NodeTree,
        Self::Float4,
        Self::Float8,
        Self::Unknown,
        Self::AclItem,
        Self::Char,
        Self::Varchar,
        Self::Date,
        Self::Time,
        Self::Timestamp,
        Self::Timestamptz,
        Self::Interval,
        Self::Numeric,
        Self::Regclass,
        Self::Regtype,
        Self::Record,
        Self::Void,
        Self::Uuid,
        Self::Jsonb,
        Self::Regnamespace,
        Self::Regrole,
    ];

    /// What `pg_type` says of it.
    #[must_use]
    pub const fn facts(self) -> TypeFacts {
        match self {
            Self::Bool => facts(16, "bool", "boolean", 1, 'B', 1000),
            Self::Bytea => facts(17, "bytea", "bytea", -1, 'U', 1001),
            Self::InternalChar => facts(18, "char", "\"char\"", 1, 'Z', 1002),
            Self::Name => facts(19, "name", "name", 64, 'S', 1003),
            Self::Int8 => facts(20, "int8", "bigint", 8, 'N', 1016),
            Self::Int2 => facts(21, "int2", "smallint", 2, 'N', 1005),
            Self::Int2Vector => facts(22, "int2vector", "int2vector", -1, 'A', 1006),
            Self::Int4 => facts(23, "int4", "integer", 4, 'N', 1007),
            Self::Regproc => facts(24, "regproc", "regproc", 4, 'N', 1008),
            Self::Text => facts(25, "text", "text", -1, 'S', 1009),
            Self::Oid => facts(26, "oid", "oid", 4, 'N', 1028),
            Self::Xid => facts(28, "xid", "xid", 4, 'U', 1011),
            Self::OidVector => facts(30, "oidvector", "oidvector", -1, 'A', 1013),
            Self::NodeTree => facts(194, "pg_node_tree", "pg_node_tree", -1, 'Z', 0),
            Self::Float4 => facts(700, "float4", "real", 4, 'N', 1021),
            Self::Float8 => facts(701, "float8", "double precision", 8, 'N', 1022),
            Self::Unknown => facts(705, "unknown", "unknown", -2, 'X', 0),
            Self::AclItem => facts(1033, "aclitem", "aclitem", 12, 'U', 1034),
            Self::Char => facts(1042, "bpchar", "character", -1, 'S', 1014),
            Self::Varchar => facts(1043, "varchar", "character varying", -1, 'S', 1015),
            Self::Date => facts(1082, "date", "date", 4, 'D', 1182),
            Self::Time => facts(1083, "time", "time without time zone", 8, 'D', 1183),
            Self::Timestamp => {
                facts(1114, "timestamp", "timestamp without time zone", 8, 'D', 1115)
            }
            Self::Timestamptz => {
                facts(1184, "timestamptz", "timestamp with time zone", 8, 'D', 1185)
            }
            Self::Interval => facts(1186, "interval", "interval", 16, 'T', 1187),
            Self::Numeric => facts(1700, "numeric", "numeric", -1, 'N', 1231),
            Self::Regclass => facts(2205, "regclass", "regclass", 4, 'N', 2210),
            Self::Regtype => facts(2206, "regtype", "regtype", 4, 'N', 2211),
            Self::Record => facts(2249, "record", "record", -1, 'P', 2287),
            Self::Void => facts(2278, "void", "void", 4, 'P', 0),
            Self::Uuid => facts(2950, "uuid", "uuid", 16, 'U', 2951),
            Self::Jsonb => facts(3802, "jsonb", "jsonb", -1, 'U', 3807),
            Self::Regnamespace => facts(4089, "regnamespace", "regnamespace", 4, 'N', 4090),
            Self::Regrole => facts(4096, "regrole", "regrole", 4, 'N', 4097),
        }
    }

    /// The type with this object id.
    #[must_use]
    pub fn from_oid(oid: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|base| base.facts().oid == oid)
    }

    /// The type without a modifier: `Varchar(None)`, `UnboundedNumeric`.
    #[must_use]
    pub const fn plain(self) -> PgType {
        match self {
            Self::Bool => PgType::Bool,
            Self::Bytea => PgType::Bytea,
            Self::InternalChar => PgType::InternalChar,
            Self::Name => PgType::Name,
            Self::Int8 => PgType::Int8,
            Self::Int2 => PgType::Int2,
            Self::Int2Vector => PgType::Int2Vector,
            Self::Int4 => PgType::Int4,
            Self::Regproc => PgType::Regproc,
            Self::Text => PgType::Text,
            Self::Oid => PgType::Oid,
            Self::Xid => PgType::Xid,
            Self::OidVector => PgType::OidVector,
            Self::NodeTree => PgType::NodeTree,
            Self::Float4 => PgType::Float4,
            Self::Float8 => PgType::Float8,
            Self::Unknown => PgType::Unknown,
            Self::AclItem => PgType::AclItem,
            Self::Char => PgType::Char(None),
            Self::Varchar => PgType::Varchar(None),
            Self::Date => PgType::Date,
            Self::Time => PgType::Time,
            Self::Timestamp => PgType::Timestamp,
            Self::Timestamptz => PgType::Timestamptz,
            Self::Interval => PgType::Interval,
            Self::Numeric => PgType::UnboundedNumeric,
            Self::Regclass => PgType::Regclass,
            Self::Regtype => PgType::Regtype,
            Self::Record => PgType::Record,
            Self::Void => PgType::Void,
            Self::Uuid => PgType::Uuid,
            Self::Jsonb => PgType::Jsonb,
            Self::Regnamespace => PgType::Regnamespace,
            Self::Regrole => PgType::Regrole,
        }
    }
}

/// A type with its modifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PgType {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric(p,s)`
    Numeric {
        /// Decimal digits in all, at most [`MAX_NUMERIC_PRECISION`].
        precision: u8,
        /// Digits after the point, from 0 to the precision.
        scale: i8,
    },
    /// `numeric` of no declared size: literals, sums, parameters. No column has it.
    UnboundedNumeric,
    /// `text`
    Text,
    /// `character varying(n)`, n characters
    Varchar(Option<u32>),
    /// `character(n)`; without n it is `bpchar`, blank-trimmed of any length
    Char(Option<u32>),
    /// `bytea`
    Bytea,
    /// `date`
    Date,
    /// `time without time zone`
    Time,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    Timestamptz,
    /// `interval`
    Interval,
    /// `uuid`
    Uuid,
    /// `jsonb`
    Jsonb,
    /// `name`: an identifier, in the system catalogs
    Name,
    /// `oid`: a number that names an object
    Oid,
    /// `"char"`: one byte, in the system catalogs
    InternalChar,
    /// `regclass`: an oid that prints as a relation's name
    Regclass,
    /// `regtype`: an oid that prints as a type's name
    Regtype,
    /// `regproc`: an oid that prints as a function's name
    Regproc,
    /// `regnamespace`: an oid that prints as a schema's name
    Regnamespace,
    /// `regrole`: an oid that prints as a role's name
    Regrole,
    /// `xid`
    Xid,
    /// `int2vector`
    Int2Vector,
    /// `oidvector`
    OidVector,
    /// `pg_node_tree`
    NodeTree,
    /// `aclitem`
    AclItem,
    /// `record`: a row as one value
    Record,
    /// `void`: what a function returns that is called for its effect
    Void,
    /// A quoted literal or NULL whose context has not given it a type
    Unknown,
    /// An array
    Array(BaseType),
}

impl PgType {
    /// The type without its modifier; of an array, that of its elements.
    #[must_use]
    pub const fn base(self) -> BaseType {
        match self {
            Self::Bool => BaseType::Bool,
            Self::Int2 => BaseType::Int2,
            Self::Int4 => BaseType::Int4,
            Self::Int8 => BaseType::Int8,
            Self::Float4 => BaseType::Float4,
            Self::Float8 => BaseType::Float8,
            Self::Numeric { .. } | Self::UnboundedNumeric => BaseType::Numeric,
            Self::Text => BaseType::Text,
            Self::Varchar(_) => BaseType::Varchar,
            Self::Char(_) => BaseType::Char,
            Self::Bytea => BaseType::Bytea,
            Self::Date => BaseType::Date,
            Self::Time => BaseType::Time,
            Self::Timestamp => BaseType::Timestamp,
            Self::Timestamptz => BaseType::Timestamptz,
            Self::Interval => BaseType::Interval,
            Self::Uuid => BaseType::Uuid,
            Self::Jsonb => BaseType::Jsonb,
            Self::Name => BaseType::Name,
            Self::Oid => BaseType::Oid,
            Self::InternalChar => BaseType::InternalChar,
            Self::Regclass => BaseType::Regclass,
            Self::Regtype => BaseType::Regtype,
            Self::Regproc => BaseType::Regproc,
            Self::Regnamespace => BaseType::Regnamespace,
            Self::Regrole => BaseType::Regrole,
            Self::Xid => BaseType::Xid,
            Self::Int2Vector => BaseType::Int2Vector,
            Self::OidVector => BaseType::OidVector,
            Self::NodeTree => BaseType::NodeTree,
            Self::AclItem => BaseType::AclItem,
            Self::Record => BaseType::Record,
            Self::Void => BaseType::Void,
            Self::Unknown => BaseType::Unknown,
            Self::Array(element) => element,
        }
    }

    /// The object id in `pg_type`.
    #[must_use]
    pub const fn oid(self) -> u32 {
        match self {
            Self::Array(element) => element.facts().array_oid,
            other => other.base().facts().oid,
        }
    }

    /// `typname`, e.g. `int4`, `_text`.
    #[must_use]
    pub fn typname(self) -> String {
        match self {
            Self::Array(element) => format!("_{}", element.facts().name),
            other => other.base().facts().name.to_owned(),
        }
    }

    /// `typlen`: the size in bytes, -1 if it varies.
    #[must_use]
    pub const fn typlen(self) -> i16 {
        match self {
            Self::Array(_) => -1,
            other => other.base().facts().length,
        }
    }

    /// `atttypmod`: the modifier as PostgreSQL packs it, -1 for none.
    #[must_use]
    pub const fn typmod(self) -> i32 {
        match self {
            Self::Varchar(Some(length)) | Self::Char(Some(length)) => {
                length.cast_signed() + MODIFIER_OFFSET
            }
            Self::Numeric { precision, scale } => {
                (((precision as i32) << 16) | ((scale as i32) & 0x7ff)) + MODIFIER_OFFSET
            }
            _ => -1,
        }
    }

    /// The type with this object id and modifier (-1 for none), if there is one here.
    #[must_use]
    pub fn from_oid(oid: u32, typmod: i32) -> Option<Self> {
        if oid == 0 {
            return None;
        }
        if let Some(element) = BaseType::ALL.into_iter().find(|base| base.facts().array_oid == oid)
        {
            return Some(Self::Array(element));
        }
        let base = BaseType::from_oid(oid)?;
        let modifier = typmod.checked_sub(MODIFIER_OFFSET).filter(|m| *m >= 0);
        let length = modifier.and_then(|m| u32::try_from(m).ok()).filter(|m| *m > 0);
        Some(match (base, modifier) {
            (BaseType::Varchar, _) => Self::Varchar(length),
            (BaseType::Char, _) => Self::Char(length),
            (BaseType::Numeric, Some(m)) => {
                let precision = u8::try_from(m >> 16).ok();
                let scale = i8::try_from(m & 0x7ff).ok();
                match (precision, scale) {
                    (Some(precision @ 1..=MAX_NUMERIC_PRECISION), Some(scale))
                        if scale.unsigned_abs() <= precision =>
                    {
                        Self::Numeric { precision, scale }
                    }
                    _ => Self::UnboundedNumeric,
                }
            }
            _ => base.plain(),
        })
    }

    /// Whether it is an array, `int2vector` and `oidvector` not counted.
    #[must_use]
    pub const fn is_array(self) -> bool {
        matches!(self, Self::Array(_))
    }

    /// Whether it is one of the numbers, `oid` not counted.
    #[must_use]
    pub const fn is_number(self) -> bool {
        matches!(
            self,
            Self::Int2
                | Self::Int4
                | Self::Int8
                | Self::Float4
                | Self::Float8
                | Self::Numeric { .. }
                | Self::UnboundedNumeric
        )
    }

    /// Whether it is `oid` or one of its aliases that print as names.
    #[must_use]
    pub const fn is_oid(self) -> bool {
        matches!(
            self,
            Self::Oid
                | Self::Regclass
                | Self::Regtype
                | Self::Regproc
                | Self::Regnamespace
                | Self::Regrole
                | Self::Xid
        )
    }

    /// Whether it is a string type: `text`, `varchar(n)`, `char(n)`, `name`.
    #[must_use]
    pub const fn is_string(self) -> bool {
        matches!(self, Self::Text | Self::Varchar(_) | Self::Char(_) | Self::Name)
    }

    /// The name without the modifier, as error messages give it: `character varying`.
    #[must_use]
    pub fn display_name(self) -> String {
        match self {
            Self::Array(element) => format!("{}[]", element.facts().display),
            other => other.base().facts().display.to_owned(),
        }
    }
}

impl fmt::Display for PgType {
    /// As PostgreSQL's `format_type(oid, typmod)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.base().facts().display;
        match self {
            Self::Array(_) => write!(f, "{name}[]"),
            Self::Varchar(Some(length)) | Self::Char(Some(length)) => write!(f, "{name}({length})"),
            // What `format_type` calls a bpchar without a modifier, which isn't `character(1)`.
            Self::Char(None) => f.write_str("bpchar"),
            Self::Numeric { precision, scale } => write!(f, "{name}({precision},{scale})"),
            _ => f.write_str(name),
        }
    }
}
