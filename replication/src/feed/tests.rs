//! A feed without Raft: an agreed list of epochs, as Calvin's sequencers would make it.

use meridian_storage::{SimulatedDisk, Storage, StorageOptions};
use meridian_truetime::{CostModel, Env, Timestamp, World};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const GROUP: TabletId = TabletId::new(9);
const STATE: &[u8] = b"chain/";

/// Chains its commands: what one writes depends on all before it.
#[derive(Debug)]
struct Chain;

fn link(view: &DataSnapshot) -> u64 {
    let last = view.record(b"chain/last").expect("readable");
    last.map_or(0, |bytes| decode(&bytes).expect("a number"))
}

impl StateMachine for Chain {
    fn apply(
        &self,
        position: Position,
        command: &[u8],
        view: &DataSnapshot,
        batch: &mut WriteBatch,
    ) -> Bytes {
        let next = link(view).wrapping_mul(31) ^ u64::from(crc32fast::hash(command));
        let at = Timestamp::from_nanos(position.term * 1_000 + position.index);
        batch.put(command.to_vec(), at, Some(next.to_string().into_bytes()));
        batch.put_record(b"chain/last".to_vec(), encode(&next).expect("encoded").to_vec());
        Bytes::from(next.to_string())
    }

    fn concerns_others(&self, _: &[u8]) -> bool {
        false
    }

    fn is_over(&self) -> bool {
        false
    }

    fn members_changed(&self, members: &Members, batch: &mut WriteBatch) {
        let voters = u64::try_from(members.voters.len()).expect("few");
        batch.put_record(b"chain/voters".to_vec(), encode(&voters).expect("encoded").to_vec());
    }

    fn committed(&self) {}

    fn range(&self, _: &DataSnapshot) -> io::Result<Option<KeyRange>> {
        Ok(Some(KeyRange::all()))
    }

    fn records(&self) -> Vec<u8> {
        STATE.to_vec()
    }

    fn offered(&self, _: &[(Vec<u8>, Vec<u8>)]) -> io::Result<KeyRange> {
        Ok(KeyRange::all())
    }

    fn take_over(
        &self,
        _: &[(Vec<u8>, Vec<u8>)],
        _: &DataSnapshot,
        _: &mut WriteBatch,
    ) -> io::Result<()> {
        Ok(())
    }

    fn restored(&self, _: &DataSnapshot) -> io::Result<()> {
        Ok(())
    }
}

type Agreed = Vec<(Position, Vec<u8>)>;

/// Epochs of some commands each, empty ones among them, which take a position all the same.
fn agreed(rng: &mut StdRng) -> Agreed {
    let mut entries = Agreed::new();
    for epoch in 1..=20 {
        for rank in 0..rng.random_range(0..6) {
            let command = format!("key {} of {epoch}", rng.random_range(0..40));
            entries.push((Position { term: epoch, index: rank }, command.into_bytes()));
        }
        entries.push((Position { term: epoch, index: u64::MAX }, Vec::new()));
    }
    entries
}

struct Replica {
    disk: SimulatedDisk,
    data: DataStore,
    applier: Applier,
}

impl Replica {
    fn open(env: &Env, disk: SimulatedDisk) -> Self {
        let opened =
            Storage::open(Arc::clone(env), Arc::new(disk.clone()), StorageOptions::default());
        let data = opened.expect("the disk is good").data;
        let applier = Applier::open(GROUP, data.clone(), Arc::new(Chain), Arc::default());
        Self { disk, data, applier: applier.expect("readable") }
    }

    /// The next entry of the feed, if it has one; and that it is applied.
    fn feed(&self, agreed: &Agreed) -> bool {
        let last = self.applier.progress().at;
        let Some((at, command)) = agreed.iter().find(|(at, _)| Some(*at) > last) else {
            return false;
        };
        let entry = if command.is_empty() { Entry::Nothing } else { Entry::Command(command) };
        let memo = format!("epoch {}", at.term).into_bytes();
        self.applier.apply(*at, entry, Some(memo)).expect("applied");
        true
    }

    fn state(&self) -> (Progress, u64, Vec<(Vec<u8>, Timestamp, Option<Vec<u8>>)>) {
        let view = self.data.snapshot().expect("readable");
        let rows = view.versions(&KeyRange::all()).expect("readable");
        let rows = rows.collect::<Result<_, _>>().expect("readable");
        (self.applier.progress(), link(&view), rows)
    }
}

#[test]
fn replicas_of_one_feed_are_equal_whatever_happens_to_them() {
    for seed in 0..40 {
        World::run_virtual(seed, CostModel::default(), |world| async move {
            let env: Env = world.node(1);
            let mut rng = StdRng::seed_from_u64(seed);
            let agreed = agreed(&mut rng);
            let steady = Replica::open(&env, SimulatedDisk::new());
            while steady.feed(&agreed) {}
            let mut shaken = Replica::open(&env, SimulatedDisk::new());
            let mut crashes = 0;
            loop {
                match rng.random_range(0..12) {
                    0 => {
                        shaken.disk.crash(rng.random());
                        let disk = shaken.disk.clone();
                        drop(shaken);
                        shaken = Replica::open(&env, disk);
                        crashes += 1;
                    }
                    1 => flush(&shaken.data).await.expect("durable"),
                    2 if crashes % 3 == 2 => {
                        // Elsewhere, by an image; it goes on where the image ends.
                        let (progress, image) = shaken.applier.image().await.expect("an image");
                        let chunks = image.chunks().collect::<io::Result<_>>().expect("readable");
                        let moved = Replica::open(&env, SimulatedDisk::new());
                        let image = Image::Received(chunks);
                        moved.applier.install(progress, image).await.expect("complete");
                        shaken = moved;
                    }
                    _ => {
                        if !shaken.feed(&agreed) {
                            break;
                        }
                    }
                }
            }
            assert_eq!(shaken.state(), steady.state(), "seed {seed}");
            assert_eq!(shaken.applier.progress().memo, b"epoch 20", "seed {seed}");
        });
    }
}

#[test]
#[should_panic(expected = "an entry is applied once, in order")]
fn a_feed_that_repeats_itself_is_stopped() {
    World::run_virtual(1, CostModel::default(), |world| async move {
        let env: Env = world.node(1);
        let replica = Replica::open(&env, SimulatedDisk::new());
        let at = Position { term: 3, index: 1 };
        replica.applier.apply(at, Entry::Nothing, None).expect("applied");
        let _ = replica.applier.apply(at, Entry::Nothing, None);
    });
}
