//! `make bench`: how long it takes until containers run, how soon a dead one has a successor, and what the tool weighs
//! and burns meanwhile; against other tools, on this machine, in one run.
//!
//! Each tool runs in namespaces of its own with its state in memory, on the same busybox image: one after the other, and
//! all of them again in the next round, since a machine may be quicker at one time than at another.
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
    /// How many rounds all tools go through.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Times to repeat each count in a round; the median of all rounds counts.
    #[arg(long, default_value_t = 2)]
    runs: usize,
    /// Starts of one container, and deaths of one, in a round.
    #[arg(long, default_value_t = 15)]
    singles: usize,
    /// How long to look at a node that has nothing to do, in seconds; 0 to measure times only.
    #[arg(long, default_value_t = 20)]
    steady: u64,
    /// How long containers are left alone after their start before the node counts as at rest, in seconds. A revision is
    /// recorded as good ten seconds after it.
    #[arg(long, default_value_t = 20)]
    rest: u64,
    /// Workloads to a shim where shims are pooled.
    #[arg(long, default_value_t = 50)]
    shim_pool: usize,
    /// Tools to leave out, by their names in the table.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Use containerd 2.x instead of the distribution's, with what drives containerd.
    #[arg(long)]
    containerd_2: bool,
    /// The file whose section about workloads is replaced; nothing is written unless given.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// How nodelet is set up in turn.
const SETUPS: [Setup; 3] = [
    Setup { name: "nodelet", pooled: false, crun: false },
    Setup { name: "nodelet with pooled shims", pooled: true, crun: false },
    Setup { name: "nodelet with pooled shims and crun", pooled: true, crun: true },
];

/// Measures all tools and prints the table.
#[allow(clippy::print_stdout, clippy::print_stderr)] // a program that prints a table
pub(crate) fn measure(options: &Options) -> Result<()> {
    ensure!(options.steady > 0 || options.output.is_none(), "--steady 0 measures too little for --output");
    let release = if options.containerd_2 { Release::V2 } else { Release::System };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut all = Vec::new();
    for round in 1..=options.rounds {
        for setup in &SETUPS {
            one(options, round, setup.name, || Nodelet::start(setup, options.shim_pool, release), &mut all)?;
        }
        one(options, round, "ctr", || Ctr::start(release), &mut all)?;
        if !options.containerd_2 {
            one(options, round, "podman", Podman::start, &mut all)?;
            one(options, round, "docker", Docker::start, &mut all)?;
        }
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

/// Gives one tool its turn, unless it is to be left out or is not here. What takes long and depends little on the machine's
/// mood is measured in the last round.
#[allow(clippy::print_stderr)] // progress
fn one(
    options: &Options,
    round: usize,
    name: &str,
    start: impl FnOnce() -> Result<Option<Box<dyn Peer>>>,
    all: &mut Vec<Figures>,
) -> Result<()> {
    if options.without.iter().any(|left_out| left_out == name) {
        return Ok(());
    }
    let Some(mut peer) = start().with_context(|| format!("starting {name}"))? else {
        eprintln!("{name} is not installed: left out");
        return Ok(());
    };
    let known = all.iter().position(|figures| figures.name == peer.name());
    if known.is_none() && round > 1 {
        // It failed in an earlier round.
        return Ok(());
    }
    let mut figures = known.map_or_else(Figures::default, |at| std::mem::take(&mut all[at]));
    figures.name = peer.name().to_owned();
    let peer = peer.as_mut();
    let measured = times(peer, options, &mut figures)
        .and_then(|()| {
            if round == options.rounds && options.steady > 0 { needs(peer, options, &mut figures) } else { Ok(()) }
        })
        .with_context(|| format!("measuring {name}"));
    match (measured, known) {
        // A peer that cannot do it on this machine does not cost the figures of all the others; nodelet has to.
        (Err(error), _) if !name.starts_with("nodelet") => eprintln!("left out: {error:#}"),
        (Err(error), _) => return Err(error),
        (Ok(()), Some(at)) => all[at] = figures,
        (Ok(()), None) => all.push(figures),
    }
    all.retain(|figures| !figures.name.is_empty());
    Ok(())
}

/// How soon containers run, and how soon a dead one has a successor.
#[allow(clippy::print_stderr)] // progress
fn times(peer: &mut dyn Peer, options: &Options, figures: &mut Figures) -> Result<()> {
    figures.idle = peer.memory()?;
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
        for _ in 0..options.runs {
            let time = timed_up(peer, count, Load::Nothing)?;
            eprintln!("{}: {count} up in {time:?}", figures.name);
            figures.up.entry(count).or_default().push(time);
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
    Ok(())
}

/// What the tool needs while nobody asks for anything, with the highest number of containers.
#[allow(clippy::print_stderr)] // progress
fn needs(peer: &mut dyn Peer, options: &Options, figures: &mut Figures) -> Result<()> {
    let most = options.counts.iter().max().copied().unwrap_or(1);
    let steady = Duration::from_secs(options.steady);
    timed_up(peer, most, Load::Nothing)?;
    figures.loaded = at_rest(peer, options)?.memory()?;
    figures.steady = Some(peer.steady(steady)?);
    peer.down()?;
    for (load, into) in [(Load::Exec, &mut figures.exec_probes), (Load::Http, &mut figures.http_probes)] {
        if peer.can(load) {
            timed_up(peer, most, load)?;
            *into = Some(at_rest(peer, options)?.steady(steady)?);
            eprintln!("{}: probed {load:?}: {into:?}", figures.name);
            peer.down()?;
        }
    }
    Ok(())
}

/// Waits until what follows a start is over.
fn at_rest<'a>(peer: &'a mut dyn Peer, options: &Options) -> Result<&'a mut dyn Peer> {
    peer.node().namespaces.run(["sleep", &options.rest.to_string()])?;
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
