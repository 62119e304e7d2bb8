use meridian_truetime::{CostModel, Timestamp, World};

use super::*;
use crate::disk::{DiskFaults, FolderDisk, SimulatedDisk};
use crate::ids::TabletId;
use crate::writer::completion;
use crate::{LogMeta, WriteBatch};

const G: TabletId = TabletId::new(1);

fn open_on(env: &Env, disk: &SimulatedDisk) -> Result<Storage, StorageError> {
    Storage::open(Env::clone(env), Arc::new(disk.clone()), StorageOptions::default())
}

fn in_virtual_time<T: Future>(scenario: impl FnOnce(Env, SimulatedDisk) -> T) -> T::Output {
    World::run_virtual(1, CostModel::default(), |world| {
        scenario(world.node(1), SimulatedDisk::new())
    })
}

/// Writes a vote and a row, durably.
async fn use_it(storage: &Storage) {
    let (done, vote) = completion();
    storage.logs.put_meta(G, LogMeta::Vote, "v".into(), done);
    vote.await.expect("no fault");
    let mut batch = WriteBatch::new();
    batch.put(*b"k", Timestamp::from_nanos(1), Some(b"v".to_vec()));
    storage.data.commit(batch).expect("no fault");
    let (done, flushed) = completion();
    storage.data.flush(done);
    flushed.await.expect("no fault");
}

fn assert_used(storage: &Storage) {
    assert_eq!(storage.logs.meta(G, LogMeta::Vote).as_deref(), Some(&b"v"[..]));
    let row = storage.data.snapshot().expect("readable").get(b"k", Timestamp::MAX);
    assert!(row.expect("readable").is_some());
}

#[test]
fn a_folder_of_another_version_is_refused_and_left_alone() {
    in_virtual_time(|env, disk| async move {
        use_it(&open_on(&env, &disk).expect("new")).await;
        disk.crash(0);
        let present = format!("storage {FORMAT_VERSION} ");
        disk.damage("format", |bytes| {
            let text = String::from_utf8_lossy(bytes).replace(&present, "storage 9 ");
            *bytes = text.into_bytes();
        });
        let error = open_on(&env, &disk).expect_err("another version");
        assert!(matches!(&error, StorageError::OtherFormat { found, .. } if found == "9"));
        assert!(error.to_string().contains("format 9") && error.hint().is_some(), "{error}");
        disk.damage("format", |bytes| {
            let text = String::from_utf8_lossy(bytes).replace("storage 9 ", &present);
            *bytes = text.into_bytes();
        });
        assert_used(&open_on(&env, &disk).expect("untouched"));
    });
}

#[test]
fn somebody_elses_folder_is_refused() {
    in_virtual_time(|env, disk| async move {
        disk.damage("log.redb", |bytes| *bytes = b"not ours".to_vec());
        let error = open_on(&env, &disk).expect_err("no format file");
        assert!(matches!(error, StorageError::NotOurs { .. }), "{error}");
        disk.damage("format", |bytes| *bytes = b"#!/bin/sh".to_vec());
        let error = open_on(&env, &disk).expect_err("another format file");
        assert!(matches!(error, StorageError::NotOurs { .. }), "{error}");
    });
}

#[test]
fn a_disk_in_use_is_refused() {
    in_virtual_time(|env, disk| async move {
        let storage = open_on(&env, &disk).expect("new");
        let error = open_on(&env, &disk).expect_err("taken");
        assert!(matches!(error, StorageError::InUse { .. }), "{error}");
        assert!(error.hint().is_some());
        disk.crash(0);
        open_on(&env, &disk).expect("its owner is dead");
        drop(storage);
    });
}

#[test]
fn a_real_folder_opens_again_as_soon_as_it_is_dropped() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let home = tempfile::tempdir().expect("a folder");
    runtime.expect("a runtime").block_on(async {
        let env: Env = World::real(1).node(1);
        let open = || {
            let disk = FolderDisk::open(home.path())?;
            Storage::open(Env::clone(&env), Arc::new(disk), StorageOptions::default())
        };
        let storage = open().expect("new");
        use_it(&storage).await;
        assert!(matches!(open(), Err(StorageError::InUse { .. })));
        drop(storage);
        assert_used(&open().expect("free again"));
    });
}

/// Whatever is wrong with the files, opening them gives an error or a storage, never a panic.
#[test]
fn damaged_files_are_refused_without_a_panic() {
    for file in ["log.redb", "data.redb"] {
        for damage in 0..60_usize {
            in_virtual_time(|env, disk| async move {
                use_it(&open_on(&env, &disk).expect("new")).await;
                // The owner is gone without closing, so that the files are checked when opened.
                disk.crash(0);
                disk.damage(file, |bytes| {
                    let at = damage * 97 % 8_192;
                    match damage % 4 {
                        0 => bytes.truncate(damage * 1_000),
                        1 => bytes[at] ^= 0x55,
                        2 => bytes[at..at + 64].fill(0xff),
                        _ => bytes[at..].fill(0),
                    }
                });
                if let Err(error) = open_on(&env, &disk) {
                    let is_clear = matches!(
                        &error,
                        StorageError::Damaged { file: f, .. } | StorageError::Io { file: f, .. }
                            if f == file
                    );
                    assert!(is_clear, "{damage}: {error}");
                }
            });
        }
    }
}

#[test]
fn a_missing_file_is_noticed() {
    in_virtual_time(|env, disk| async move {
        use_it(&open_on(&env, &disk).expect("new")).await;
        disk.crash(0);
        disk.damage("data.redb", Vec::clear);
        let error = open_on(&env, &disk).expect_err("missing");
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    });
}

/// The power may fail at any moment of the first start, too.
#[test]
fn a_first_start_can_be_interrupted_anywhere() {
    for changes_left in 0..80 {
        for seed in 0..8 {
            in_virtual_time(|env, disk| async move {
                let faults = DiskFaults::default();
                disk.set_faults(DiskFaults { changes_left: Some(changes_left), ..faults });
                let _ = open_on(&env, &disk);
                disk.crash(seed);
                disk.set_faults(faults);
                let storage = open_on(&env, &disk);
                let storage = storage.unwrap_or_else(|e| panic!("{changes_left}/{seed}: {e}"));
                use_it(&storage).await;
                disk.crash(seed);
                assert_used(&open_on(&env, &disk).expect("in use"));
            });
        }
    }
}

/// redb's issue 620 is a panic on opening a file whose disk had been full.
#[test]
fn a_disk_that_was_full_opens_again() {
    for seed in 0..20 {
        in_virtual_time(|env, disk| async move {
            let storage = open_on(&env, &disk).expect("new");
            use_it(&storage).await;
            let spare = disk.used() + seed * 10_000;
            disk.set_faults(DiskFaults { capacity: Some(spare), ..DiskFaults::default() });
            let mut failure = None;
            for index in 1..200 {
                let (done, durable) = completion();
                storage.logs.append(G, vec![(index, vec![7; 50_000].into())], done);
                if let Err(error) = durable.await {
                    failure = Some(error);
                    break;
                }
            }
            assert!(matches!(failure, Some(StorageError::Full { .. })), "{failure:?}");
            disk.crash(seed);
            // Still full: an error will do, a panic won't.
            if let Ok(storage) = open_on(&env, &disk) {
                assert_used(&storage);
            }
            disk.crash(seed);
            disk.set_faults(DiskFaults::default());
            assert_used(&open_on(&env, &disk).expect("there is space again"));
        });
    }
}
