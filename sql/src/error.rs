//! The error of the SQL layer: what a PostgreSQL client is told.
//!
//! The fields are those of PostgreSQL's `ErrorResponse`. Clients act on the five-character code
//! (`SQLSTATE`), so it is chosen where the error arises, from the constants of [`SqlState`], never
//! guessed from a message afterwards. Texts follow PostgreSQL's own wording wherever PostgreSQL
//! has the same error: primary message without a full stop, detail and hint as sentences.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A PostgreSQL error code, e.g. `23505`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SqlState(&'static str);

macro_rules! sqlstates {
    ($($name:ident = $code:literal;)*) => {
        impl SqlState {
            $(#[doc = concat!("`", $code, "`")] pub const $name: Self = Self($code);)*

            /// Every code that this server uses.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

sqlstates! {
    SUCCESSFUL_COMPLETION = "00000";
    WARNING = "01000";
    TRANSACTION_RESOLUTION_UNKNOWN = "08007";
    PROTOCOL_VIOLATION = "08P01";
    FEATURE_NOT_SUPPORTED = "0A000";
    CARDINALITY_VIOLATION = "21000";
    STRING_DATA_RIGHT_TRUNCATION = "22001";
    NUMERIC_VALUE_OUT_OF_RANGE = "22003";
    NULL_VALUE_NOT_ALLOWED = "22004";
    INVALID_DATETIME_FORMAT = "22007";
    DATETIME_FIELD_OVERFLOW = "22008";
    INVALID_TIME_ZONE_DISPLACEMENT = "22009";
    SUBSTRING_ERROR = "22011";
    DIVISION_BY_ZERO = "22012";
    INTERVAL_FIELD_OVERFLOW = "22015";
    CHARACTER_NOT_IN_REPERTOIRE = "22021";
    INVALID_PARAMETER_VALUE = "22023";
    ARRAY_SUBSCRIPT_ERROR = "2202E";
    INVALID_TEXT_REPRESENTATION = "22P02";
    INVALID_BINARY_REPRESENTATION = "22P03";
    BAD_COPY_FILE_FORMAT = "22P04";
    UNTRANSLATABLE_CHARACTER = "22P05";
    NOT_NULL_VIOLATION = "23502";
    FOREIGN_KEY_VIOLATION = "23503";
    UNIQUE_VIOLATION = "23505";
    CHECK_VIOLATION = "23514";
    INVALID_CURSOR_STATE = "24000";
    INVALID_TRANSACTION_STATE = "25000";
    ACTIVE_SQL_TRANSACTION = "25001";
    READ_ONLY_SQL_TRANSACTION = "25006";
    NO_ACTIVE_SQL_TRANSACTION = "25P01";
    IN_FAILED_SQL_TRANSACTION = "25P02";
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = "25P03";
    INVALID_SQL_STATEMENT_NAME = "26000";
    INVALID_AUTHORIZATION_SPECIFICATION = "28000";
    INVALID_PASSWORD = "28P01";
    DEPENDENT_OBJECTS_STILL_EXIST = "2BP01";
    INVALID_CURSOR_NAME = "34000";
    INVALID_SAVEPOINT_SPECIFICATION = "3B001";
    INVALID_CATALOG_NAME = "3D000";
    INVALID_SCHEMA_NAME = "3F000";
    SERIALIZATION_FAILURE = "40001";
    STATEMENT_COMPLETION_UNKNOWN = "40003";
    DEADLOCK_DETECTED = "40P01";
    SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION = "42000";
    INSUFFICIENT_PRIVILEGE = "42501";
    SYNTAX_ERROR = "42601";
    INVALID_NAME = "42602";
    INVALID_COLUMN_DEFINITION = "42611";
    NAME_TOO_LONG = "42622";
    DUPLICATE_COLUMN = "42701";
    AMBIGUOUS_COLUMN = "42702";
    UNDEFINED_COLUMN = "42703";
    UNDEFINED_OBJECT = "42704";
    DUPLICATE_OBJECT = "42710";
    DUPLICATE_ALIAS = "42712";
    AMBIGUOUS_FUNCTION = "42725";
    GROUPING_ERROR = "42803";
    DATATYPE_MISMATCH = "42804";
    WRONG_OBJECT_TYPE = "42809";
    INVALID_FOREIGN_KEY = "42830";
    CANNOT_COERCE = "42846";
    UNDEFINED_FUNCTION = "42883";
    RESERVED_NAME = "42939";
    UNDEFINED_TABLE = "42P01";
    UNDEFINED_PARAMETER = "42P02";
    DUPLICATE_CURSOR = "42P03";
    DUPLICATE_DATABASE = "42P04";
    DUPLICATE_PREPARED_STATEMENT = "42P05";
    DUPLICATE_SCHEMA = "42P06";
    DUPLICATE_TABLE = "42P07";
    INVALID_COLUMN_REFERENCE = "42P10";
    INVALID_TABLE_DEFINITION = "42P16";
    INDETERMINATE_DATATYPE = "42P18";
    INSUFFICIENT_RESOURCES = "53000";
    DISK_FULL = "53100";
    OUT_OF_MEMORY = "53200";
    TOO_MANY_CONNECTIONS = "53300";
    PROGRAM_LIMIT_EXCEEDED = "54000";
    STATEMENT_TOO_COMPLEX = "54001";
    TOO_MANY_COLUMNS = "54011";
    OBJECT_NOT_IN_PREREQUISITE_STATE = "55000";
    OBJECT_IN_USE = "55006";
    CANT_CHANGE_RUNTIME_PARAM = "55P02";
    LOCK_NOT_AVAILABLE = "55P03";
    OPERATOR_INTERVENTION = "57000";
    QUERY_CANCELED = "57014";
    ADMIN_SHUTDOWN = "57P01";
    CANNOT_CONNECT_NOW = "57P03";
    SYSTEM_ERROR = "58000";
    IO_ERROR = "58030";
    SNAPSHOT_TOO_OLD = "72000";
    INTERNAL_ERROR = "XX000";
    DATA_CORRUPTED = "XX001";
}

impl SqlState {
    /// The five characters.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.0
    }

    /// The constant for `code`, if this server uses it.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.0 == code)
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for SqlState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for SqlState {
    /// A code that this build doesn't know (a newer peer sent it) becomes an internal error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = Cow::<str>::deserialize(deserializer)?;
        Ok(Self::from_code(&code).unwrap_or(Self::INTERNAL_ERROR))
    }
}

/// What is told of an error. Reached through [`SqlError`], which dereferences to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorFields {
    /// The code that clients act on.
    pub sqlstate: SqlState,
    /// One line, lower case, without a full stop.
    pub message: String,
    /// More about the cause, in sentences.
    pub detail: Option<String>,
    /// What the user could do.
    pub hint: Option<String>,
    /// Where in the statement, in characters from 1.
    pub position: Option<usize>,
    /// What was being done, e.g. `COPY t, line 3, column a`.
    pub context: Option<String>,
    /// The schema of the table concerned.
    pub schema: Option<String>,
    /// The table concerned.
    pub table: Option<String>,
    /// The column concerned.
    pub column: Option<String>,
    /// The constraint violated.
    pub constraint: Option<String>,
}

/// An error of the SQL layer, in one pointer so that `Result`s stay small.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlError(Box<ErrorFields>);

impl SqlError {
    /// An error with a code and a primary message.
    pub fn new(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorFields {
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            context: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
        }))
    }

    /// `0A000`: PostgreSQL could, this server can't.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(SqlState::FEATURE_NOT_SUPPORTED, message)
    }

    /// `42601`.
    pub fn syntax(message: impl Into<String>) -> Self {
        Self::new(SqlState::SYNTAX_ERROR, message)
    }

    /// `XX000`: a defect of this server, not of the statement.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::INTERNAL_ERROR, message)
    }

    /// `XX001`: stored bytes that don't decode.
    pub fn corrupted(message: impl Into<String>) -> Self {
        Self::new(SqlState::DATA_CORRUPTED, message)
    }

    /// `42704` for a type that doesn't exist.
    #[must_use]
    pub fn undefined_type(name: &str) -> Self {
        Self::new(SqlState::UNDEFINED_OBJECT, format!("type \"{name}\" does not exist"))
    }

    /// `23502` with its fields.
    #[must_use]
    pub fn not_null(schema: &str, table: &str, column: &str) -> Self {
        let message = format!(
            "null value in column \"{column}\" of relation \"{table}\" violates not-null constraint"
        );
        Self::new(SqlState::NOT_NULL_VIOLATION, message).schema(schema).table(table).column(column)
    }

    /// `23505` with its fields; the detail (`Key (a)=(1) already exists.`) is the caller's.
    #[must_use]
    pub fn unique(schema: &str, table: &str, constraint: &str) -> Self {
        let message = format!("duplicate key value violates unique constraint \"{constraint}\"");
        Self::new(SqlState::UNIQUE_VIOLATION, message)
            .schema(schema)
            .table(table)
            .constraint(constraint)
    }

    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the position in the statement, in characters from 1.
    #[must_use]
    pub fn position(mut self, position: usize) -> Self {
        self.position = Some(position);
        self
    }

    /// Adds what was being done.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Names the schema.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Names the table.
    #[must_use]
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = Some(table.into());
        self
    }

    /// Names the column.
    #[must_use]
    pub fn column(mut self, column: impl Into<String>) -> Self {
        self.column = Some(column.into());
        self
    }

    /// Names the constraint.
    #[must_use]
    pub fn constraint(mut self, constraint: impl Into<String>) -> Self {
        self.constraint = Some(constraint.into());
        self
    }
}

impl Deref for SqlError {
    type Target = ErrorFields;

    fn deref(&self) -> &ErrorFields {
        &self.0
    }
}

impl DerefMut for SqlError {
    fn deref_mut(&mut self) -> &mut ErrorFields {
        &mut self.0
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for SqlError {
    /// Only what is set: test failures and logs show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sqlstate, self.message)?;
        let fields = [
            ("DETAIL", &self.detail),
            ("HINT", &self.hint),
            ("CONTEXT", &self.context),
            ("schema", &self.schema),
            ("table", &self.table),
            ("column", &self.column),
            ("constraint", &self.constraint),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                write!(f, " | {name}: {value}")?;
            }
        }
        match self.position {
            Some(position) => write!(f, " | position {position}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SqlError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_five_characters_sorted_and_found_again() {
        for state in SqlState::ALL {
            assert_eq!(state.code().len(), 5, "{state}");
            assert!(
                state.code().bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()),
                "{state}"
            );
            assert_eq!(SqlState::from_code(state.code()), Some(*state));
        }
        assert!(SqlState::ALL.is_sorted());
        assert_eq!(SqlState::from_code("99999"), None);
    }

    #[test]
    fn an_error_keeps_its_fields_on_the_way_between_nodes() {
        let error = SqlError::unique("public", "t", "t_pkey").detail("Key (a)=(1) already exists.");
        let bytes = postcard::to_stdvec(&error).expect("serializes");
        let back: SqlError = postcard::from_bytes(&bytes).expect("deserializes");
        assert_eq!(back, error);
        assert_eq!(back.sqlstate, SqlState::UNIQUE_VIOLATION);
        assert_eq!(back.constraint.as_deref(), Some("t_pkey"));
        assert!(size_of::<SqlError>() <= size_of::<usize>());
    }

    #[test]
    fn a_code_of_a_newer_peer_becomes_an_internal_error() {
        let state: SqlState = serde_json::from_str("\"12345\"").expect("deserializes");
        assert_eq!(state, SqlState::INTERNAL_ERROR);
    }
}
