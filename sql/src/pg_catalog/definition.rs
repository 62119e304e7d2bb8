//! What PostgreSQL's catalogs look like: their names, object ids, columns and types, read once from
//! the text files in `data/`, which were made from a PostgreSQL 15.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::cell::Cell;
use crate::types::{BaseType, PgType};

/// A relation of a system catalog.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) schema: &'static str,
    pub(super) name: &'static str,
    pub(super) oid: u32,
    /// `r` a table, `v` a view: what `pg_class.relkind` says.
    pub(super) kind: char,
    pub(super) columns: Vec<Column>,
    pub(super) arrow: SchemaRef,
}

/// A column of a relation of a system catalog.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// As in `pg_type.typname`; of an array, the element's with `[]` behind it.
    pub(super) type_name: &'static str,
    pub(super) not_null: bool,
}

/// All relations of one schema, by name.
type Relations = BTreeMap<&'static str, Definition>;

static PG_CATALOG: LazyLock<Relations> =
    LazyLock::new(|| parse("pg_catalog", include_str!("data/pg_catalog.txt")));
static INFORMATION_SCHEMA: LazyLock<Relations> =
    LazyLock::new(|| parse("information_schema", include_str!("data/information_schema.txt")));

/// The relations of `pg_catalog` or `information_schema`.
pub(super) fn relations(schema: &str) -> Option<&'static Relations> {
    match schema {
        "pg_catalog" => Some(&PG_CATALOG),
        "information_schema" => Some(&INFORMATION_SCHEMA),
        _ => None,
    }
}

/// Every relation of both schemas.
pub(super) fn all() -> impl Iterator<Item = &'static Definition> {
    PG_CATALOG.values().chain(INFORMATION_SCHEMA.values())
}

impl Definition {
    /// A row with these values; the rest is NULL, or nothing (0, false, empty) where NULL may not be.
    pub(super) fn row<const N: usize>(&self, values: [(&str, Cell); N]) -> Vec<Cell> {
        let mut row: Vec<Cell> = self.columns.iter().map(Column::nothing).collect();
        self.set(&mut row, values);
        row
    }

    /// Puts these values into a row.
    pub(super) fn set<const N: usize>(&self, row: &mut [Cell], values: [(&str, Cell); N]) {
        for (name, value) in values {
            let position = self.columns.iter().position(|column| column.name == name);
            debug_assert!(position.is_some(), "{} has no column {name}", self.name);
            if let Some(position) = position {
                row[position] = value;
            }
        }
    }
}

impl Column {
    /// Nullable whatever PostgreSQL says: nothing is gained from a promise that outer joins break.
    fn field(&self) -> Field {
        pg_type(self.type_name).field(self.name, true)
    }

    fn nothing(&self) -> Cell {
        if !self.not_null {
            return Cell::Null;
        }
        match pg_type(self.type_name).arrow_type() {
            DataType::Boolean => Cell::Bool(false),
            DataType::List(_) => Cell::List(Vec::new()),
            DataType::Utf8 => Cell::from(""),
            _ => Cell::Int(0),
        }
    }
}

fn parse(schema: &'static str, text: &'static str) -> Relations {
    let mut relations = Relations::new();
    let mut lines = text.lines().filter(|line| !line.starts_with('#')).peekable();
    while let Some(header) = lines.next() {
        let mut words = header.split(' ');
        let (Some(name), Some(oid), Some(kind)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let mut columns = Vec::new();
        let mut name_of_next = None;
        while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
            for word in line.split([' ', ',']).filter(|word| !word.is_empty()) {
                let Some(name) = name_of_next.take() else {
                    name_of_next = Some(word);
                    continue;
                };
                let type_name = word.trim_end_matches('!');
                columns.push(Column { name, type_name, not_null: type_name.len() < word.len() });
            }
        }
        let fields: Vec<Field> = columns.iter().map(Column::field).collect();
        let definition = Definition {
            schema,
            name,
            oid: oid.parse().unwrap_or_default(),
            kind: kind.chars().next().unwrap_or('r'),
            columns,
            arrow: Arc::new(Schema::new(fields)),
        };
        relations.insert(name, definition);
    }
    relations
}

/// The type of that name in `pg_type`; of an array, the element's name with `[]` behind it.
pub(super) fn pg_type(type_name: &str) -> PgType {
    match type_name {
        "char" => PgType::InternalChar,
        "anyarray" => PgType::Array(BaseType::Text),
        name => PgType::from_text(name).unwrap_or(PgType::Text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_files_are_read_whole() {
        let class = &relations("pg_catalog").unwrap()["pg_class"];
        assert_eq!((class.oid, class.kind, class.columns.len()), (1259, 'r', 33));
        assert_eq!(class.columns[32].name, "relpartbound");
        assert!(class.columns[0].not_null && !class.columns[32].not_null);
        let index = &relations("pg_catalog").unwrap()["pg_index"];
        let keys = index.arrow.field_with_name("indkey").unwrap();
        assert_eq!(PgType::of_field(keys), PgType::Int2Vector);
        assert_eq!(relations("information_schema").unwrap()["columns"].columns.len(), 44);
        assert!(all().all(|definition| definition.oid != 0 && !definition.columns.is_empty()));
    }

    #[test]
    fn a_row_is_nothing_where_no_value_is_given() {
        let definition = &relations("pg_catalog").unwrap()["pg_namespace"];
        let row = definition.row([("nspname", Cell::from("public"))]);
        assert_eq!(row, [Cell::Int(0), Cell::from("public"), Cell::Int(0), Cell::Null]);
    }
}
