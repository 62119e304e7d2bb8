//! Keys, multi-version rows and Raft logs on redb.
