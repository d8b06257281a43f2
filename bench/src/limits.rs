//! `nodelet-bench limits`: how soon a changed limit is in force under a running container, and how much of what was allowed
//! a load gets that wants more.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nodelet_tests::containerd::Release;
use nodelet_tests::node::cgroup_files::CgroupFiles;
use nodelet_tests::node::{Node, PATIENCE};
use serde_json::{Value, json};

use super::section;

const OBJECTS: &str = "/apis/nodelet.dev/v1alpha1/namespaces/default";
const MIB: u64 = 1 << 20;

/// Measures limits.
#[derive(Args)]
pub(crate) struct Options {
    /// Changes of each limit.
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// About how many seconds each load goes on.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The file whose section about limits is replaced; nothing is written unless given.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// From the request that changes a limit to the moment at which the kernel has it.
struct Change {
    what: &'static str,
    times: Vec<Duration>,
}

/// What a load that wanted more got of what it was allowed.
struct Share {
    what: &'static str,
    allowed: String,
    ratio: f64,
}

/// Measures, prints, and writes the section.
#[allow(clippy::print_stdout)] // a program that prints a table
pub(crate) fn measure(options: &Options) -> Result<()> {
    let node = Node::start("bench-limits", Release::System)?.context("there is no containerd")?;
    let changes = changes(&node, options.changes)?;
    let mut shares = vec![cpu(&node, options.seconds)?];
    let disk = Disk::make(&node)?;
    shares.extend(io(&node, &disk, options.seconds)?);
    node.nodelet(&["delete", "workload", "writer"])?;
    node.until_gone("workloads", "writer")?;
    drop(disk);
    let text = report(&changes, &shares);
    println!("{text}");
    match &options.output {
        Some(page) => section::replace(page, "limits", &text),
        None => Ok(()),
    }
}

fn workload(name: &str, script: &str, container: &Value, more: &Value) -> String {
    let mut object = json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": "localhost:5000/shop/busybox:1", "command": ["sh", "-c", script],
        }]},
    });
    merge(&mut object["spec"]["containers"][0], container);
    merge(&mut object["spec"], more);
    object.to_string()
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

/// Changes limits to and fro, and looks at the kernel's file until it has each.
fn changes(node: &Node, count: u32) -> Result<Vec<Change>> {
    let limit = json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "ResourceLimit", "metadata": {"name": "tenants"},
        "spec": {"memory": {"max": "512Mi"}},
    });
    node.apply(&limit.to_string())?;
    let busy = "while :; do :; done & while :; do :; done";
    let resources = json!({"resources": {"limits": {"cpu": "500m"}}});
    node.apply(&workload("busy", busy, &resources, &json!({"resourceLimit": "tenants"})))?;
    node.until_ready("busy")?;
    let pid = node.pid("busy")?;
    let files = node.cgroup_files(pid)?;

    let quota = |files: &CgroupFiles| -> Result<u64> {
        let text = files.read("cpu", 0, "cpu.cfs_quota_us", "cpu.max")?;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    };
    let mut cpu = Change { what: "CPU of a container", times: Vec::new() };
    let mut memory = Change { what: "memory of a ResourceLimit", times: Vec::new() };
    for number in 0..count {
        let milli = if number % 2 == 0 { 400 } else { 500 };
        let resources = json!({"limits": {"cpu": format!("{milli}m")}});
        let containers = json!([{
            "name": "main", "image": "localhost:5000/shop/busybox:1", "command": ["sh", "-c", busy],
            "resources": resources,
        }]);
        let path = format!("{OBJECTS}/workloads/busy");
        cpu.times.push(in_force(
            || node.patch(&path, &json!({"spec": {"containers": containers}})),
            || Ok(quota(&files)? == milli * 100),
        )?);
        let mebibytes = if number % 2 == 0 { 256 } else { 512 };
        let path = format!("{OBJECTS}/resourcelimits/tenants");
        memory.times.push(in_force(
            || node.patch(&path, &json!({"spec": {"memory": {"max": format!("{mebibytes}Mi")}}})),
            || Ok(files.memory_limit(2)? == mebibytes * MIB),
        )?);
    }
    ensure!(node.pid("busy")? == pid, "the container was replaced");
    Ok(vec![cpu, memory])
}

fn in_force(change: impl FnOnce() -> Result<Value>, is_so: impl Fn() -> Result<bool>) -> Result<Duration> {
    let begin = Instant::now();
    change()?;
    while !is_so()? {
        ensure!(begin.elapsed() < PATIENCE, "a change is not in force");
        std::thread::yield_now();
    }
    Ok(begin.elapsed())
}

/// The two loops of the workload `busy`, which would take two processors.
fn cpu(node: &Node, seconds: u64) -> Result<Share> {
    let files = node.cgroup_files(node.pid("busy")?)?;
    let used = || -> Result<f64> {
        if files.is_v1() {
            return Ok(files.read("cpuacct", 0, "cpuacct.usage", "")?.parse::<f64>()? / 1e9);
        }
        let text = files.read("cpu", 0, "", "cpu.stat")?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("usage_usec")?;
        Ok(usage.parse::<f64>()? / 1e6)
    };
    let (begin, before) = (Instant::now(), used()?);
    node.namespaces.run(["sleep", &seconds.to_string()])?;
    let ratio = (used()? - before) / begin.elapsed().as_secs_f64() / 0.5;
    node.nodelet(&["delete", "workload", "busy"])?;
    node.until_gone("workloads", "busy")?;
    Ok(Share { what: "CPU, two loops", allowed: "0.5 CPUs".to_owned(), ratio })
}

/// A block device of our own with a file system, mounted at [`Disk::PLACE`] on a node.
struct Disk<'a> {
    node: &'a Node,
    device: String,
}

impl<'a> Disk<'a> {
    const PLACE: &'static str = "/run/disk";

    fn make(node: &'a Node) -> Result<Self> {
        let script = "truncate -s 256M /run/disk.img; device=$(losetup -f --show /run/disk.img); \
                      PATH=$PATH:/usr/sbin mkfs.ext4 -q -F $device; mkdir -p /run/disk; mount $device /run/disk; \
                      echo $device";
        let device = node.namespaces.run(["sh", "-ec", script])?.trim().to_owned();
        Ok(Self { node, device })
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let script = format!("umount {}; losetup -d {}", Self::PLACE, self.device);
        let _ = self.node.namespaces.run(["sh", "-c", &script]);
    }
}

/// Transfers past the page cache, which version 1 could not hold anybody to.
fn io(node: &Node, disk: &Disk<'_>, seconds: u64) -> Result<Vec<Share>> {
    const BYTES: u64 = 8 * MIB;
    const OPERATIONS: u64 = 200;
    let device = &disk.device;
    let mount = json!({"volumeMounts": [{"name": "disk", "mountPath": "/disk"}]});
    let volume = json!({"volumes": [{"name": "disk", "hostPath": {"path": Disk::PLACE}}]});
    let limited = |limits: Value| -> Result<()> {
        let mut limits = limits;
        limits["device"] = json!(device);
        let mut container = mount.clone();
        container["resources"] = json!({"io": [limits]});
        let before = node.object("workloads", "writer")?;
        node.apply(&workload("writer", "exec sleep 2147483647", &container, &volume))?;
        let generation = |object: &Value| object["metadata"]["generation"].as_u64();
        let newer = before.as_ref().and_then(generation).unwrap_or(0);
        node.until_workload("writer", "limited", |now| {
            nodelet_tests::node::api::ready(now) && generation(now) > Some(newer)
        })?;
        Ok(())
    };
    let transfer = |words: &str, units: u64, rate: u64| -> Result<f64> {
        let begin = Instant::now();
        let script = format!("dd {words} 2>/dev/null");
        node.nodelet(&["exec", "writer", "--", "sh", "-ec", &script])?;
        Ok(units as f64 / begin.elapsed().as_secs_f64() / rate as f64)
    };
    let mut shares = Vec::new();
    let mut share = |what, allowed: &str, ratio| shares.push(Share { what, allowed: allowed.to_owned(), ratio });

    limited(json!({"writeBytesPerSecond": "8Mi", "readBytesPerSecond": "8Mi"}))?;
    let count = 8 * seconds;
    let write = format!("if=/dev/zero of=/disk/file bs=1M count={count} oflag=direct");
    share("bytes written", "8 MiB/s", transfer(&write, count * MIB, BYTES)?);
    let read = format!("if=/disk/file of=/dev/null bs=1M count={count} iflag=direct");
    share("bytes read", "8 MiB/s", transfer(&read, count * MIB, BYTES)?);

    limited(json!({"writeIOPS": OPERATIONS, "readIOPS": OPERATIONS}))?;
    let count = OPERATIONS * seconds;
    let write = format!("if=/dev/zero of=/disk/file bs=4k count={count} oflag=direct conv=notrunc");
    share("write operations", "200/s", transfer(&write, count, OPERATIONS)?);
    let read = format!("if=/disk/file of=/dev/null bs=4k count={count} iflag=direct");
    share("read operations", "200/s", transfer(&read, count, OPERATIONS)?);
    Ok(shares)
}

fn report(changes: &[Change], shares: &[Share]) -> String {
    let mut text = format!(
        "## Limits\n\nMade by `make bench-limits`; do not edit. A Workload of two busy loops, and one that writes to a disk of \
         its own past the page\ncache; {} changes of each limit, from the request to the moment at which the kernel has it, no \
         process restarted.\n\n| a change of | median | 99th percentile | longest |\n|---|---:|---:|---:|\n",
        changes.first().map_or(0, |change| change.times.len())
    );
    for Change { what, times } in changes {
        let mut times = times.clone();
        times.sort();
        let at = |percent: usize| {
            let place = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        let _ = writeln!(text, "| {what} | {:.1} ms | {:.1} ms | {:.1} ms |", at(50), at(99), at(100));
    }
    text += "\n| what a load got that wanted more | allowed | of that |\n|---|---:|---:|\n";
    for Share { what, allowed, ratio } in shares {
        let _ = writeln!(text, "| {what} | {allowed} | {:.1} % |", ratio * 100.0);
    }
    text
}
