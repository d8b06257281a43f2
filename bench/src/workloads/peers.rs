//! The tools, each on a node of its own.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nodelet_tests::containerd::Release;
use nodelet_tests::node::Node;
use nodelet_tests::wait::until;

use super::PATIENCE;
use super::arrivals::{self, Arrivals, DIRECTORY, INSIDE};
use super::usage::{self, Memory, Steady};

/// The argument by which an application's process is found, whatever started it.
const MARK: &str = "2147480000";

/// What a container is asked for besides running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Nothing.
    Nothing,
    /// A program in it, every second.
    Exec,
    /// A page of it, every second.
    Http,
}

/// A tool that runs containers.
pub(crate) trait Peer {
    /// How it appears in the table.
    fn name(&self) -> &str;
    /// Asks for so many containers. They may run later.
    fn up(&mut self, count: usize, load: Load) -> Result<()>;
    /// Waits until the tool itself says that they run.
    fn settled(&mut self, _count: usize) -> Result<()> {
        Ok(())
    }
    /// Removes all containers.
    fn down(&mut self) -> Result<()>;
    /// The node it runs on.
    fn node(&self) -> &Node;
    /// Where its containers report.
    fn arrivals(&self) -> &Arrivals;
    /// PID inside the node of its long-running process.
    fn process(&self) -> Option<u32>;
    /// How the names of processes begin that run beside the applications for this tool's sake.
    fn beside(&self) -> &'static [&'static str];
    /// Starts one container that is restarted when it dies; false if the tool restarts nothing.
    fn up_for_ever(&mut self) -> Result<bool>;
    /// Whether it can ask its containers.
    fn can(&self, load: Load) -> bool;

    /// What runs beside the applications.
    fn memory(&self) -> Result<Memory> {
        usage::memory(&self.node().namespaces.path("/proc"), self.process(), self.beside())
    }

    /// What that costs while nobody asks for anything.
    fn steady(&self, time: Duration) -> Result<Steady> {
        usage::steady(&self.node().namespaces.path("/proc"), self.process(), self.beside(), time)
    }

    /// Kills the one container that is there and waits for its successor.
    fn successor(&mut self) -> Result<Duration> {
        let first =
            until(PATIENCE, "the container", || Ok(arrivals::applications(self.node(), MARK)?.first().copied()))?;
        let begin = Instant::now();
        self.node().namespaces.signal(first, "KILL")?;
        Ok(self.arrivals().wait(1)?.duration_since(begin))
    }
}

/// How nodelet is configured.
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    /// Several Workloads to a shim instead of a shim each.
    pub(crate) pooled: bool,
    /// crun instead of runc.
    pub(crate) crun: bool,
}

/// nodelet itself.
pub(crate) struct Nodelet {
    name: &'static str,
    node: Node,
    arrivals: Arrivals,
}

const WORKLOADS: &str = "/apis/nodelet.dev/v1alpha1/namespaces/default/workloads";

impl Nodelet {
    pub(crate) fn start(setup: &Setup, pool: usize, release: Release) -> Result<Option<Box<dyn Peer>>> {
        let crun = ["/usr/bin/crun", "/usr/local/bin/crun"].into_iter().find(|path| PathBuf::from(path).exists());
        if setup.crun && crun.is_none() {
            return Ok(None);
        }
        let Some(mut node) = Node::without_agent("bench-nodelet", release)? else { return Ok(None) };
        let config = fs::read_to_string(node.config())?.replace("logLevel: debug", "logLevel: info");
        let mut runtime = format!("runtime: {{shimPool: {}, ", if setup.pooled { pool } else { 0 });
        if let Some(crun) = crun.filter(|_| setup.crun) {
            runtime += &format!("ociRuntime: {crun}, ");
        }
        fs::write(node.config(), config.replace("runtime: {", &runtime))?;
        if setup.crun {
            // crun refuses a node with both versions of cgroups mounted; on this one, the second need not be.
            let unified = "/sys/fs/cgroup/unified";
            shell(
                &node,
                &format!("! mountpoint -q {unified} || {{ umount {unified}; mount -t tmpfs tmpfs {unified}; }}"),
            )?;
        }
        node.start_agent()?;
        let arrivals = Arrivals::new(&node)?;
        Ok(Some(Box::new(Nodelet { name: setup.name, node, arrivals })))
    }

    fn workloads(count: usize, load: Load) -> String {
        let [shell, flag, script] = arrivals::words(MARK);
        let (script, probe) = match load {
            Load::Nothing => (script, String::new()),
            Load::Exec => (script, ", readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}".to_owned()),
            Load::Http => (
                format!("httpd -h /bin; {script}"),
                ", readinessProbe: {httpGet: {path: /true, port: 80}, periodSeconds: 1}".to_owned(),
            ),
        };
        (0..count).fold(String::new(), |all, number| {
            all + &format!(
                "---\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number}}}\nspec:\n  \
                 terminationGracePeriodSeconds: 0\n  volumes: [{{name: bench, hostPath: {{path: {DIRECTORY}}}}}]\n  \
                 containers:\n  - {{name: main, image: 'localhost:5000/shop/busybox:1', command: [{shell}, {flag}, \
                 '{script}'], volumeMounts: [{{name: bench, mountPath: {INSIDE}}}]{probe}}}\n"
            )
        })
    }

    fn items(&self) -> Result<Vec<serde_json::Value>> {
        let list = self.node.get(WORKLOADS)?.context("a list")?;
        list["items"].as_array().cloned().context("a list")
    }
}

impl Peer for Nodelet {
    fn name(&self) -> &str {
        self.name
    }

    fn up(&mut self, count: usize, load: Load) -> Result<()> {
        self.node.apply(&Self::workloads(count, load)).map(drop)
    }

    fn settled(&mut self, count: usize) -> Result<()> {
        until(PATIENCE, "all workloads to run", || {
            let running = self.items()?.iter().filter(|item| item["status"]["phase"] == "Running").count();
            Ok((running == count).then_some(()))
        })
        .with_context(|| self.node.explain())
    }

    fn down(&mut self) -> Result<()> {
        let count = self.items()?.len();
        fs::write(self.node.namespaces.path("/run/remove.yaml"), Self::workloads(count, Load::Nothing))?;
        self.node.nodelet(&["delete", "-f", "/run/remove.yaml"])?;
        until(PATIENCE, "all workloads to be gone", || Ok(self.items()?.is_empty().then_some(())))
    }

    fn node(&self) -> &Node {
        &self.node
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    fn process(&self) -> Option<u32> {
        self.node.agent.as_ref().map(|agent| agent.pid)
    }

    fn beside(&self) -> &'static [&'static str] {
        &["nodelet", "containerd"]
    }

    fn up_for_ever(&mut self) -> Result<bool> {
        self.up(1, Load::Nothing).map(|()| true)
    }

    fn can(&self, _: Load) -> bool {
        true
    }
}

/// A node without an agent, for the others, with a shell to drive them.
fn bare(name: &str, release: Release) -> Result<Option<(Node, Arrivals)>> {
    let Some(node) = Node::without_agent(name, release)? else { return Ok(None) };
    let arrivals = Arrivals::new(&node)?;
    Ok(Some((node, arrivals)))
}

/// The container's command for a shell.
fn command() -> String {
    let [shell, flag, script] = arrivals::words(MARK);
    format!("{shell} {flag} '{script}'")
}

/// Runs a script on a node.
fn shell(node: &Node, script: &str) -> Result<String> {
    node.namespaces.run(["sh", "-ec", script])
}

/// Whether this machine has a program.
fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin"].iter().any(|place| PathBuf::from(place).join(program).exists())
}

/// containerd's own command, without a network, a log or a filter of system calls.
pub(crate) struct Ctr {
    node: Node,
    arrivals: Arrivals,
    program: String,
}

impl Ctr {
    pub(crate) fn start(release: Release) -> Result<Option<Box<dyn Peer>>> {
        let Some((node, arrivals)) = bare("bench-ctr", release)? else { return Ok(None) };
        node.ctr(&["image", "pull", "--plain-http", "localhost:5000/shop/busybox:1"])?;
        let program = release.programs().context("no ctr")?.join("ctr").display().to_string() + " -n nodelet";
        Ok(Some(Box::new(Ctr { node, arrivals, program })))
    }
}

impl Peer for Ctr {
    fn name(&self) -> &str {
        "`ctr run -d`, no network"
    }

    fn up(&mut self, count: usize, _: Load) -> Result<()> {
        let (parent, ctr) = (self.node.cgroup_parent(), &self.program);
        let script = format!(
            "exec {ctr} run -d --null-io --mount type=bind,src={DIRECTORY},dst={INSIDE},options=rbind:rw --cgroup {parent}/c$1 \
             localhost:5000/shop/busybox:1 c$1 {}",
            command()
        );
        four_at_once(&self.node, count, &script)
    }

    fn down(&mut self) -> Result<()> {
        let ctr = &self.program;
        let remove = format!("{ctr} c ls -q | xargs -r -P 4 -I N sh -c '{ctr} task rm -f N; {ctr} c rm N'");
        shell(&self.node, &remove).map(drop)
    }

    fn node(&self) -> &Node {
        &self.node
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
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

    fn can(&self, _: Load) -> bool {
        false
    }
}

/// Runs a script so many times, with the number as `$1`.
fn four_at_once(node: &Node, count: usize, script: &str) -> Result<()> {
    node.namespaces
        .run(["sh", "-ec", "seq $1 | xargs -P 4 -I @@ sh -c \"$2\" sh @@ >/dev/null", "sh", &count.to_string(), script])
        .map(drop)
}

/// podman, on its default bridge.
pub(crate) struct Podman {
    node: Node,
    arrivals: Arrivals,
}

/// podman with its state on the node.
const PODMAN: &str = "podman --root /run/podman/root --runroot /run/podman/run --runtime runc --cgroup-manager cgroupfs \
                      --events-backend file --storage-driver overlay";

impl Podman {
    pub(crate) fn start() -> Result<Option<Box<dyn Peer>>> {
        if !installed("podman") {
            return Ok(None);
        }
        let Some((node, arrivals)) = bare("bench-podman", Release::System)? else { return Ok(None) };
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
        Ok(Some(Box::new(Podman { node, arrivals })))
    }

    fn run(&self, count: usize, flags: &str) -> Result<()> {
        let parent = self.node.cgroup_parent();
        let script = format!(
            "exec {PODMAN} run -d -q --pull never --log-driver k8s-file --cgroup-parent {parent} \
             -v {DIRECTORY}:{INSIDE} {flags} --name c$1 {} {}",
            nodelet_tests::images::catalog::ARCHIVED,
            command()
        );
        four_at_once(&self.node, count, &script)
    }
}

impl Peer for Podman {
    fn name(&self) -> &str {
        "`podman run -d`, default bridge"
    }

    fn up(&mut self, count: usize, load: Load) -> Result<()> {
        self.run(count, flags(load))
    }

    fn down(&mut self) -> Result<()> {
        shell(&self.node, &format!("{PODMAN} rm -fa -t 0 >/dev/null")).map(drop)
    }

    fn node(&self) -> &Node {
        &self.node
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
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

    fn can(&self, _: Load) -> bool {
        false // its health checks are timers of systemd
    }
}

/// docker, on its default bridge.
pub(crate) struct Docker {
    node: Node,
    arrivals: Arrivals,
    daemon: nodelet_tests::namespaces::Daemon,
}

/// docker against the node's dockerd.
const DOCKER: &str = "docker -H unix:///run/docker.sock";

impl Docker {
    pub(crate) fn start() -> Result<Option<Box<dyn Peer>>> {
        if !installed("dockerd") || !installed("docker") {
            return Ok(None);
        }
        let Some((node, arrivals)) = bare("bench-docker", Release::System)? else { return Ok(None) };
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
        Ok(Some(Box::new(Docker { node, arrivals, daemon })))
    }

    fn run(&self, count: usize, flags: &str) -> Result<()> {
        let parent = self.node.cgroup_parent();
        let script = format!(
            "exec {DOCKER} run -d --cgroup-parent {parent} -v {DIRECTORY}:{INSIDE} {flags} --name c$1 {} {}",
            nodelet_tests::images::catalog::ARCHIVED,
            command()
        );
        four_at_once(&self.node, count, &script)
    }
}

impl Peer for Docker {
    fn name(&self) -> &str {
        "`docker run -d`, default bridge"
    }

    fn up(&mut self, count: usize, load: Load) -> Result<()> {
        self.run(count, flags(load))
    }

    fn down(&mut self) -> Result<()> {
        shell(&self.node, &format!("{DOCKER} ps -aq | xargs -r {DOCKER} rm -f >/dev/null")).map(drop)
    }

    fn node(&self) -> &Node {
        &self.node
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    fn process(&self) -> Option<u32> {
        Some(self.daemon.pid)
    }

    fn beside(&self) -> &'static [&'static str] {
        &["dockerd", "docker-proxy", "containerd"]
    }

    fn up_for_ever(&mut self) -> Result<bool> {
        self.run(1, "--restart always").map(|()| true)
    }

    fn can(&self, load: Load) -> bool {
        load == Load::Exec
    }
}

/// What docker and podman call a probe.
fn flags(load: Load) -> &'static str {
    match load {
        Load::Exec => "--health-cmd true --health-interval 1s",
        Load::Nothing | Load::Http => "",
    }
}
