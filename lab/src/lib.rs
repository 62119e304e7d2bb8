//! Workloads, experiments and checkers.
