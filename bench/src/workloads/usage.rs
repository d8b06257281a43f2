//! Memory, processor time and wake-ups of processes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Proportional set sizes in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Of the tool's own long-running process; nothing if it has none.
    pub(crate) own: Option<u64>,
    /// Of everything that runs beside the applications: daemons, shims, loggers.
    pub(crate) beside: u64,
}

/// What a second costs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steady {
    /// Of the tool's own process, share of a core.
    pub(crate) own: Option<f64>,
    /// Times a second that a thread of it had waited and was woken.
    pub(crate) wakeups: Option<f64>,
    /// Share of a core of everything beside the applications, short-lived children included.
    pub(crate) beside: f64,
}

/// Processes of a node that run for a tool's sake: `own` is a PID there, `beside` are the beginnings of names.
pub(super) fn memory(processes: &Path, own: Option<u32>, beside: &[&str]) -> Result<Memory> {
    let own = own.map(|pid| pss(&processes.join(pid.to_string()))).transpose()?;
    let beside = named(processes, beside)?.iter().map(|process| pss(process).unwrap_or(0)).sum();
    Ok(Memory { own, beside })
}

/// Looks at the processes now and after `time`.
pub(super) fn steady(processes: &Path, own: Option<u32>, beside: &[&str], time: Duration) -> Result<Steady> {
    let own = own.map(|pid| processes.join(pid.to_string()));
    let read = || -> Result<Seen> {
        let all = named(processes, beside)?.into_iter().filter_map(|path| Some((path.clone(), ticks(&path).ok()?)));
        Ok(Seen {
            ticks: own.as_deref().map(ticks).transpose()?,
            wakeups: own.as_deref().map(wakeups).transpose()?,
            beside: all.collect(),
        })
    };
    let before = read()?;
    let begin = Instant::now();
    #[allow(clippy::disallowed_methods)] // the time over which is measured
    std::thread::sleep(time);
    let after = read()?;
    let seconds = begin.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)] // counts of a few seconds
    let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
    let pair = |before: Option<u64>, after: Option<u64>| Some(rate(before?, after?));
    // A tick is a hundredth of a second. What came meanwhile counts from then on.
    let of = |(path, after): (&PathBuf, &u64)| rate(before.beside.get(path).copied().unwrap_or(*after), *after) / 100.0;
    Ok(Steady {
        own: pair(before.ticks, after.ticks).map(|ticks| ticks / 100.0),
        wakeups: pair(before.wakeups, after.wakeups),
        beside: after.beside.iter().map(of).sum(),
    })
}

/// Counters at one moment.
struct Seen {
    ticks: Option<u64>,
    wakeups: Option<u64>,
    beside: HashMap<PathBuf, u64>,
}

fn named(processes: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(processes)? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if path.join("stat").exists() && names.iter().any(|begin| name.starts_with(begin)) {
            found.push(path);
        }
    }
    Ok(found)
}

fn pss(process: &Path) -> Result<u64> {
    let text = fs::read_to_string(process.join("smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("no PSS")?;
    Ok(line.split_whitespace().nth(1).context("no PSS")?.parse()?)
}

/// User and system time, with that of children that have ended.
pub(crate) fn ticks(process: &Path) -> Result<u64> {
    let text = fs::read_to_string(process.join("stat"))?;
    let (_, fields) = text.rsplit_once(')').context("a line of /proc/PID/stat")?;
    fields.split_whitespace().skip(11).take(4).map(|field| Ok(field.parse::<u64>()?)).sum()
}

/// Voluntary context switches of all threads.
fn wakeups(process: &Path) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(process.join("task"))? {
        let Ok(text) = fs::read_to_string(thread?.path().join("status")) else { continue };
        let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches:"));
        sum += line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}
