//! The catalog that this module's tests look at; the same as in the fixtures' PostgreSQL.

use std::sync::Arc;

use super::world::{Backend, SessionInfo, ViewInfo, World};
use crate::catalog::{CatalogSnapshot, ColumnInfo, Interleaved, OnDelete, TableInfo};
use crate::types::PgType;

pub(super) fn snapshot() -> Arc<CatalogSnapshot> {
    let numeric = PgType::Numeric { precision: 12, scale: 2 };
    Arc::new(CatalogSnapshot::new(
        1,
        vec![
            table(10, "meridian", "settings", vec![column("name", PgType::Text, None)], vec![0]),
            table(
                100,
                "public",
                "accounts",
                vec![
                    column("id", PgType::Int8, None),
                    column("owner", PgType::Text, None),
                    column("balance", numeric, Some("0.00")),
                    column("opened", PgType::Timestamptz, Some("now()")),
                    column("code", PgType::Varchar(Some(8)), None),
                ],
                vec![0],
            ),
            table(
                101,
                "public",
                "orders",
                vec![
                    column("note", PgType::Char(Some(3)), None),
                    column("id", PgType::Int4, None),
                    column("region", PgType::Text, None),
                ],
                vec![2, 1],
            ),
            table(102, "public", "Odd Name", vec![column("Key", PgType::Uuid, None)], vec![0]),
        ],
    ))
}

/// The same, and a table that is interleaved in `accounts`.
pub(super) fn interleaved() -> World {
    let mut tables = snapshot().tables.clone();
    let columns = vec![column("account", PgType::Int8, None), column("n", PgType::Int4, None)];
    let mut entries = TableInfo::clone(&table(103, "public", "entries", columns, vec![0, 1]));
    entries.root = 100;
    let on_delete = OnDelete::Cascade;
    entries.interleaved = Some(Interleaved { parent: 100, on_delete, parent_key: 1, root_key: 1 });
    tables.push(Arc::new(entries));
    World::new(Arc::new(CatalogSnapshot::new(1, tables)), session(), views())
}

pub(super) fn session() -> Arc<SessionInfo> {
    let settings = [("search_path", "\"$user\", public"), ("server_version", "15.18")];
    Arc::new(SessionInfo {
        user: "alice".to_owned(),
        database: "bank".to_owned(),
        backend: Backend { pid: 4711, cancel: Arc::new(|pid| pid == 12) },
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    })
}

pub(super) fn views() -> Arc<[ViewInfo]> {
    let columns = [("node", PgType::Int8), ("region", PgType::Text)];
    let columns = columns.map(|(name, pg_type)| (name.to_owned(), pg_type)).into();
    Arc::new([ViewInfo { schema: "meridian".to_owned(), name: "nodes".to_owned(), columns }])
}

pub(super) fn world() -> Arc<World> {
    Arc::new(World::new(snapshot(), session(), views()))
}

/// The columns called `owner` and those of the key are NOT NULL.
fn table(
    id: u64,
    schema: &str,
    name: &str,
    mut columns: Vec<ColumnInfo>,
    primary_key: Vec<usize>,
) -> Arc<TableInfo> {
    for (position, column) in columns.iter_mut().enumerate() {
        column.id = u32::try_from(position + 1).expect("few columns");
        column.nullable = !(primary_key.contains(&position) || column.name == "owner");
    }
    let (schema, name) = (schema.to_owned(), name.to_owned());
    let (version, root, interleaved) = (1, id, None);
    Arc::new(TableInfo { id, schema, name, version, root, interleaved, columns, primary_key })
}

fn column(name: &str, pg_type: PgType, default: Option<&str>) -> ColumnInfo {
    let default = default.map(str::to_owned);
    ColumnInfo { id: 0, name: name.to_owned(), pg_type, nullable: true, default }
}
