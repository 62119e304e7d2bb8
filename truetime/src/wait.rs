//! Commit wait (Spanner, OSDI 2012, section 4.1.2): nobody sees a version before its timestamp is
//! certainly past.

use std::time::Duration;

use crate::env::{Environment, EnvironmentExt};
use crate::interval::TrueTime;
use crate::timestamp::Timestamp;

/// Completes once `TT.after(t)` holds on `clock`.
///
/// It sleeps for as long as the clock says is missing and looks again, because the clock may be
/// set or its uncertainty may grow meanwhile. With a constant ε and `t` taken as
/// `TT.now().latest`, that is 2ε.
pub async fn wait_until_after(env: &dyn Environment, clock: &dyn TrueTime, t: Timestamp) {
    loop {
        let earliest = clock.now().earliest;
        if earliest > t {
            return;
        }
        // At least a microsecond, the finest step of virtual time.
        env.sleep(t.next().since(earliest).max(Duration::from_micros(1))).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{ClockSettings, SimulatedClock};
    use crate::env::{CostModel, Moment};
    use crate::world::World;

    #[test]
    fn waits_two_epsilon_and_no_longer() {
        World::run_virtual(0, CostModel::default(), |world| async move {
            let env = world.node(1);
            let settings = ClockSettings::constant(Duration::from_millis(4));
            let clock = SimulatedClock::new(world, settings).expect("valid");
            let s = clock.now().latest;
            wait_until_after(&*env, &clock, s).await;
            assert_eq!(env.moment(), Moment::from_nanos(8_001_000));
        });
    }

    #[test]
    fn follows_a_clock_that_is_set_back_while_it_waits() {
        World::run_virtual(0, CostModel::default(), |world| async move {
            let env = world.node(1);
            let mut settings = ClockSettings::constant(Duration::from_millis(4));
            let clock = Arc::new(SimulatedClock::new(world.clone(), settings).expect("valid"));
            let s = clock.now().latest;
            settings.offset_nanos = -3_000_000;
            clock.set(settings).expect("valid");
            wait_until_after(&*env, &*clock, s).await;
            assert!(clock.after(s));
            assert!(env.moment() >= Moment::from_nanos(11_000_000));
        });
    }
}
