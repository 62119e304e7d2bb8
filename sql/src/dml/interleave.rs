//! What a write owes to the tables above and below its own.
//!
//! A row that is added needs its parent's row, and a row that is taken away must leave none below
//! it. Both are looked at in the tablet that is written to, where the whole directory is, and what
//! was seen there goes into the write's read set: the tablet refuses the write if it has changed
//! meanwhile. The tables concerned go into the request with their versions; why that keeps rows from
//! being orphaned by gateways with old catalogs is told in [`crate::ddl`].
//!
//! What is read here is unconfirmed. So a violation is no error yet: the request goes out without
//! its changes, and only if the tablet says that everything in it was so, the client is told.
//!
//! # Caveats
//!
//! A read set knows rows, not whether they exist: an update of the parent's row while a row is added
//! below makes the tablet refuse the latter, which is then tried again for nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::TryStreamExt;
use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::Timestamp;
use meridian_txn::ReadAt;

use super::Changes;
use crate::catalog::{CatalogSnapshot, OnDelete, TableInfo};
use crate::codec;
use crate::error::{SqlError, SqlState};
use crate::fragment::Fragment;
use crate::row::RowCodec;
use crate::scan::exec::external;
use crate::session::{QueryError, Session};
use crate::types::SessionFormat;

/// How many rows above are read with one request.
const ROWS_ABOVE: usize = 1_000;

/// What was found in the tables around the one that a statement writes to.
#[derive(Default)]
pub(super) struct Around {
    /// The tables that mattered, with their versions.
    pub(super) schema: Vec<(u64, u64)>,
    /// The rows above that were read, each with the version seen.
    pub(super) keys: Vec<(Vec<u8>, Option<Timestamp>)>,
    /// The ranges below that were read.
    pub(super) ranges: Vec<KeyRange>,
    /// The lowest timestamp that anything was read at.
    pub(super) at: Option<Timestamp>,
    /// Why the statement fails, if what was read holds.
    pub(super) violation: Option<SqlError>,
}

impl Around {
    fn read(&mut self, at: Timestamp) {
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }

    fn concerns(&mut self, table: &TableInfo) {
        self.schema.push((table.id, table.version));
    }
}

/// A statement's table and tablet, and what looking around them needs.
pub(super) struct Place<'s> {
    pub(super) session: &'s Session,
    pub(super) snapshot: &'s CatalogSnapshot,
    pub(super) table: &'s TableInfo,
    pub(super) tablet: TabletId,
}

/// Looks at the rows above those that are added and below those that are taken away. With
/// `cascade`, adds the deletion of what goes with the latter; else they must have nothing below.
pub(super) async fn look(
    place: &Place<'_>,
    changes: &mut Changes,
    cascade: bool,
) -> Result<Around, QueryError> {
    let mut around = Around::default();
    place.look_above(changes, &mut around).await?;
    let gone: Vec<Vec<u8>> = changes.gone().cloned().collect();
    if around.violation.is_none() && !gone.is_empty() {
        place.look_below(place.table, &gone, cascade, changes, &mut around).await?;
    }
    Ok(around)
}

impl Place<'_> {
    async fn look_above(&self, changes: &Changes, around: &mut Around) -> Result<(), QueryError> {
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
        self.snapshot.ancestors(self.table).for_each(|ancestor| around.concerns(ancestor));
        let above: Vec<_> = above.into_iter().collect();
        let tablets = &self.session.engine().tablets;
        for keys in above.chunks(ROWS_ABOVE) {
            let read = tablets.get(self.tablet, keys.to_vec(), ReadAt::Unconfirmed).await;
            let (at, rows) = read.map_err(|error| QueryError::from(external(error.into())))?;
            around.read(at);
            for (key, row) in keys.iter().zip(rows) {
                if row.is_none() && around.violation.is_none() {
                    around.violation = Some(self.missing(&codec, key));
                }
                around.keys.push((key.clone(), row.map(|row| row.ts)));
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
        around: &mut Around,
    ) -> Result<(), QueryError> {
        let codec = codec::row_codec(self.table)?;
        for child in self.snapshot.children(table.id) {
            around.concerns(child);
            let below = |key: &Vec<u8>| codec.prefix_below(key, child.id).map(KeyRange::prefix);
            let ranges = gone.iter().map(below).collect::<Result<Vec<_>, _>>()?;
            let on_delete = child.interleaved.map(|interleaved| interleaved.on_delete);
            let cascade = cascade && on_delete == Some(OnDelete::Cascade);
            let keys = self.keys_in(child, &ranges, !cascade, around).await?;
            around.ranges.extend(ranges);
            match keys.first() {
                // Then there is nothing below those either.
                None => {}
                Some(_) if cascade => {
                    keys.into_iter().try_for_each(|key| changes.remove(key))?;
                    Box::pin(self.look_below(child, gone, cascade, changes, around)).await?;
                }
                Some(first) => around.violation = Some(still_there(table, child, first)),
            }
            if around.violation.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The keys of a table's rows in these ranges, or just the first.
    async fn keys_in(
        &self,
        table: &Arc<TableInfo>,
        ranges: &[KeyRange],
        first: bool,
        around: &mut Around,
    ) -> Result<Vec<Vec<u8>>, QueryError> {
        let fragment = Fragment {
            table: Arc::clone(table),
            ranges: ranges.to_vec(),
            projection: table.primary_key.clone(),
            filters: Vec::new(),
            limit: first.then_some(1),
            reverse: false,
            at: ReadAt::Unconfirmed,
        };
        let read = self.session.engine().tablets.fragment(self.tablet, fragment).await;
        let mut read = read.map_err(|error| QueryError::from(external(error)))?;
        around.read(read.at);
        let codec = codec::row_codec(table)?;
        let (mut keys, mut size) = (Vec::new(), 0);
        while let Some(batch) =
            read.batches.try_next().await.map_err(|error| QueryError::from(external(error)))?
        {
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
