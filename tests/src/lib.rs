//! What crosses crates: SQL scripts, simulations, real processes, clients.
//!
//! The library is what the tests and benchmarks share: a cluster in virtual time, and the real
//! binary with clients at its front door. All of it panics where a test has to fail.
#![allow(
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    reason = "in a test a panic is the way to say so, and what isn't used isn't tested"
)]

pub mod support;
pub mod virtual_cluster;
