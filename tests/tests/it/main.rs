//! What crosses crates. One binary, because linking it takes longer than running most of it.

mod bad_input;
mod chaos;
mod crash;
mod faults;
mod front_door;
mod interleave;
mod killed;
mod latency;
mod layering;
mod nodes;
mod processes;
mod protocol;
mod transactions;
mod types;
mod virtual_time;
