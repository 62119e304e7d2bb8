//! A Meridian node put together, and the meridian command.

pub mod banner;
pub mod cli;
pub mod cluster;
pub mod config;
mod console;
pub mod demo;
pub mod lab;
pub mod memory;
pub mod node;
pub mod pg;
pub mod placement;
pub mod splits;
pub mod status;
