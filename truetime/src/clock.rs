//! Clocks: the system's, and simulated ones with the faults that an experiment asks for.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::interval::{TrueTime, TtInterval};
use crate::timestamp::{Timestamp, nanos};
use crate::world::{World, wall_clock};

/// The operating system's clock, with an uncertainty that the operator declares.
///
/// Nothing here checks the declaration: it is right only while what disciplines the system's clock
/// (NTP, PTP) keeps it within `epsilon` of the true time.
#[derive(Debug)]
pub struct SystemClock {
    epsilon: Duration,
}

impl SystemClock {
    /// A clock that claims to be within `epsilon` of the true time.
    #[must_use]
    pub fn new(epsilon: Duration) -> Self {
        Self { epsilon }
    }
}

impl TrueTime for SystemClock {
    fn now(&self) -> TtInterval {
        TtInterval::around(wall_clock(), self.epsilon)
    }
}

/// How a simulated clock behaves.
///
/// At every poll of its time masters the clock is set to the true time plus `offset`. Between two
/// polls it runs fast by `drift_ppm`. What it *declares* is a sawtooth (Spanner, OSDI 2012,
/// section 3): `floor` right after a poll, growing by `drift_bound_ppm` until the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockSettings {
    /// Clock minus true time right after a poll, in nanoseconds.
    pub offset_nanos: i64,
    /// How fast the clock really runs ahead, in millionths; negative when it falls behind.
    pub drift_ppm: f64,
    /// The drift that the declared uncertainty assumes, in millionths.
    pub drift_bound_ppm: f64,
    /// The declared uncertainty right after a poll: transit to the masters and their own error.
    pub floor: Duration,
    /// The time between two polls.
    pub poll: Duration,
    /// Whether the clock may be outside of what it declares. Without it such settings are refused.
    pub faulty: bool,
}

/// Settings under which the clock would leave its declared bound without being marked faulty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// The true offset would exceed the uncertainty.
    #[error(
        "the clock would be {actual:?} off the true time while declaring an uncertainty of \
         {declared:?}"
    )]
    OutsideBound {
        /// The greatest distance from the true time.
        actual: Duration,
        /// What the clock declares at that moment.
        declared: Duration,
    },
    /// A drift that isn't a number, or stops or reverses the clock.
    #[error("a clock's drift must be a number between -100000 and 100000 ppm")]
    Drift,
    /// A poll interval of zero.
    #[error("a clock's poll interval must be longer than zero")]
    Poll,
}

impl ClockSettings {
    /// A right clock with a constant uncertainty: what latency experiments use.
    #[must_use]
    pub fn constant(epsilon: Duration) -> Self {
        Self {
            offset_nanos: 0,
            drift_ppm: 0.0,
            drift_bound_ppm: 0.0,
            floor: epsilon,
            poll: Duration::from_secs(30),
            faulty: false,
        }
    }

    /// The paper's clock: a poll every 30 s, 200 ppm of assumed drift, 1 ms to the masters, so an
    /// uncertainty between 1 and 7 ms.
    #[must_use]
    pub fn spanner() -> Self {
        Self {
            drift_bound_ppm: 200.0,
            floor: Duration::from_millis(1),
            ..Self::constant(Duration::ZERO)
        }
    }

    /// Refuses settings whose true offset would leave the declared bound, unless they say so.
    ///
    /// # Errors
    /// [`ClockError`] says what is wrong.
    pub fn validate(&self) -> Result<(), ClockError> {
        for ppm in [self.drift_ppm, self.drift_bound_ppm] {
            if !(-100_000.0..=100_000.0).contains(&ppm) {
                return Err(ClockError::Drift);
            }
        }
        if self.poll.is_zero() {
            return Err(ClockError::Poll);
        }
        if self.faulty {
            return Ok(());
        }
        // Both sides are linear between two polls, so the ends decide.
        for since_poll in [0, nanos(self.poll)] {
            let actual = self.true_offset(since_poll).unsigned_abs();
            let declared = nanos(self.epsilon(since_poll));
            if actual > declared {
                return Err(ClockError::OutsideBound {
                    actual: Duration::from_nanos(actual),
                    declared: Duration::from_nanos(declared),
                });
            }
        }
        Ok(())
    }

    /// Clock minus true time, that long after a poll.
    fn true_offset(&self, since_poll: u64) -> i64 {
        self.offset_nanos.saturating_add(parts(self.drift_ppm, since_poll))
    }

    /// The declared uncertainty, that long after a poll.
    fn epsilon(&self, since_poll: u64) -> Duration {
        let grown = parts(self.drift_bound_ppm, since_poll).unsigned_abs();
        // One nanosecond for the rounding of both products.
        let rounding = u64::from(self.drift_bound_ppm != 0.0 || self.drift_ppm != 0.0);
        Duration::from_nanos(nanos(self.floor).saturating_add(grown).saturating_add(rounding))
    }
}

/// `ppm` millionths of `nanos`, in whole nanoseconds.
#[expect(clippy::cast_possible_truncation, reason = "drift is kept to a thousandth of a ppm")]
fn parts(ppm: f64, nanos: u64) -> i64 {
    let billionths = i128::from((ppm * 1_000.0).round() as i64);
    i64::try_from(i128::from(nanos) * billionths / 1_000_000_000).unwrap_or(i64::MAX)
}

/// A clock over the world's true time, with faults as configured, changeable while it runs.
#[derive(Debug)]
pub struct SimulatedClock {
    world: World,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    settings: ClockSettings,
    /// A poll happened here, and one happens every `poll` after it.
    first_poll: Timestamp,
}

/// What a simulated clock shows and what only the simulation knows of it.
#[derive(Clone, Copy, Debug)]
pub struct ClockReading {
    /// What `TT.now()` answers.
    pub interval: TtInterval,
    /// Clock minus true time, in nanoseconds.
    pub true_offset_nanos: i64,
    /// The settings in force.
    pub settings: ClockSettings,
}

impl SimulatedClock {
    /// A clock that was polled just now.
    ///
    /// # Errors
    /// When the settings contradict themselves.
    pub fn new(world: World, settings: ClockSettings) -> Result<Self, ClockError> {
        settings.validate()?;
        let first_poll = world.true_time();
        Ok(Self { world, state: Mutex::new(State { settings, first_poll }) })
    }

    /// Changes the clock's behaviour, as if it were polled now.
    ///
    /// # Errors
    /// When the settings contradict themselves; then nothing changes.
    pub fn set(&self, settings: ClockSettings) -> Result<(), ClockError> {
        settings.validate()?;
        *self.lock() = State { settings, first_poll: self.world.true_time() };
        Ok(())
    }

    /// The clock seen from outside.
    #[must_use]
    pub fn reading(&self) -> ClockReading {
        let State { settings, first_poll } = *self.lock();
        let truth = self.world.true_time();
        let since_poll = nanos(truth.since(first_poll)) % nanos(settings.poll).max(1);
        let true_offset_nanos = settings.true_offset(since_poll);
        let interval =
            TtInterval::around(truth.offset(true_offset_nanos), settings.epsilon(since_poll));
        ClockReading { interval, true_offset_nanos, settings }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TrueTime for SimulatedClock {
    fn now(&self) -> TtInterval {
        self.reading().interval
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::env::{CostModel, EnvironmentExt};

    fn settings() -> impl Strategy<Value = ClockSettings> {
        (
            -20_000_000_i64..20_000_000,
            -400.0..400.0,
            0.0..400.0,
            0_u64..20_000_000,
            1_u64..60_000_000_000,
        )
            .prop_map(|(offset_nanos, drift_ppm, drift_bound_ppm, floor, poll)| {
                ClockSettings {
                    offset_nanos,
                    drift_ppm,
                    drift_bound_ppm,
                    floor: Duration::from_nanos(floor),
                    poll: Duration::from_nanos(poll),
                    faulty: false,
                }
            })
    }

    proptest! {
        /// Section 3: `TT.now()` is guaranteed to contain the absolute time during which it was
        /// invoked, for every clock whose declared bound holds.
        #[test]
        fn the_true_time_is_inside_the_interval(
            first in settings(),
            second in settings(),
            steps in prop::collection::vec(0_u64..40_000_000, 1..40),
        ) {
            // Half of all settings are outside their bound: those must be refused.
            let accepted = |s: &ClockSettings| s.validate().is_ok();
            World::run_virtual(0, CostModel::default(), |world| async move {
                let env = world.node(1);
                let start = if accepted(&first) { first } else { ClockSettings::spanner() };
                let clock = SimulatedClock::new(world.clone(), start).expect("valid");
                for (i, micros) in steps.into_iter().enumerate() {
                    env.sleep(Duration::from_micros(micros)).await;
                    let now = clock.now();
                    let truth = world.true_time();
                    assert!(now.earliest <= truth && truth <= now.latest, "{now:?} {truth:?}");
                    if i == 7 && accepted(&second) {
                        clock.set(second).expect("valid");
                    }
                }
            });
        }
    }

    #[test]
    fn a_faulty_clock_leaves_its_bound_and_must_say_so() {
        let mut wrong = ClockSettings::constant(Duration::from_millis(1));
        wrong.offset_nanos = 5_000_000;
        assert_eq!(
            wrong.validate(),
            Err(ClockError::OutsideBound {
                actual: Duration::from_millis(5),
                declared: Duration::from_millis(1)
            })
        );
        wrong.faulty = true;
        World::run_virtual(0, CostModel::default(), |world| async move {
            let clock = SimulatedClock::new(world.clone(), wrong).expect("declared faulty");
            assert!(clock.now().earliest > world.true_time());
        });
    }

    #[test]
    fn the_papers_sawtooth_goes_from_1_to_7_milliseconds() {
        World::run_virtual(0, CostModel::default(), |world| async move {
            let env = world.node(1);
            let clock = SimulatedClock::new(world, ClockSettings::spanner()).expect("valid");
            let epsilon = || clock.now().epsilon().as_micros();
            assert_eq!(epsilon(), 1_000);
            env.sleep(Duration::from_secs(15)).await;
            assert_eq!(epsilon(), 4_000);
            env.sleep(Duration::from_millis(14_999)).await;
            assert_eq!(epsilon(), 6_999);
            env.sleep(Duration::from_millis(1)).await;
            assert_eq!(epsilon(), 1_000);
        });
    }
}
