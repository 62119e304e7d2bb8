//! Scripts that show where each request waits, and a check of every promise on random histories.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use goldenscript::{Command, Context, Runner};
use proptest::prelude::*;

use super::*;

fn txn(number: u64) -> TxnId {
    TxnId { gateway: NodeId::new(1), number }
}

fn age(number: u64) -> Age {
    Age { began: Timestamp::from_nanos(number), first: txn(number) }
}

/// `a` is a key, `a..c` a range, `a..` one without an end.
fn range(text: &str) -> KeyRange {
    match text.split_once("..") {
        None => KeyRange::point(text),
        Some((start, "")) => KeyRange::new(start, None),
        Some((start, end)) => KeyRange::new(start, Some(end.into())),
    }
}

fn show_range(range: &KeyRange) -> String {
    let start = String::from_utf8_lossy(&range.start);
    match &range.end {
        _ if is_key(range) => start.into_owned(),
        None => format!("{start}.."),
        Some(end) => format!("{start}..{}", String::from_utf8_lossy(end)),
    }
}

const MODES: [(&str, Mode); 3] = [("S", Mode::Shared), ("U", Mode::Update), ("X", Mode::Exclusive)];

#[derive(Default)]
struct Script {
    table: LockTable,
    /// The ages of transactions that are retries.
    ages: BTreeMap<u64, u64>,
    /// What was asked for.
    asked: BTreeMap<RequestId, String>,
}

impl Script {
    fn effects(&self, effects: &[Effect]) -> String {
        let name = |id: &TxnId| format!("t{}", id.number);
        let lines = effects.iter().map(|effect| match effect {
            Effect::Granted(request) => format!("granted: {}\n", self.asked[request]),
            Effect::Refused(request, other) => {
                format!("refused, because of {}: {}\n", name(other), self.asked[request])
            }
            Effect::Wounded { victim, by } => {
                format!("{} is wounded by {}\n", name(victim), name(by))
            }
            Effect::Pressed { pinned, by } => {
                format!("{} waits for {}, which is pinned\n", name(by), name(pinned))
            }
        });
        lines.collect()
    }
}

fn number(word: Option<&str>) -> Result<u64, Box<dyn Error>> {
    let word = word.ok_or("a transaction is missing")?;
    Ok(word.strip_prefix('t').ok_or("transactions look like t1")?.parse()?)
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            // The transaction has the age of an earlier one.
            "retry" => {
                let (of, as_old_as) = (number(args.next_pos())?, number(args.next_pos())?);
                self.ages.insert(of, as_old_as);
                String::new()
            }
            "lock" | "nowait" => {
                let (of, mode) = (number(args.next_pos())?, args.next_pos().ok_or("a mode")?);
                let on = args.next_pos().ok_or("a range")?;
                let (_, lock) = MODES.iter().find(|(name, _)| *name == mode).ok_or("S, U or X")?;
                let nowait = command.name == "nowait";
                let patience = if nowait { Patience::None } else { Patience::Wait };
                let age = age(*self.ages.get(&of).unwrap_or(&of));
                let (request, effects) =
                    self.table.request(txn(of), age, range(on), *lock, patience);
                self.asked.insert(request, format!("t{of} {mode} {on}"));
                self.effects(&effects)
            }
            "cancel" => {
                let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
                let asked = words.join(" ");
                let mut waiting = self.asked.iter().filter(|(_, text)| **text == asked);
                let (request, _) = waiting.next_back().ok_or("never asked")?;
                let effects = self.table.cancel(*request);
                self.effects(&effects)
            }
            "pin" => match self.table.pin(txn(number(args.next_pos())?)) {
                true => String::new(),
                false => "holds nothing\n".to_owned(),
            },
            "restore" => {
                let of = number(args.next_pos())?;
                let ranges = std::iter::from_fn(|| args.next_pos()).map(range).collect();
                self.table.restore(txn(of), age(of), ranges);
                String::new()
            }
            "release" => {
                let effects = self.table.release(txn(number(args.next_pos())?));
                self.effects(&effects)
            }
            "locks" => {
                let lines = self.table.locks().into_iter().map(|lock| {
                    let (mode, _) =
                        MODES.iter().find(|(_, mode)| *mode == lock.mode).expect("one of three");
                    let verb = if lock.held { "holds" } else { "wants" };
                    format!("t{} {verb} {mode} {}\n", lock.owner.number, show_range(&lock.range))
                });
                lines.collect()
            }
            name => return Err(format!("there is no command {name}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/locks/scripts");
    let mut scripts = 0;
    for script in std::fs::read_dir(folder).expect("the folder is there") {
        let path = script.expect("can be read").path();
        goldenscript::run(&mut Script::default(), &path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        scripts += 1;
    }
    assert!(scripts > 0);
}

/// What a random history does next.
#[derive(Clone, Debug)]
enum Step {
    Lock { txn: u64, mode: Mode, start: u8, length: u8, patience: Patience },
    Pin(u64),
    Release(u64),
    Cancel(prop::sample::Index),
}

const TXNS: u64 = 6;

fn step() -> impl Strategy<Value = Step> {
    let mode = prop::sample::select(vec![Mode::Shared, Mode::Update, Mode::Exclusive]);
    let patience = prop_oneof![5 => Just(Patience::Wait), 1 => Just(Patience::None)];
    let lock = (0..TXNS, mode, 0..8_u8, 0..4_u8, patience);
    prop_oneof![
        8 => lock.prop_map(|(txn, mode, start, length, patience)| {
            Step::Lock { txn, mode, start, length, patience }
        }),
        1 => (0..TXNS).prop_map(Step::Pin),
        2 => (0..TXNS).prop_map(Step::Release),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
    ]
}

fn keys(start: u8, length: u8) -> KeyRange {
    match length {
        0 => KeyRange::point([start]),
        // To the end.
        3 => KeyRange::new([start], None),
        _ => KeyRange::new([start], Some(vec![start + length])),
    }
}

/// What must be so between any two steps.
fn check(table: &LockTable) -> Result<(), TestCaseError> {
    let locks = table.locks();
    let (held, wanted): (Vec<_>, Vec<_>) = locks.into_iter().partition(|lock| lock.held);
    prop_assert!(wanted.iter().all(|lock| !lock.waits_for.is_empty()), "nobody is in the way");
    let against = |a: &Lock, b: &Lock| {
        a.owner != b.owner && a.mode.conflicts(b.mode) && overlap(&a.range, &b.range)
    };
    for (place, lock) in held.iter().enumerate() {
        for other in &held[place + 1..] {
            prop_assert!(!against(lock, other), "{lock:?} and {other:?} are held");
        }
    }
    for lock in &wanted {
        // Here a transaction's number is its age.
        let holder = held.iter().find(|other| against(lock, other));
        let older = |other: &&Lock| against(lock, other) && other.owner < lock.owner;
        let waits_for = holder.or_else(|| wanted.iter().find(older));
        prop_assert!(waits_for.is_some(), "nothing is in the way of {lock:?}");
        for other in held.iter().filter(|other| against(lock, other)) {
            let pinned = table.owners[&other.owner].pinned;
            prop_assert!(other.owner < lock.owner || pinned, "{lock:?} waits for {other:?}");
        }
    }
    // The index has what the owners have.
    let indexed: usize = table.keys.values().chain(table.ranges.values()).map(Vec::len).sum();
    prop_assert_eq!(indexed, held.len());
    Ok(())
}

proptest! {
    #[test]
    fn whatever_happens_locks_keep_others_out_and_nobody_waits_for_nothing(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut table = LockTable::new();
        let mut asked = Vec::new();
        // What each holds, by the effects alone.
        let mut held: BTreeMap<TxnId, u64> = BTreeMap::new();
        for step in steps {
            let effects = match step {
                Step::Lock { txn: number, mode, start, length, patience } => {
                    let owner = txn(number);
                    let range = keys(start, length);
                    let (request, effects) =
                        table.request(owner, age(number), range.clone(), mode, patience);
                    asked.push((request, owner));
                    if effects.contains(&Effect::Granted(request)) {
                        prop_assert!(table.has(owner, &range, mode));
                    }
                    if patience == Patience::None {
                        prop_assert!(effects.len() == 1, "it wounds nobody: {effects:?}");
                    }
                    effects
                }
                Step::Pin(number) => {
                    prop_assert_eq!(table.pin(txn(number)), held.contains_key(&txn(number)));
                    Vec::new()
                }
                Step::Release(number) => {
                    held.remove(&txn(number));
                    table.release(txn(number))
                }
                Step::Cancel(which) if !asked.is_empty() => {
                    let (request, _) = asked[which.index(asked.len())];
                    table.cancel(request)
                }
                Step::Cancel(_) => Vec::new(),
            };
            for effect in effects {
                match effect {
                    Effect::Granted(request) => {
                        let (_, owner) = asked.iter().find(|(id, _)| *id == request).expect("asked");
                        *held.entry(*owner).or_default() += 1;
                    }
                    Effect::Wounded { victim, by } => {
                        prop_assert!(by < victim, "wounded by a younger one");
                        prop_assert!(held.remove(&victim).is_some(), "it held nothing");
                    }
                    Effect::Refused(..) | Effect::Pressed { .. } => {}
                }
            }
            check(&table)?;
        }
        // Once the pinned ones have ended, everybody gets what it wants, the oldest first.
        let pinned = table.owners.iter().filter(|(_, owner)| owner.pinned);
        for owner in pinned.map(|(owner, _)| *owner).collect::<Vec<_>>() {
            table.release(owner);
        }
        for number in 0..TXNS {
            let wanted = |lock: &Lock| !lock.held && lock.owner == txn(number);
            prop_assert!(!table.locks().iter().any(wanted), "t{} still waits", number);
            table.release(txn(number));
            check(&table)?;
        }
        prop_assert_eq!(table.locks(), []);
    }
}
