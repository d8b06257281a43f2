//! `cargo run --release -p nodelet-bench --bin pulls`: how long a cold pull takes, what it costs, and what it adds to
//! memory; against `ctr images pull`, `docker pull` and `podman pull`, from a registry on loopback.
//!
//! Each run of each tool has a node of its own, made for it: nothing is warm but the registry's files. The tools take
//! turns within a round, so that whatever else the machine does hits all of them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use nodelet_tests::containerd::{Registry, Release};
use nodelet_tests::images::{Image, LayerBuilder, store};
use nodelet_tests::node::Node;
use nodelet_tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(300);

/// Measures cold pulls.
#[derive(Parser)]
struct Args {
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Tools to leave out.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Use containerd 2.x instead of the distribution's.
    #[arg(long)]
    containerd_2: bool,
}

/// One pull.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    time: Duration,
    /// Of the tool, its daemons and containerd.
    cpu: Duration,
    /// KiB: what the peak of the tool's own process is above what it had before; for a command, its peak.
    own: u64,
    /// KiB: the same of containerd or dockerd with it.
    daemon: u64,
}

const TOOLS: [&str; 4] = ["nodelet", "ctr", "docker", "podman"];

#[allow(clippy::print_stdout, clippy::print_stderr)] // a program that prints a table
fn main() -> Result<()> {
    let args = Args::parse();
    let release = if args.containerd_2 { Release::V2 } else { Release::System };
    let storage = tempfile::tempdir_in("/dev/shm").context("a directory in memory")?;
    store::registry(storage.path(), "bench/large", "1", &image(8, 40 << 20)?)?;
    store::registry(storage.path(), "bench/many", "1", &image(60, 256 << 10)?)?;
    println!("| image | tool | time | CPU | own memory | containerd or dockerd |\n|---|---|---:|---:|---:|---:|");
    for name in ["large", "many"] {
        let mut all: Vec<(&str, Vec<Cost>)> = Vec::new();
        for round in 0..args.runs {
            for tool in TOOLS.iter().filter(|tool| !args.without.iter().any(|out| out == *tool)) {
                let Some(cost) = pull(tool, name, release, storage.path())? else { continue };
                eprintln!("{name} {tool} round {round}: {cost:?}");
                match all.iter_mut().find(|(known, _)| known == tool) {
                    Some((_, costs)) => costs.push(cost),
                    None => all.push((tool, vec![cost])),
                }
            }
        }
        for (tool, mut costs) in all {
            costs.sort_by_key(|cost| cost.time);
            let Cost { time, cpu, own, daemon } = costs[costs.len() / 2];
            println!(
                "| {name} | {tool} | {:.2} s | {:.2} s | {} MiB | {} MiB |",
                time.as_secs_f64(),
                cpu.as_secs_f64(),
                own >> 10,
                daemon >> 10
            );
        }
    }
    Ok(())
}

/// An image of so many layers of files of this machine, so that compression finds what it finds in real images.
fn image(layers: usize, bytes: usize) -> Result<Image> {
    let mut sources = Vec::new();
    for directory in ["/usr/bin", "/usr/lib", "/usr/sbin", "/usr/share"] {
        collect(Path::new(directory), &mut sources);
    }
    sources.sort();
    let mut sources = sources.into_iter().cycle();
    let mut finished = Vec::new();
    for number in 0..layers {
        let mut layer = LayerBuilder::default();
        let (mut left, mut file) = (bytes, 0);
        while left > 0 {
            let content = fs::read(sources.next().context("this machine has files")?)?;
            let content = &content[..content.len().min(left)];
            layer.file(&format!("srv/{number}/{file}"), content, 0o644)?;
            left -= content.len();
            file += 1;
        }
        finished.push(Rc::new(layer.finish()?));
    }
    Ok(Image { layers: finished, config: serde_json::json!({"Cmd": ["true"]}) })
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect(&entry.path(), found);
        } else if kind.is_file() && entry.metadata().is_ok_and(|m| m.len() > 1000) {
            found.push(entry.path());
        }
    }
}

/// One cold pull on a fresh node; nothing if the machine lacks the tool.
fn pull(tool: &str, name: &str, release: Release, storage: &Path) -> Result<Option<Cost>> {
    let Some(mut node) = Node::without_agent(&format!("bench-pull-{tool}"), release)? else { return Ok(None) };
    if let Some(registry) = node.registry.take() {
        registry.kill(&node.namespaces)?;
    }
    let registry = Registry::start(&node.namespaces, storage, &node.logs.join("bench-registry.log"))?;
    let reference = format!("localhost:5000/bench/{name}:1");
    let cost = match tool {
        "nodelet" => {
            let config = fs::read_to_string(node.config())?.replace("logLevel: debug", "logLevel: info");
            fs::write(node.config(), config)?;
            node.start_agent()?;
            #[expect(clippy::disallowed_methods, reason = "its first second is its own, and nothing tells its end")]
            std::thread::sleep(Duration::from_secs(1));
            let wish = format!(
                "apiVersion: nodelet.dev/v1alpha1\nkind: Image\nmetadata: {{name: bench}}\nspec: {{reference: '{reference}'}}\n"
            );
            measure(&node, "nodelet", &["containerd"], || {
                node.apply(&wish)?;
                until(PATIENCE, "the image", || {
                    let image = node.get("/apis/nodelet.dev/v1alpha1/namespaces/default/images/bench")?;
                    let conditions = image.as_ref().and_then(|image| image["status"]["conditions"].as_array());
                    let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
                    Ok(ready.then_some(()))
                })
                .with_context(|| node.explain())
                .map(|()| Command::default())
            })?
        }
        "ctr" => measure(&node, "", &["containerd"], || {
            let ctr = release.programs().context("containerd")?.join("ctr");
            command(&node, &format!("{} -n bench images pull --plain-http {reference}", ctr.display()))
        })?,
        "docker" => {
            let words = ["dockerd", "--data-root", "/run/docker-data", "--exec-root", "/run/docker-exec"];
            let more = ["--pidfile", "/run/docker.pid", "-H", "unix:///run/docker.sock", "--bridge", "none"];
            let with = ["--iptables=false", "--containerd", "/run/containerd/containerd.sock"];
            let words: Vec<&OsStr> = words.iter().chain(&more).chain(&with).map(OsStr::new).collect();
            if !installed("dockerd") {
                return Ok(None);
            }
            let _daemon = node.namespaces.spawn(&words, &node.logs.join("dockerd.log"))?;
            let docker = "docker -H unix:///run/docker.sock";
            until(Duration::from_secs(60), "dockerd", || {
                Ok(node.namespaces.run(["sh", "-c", &format!("{docker} info >/dev/null 2>&1")]).ok())
            })?;
            measure(&node, "", &["dockerd", "containerd"], || command(&node, &format!("{docker} pull -q {reference}")))?
        }
        "podman" if installed("podman") => {
            let podman = "podman --root /run/podman/root --runroot /run/podman/run --cgroup-manager cgroupfs \
                          --storage-driver overlay --events-backend none";
            measure(&node, "", &[], || command(&node, &format!("{podman} pull -q --tls-verify=false {reference}")))?
        }
        _ => return Ok(None),
    };
    registry.kill(&node.namespaces)?;
    Ok(Some(cost))
}

fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin"].iter().any(|place| Path::new(place).join(program).exists())
}

/// What a command used.
#[derive(Default)]
struct Command {
    cpu: Duration,
    peak: u64,
}

/// Runs a command on the node. The shell looks at its peak while it runs, and at its time when it has ended.
fn command(node: &Node, line: &str) -> Result<Command> {
    let script = format!(
        "{line} >/dev/null & p=$!; peak=0\n\
         while grep -q VmHWM /proc/$p/status 2>/dev/null; do\n\
           now=$(awk '/VmHWM/ {{print $2}}' /proc/$p/status 2>/dev/null); peak=${{now:-$peak}}; sleep 0.1\n\
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

/// The processes of a node whose names begin so.
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

fn measure(node: &Node, own: &str, daemons: &[&str], pull: impl FnOnce() -> Result<Command>) -> Result<Cost> {
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
    let command = pull()?;
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
