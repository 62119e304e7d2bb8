//! From what a statement calls a type to [`PgType`], with PostgreSQL's synonyms.

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CharLengthUnits, CharacterLength, DataType, ExactNumberInfo, ObjectName,
    ObjectNamePart, TimezoneInfo,
};

use super::pg_type::{BaseType, MAX_NUMERIC_PRECISION, PgType};
use crate::error::{SqlError, SqlState};

/// The longest `varchar(n)` and `char(n)`, as in PostgreSQL.
const MAX_LENGTH: i64 = 10 * 1024 * 1024;
/// The greatest precision that PostgreSQL has; more than [`MAX_NUMERIC_PRECISION`] is unsupported.
const MAX_POSTGRES_PRECISION: i64 = 1000;
/// The digits that a time or timestamp keeps of its seconds.
const TIME_PRECISION: i64 = 6;

/// Types that PostgreSQL has and this server doesn't.
const UNSUPPORTED: &[&str] = &[
    "bit",
    "bit varying",
    "box",
    "cidr",
    "cid",
    "circle",
    "daterange",
    "inet",
    "int4range",
    "int8range",
    "json",
    "jsonpath",
    "line",
    "lseg",
    "macaddr",
    "macaddr8",
    "money",
    "numrange",
    "path",
    "pg_lsn",
    "point",
    "polygon",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regoper",
    "regoperator",
    "regprocedure",
    "tid",
    "time with time zone",
    "timetz",
    "tsquery",
    "tsrange",
    "tstzrange",
    "tsvector",
    "varbit",
    "xid8",
    "xml",
];

impl PgType {
    /// The type that a parsed statement names.
    ///
    /// # Errors
    /// `42704` for a type that doesn't exist, `0A000` for one that PostgreSQL has and this server
    /// doesn't, `22023` for a modifier out of range.
    pub fn from_sql(data_type: &DataType) -> Result<Self, SqlError> {
        match data_type {
            DataType::Array(element) => Self::array_from_sql(element),
            DataType::Custom(name, modifiers) => Self::custom(name, modifiers),
            other => {
                let (name, modifiers) = name_and_modifiers(other)?;
                Self::from_name(&name, &modifiers)
            }
        }
    }

    /// The type of a column that a parsed statement declares: [`Self::from_sql`], less the types
    /// that no table stores.
    ///
    /// # Errors
    /// As [`Self::from_sql`], and `0A000` for a bare `numeric`, arrays and the catalogs' types.
    pub fn column_from_sql(data_type: &DataType) -> Result<Self, SqlError> {
        let pg_type = Self::from_sql(data_type)?;
        if pg_type == Self::UnboundedNumeric {
            return Err(SqlError::unsupported("a numeric column needs a precision")
                .detail("Numbers of unlimited precision are not stored.")
                .hint("Give it one, of at most 38 digits: numeric(18,2)."));
        }
        if pg_type == Self::Char(None) {
            return Err(SqlError::unsupported("a bpchar column needs a length")
                .hint("Use character(n) or text."));
        }
        if pg_type.is_storable() {
            Ok(pg_type)
        } else {
            Err(SqlError::unsupported(format!("columns of type {pg_type} are not supported")))
        }
    }

    /// Whether a table's column may have the type.
    #[must_use]
    pub const fn is_storable(self) -> bool {
        matches!(
            self,
            Self::Bool
                | Self::Int2
                | Self::Int4
                | Self::Int8
                | Self::Float4
                | Self::Float8
                | Self::Numeric { .. }
                | Self::Text
                | Self::Varchar(_)
                | Self::Char(Some(_))
                | Self::Bytea
                | Self::Date
                | Self::Time
                | Self::Timestamp
                | Self::Timestamptz
                | Self::Interval
                | Self::Uuid
                | Self::Jsonb
        )
    }

    /// The type that a text names, e.g. `character varying(3)`, `int4`, `text[]`, `pg_catalog.oid`.
    ///
    /// # Errors
    /// As [`Self::from_sql`].
    pub fn from_text(text: &str) -> Result<Self, SqlError> {
        let text = text.trim();
        if let Some(element) = text.strip_suffix("[]") {
            return Ok(Self::Array(Self::from_text(element)?.array_element(text)?));
        }
        let text = text.strip_prefix("pg_catalog.").unwrap_or(text);
        if text == "\"char\"" {
            return Ok(Self::InternalChar);
        }
        let undefined = || SqlError::undefined_type(text);
        let (name, modifiers) = match text.split_once('(') {
            None => (text.to_owned(), Vec::new()),
            Some((before, rest)) => {
                let (inside, after) = rest.split_once(')').ok_or_else(undefined)?;
                let modifiers = inside
                    .split(',')
                    .map(|part| part.trim().parse().map_err(|_| undefined()))
                    .collect::<Result<_, _>>()?;
                (format!("{before} {after}"), modifiers)
            }
        };
        let unquoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        let name = unquoted.map_or_else(|| name.to_ascii_lowercase(), str::to_owned);
        let words: Vec<&str> = name.split_whitespace().collect();
        Self::from_name(&words.join(" "), &modifiers)
    }

    fn array_from_sql(element: &ArrayElemTypeDef) -> Result<Self, SqlError> {
        match element {
            ArrayElemTypeDef::SquareBracket(element, _)
            | ArrayElemTypeDef::AngleBracket(element)
            | ArrayElemTypeDef::Parenthesis(element) => {
                // PostgreSQL has no arrays of arrays: every further [] adds a dimension.
                let element = Self::from_sql(element)?;
                Ok(Self::Array(element.array_element(&format!("{element}[]"))?))
            }
            ArrayElemTypeDef::None => Err(SqlError::undefined_type("array")),
        }
    }

    fn array_element(self, array_name: &str) -> Result<BaseType, SqlError> {
        let element = self.base();
        if element.facts().array_oid == 0 {
            return Err(SqlError::undefined_type(array_name));
        }
        Ok(element)
    }

    fn custom(name: &ObjectName, modifiers: &[String]) -> Result<Self, SqlError> {
        let undefined = || SqlError::undefined_type(&name.to_string());
        let identifiers: Vec<_> = name
            .0
            .iter()
            .map(|part| match part {
                ObjectNamePart::Identifier(identifier) => Ok(identifier),
                ObjectNamePart::Function(_) => Err(undefined()),
            })
            .collect::<Result<_, _>>()?;
        let last = match identifiers.as_slice() {
            [last] => last,
            [schema, last] if schema.value.eq_ignore_ascii_case("pg_catalog") => last,
            _ => return Err(undefined()),
        };
        if last.value == "char" && last.quote_style.is_some() {
            return Ok(Self::InternalChar);
        }
        let modifiers = modifiers
            .iter()
            .map(|modifier| modifier.trim().parse().map_err(|_| undefined()))
            .collect::<Result<Vec<i64>, _>>()?;
        let name = match last.quote_style {
            Some(_) => last.value.clone(),
            None => last.value.to_ascii_lowercase(),
        };
        Self::from_name(&name, &modifiers)
    }

    /// `name` in lower case with single blanks, as PostgreSQL or the standard spells it.
    fn from_name(name: &str, modifiers: &[i64]) -> Result<Self, SqlError> {
        let pg_type = match name {
            "numeric" | "decimal" | "dec" => return numeric(modifiers),
            "float" => return float(modifiers),
            "varchar" | "character varying" | "char varying" => {
                return Ok(Self::Varchar(length("varchar", modifiers)?));
            }
            "char" | "character" => {
                return Ok(Self::Char(Some(length("char", modifiers)?.unwrap_or(1))));
            }
            "bpchar" => return Ok(Self::Char(length("char", modifiers)?)),
            "time" | "time without time zone" => return timed(Self::Time, modifiers),
            "timestamp" | "timestamp without time zone" => {
                return timed(Self::Timestamp, modifiers);
            }
            "timestamptz" | "timestamp with time zone" => {
                return timed(Self::Timestamptz, modifiers);
            }
            "interval" => return timed(Self::Interval, modifiers),
            "bool" | "boolean" => Self::Bool,
            "int2" | "smallint" => Self::Int2,
            "int" | "int4" | "integer" => Self::Int4,
            "int8" | "bigint" => Self::Int8,
            "float4" | "real" => Self::Float4,
            "float8" | "double precision" => Self::Float8,
            "serial" | "serial4" | "bigserial" | "serial8" | "smallserial" | "serial2" => {
                return Err(SqlError::unsupported(format!("type {name} is not supported"))
                    .detail("A sequence would send every insert through one place.")
                    .hint("Use bigint or uuid with keys made by the client."));
            }
            other => {
                let base = BaseType::ALL
                    .into_iter()
                    .find(|base| base.facts().name == other && *base != BaseType::InternalChar);
                match base {
                    Some(base) => base.plain(),
                    None => return Err(unknown(other)),
                }
            }
        };
        match modifiers {
            [] => Ok(pg_type),
            _ => Err(SqlError::syntax(format!("type modifier is not allowed for type \"{name}\""))),
        }
    }
}

fn unknown(name: &str) -> SqlError {
    if let Some(element) = name.strip_prefix('_') {
        // The catalog's names of array types.
        let found = BaseType::ALL.into_iter().find(|base| base.facts().name == element);
        if found.is_some() {
            return SqlError::unsupported(format!("type {name} must be written {element}[]"));
        }
    }
    if UNSUPPORTED.contains(&name) {
        let error = SqlError::unsupported(format!("type {name} is not supported"));
        return match name {
            "json" => error.hint("Use jsonb, or text to keep the input as it was written."),
            "timetz" | "time with time zone" => error.hint("Use timestamptz."),
            _ => error,
        };
    }
    SqlError::undefined_type(name)
}

fn invalid(message: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn numeric(modifiers: &[i64]) -> Result<PgType, SqlError> {
    let (precision, scale) = match *modifiers {
        [] => return Ok(PgType::UnboundedNumeric),
        [precision] => (precision, 0),
        [precision, scale] => (precision, scale),
        _ => return Err(invalid("invalid NUMERIC type modifier")),
    };
    if !(1..=MAX_POSTGRES_PRECISION).contains(&precision) {
        return Err(invalid(format!("NUMERIC precision {precision} must be between 1 and 1000")));
    }
    if !(-MAX_POSTGRES_PRECISION..=MAX_POSTGRES_PRECISION).contains(&scale) {
        return Err(invalid(format!("NUMERIC scale {scale} must be between -1000 and 1000")));
    }
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(p @ 1..=MAX_NUMERIC_PRECISION), Ok(s)) if s >= 0 && s.unsigned_abs() <= p => {
            Ok(PgType::Numeric { precision: p, scale: s })
        }
        (Ok(1..=MAX_NUMERIC_PRECISION), _) => Err(SqlError::unsupported(format!(
            "numeric scale {scale} must be between 0 and the precision {precision}"
        ))),
        _ => Err(SqlError::unsupported(format!(
            "numeric precision {precision} is greater than {MAX_NUMERIC_PRECISION}"
        ))),
    }
}

fn float(modifiers: &[i64]) -> Result<PgType, SqlError> {
    match modifiers {
        [] | [25..=53] => Ok(PgType::Float8),
        [1..=24] => Ok(PgType::Float4),
        [i64::MIN..=0] => Err(invalid("precision for type float must be at least 1 bit")),
        [_] => Err(invalid("precision for type float must be less than 54 bits")),
        _ => Err(SqlError::syntax("syntax error in the precision of type float")),
    }
}

fn length(name: &str, modifiers: &[i64]) -> Result<Option<u32>, SqlError> {
    match *modifiers {
        [] => Ok(None),
        [length] if length < 1 => {
            Err(invalid(format!("length for type {name} must be at least 1")))
        }
        [length] if length > MAX_LENGTH => {
            Err(invalid(format!("length for type {name} cannot exceed {MAX_LENGTH}")))
        }
        [length] => Ok(u32::try_from(length).ok()),
        _ => Err(invalid("invalid type modifier")),
    }
}

fn timed(pg_type: PgType, modifiers: &[i64]) -> Result<PgType, SqlError> {
    match modifiers {
        [] | [TIME_PRECISION] => Ok(pg_type),
        _ => Err(SqlError::unsupported(format!("a precision of {pg_type} is not supported"))
            .hint("Leave it out: seconds keep six digits.")),
    }
}

fn name_and_modifiers(data_type: &DataType) -> Result<(String, Vec<i64>), SqlError> {
    use DataType as D;
    let (name, modifiers) = match data_type {
        D::Character(n) | D::Char(n) => ("char", characters(n.as_ref())?),
        D::CharacterVarying(n) | D::CharVarying(n) | D::Varchar(n) => {
            ("varchar", characters(n.as_ref())?)
        }
        D::Numeric(n) | D::Decimal(n) | D::Dec(n) => ("numeric", exact(n)),
        D::Float(n) => ("float", exact(n)),
        D::Time(p, zone) | D::Timestamp(p, zone) => {
            let zoned = matches!(zone, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz);
            let name = match (matches!(data_type, D::Time(..)), zoned) {
                (true, true) => "timetz",
                (true, false) => "time",
                (false, true) => "timestamptz",
                (false, false) => "timestamp",
            };
            (name, width(*p))
        }
        D::Interval { fields: None, precision } => ("interval", width(*precision)),
        D::Interval { fields: Some(fields), .. } => {
            return Err(SqlError::unsupported(format!(
                "interval fields ({fields}) are not supported"
            )));
        }
        D::SmallInt(n) | D::Int2(n) => ("int2", width(*n)),
        D::Int(n) | D::Integer(n) | D::Int4(n) => ("int4", width(*n)),
        D::BigInt(n) | D::Int8(n) => ("int8", width(*n)),
        D::Real | D::Float4 => ("float4", vec![]),
        D::Float8 | D::DoublePrecision => ("float8", vec![]),
        D::Bool | D::Boolean => ("bool", vec![]),
        D::Text => ("text", vec![]),
        D::Bytea => ("bytea", vec![]),
        D::Date => ("date", vec![]),
        D::Uuid => ("uuid", vec![]),
        D::JSON => ("json", vec![]),
        D::JSONB => ("jsonb", vec![]),
        D::Regclass => ("regclass", vec![]),
        D::Bit(_) => ("bit", vec![]),
        D::BitVarying(_) | D::VarBit(_) => ("varbit", vec![]),
        other => return Err(SqlError::undefined_type(&other.to_string().to_ascii_lowercase())),
    };
    Ok((name.to_owned(), modifiers))
}

fn width(n: Option<u64>) -> Vec<i64> {
    n.map(|n| i64::try_from(n).unwrap_or(i64::MAX)).into_iter().collect()
}

fn exact(n: &ExactNumberInfo) -> Vec<i64> {
    match *n {
        ExactNumberInfo::None => vec![],
        ExactNumberInfo::Precision(p) => width(Some(p)),
        ExactNumberInfo::PrecisionAndScale(p, s) => {
            vec![i64::try_from(p).unwrap_or(i64::MAX), s]
        }
    }
}

fn characters(n: Option<&CharacterLength>) -> Result<Vec<i64>, SqlError> {
    match n {
        None => Ok(vec![]),
        Some(CharacterLength::IntegerLength {
            length,
            unit: None | Some(CharLengthUnits::Characters),
        }) => Ok(width(Some(*length))),
        Some(other) => Err(SqlError::syntax(format!("syntax error in the length {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    fn parsed(sql: &str) -> Result<PgType, SqlError> {
        let dialect = PostgreSqlDialect {};
        let mut parser = Parser::new(&dialect).try_with_sql(sql).expect("tokens");
        PgType::from_sql(&parser.parse_data_type().expect("a data type"))
    }

    #[test]
    fn synonyms_are_postgresqls() {
        // Left as written; right as `format_type` says in PostgreSQL 15.
        let synonyms = [
            ("bool", "boolean"),
            ("boolean", "boolean"),
            ("int2", "smallint"),
            ("smallint", "smallint"),
            ("int", "integer"),
            ("int4", "integer"),
            ("INTEGER", "integer"),
            ("int8", "bigint"),
            ("bigint", "bigint"),
            ("real", "real"),
            ("float4", "real"),
            ("float", "double precision"),
            ("float(24)", "real"),
            ("float(25)", "double precision"),
            ("float8", "double precision"),
            ("double precision", "double precision"),
            ("decimal(10,2)", "numeric(10,2)"),
            ("dec(10)", "numeric(10,0)"),
            ("numeric", "numeric"),
            ("text", "text"),
            ("varchar", "character varying"),
            ("varchar(3)", "character varying(3)"),
            ("character varying(3)", "character varying(3)"),
            ("char varying(3)", "character varying(3)"),
            ("char", "character(1)"),
            ("character(5)", "character(5)"),
            ("bpchar", "bpchar"),
            ("bytea", "bytea"),
            ("date", "date"),
            ("time", "time without time zone"),
            ("time without time zone", "time without time zone"),
            ("timestamp", "timestamp without time zone"),
            ("timestamp(6)", "timestamp without time zone"),
            ("timestamp with time zone", "timestamp with time zone"),
            ("timestamptz", "timestamp with time zone"),
            ("interval", "interval"),
            ("uuid", "uuid"),
            ("jsonb", "jsonb"),
            ("name", "name"),
            ("oid", "oid"),
            ("\"char\"", "\"char\""),
            ("pg_catalog.int4", "integer"),
            ("regclass", "regclass"),
            ("text[]", "text[]"),
            ("varchar(3)[]", "character varying[]"),
            ("int[][]", "integer[]"),
        ];
        for (written, formatted) in synonyms {
            assert_eq!(parsed(written).expect(written).to_string(), formatted, "{written}");
        }
    }

    #[test]
    fn what_is_not_a_type_here_is_refused_with_postgresqls_code() {
        let refused = [
            ("serial", "0A000"),
            ("bigserial", "0A000"),
            ("json", "0A000"),
            ("time with time zone", "0A000"),
            ("timetz", "0A000"),
            ("timestamp(3)", "0A000"),
            ("numeric(39)", "0A000"),
            ("numeric(3,-1)", "0A000"),
            ("numeric(3,4)", "0A000"),
            ("numeric(0)", "22023"),
            ("numeric(1001)", "22023"),
            ("float(0)", "22023"),
            ("float(54)", "22023"),
            ("varchar(0)", "22023"),
            ("varchar(10485761)", "22023"),
            ("interval year to month", "0A000"),
            ("money", "0A000"),
            ("nonsense", "42704"),
            ("myschema.int4", "42704"),
            ("tinyint", "42704"),
            ("datetime", "42704"),
        ];
        for (written, code) in refused {
            let error = parsed(written).expect_err(written);
            assert_eq!(error.sqlstate.code(), code, "{written}: {error:?}");
        }
    }

    #[test]
    fn a_displayed_type_reads_back() {
        let mut types: Vec<PgType> = BaseType::ALL.map(BaseType::plain).to_vec();
        types.extend([
            PgType::Varchar(Some(3)),
            PgType::Char(Some(1)),
            PgType::Char(Some(10_485_760)),
            PgType::Numeric { precision: 38, scale: 38 },
            PgType::Numeric { precision: 1, scale: 0 },
        ]);
        types.extend(
            BaseType::ALL.into_iter().filter(|base| base.facts().array_oid != 0).map(PgType::Array),
        );
        for pg_type in types {
            assert_eq!(PgType::from_text(&pg_type.to_string()), Ok(pg_type));
            assert_eq!(PgType::from_oid(pg_type.oid(), pg_type.typmod()), Some(pg_type));
        }
    }

    #[test]
    fn columns_have_types_that_are_stored() {
        let column = |sql: &str| {
            let dialect = PostgreSqlDialect {};
            let mut parser = Parser::new(&dialect).try_with_sql(sql).expect("tokens");
            PgType::column_from_sql(&parser.parse_data_type().expect("a data type"))
        };
        assert_eq!(column("numeric(5,2)"), Ok(PgType::Numeric { precision: 5, scale: 2 }));
        assert_eq!(column("char"), Ok(PgType::Char(Some(1))));
        for refused in ["numeric", "int[]", "oid", "bpchar", "regclass"] {
            let error = column(refused).expect_err(refused);
            assert_eq!(error.sqlstate, SqlState::FEATURE_NOT_SUPPORTED, "{refused}");
        }
    }
}
