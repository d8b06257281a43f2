//! A node under test: namespaces, a containerd, a registry and the agent, with everything below its own `/run`.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::containerd::{Containerd, Registry, Release};
use crate::images::catalog;
use crate::namespaces::{Daemon, Namespaces};
use crate::wait::until;

pub mod api;
pub mod cgroup_files;
pub mod inventory;
mod kills;

/// Where the agent keeps what survives a reboot, inside the node.
pub const DATA: &str = "/run/data";
/// The agent's run directory, inside the node: the default.
pub const RUN: &str = "/run/nodelet";
/// The directory that the agent takes manifests from, inside the node.
pub const MANIFESTS: &str = "/run/manifests";
/// How long anything may take in a test before it counts as failed. Generous: the machine may be slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running node. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Node {
    /// The agent, unless it was stopped.
    pub agent: Option<Daemon>,
    /// containerd, unless it was killed.
    pub containerd: Option<Containerd>,
    /// The registry at `localhost:5000`, unless it was killed.
    pub registry: Option<Registry>,
    /// Where all of it runs.
    pub namespaces: Namespaces,
    /// Logs of all parts, kept after the test.
    pub logs: PathBuf,
    /// The images that the registry serves.
    pub images: catalog::Built,
    cgroups: inventory::Cgroups,
    /// The directory of containerd's programs.
    pub programs: PathBuf,
    /// The agent's program.
    pub nodelet: PathBuf,
    /// Variables of the agent's environment, `NAME=value`; they hold from its next start.
    pub environment: Vec<String>,
}

impl Node {
    /// Starts one and waits until the agent is ready; nothing if the machine lacks this containerd. `name` is unique
    /// among nodes that run at a time.
    pub fn start(name: &str, release: Release) -> Result<Option<Node>> {
        let Some(mut node) = Node::without_agent(name, release)? else { return Ok(None) };
        node.start_agent()?;
        Ok(Some(node))
    }

    /// Starts one without its agent. [`Node::config`] may then be changed before [`Node::start_agent`].
    pub fn without_agent(name: &str, release: Release) -> Result<Option<Node>> {
        let Some(programs) = release.programs() else { return Ok(None) };
        let images = catalog::build(&crate::cache().join("images"))?;
        let nodelet = programs_built()?;
        let logs = nodelet.with_file_name("nodes").join(name);
        let _absent = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs)?;
        let namespaces = Namespaces::new(&logs)?;
        let containerd = Containerd::start(&namespaces, &programs, &logs.join("containerd.log"))?;
        let registry = Registry::start(&namespaces, &images.registry, &logs.join("registry.log"))?;
        let node = Node {
            agent: None,
            containerd: Some(containerd),
            registry: Some(registry),
            cgroups: inventory::Cgroups::named(name),
            namespaces,
            logs,
            images,
            programs,
            nodelet,
            environment: Vec::new(),
        };
        for directory in [DATA, MANIFESTS] {
            fs::create_dir_all(node.namespaces.path(directory))?;
        }
        fs::write(node.config(), node.default_config())?;
        Ok(Some(node))
    }

    /// The agent's configuration file, as this process reaches it.
    pub fn config(&self) -> PathBuf {
        self.namespaces.path("/run/config.yaml")
    }

    /// The configuration that a node starts with. The audit pass is put off to where no test waits for it: what is
    /// repaired here is repaired because an event told.
    fn default_config(&self) -> String {
        format!(
            "apiVersion: nodelet.dev/v1alpha1\nkind: NodeletConfiguration\nnodeName: test\ndataDir: {DATA}\nrunDir: {RUN}\n\
             api: {{listen: \"\"}}\nruntime: {{cgroupParent: {}, auditSeconds: 86400}}\n\
             sources: [{{directory: {MANIFESTS}}}]\nobservability: {{listen: \"127.0.0.1:9440\", logLevel: debug}}\n",
            self.cgroups.parent()
        )
    }

    /// Starts the agent and waits until it is ready.
    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        let mut agent = self.agent.take().context("the agent does not run")?;
        let log = self.log("nodelet");
        until(PATIENCE, "the agent to be ready", || {
            if !agent.alive() {
                bail!("the agent ended at its start:\n{}", tail(&log));
            }
            let ready = self.namespaces.run(["curl", "-sf", "http://127.0.0.1:9440/readyz"]);
            Ok(ready.ok())
        })
        .with_context(|| format!("log of the agent:\n{}", tail(&log)))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Restarts the agent so that it puts so many Workloads into a shim.
    pub fn share_shims(&mut self, workloads: u32) -> Result<()> {
        self.stop_agent()?;
        let config = fs::read_to_string(self.config())?;
        let pooled = format!("runtime: {{shimPool: {workloads}, ");
        fs::write(self.config(), config.replace("runtime: {", &pooled))?;
        self.start_agent()
    }

    /// Starts the agent and does not wait for anything.
    pub fn spawn_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        // Where a test counts down to a kill; nothing is read there unless the agent has its failpoints.
        let mut words: Vec<&OsStr> = ["env", "NODELET_FAILPOINTS=/run/failpoints"].map(OsStr::new).to_vec();
        words.extend(self.environment.iter().map(OsStr::new));
        words.push(self.nodelet.as_os_str());
        words.extend(["run", "--config", "/run/config.yaml"].map(OsStr::new));
        self.agent = Some(self.namespaces.spawn(&words, &self.log("nodelet"))?);
        Ok(())
    }

    /// `kill -9` of the agent.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.end_agent("KILL").map(drop)
    }

    /// An ordered stop of the agent. Fails if it does not end well.
    pub fn stop_agent(&mut self) -> Result<()> {
        let status = self.end_agent("TERM")?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", tail(&self.log("nodelet")));
        Ok(())
    }

    fn end_agent(&mut self, signal: &str) -> Result<std::process::ExitStatus> {
        let mut agent = self.agent.take().context("the agent does not run")?;
        self.namespaces.signal(agent.pid, signal)?;
        agent.wait(PATIENCE)
    }

    /// `kill -9` of containerd; shims, containers and loggers stay.
    pub fn kill_containerd(&mut self) -> Result<()> {
        self.containerd.take().context("containerd does not run")?.kill(&self.namespaces)
    }

    /// Starts containerd again.
    pub fn start_containerd(&mut self) -> Result<()> {
        self.containerd = Some(Containerd::start(&self.namespaces, &self.programs, &self.log("containerd"))?);
        Ok(())
    }

    /// Runs the `nodelet` command line and answers what it printed; an error holds what it complained about.
    pub fn nodelet(&self, words: &[&str]) -> Result<String> {
        let program = self.nodelet.to_str().context("the build directory has no UTF-8 name")?;
        self.namespaces.run([program].iter().chain(words))
    }

    /// Runs containerd's `ctr` in nodelet's namespace.
    pub fn ctr(&self, words: &[&str]) -> Result<String> {
        self.ctr_in("nodelet", words)
    }

    /// Runs containerd's `ctr` in another of its namespaces.
    pub fn ctr_in(&self, namespace: &str, words: &[&str]) -> Result<String> {
        let program = self.programs.join("ctr");
        let program = program.to_str().context("containerd is in a directory without a UTF-8 name")?;
        self.namespaces.run([program, "--namespace", namespace].iter().chain(words))
    }

    /// The cgroup below which this node's containers live.
    pub fn cgroup_parent(&self) -> String {
        self.cgroups.parent()
    }

    /// `nodelet apply` of some YAML.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = "/run/applied.yaml";
        fs::File::create(self.namespaces.path(file))?.write_all(yaml.as_bytes())?;
        self.nodelet(&["apply", "-f", file])
    }

    /// Puts a file into the manifest directory, at once as a careful editor does.
    pub fn manifest(&self, name: &str, yaml: &str) -> Result<()> {
        let directory = self.namespaces.path(MANIFESTS);
        let new = directory.join(format!(".{name}.new"));
        fs::write(&new, yaml)?;
        fs::rename(new, directory.join(name)).context("placing a manifest")
    }

    /// Fetches a page from inside the node.
    pub fn fetch(&self, url: &str) -> Result<String> {
        self.namespaces.run(["curl", "-sf", "--max-time", "5", url])
    }

    /// Waits until the agent serves a page.
    pub fn until_page(&self, url: &str) -> Result<String> {
        until(PATIENCE, url, || Ok(self.fetch(url).ok())).with_context(|| self.explain())
    }

    /// Waits until a Workload in namespace `default` is as wanted, and answers it.
    pub fn until_workload(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        until(PATIENCE, &format!("workload {name}: {what}"), || {
            Ok(self.object("workloads", name)?.filter(|workload| wanted(workload)))
        })
        .with_context(|| self.explain())
    }

    /// Waits until a Workload in namespace `default` is ready as its newest generation.
    pub fn until_ready(&self, name: &str) -> Result<Value> {
        self.until_workload(name, "Ready", api::ready)
    }

    /// Waits until the API no longer has an object.
    pub fn until_gone(&self, plural: &str, name: &str) -> Result<()> {
        until(PATIENCE, &format!("{plural}/{name} to be gone"), || {
            Ok(self.object(plural, name)?.is_none().then_some(()))
        })
        .with_context(|| self.explain())
    }

    /// PID inside the node of a Workload's one container.
    pub fn pid(&self, workload: &str) -> Result<u32> {
        let object = self.object("workloads", workload)?.context("no such workload")?;
        let id = api::container_id(&object).context("the workload has no container")?;
        let tasks = self.ctr(&["task", "ls"])?;
        let row = tasks.lines().find(|line| line.starts_with(&id)).with_context(|| format!("no task {id}"))?;
        let pid = row.split_whitespace().nth(1).context("a task without a PID")?;
        Ok(pid.parse()?)
    }

    /// What is needed to understand a failure: the table and the end of the agent's log.
    pub fn explain(&self) -> String {
        let table = self.nodelet(&["get", "workloads", "-A", "-o", "yaml"]).unwrap_or_else(|error| error.to_string());
        // Where the ports lead, whom the node knows at those addresses, and which connections have no answer.
        let network = "nft list table inet nodelet | grep -A 9 'map ports'; ip neighbour; ss -tanp state syn-sent";
        let network = self.namespaces.run(["sh", "-c", network]).unwrap_or_else(|error| error.to_string());
        let log = self.log("nodelet");
        format!("{table}\n{network}\nlog of the agent, {}:\n{}", log.display(), tail(&log))
    }

    /// A program that goes on in the node while the test does something else.
    pub fn background(&self, script: &str) -> Result<std::process::Child> {
        let mut command = self.namespaces.command("sh");
        command.args(["-c", script]).stdin(Stdio::null()).spawn().context("running a shell")
    }

    fn log(&self, of: &str) -> PathBuf {
        self.logs.join(of).with_extension("log")
    }
}

/// The agent that was built beside this program.
fn programs_built() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let mut places = here.ancestors().skip(1).take(2);
    let found = places.find_map(|place| Some(place.join("nodelet")).filter(|path| path.is_file()));
    found.context("`nodelet` is not built; `make build` builds it")
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Runs a test on a fresh node, or says that it did not for want of this containerd.
#[allow(clippy::print_stderr)] // shown by the test runner
pub fn on_node(test: &str, release: Release, body: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
    let name = format!("{}-{}", test.replace('_', "-"), if release == Release::V2 { "2" } else { "1" });
    match Node::start(&name, release)? {
        Some(mut node) => body(&mut node).with_context(|| format!("logs are in {}", node.logs.display())),
        None => {
            eprintln!("left out: this machine has no containerd 2.x; tests/bin/fetch-containerd gets it");
            Ok(())
        }
    }
}

/// Makes tests out of functions that take a node: one with the distribution's containerd, one with 2.x.
#[macro_export]
macro_rules! on_each_containerd {
    ($($test:ident),* $(,)?) => {
        mod containerd_1 {
            $(#[test] fn $test() -> anyhow::Result<()> {
                $crate::node::on_node(stringify!($test), $crate::containerd::Release::System, super::$test)
            })*
        }
        mod containerd_2 {
            $(#[test] fn $test() -> anyhow::Result<()> {
                $crate::node::on_node(stringify!($test), $crate::containerd::Release::V2, super::$test)
            })*
        }
    };
}

/// Makes tests out of functions that take a node, with the distribution's containerd only.
#[macro_export]
macro_rules! on_containerd {
    ($($test:ident),* $(,)?) => {
        mod containerd {
            $(#[test] fn $test() -> anyhow::Result<()> {
                $crate::node::on_node(stringify!($test), $crate::containerd::Release::System, super::$test)
            })*
        }
    };
}
