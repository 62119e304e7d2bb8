//! What a write is refused for, and that refused means unchanged.

use std::time::Duration;

use meridian_storage::TabletId;
use meridian_truetime::Timestamp;
use meridian_txn::{Mutation, ReadAt, ReadSet, ScanRequest, TxnError, table_range};

use crate::cluster::{TABLE, insert, key, run, value, write};

fn put(k: u64, value: &str) -> Mutation {
    Mutation::Put { key: key(k), value: value.into() }
}

#[test]
fn a_fence_keeps_writes_of_an_old_schema_out() {
    run(1, "local", Duration::from_millis(2), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(2);
        node.write(insert(1, "before")).await.expect("inserted");
        node.fence_table(&table_range(TABLE), TABLE, 2).await.expect("fenced");
        let refused = node.write(insert(2, "old")).await;
        assert_eq!(refused, Err(TxnError::SchemaChanged { table: TABLE }));
        assert_eq!(value(&node, 2).await, Ok(None));
        let mut present = insert(2, "present");
        present.schema = vec![(TABLE, 2)];
        node.write(present).await.expect("the present version");
    });
}

#[test]
fn a_write_keeps_those_of_an_older_schema_out() {
    run(1, "local", Duration::from_millis(2), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(2);
        let under = |k: u64, schema: &[(u64, u64)]| {
            let mut request = insert(k, "x");
            request.schema = schema.to_vec();
            request
        };
        node.write(under(1, &[(TABLE, 1)])).await.expect("the first version");
        // A refused write teaches nothing.
        let refused = node.write(under(1, &[(TABLE, 2)])).await;
        assert_eq!(refused, Err(TxnError::DuplicateKey { key: key(1) }));
        node.write(under(2, &[(TABLE, 1)])).await.expect("still the first version");
        // One of another table, planned when this one had its second version.
        node.write(under(3, &[(TABLE + 1, 1), (TABLE, 2)])).await.expect("the second version");
        let refused = node.write(under(4, &[(TABLE, 1)])).await;
        assert_eq!(refused, Err(TxnError::SchemaChanged { table: TABLE }));
        let refused = cluster.node(3).write(under(4, &[(TABLE + 1, 1), (TABLE, 1)])).await;
        assert_eq!(refused, Err(TxnError::SchemaChanged { table: TABLE }));
        node.write(under(4, &[(TABLE, 2)])).await.expect("as new as what is known");
        node.write(under(5, &[(TABLE + 1, 1)])).await.expect("the other table is as it was");
    });
}

/// What a network that duplicates makes of one write: its copy conflicts with it, and must not be
/// what the gateway hears.
#[test]
fn a_write_that_arrives_twice_takes_effect_once() {
    run(1, "local", Duration::from_millis(2), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(2);
        cluster.network.update_link(node.id(), cluster.node(1).id(), |link| {
            link.duplication = 1.0;
        });
        for k in 0..20 {
            node.write(insert(k, "x")).await.expect("inserted");
        }
    });
}

#[test]
fn refused_writes_change_nothing() {
    run(1, "local", Duration::from_millis(2), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(2);
        let first = node.write(insert(1, "one")).await.expect("inserted");

        let duplicate = write(
            ReadSet::default(),
            vec![put(2, "two"), Mutation::Insert { key: key(1), value: b"again".to_vec() }],
        );
        let error = node.write(duplicate).await;
        assert_eq!(error, Err(TxnError::DuplicateKey { key: key(1) }));
        assert_eq!(value(&node, 2).await, Ok(None), "half a write was applied");

        // Read by two, written by both: one comes too late.
        let read = ReadSet { keys: vec![(key(1), Some(first))], ..ReadSet::default() };
        node.write(write(read.clone(), vec![put(1, "changed")])).await.expect("first");
        assert_eq!(node.write(write(read, vec![put(1, "lost")])).await, Err(TxnError::Conflict));
        assert_eq!(value(&node, 1).await, Ok(Some("changed".into())));

        // Absence is something that one reads, too.
        let absent = ReadSet { keys: vec![(key(1), None)], ..ReadSet::default() };
        assert_eq!(node.write(write(absent, vec![put(9, "x")])).await, Err(TxnError::Conflict));
    });
}

#[test]
fn a_range_that_was_read_must_not_have_changed() {
    run(1, "local", Duration::ZERO, |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(1);
        node.write(insert(1, "one")).await.expect("inserted");
        let scan = ScanRequest {
            range: table_range(TABLE),
            at: ReadAt::Unconfirmed,
            limit: u64::MAX,
            reverse: false,
        };
        let seen = node.scan(TabletId::new(2), scan).await.expect("scanned");
        assert_eq!(seen.rows.len(), 1);
        let reads = ReadSet { at: seen.at, ranges: vec![table_range(TABLE)], ..ReadSet::default() };
        // A phantom.
        node.write(insert(2, "two")).await.expect("inserted");
        let refused = node.write(write(reads, vec![put(3, "count is one")])).await;
        assert_eq!(refused, Err(TxnError::Conflict));
    });
}

#[test]
fn a_read_at_a_timestamp_repeats() {
    run(1, "us-eu-3", Duration::from_millis(5), |cluster| async move {
        cluster.create_tablet(1).await;
        let node = cluster.node(3);
        node.write(insert(1, "one")).await.expect("inserted");
        let at = node.clock().now().latest;
        let read = || node.get(TabletId::new(2), vec![key(1), key(2)], ReadAt::Exact(at));
        let (_, before) = read().await.expect("read");
        let later = node.write(insert(2, "two")).await.expect("inserted");
        assert!(later > at, "a write got below a promise to a reader");
        let (_, after) = read().await.expect("read");
        assert_eq!(before, after);
    });
}

#[test]
fn timestamps_agree_with_real_time_across_gateways() {
    run(7, "us-eu-3", Duration::from_millis(40), |cluster| async move {
        cluster.create_tablet(1).await;
        let mut last = Timestamp::MIN;
        for k in 0..12 {
            let node = cluster.node(k % 3 + 1);
            let at = node.write(insert(k, "x")).await.expect("inserted");
            assert!(at > last, "{at:?} after {last:?}");
            assert!(at < cluster.world.true_time(), "acknowledged before it had passed");
            last = at;
        }
    });
}
