//! Scripts of what two nodes say to each other, and a check on random histories that no replica
//! believes more than was said, nor forgets.

use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;

use goldenscript::{Command, Context, Runner};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const LEADER: NodeId = NodeId::new(1);

fn ts(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(nanos)
}

fn tablet(text: &str) -> Result<TabletId, Box<dyn Error>> {
    let number = text.strip_prefix('t').ok_or("tablets look like t2")?;
    Ok(TabletId::new(number.parse()?))
}

struct Script {
    sender: Sender,
    receiver: Receiver,
    wire: VecDeque<Closing>,
    /// How far the follower's replicas are.
    applied: BTreeMap<TabletId, u64>,
}

fn show(closing: &Closing) -> String {
    let mut words =
        vec![format!("s{} #{} at {}", closing.session, closing.number, closing.at.as_nanos())];
    words.extend(closing.removed.iter().map(|tablet| format!("-t{}", tablet.get())));
    words.extend(closing.added.iter().map(|(tablet, index)| format!("+t{}={index}", tablet.get())));
    words.extend(closing.own.iter().map(|(tablet, closed)| {
        format!("t{}={}@{}", tablet.get(), closed.index, closed.at.as_nanos())
    }));
    words.join(" ") + "\n"
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            // close AT t2=7 (idle: all is closed up to AT) t3=9@80 (closed for itself up to 80)
            "close" => {
                let at = ts(args.next_pos().ok_or("a timestamp")?.parse()?);
                let (mut set, mut own) = (BTreeMap::new(), BTreeMap::new());
                while let Some((name, value)) = args.next_key() {
                    let tablet = tablet(name)?;
                    match value.split_once('@') {
                        None => drop(set.insert(tablet, value.parse()?)),
                        Some((index, at)) => {
                            let closed = Closed { at: ts(at.parse()?), index: index.parse()? };
                            own.insert(tablet, closed);
                        }
                    }
                }
                match self.sender.next(at, set, own) {
                    Some(closing) => {
                        let shown = show(&closing);
                        self.wire.push_back(closing);
                        shown
                    }
                    None => "nothing to say\n".to_owned(),
                }
            }
            "deliver" => {
                let closing = self.wire.pop_front().ok_or("nothing is under way")?;
                let session = closing.session;
                let applied = &self.applied;
                let taken = self.receiver.receive(LEADER, closing, |tablet| {
                    applied.get(&tablet).copied().unwrap_or_default()
                });
                if !taken {
                    self.sender.failed(session);
                }
                if taken { "taken\n" } else { "refused\n" }.to_owned()
            }
            "lose" => {
                let closing = self.wire.pop_front().ok_or("nothing is under way")?;
                self.sender.failed(closing.session);
                String::new()
            }
            // It arrives, and its acknowledgement doesn't.
            "deliver_and_forget" => {
                let closing = self.wire.pop_front().ok_or("nothing is under way")?;
                let session = closing.session;
                let applied = &self.applied;
                self.receiver.receive(LEADER, closing, |tablet| {
                    applied.get(&tablet).copied().unwrap_or_default()
                });
                self.sender.failed(session);
                String::new()
            }
            "swap" => {
                self.wire.swap(0, 1);
                String::new()
            }
            "leader_restarts" => {
                self.sender = Sender::new(self.sender.session + 100);
                String::new()
            }
            "follower_restarts" => {
                self.receiver = Receiver::default();
                String::new()
            }
            "apply" => {
                while let Some((name, index)) = args.next_key() {
                    self.applied.insert(tablet(name)?, index.parse()?);
                }
                String::new()
            }
            "safe" => {
                let tablet = tablet(args.next_pos().ok_or("a tablet")?)?;
                let applied = self.applied.get(&tablet).copied().unwrap_or_default();
                match self.receiver.safe(tablet, applied) {
                    Some(at) => format!("{}\n", at.as_nanos()),
                    None => "none\n".to_owned(),
                }
            }
            name => return Err(format!("there is no command {name}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/safe_time/scripts");
    let mut scripts = 0;
    for script in std::fs::read_dir(folder).expect("the folder is there") {
        let path = script.expect("can be read").path();
        let mut script = Script {
            sender: Sender::new(1),
            receiver: Receiver::default(),
            wire: VecDeque::new(),
            applied: BTreeMap::new(),
        };
        goldenscript::run(&mut script, &path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        scripts += 1;
    }
    assert!(scripts > 0);
}

/// Two leaders whose tablets write, go to and fro between them, and are closed; a follower that lags,
/// restarts, and hears half of it. What it believes is what one of them has said of an entry that it
/// has; and once messages pass, it is the last.
#[test]
fn whatever_is_lost_nobody_believes_what_was_not_said_and_in_the_end_all_is_heard() {
    const TABLETS: usize = 5;
    let id = |number: usize| TabletId::new(number as u64);
    let number_of = |id: TabletId| usize::try_from(id.get()).expect("small");
    let mut restarts = 0;
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut senders = [Sender::new(1), Sender::new(1)];
        let mut receiver = Receiver::default();
        let mut wire: Vec<(usize, Closing)> = Vec::new();
        let (mut last, mut applied) = ([1_u64; TABLETS], [0_u64; TABLETS]);
        let mut leaders = [0; TABLETS];
        // All that was ever said of each tablet.
        let mut said: Vec<Vec<Closed>> = vec![Vec::new(); TABLETS];
        let mut clock = 1_000;
        let pick = |rng: &mut StdRng| rng.random_range(0..TABLETS);
        for _ in 0..400 {
            clock += rng.random_range(1..20);
            match rng.random_range(0..12) {
                0 => last[pick(&mut rng)] += 1,
                1 => {
                    let number = pick(&mut rng);
                    applied[number] = (applied[number] + 1).min(last[number]);
                }
                2 => leaders[pick(&mut rng)] = rng.random_range(0..2),
                3..6 => {
                    let from = rng.random_range(0..2);
                    let (mut set, mut own) = (BTreeMap::new(), BTreeMap::new());
                    for number in (0..TABLETS).filter(|number| leaders[*number] == from) {
                        let behind =
                            [None, Some(0), Some(0), Some(0), Some(rng.random_range(1..50))];
                        let Some(behind) = behind[rng.random_range(0..5)] else { continue };
                        let (index, at) = (last[number], ts(clock - behind));
                        said[number].push(Closed { at, index });
                        if behind == 0 {
                            set.insert(id(number), index);
                        } else {
                            own.insert(id(number), Closed { at, index });
                        }
                    }
                    let closing = senders[from].next(ts(clock), set, own);
                    wire.extend(closing.map(|closing| (from, closing)));
                }
                6 if rng.random_bool(0.1) => {
                    receiver = Receiver::default();
                    restarts += 1;
                }
                7 if rng.random_bool(0.1) => {
                    let from = rng.random_range(0..2);
                    senders[from] = Sender::new(senders[from].session + 1_000);
                }
                8 if !wire.is_empty() => {
                    let (from, lost) = wire.swap_remove(rng.random_range(0..wire.len()));
                    senders[from].failed(lost.session);
                }
                // Mostly in order; some come twice.
                _ if !wire.is_empty() => {
                    let which =
                        if rng.random_bool(0.9) { 0 } else { rng.random_range(0..wire.len()) };
                    let (from, closing) = wire.remove(which);
                    if rng.random_bool(0.05) {
                        wire.push((from, closing.clone()));
                    }
                    let session = closing.session;
                    let node = NodeId::new(from as u64 + 1);
                    if !receiver.receive(node, closing, |id| applied[number_of(id)]) {
                        senders[from].failed(session);
                    }
                }
                _ => {}
            }
            for (number, said) in said.iter().enumerate() {
                let Some(safe) = receiver.safe(id(number), applied[number]) else { continue };
                let holds = said.iter().any(|c| c.at >= safe && c.index <= applied[number]);
                assert!(holds, "seed {seed}: {safe} of {number}, applied {applied:?}: {said:?}");
            }
        }
        wire.clear();
        for round in 0..3 {
            clock += 100;
            for (from, sender) in senders.iter_mut().enumerate() {
                let mine = (0..TABLETS).filter(|number| leaders[*number] == from);
                let set = mine.map(|number| (id(number), last[number])).collect();
                let Some(closing) = sender.next(ts(clock), set, BTreeMap::new()) else { continue };
                let (session, node) = (closing.session, NodeId::new(from as u64 + 1));
                if !receiver.receive(node, closing, |id| applied[number_of(id)]) {
                    assert_eq!(round, 0, "seed {seed}: the whole set comes next");
                    sender.failed(session);
                }
            }
        }
        for (number, last) in last.iter().enumerate() {
            let safe = receiver.safe(id(number), *last);
            assert_eq!(safe, Some(ts(clock)), "seed {seed}");
        }
    }
    assert!(restarts > 100, "else nothing is shown");
}
