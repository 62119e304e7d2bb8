//! What crosses crates: SQL scripts, simulations, real processes, clients.
