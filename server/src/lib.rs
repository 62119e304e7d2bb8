//! A Meridian node put together, and the meridian command.

pub mod banner;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod pg;
