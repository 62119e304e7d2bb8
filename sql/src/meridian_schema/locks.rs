//! `meridian.locks` and `meridian.transactions`: who holds and waits for what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray};
use meridian_storage::TabletId;
use meridian_txn::locks::{Age, Mode, TxnId};

use super::{integers, texts, times};
use crate::catalog::CatalogSnapshot;
use crate::cluster_view::LockRow;
use crate::explain::{readable_bound, table_of_key};
use crate::types::PgType;

pub(super) const LOCKS: &[(&str, PgType)] = &[
    ("tablet", PgType::Int8),
    ("node", PgType::Int8),
    ("table_name", PgType::Text),
    ("range_start", PgType::Text),
    ("range_end", PgType::Text),
    ("mode", PgType::Text),
    ("granted", PgType::Bool),
    ("transaction", PgType::Text),
    ("waits_for", PgType::Text),
];

pub(super) const TRANSACTIONS: &[(&str, PgType)] = &[
    ("transaction", PgType::Text),
    ("gateway", PgType::Int8),
    ("began", PgType::Timestamptz),
    ("state", PgType::Text),
    ("tablets", PgType::Int8),
    ("locks", PgType::Int8),
    ("waits_for", PgType::Text),
];

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Shared => "shared",
        Mode::Update => "update",
        Mode::Exclusive => "exclusive",
    }
}

/// Transactions as the text of an array; nothing if there are none.
fn list(transactions: &BTreeSet<TxnId>) -> Option<String> {
    let list: Vec<_> = transactions.iter().map(ToString::to_string).collect();
    (!list.is_empty()).then(|| format!("{{{}}}", list.join(",")))
}

/// A lock on one key has no end.
fn end(row: &LockRow, snapshot: &CatalogSnapshot) -> Option<String> {
    let range = &row.locked.lock.range;
    let one = range.end.as_deref().is_some_and(|end| {
        end.strip_prefix(range.start.as_slice()).is_some_and(|rest| rest == [0])
    });
    (!one).then(|| readable_bound(snapshot, range.end.as_deref()))
}

pub(super) fn locks(rows: &[LockRow], snapshot: &CatalogSnapshot) -> Vec<ArrayRef> {
    let table_name = |row: &LockRow| {
        table_of_key(snapshot, &row.locked.lock.range.start)
            .map(|table| format!("{}.{}", table.schema, table.name))
    };
    let start = |row: &LockRow| readable_bound(snapshot, Some(&row.locked.lock.range.start));
    let granted: BooleanArray = rows.iter().map(|row| Some(row.locked.lock.held)).collect();
    vec![
        integers(rows.iter().map(|row| Some(row.locked.tablet.get()))),
        integers(rows.iter().map(|row| Some(row.node.get()))),
        texts(rows.iter().map(table_name)),
        texts(rows.iter().map(|row| Some(start(row)))),
        texts(rows.iter().map(|row| end(row, snapshot))),
        texts(rows.iter().map(|row| Some(mode(row.locked.lock.mode)))),
        Arc::new(granted),
        texts(rows.iter().map(|row| Some(row.locked.lock.owner.to_string()))),
        texts(rows.iter().map(|row| list(&row.locked.lock.waits_for))),
    ]
}

/// What all tablets say of a transaction.
struct Standing {
    age: Age,
    prepared: bool,
    tablets: BTreeSet<TabletId>,
    locks: u64,
    waits_for: BTreeSet<TxnId>,
}

pub(super) fn transactions(rows: &[LockRow]) -> Vec<ArrayRef> {
    let mut all: BTreeMap<TxnId, Standing> = BTreeMap::new();
    for row in rows {
        let lock = &row.locked.lock;
        let known = all.entry(lock.owner).or_insert_with(|| Standing {
            age: lock.age,
            prepared: false,
            tablets: BTreeSet::new(),
            locks: 0,
            waits_for: BTreeSet::new(),
        });
        known.prepared |= lock.pinned;
        known.tablets.insert(row.locked.tablet);
        known.locks += u64::from(lock.held);
        known.waits_for.extend(&lock.waits_for);
    }
    let state = |standing: &Standing| match (standing.prepared, standing.waits_for.is_empty()) {
        (true, _) => "prepared",
        (false, false) => "waiting",
        (false, true) => "active",
    };
    vec![
        texts(all.keys().map(|txn| Some(txn.to_string()))),
        integers(all.keys().map(|txn| Some(txn.gateway.get()))),
        times(all.values().map(|standing| Some(standing.age.began))),
        texts(all.values().map(|standing| Some(state(standing)))),
        integers(all.values().map(|standing| Some(standing.tablets.len() as u64))),
        integers(all.values().map(|standing| Some(standing.locks))),
        texts(all.values().map(|standing| list(&standing.waits_for))),
    ]
}
