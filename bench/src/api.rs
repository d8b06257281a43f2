//! `make bench-api`: the embedded API server as its clients meet it, and kube-apiserver with etcd where it is there.
//!
//! The server under test is a process of its own on a real disk. The load comes from this process, over connections
//! that stay open, as clients of Kubernetes keep theirs; what it takes of the processor is stated with each figure,
//! because both share one machine.

mod client;
mod figures;
mod load;
mod process;
mod report;
mod subject;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;

use super::section;
use figures::{Figures, Memory, sorted};
use process::pages;
use subject::{Kube, Nodelet, Running, Subject};

/// Measures the embedded API server.
#[derive(Args)]
pub(crate) struct Options {
    /// How many clients create objects at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64])]
    clients: Vec<usize>,
    /// For how long each of them measures, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Objects for lists, memory and the start with a full store.
    #[arg(long, default_value_t = 10_000)]
    objects: usize,
    /// Watchers that all see one write.
    #[arg(long, default_value_t = 100)]
    watchers: usize,
    /// Writes that they see.
    #[arg(long, default_value_t = 300)]
    writes: usize,
    /// Times to repeat starts and lists; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the stores are kept while measuring. Has to be a real disk: in memory, a sync costs nothing.
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
    /// The file whose section about the API server is replaced; nothing is written unless given.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// The server under test: what `nodelet run` serves, without a node behind it.
#[derive(Args)]
pub(crate) struct ServerOptions {
    /// Where the store, the keys and the socket are.
    directory: PathBuf,
    /// Where to listen with TLS.
    listen: std::net::SocketAddr,
}

/// Measures, prints, and writes the section.
#[allow(clippy::print_stdout, clippy::print_stderr)] // a program that prints a table
pub(crate) fn measure(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut all = Vec::new();
    let subjects: [Option<Box<dyn Subject>>; 2] = [Some(Box::new(Nodelet)), Kube::find().map(|k| Box::new(k) as _)];
    for subject in subjects.iter().flatten() {
        let figures = runtime.block_on(Box::pin(one(subject.as_ref(), options)));
        all.push(figures.with_context(|| format!("measuring {}", subject.name()))?);
    }
    if all.len() == 1 {
        eprintln!("kube-apiserver and etcd are not in $KUBEBUILDER_ASSETS: left out");
    }
    let disk = load::disk(&options.disk).context("measuring the disk")?;
    let text = report::section(&all, options, &disk);
    println!("{text}");
    if let Some(output) = &options.output {
        section::replace(output, "api", &text)?;
    }
    Ok(())
}

/// The process under test.
pub(crate) fn serve(options: &ServerOptions) -> Result<()> {
    subject::serve(&options.directory, options.listen)
}

/// All figures of one subject.
#[allow(clippy::print_stderr)] // progress
async fn one(subject: &dyn Subject, options: &Options) -> Result<Figures> {
    let mut figures = Figures { name: subject.name().to_owned(), ..Figures::default() };
    let scratch = tempfile::Builder::new().prefix("nodelet-bench-").tempdir_in(&options.disk)?;

    for run in 0..options.runs {
        let directory = scratch.path().join(format!("start-{run}"));
        figures.first_start.push(start(subject, &directory).await?.1);
        figures.empty_start.push(start(subject, &directory).await?.1);
    }
    eprintln!("{}: started {} times", figures.name, 2 * options.runs);

    let (running, _) = start(subject, &scratch.path().join("creates")).await?;
    running.make_namespace().await?;
    for (transport, endpoint) in running.endpoints() {
        for &clients in &options.clients {
            let creates = load::creates(&running, endpoint, clients, Duration::from_secs_f64(options.seconds)).await?;
            eprintln!("{}: {transport}, {clients} clients: {:.0} creates/s", figures.name, creates.per_second);
            figures.creates.push((transport, clients, creates));
        }
    }
    running.stop()?;

    let full = scratch.path().join("full");
    let (running, _) = start(subject, &full).await?;
    running.make_namespace().await?;
    figures.idle = settled(&running).await?;
    load::fill(&running, options.objects).await?;
    figures.loaded = settled(&running).await?;
    eprintln!("{}: {} idle, {} with {} objects", figures.name, figures.idle, figures.loaded, options.objects);
    for _ in 0..options.runs {
        figures.list_json.push(load::list(&running, client::JSON).await?);
        figures.list_table.push(load::list(&running, client::TABLE).await?);
    }
    figures.listed = settled(&running).await?;
    figures.fan_out = load::fan_out(&running, options.watchers, options.writes).await?;
    eprintln!("{}: listed, and told {} watchers", figures.name, options.watchers);
    running.stop()?;
    for _ in 0..options.runs {
        let (running, took) = start(subject, &full).await?;
        figures.full_start.push(took);
        figures.restarted = settled(&running).await?;
        running.stop()?;
    }
    for times in [&mut figures.first_start, &mut figures.empty_start, &mut figures.full_start] {
        sorted(times);
    }
    Ok(figures)
}

/// Starts a subject and waits until it says it is ready.
async fn start(subject: &dyn Subject, directory: &Path) -> Result<(Running, Duration)> {
    std::fs::create_dir_all(directory)?;
    let begin = Instant::now();
    let running = subject.start(directory)?;
    running.ready().await?;
    Ok((running, begin.elapsed()))
}

/// Memory, once what was under way is over.
async fn settled(running: &Running) -> Result<Memory> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    running.pids().map(pages).sum()
}
