//! CREATE TABLE, ALTER TABLE and DROP TABLE.
//!
//! Each change of the catalog is one write to the system tablet: the catalog's rows and the
//! directory's entry of a root table's first tablet change together. What makes concurrent changes
//! by several gateways safe is that write's validation: the row of the name must not exist
//! (CREATE), must still be what was read (DROP), the counter of ids must not have moved, and the
//! rows of the tables above and below must be those that the change was checked against.
//!
//! # Interleaved tables
//!
//! Source: Spanner (OSDI 2012), section 2.3. A table that is interleaved in another has no tablet
//! of its own; its rows lie in its root's tablets, each below its parent's row. Creating it is a
//! matter of the catalog alone, and two things must hold all the same: no row is ever without the
//! row above it, although gateways go by catalogs of different ages, and no table is ever without
//! its parent.
//!
//! The second is the write's validation. CREATE reads the row of every table above and writes it
//! back with the next version; DROP reads the rows of the tables that it drops, and has looked for
//! tables below them in a catalog with those versions. So of a CREATE and a DROP of its parent one
//! fails, and of two CREATEs below one table one is tried again.
//!
//! For the first, let C be interleaved in P (and P perhaps in others). Every statement that adds a
//! row to C names C and all tables above it in its request, with their versions, and has P's row in
//! its read set; every statement that takes a row of P away names P, and has what lies below in its
//! read set, in all tables below P that its catalog knows. Let a row c be added below p, and p be
//! deleted.
//!
//! - If p is deleted first, the log has it before c, and c's read set doesn't hold.
//! - If c is added first and the deletion's catalog knows C, its read set holds the place of c.
//! - If c is added first and the deletion's catalog doesn't know C, that catalog is older than C's
//!   creation, and has P with a version below the one that the creation gave it. The request that
//!   added c named that version or a greater one, and a tablet refuses older versions than it has
//!   seen (see `txn`'s tablets): the deletion is refused, reads its catalog again, and then knows C.
//!
//! Nothing rests on clocks or on when other gateways learn of C, and creating a table asks nothing
//! of the tablets. A tablet that splits must give its halves what it knows of versions, and one that
//! merges must keep the greater of both.
//!
//! # Caveats
//!
//! The rows of a dropped table that was interleaved stay where they are: its tablets refuse to write
//! to it from then on, and nothing that is planned under the present catalog sees them; what
//! collects old versions may collect them. But until a gateway has read the catalog again, it goes
//! on to *read* them: a read names no versions. A dropped root's tablets serve no reads either.

mod alter;
mod columns;
mod create;
mod drop;
mod options;

pub(crate) use alter::alter_table;
pub(crate) use create::create_table;
pub(crate) use drop::drop;
pub(crate) use options::{ON_DELETE as INTERLEAVE_ON_DELETE, PARENT as INTERLEAVE_IN_PARENT};

use std::time::Duration;

use datafusion::common::TableReference;
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast;
use meridian_txn::{Mutation, ReadAt, ReadSet, TxnError, WriteRequest};

use crate::catalog::{TableInfo, store};
use crate::error::{SqlError, SqlState};
use crate::plan::errors::sql_error;
use crate::session::{Notice, Session};
use crate::tablets::SYSTEM_TABLET;

/// How often a change is tried again because another came first.
const ATTEMPTS: u32 = 20;
/// The pause after the first.
const PAUSE: Duration = Duration::from_millis(2);
/// Names are cut to this length by PostgreSQL, in bytes; here longer ones are refused.
const MAX_NAME: usize = 63;

async fn write(
    session: &Session,
    reads: ReadSet,
    mutations: Vec<Mutation>,
) -> Result<(), TxnError> {
    let request = WriteRequest {
        tablet: SYSTEM_TABLET,
        schema: Vec::new(),
        reads,
        mutations,
        after: session.high_water().get(),
        txn: None,
    };
    let at = session.engine().tablets.write(request).await?;
    session.high_water().raise(at);
    Ok(())
}

/// What follows a change that is committed: it stands whatever becomes of this, so that a failure is
/// a warning and no error.
fn remark_failure(session: &mut Session, followed: Result<(), SqlError>) {
    if let Err(error) = followed {
        let warning = Notice::warning("the change is made, but what follows it is not complete");
        session.notice(warning.detail(error.to_string()));
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: SqlError) -> TxnError {
    TxnError::Internal(error.to_string())
}

fn check_name(name: &str) -> Result<(), SqlError> {
    if name.len() > MAX_NAME {
        let message = format!("identifier \"{name}\" is longer than {MAX_NAME} bytes");
        return Err(SqlError::new(SqlState::NAME_TOO_LONG, message));
    }
    Ok(())
}

fn reference(name: &ast::ObjectName) -> Result<TableReference, SqlError> {
    object_name_to_table_reference(name.clone(), true).map_err(|e| sql_error(&e))
}

/// What a change of the catalog was computed from: rows of the system tablet as they are now.
struct CatalogRows {
    reads: ReadSet,
    /// The values of the keys, in the order in which they were asked for.
    values: Vec<Option<Vec<u8>>>,
}

impl CatalogRows {
    async fn read(session: &Session, keys: Vec<Vec<u8>>) -> Result<Self, TxnError> {
        let tablets = &session.engine().tablets;
        let (at, rows) = tablets.get(SYSTEM_TABLET, keys.clone(), ReadAt::Unconfirmed).await?;
        let versions = rows.iter().map(|row| row.as_ref().map(|row| row.ts));
        let reads = ReadSet { at, keys: keys.into_iter().zip(versions).collect(), ranges: vec![] };
        Ok(Self { reads, values: rows.into_iter().map(|row| row.map(|row| row.value)).collect() })
    }

    /// The key and value of the row at `position`, if it exists.
    fn get(&self, position: usize) -> Option<(&[u8], &[u8])> {
        let value = self.values.get(position)?.as_ref()?;
        Some((&self.reads.keys[position].0, value))
    }

    /// Whether the row at `position` is the table's own as this gateway knows it.
    fn is_present(&self, position: usize, table: &TableInfo) -> Result<bool, TxnError> {
        let Some((key, value)) = self.get(position) else {
            return Ok(false);
        };
        Ok(store::stored_version(key, value).map_err(internal)? == table.version)
    }
}
