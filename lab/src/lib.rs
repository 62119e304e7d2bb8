//! Workloads, and what they need of a database.
//!
//! The lab knows no part of Meridian. What it drives is a [`Client`] in an [`Environment`], so the
//! same workload runs against a session in the same process (in virtual time too) and over the
//! wire against any PostgreSQL server.

mod client;
pub mod mixed;

pub use client::{Client, ClientError, Environment, Outcome, Reply};
