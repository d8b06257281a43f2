//! What nodelet does well or badly in figures, against other tools, on this machine, in one run.
//!
//! Figures from different machines or runs cannot be compared; the ratios of one run can.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod api;
mod limits;
mod networks;
mod pulls;
mod section;
mod workloads;

/// Measures nodelet against other tools.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What can be measured.
#[derive(Subcommand)]
enum Command {
    /// Containers: their start, their death, and what the tool needs meanwhile.
    Workloads(workloads::Options),
    /// The API server.
    Api(api::Options),
    /// The process that `api` measures.
    #[command(hide = true)]
    ApiServer(api::ServerOptions),
    /// How exact limits are, and how soon a change of one is in force.
    Limits(limits::Options),
    /// Attachments, ports, names and what passes.
    Networks(networks::Options),
    /// The process that `networks` runs in a sandbox.
    #[command(hide = true)]
    AskNames(networks::Asking),
    /// Cold pulls.
    Pulls(pulls::Options),
}

fn main() -> Result<()> {
    match &Args::parse().command {
        Command::Workloads(options) => workloads::measure(options),
        Command::Api(options) => api::measure(options),
        Command::ApiServer(options) => api::serve(options),
        Command::Limits(options) => limits::measure(options),
        Command::Networks(options) => networks::measure(options),
        Command::AskNames(options) => networks::ask(options),
        Command::Pulls(options) => pulls::measure(options),
    }
}
