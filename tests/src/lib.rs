//! What crosses crates: SQL scripts, simulations, real processes, clients.
//!
//! The library is what the tests and benchmarks share: a cluster in virtual time, and the real
//! binary with clients at its front door. All of it panics where a test has to fail.
#![allow(clippy::missing_panics_doc, reason = "in a test a panic is the way to say so")]

pub mod support;
pub mod virtual_cluster;
