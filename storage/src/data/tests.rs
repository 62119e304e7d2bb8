use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_truetime::{CostModel, Env, EnvironmentExt, World};
use proptest::prelude::*;

use super::*;
use crate::disk::{DiskFaults, SimulatedDisk};
use crate::store::{Storage, StorageOptions};
use crate::writer::completion;

fn open(env: &Env, disk: &SimulatedDisk) -> DataStore {
    let disk = Arc::new(disk.clone());
    Storage::open(Env::clone(env), disk, StorageOptions::default()).expect("it opens").data
}

fn in_virtual_time<T: Future>(scenario: impl FnOnce(Env, SimulatedDisk) -> T) -> T::Output {
    World::run_virtual(1, CostModel::default(), |world| {
        scenario(world.node(1), SimulatedDisk::new())
    })
}

fn at(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(nanos)
}

async fn flush(store: &DataStore) -> Result<(), StorageError> {
    let (done, completion) = completion();
    store.flush(done);
    completion.await
}

/// Versions by key and then time, as a person would keep them.
type Model = BTreeMap<Vec<u8>, BTreeMap<Timestamp, Option<Vec<u8>>>>;

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, Timestamp, Option<Vec<u8>>),
    Clear(KeyRange),
    Collect(KeyRange, Timestamp),
}

/// Few keys, some a prefix of others, so that steps meet.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0_u8, 1, 0xff]), 0..3)
}

fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        30 => (0..30_u64).prop_map(at),
        1 => Just(Timestamp::MIN),
        1 => Just(Timestamp::MAX),
    ]
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        Just(KeyRange::all()),
        (key(), prop::option::of(key())).prop_map(|(start, end)| KeyRange { start, end }),
        key().prop_map(KeyRange::prefix),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop::option::weighted(0.8, prop::collection::vec(any::<u8>(), 0..4));
    prop_oneof![
        40 => (key(), time(), value).prop_map(|(key, ts, value)| Step::Put(key, ts, value)),
        1 => range().prop_map(Step::Clear),
        3 => (range(), time()).prop_map(|(range, horizon)| Step::Collect(range, horizon)),
    ]
}

fn add(batch: &mut WriteBatch, step: &Step) {
    match step.clone() {
        Step::Put(key, ts, value) => batch.put(key, ts, value),
        Step::Clear(range) => batch.clear_range(range),
        Step::Collect(range, horizon) => batch.collect_garbage(range, horizon),
    }
}

fn apply(model: &mut Model, step: &Step) {
    match step {
        Step::Put(key, ts, value) => {
            model.entry(key.clone()).or_default().insert(*ts, value.clone());
        }
        Step::Clear(range) => model.retain(|key, _| !range.contains(key)),
        Step::Collect(range, horizon) => {
            for (_, versions) in model.iter_mut().filter(|(key, _)| range.contains(key)) {
                let newest = versions.range(..=*horizon).next_back();
                let Some((kept, value)) = newest.map(|(ts, value)| (*ts, value.clone())) else {
                    continue;
                };
                versions.retain(|ts, _| *ts > *horizon || *ts == kept && value.is_some());
            }
            model.retain(|_, versions| !versions.is_empty());
        }
    }
}

fn visible(model: &Model, range: &KeyRange, at: Timestamp) -> Vec<Row> {
    let keys = model.iter().filter(|(key, _)| range.contains(key));
    keys.filter_map(|(key, versions)| {
        let (ts, value) = versions.range(..=at).next_back()?;
        Some(Row { key: key.clone(), ts: *ts, value: value.clone()? })
    })
    .collect()
}

fn all_versions(model: &Model, range: &KeyRange) -> Vec<(Vec<u8>, Timestamp, Option<Vec<u8>>)> {
    let keys = model.iter().filter(|(key, _)| range.contains(key));
    keys.flat_map(|(key, versions)| {
        versions.iter().rev().map(|(ts, value)| (key.clone(), *ts, value.clone()))
    })
    .collect()
}

fn check(snapshot: &DataSnapshot, model: &Model, key: &[u8], range: &KeyRange, at: Timestamp) {
    let versions = model.get(key);
    let expected = versions.and_then(|versions| versions.range(..=at).next_back());
    let expected = expected.map(|(ts, value)| Version { ts: *ts, value: value.clone() });
    assert_eq!(snapshot.get(key, at).expect("readable"), expected);
    let newest = versions.and_then(|versions| versions.keys().next_back().copied());
    assert_eq!(snapshot.newest(key).expect("readable"), newest);

    let scan = |direction| {
        let rows = snapshot.scan(range, at, direction).expect("readable");
        rows.collect::<Result<Vec<_>, _>>().expect("readable")
    };
    let mut rows = visible(model, range, at);
    assert_eq!(scan(Direction::Forward), rows);
    rows.reverse();
    assert_eq!(scan(Direction::Backward), rows);

    let expected = all_versions(model, range);
    let found: Result<Vec<_>, _> = snapshot.versions(range).expect("readable").collect();
    assert_eq!(found.expect("readable"), expected);
    let changed = expected.iter().any(|(_, ts, _)| *ts > at);
    assert_eq!(snapshot.changed_since(range, at).expect("readable"), changed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn reads_agree_with_a_map_of_versions(
        batches in prop::collection::vec(prop::collection::vec(step(), 1..40), 1..8),
        probes in prop::collection::vec((key(), range(), time()), 20),
    ) {
        in_virtual_time(|env, disk| async move {
            let store = open(&env, &disk);
            let mut model = Model::new();
            let mut past = vec![];
            for steps in &batches {
                past.push((store.snapshot().expect("readable"), model.clone()));
                let mut batch = WriteBatch::new();
                for step in steps {
                    add(&mut batch, step);
                    apply(&mut model, step);
                }
                store.commit(batch).expect("no fault");
            }
            past.push((store.snapshot().expect("readable"), model));
            for (snapshot, model) in &past {
                for (key, range, at) in &probes {
                    check(snapshot, model, key, range, *at);
                }
            }
        });
    }

    /// The power fails in the middle of anything: what is found is the state after some commit at
    /// or behind the last flush that was answered, whole.
    #[test]
    fn a_crash_keeps_what_was_flushed_and_tears_nothing(
        batches in prop::collection::vec((prop::collection::vec(step(), 1..9), any::<bool>()), 1..30),
        changes_left in 0..200_u64,
        seed: u64,
    ) {
        in_virtual_time(|env, disk| async move {
            let store = open(&env, &disk);
            disk.set_faults(DiskFaults {
                changes_left: Some(changes_left),
                ..DiskFaults::default()
            });
            let mut history = vec![Model::new()];
            let mut flushed = 0;
            for (number, (steps, flushes)) in (1_u64..).zip(&batches) {
                let mut batch = WriteBatch::new();
                let mut model = history.last().expect("never empty").clone();
                for step in steps {
                    add(&mut batch, step);
                    apply(&mut model, step);
                }
                batch.put_record(*b"applied", number.to_be_bytes());
                history.push(model);
                if store.commit(batch).is_err() {
                    break;
                }
                if *flushes && flush(&store).await.is_ok() {
                    flushed = number;
                }
            }
            disk.crash(seed);
            disk.set_faults(DiskFaults::default());
            let found = open(&env, &disk).snapshot().expect("readable");
            let applied = found.record(b"applied").expect("readable");
            let applied = applied.map_or(0, |bytes| {
                u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
            });
            assert!(applied >= flushed, "{applied} applied, {flushed} flushed");
            let model = &history[usize::try_from(applied).expect("small")];
            check(&found, model, b"", &KeyRange::all(), Timestamp::MAX);
        });
    }
}

#[test]
fn a_flush_outlives_a_crash_and_a_commit_alone_does_not() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let mut batch = WriteBatch::new();
        batch.put(*b"a", at(1), Some(b"flushed".to_vec()));
        store.commit(batch).expect("no fault");
        flush(&store).await.expect("no fault");
        let mut batch = WriteBatch::new();
        batch.put(*b"b", at(2), Some(b"not flushed".to_vec()));
        store.commit(batch).expect("no fault");
        let snapshot = store.snapshot().expect("readable");
        assert!(snapshot.get(b"b", at(2)).expect("readable").is_some());
        disk.crash(0);
        let snapshot = open(&env, &disk).snapshot().expect("readable");
        assert!(snapshot.get(b"a", at(2)).expect("readable").is_some());
        assert!(snapshot.get(b"b", at(2)).expect("readable").is_none());
    });
}

#[test]
fn a_flush_of_nothing_is_free() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let mut batch = WriteBatch::new();
        batch.put_record(*b"r", *b"v");
        store.commit(batch).expect("no fault");
        flush(&store).await.expect("no fault");
        let syncs = disk.syncs();
        flush(&store).await.expect("no fault");
        store.commit(WriteBatch::new()).expect("no fault");
        flush(&store).await.expect("no fault");
        assert_eq!(disk.syncs(), syncs);
    });
}

#[test]
fn after_a_failed_flush_the_store_refuses_everything() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let mut batch = WriteBatch::new();
        batch.put(*b"a", at(1), Some(vec![]));
        store.commit(batch.clone()).expect("no fault");
        disk.set_faults(DiskFaults { fail_syncs: true, ..DiskFaults::default() });
        flush(&store).await.expect_err("the disk failed");
        disk.set_faults(DiskFaults::default());
        assert!(matches!(store.commit(batch), Err(StorageError::Stopped { .. })));
        assert!(matches!(store.snapshot(), Err(StorageError::Stopped { .. })));
        assert!(matches!(flush(&store).await, Err(StorageError::Stopped { .. })));
    });
}

#[test]
fn records_are_found_by_prefix() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let mut batch = WriteBatch::new();
        for name in ["tablet/1", "tablet/2", "tablet/3", "tablets", "x"] {
            batch.put_record(name, name.to_uppercase());
        }
        batch.delete_record("tablet/2");
        store.commit(batch).expect("no fault");
        drop(store);
        env.sleep(std::time::Duration::from_millis(1)).await;
        // Closing the file makes it durable.
        let snapshot = open(&env, &disk).snapshot().expect("readable");
        let found: Result<Vec<_>, _> = snapshot.records(b"tablet/").expect("readable").collect();
        let pair = |name: &str| (name.as_bytes().to_vec(), name.to_uppercase().into_bytes());
        assert_eq!(found.expect("readable"), [pair("tablet/1"), pair("tablet/3")]);
        assert_eq!(snapshot.record(b"x").expect("readable"), Some(b"X".to_vec()));
        assert_eq!(snapshot.record(b"y").expect("readable"), None);
    });
}

#[test]
fn an_iterator_outlives_its_snapshot_and_moves_to_another_thread() {
    fn is_send<T: Send + 'static>(_: &T) {}
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let mut batch = WriteBatch::new();
        batch.put(*b"a", at(1), Some(vec![1]));
        store.commit(batch).expect("no fault");
        let snapshot = store.snapshot().expect("readable");
        let rows = snapshot.scan(&KeyRange::all(), at(9), Direction::Forward).expect("readable");
        let versions = snapshot.versions(&KeyRange::all()).expect("readable");
        is_send(&snapshot);
        is_send(&rows);
        is_send(&versions);
        drop(snapshot);
        let mut batch = WriteBatch::new();
        batch.clear_range(KeyRange::all());
        store.commit(batch).expect("no fault");
        assert_eq!(rows.count(), 1);
        assert_eq!(versions.count(), 1);
    });
}

#[test]
fn a_range_is_about_as_large_as_what_was_written_to_it() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let whole = KeyRange::all();
        let half = KeyRange::new(500_u32.to_be_bytes(), None);
        let write = |ts| {
            let mut batch = WriteBatch::new();
            for row in 0..1_000_u32 {
                batch.put(row.to_be_bytes(), at(ts), Some(vec![7; 4_000]));
            }
            store.commit(batch).expect("no fault");
        };
        let size = |range| store.snapshot().expect("readable").size_of(range).expect("readable");
        assert_eq!(size(&whole), 0);
        let one = 4 + 8 + 4_000;
        for versions in 1..=6 {
            write(versions);
            assert_eq!(size(&whole), versions * 1_000 * one);
            assert_eq!(size(&half), versions * 500 * one);
        }
        let point = KeyRange::point(7_u32.to_be_bytes());
        assert_eq!(size(&point), 6 * one);
        let mut batch = WriteBatch::new();
        batch.collect_garbage(whole.clone(), at(5));
        batch.clear_range(half.clone());
        store.commit(batch).expect("no fault");
        assert_eq!(size(&half), 0);
        assert_eq!(size(&whole), 2 * 500 * one);
    });
}

#[test]
fn a_size_is_measured_in_slices_and_kept_for_the_ranges_that_are_asked_about() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let range =
            |from: u32, to: u32| KeyRange::new(from.to_be_bytes(), Some(to.to_be_bytes().to_vec()));
        let mut batch = WriteBatch::new();
        for row in 0..1_000_u32 {
            batch.put(row.to_be_bytes(), at(1), Some(vec![7; 4_000]));
        }
        store.commit(batch).expect("no fault");
        let one = 4 + 8 + 4_000;
        let ask = |range: &KeyRange| {
            store.snapshot().expect("readable").size_or_measure(range).expect("readable")
        };
        let asked = |range: &KeyRange| (0..).find_map(|times| Some((times, ask(range)?)));
        assert_eq!(asked(&range(0, 1_000)), Some((4, 1_000 * one)), "a mebibyte each time");
        assert_eq!(asked(&range(0, 1_000)), Some((0, 1_000 * one)), "and nothing again");
        // Two halves: what lay across their border is measured again.
        assert_eq!(asked(&range(0, 500)), Some((1, 500 * one)));
        assert_eq!(asked(&range(500, 1_000)), Some((1, 500 * one)));
        let mut batch = WriteBatch::new();
        batch.put(3_u32.to_be_bytes(), at(2), None);
        store.commit(batch).expect("no fault");
        assert_eq!(asked(&range(0, 500)), Some((0, 500 * one + 12)), "commits keep count");
        assert_eq!(asked(&range(0, 1_000)), Some((0, 1_000 * one + 12)), "and so do two in one");
    });
}

/// More versions than a scan steps over before it descends the tree again.
#[test]
fn keys_of_many_versions_are_passed_in_both_directions() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        let mut model = Model::new();
        let mut batch = WriteBatch::new();
        for key in [&b""[..], b"a", b"a\0", b"b"] {
            for ts in 1..=50 {
                let value = (ts % 5 != 0).then(|| vec![7]);
                let step = Step::Put(key.to_vec(), at(ts), value);
                add(&mut batch, &step);
                apply(&mut model, &step);
            }
        }
        store.commit(batch).expect("no fault");
        let snapshot = store.snapshot().expect("readable");
        let from_a = KeyRange::new(*b"a", Some(b"b".to_vec()));
        for ts in 0..=51 {
            check(&snapshot, &model, b"a", &KeyRange::all(), at(ts));
            check(&snapshot, &model, b"a\0", &from_a, at(ts));
        }
    });
}
