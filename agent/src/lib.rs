//! The `nodelet` agent and its command line.

pub mod cli;
pub mod client;
pub mod config;
pub mod manifest;
pub mod node_api;
pub mod run;
pub mod sources;
pub mod yaml;
