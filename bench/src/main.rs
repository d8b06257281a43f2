//! `make bench`: how long it takes until containers run, what the agent weighs, and how soon a dead container has a
//! successor; against other tools, on this machine, in one run.
//!
//! `make bench-api` measures the API server alone and `make bench-pulls` cold pulls, with the same program: see [`api`] and
//! [`pulls`].
//!
//! Each tool runs in namespaces of its own with its state in memory, one after the other, on the same busybox image.
//! Figures from different machines or runs cannot be compared; the ratios of one run can.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

mod api;
mod figures;
mod peers;
mod pulls;
mod report;
mod section;

use figures::{Figures, median};
use peers::{Ctr, Docker, Nodelet, Peer, Podman};

/// Starts a tool, or answers nothing if the machine lacks it.
type Start = fn() -> Result<Option<Box<dyn Peer>>>;

/// Measures nodelet against other tools.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many containers to start at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 20, 100])]
    counts: Vec<usize>,
    /// Times to repeat each measurement; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Tools to leave out.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Where to write the table; nothing is written unless given.
    #[arg(long)]
    output: Option<std::path::PathBuf>,
}

/// What else can be measured.
#[derive(Subcommand)]
enum Command {
    /// The API server.
    Api(api::Options),
    /// The process that `api` measures.
    #[command(hide = true)]
    ApiServer(api::ServerOptions),
    /// Cold pulls.
    Pulls(pulls::Options),
}

#[allow(clippy::print_stdout, clippy::print_stderr)] // a program that prints a table
fn main() -> Result<()> {
    let args = Args::parse();
    match &args.command {
        Some(Command::Api(options)) => return api::measure(options),
        Some(Command::ApiServer(options)) => return api::serve(options),
        Some(Command::Pulls(options)) => return pulls::measure(options),
        None => {}
    }
    let start: [(&str, Start); 4] =
        [("nodelet", Nodelet::start), ("ctr", Ctr::start), ("podman", Podman::start), ("docker", Docker::start)];
    let mut all = Vec::new();
    for (name, start) in start {
        if args.without.iter().any(|left_out| left_out == name) {
            continue;
        }
        match start().with_context(|| format!("starting {name}"))? {
            Some(mut peer) => all.push(measure(peer.as_mut(), &args).with_context(|| format!("measuring {name}"))?),
            None => eprintln!("{name} is not installed: left out"),
        }
    }
    let table = report::table(&all, &args.counts);
    println!("{table}");
    if let Some(output) = args.output {
        section::replace(&output, "containers", &report::section(&table, args.runs))?;
    }
    Ok(())
}

#[allow(clippy::print_stderr)] // progress
fn measure(peer: &mut dyn Peer, args: &Args) -> Result<Figures> {
    let mut figures = Figures { name: peer.name().to_owned(), idle: peer.memory()?, ..Figures::default() };
    // The first start of all pays for what every later one finds in the page cache.
    peer.up(1)?;
    peer.down()?;
    for &count in &args.counts {
        let mut times = Vec::new();
        for run in 1..=args.runs {
            let begin = Instant::now();
            peer.up(count)?;
            times.push(begin.elapsed());
            eprintln!("{}: {count} up in {:.2} s, run {run}", figures.name, begin.elapsed().as_secs_f32());
            if Some(&count) == args.counts.iter().max() && run == args.runs {
                figures.loaded = peer.memory()?;
            }
            peer.down()?;
        }
        figures.up.push((count, median(times)));
    }
    let mut times = Vec::new();
    for _ in 0..args.runs.max(5) {
        if let Some(time) = peer.successor()? {
            times.push(time);
        }
        peer.down()?;
    }
    figures.successor = (!times.is_empty()).then(|| median(times));
    Ok(figures)
}

/// No container start is waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(180);
