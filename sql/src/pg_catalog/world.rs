//! What the catalogs are about: the tables of one [`CatalogSnapshot`], the system catalogs
//! themselves, and who asks.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, OnceLock};

use super::definition::{self, Definition};
use crate::catalog::{CatalogSnapshot, ColumnInfo, OnDelete, TableInfo};
use crate::types::PgType;

/// The role that owns everything: PostgreSQL's bootstrap superuser.
pub(super) const OWNER: u32 = 10;
/// The name of that role.
pub(super) const OWNER_NAME: &str = "meridian";
/// The role of the session, where it goes by another name.
const SESSION_ROLE: u32 = 16_383;
/// The object id of the only database.
pub(super) const DATABASE: u32 = 5;
/// The access methods of tables and of indexes.
pub(super) const HEAP: u32 = 2;
pub(super) const BTREE: u32 = 403;
/// The object id of the encoding UTF8.
pub(super) const UTF8: i32 = 6;
/// The collation of every string: by its bytes.
pub(super) const COLLATION: &str = "C.UTF-8";

pub(super) const PG_CATALOG: u32 = 11;
pub(super) const PUBLIC: u32 = 2200;
const INFORMATION_SCHEMA: u32 = 13_207;
/// Below 16384, where PostgreSQL's tools expect what users created.
const MERIDIAN: u32 = 16_382;
/// Any other schema follows from here, in order of their names.
const OTHER_SCHEMAS: u32 = 15_000;
/// The functions of the schema `meridian` follow from here.
pub(super) const FUNCTIONS: u32 = 15_500;
/// The views follow from here, as they are given.
const VIEWS: u32 = 16_000;

/// A session's connection, among those of its port.
#[derive(Clone)]
pub struct Backend {
    /// What `pg_backend_pid()` answers.
    pub pid: i32,
    /// Cancels what another connection of the port runs; false if there is none of that number.
    pub cancel: Arc<dyn Fn(i32) -> bool + Send + Sync>,
}

impl Default for Backend {
    fn default() -> Self {
        Self { pid: 0, cancel: Arc::new(|_| false) }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.pid == other.pid
    }
}

impl Eq for Backend {}

/// What the catalogs say of the session that asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionInfo {
    /// The role that it runs as.
    pub user: String,
    /// The database that it is connected to.
    pub database: String,
    /// Its connection.
    pub backend: Backend,
    /// Every setting (`SHOW ALL`) with its present value, by its lower-case name. Those that the
    /// catalogs themselves ask for: `search_path`, `server_version`.
    pub settings: BTreeMap<String, String>,
}

/// A view that is no row of the catalog: one of those that show the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewInfo {
    /// The schema that it is in.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The names and types of its columns.
    pub columns: Vec<(String, PgType)>,
}

/// All that a row of a catalog is made from.
#[derive(Debug)]
pub(super) struct World {
    pub(super) snapshot: Arc<CatalogSnapshot>,
    pub(super) session: Arc<SessionInfo>,
    pub(super) views: Arc<[ViewInfo]>,
    namespaces: OnceLock<Vec<(u32, String)>>,
    search_path: OnceLock<Vec<String>>,
}

/// Something with a row in `pg_class`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Relation<'a> {
    Table(&'a TableInfo),
    /// The index of this table's primary key.
    PrimaryKey(&'a TableInfo),
    /// A view and its position among the views.
    View(&'a ViewInfo, usize),
    System(&'static Definition),
}

impl Relation<'_> {
    pub(super) fn oid(&self) -> u32 {
        match self {
            Self::Table(table) => table.oid(),
            Self::PrimaryKey(table) => table.primary_key_oid(),
            Self::View(_, position) => view_oid(*position),
            Self::System(definition) => definition.oid,
        }
    }

    pub(super) fn schema(&self) -> &str {
        match self {
            Self::Table(table) | Self::PrimaryKey(table) => &table.schema,
            Self::View(view, _) => &view.schema,
            Self::System(definition) => definition.schema,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Table(table) => table.name.clone(),
            Self::PrimaryKey(table) => table.primary_key_name(),
            Self::View(view, _) => view.name.clone(),
            Self::System(definition) => definition.name.to_owned(),
        }
    }
}

fn view_oid(position: usize) -> u32 {
    u32::try_from(position).map_or(u32::MAX, |position| VIEWS.saturating_add(position))
}

impl World {
    pub(super) fn new(
        snapshot: Arc<CatalogSnapshot>,
        session: Arc<SessionInfo>,
        views: Arc<[ViewInfo]>,
    ) -> Self {
        let (namespaces, search_path) = (OnceLock::new(), OnceLock::new());
        Self { snapshot, session, views, namespaces, search_path }
    }

    /// Every relation: tables and their indexes, views, then the system's own.
    pub(super) fn relations(&self) -> impl Iterator<Item = Relation<'_>> {
        let tables = self.snapshot.tables.iter();
        let tables = tables.flat_map(|t| [Relation::Table(t), Relation::PrimaryKey(t)]);
        let views = self.views.iter().enumerate().map(|(position, v)| Relation::View(v, position));
        tables.chain(views).chain(definition::all().map(Relation::System))
    }

    pub(super) fn relation(&self, oid: u32) -> Option<Relation<'_>> {
        let tables = &self.snapshot.tables;
        // They are in order of their ids, and so of what follows from those.
        if let Ok(position) = tables.binary_search_by_key(&oid, |table| table.oid()) {
            return Some(Relation::Table(&tables[position]));
        }
        if let Ok(position) = tables.binary_search_by_key(&oid, |table| table.primary_key_oid()) {
            return Some(Relation::PrimaryKey(&tables[position]));
        }
        let views = self.views.iter().enumerate().map(|(position, v)| Relation::View(v, position));
        let mut others = views.chain(definition::all().map(Relation::System));
        others.find(|relation| relation.oid() == oid)
    }

    /// The relation of that name. Without a schema, the system catalogs come first, then those of
    /// the search path.
    pub(super) fn find_relation(&self, schema: Option<&str>, name: &str) -> Option<Relation<'_>> {
        let Some(schema) = schema else {
            let system = std::iter::once("pg_catalog");
            let mut path = system.chain(self.search_path().iter().map(String::as_str));
            return path.find_map(|schema| self.find_relation(Some(schema), name));
        };
        let system = definition::relations(schema).and_then(|relations| relations.get(name));
        if let Some(definition) = system {
            return Some(Relation::System(definition));
        }
        if let Some(table) = self.snapshot.table(schema, name) {
            return Some(Relation::Table(table));
        }
        let mut views = self.views.iter().enumerate();
        if let Some((at, view)) = views.find(|(_, v)| v.schema == schema && v.name == name) {
            return Some(Relation::View(view, at));
        }
        let table = self.snapshot.table(schema, name.strip_suffix("_pkey")?)?;
        Some(Relation::PrimaryKey(table))
    }

    /// The table whose primary key's index (and constraint) has this object id.
    pub(super) fn primary_key(&self, oid: u32) -> Option<&TableInfo> {
        match self.relation(oid)? {
            Relation::PrimaryKey(table) => Some(table),
            _ => None,
        }
    }

    /// Every schema with its object id.
    pub(super) fn namespaces(&self) -> &[(u32, String)] {
        self.namespaces.get_or_init(|| {
            let tables = self.snapshot.tables.iter().map(|table| table.schema.as_str());
            let views = self.views.iter().map(|view| view.schema.as_str());
            let mut names: Vec<&str> = tables.chain(views).collect();
            names.extend(["pg_catalog", "public", "information_schema", "meridian"]);
            names.sort_unstable();
            names.dedup();
            let numbered = (OTHER_SCHEMAS..).zip(names);
            let numbered =
                numbered.map(|(other, name)| (fixed_namespace(name).unwrap_or(other), name));
            numbered.map(|(oid, name)| (oid, name.to_owned())).collect()
        })
    }

    pub(super) fn namespace_oid(&self, name: &str) -> Option<u32> {
        self.namespaces().iter().find_map(|(oid, schema)| (schema == name).then_some(*oid))
    }

    pub(super) fn namespace_name(&self, oid: u32) -> Option<&str> {
        self.namespaces().iter().find_map(|(own, schema)| (*own == oid).then_some(schema.as_str()))
    }

    /// Every role with its object id.
    pub(super) fn roles(&self) -> Vec<(u32, String)> {
        let mut roles = vec![(OWNER, OWNER_NAME.to_owned())];
        if self.session.user != OWNER_NAME {
            roles.push((SESSION_ROLE, self.session.user.clone()));
        }
        roles
    }

    pub(super) fn role_name(&self, oid: u32) -> Option<String> {
        self.roles().into_iter().find_map(|(own, name)| (own == oid).then_some(name))
    }

    /// The schemas in which unqualified names are looked for, without the system's.
    pub(super) fn search_path(&self) -> &[String] {
        self.search_path.get_or_init(|| {
            let setting = self.session.settings.get("search_path");
            let path = setting.map_or("\"$user\", public", String::as_str);
            let entries = path.split(',').map(|entry| entry.trim().trim_matches('"'));
            let user = self.session.user.as_str();
            let entries = entries.map(|entry| if entry == "$user" { user } else { entry });
            entries.filter(|name| self.namespace_oid(name).is_some()).map(str::to_owned).collect()
        })
    }

    /// Whether a relation of that schema is found without naming the schema.
    pub(super) fn is_visible(&self, schema: &str) -> bool {
        schema == "pg_catalog" || self.search_path().iter().any(|visible| visible == schema)
    }

    /// A relation's name as an expression of SQL: with the schema where it isn't found without.
    pub(super) fn regclass_name(&self, oid: u32) -> String {
        let Some(relation) = self.relation(oid) else { return oid.to_string() };
        let name = quote_identifier(&relation.name());
        if self.is_visible(relation.schema()) {
            return name;
        }
        format!("{}.{name}", quote_identifier(relation.schema()))
    }

    /// The tables that are interleaved in another, each with that.
    pub(super) fn interleaved(&self) -> impl Iterator<Item = (&TableInfo, &TableInfo)> {
        let tables = self.snapshot.tables.iter();
        tables.filter_map(|table| Some((table.as_ref(), self.snapshot.parent(table)?.as_ref())))
    }

    /// `PRIMARY KEY (a, b)`, or `FOREIGN KEY (a) REFERENCES t(b) ON DELETE CASCADE` for the
    /// constraint that stands for being interleaved.
    pub(super) fn constraint_definition(&self, oid: u32) -> Option<String> {
        if let Some(table) = self.primary_key(oid) {
            return Some(format!("PRIMARY KEY ({})", key_list(table.key_columns())));
        }
        let mut interleaved = self.interleaved();
        let (table, parent) = interleaved.find(|(table, _)| table.interleave_oid() == oid)?;
        let key = key_list(table.key_columns().take(parent.primary_key.len()));
        let action = match table.interleaved?.on_delete {
            OnDelete::NoAction => "",
            OnDelete::Cascade => " ON DELETE CASCADE",
        };
        let (name, columns) = (self.regclass_name(parent.oid()), key_list(parent.key_columns()));
        Some(format!("FOREIGN KEY ({key}) REFERENCES {name}({columns}){action}"))
    }

    /// The statement that would create the primary key's index, or just one of its columns.
    pub(super) fn index_definition(
        &self,
        table: &TableInfo,
        column: usize,
        pretty: bool,
    ) -> Option<String> {
        if column > 0 {
            return table.key_columns().nth(column - 1).map(|key| quote_identifier(&key.name));
        }
        let index = quote_identifier(&table.primary_key_name());
        let mut name = quote_identifier(&table.name);
        if !(pretty && self.is_visible(&table.schema)) {
            name = format!("{}.{name}", quote_identifier(&table.schema));
        }
        let keys = key_list(table.key_columns());
        Some(format!("CREATE UNIQUE INDEX {index} ON {name} USING btree ({keys})"))
    }
}

fn fixed_namespace(name: &str) -> Option<u32> {
    match name {
        "pg_catalog" => Some(PG_CATALOG),
        "public" => Some(PUBLIC),
        "information_schema" => Some(INFORMATION_SCHEMA),
        "meridian" => Some(MERIDIAN),
        _ => None,
    }
}

fn key_list<'c>(columns: impl Iterator<Item = &'c ColumnInfo>) -> String {
    let mut list = String::new();
    for (position, column) in columns.enumerate() {
        let comma = if position > 0 { ", " } else { "" };
        let _ = write!(list, "{comma}{}", quote_identifier(&column.name));
    }
    list
}

/// An identifier as SQL has to write it: PostgreSQL's `quote_ident`.
pub(super) fn quote_identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_$".contains(c));
    if plain && !is_reserved(name) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// PostgreSQL's reserved words, and those reserved but for types and functions.
fn is_reserved(name: &str) -> bool {
    const RESERVED: &str = " all analyse analyze and any array as asc asymmetric authorization \
        binary both case cast check collate collation column concurrently constraint create cross \
        current_catalog current_date current_role current_schema current_time current_timestamp \
        current_user default deferrable desc distinct do else end except false fetch for foreign \
        freeze from full grant group having ilike in initially inner intersect into is isnull join \
        lateral leading left like limit localtime localtimestamp natural not notnull null offset \
        on only or order outer overlaps placing primary references returning right select \
        session_user similar some symmetric table tablesample then to trailing true union unique \
        user using variadic verbose when where window with ";
    RESERVED.contains(&format!(" {name} "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg_catalog::sample;

    #[test]
    fn object_ids_and_names_find_each_other() {
        let world = sample::world();
        for relation in world.relations() {
            let found = world.relation(relation.oid()).expect("it was listed");
            assert_eq!((found.schema(), found.name()), (relation.schema(), relation.name()));
            let by_name = world.find_relation(Some(relation.schema()), &relation.name());
            assert_eq!(by_name.map(|found| found.oid()), Some(relation.oid()));
        }
        for (oid, name) in world.namespaces() {
            assert_eq!(world.namespace_oid(name), Some(*oid));
            assert_eq!(world.namespace_name(*oid), Some(name.as_str()));
        }
        assert!(world.find_relation(None, "nothing_pkey").is_none());
        assert!(world.find_relation(Some("nowhere"), "accounts").is_none());
    }

    #[test]
    fn names_are_quoted_where_sql_needs_it() {
        let world = sample::world();
        let oid = |schema, name| world.find_relation(Some(schema), name).unwrap().oid();
        assert_eq!(world.regclass_name(oid("public", "accounts")), "accounts");
        assert_eq!(world.regclass_name(oid("public", "Odd Name")), "\"Odd Name\"");
        assert_eq!(world.regclass_name(oid("pg_catalog", "pg_class")), "pg_class");
        assert_eq!(
            world.regclass_name(oid("information_schema", "tables")),
            "information_schema.tables"
        );
        assert_eq!(world.regclass_name(99), "99");
        assert_eq!(quote_identifier("user"), "\"user\"");
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_identifier("_a1$"), "_a1$");
        assert_eq!(quote_identifier(""), "\"\"");
    }
}
