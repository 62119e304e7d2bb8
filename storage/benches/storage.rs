//! Encoding, rows and group commit. `cargo bench --workspace --bench storage`.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use meridian_storage::{
    DataStore, Direction, FolderDisk, KeyBuilder, KeyRange, KeyReader, KeyType, KeyValue, Order,
    Storage, StorageOptions, TabletId, WriteBatch, completion,
};
use meridian_truetime::{Env, Timestamp, World};

fn main() {
    divan::main();
}

/// A storage on a real folder, and what keeps it alive.
struct Bench {
    storage: Storage,
    _runtime: tokio::runtime::Runtime,
    _home: tempfile::TempDir,
}

fn bench() -> Bench {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let home = tempfile::tempdir().expect("a folder");
    let entered = runtime.enter();
    let env: Env = World::real(1).node(1);
    let disk = FolderDisk::open(home.path()).expect("free");
    let storage = Storage::open(env, Arc::new(disk), StorageOptions::default());
    drop(entered);
    Bench { storage: storage.expect("it opens"), _runtime: runtime, _home: home }
}

fn key(row: u64) -> Vec<u8> {
    let row = i64::try_from(row).expect("small");
    KeyBuilder::new().table(100).value(&KeyValue::Int(row), Order::Asc).table(100).finish()
}

const ROWS: u64 = 100_000;
const NOW: Timestamp = Timestamp::from_nanos(1_000);

/// Rows of 100 bytes, each in so many versions, the last of them at `versions`.
fn fill(data: &DataStore, versions: u64) {
    for version in 1..=versions {
        let mut batch = WriteBatch::new();
        for row in 0..ROWS / versions {
            batch.put(key(row), Timestamp::from_nanos(version), Some(vec![7; 100]));
        }
        data.commit(batch).expect("written");
    }
}

fn columns() -> [(KeyValue, KeyType, Order); 3] {
    [
        (KeyValue::Int(4_711), KeyType::Int, Order::Asc),
        (KeyValue::Text("a name of some length".to_owned()), KeyType::Text, Order::Desc),
        (KeyValue::Timestamp(1_790_000_000_123_456), KeyType::Timestamp, Order::Asc),
    ]
}

fn composite() -> Vec<u8> {
    let key = KeyBuilder::new().table(100);
    columns().iter().fold(key, |key, (value, _, order)| key.value(value, *order)).finish()
}

#[divan::bench]
fn encode_key(bencher: Bencher) {
    let columns = columns();
    bencher.bench(|| {
        let key = KeyBuilder::new().table(100);
        let columns = black_box(&columns).iter();
        columns.fold(key, |key, (value, _, order)| key.value(value, *order)).finish()
    });
}

#[divan::bench]
fn decode_key(bencher: Bencher) {
    let key = composite();
    let columns = columns();
    bencher.bench(|| {
        let mut reader = KeyReader::new(black_box(&key));
        reader.table().expect("a table");
        for (_, kind, order) in &columns {
            black_box(reader.value(*kind, *order).expect("a value"));
        }
    });
}

#[divan::bench]
fn get(bencher: Bencher) {
    let bench = bench();
    fill(&bench.storage.data, 1);
    let snapshot = bench.storage.data.snapshot().expect("readable");
    let mut row = 0;
    bencher.bench_local(|| {
        row = (row + 7_919) % ROWS;
        snapshot.get(&key(row), NOW).expect("readable").expect("there")
    });
}

#[divan::bench]
fn get_in_new_snapshot(bencher: Bencher) {
    let bench = bench();
    fill(&bench.storage.data, 1);
    let mut row = 0;
    bencher.bench_local(|| {
        row = (row + 7_919) % ROWS;
        let snapshot = bench.storage.data.snapshot().expect("readable");
        snapshot.get(&key(row), NOW).expect("readable").expect("there")
    });
}

/// The same number of entries in the file, spread over fewer and fewer keys.
#[divan::bench(args = [1, 10, 100], sample_count = 20)]
fn scan_forward(bencher: Bencher, versions: u64) {
    scan(bencher, versions, Direction::Forward);
}

#[divan::bench(args = [1, 10, 100], sample_count = 20)]
fn scan_backward(bencher: Bencher, versions: u64) {
    scan(bencher, versions, Direction::Backward);
}

fn scan(bencher: Bencher, versions: u64, direction: Direction) {
    let bench = bench();
    fill(&bench.storage.data, versions);
    let snapshot = bench.storage.data.snapshot().expect("readable");
    bencher.counter(ItemsCount::new(ROWS / versions)).bench(|| {
        let rows = snapshot.scan(&KeyRange::all(), NOW, direction).expect("readable");
        rows.map(|row| row.expect("readable").value.len()).sum::<usize>()
    });
}

/// A commit that isn't durable, of so many rows in random order.
#[divan::bench(args = [1, 10, 100])]
fn put(bencher: Bencher, rows: u64) {
    let bench = bench();
    fill(&bench.storage.data, 1);
    let mut row = 0;
    let mut ts = 1;
    bencher.counter(ItemsCount::new(rows)).bench_local(|| {
        let mut batch = WriteBatch::new();
        ts += 1;
        for _ in 0..rows {
            row = (row + 7_919) % ROWS;
            batch.put(key(row), Timestamp::from_nanos(ts), Some(vec![7; 100]));
        }
        bench.storage.data.commit(batch).expect("written");
    });
}

/// So many groups append one entry each and all wait until they are durable.
#[divan::bench(args = [1, 10, 100], sample_count = 50)]
fn group_commit(bencher: Bencher, groups: u64) {
    let bench = bench();
    let mut index = 0;
    let entry = Bytes::from(vec![7; 200]);
    bencher.counter(ItemsCount::new(groups)).bench_local(|| {
        index += 1;
        let waiting: Vec<_> = (0..groups)
            .map(|group| {
                let (done, completion) = completion();
                let entries = vec![(index, entry.clone())];
                bench.storage.logs.append(TabletId::new(group), entries, done);
                completion
            })
            .collect();
        for completion in waiting {
            completion.wait().expect("durable");
        }
    });
}
