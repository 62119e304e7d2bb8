//! Clusters of nodes without SQL, in virtual time.

mod autosplit;
mod bank;
mod chaos;
mod checks;
mod cluster;
mod crashes;
mod floors;
mod kv;
mod latency;
mod leases;
mod processes;
mod stale;
mod tablets;
mod transactions;
mod writes;
