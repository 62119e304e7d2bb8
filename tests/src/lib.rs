//! What crosses crates: SQL scripts, simulations, real processes, clients.

pub mod virtual_cluster;
