//! The table, and the section that it goes to.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::figures::Figures;

/// The figures as a Markdown table; each time with its ratio to the first tool's.
pub(crate) fn table(all: &[Figures], counts: &[usize]) -> String {
    let mut table = String::from("| |");
    for count in counts {
        table += &format!(" {count} up |");
    }
    table += " own memory idle → loaded | all beside the applications | death → successor |\n|---|";
    table += &"---:|".repeat(counts.len() + 3);
    table += "\n";
    for figures in all {
        table += &format!("| {} |", figures.name);
        for (row, (_, time)) in figures.up.iter().enumerate() {
            let base = all.first().and_then(|first| first.up.get(row)).map(|(_, time)| *time);
            table += &format!(" {} |", with_ratio(*time, base));
        }
        let own = match (figures.idle.own, figures.loaded.own) {
            (Some(idle), Some(loaded)) => format!("{:.1} → {:.1} MiB", mebibytes(idle), mebibytes(loaded)),
            _ => "none".to_owned(),
        };
        let beside = format!("{:.0} → {:.0} MiB", mebibytes(figures.idle.beside), mebibytes(figures.loaded.beside));
        let base = all.first().and_then(|first| first.successor);
        let successor = figures.successor.map_or("—".to_owned(), |time| with_ratio(time, base));
        table += &format!(" {own} | {beside} | {successor} |\n");
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
pub(crate) fn section(table: &str, runs: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = memory.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let versions: Vec<_> =
        [["containerd", "--version"], ["runc", "--version"], ["podman", "--version"], ["dockerd", "--version"]]
            .iter()
            .filter_map(|[program, flag]| {
                let output = Command::new(program).arg(flag).output().ok()?;
                let line = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
                Some(format!("- {line}\n"))
            })
            .collect();
    format!(
        "## Workloads\n\nMade by `make bench`; do not edit.\n\n\
         Medians of {runs} runs on {cores} cores and {:.0} GiB, everything in memory, image present, containers of busybox\n\
         `sleep`. nodelet gives each Workload an address on a bridge and writes its log; `ctr` runs four at once, without\n\
         network or log; podman and docker run four at once on their default bridge. The ratio is to nodelet's time.\n\n\
         *Own memory* is the tool's own process (PSS), idle and with the highest number of containers; *all beside the\n\
         applications* adds containerd, shims, monitors and loggers. *Death → successor* is from SIGKILL of a container's\n\
         process to its successor's first instruction, restart policy `always`.\n\n{table}\n{}",
        mebibytes(kibibytes) / 1024.0,
        versions.concat()
    )
}
