//! What a pull costs: time, processor, memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nodelet_tests::node::Node;

/// One pull.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) time: Duration,
    /// Of the tool, its daemons and containerd.
    pub(super) cpu: Duration,
    /// KiB: what the peak of the tool's own process is above what it had before; for a command, its peak.
    pub(super) own: u64,
    /// KiB: the same of containerd, or dockerd with it.
    pub(super) daemon: u64,
}

/// What a command used.
#[derive(Default)]
struct Command {
    cpu: Duration,
    peak: u64,
}

/// Measures one command, with the processes of the node that work for it: the one named `own`, if any, and `daemons`.
pub(super) fn measure(node: &Node, own: &str, daemons: &[&str], line: &str) -> Result<Cost> {
    let own: Vec<_> = processes(node, &[own])?;
    let daemons = processes(node, daemons)?;
    ensure!(own.len() <= 1, "one agent, not {own:?}");
    let sum = |field: &str, of: &[PathBuf]| of.iter().map(|p| status(p, field)).sum::<Result<u64>>();
    let (own_before, daemon_before) = (sum("VmRSS:", &own)?, sum("VmRSS:", &daemons)?);
    let cpu = |of: &[PathBuf]| of.iter().map(|p| ticks(p)).sum::<Result<u64>>();
    let all: Vec<PathBuf> = own.iter().chain(&daemons).cloned().collect();
    for process in &all {
        // Forgets the peak so far.
        fs::write(process.join("clear_refs"), "5")?;
    }
    let before = cpu(&all)?;
    let begin = Instant::now();
    let command = command(node, line)?;
    let time = begin.elapsed();
    // Ticks are hundredths of a second.
    let daemons_cpu = Duration::from_millis((cpu(&all)? - before) * 10);
    Ok(Cost {
        time,
        cpu: command.cpu + daemons_cpu,
        own: if own.is_empty() { command.peak } else { sum("VmHWM:", &own)?.saturating_sub(own_before) },
        daemon: sum("VmHWM:", &daemons)?.saturating_sub(daemon_before),
    })
}

/// Runs a command on the node. The shell looks at its peak while it runs, and at its time when it has ended.
fn command(node: &Node, line: &str) -> Result<Command> {
    let script = format!(
        "{line} >/dev/null & p=$!; peak=0\n\
         while grep -q VmHWM /proc/$p/status 2>/dev/null; do\n\
           now=$(awk '/VmHWM/ {{print $2}}' /proc/$p/status 2>/dev/null); peak=${{now:-$peak}}; sleep 0.05\n\
         done\n\
         wait $p || exit 1\n\
         echo $peak; times"
    );
    let said = node.namespaces.run(["bash", "-c", &script])?;
    let mut lines = said.lines().rev();
    let times = lines.next().context("times of the command")?;
    let peak = lines.nth(1).context("peak of the command")?.trim().parse()?;
    let seconds = |text: &str| -> Result<f64> {
        let (minutes, seconds) = text.trim_end_matches('s').split_once('m').context("a time")?;
        Ok(minutes.parse::<f64>()? * 60.0 + seconds.parse::<f64>()?)
    };
    let mut cpu = 0.0;
    for word in times.split_whitespace() {
        cpu += seconds(word)?;
    }
    Ok(Command { cpu: Duration::from_secs_f64(cpu), peak })
}

/// The processes of a node with these names.
fn processes(node: &Node, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(node.namespaces.path("/proc"))? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if path.join("stat").exists() && names.iter().any(|wanted| name.trim() == *wanted) {
            found.push(path);
        }
    }
    Ok(found)
}

fn status(process: &Path, field: &str) -> Result<u64> {
    let text = fs::read_to_string(process.join("status"))?;
    let line = text.lines().find(|line| line.starts_with(field)).with_context(|| field.to_owned())?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

/// User and system time, with that of its children that have ended.
fn ticks(process: &Path) -> Result<u64> {
    let text = fs::read_to_string(process.join("stat"))?;
    let Some((_, fields)) = text.rsplit_once(')') else { bail!("{text}") };
    fields.split_whitespace().skip(11).take(4).map(|field| Ok(field.parse::<u64>()?)).sum()
}
