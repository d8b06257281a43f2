//! Namespaces of a test node: network, mounts and processes of its own.
//!
//! Killing the first process of a PID namespace ends all the others, and with the last process the kernel removes the
//! mounts, links and packet-filter tables. So a test that fails or panics leaves nothing but cgroups, which the node
//! removes itself.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::LinkNameSpaceType;

use crate::wait::until;

/// Prepared by the first process: loopback, and memory in place of `/run`, so that the default paths of containerd, runc
/// and nodelet are this node's own. Bash stays and reaps what the shims leave to it.
const FIRST: &str = "set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/containerd /run/nodelet
ip link set lo up
touch \"$1\"
sleep infinity
:";

/// The namespaces, for as long as the value lives.
#[derive(Debug)]
pub struct Namespaces {
    unshare: Child,
    /// PID of the first process, as this process sees it.
    first: u32,
}

impl Namespaces {
    /// Makes them. `scratch` is an existing directory for a marker.
    pub fn new(scratch: &Path) -> Result<Namespaces> {
        let ready = scratch.join("namespaces-ready");
        let unshare = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["bash", "-c", FIRST, "bash"])
            .arg(&ready)
            .stdin(Stdio::null())
            .spawn()
            .context("running unshare; this needs root")?;
        let mut namespaces = Namespaces { unshare, first: 0 };
        until(Duration::from_secs(10), "namespaces", || {
            if let Some(status) = namespaces.unshare.try_wait()? {
                bail!("unshare ended with {status}; this needs root and mount rights");
            }
            Ok(ready.exists().then_some(()))
        })?;
        namespaces.first = only_child(namespaces.unshare.id())?;
        Ok(namespaces)
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        // Settings of whoever runs the tests are not the node's.
        command.env_remove("KUBECONFIG").env_remove("NODELET_SERVER").env_remove("NODELET_CONFIG");
        command.args(["--target", &self.first.to_string(), "--net", "--mount", "--pid", "--"]).arg(program);
        command
    }

    /// Runs a command inside and answers what it printed; fails with its error output.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let mut words = words.into_iter();
        let program = words.next().context("an empty command")?;
        let mut command = self.command(program);
        command.args(words);
        output(&mut command)
    }

    /// Starts a program that stays, writing to `log`. The PID that it has inside goes to `log` with the ending `.pid`.
    pub fn spawn(&self, command: &[&OsStr], log: &Path) -> Result<Daemon> {
        let out = File::options().create(true).append(true).open(log)?;
        let pid_file = log.with_extension("pid");
        let _absent = fs::remove_file(&pid_file);
        let child = self
            .command("sh")
            .args(["-c", "echo $$ >\"$1.new\"; mv \"$1.new\" \"$1\"; shift; exec \"$@\"", "sh"])
            .arg(&pid_file)
            .args(command)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let pid = until(Duration::from_secs(5), "the PID of a daemon", || Ok(fs::read_to_string(&pid_file).ok()))?;
        Ok(Daemon { child, pid: pid.trim().parse()? })
    }

    /// Sends a signal to a process by the PID that it has inside.
    pub fn signal(&self, pid: u32, signal: &str) -> Result<()> {
        self.run(["kill", "-s", signal, &pid.to_string()]).map(drop)
    }

    /// Does something on a thread that has the network of the node. Threads that it starts have it too.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.first))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("entering the network namespace")?;
                work()
            });
            inside.join().map_err(|_| anyhow::anyhow!("the thread in the node's network panicked"))?
        })
    }

    /// A path as this process reaches it: mounts made inside are seen.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new("/proc").join(self.first.to_string()).join("root").join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The mount points inside, as `/proc/PID/mountinfo` names them.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.first))?;
        Ok(table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _already_gone = self.unshare.kill(); // --kill-child: the first process goes with it, and all others with that
        let _status = self.unshare.wait();
        // The last processes may take a moment to leave; their cgroups cannot be removed before.
        let first = PathBuf::from(format!("/proc/{}", self.first));
        let _late = until(Duration::from_secs(5), "the end of the namespaces", || Ok((!first.exists()).then_some(())));
    }
}

/// A long-running program inside the namespaces.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Its PID inside.
    pub pid: u32,
}

impl Daemon {
    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        until(limit, "a daemon's end", || Ok(self.child.try_wait()?))
    }

    /// Whether it runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

/// Runs a command to its end and answers its output; fails with its error output.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(
        result.status.success(),
        "{command:?} ended with {}: {}{}",
        result.status,
        String::from_utf8_lossy(&result.stderr),
        String::from_utf8_lossy(&result.stdout)
    );
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

fn only_child(parent: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    children.trim().parse().with_context(|| format!("unshare has no single child: {children:?}"))
}
