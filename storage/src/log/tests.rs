use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use meridian_truetime::{CostModel, Env, EnvironmentExt, World};
use proptest::prelude::*;

use super::*;
use crate::disk::{DiskFaults, SimulatedDisk};
use crate::store::{Storage, StorageOptions};
use crate::writer::completion;

const G: TabletId = TabletId::new(1);

fn open(env: &Env, disk: &SimulatedDisk) -> LogStore {
    // A small tail, so that reads meet the file too.
    let options = StorageOptions { log_tail: 300, ..StorageOptions::default() };
    Storage::open(Env::clone(env), Arc::new(disk.clone()), options).expect("it opens").logs
}

fn entry(index: u64, tag: usize) -> (u64, Bytes) {
    (index, Bytes::from(format!("{index}/{tag}")))
}

fn ignore() -> Done {
    Box::new(|_| {})
}

fn in_virtual_time<T: Future>(scenario: impl FnOnce(Env, SimulatedDisk) -> T) -> T::Output {
    let cost = CostModel { sync: Duration::from_millis(1), ..CostModel::default() };
    World::run_virtual(1, cost, |world| scenario(world.node(1), SimulatedDisk::new()))
}

/// A log as a person would write it, to compare with.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    groups: BTreeMap<TabletId, ModelGroup>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct ModelGroup {
    entries: BTreeMap<u64, Bytes>,
    purged: Option<u64>,
    meta: BTreeMap<LogMeta, Bytes>,
}

/// A write as the tests draw it; the numbers are relative to where the log stands.
#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Truncate(u64),
    TruncateAll,
    Purge(u64),
    Meta(LogMeta),
    Remove,
    Wait,
}

fn step() -> impl Strategy<Value = (u64, Step)> {
    let step = prop_oneof![
        8 => (0..6_u64).prop_map(Step::Append),
        2 => (0..5_u64).prop_map(Step::Truncate),
        1 => Just(Step::TruncateAll),
        3 => (0..9_u64).prop_map(Step::Purge),
        2 => prop::sample::select(LogMeta::ALL.to_vec()).prop_map(Step::Meta),
        1 => Just(Step::Remove),
        3 => Just(Step::Wait),
    ];
    (1..4_u64, step)
}

impl Model {
    /// Applies a step here and to the store.
    fn apply(&mut self, store: &LogStore, id: TabletId, step: &Step, tag: usize, done: Done) {
        let group = self.groups.entry(id).or_default();
        let last = group.entries.keys().next_back().copied().or(group.purged).unwrap_or(0);
        match step {
            Step::Append(n) => {
                let entries: Vec<_> = (last + 1..=last + n).map(|i| entry(i, tag)).collect();
                group.entries.extend(entries.iter().cloned());
                store.append(id, entries, done);
            }
            Step::Truncate(n) => {
                let keep = last.saturating_sub(*n);
                group.entries.retain(|index, _| *index <= keep);
                store.truncate_after(id, Some(keep), done);
            }
            Step::TruncateAll => {
                group.entries.clear();
                store.truncate_after(id, None, done);
            }
            Step::Purge(n) => {
                // Also behind the end, and what is purged already.
                let index = (last + 2).saturating_sub(*n);
                group.entries.retain(|i, _| *i > index);
                group.purged = group.purged.max(Some(index));
                store.purge_through(id, index, done);
            }
            Step::Meta(meta) => {
                let value = Bytes::from(tag.to_string());
                group.meta.insert(*meta, value.clone());
                store.put_meta(id, *meta, value, done);
            }
            Step::Remove => {
                let vote = group.meta.remove(&LogMeta::Vote);
                let meta = vote.map(|vote| (LogMeta::Vote, vote)).into_iter().collect();
                *group = ModelGroup { meta, ..ModelGroup::default() };
                store.remove_group(id, done);
            }
            Step::Wait => done(Ok(())),
        }
        // A group that nothing was ever kept of is none.
        self.groups.retain(|_, group| *group != ModelGroup::default());
    }

    fn of(store: &LogStore) -> Self {
        let mut groups = BTreeMap::new();
        for id in store.groups() {
            let entries: BTreeMap<_, _> =
                store.entries(id, 0..u64::MAX).expect("readable").into_iter().collect();
            let ends = entries.keys().next().copied().zip(entries.keys().next_back().copied());
            assert_eq!(store.bounds(id), ends);
            let meta = LogMeta::ALL.into_iter();
            let meta = meta.filter_map(|meta| Some((meta, store.meta(id, meta)?))).collect();
            groups.insert(id, ModelGroup { entries, purged: store.purged(id), meta });
        }
        groups.retain(|_, group| *group != ModelGroup::default());
        Self { groups }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// What was written can be read at once, durable or not, and again after a restart.
    #[test]
    fn reads_see_all_writes(steps in prop::collection::vec(step(), 1..40)) {
        in_virtual_time(|env, disk| async move {
            let mut model = Model::default();
            let store = open(&env, &disk);
            for (tag, (group, step)) in steps.iter().enumerate() {
                let (done, completion) = completion();
                model.apply(&store, TabletId::new(*group), step, tag, done);
                assert_eq!(Model::of(&store), model);
                if matches!(step, Step::Wait) {
                    completion.await.expect("no fault");
                    env.sleep(Duration::from_millis(2)).await;
                    assert_eq!(Model::of(&store), model);
                }
            }
            let (done, completion) = completion();
            store.append(G, vec![], done);
            completion.await.expect("no fault");
            drop(store);
            env.sleep(Duration::from_millis(1)).await;
            assert_eq!(Model::of(&open(&env, &disk)), model);
        });
    }

    /// After a crash the store is what it was after some prefix of the writes, and what was
    /// answered is in that prefix. The power fails in the middle of any commit, or between two.
    #[test]
    fn a_crash_keeps_what_was_answered_and_tears_nothing(
        steps in prop::collection::vec(step(), 1..40),
        pause in 0..4_000_u64,
        changes_left in 0..300_u64,
        seed: u64,
    ) {
        in_virtual_time(|env, disk| async move {
            let mut model = Model::default();
            let mut history = vec![model.clone()];
            let answered = Arc::new(Mutex::new(0));
            let store = open(&env, &disk);
            disk.set_faults(DiskFaults {
                changes_left: Some(changes_left),
                ..DiskFaults::default()
            });
            for (tag, (group, step)) in steps.iter().enumerate() {
                let answers = Arc::clone(&answered);
                let done: Done = Box::new(move |result| {
                    if result.is_ok() {
                        let mut answered = answers.lock().expect("no panic");
                        assert_eq!(*answered, tag, "in order");
                        *answered = tag + 1;
                    }
                });
                if matches!(step, Step::Wait) {
                    store.append(G, vec![], done);
                    env.sleep(Duration::from_micros(pause)).await;
                } else {
                    model.apply(&store, TabletId::new(*group), step, tag, done);
                }
                history.push(model.clone());
            }
            env.sleep(Duration::from_micros(pause)).await;
            disk.crash(seed);
            disk.set_faults(DiskFaults::default());
            let answered = *answered.lock().expect("no panic");
            let found = Model::of(&open(&env, &disk));
            let last = history.iter().rposition(|model| *model == found);
            assert!(
                last.is_some_and(|last| last >= answered),
                "{answered} answered, found {found:?}, {last:?}"
            );
        });
    }
}

#[test]
fn many_groups_share_one_sync() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        store.append(G, vec![entry(1, 0)], ignore());
        env.sleep(Duration::from_micros(500)).await;
        let before = disk.syncs();
        let completions: Vec<_> = (2..200)
            .map(|group| {
                let (done, completion) = completion();
                store.append(TabletId::new(group), vec![entry(1, 0)], done);
                completion
            })
            .collect();
        for completion in completions {
            completion.await.expect("no fault");
        }
        // One for the first, one for all the others.
        assert_eq!(disk.syncs() - before, 2);
    });
}

#[test]
fn after_a_failed_write_the_store_refuses_everything() {
    let faults = [
        DiskFaults { fail_syncs: true, ..DiskFaults::default() },
        DiskFaults { fail_writes: true, ..DiskFaults::default() },
        DiskFaults { capacity: Some(0), ..DiskFaults::default() },
    ];
    for fault in faults {
        in_virtual_time(|env, disk| async move {
            let store = open(&env, &disk);
            let (done, durable) = completion();
            store.append(G, vec![entry(1, 0)], done);
            durable.await.expect("no fault yet");
            disk.set_faults(fault);
            let (done, lost) = completion();
            // Larger than what the file has free.
            store.append(G, vec![(2, Bytes::from(vec![7; 4 << 20]))], done);
            let (done, behind) = completion();
            store.append(G, vec![entry(3, 0)], done);
            lost.await.expect_err("the disk failed");
            behind.await.expect_err("it was behind the failed one");
            disk.set_faults(DiskFaults::default());
            let (done, later) = completion();
            store.append(G, vec![entry(4, 0)], done);
            let error = later.await.expect_err("the disk has healed, the store has not");
            assert!(matches!(error, StorageError::Stopped { .. }), "{error}");
            assert!(store.entries(G, 0..9).is_err());
            disk.crash(1);
            let entries = open(&env, &disk).entries(G, 0..9).expect("opened anew");
            assert_eq!(entries.first(), Some(&entry(1, 0)));
            assert!(entries.len() <= 2, "{entries:?}");
        });
    }
}

#[test]
fn a_log_has_no_holes() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        store.append(G, vec![entry(5, 0), entry(6, 0)], ignore());
        for wrong in [vec![entry(8, 0)], vec![entry(6, 0)], vec![entry(7, 0), entry(9, 0)]] {
            let (done, completion) = completion();
            store.append(G, wrong, done);
            let error = completion.await.expect_err("a hole");
            assert!(matches!(error, StorageError::OutOfOrder { .. }), "{error}");
        }
        store.purge_through(G, 10, ignore());
        assert_eq!(store.bounds(G), None);
        let (done, refused) = completion();
        store.append(G, vec![entry(10, 0)], done);
        assert!(refused.await.is_err(), "purged");
        store.append(G, vec![entry(11, 0)], ignore());
        assert_eq!(store.bounds(G), Some((11, 11)));
    });
}

#[test]
fn a_tail_is_bounded_and_old_entries_come_from_the_file() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        for index in 1..=200 {
            store.append(G, vec![entry(index, 0)], ignore());
            store.append(TabletId::new(2), vec![entry(index, 0)], ignore());
            store.purge_through(TabletId::new(2), index, ignore());
        }
        let (done, completion) = completion();
        store.append(G, vec![entry(201, 0)], done);
        completion.await.expect("no fault");
        assert!(store.memory().tail_is_within_limits());
        let entries = store.entries(G, 3..500).expect("readable");
        assert_eq!(entries, (3..=201).map(|i| entry(i, 0)).collect::<Vec<_>>());
        assert_eq!(store.entries(G, 4..6).expect("readable").len(), 2);
        assert_eq!(store.entries(G, 202..900).expect("readable"), []);
    });
}

#[test]
fn a_thread_writes_in_the_real_world() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let home = tempfile::tempdir().expect("a folder");
    let open = |env| {
        let disk = crate::FolderDisk::open(home.path()).expect("free");
        Storage::open(env, Arc::new(disk), StorageOptions::default()).expect("it opens").logs
    };
    runtime.block_on(async {
        let env: Env = World::real(1).node(1);
        let store = open(Env::clone(&env));
        for index in 1..=100 {
            store.append(G, vec![entry(index, 0)], Box::new(|result| result.expect("no fault")));
        }
        drop(store);
        let store = open(env);
        assert_eq!(store.bounds(G), Some((1, 100)));
    });
}

#[test]
fn entries_stay_in_memory_until_they_are_durable() {
    in_virtual_time(|env, disk| async move {
        let store = open(&env, &disk);
        store.append(G, vec![entry(1, 0)], ignore());
        env.sleep(Duration::from_micros(500)).await;
        // Far beyond the limit, and behind the write that is on its way.
        store.append(G, (2..=200).map(|index| entry(index, 0)).collect(), ignore());
        env.sleep(Duration::from_micros(700)).await;
        assert!(!store.memory().tail_is_within_limits(), "only the first entry is durable");
        let expected: Vec<_> = (1..=200).map(|index| entry(index, 0)).collect();
        assert_eq!(store.entries(G, 1..201).expect("readable"), expected);
        env.sleep(Duration::from_millis(2)).await;
        assert!(store.memory().tail_is_within_limits());
        assert_eq!(store.entries(G, 1..201).expect("readable"), expected);
    });
}
