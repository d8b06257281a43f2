//! `nodelet-bench networks`: how long attaching takes, what a published port costs when there are many, how fast names are
//! answered, what passes between sandboxes, and how soon ports answer again when somebody flushed the rules.
//!
//! Everything happens in namespaces of its own, entered by running this program again below `unshare`.

mod names;
mod node;
mod report;
mod throughput;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::section;

pub(crate) use names::{Asking, ask};

/// Measures networks.
#[derive(Args)]
pub(crate) struct Options {
    /// Attachments to one network.
    #[arg(long, default_value_t = 200)]
    attachments: u16,
    /// Seconds of each transfer, and of asking for names.
    #[arg(long, default_value_t = 5)]
    seconds: u16,
    /// Rounds of transfers, by turns; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The file whose section about networks is replaced; nothing is written unless given.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Set where the namespaces are made already.
    #[arg(long, hide = true)]
    inside: bool,
}

/// Measures, prints, and writes the section.
#[allow(clippy::print_stdout)] // a program that prints a table
pub(crate) fn measure(options: &Options) -> Result<()> {
    if options.inside {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        print!("{}", report::section(&runtime.block_on(node::figures(options))?, options));
        return Ok(());
    }
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "bash", "-c"])
        .arg("mount -t tmpfs tmpfs /run && ip link set lo up && exec \"$@\"")
        .arg("bash")
        .arg(std::env::current_exe().context("this program's path")?)
        .args(["networks", "--inside", "--attachments", &options.attachments.to_string()])
        .args(["--seconds", &options.seconds.to_string(), "--rounds", &options.rounds.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("running unshare; this needs root")?;
    ensure!(output.status.success(), "measuring ended with {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    println!("{text}");
    match &options.output {
        Some(page) => section::replace(page, "networks", &text),
        None => Ok(()),
    }
}
