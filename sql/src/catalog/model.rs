//! What the catalog knows of a table. Immutable: a change makes a new [`TableInfo`] with a greater
//! schema version, in a new [`CatalogSnapshot`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::PgType;

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColumnInfo {
    /// Unique in its table and never used again; names the column in stored rows. From 1.
    pub id: u32,
    /// As written, after PostgreSQL's folding to lower case.
    pub name: String,
    /// Its SQL type.
    pub pg_type: PgType,
    /// Whether NULL may be stored. False for every column of the primary key.
    pub nullable: bool,
    /// The default expression as SQL text, evaluated at each insert.
    pub default: Option<String>,
}

/// What becomes of the rows below one that is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDelete {
    /// While there are any, the row above them can't be deleted.
    #[default]
    NoAction,
    /// They are deleted with it.
    Cascade,
}

/// How a table is interleaved in another: its primary key begins with the other's, column by column
/// of the same type, and its rows lie below the other's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interleaved {
    /// The table above it.
    pub parent: u64,
    /// What deleting a row of the parent does to the rows below.
    pub on_delete: OnDelete,
    /// How many columns the parent's primary key has.
    pub parent_key: usize,
    /// How many columns the root's primary key has.
    pub root_key: usize,
}

/// A table, as one version of the schema describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableInfo {
    /// Unique in the cluster and never used again; the table's own id in keys. Below 100: a table
    /// of the system tablet.
    pub id: u64,
    /// The schema that it is in (`public`, `meridian`).
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Grows with each change of the schema, and when a table is interleaved somewhere below this
    /// one; a write carries it and is refused if it is old. From 1.
    pub version: u64,
    /// The table whose key its keys begin with; itself unless it is interleaved in another.
    pub root: u64,
    /// How it is interleaved, if it is.
    pub interleaved: Option<Interleaved>,
    /// In order of their ordinals.
    pub columns: Vec<ColumnInfo>,
    /// Positions in `columns` of the primary key's columns, in the key's order. Never empty.
    pub primary_key: Vec<usize>,
}

/// The first object id that PostgreSQL gives to what users create.
const FIRST_USER_OID: u64 = 16_384;

impl TableInfo {
    /// The table's object id for PostgreSQL's catalogs: lasting, and unique among relations.
    #[must_use]
    pub fn oid(&self) -> u32 {
        u32::try_from(FIRST_USER_OID + self.id * 2).unwrap_or(u32::MAX)
    }

    /// The object id of the primary key's index (and of the constraint).
    #[must_use]
    pub fn primary_key_oid(&self) -> u32 {
        self.oid().saturating_add(1)
    }

    /// The name of the primary key's constraint and index.
    #[must_use]
    pub fn primary_key_name(&self) -> String {
        format!("{}_pkey", self.name)
    }

    /// The object id of the constraint that says what it is interleaved in: that of the table,
    /// which no other constraint has.
    #[must_use]
    pub fn interleave_oid(&self) -> u32 {
        self.oid()
    }

    /// The name of the constraint that says what it is interleaved in.
    #[must_use]
    pub fn interleave_name(&self) -> String {
        format!("{}_interleave_fkey", self.name)
    }

    /// How many of the primary key's columns are the root's.
    #[must_use]
    pub fn root_key_columns(&self) -> usize {
        self.interleaved.map_or(self.primary_key.len(), |interleaved| interleaved.root_key)
    }

    /// The columns of the primary key, in the key's order.
    #[must_use]
    pub fn key_columns(&self) -> impl ExactSizeIterator<Item = &ColumnInfo> {
        self.primary_key.iter().map(|&position| &self.columns[position])
    }

    /// Whether the column at `position` is part of the primary key.
    #[must_use]
    pub fn is_key_column(&self, position: usize) -> bool {
        self.primary_key.contains(&position)
    }

    /// The position of the column of that name.
    #[must_use]
    pub fn position(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }

    /// A table of the system tablet, which users read and only the database writes.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.id < 100
    }
}

/// All tables, as a gateway saw them at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CatalogSnapshot {
    /// Differs between snapshots that differ, on one gateway; plans are cached under it.
    pub version: u64,
    /// In order of their ids: the system's tables first.
    pub tables: Vec<Arc<TableInfo>>,
    names: BTreeMap<String, BTreeMap<String, usize>>,
    /// Positions of what is interleaved right in a table, by its id.
    children: BTreeMap<u64, Vec<usize>>,
}

impl CatalogSnapshot {
    /// A snapshot of these tables.
    #[must_use]
    pub fn new(version: u64, mut tables: Vec<Arc<TableInfo>>) -> Self {
        tables.sort_by_key(|table| table.id);
        let mut names: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        let mut children: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (position, table) in tables.iter().enumerate() {
            // A table's id is greater than its parent's, so that nothing lies below itself.
            if let Some(above) = table.interleaved.filter(|above| above.parent < table.id) {
                children.entry(above.parent).or_default().push(position);
            }
            names.entry(table.schema.clone()).or_default().insert(table.name.clone(), position);
        }
        Self { version, tables, names, children }
    }

    /// The table of that schema and name.
    #[must_use]
    pub fn table(&self, schema: &str, name: &str) -> Option<&Arc<TableInfo>> {
        self.names.get(schema)?.get(name).map(|&position| &self.tables[position])
    }

    /// The table with that id.
    #[must_use]
    pub fn table_by_id(&self, id: u64) -> Option<&Arc<TableInfo>> {
        let position = self.tables.binary_search_by_key(&id, |table| table.id).ok()?;
        Some(&self.tables[position])
    }

    /// The table that another is interleaved in.
    #[must_use]
    pub fn parent(&self, table: &TableInfo) -> Option<&Arc<TableInfo>> {
        self.table_by_id(table.interleaved.filter(|above| above.parent < table.id)?.parent)
    }

    /// The tables that a table is interleaved in: its parent, that one's parent, up to the root.
    pub fn ancestors(&self, table: &TableInfo) -> impl Iterator<Item = &Arc<TableInfo>> {
        std::iter::successors(self.parent(table), |above| self.parent(above))
    }

    /// The tables that are interleaved right in this one, in order of their ids.
    pub fn children(&self, table: u64) -> impl Iterator<Item = &Arc<TableInfo>> {
        self.children.get(&table).into_iter().flatten().map(|&position| &self.tables[position])
    }

    /// All tables below this one, each before those below it.
    #[must_use]
    pub fn descendants(&self, table: u64) -> Vec<&Arc<TableInfo>> {
        let mut found = Vec::new();
        for child in self.children(table) {
            found.push(child);
            found.extend(self.descendants(child.id));
        }
        found
    }

    /// The tables of a schema, by name.
    pub fn tables_of(&self, schema: &str) -> impl Iterator<Item = &Arc<TableInfo>> {
        self.names.get(schema).into_iter().flatten().map(|(_, &position)| &self.tables[position])
    }
}
