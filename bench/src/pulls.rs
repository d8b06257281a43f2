//! `make bench-pulls`: how long a cold pull takes, what it costs, and what it adds to memory; against
//! `ctr images pull`, `docker pull` and `podman pull`, from a registry on loopback.
//!
//! Each run of each tool has a node of its own, made for it: nothing is warm but the registry's files. The tools take
//! turns within a round, so that whatever else the machine does hits all of them.

mod cost;
mod image;
mod report;
mod tool;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use nodelet_tests::containerd::Release;
use nodelet_tests::images::store;

use super::section;
use cost::Cost;
use tool::Tool;

/// Measures cold pulls.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Tools to leave out, by their names in the table.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Images to leave out: large, many.
    #[arg(long, value_delimiter = ',')]
    without_images: Vec<String>,
    /// Use containerd 2.x instead of the distribution's.
    #[arg(long)]
    containerd_2: bool,
    /// A directory with `unpigz`, laid over the node's /usr/bin where it is measured. Needed unless it is installed.
    #[arg(long)]
    pigz: Option<PathBuf>,
    /// The file whose section about pulls is replaced; nothing is written unless given.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// An image to pull.
struct Subject {
    name: &'static str,
    what: &'static str,
    layers: usize,
    /// Of a layer, unpacked.
    bytes: usize,
}

const SUBJECTS: [Subject; 2] = [
    Subject { name: "large", what: "8 layers of 40 MiB", layers: 8, bytes: 40 << 20 },
    Subject { name: "many", what: "60 layers of 256 KiB", layers: 60, bytes: 256 << 10 },
];

/// What one tool needed for one image.
struct Row {
    tool: Tool,
    median: Cost,
    /// Of all runs, in seconds, in order.
    times: Vec<f64>,
}

/// Measures, prints, and writes the section.
#[allow(clippy::print_stdout, clippy::print_stderr)] // a program that prints a table
pub(crate) fn measure(options: &Options) -> Result<()> {
    let release = if options.containerd_2 { Release::V2 } else { Release::System };
    let load = report::load();
    let storage = tempfile::tempdir_in("/dev/shm").context("a directory in memory")?;
    let mut all = Vec::new();
    for subject in &SUBJECTS {
        if options.without_images.iter().any(|out| out == subject.name) {
            continue;
        }
        let made = image::make(subject.layers, subject.bytes)?;
        let compressed: usize = made.layers.iter().map(|layer| layer.gzip.len()).sum();
        store::registry(storage.path(), &format!("bench/{}", subject.name), "1", &made)?;
        drop(made);
        all.push((subject, compressed, rows(subject, release, storage.path(), options)?));
    }
    let text = report::section(&all, release, options.runs, &load);
    println!("{text}");
    if let Some(output) = &options.output {
        let name = if options.containerd_2 { "pulls-2" } else { "pulls" };
        section::replace(output, name, &text)?;
    }
    Ok(())
}

#[allow(clippy::print_stderr)] // progress
fn rows(subject: &Subject, release: Release, storage: &Path, options: &Options) -> Result<Vec<Row>> {
    let mut all: Vec<(Tool, Vec<Cost>)> = Vec::new();
    for round in 0..options.runs {
        for tool in Tool::ALL {
            if options.without.iter().any(|out| out == tool.name()) {
                continue;
            }
            let cost = tool.pull(subject.name, release, storage, options.pigz.as_deref());
            let Some(cost) = cost.with_context(|| format!("pulling with {}", tool.name()))? else { continue };
            eprintln!("{} {} round {round}: {cost:?}", subject.name, tool.name());
            match all.iter_mut().find(|(known, _)| *known == tool) {
                Some((_, costs)) => costs.push(cost),
                None => all.push((tool, vec![cost])),
            }
        }
    }
    Ok(all
        .into_iter()
        .map(|(tool, mut costs)| {
            costs.sort_by_key(|cost| cost.time);
            Row {
                tool,
                median: costs[costs.len() / 2],
                times: costs.iter().map(|cost| cost.time.as_secs_f64()).collect(),
            }
        })
        .collect())
}
