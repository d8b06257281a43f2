//! The `nodelet` agent and its command line.

pub mod client;
pub mod config;
pub mod manifest;
pub mod sources;
pub mod yaml;
