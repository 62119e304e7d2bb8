#![doc = include_str!("essay.md")]

pub mod clock;
pub mod entropy;
pub mod env;
mod gate;
pub mod interval;
pub mod seeds;
mod timer;
pub mod timestamp;
pub mod wait;
pub mod world;

pub use clock::{ClockError, ClockSettings, SimulatedClock, SystemClock};
pub use env::{CostModel, Elapsed, Env, Environment, EnvironmentExt, Moment, Work};
pub use interval::{TrueTime, TtInterval};
pub use timestamp::Timestamp;
pub use wait::wait_until_after;
pub use world::{NodeEnvironment, World};
