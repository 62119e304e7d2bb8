//! Keys and numbers, wherever their tablets are: what a client does with errors that only say
//! "elsewhere" or "again".

use std::time::Duration;

use meridian_storage::{KeyRange, TabletId};
use meridian_truetime::{EnvironmentExt, Timestamp};
use meridian_txn::{
    Mutation, Node, ReadAt, ReadSet, ScanRequest, TabletDescriptor, TxnError, WriteRequest,
    table_range,
};

use crate::cluster::{TABLE, key};

/// How often a request is routed again.
const ATTEMPTS: u32 = 50;

async fn tablet_of(node: &Node, k: u64) -> Result<TabletDescriptor, TxnError> {
    let found = node.tablets(&KeyRange::point(key(k))).await?;
    found.into_iter().next().ok_or(TxnError::NoSuchTablet { tablet: TabletId::new(0) })
}

fn elsewhere(error: &TxnError) -> bool {
    matches!(error, TxnError::Moved { .. } | TxnError::NoSuchTablet { .. } | TxnError::Conflict)
}

async fn again(node: &Node) {
    node.env().sleep(Duration::from_millis(10)).await;
}

/// Writes a number.
pub async fn put(node: &Node, k: u64, value: u64) -> Result<Timestamp, TxnError> {
    let mut last = TxnError::Conflict;
    for _ in 0..ATTEMPTS {
        let tablet = tablet_of(node, k).await?.id;
        let mutations = vec![Mutation::Put { key: key(k), value: value.to_be_bytes().to_vec() }];
        let request = WriteRequest {
            tablet,
            schema: vec![(TABLE, 1)],
            reads: ReadSet::default(),
            mutations,
            after: Timestamp::MIN,
            txn: None,
        };
        match node.write(request).await {
            Err(error) if elsewhere(&error) => last = error,
            other => return other,
        }
        again(node).await;
    }
    Err(last)
}

fn number(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().expect("eight bytes"))
}

/// Reads a number.
pub async fn get(node: &Node, k: u64) -> Result<Option<u64>, TxnError> {
    let mut last = TxnError::Conflict;
    for _ in 0..ATTEMPTS {
        let tablet = tablet_of(node, k).await?.id;
        let at = ReadAt::Strong { min: Timestamp::MIN };
        match node.get(tablet, vec![key(k)], at).await {
            Ok((_, rows)) => return Ok(rows[0].as_ref().map(|row| number(&row.value))),
            Err(error) if elsewhere(&error) => last = error,
            Err(error) => return Err(error),
        }
        again(node).await;
    }
    Err(last)
}

/// Reads the whole table at one timestamp, as of now.
pub async fn scan(node: &Node) -> Result<Vec<(u64, u64)>, TxnError> {
    scan_with(node, ReadAt::Exact(node.clock().now().latest), false).await
}

/// The same at any timestamp, at the nearest replicas.
pub async fn scan_at(node: &Node, at: Timestamp) -> Result<Vec<(u64, u64)>, TxnError> {
    scan_with(node, ReadAt::Exact(at), true).await
}

async fn scan_with(node: &Node, at: ReadAt, stale: bool) -> Result<Vec<(u64, u64)>, TxnError> {
    let mut found = Vec::new();
    let mut range = table_range(TABLE);
    let mut attempts = 0;
    loop {
        let tablets = node.tablets(&range).await?;
        let part = range.intersect(&tablets[0].range);
        let scan = ScanRequest { range: part.clone(), at, limit: u64::MAX, reverse: false };
        let page = if stale {
            node.scan_stale(tablets[0].id, scan).await
        } else {
            node.scan(tablets[0].id, scan).await
        };
        match page {
            Ok(page) => {
                assert!(!page.more, "it fits");
                for row in page.rows {
                    let rest = row.key.strip_prefix(&key_prefix()[..]).expect("the table's");
                    found.push((decoded(rest), number(&row.value)));
                }
                match part.end {
                    Some(end) if range.contains(&end) => range.start = end,
                    _ => return Ok(found),
                }
            }
            Err(error) if elsewhere(&error) && attempts < ATTEMPTS => {
                attempts += 1;
                again(node).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn key_prefix() -> Vec<u8> {
    meridian_storage::KeyBuilder::new().table(TABLE).finish()
}

fn decoded(rest: &[u8]) -> u64 {
    meridian_storage::KeyReader::new(rest).table().expect("a key's number")
}
