//! The catalog's rows: reading all of them, and the mutations that add or remove a table.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::ScalarValue;
use meridian_storage::KeyRange;
use meridian_truetime::Timestamp;
use meridian_txn::{Mutation, ReadAt, ScanRequest};

use super::bootstrap::{self, COLUMNS, COUNTERS, NAMES, TABLES};
use super::model::{ColumnInfo, Interleaved, OnDelete, TableInfo};
use crate::codec;
use crate::error::SqlError;
use crate::plan::errors::txn_error;
use crate::row::RowCodec;
use crate::tablets::{SYSTEM_TABLET, Tablets};
use crate::types::PgType;

/// What `on_delete` holds for the tables that are interleaved in another.
const NO_ACTION: &str = "no action";
const CASCADE: &str = "cascade";

/// All tables, the system's included, and the timestamp that they were read at.
///
/// # Errors
/// When the system tablet can't be read, or holds rows that make no sense.
pub(crate) async fn read(
    tablets: &dyn Tablets,
    min: Timestamp,
) -> Result<(Timestamp, Vec<Arc<TableInfo>>), SqlError> {
    // The two tables lie side by side.
    let first = codec::key_prefix(system(TABLES).as_ref());
    let last = KeyRange::prefix(codec::key_prefix(system(COLUMNS).as_ref()));
    let mut range = KeyRange { start: first, end: last.end };
    let mut at = ReadAt::Strong { min };
    let mut rows = Vec::new();
    let read_at = loop {
        let request = ScanRequest { range: range.clone(), at, limit: u64::MAX, reverse: false };
        let page = tablets.scan(SYSTEM_TABLET, request).await.map_err(|error| txn_error(&error))?;
        let next = page.rows.last().map(|row| [row.key.as_slice(), &[0]].concat());
        rows.extend(page.rows);
        match next {
            Some(next) if page.more => {
                range.start = next;
                at = ReadAt::Exact(page.at);
            }
            _ => break page.at,
        }
    };
    let (tables_codec, columns_codec) = (system_codec(TABLES)?, system_codec(COLUMNS)?);
    let mut tables = BTreeMap::new();
    let mut columns: BTreeMap<u64, Vec<(ColumnInfo, Option<i32>)>> = BTreeMap::new();
    let columns_from = columns_codec.root_prefix();
    for row in rows {
        if row.key < columns_from {
            let values = tables_codec.decode_scalars(&row.key, &row.value)?;
            let table = table_from(&values)?;
            tables.insert(table.id, (table, parent_from(&values)?));
        } else {
            let values = columns_codec.decode_scalars(&row.key, &row.value)?;
            let id = id_from(&values, 0)?;
            columns.entry(id).or_default().push(column_from(&values)?);
        }
    }
    for (id, (table, _)) in &mut tables {
        let mut key = Vec::new();
        for (column, key_position) in columns.remove(id).unwrap_or_default() {
            if let Some(position) = key_position {
                key.push((position, table.columns.len()));
            }
            table.columns.push(column);
        }
        key.sort_unstable();
        table.primary_key = key.into_iter().map(|(_, position)| position).collect();
    }
    let keys: BTreeMap<u64, usize> =
        tables.iter().map(|(id, (table, _))| (*id, table.primary_key.len())).collect();
    let key_of = |id| keys.get(&id).copied().ok_or_else(corrupted);
    let mut all = bootstrap::tables();
    for (mut table, above) in tables.into_values() {
        if let Some((parent, on_delete)) = above {
            let (parent_key, root_key) = (key_of(parent)?, key_of(table.root)?);
            table.interleaved = Some(Interleaved { parent, on_delete, parent_key, root_key });
        }
        all.push(Arc::new(table));
    }
    Ok((read_at, all))
}

/// The rows of a new table. The write fails with `DuplicateKey` if the name is taken.
///
/// # Errors
/// When a value can't be encoded.
pub(crate) fn create(table: &TableInfo) -> Result<Vec<Mutation>, SqlError> {
    let mut mutations = vec![
        insert(NAMES, &[text(&table.schema), text(&table.name), int8(table.id)])?,
        insert(TABLES, &table_row(table))?,
    ];
    for (position, column) in table.columns.iter().enumerate() {
        let place = table.primary_key.iter().position(|&p| p == position);
        mutations.push(insert(
            COLUMNS,
            &[
                int8(table.id),
                int4(position),
                ScalarValue::Int32(i32::try_from(column.id).ok()),
                text(&column.name),
                text(&column.pg_type.to_string()),
                ScalarValue::Boolean(Some(column.nullable)),
                ScalarValue::Utf8(column.default.clone()),
                place.map_or(ScalarValue::Int32(None), int4),
            ],
        )?);
    }
    Ok(mutations)
}

/// Raises a table's version by one: every plan that was made with it before is old.
///
/// # Errors
/// When a value can't be encoded.
pub(crate) fn raise_version(table: &TableInfo) -> Result<Mutation, SqlError> {
    let raised = TableInfo { version: table.version + 1, ..table.clone() };
    let (key, value) = system_codec(TABLES)?.encode_scalars(&table_row(&raised))?;
    Ok(Mutation::Put { key, value })
}

/// What removes a table's rows again.
///
/// # Errors
/// When a value can't be encoded.
pub(crate) fn drop(table: &TableInfo) -> Result<Vec<Mutation>, SqlError> {
    let delete = |id, key: &[ScalarValue]| {
        Ok::<_, SqlError>(Mutation::Delete { key: system_codec(id)?.key_of(key)? })
    };
    let mut mutations = vec![delete(NAMES, &name_key(table))?, delete(TABLES, &[int8(table.id)])?];
    for position in 0..table.columns.len() {
        mutations.push(delete(COLUMNS, &[int8(table.id), int4(position)])?);
    }
    Ok(mutations)
}

/// The key of the row that makes a table's name taken.
///
/// # Errors
/// When a value can't be encoded.
pub(crate) fn name_row_key(table: &TableInfo) -> Result<Vec<u8>, SqlError> {
    system_codec(NAMES)?.key_of(&name_key(table))
}

/// The key of a table's own row.
///
/// # Errors
/// When the id can't be encoded.
pub(crate) fn table_row_key(table: &TableInfo) -> Result<Vec<u8>, SqlError> {
    system_codec(TABLES)?.key_of(&[int8(table.id)])
}

/// The version that a table's own row tells.
///
/// # Errors
/// When the row makes no sense.
pub(crate) fn stored_version(key: &[u8], value: &[u8]) -> Result<u64, SqlError> {
    id_from(&system_codec(TABLES)?.decode_scalars(key, value)?, 3)
}

/// The id of the table that a row of a name belongs to.
///
/// # Errors
/// When the row makes no sense.
pub(crate) fn named_table(key: &[u8], value: &[u8]) -> Result<u64, SqlError> {
    id_from(&system_codec(NAMES)?.decode_scalars(key, value)?, 2)
}

/// The key of a counter's row.
///
/// # Errors
/// When the name can't be encoded.
pub(crate) fn counter_key(name: &str) -> Result<Vec<u8>, SqlError> {
    system_codec(COUNTERS)?.key_of(&[text(name)])
}

/// The next free id that a counter's row holds.
///
/// # Errors
/// When the row makes no sense.
pub(crate) fn counter_value(key: &[u8], value: &[u8]) -> Result<u64, SqlError> {
    id_from(&system_codec(COUNTERS)?.decode_scalars(key, value)?, 1)
}

/// Sets a counter.
///
/// # Errors
/// When a value can't be encoded.
pub(crate) fn set_counter(name: &str, next: u64) -> Result<Mutation, SqlError> {
    let (key, value) = system_codec(COUNTERS)?.encode_scalars(&[text(name), int8(next)])?;
    Ok(Mutation::Put { key, value })
}

fn system(id: u64) -> Arc<TableInfo> {
    let mut tables = bootstrap::tables();
    let position = tables.iter().position(|table| table.id == id);
    // Only called with the ids above.
    tables.swap_remove(position.unwrap_or(0))
}

fn system_codec(id: u64) -> Result<RowCodec, SqlError> {
    codec::row_codec(&system(id))
}

fn insert(id: u64, values: &[ScalarValue]) -> Result<Mutation, SqlError> {
    let (key, value) = system_codec(id)?.encode_scalars(values)?;
    Ok(Mutation::Insert { key, value })
}

fn table_row(table: &TableInfo) -> [ScalarValue; 7] {
    let parent = table.interleaved.map(|interleaved| interleaved.parent);
    let on_delete = table.interleaved.map(|interleaved| match interleaved.on_delete {
        OnDelete::NoAction => NO_ACTION.to_owned(),
        OnDelete::Cascade => CASCADE.to_owned(),
    });
    [
        int8(table.id),
        text(&table.schema),
        text(&table.name),
        int8(table.version),
        int8(table.root),
        parent.map_or(ScalarValue::Int64(None), int8),
        ScalarValue::Utf8(on_delete),
    ]
}

fn name_key(table: &TableInfo) -> [ScalarValue; 2] {
    [text(&table.schema), text(&table.name)]
}

fn text(value: &str) -> ScalarValue {
    ScalarValue::Utf8(Some(value.to_owned()))
}

fn int8(value: u64) -> ScalarValue {
    ScalarValue::Int64(i64::try_from(value).ok())
}

fn int4(value: usize) -> ScalarValue {
    ScalarValue::Int32(i32::try_from(value).ok())
}

fn table_from(values: &[ScalarValue]) -> Result<TableInfo, SqlError> {
    Ok(TableInfo {
        id: id_from(values, 0)?,
        schema: text_from(values, 1)?,
        name: text_from(values, 2)?,
        version: id_from(values, 3)?,
        root: id_from(values, 4)?,
        // Known when the tables above it are.
        interleaved: None,
        columns: Vec::new(),
        primary_key: Vec::new(),
    })
}

/// What a table's row says of the one above it.
fn parent_from(values: &[ScalarValue]) -> Result<Option<(u64, OnDelete)>, SqlError> {
    match (values.get(5), values.get(6)) {
        (Some(ScalarValue::Int64(None)), Some(ScalarValue::Utf8(None))) => Ok(None),
        (Some(_), Some(ScalarValue::Utf8(Some(on_delete)))) => {
            let on_delete = match on_delete.as_str() {
                NO_ACTION => OnDelete::NoAction,
                CASCADE => OnDelete::Cascade,
                _ => return Err(corrupted()),
            };
            Ok(Some((id_from(values, 5)?, on_delete)))
        }
        _ => Err(corrupted()),
    }
}

fn column_from(values: &[ScalarValue]) -> Result<(ColumnInfo, Option<i32>), SqlError> {
    let id = int_from(values, 2)?.and_then(|id| u32::try_from(id).ok()).ok_or_else(corrupted)?;
    let nullable = match values.get(5) {
        Some(ScalarValue::Boolean(Some(nullable))) => *nullable,
        _ => return Err(corrupted()),
    };
    let default = match values.get(6) {
        Some(ScalarValue::Utf8(default)) => default.clone(),
        _ => return Err(corrupted()),
    };
    let column = ColumnInfo {
        id,
        name: text_from(values, 3)?,
        pg_type: PgType::from_text(&text_from(values, 4)?)?,
        nullable,
        default,
    };
    Ok((column, int_from(values, 7)?))
}

fn id_from(values: &[ScalarValue], at: usize) -> Result<u64, SqlError> {
    match values.get(at) {
        Some(ScalarValue::Int64(Some(id))) => u64::try_from(*id).map_err(|_| corrupted()),
        _ => Err(corrupted()),
    }
}

fn int_from(values: &[ScalarValue], at: usize) -> Result<Option<i32>, SqlError> {
    match values.get(at) {
        Some(ScalarValue::Int32(value)) => Ok(*value),
        _ => Err(corrupted()),
    }
}

fn text_from(values: &[ScalarValue], at: usize) -> Result<String, SqlError> {
    match values.get(at) {
        Some(ScalarValue::Utf8(Some(text))) => Ok(text.clone()),
        _ => Err(corrupted()),
    }
}

fn corrupted() -> SqlError {
    SqlError::corrupted("a row of the catalog makes no sense")
}
