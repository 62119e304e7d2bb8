//! Who a node is, on its own disk: its cluster, its number, the random id of this very disk, and the
//! ids of the disks with which it has met the other nodes.
//!
//! A node's promises (votes, acknowledged entries) are worth what its disk remembers. A node that
//! came back under its number without its disk could vote twice in one term. Therefore every disk
//! gets an id at its first use ([`StoreId`]), a node tells it to whomever it talks to, and everybody
//! remembers durably the id with which it first saw each node: one with another id is not that node.
//!
//! The file is text, a line for each thing remembered, with the line's checksum in front. Lines are
//! only added. A crash may leave half a line at the end, of which nobody was told.
//!
//! ```text
//! 5f1c30aa meridian identity 1 cluster=demo node=2 store=0b1c...
//! 93b1d0e7 met node=1 store=77aa...
//! 1d4e6f02 voters 1,2,3
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use meridian_truetime::Env;

use crate::disk::{Disk, DiskFile};
use crate::error::{FORMAT_VERSION, StorageError};
use crate::ids::NodeId;
use crate::store::FORMAT_FILE;

const IDENTITY_FILE: &str = "identity";
/// What its first line begins with, behind the checksum.
const MAGIC: &str = "meridian identity ";
/// Far more than a thousand nodes take.
const MAX_LENGTH: u64 = 1 << 20;

/// A node's disk, told from every other by chance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(u128);

impl StoreId {
    /// An id that nothing else has.
    #[must_use]
    pub fn random(env: &Env) -> Self {
        Self(u128::from(env.random()) << 64 | u128::from(env.random()))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is no [`StoreId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a store")]
pub struct NoStoreId;

impl FromStr for StoreId {
    type Err = NoStoreId;

    fn from_str(text: &str) -> Result<Self, NoStoreId> {
        if text.len() != 32 {
            return Err(NoStoreId);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NoStoreId)
    }
}

/// A node's identity, with its file, which stays open.
#[derive(Debug)]
pub struct Identity {
    place: String,
    cluster: String,
    node: NodeId,
    store: StoreId,
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Memory {
    file: Box<dyn DiskFile>,
    /// Where the next line goes.
    end: u64,
    met: BTreeMap<NodeId, StoreId>,
    voters: Option<Vec<NodeId>>,
}

impl Identity {
    /// The identity on this disk; on an empty disk, a new one for that node of that cluster, durable
    /// on return. `cluster` has no white space.
    ///
    /// # Errors
    /// When the disk is somebody else's, damaged or unreadable.
    pub fn open(
        env: &Env,
        disk: &dyn Disk,
        cluster: &str,
        node: NodeId,
    ) -> Result<Self, StorageError> {
        let place = disk.place();
        let failed = |error| StorageError::io(IDENTITY_FILE, error);
        let format = disk.open(FORMAT_FILE)?;
        let has_data = format.length().map_err(failed)? > 0;
        drop(format);
        let file = disk.open(IDENTITY_FILE)?;
        let length = file.length().map_err(failed)?;
        if length > MAX_LENGTH {
            return Err(not_ours(place));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read(0, &mut bytes).map_err(failed)?;
        let (lines, end) = whole_lines(&bytes).map_err(|problem| match problem {
            Problem::NotOurs => not_ours(place.clone()),
            Problem::Damaged => {
                StorageError::damaged(IDENTITY_FILE, "a line is not what was written")
            }
        })?;
        let mut memory = Memory { file, end, met: BTreeMap::new(), voters: None };
        let Some((first, rest)) = lines.split_first() else {
            if has_data {
                let detail = "it has data, but belongs to no node of a cluster of processes (it may be \
                              a demo's)";
                return Err(StorageError::NotOurs { place, detail: detail.to_owned() });
            }
            let store = StoreId::random(env);
            memory.add(&format!(
                "{MAGIC}{FORMAT_VERSION} cluster={cluster} node={} store={store}",
                node.get()
            ))?;
            let cluster = cluster.to_owned();
            return Ok(Self { place, cluster, node, store, memory: Mutex::new(memory) });
        };
        let header = first.strip_prefix(MAGIC).ok_or_else(|| not_ours(place.clone()))?;
        let version = header.split(' ').next().unwrap_or_default();
        if version != FORMAT_VERSION.to_string() {
            return Err(StorageError::OtherFormat { place, found: version.to_owned() });
        }
        let odd = || StorageError::damaged(IDENTITY_FILE, "a line makes no sense");
        let (owner, owned_by, store) = owner(header).ok_or_else(odd)?;
        if (owner.as_str(), owned_by) != (cluster, node) {
            return Err(StorageError::OtherNode {
                place,
                owner: format!("node {} of cluster {owner}", owned_by.get()),
                asked: format!("node {} of cluster {cluster}", node.get()),
            });
        }
        for line in rest {
            memory.recall(line).ok_or_else(odd)?;
        }
        Ok(Self { place, cluster: owner, node, store, memory: Mutex::new(memory) })
    }

    /// Where the disk is, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The disk's own id.
    #[must_use]
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// The store with which a node was first met.
    #[must_use]
    pub fn store_of(&self, node: NodeId) -> Option<StoreId> {
        if node == self.node { Some(self.store) } else { self.lock().met.get(&node).copied() }
    }

    /// The store that `node` is known by from now on: the one that it was first met with, which is
    /// `store` if it wasn't met before. Durable on return.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn meet(&self, node: NodeId, store: StoreId) -> Result<StoreId, StorageError> {
        if node == self.node {
            return Ok(self.store);
        }
        let mut memory = self.lock();
        if let Some(known) = memory.met.get(&node) {
            return Ok(*known);
        }
        memory.add(&format!("met node={} store={store}", node.get()))?;
        memory.met.insert(node, store);
        Ok(store)
    }

    /// The replicas of the system tablet when the cluster began, in their order; none before it
    /// has.
    #[must_use]
    pub fn first_voters(&self) -> Option<Vec<NodeId>> {
        self.lock().voters.clone()
    }

    /// Remembers how the cluster began, unless that is known. Durable on return.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn begin(&self, voters: &[NodeId]) -> Result<(), StorageError> {
        let mut memory = self.lock();
        if memory.voters.is_some() {
            return Ok(());
        }
        let list: Vec<String> = voters.iter().map(|node| node.get().to_string()).collect();
        memory.add(&format!("voters {}", list.join(",")))?;
        memory.voters = Some(voters.to_vec());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn add(&mut self, text: &str) -> Result<(), StorageError> {
        let line = format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()));
        let cut = self.file.set_length(self.end);
        let written = cut.and_then(|()| self.file.write(self.end, line.as_bytes()));
        let synced = written.and_then(|()| self.file.sync());
        synced.map_err(|error| StorageError::io(IDENTITY_FILE, error))?;
        self.end += line.len() as u64;
        Ok(())
    }

    /// What a line behind the first says; `None` if it says nothing that is known.
    fn recall(&mut self, line: &str) -> Option<()> {
        let (what, rest) = line.split_once(' ')?;
        match what {
            "met" => {
                let (node, store) = rest.split_once(' ')?;
                let store = store.strip_prefix("store=")?.parse().ok()?;
                self.met.insert(node_id(node.strip_prefix("node=")?)?, store);
            }
            "voters" => {
                self.voters = Some(rest.split(',').map(node_id).collect::<Option<Vec<_>>>()?);
            }
            _ => return None,
        }
        Some(())
    }
}

fn not_ours(place: String) -> StorageError {
    StorageError::NotOurs { place, detail: "its identity file is not Meridian's".to_owned() }
}

fn node_id(text: &str) -> Option<NodeId> {
    text.parse().ok().map(NodeId::new)
}

/// Cluster, node and store in the first line, behind the version.
fn owner(header: &str) -> Option<(String, NodeId, StoreId)> {
    let mut words = header.split(' ').skip(1);
    let cluster = words.next()?.strip_prefix("cluster=")?.to_owned();
    let node = node_id(words.next()?.strip_prefix("node=")?)?;
    let store = words.next()?.strip_prefix("store=")?.parse().ok()?;
    Some((cluster, node, store))
}

enum Problem {
    NotOurs,
    Damaged,
}

/// The texts of all lines that were written whole, and where they end.
fn whole_lines(bytes: &[u8]) -> Result<(Vec<String>, u64), Problem> {
    let mut lines = Vec::new();
    let mut end = 0;
    let mut broken = false;
    let mut at = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        match text_of(line) {
            Some(_) if broken => return Err(Problem::Damaged),
            Some(text) => {
                lines.push(text);
                end = at as u64;
            }
            None => broken = true,
        }
    }
    // The first line is below a sector: a crash leaves it whole, or only zeros.
    if lines.is_empty() && bytes.iter().any(|byte| *byte != 0) {
        let ours = String::from_utf8_lossy(bytes).contains(MAGIC);
        return Err(if ours { Problem::Damaged } else { Problem::NotOurs });
    }
    Ok((lines, end))
}

fn text_of(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (sum, text) = line.split_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (sum == crc32fast::hash(text.as_bytes())).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meridian_truetime::{CostModel, World};

    use super::*;
    use crate::{FolderDisk, SimulatedDisk, Storage, StorageOptions};

    fn in_a_world(scenario: impl FnOnce(Env)) {
        World::run_virtual(1, CostModel::default(), |world| {
            scenario(world.node(1));
            std::future::ready(())
        });
    }

    const TWO: NodeId = NodeId::new(2);
    const ONE: NodeId = NodeId::new(1);

    #[test]
    fn what_was_remembered_is_there_again() {
        in_a_world(|env| {
            let disk = SimulatedDisk::new();
            let first = Identity::open(&env, &disk, "demo", TWO).expect("new");
            let store = first.store();
            assert_eq!((first.first_voters(), first.store_of(ONE)), (None, None));
            let other = StoreId::random(&env);
            assert_ne!(other, store);
            assert_eq!(first.meet(ONE, other).expect("written"), other);
            assert_eq!(first.meet(ONE, store).expect("known"), other, "the first one counts");
            first.begin(&[ONE, TWO]).expect("written");
            first.begin(&[TWO]).expect("it has begun");
            drop(first);
            disk.crash(7);
            let again = Identity::open(&env, &disk, "demo", TWO).expect("its own");
            assert_eq!((again.store(), again.store_of(ONE)), (store, Some(other)));
            assert_eq!(again.first_voters(), Some(vec![ONE, TWO]));
            assert_eq!(again.store_of(TWO), Some(store));
        });
    }

    #[test]
    fn a_crash_in_the_middle_of_a_line_loses_that_line_only() {
        in_a_world(|env| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join(IDENTITY_FILE);
            let open = || {
                let disk = FolderDisk::open(folder.path()).expect("free");
                Identity::open(&env, &disk, "demo", TWO)
            };
            let store = open().expect("new").store();
            let whole = std::fs::read(&path).expect("a file");
            for tail in ["93b1d0e7 met no", "\0\0\0\0", "00000000 met node=1 store=1\n"] {
                std::fs::write(&path, [&whole, tail.as_bytes()].concat()).expect("written");
                let identity = open().unwrap_or_else(|error| panic!("{tail:?}: {error}"));
                assert_eq!((identity.store(), identity.store_of(ONE)), (store, None));
                identity.meet(ONE, store).expect("written");
                drop(identity);
                assert_eq!(open().expect("its own").store_of(ONE), Some(store));
            }
            // In the middle it is damage, and in the first line too.
            let met = std::fs::read(&path).expect("a file");
            let (first, rest) = met.split_at(whole.len());
            let middle = [first, b"xx\n", rest].concat();
            let mut flipped = whole.clone();
            flipped[60] ^= 1;
            for damaged in [middle, flipped] {
                std::fs::write(&path, damaged).expect("written");
                assert!(matches!(open(), Err(StorageError::Damaged { .. })));
            }
            std::fs::write(&path, "my notes\n").expect("written");
            assert!(matches!(open(), Err(StorageError::NotOurs { .. })));
            std::fs::write(&path, "\0\0\0\0\0").expect("written");
            assert_ne!(open().expect("a first start that crashed").store(), store);
        });
    }

    #[test]
    fn somebody_elses_disk_is_refused() {
        in_a_world(|env| {
            let disk = SimulatedDisk::new();
            drop(Identity::open(&env, &disk, "demo", TWO).expect("new"));
            for (cluster, node) in [("demo", ONE), ("other", TWO)] {
                let error = Identity::open(&env, &disk, cluster, node).expect_err("not its own");
                let text = error.to_string();
                assert!(text.contains("node 2 of cluster demo"), "{text}");
                assert!(text.contains(cluster) && error.hint().is_some(), "{text}");
            }
            let data = SimulatedDisk::new();
            let options = StorageOptions::default();
            let storage = Storage::open(Arc::clone(&env), Arc::new(data.clone()), options);
            drop(storage.expect("opens"));
            let error = Identity::open(&env, &data, "demo", TWO).expect_err("a demo's");
            assert!(matches!(error, StorageError::NotOurs { .. }), "{error}");
        });
    }
}
