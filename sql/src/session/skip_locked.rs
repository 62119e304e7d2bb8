//! SELECT ... SKIP LOCKED: rows that another transaction has locked are passed over.
//!
//! The query is run twice. First without locks and without its limit, for the keys of the rows that it
//! would return, in their order; those are locked one by one, and who would have to wait for one leaves
//! it, until there are as many as the query wants. Then it is run again, over these rows only: what has
//! changed meanwhile so that it doesn't match any more is not returned (and stays locked).
//!
//! As in PostgreSQL, the rows are not all that match: what is returned isn't serializable, what is
//! locked is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use datafusion::logical_expr::{FetchType, LogicalPlan, SkipType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::sqlparser::ast;
use futures::stream::{self, StreamExt, TryStreamExt};
use meridian_txn::locks::Mode;
use meridian_txn::{TxnError, Wait};

use super::query::{QueryError, bind, physical_plan, plan, read_at, rewritten, start};
use super::{Parameters, Session};
use crate::catalog::TableInfo;
use crate::codec;
use crate::error::SqlError;
use crate::plan::planner::Scope;
use crate::scan::{Reads, ScanExec, StatementContext};
use crate::tablets::Transaction;

/// How many rows are asked for at a time, where many are wanted.
const AT_ONCE: usize = 16;

/// The table whose locked rows are skipped.
#[derive(Clone, Debug)]
pub(crate) struct Skipping {
    pub(crate) table: Arc<TableInfo>,
    /// The name that it goes by in the query.
    pub(crate) alias: String,
    pub(crate) mode: Mode,
}

/// Locks the rows that the query is to return; their keys.
pub(super) async fn lock(
    session: &Session,
    scope: &Scope,
    query: &ast::Query,
    parameters: &Parameters,
    skipping: &Skipping,
    txn: &Arc<dyn Transaction>,
) -> Result<BTreeSet<Vec<u8>>, QueryError> {
    // The optimizer would hide the limit in what is below.
    let whole = scope.plan_query(rewritten(query)?, &parameters.fields())?;
    let mut wanted = limit(&bind(whole, &parameters.values)?);
    let table = &skipping.table;
    let columns = plan(session, scope, None, &with_key(query, skipping)?, parameters)?;
    let physical = physical_plan(scope, &columns).await?;
    if scans(physical.as_ref(), table) != 1 {
        let message = "SKIP LOCKED of a table that is read twice is not supported";
        return Err(SqlError::unsupported(message).into());
    }
    let reads = Reads::At(read_at(session, physical.as_ref()));
    let statement = Arc::new(StatementContext::new(reads, session.high_water.clone()));
    let mut batches = start(session, scope, physical, statement)?;
    let codec = codec::row_codec(table)?;
    // What the transaction has written itself, it has.
    let own = txn.changes();
    let range = crate::scan::ranges::whole_table(table);
    let own = meridian_txn::changes_within(&own, &range).map(|(key, _)| key.clone());
    let mut locked: BTreeSet<Vec<u8>> = own.collect();
    while let Some(batch) = batches.try_next().await? {
        let first = batch.num_columns() - table.primary_key.len();
        let keys = codec.keys_of(&batch.columns()[first..])?;
        let mut keys = keys.into_iter().filter(|key| !locked.contains(key)).collect::<Vec<_>>();
        keys.reverse();
        while wanted > 0 && !keys.is_empty() {
            let some = keys.split_off(keys.len().saturating_sub(wanted.min(AT_ONCE)));
            let tries = stream::iter(some.into_iter().rev()).map(|key| async {
                let wait = Wait::For(Duration::ZERO);
                match txn.get(vec![key.clone()], skipping.mode, wait).await {
                    Ok(_) => Ok(Some(key)),
                    Err(TxnError::Locked) => Ok(None),
                    Err(error) => Err(error),
                }
            });
            let granted: Vec<Option<Vec<u8>>> = tries.buffered(AT_ONCE).try_collect().await?;
            for key in granted.into_iter().flatten() {
                wanted -= 1;
                locked.insert(key);
            }
        }
        if wanted == 0 {
            break;
        }
    }
    Ok(locked)
}

/// How many rows the query returns at most, with those that it leaves out before them.
fn limit(plan: &LogicalPlan) -> usize {
    match plan {
        LogicalPlan::Limit(limit) => match (limit.get_skip_type(), limit.get_fetch_type()) {
            (Ok(SkipType::Literal(skip)), Ok(FetchType::Literal(Some(fetch)))) => {
                skip.saturating_add(fetch)
            }
            _ => usize::MAX,
        },
        _ => usize::MAX,
    }
}

/// The query with the columns of the table's key behind its own, and no limit.
fn with_key(query: &ast::Query, skipping: &Skipping) -> Result<ast::Query, SqlError> {
    let mut query = query.clone();
    query.limit_clause = None;
    query.fetch = None;
    let ast::SetExpr::Select(select) = query.body.as_mut() else {
        return Err(SqlError::internal("rows of something else are locked"));
    };
    for (place, column) in skipping.table.key_columns().enumerate() {
        let name = [&skipping.alias, &column.name].map(|name| ast::Ident::with_quote('"', name));
        select.projection.push(ast::SelectItem::ExprWithAlias {
            expr: ast::Expr::CompoundIdentifier(name.into()),
            alias: ast::Ident::with_quote('"', format!("?key{place}")),
        });
    }
    Ok(query)
}

fn scans(plan: &dyn ExecutionPlan, table: &TableInfo) -> usize {
    let here = plan.downcast_ref::<ScanExec>().is_some_and(|scan| scan.scan().table.id == table.id);
    let below: usize = plan.children().into_iter().map(|child| scans(child.as_ref(), table)).sum();
    usize::from(here) + below
}
