//! Randomized tests: which seeds they run, and what a failure has to say.
//!
//! A run is a function of its seed only in a process of its own ([`entropy`](crate::entropy)), so
//! each seed gets one. That also catches what a test can't see from within: a task that panicked
//! with nobody waiting for it, and a run that doesn't end.

use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// `from..to`: other seeds than the fixed ones.
const SEEDS: &str = "MERIDIAN_SEEDS";

/// Tells a process which one is its seed.
const SEED: &str = "MERIDIAN_SEED";

/// A seed takes seconds. One that takes this long hangs.
const HANGS: Duration = Duration::from_mins(3);

/// Runs a test for each of its seeds: those that `MERIDIAN_SEEDS=from..to` names, as many at once
/// as there are cores; or else the fixed ones, one after the other beside the other tests. `test`
/// is the calling test's full name; `scenario` answers what the run came to, in a few words.
///
/// # Panics
/// When a seed fails: after all of them, with their output and how to repeat them.
pub fn run(test: &str, fixed: Range<u64>, scenario: impl FnOnce(u64) -> String) {
    if let Ok(seed) = std::env::var(SEED) {
        return run_here(number(&seed), scenario);
    }
    let (seeds, at_once) = match std::env::var(SEEDS) {
        Ok(text) => (parse(&text), std::thread::available_parallelism().map_or(1, usize::from)),
        Err(_) => (fixed, 1),
    };
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if !run_elsewhere(test, seed) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
}

fn number(text: &str) -> u64 {
    match text.parse() {
        Ok(number) => number,
        Err(error) => panic!("{text}: {error}"),
    }
}

fn parse(text: &str) -> Range<u64> {
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => panic!("{SEEDS} is from..to, not {text}"),
    }
}

/// Whether the seed, in a process of its own, went well.
fn run_elsewhere(test: &str, seed: u64) -> bool {
    let command = std::env::current_exe().and_then(|binary| {
        Command::new(binary)
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(SEED, seed.to_string())
            .output()
    });
    let output = match command {
        Ok(output) => output,
        Err(error) => panic!("seed {seed} does not start: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text.lines().find(|line| line.starts_with("seed "));
    if let (true, Some(summary)) = (output.status.success(), summary) {
        println!("{summary}");
        return true;
    }
    println!(
        "seed {seed} failed: {}\n{text}{}\nTo repeat it:\n    \
         {SEEDS}={seed}..{} cargo test --workspace --test it {test} -- --exact --nocapture\n",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        seed + 1
    );
    false
}

fn run_here(seed: u64, scenario: impl FnOnce(u64) -> String) {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tell(panic);
    }));
    #[expect(clippy::disallowed_methods, reason = "guards virtual time from outside of it")]
    std::thread::spawn(move || {
        std::thread::sleep(HANGS);
        eprintln!("seed {seed} has not ended after {HANGS:?}");
        std::process::exit(1);
    });
    let summary = scenario(seed);
    let panics = PANICS.load(Ordering::Relaxed);
    assert_eq!(panics, 0, "a task panicked, see above");
    println!("\nseed {seed}: {summary}");
}
