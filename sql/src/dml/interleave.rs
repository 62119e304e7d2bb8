//! What a write owes to the tables above and below its own.
//!
//! A row that is added needs its parent's row, and a row that is taken away must leave none below
//! it. Both are looked at under the transaction's locks, so that they stay as they were seen; the tables
//! concerned go into the commit with their versions. Why that keeps rows from being orphaned by gateways
//! with old catalogs is told in [`crate::ddl`].

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::TryStreamExt;
use meridian_storage::KeyRange;
use meridian_txn::locks::Mode;

use super::{Changes, LOOKUPS, Work};
use crate::catalog::{CatalogSnapshot, OnDelete, TableInfo};
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::row::RowCodec;
use crate::scan::exec::{Scan, Visits, read};
use crate::scan::provider::locate;
use crate::scan::{Modes, Reads, StatementContext, Under};
use crate::session::QueryError;
use crate::types::SessionFormat;

/// A statement's table, and what looking around it needs.
pub(super) struct Place<'s> {
    pub(super) work: &'s Work<'s>,
    pub(super) snapshot: &'s CatalogSnapshot,
    pub(super) table: &'s TableInfo,
}

/// Looks at the rows above those that are added and below those that are taken away. With
/// `cascade`, adds the deletion of what goes with the latter; else they must have nothing below.
pub(super) async fn look(
    place: &Place<'_>,
    changes: &mut Changes,
    cascade: bool,
) -> Result<(), QueryError> {
    place.look_above(changes).await?;
    let gone: Vec<Vec<u8>> = changes.gone().cloned().collect();
    if !gone.is_empty() {
        place.look_below(place.table, &gone, cascade, changes).await?;
    }
    Ok(())
}

impl Place<'_> {
    async fn look_above(&self, changes: &Changes) -> Result<(), QueryError> {
        let Some(interleaved) = self.table.interleaved else {
            return Ok(());
        };
        let codec = codec::row_codec(self.table)?;
        let mut above = BTreeSet::new();
        for key in changes.added() {
            above.insert(codec.key_above(key, interleaved.parent, interleaved.parent_key)?);
        }
        if above.is_empty() {
            return Ok(());
        }
        let Work { session, txn, .. } = *self.work;
        for ancestor in self.snapshot.ancestors(self.table) {
            self.work.planned_under(ancestor)?;
        }
        let above: Vec<_> = above.into_iter().collect();
        for keys in above.chunks(LOOKUPS) {
            let rows = txn.get(keys.to_vec(), Mode::Shared, session.lock_wait()).await;
            for (key, row) in keys.iter().zip(rows.map_err(QueryError::from)?) {
                if row.is_none() {
                    return Err(self.missing(&codec, key).into());
                }
            }
        }
        Ok(())
    }

    /// Looks below rows of the statement's table that go, at the tables right below `table`, which
    /// is that one or lies below it.
    async fn look_below(
        &self,
        table: &TableInfo,
        gone: &[Vec<u8>],
        cascade: bool,
        changes: &mut Changes,
    ) -> Result<(), QueryError> {
        let codec = codec::row_codec(self.table)?;
        for child in self.snapshot.children(table.id) {
            self.work.planned_under(child)?;
            let below = |key: &Vec<u8>| codec.prefix_below(key, child.id).map(KeyRange::prefix);
            let ranges = gone.iter().map(below).collect::<Result<Vec<_>, _>>()?;
            let on_delete = child.interleaved.map(|interleaved| interleaved.on_delete);
            let cascade = cascade && on_delete == Some(OnDelete::Cascade);
            let keys = self.keys_in(child, ranges, !cascade).await?;
            match keys.first() {
                // Then there is nothing below those either.
                None => {}
                Some(_) if cascade => {
                    keys.into_iter().try_for_each(|key| changes.remove(key))?;
                    Box::pin(self.look_below(child, gone, cascade, changes)).await?;
                }
                Some(first) => return Err(still_there(table, child, first).into()),
            }
        }
        Ok(())
    }

    /// The keys of a table's rows in these ranges, or just the first.
    async fn keys_in(
        &self,
        table: &Arc<TableInfo>,
        ranges: Vec<KeyRange>,
        first: bool,
    ) -> Result<Vec<Vec<u8>>, QueryError> {
        let Work { session, txn, .. } = *self.work;
        let tablets = &session.engine().tablets;
        let parts = locate(tablets.as_ref(), ranges).await.map_err(QueryError::from)?;
        let scan = Scan {
            table: Arc::clone(table),
            parts,
            projection: table.primary_key.clone(),
            filters: Vec::new(),
            limit: first.then_some(1),
            reverse: false,
        };
        let mut modes = Modes::default();
        if !first {
            modes.set(table.id, Mode::Update);
        }
        let reads = Reads::Under(Under::new(txn, modes, session.lock_wait()));
        let statement = StatementContext::new(reads, session.high_water().clone());
        let mut batches = read(scan, Arc::clone(tablets), Arc::new(statement), Visits::default());
        let codec = codec::row_codec(table)?;
        let (mut keys, mut size) = (Vec::new(), 0);
        while let Some(batch) = batches.try_next().await? {
            size += batch.get_array_memory_size();
            if size > super::MAX_BYTES {
                return Err(super::too_large().into());
            }
            keys.extend(codec.keys_of(batch.columns())?);
        }
        Ok(keys)
    }

    /// `23503` for a row without a row above it.
    fn missing(&self, codec: &RowCodec, above: &[u8]) -> SqlError {
        let (table, parent) = (self.table, self.snapshot.parent(self.table));
        let parent_name = parent.map_or("", |parent| parent.name.as_str());
        let message = format!(
            "insert or update on table \"{}\" violates foreign key constraint \"{}\"",
            table.name,
            table.interleave_name()
        );
        let error = violation(table, message).hint(format!(
            "\"{}\" is interleaved in \"{parent_name}\": its rows lie below rows of that table.",
            table.name
        ));
        let values = parent
            .and_then(|parent| codec::row_codec(parent).ok()?.decode_key(above).ok())
            .and_then(|values| codec.describe_values(&values, &SessionFormat::default()).ok());
        match values {
            Some(key) => {
                error.detail(format!("Key {key} is not present in table \"{parent_name}\"."))
            }
            None => error,
        }
    }
}

/// `23503` for a row of `parent` that has rows below it, of `child`.
fn still_there(parent: &TableInfo, child: &TableInfo, first: &[u8]) -> SqlError {
    let message = format!(
        "update or delete on table \"{}\" violates foreign key constraint \"{}\" on table \
         \"{}\"",
        parent.name,
        child.interleave_name(),
        child.name
    );
    let error = violation(child, message);
    let key = codec::row_codec(parent).and_then(|of_parent| {
        let columns = parent.primary_key.len();
        let above = codec::row_codec(child)?.key_above(first, parent.id, columns)?;
        of_parent.describe_key(&above, &SessionFormat::default())
    });
    match key {
        Ok(key) => {
            error.detail(format!("Key {key} is still referenced from table \"{}\".", child.name))
        }
        Err(_) => error,
    }
}

fn violation(table: &TableInfo, message: String) -> SqlError {
    SqlError::new(SqlState::FOREIGN_KEY_VIOLATION, message)
        .schema(&table.schema)
        .table(&table.name)
        .constraint(table.interleave_name())
}
