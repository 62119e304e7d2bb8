//! Clusters of nodes without SQL, in virtual time.

mod cluster;
mod crashes;
mod latency;
mod processes;
mod writes;
