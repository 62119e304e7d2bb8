//! Tablets, concurrency control and the commit protocols.
