//! A disk in memory that loses at a crash what was not synced, and fails on demand.
//!
//! What a crash may do follows what real disks and file systems do. Of the writes since the last
//! sync any subset may have reached the medium, in any order, and one of them in part (a *torn*
//! write, to a multiple of a sector). Changes of the file's length are metadata, which journals
//! keep in order: a prefix of them survives, and what was written behind the surviving end is
//! gone. Nothing that was synced is lost. Which of it happens is drawn from the seed of the crash
//! alone, so that a run can be repeated.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile};
use crate::error::StorageError;

/// The unit that a disk writes whole.
const SECTOR: usize = 512;

/// What fails from now on, until it is set again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// Reads give an I/O error.
    pub fail_reads: bool,
    /// Writes give an I/O error, and change nothing.
    pub fail_writes: bool,
    /// Syncs give an I/O error, and make nothing durable.
    pub fail_syncs: bool,
    /// How many bytes all files together may hold; what needs more finds the disk full.
    pub capacity: Option<u64>,
    /// After so many more writes and syncs all of them fail: with [`SimulatedDisk::crash`] behind
    /// it, a power loss in the middle of a commit.
    pub changes_left: Option<u64>,
}

/// A disk in memory. Clones are handles of the same disk, which outlives the node that uses it.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, FileState>,
    /// Counts crashes. A handle opened before the last one is dead.
    incarnation: u64,
    faults: DiskFaults,
    syncs: u64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("files", &self.files.keys())
            .field("incarnation", &self.incarnation)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct FileState {
    /// What a reader sees.
    bytes: Vec<u8>,
    /// What happened since the last sync, with what is needed to take it back.
    unsynced: Vec<Change>,
    open: bool,
}

enum Change {
    Write { offset: usize, data: Vec<u8>, before: Vec<u8> },
    Length { length: usize, before: usize, cut: Vec<u8> },
}

impl SimulatedDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine loses power. Handles that are open fail for ever (their node is gone), and the
    /// disk is free to be opened again. `seed` decides what survives of the unsynced writes.
    /// Faults stay as they are.
    pub fn crash(&self, seed: u64) {
        let mut state = self.lock();
        state.incarnation += 1;
        let mut draw = Draw(seed);
        for file in state.files.values_mut() {
            file.crash(&mut draw);
            file.open = false;
        }
    }

    /// Sets what fails from now on; `DiskFaults::default()` heals the disk.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.lock().faults = faults;
    }

    /// How many syncs have succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// How many bytes the files hold together.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Changes the bytes of a file behind everybody's back, durably: flipped bits, truncation, or
    /// another version's file.
    pub fn damage(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let file = state.files.entry(file.to_owned()).or_default();
        file.unsynced.clear();
        change(&mut file.bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimulatedDisk {
    fn place(&self) -> String {
        "the simulated disk".to_owned()
    }

    fn open(&self, file: &str) -> Result<Box<dyn DiskFile>, StorageError> {
        let mut state = self.lock();
        let incarnation = state.incarnation;
        let opened = state.files.entry(file.to_owned()).or_default();
        if opened.open {
            return Err(StorageError::InUse { place: self.place(), holder: None });
        }
        opened.open = true;
        Ok(Box::new(SimulatedFile { disk: self.clone(), name: file.to_owned(), incarnation }))
    }
}

impl DiskFaults {
    fn count_change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            Some(0) => Err(io::Error::other("simulated power loss")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl State {
    fn used(&self) -> u64 {
        self.files.values().map(|file| file.bytes.len() as u64).sum()
    }
}

impl FileState {
    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if end > self.bytes.len() {
            self.set_length(end);
        }
        let before = self.bytes[offset..end].to_vec();
        self.bytes[offset..end].copy_from_slice(data);
        self.unsynced.push(Change::Write { offset, data: data.to_vec(), before });
    }

    fn set_length(&mut self, length: usize) {
        let before = self.bytes.len();
        let cut = self.bytes.get(length..).unwrap_or_default().to_vec();
        self.bytes.resize(length, 0);
        self.unsynced.push(Change::Length { length, before, cut });
    }

    /// Back to what was synced, then forward by what the crash lets survive.
    fn crash(&mut self, draw: &mut Draw) {
        let changes = std::mem::take(&mut self.unsynced);
        for change in changes.iter().rev() {
            match change {
                Change::Write { offset, before, .. } => {
                    self.bytes[*offset..offset + before.len()].copy_from_slice(before);
                }
                Change::Length { length, before, cut } => {
                    self.bytes.resize(*before, 0);
                    self.bytes
                        .get_mut(*length..)
                        .unwrap_or_default()
                        .copy_from_slice(cut.as_slice());
                }
            }
        }
        let survival = Survival::draw(draw, changes.len());
        let lengths_kept = draw.below(changes.len() + 1);
        for (i, change) in changes.into_iter().enumerate() {
            match change {
                Change::Length { length, .. } if survival.keeps_length(i, lengths_kept) => {
                    self.bytes.resize(length, 0);
                }
                Change::Length { .. } => {}
                Change::Write { offset, data, .. } => {
                    let kept = survival.keeps(draw, i, data.len());
                    let end = (offset + kept).min(self.bytes.len());
                    if offset < end {
                        self.bytes[offset..end].copy_from_slice(&data[..end - offset]);
                    }
                }
            }
        }
    }
}

/// Which of the unsynced changes survive a crash.
enum Survival {
    None,
    All,
    /// The first few, the last of them torn: a disk that writes in order.
    Prefix(usize),
    /// Each by the toss of a coin, some torn: a disk that writes in any order.
    Any,
}

impl Survival {
    fn draw(draw: &mut Draw, changes: usize) -> Self {
        match draw.below(6) {
            0 => Self::None,
            1 => Self::All,
            2 | 3 => Self::Prefix(draw.below(changes + 1)),
            _ => Self::Any,
        }
    }

    fn keeps_length(&self, i: usize, kept: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Prefix(n) => i < *n,
            Self::Any => i < kept,
        }
    }

    /// How many of a write's bytes survive.
    fn keeps(&self, draw: &mut Draw, i: usize, length: usize) -> usize {
        let torn = |draw: &mut Draw| (draw.below(length / SECTOR + 1) * SECTOR).min(length);
        match self {
            Self::None => 0,
            Self::All => length,
            Self::Prefix(n) if i + 1 == *n => torn(draw),
            Self::Prefix(n) => {
                if i < *n {
                    length
                } else {
                    0
                }
            }
            Self::Any => match draw.below(8) {
                0..4 => length,
                4 => torn(draw),
                _ => 0,
            },
        }
    }
}

/// A seeded sequence of numbers (splitmix64).
struct Draw(u64);

impl Draw {
    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        usize::try_from(z % bound.max(1) as u64).unwrap_or(0)
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    name: String,
    incarnation: u64,
}

impl SimulatedFile {
    /// Runs `work` on the file unless its node has crashed.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.lock();
        if state.incarnation != self.incarnation {
            return Err(io::Error::other("the node of this file has crashed"));
        }
        work(&mut state)
    }

    /// Runs `work` on the bytes if the disk takes writes and has space for `end` bytes.
    fn change(&self, end: u64, work: impl FnOnce(&mut FileState, usize)) -> io::Result<()> {
        self.with(|state| {
            state.faults.count_change()?;
            if state.faults.fail_writes {
                return Err(io::Error::other("simulated write error"));
            }
            let used = state.used();
            let capacity = state.faults.capacity.unwrap_or(u64::MAX);
            let file = state.files.entry(self.name.clone()).or_default();
            let grows = end.saturating_sub(file.bytes.len() as u64);
            if grows > 0 && used.saturating_add(grows) > capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            work(file, usize::try_from(end).map_err(io::Error::other)?);
            Ok(())
        })
    }
}

impl DiskFile for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.files.get(&self.name).map_or(0, |f| f.bytes.len() as u64)))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|state| {
            if state.faults.fail_reads {
                return Err(io::Error::other("simulated read error"));
            }
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes = state.files.get(&self.name).map_or(&[][..], |file| &file.bytes);
            let found = start.checked_add(out.len()).and_then(|end| bytes.get(start..end));
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        self.change(end, |file, end| file.write(end - data.len(), data))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.change(length, FileState::set_length)
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            state.faults.count_change()?;
            if state.faults.fail_syncs {
                return Err(io::Error::other("simulated sync error"));
            }
            state.syncs += 1;
            if let Some(file) = state.files.get_mut(&self.name) {
                file.unsynced.clear();
            }
            Ok(())
        })
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let _ = self.with(|state| {
            if let Some(file) = state.files.get_mut(&self.name) {
                file.open = false;
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(disk: &SimulatedDisk) -> Vec<u8> {
        disk.lock().files["f"].bytes.clone()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_any_part_of_the_rest() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let disk = SimulatedDisk::new();
            let file = disk.open("f").expect("free");
            file.write(0, &[1; 1024]).expect("no fault");
            file.sync().expect("no fault");
            file.write(0, &[2; 512]).expect("no fault");
            file.write(512, &[3; 1024]).expect("no fault");
            disk.crash(seed);
            let bytes = contents(&disk);
            let sectors: Vec<_> = bytes.chunks(512).map(|s| (s[0], s.len())).collect();
            for sector in bytes.chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is whole");
            }
            assert!(matches!(sectors[0], (1 | 2, 512)) && matches!(sectors[1], (1 | 3, 512)));
            assert!(file.sync().is_err(), "the old handle is dead");
            seen.insert(sectors);
            let again = SimulatedDisk::new();
            let file = again.open("f").expect("free");
            file.write(0, &[1; 1024]).expect("no fault");
            file.sync().expect("no fault");
            file.write(0, &[2; 512]).expect("no fault");
            file.write(512, &[3; 1024]).expect("no fault");
            again.crash(seed);
            assert_eq!(contents(&again), bytes, "the seed decides");
        }
        assert!(seen.len() >= 6, "crashes differ: {seen:?}");
    }

    #[test]
    fn a_cut_is_taken_back_too() {
        for seed in 0..50 {
            let disk = SimulatedDisk::new();
            let file = disk.open("f").expect("free");
            file.write(0, b"abcdef").expect("no fault");
            file.sync().expect("no fault");
            file.set_length(2).expect("no fault");
            file.set_length(4).expect("no fault");
            disk.crash(seed);
            let bytes = contents(&disk);
            assert!([&b"abcdef"[..], b"ab", b"ab\0\0"].contains(&bytes.as_slice()), "{bytes:?}");
        }
    }

    #[test]
    fn faults_fail_and_heal() {
        let disk = SimulatedDisk::new();
        let file = disk.open("f").expect("free");
        file.write(0, b"abcd").expect("no fault");
        disk.set_faults(DiskFaults { capacity: Some(4), ..DiskFaults::default() });
        file.write(0, b"efgh").expect("it fits");
        let full = file.write(3, b"xy").expect_err("full");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.set_faults(DiskFaults {
            fail_reads: true,
            fail_writes: true,
            fail_syncs: true,
            ..DiskFaults::default()
        });
        assert!(file.read(0, &mut [0]).is_err());
        assert!(file.write(0, b"x").is_err());
        assert!(file.sync().is_err());
        disk.set_faults(DiskFaults::default());
        let mut read = [0; 4];
        file.read(0, &mut read).expect("healed");
        assert_eq!(&read, b"efgh");
        assert!(disk.open("f").is_err(), "one at a time");
        drop(file);
        disk.open("f").expect("free again");
    }
}
