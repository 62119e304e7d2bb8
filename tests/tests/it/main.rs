//! What crosses crates. One binary, because linking it takes longer than running most of it.

mod bad_input;
mod crash;
mod faults;
mod front_door;
mod latency;
mod layering;
mod nodes;
mod protocol;
mod types;
mod virtual_time;
