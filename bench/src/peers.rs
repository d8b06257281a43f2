//! The tools, each on a node of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nodelet_tests::containerd::Release;
use nodelet_tests::node::Node;
use nodelet_tests::wait::until;

use super::PATIENCE;
use super::figures::Memory;

/// The argument by which an application's process is found, whatever started it.
const MARK: &str = "2147480000";

/// A tool that runs containers.
pub(crate) trait Peer {
    /// How it appears in the table.
    fn name(&self) -> &'static str;
    /// Starts so many containers and returns when all run.
    fn up(&mut self, count: usize) -> Result<()>;
    /// Removes all containers.
    fn down(&mut self) -> Result<()>;
    /// The node it runs on.
    fn node(&self) -> &Node;
    /// PID inside the node of its long-running process.
    fn process(&self) -> Option<u32>;
    /// How the names of processes begin that run beside the applications for this tool's sake.
    fn beside(&self) -> &'static [&'static str];
    /// Starts one container that is restarted when it dies; false if the tool restarts nothing.
    fn up_for_ever(&mut self) -> Result<bool>;

    /// What runs beside the applications.
    fn memory(&self) -> Result<Memory> {
        let processes = self.node().namespaces.path("/proc");
        let own = self.process().map(|pid| pss(&processes.join(pid.to_string()))).transpose()?;
        let mut beside = 0;
        for entry in fs::read_dir(&processes)? {
            let path = entry?.path();
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            if path.join("smaps_rollup").exists() && self.beside().iter().any(|part| name.starts_with(part)) {
                beside += pss(&path).unwrap_or(0);
            }
        }
        Ok(Memory { own, beside })
    }

    /// Kills a container and waits for its successor.
    fn successor(&mut self) -> Result<Option<Duration>> {
        if !self.up_for_ever()? {
            return Ok(None);
        }
        let all = || -> Result<Vec<u32>> { applications(&self.node().namespaces.path("/proc")) };
        let first = until(PATIENCE, "the container", || Ok(all()?.first().copied()))?;
        let begin = Instant::now();
        self.node().namespaces.signal(first, "KILL")?;
        until(PATIENCE, "its successor", || Ok(all()?.into_iter().find(|pid| *pid != first)))?;
        Ok(Some(begin.elapsed()))
    }
}

fn pss(process: &Path) -> Result<u64> {
    let text = fs::read_to_string(process.join("smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("no PSS")?;
    Ok(line.split_whitespace().nth(1).context("no PSS")?.parse()?)
}

/// The PIDs of the applications: `sleep` with our mark.
fn applications(processes: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(processes)? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.starts_with(b"sleep\0") && words.ends_with(format!("{MARK}\0").as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// nodelet itself.
pub(crate) struct Nodelet(Node);

impl Nodelet {
    pub(crate) fn start() -> Result<Option<Box<dyn Peer>>> {
        let Some(node) = Node::without_agent("bench-nodelet", Release::System)? else { return Ok(None) };
        let mut node = node;
        let config = fs::read_to_string(node.config())?.replace("logLevel: debug", "logLevel: info");
        fs::write(node.config(), config)?;
        node.start_agent()?;
        Ok(Some(Box::new(Nodelet(node))))
    }

    fn workloads(count: usize) -> String {
        (0..count).fold(String::new(), |all, number| {
            all + &format!(
                "---\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}}}\nspec:\n  \
                 terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: 'localhost:5000/shop/busybox:1', \
                 command: [sleep, '{MARK}']}}\n"
            )
        })
    }
}

impl Peer for Nodelet {
    fn name(&self) -> &'static str {
        "nodelet, a bridge address each"
    }

    fn up(&mut self, count: usize) -> Result<()> {
        self.0.apply(&Self::workloads(count))?;
        until(PATIENCE, "all workloads to run", || {
            let list = self.0.get("/apis/nodelet.dev/v1alpha1/namespaces/default/workloads")?.context("a list")?;
            let items = list["items"].as_array().context("a list")?;
            let running = items.iter().filter(|item| item["status"]["phase"] == "Running").count();
            Ok((running == count).then_some(()))
        })
        .with_context(|| self.0.explain())
    }

    fn down(&mut self) -> Result<()> {
        let list = self.0.get("/apis/nodelet.dev/v1alpha1/namespaces/default/workloads")?.context("a list")?;
        let count = list["items"].as_array().map_or(0, Vec::len);
        fs::write(self.0.namespaces.path("/run/remove.yaml"), Self::workloads(count))?;
        self.0.nodelet(&["delete", "-f", "/run/remove.yaml"])?;
        until(PATIENCE, "all workloads to be gone", || {
            let list = self.0.get("/apis/nodelet.dev/v1alpha1/namespaces/default/workloads")?.context("a list")?;
            Ok(list["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    }

    fn node(&self) -> &Node {
        &self.0
    }

    fn process(&self) -> Option<u32> {
        self.0.agent.as_ref().map(|agent| agent.pid)
    }

    fn beside(&self) -> &'static [&'static str] {
        &["nodelet", "containerd"]
    }

    fn up_for_ever(&mut self) -> Result<bool> {
        self.up(1).map(|()| true)
    }
}

/// A node without an agent, for the others, with a shell to drive them.
fn bare(name: &str) -> Result<Option<Node>> {
    Node::without_agent(name, Release::System)
}

/// Runs a script on a node.
fn shell(node: &Node, script: &str) -> Result<String> {
    node.namespaces.run(["sh", "-ec", script])
}

/// Whether this machine has a program.
fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin"].iter().any(|place| PathBuf::from(place).join(program).exists())
}

/// containerd's own command, without a network.
pub(crate) struct Ctr(Node);

impl Ctr {
    pub(crate) fn start() -> Result<Option<Box<dyn Peer>>> {
        let Some(node) = bare("bench-ctr")? else { return Ok(None) };
        node.ctr(&["image", "pull", "--plain-http", "localhost:5000/shop/busybox:1"])?;
        Ok(Some(Box::new(Ctr(node))))
    }
}

impl Peer for Ctr {
    fn name(&self) -> &'static str {
        "`ctr run -d`, no network"
    }

    fn up(&mut self, count: usize) -> Result<()> {
        let parent = self.0.cgroup_parent();
        let run = format!(
            "seq {count} | xargs -P 4 -I N ctr -n nodelet run -d --null-io --cgroup {parent}/cN \
             localhost:5000/shop/busybox:1 cN sleep {MARK}"
        );
        shell(&self.0, &run).map(drop)
    }

    fn down(&mut self) -> Result<()> {
        let remove = "ctr -n nodelet c ls -q | xargs -r -P 4 -I N sh -c \
                      'ctr -n nodelet task rm -f N; ctr -n nodelet c rm N'";
        shell(&self.0, remove).map(drop)
    }

    fn node(&self) -> &Node {
        &self.0
    }

    fn process(&self) -> Option<u32> {
        None
    }

    fn beside(&self) -> &'static [&'static str] {
        &["containerd"]
    }

    fn up_for_ever(&mut self) -> Result<bool> {
        Ok(false)
    }
}

/// podman, on its default bridge.
pub(crate) struct Podman(Node);

/// podman with its state on the node.
const PODMAN: &str = "podman --root /run/podman/root --runroot /run/podman/run --cgroup-manager cgroupfs \
                      --events-backend file --storage-driver overlay";

impl Podman {
    pub(crate) fn start() -> Result<Option<Box<dyn Peer>>> {
        if !installed("podman") {
            return Ok(None);
        }
        let Some(node) = bare("bench-podman")? else { return Ok(None) };
        // What it writes elsewhere stays on the node as well.
        for directory in ["/var", "/etc"] {
            let upper = format!("/run/podman{directory}");
            let options = format!("lowerdir={directory},upperdir={upper}/upper,workdir={upper}/work");
            shell(
                &node,
                &format!("mkdir -p {upper}/upper {upper}/work; mount -t overlay -o {options} overlay {directory}"),
            )?;
        }
        shell(&node, &format!("{PODMAN} load -qi {}", node.images.docker_archive.canonicalize()?.display()))?;
        Ok(Some(Box::new(Podman(node))))
    }

    fn run(&self, count: usize, flags: &str) -> Result<()> {
        let parent = self.0.cgroup_parent();
        let run = format!(
            "seq {count} | xargs -P 4 -I N {PODMAN} run -d -q --pull never --log-driver k8s-file --cgroup-parent {parent} \
             {flags} --name cN {} sleep {MARK} >/dev/null",
            nodelet_tests::images::catalog::ARCHIVED
        );
        shell(&self.0, &run).map(drop)
    }
}

impl Peer for Podman {
    fn name(&self) -> &'static str {
        "`podman run -d`, default bridge"
    }

    fn up(&mut self, count: usize) -> Result<()> {
        self.run(count, "")
    }

    fn down(&mut self) -> Result<()> {
        shell(&self.0, &format!("{PODMAN} rm -fa -t 0 >/dev/null")).map(drop)
    }

    fn node(&self) -> &Node {
        &self.0
    }

    fn process(&self) -> Option<u32> {
        None
    }

    fn beside(&self) -> &'static [&'static str] {
        &["conmon"]
    }

    fn up_for_ever(&mut self) -> Result<bool> {
        self.run(1, "--restart always").map(|()| true)
    }
}

/// docker, on its default bridge.
pub(crate) struct Docker(Node, nodelet_tests::namespaces::Daemon);

/// docker against the node's dockerd.
const DOCKER: &str = "docker -H unix:///run/docker.sock";

impl Docker {
    pub(crate) fn start() -> Result<Option<Box<dyn Peer>>> {
        if !installed("dockerd") || !installed("docker") {
            return Ok(None);
        }
        let Some(node) = bare("bench-docker")? else { return Ok(None) };
        let words = [
            "dockerd",
            "--data-root",
            "/run/docker-data",
            "--exec-root",
            "/run/docker-exec",
            "--pidfile",
            "/run/docker.pid",
            "-H",
            "unix:///run/docker.sock",
            "--containerd",
            "/run/containerd/containerd.sock",
        ];
        let words = words.map(std::ffi::OsStr::new);
        let log = node.logs.join("dockerd.log");
        let mut daemon = node.namespaces.spawn(&words, &log)?;
        until(Duration::from_secs(30), "dockerd", || {
            if !daemon.alive() {
                bail!("dockerd ended: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            Ok(shell(&node, &format!("{DOCKER} info >/dev/null 2>&1")).ok())
        })?;
        shell(&node, &format!("{DOCKER} load -qi {}", node.images.docker_archive.canonicalize()?.display()))?;
        Ok(Some(Box::new(Docker(node, daemon))))
    }

    fn run(&self, count: usize, flags: &str) -> Result<()> {
        let parent = self.0.cgroup_parent();
        let run = format!(
            "seq {count} | xargs -P 4 -I N {DOCKER} run -d --cgroup-parent {parent} {flags} --name cN {} sleep {MARK} >/dev/null",
            nodelet_tests::images::catalog::ARCHIVED
        );
        shell(&self.0, &run).map(drop)
    }
}

impl Peer for Docker {
    fn name(&self) -> &'static str {
        "`docker run -d`, default bridge"
    }

    fn up(&mut self, count: usize) -> Result<()> {
        self.run(count, "")
    }

    fn down(&mut self) -> Result<()> {
        shell(&self.0, &format!("{DOCKER} ps -aq | xargs -r {DOCKER} rm -f >/dev/null")).map(drop)
    }

    fn node(&self) -> &Node {
        &self.0
    }

    fn process(&self) -> Option<u32> {
        Some(self.1.pid)
    }

    fn beside(&self) -> &'static [&'static str] {
        &["dockerd", "docker-proxy", "containerd"]
    }

    fn up_for_ever(&mut self) -> Result<bool> {
        self.run(1, "--restart always").map(|()| true)
    }
}
