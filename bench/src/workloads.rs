//! `make bench`: how long it takes until containers run, how soon a dead one has a successor, and what the tool weighs
//! and burns meanwhile; against other tools, on this machine, in one run.
//!
//! Each tool runs in namespaces of its own with its state in memory, one after the other, on the same busybox image.
//! Every container says that it runs by a line into a pipe, the first thing that it does: nobody looks again and again,
//! and all tools are timed by the same clock, from the command to the line.

mod arrivals;
mod figures;
mod peers;
mod report;
mod usage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nodelet_tests::containerd::Release;

use super::section;
use figures::{Figures, quantile};
use peers::{Ctr, Docker, Load, Nodelet, Peer, Podman, Setup};

/// No container start is waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(180);

/// Measures workloads.
#[derive(Args)]
pub(crate) struct Options {
    /// How many containers to start at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [20, 100])]
    counts: Vec<usize>,
    /// Times to repeat each of these; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Starts of one container, and deaths of one.
    #[arg(long, default_value_t = 50)]
    singles: usize,
    /// How long to look at a node that has nothing to do, in seconds.
    #[arg(long, default_value_t = 20)]
    steady: u64,
    /// Tools to leave out, by the beginning of their names in the table.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Use containerd 2.x instead of the distribution's, with what drives containerd.
    #[arg(long)]
    containerd_2: bool,
    /// The file whose section about workloads is replaced; nothing is written unless given.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// How long after their start containers are left alone before a node counts as at rest, in seconds.
const SETTLES: &str = "15";

/// How nodelet is set up in turn.
const SETUPS: [Setup; 3] = [
    Setup { name: "nodelet", shim_pool: 0, crun: false },
    Setup { name: "nodelet with 20 to a shim", shim_pool: 20, crun: false },
    Setup { name: "nodelet with 20 to a shim and crun", shim_pool: 20, crun: true },
];

/// Measures all tools and prints the table.
#[allow(clippy::print_stdout, clippy::print_stderr)] // a program that prints a table
pub(crate) fn measure(options: &Options) -> Result<()> {
    let release = if options.containerd_2 { Release::V2 } else { Release::System };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut all = Vec::new();
    for setup in &SETUPS {
        one(options, setup.name, || Nodelet::start(setup, release), &mut all)?;
    }
    one(options, "ctr", || Ctr::start(release), &mut all)?;
    if !options.containerd_2 {
        one(options, "podman", Podman::start, &mut all)?;
        one(options, "docker", Docker::start, &mut all)?;
    }
    ensure!(!all.is_empty(), "nothing was measured");
    let table = report::tables(&all, &options.counts);
    println!("{table}");
    if let Some(output) = &options.output {
        let name = if options.containerd_2 { "workloads on containerd 2" } else { "workloads" };
        section::replace(output, name, &report::section(&table, options, release, &load))?;
    }
    Ok(())
}

/// Measures one tool, unless it is to be left out or is not here.
#[allow(clippy::print_stderr)] // progress
fn one(
    options: &Options,
    name: &str,
    start: impl FnOnce() -> Result<Option<Box<dyn Peer>>>,
    all: &mut Vec<Figures>,
) -> Result<()> {
    if options.without.iter().any(|left_out| left_out == name) {
        return Ok(());
    }
    match start().with_context(|| format!("starting {name}"))? {
        // A peer that cannot do it on this machine does not cost the figures of all the others; nodelet has to.
        Some(mut peer) => match figures(peer.as_mut(), options).with_context(|| format!("measuring {name}")) {
            Err(error) if !name.starts_with("nodelet") => eprintln!("left out: {error:#}"),
            measured => all.push(measured?),
        },
        None => eprintln!("{name} is not installed: left out"),
    }
    Ok(())
}

#[allow(clippy::print_stderr)] // progress
fn figures(peer: &mut dyn Peer, options: &Options) -> Result<Figures> {
    let mut figures = Figures { name: peer.name().to_owned(), idle: peer.memory()?, ..Figures::default() };
    // The first start of all pays for what every later one finds in the page cache.
    timed_up(peer, 1, Load::Nothing)?;
    peer.down()?;
    for _ in 0..options.singles {
        figures.single.push(timed_up(peer, 1, Load::Nothing)?);
        peer.down()?;
    }
    eprintln!(
        "{}: one up in {:?}, p99 {:?}",
        figures.name,
        quantile(&figures.single, 50),
        quantile(&figures.single, 99)
    );
    for &count in &options.counts {
        let mut times = Vec::new();
        for run in 1..=options.runs {
            times.push(timed_up(peer, count, Load::Nothing)?);
            eprintln!("{}: {count} up in {:?}, run {run}", figures.name, times.last());
            if Some(&count) == options.counts.iter().max() && run == options.runs {
                figures.loaded = at_rest(peer)?.memory()?;
                figures.steady = Some(peer.steady(Duration::from_secs(options.steady))?);
            }
            peer.down()?;
        }
        figures.up.push((count, quantile(&times, 50)));
    }
    let most = options.counts.iter().max().copied().unwrap_or(1);
    for (load, into) in [(Load::Exec, &mut figures.exec_probes), (Load::Http, &mut figures.http_probes)] {
        if peer.can(load) {
            timed_up(peer, most, load)?;
            *into = Some(at_rest(peer)?.steady(Duration::from_secs(options.steady))?);
            eprintln!("{}: probed {load:?}: {into:?}", figures.name);
            peer.down()?;
        }
    }
    // A new one each time: what dies often is held back.
    for _ in 0..options.singles {
        if !peer.up_for_ever()? {
            break;
        }
        peer.arrivals().wait(1)?;
        peer.settled(1)?;
        figures.successor.push(peer.successor()?);
        peer.down()?;
    }
    Ok(figures)
}

/// Waits until what follows a start is over: a revision is recorded as good ten seconds after it.
fn at_rest(peer: &mut dyn Peer) -> Result<&mut dyn Peer> {
    peer.node().namespaces.run(["sleep", SETTLES])?;
    Ok(peer)
}

/// From the command to the first instruction of the last container.
fn timed_up(peer: &mut dyn Peer, count: usize, load: Load) -> Result<Duration> {
    let begin = Instant::now();
    peer.up(count, load)?;
    let last = peer.arrivals().wait(count)?;
    peer.settled(count)?;
    Ok(last.duration_since(begin))
}
