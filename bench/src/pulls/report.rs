//! The section about pulls.

use std::fs;
use std::process::Command;

use nodelet_tests::containerd::Release;

use super::{Row, Subject};

/// What the machine had to do besides, over the last minute.
pub(super) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// In Markdown.
pub(super) fn section(all: &[(&Subject, usize, Vec<Row>)], release: Release, runs: usize, load: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let containerd = match release.programs() {
        Some(programs) => version(&programs.join("containerd")),
        None => "none".to_owned(),
    };
    let mut text = format!(
        "## Pulls, containerd {containerd}\n\n\
         Made by `make bench-pulls`; do not edit. Cold pulls from a docker-registry on loopback, gzip layers of files of this\n\
         machine, everything in memory, {cores} cores; medians of {runs} rounds, the tools by turns, each pull on a node of its\n\
         own. The machine's load when it began was {load}. *Time* is of the command a user gives, from its start to its end,\n\
         with the ratio to the quickest of `ctr`, docker and podman, and all rounds in parentheses. *CPU* is of the command and\n\
         all daemons that work for it. *Growth* is the peak of the agent above what it had before, or the peak of a command;\n\
         *daemons*: the growth of containerd, or of dockerd and containerd.\n"
    );
    for (subject, compressed, rows) in all {
        let best = rows.iter().filter(|row| row.tool.is_peer()).map(|row| row.median.time).min();
        text += &format!(
            "\n{} ({:.0} MiB, {:.0} MiB compressed):\n\n| | time | to the best | CPU | growth | daemons |\n\
             |---|---:|---:|---:|---:|---:|\n",
            subject.what,
            mebibytes((subject.layers * subject.bytes) as u64 >> 10),
            mebibytes(*compressed as u64 >> 10),
        );
        for Row { tool, median, times } in rows {
            let ratio =
                best.map_or_else(String::new, |best| format!("{:.2}×", median.time.as_secs_f64() / best.as_secs_f64()));
            let times: Vec<_> = times.iter().map(|time| format!("{time:.2}")).collect();
            text += &format!(
                "| {} | {:.2} s ({}) | {ratio} | {:.2} s | {:.1} MiB | {:.0} MiB |\n",
                tool.name(),
                median.time.as_secs_f64(),
                times.join(", "),
                median.cpu.as_secs_f64(),
                mebibytes(median.own),
                mebibytes(median.daemon),
            );
        }
    }
    text
}

fn version(containerd: &std::path::Path) -> String {
    let output = Command::new(containerd).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).split_whitespace().nth(2).unwrap_or("unknown").to_owned()
}

#[allow(clippy::cast_precision_loss)] // memory sizes are far below 2^52
fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}
