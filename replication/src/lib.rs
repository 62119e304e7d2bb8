//! Replicated logs over key ranges, and the network between nodes.

pub mod net;
