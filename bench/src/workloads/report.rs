//! The tables, and the section that they go to.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nodelet_tests::containerd::Release;

use super::Options;
use super::figures::{Figures, quantile};
use super::usage::{Memory, Steady};

/// The figures as Markdown; each time with its ratio to the first tool's.
pub(crate) fn tables(all: &[Figures], counts: &[usize]) -> String {
    let (times, needs) = (times(all, counts), needs(all));
    format!("{times}\n{needs}")
}

fn times(all: &[Figures], counts: &[usize]) -> String {
    let mut table = String::from("| | 1 up, p50 | p99 |");
    for count in counts {
        table += &format!(" {count} up |");
    }
    table += " death → successor, p50 | p99 |\n|---|";
    table += &"---:|".repeat(counts.len() + 4);
    table += "\n";
    let first = all.first();
    for figures in all {
        let percentile = |of: fn(&Figures) -> &Vec<Duration>, percent| {
            if of(figures).is_empty() {
                return "—".to_owned();
            }
            with_ratio(quantile(of(figures), percent), first.map(|first| quantile(of(first), percent)))
        };
        table += &format!("| {} ", figures.name);
        table += &format!("| {} | {} |", percentile(|of| &of.single, 50), percentile(|of| &of.single, 99));
        for count in counts {
            let median = |of: &Figures| of.up.get(count).map(|times| quantile(times, 50));
            let time = median(figures).unwrap_or_default();
            table += &format!(" {} |", with_ratio(time, first.and_then(median)));
        }
        table += &format!(" {} | {} |\n", percentile(|of| &of.successor, 50), percentile(|of| &of.successor, 99));
    }
    table
}

fn needs(all: &[Figures]) -> String {
    let mut table = String::from(
        "| | own memory, idle → loaded | all beside the applications | steady: own CPU | wake-ups/s | all CPU | \
         exec probes: own CPU | all CPU | HTTP probes: own CPU | all CPU |\n|---|",
    );
    table += &"---:|".repeat(9);
    table += "\n";
    for figures in all {
        let own = |memory: Memory| memory.own.map_or("none".to_owned(), |own| format!("{:.1}", mebibytes(own)));
        let beside = |memory: Memory| format!("{:.0}", mebibytes(memory.beside));
        let cpu = |share: Option<f64>| share.map_or("—".to_owned(), |share| format!("{:.2} %", share * 100.0));
        let pair = |steady: Option<Steady>| {
            format!("{} | {}", cpu(steady.and_then(|steady| steady.own)), cpu(steady.map(|steady| steady.beside)))
        };
        let wakeups = figures.steady.and_then(|steady| steady.wakeups);
        table += &format!(
            "| {} | {} → {} MiB | {} → {} MiB | {} | {} | {} | {} | {} |\n",
            figures.name,
            own(figures.idle),
            own(figures.loaded),
            beside(figures.idle),
            beside(figures.loaded),
            cpu(figures.steady.and_then(|steady| steady.own)),
            wakeups.map_or("—".to_owned(), |wakeups| format!("{wakeups:.1}")),
            cpu(figures.steady.map(|steady| steady.beside)),
            pair(figures.exec_probes),
            pair(figures.http_probes),
        );
    }
    table
}

fn with_ratio(time: Duration, base: Option<Duration>) -> String {
    let text = if time < Duration::from_secs(1) {
        format!("{:.0} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    };
    match base {
        Some(base) if base != time && !base.is_zero() => {
            format!("{text} ({:.2}×)", time.as_secs_f64() / base.as_secs_f64())
        }
        _ => text,
    }
}

#[allow(clippy::cast_precision_loss)] // memory sizes are far below 2^52
fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}

/// The section of docs/benchmarks.md.
pub(crate) fn section(table: &str, options: &Options, release: Release, load: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = memory.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let daemon =
        release.programs().map_or("containerd".to_owned(), |path| path.join("containerd").display().to_string());
    let versions: Vec<_> = [daemon.as_str(), "runc", "crun", "podman", "dockerd"]
        .iter()
        .filter_map(|program| {
            let output = Command::new(program).arg("--version").output().ok()?;
            let line = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
            Some(format!("- {line}\n"))
        })
        .collect();
    let title = if release == Release::V2 { "Workloads on containerd 2" } else { "Workloads" };
    format!(
        "## {title}\n\nMade by `make bench`; do not edit.\n\n\
         {cores} cores and {:.0} GiB, everything in memory, image present, containers of busybox that say that they run and then\n\
         sleep: the time is from the command to that line of the last container. One container: {} starts; more: the median\n\
         of {} runs, the tools by turns, each turn on a node of its own. nodelet gives each Workload an address on a bridge, a\n\
         filter of system calls and a log, where shims are pooled {} Workloads to a shim; `ctr` runs four at once, without any\n\
         of these; podman and docker run four at once on their default bridge. *Death → successor* is from SIGKILL\n\
         of a container's process to its successor's line, restart policy `always`. The ratio is to the first\n\
         row. The load of the machine when it began: {}.\n\n\
         *Own memory* is the tool's own process (PSS), idle and {} s after the start of {} containers; *all beside the\n\
         applications* adds containerd, shims, monitors and loggers. *Steady* is over {} s with that many containers and\n\
         nothing to do, in shares of a core; then with a probe of each container every second. These are of the last turn.\n\n{table}\n{}",
        mebibytes(kibibytes) / 1024.0,
        options.singles * options.rounds,
        options.runs * options.rounds,
        options.shim_pool,
        load.split(' ').next().unwrap_or_default(),
        options.rest,
        options.counts.iter().max().copied().unwrap_or_default(),
        options.steady,
        versions.concat()
    )
}
