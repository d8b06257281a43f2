//! What the kernel says of a process: its memory, and the time it spent on processors.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::figures::Memory;

fn proc(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

/// The memory of a process.
pub(super) fn pages(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(proc(pid, "smaps_rollup")).context("reading smaps_rollup")?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.split_whitespace().next().context("no size")?.parse()?)
    };
    Ok(Memory { rss: field("Rss:")?, pss: field("Pss:")? })
}

/// Processor time of a process so far, children not included.
pub(super) fn busy(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(proc(pid, "stat"))?;
    // The name in parentheses may hold spaces; what counts comes after it.
    let (_, rest) = text.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("a short stat")?.parse()?) };
    // utime and stime, in hundredths of a second on every machine Linux runs on today.
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}
