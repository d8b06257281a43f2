//! A private containerd, and the registry that it pulls from.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::namespaces::{Daemon, Namespaces};
use crate::wait::until;

/// Where containerd listens inside a test node: the default, since `/run` is the node's own.
pub const SOCKET: &str = "/run/containerd/containerd.sock";

/// Which containerd to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The distribution's.
    System,
    /// 2.x, where `tests/bin/fetch-containerd` put it.
    V2,
}

impl Release {
    /// The directory of its programs, or nothing if this machine lacks it.
    pub fn programs(self) -> Option<PathBuf> {
        let programs = match self {
            Release::System => PathBuf::from("/usr/bin"),
            Release::V2 => crate::cache().join("containerd-2/bin"),
        };
        programs.join("containerd").exists().then(|| programs.canonicalize().unwrap_or(programs))
    }
}

/// A containerd in a test node.
#[derive(Debug)]
pub struct Containerd {
    daemon: Daemon,
    programs: PathBuf,
    log: PathBuf,
}

impl Containerd {
    /// Starts one and waits until it answers.
    pub fn start(node: &Namespaces, programs: &Path, log: &Path) -> Result<Containerd> {
        let config = "/run/containerd-config.toml";
        // Image layers live in the node's memory-backed /run: quick, on every machine, and gone with the node.
        let text = format!(
            "version = 2\nroot = \"/run/containerd-root\"\nstate = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{SOCKET}\"\n"
        );
        fs::write(node.path(config), text)?;
        // containerd finds its shim by PATH, next to itself.
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
        let program = programs.join("containerd");
        let words = ["env", &path].map(OsStr::new);
        let daemon =
            node.spawn(&[words[0], words[1], program.as_os_str(), OsStr::new("--config"), OsStr::new(config)], log)?;
        let mut containerd = Containerd { daemon, programs: programs.to_owned(), log: log.to_owned() };
        until(Duration::from_secs(20), "containerd", || {
            if !containerd.daemon.alive() {
                bail!("containerd ended: {}", fs::read_to_string(&containerd.log).unwrap_or_default());
            }
            Ok(node.run([containerd.ctr(), "version".into()]).ok())
        })?;
        Ok(containerd)
    }

    /// The `ctr` that belongs to it.
    pub fn ctr(&self) -> PathBuf {
        self.programs.join("ctr")
    }

    /// `kill -9`: shims, containers and loggers are not asked.
    pub fn kill(mut self, node: &Namespaces) -> Result<()> {
        node.signal(self.daemon.pid, "KILL")?;
        self.daemon.wait(Duration::from_secs(5)).map(drop)
    }
}

/// A docker-registry on the node's loopback, port 5000, plain HTTP, that serves a prepared storage directory.
#[derive(Debug)]
pub struct Registry(Daemon);

impl Registry {
    /// Starts one and waits until it answers.
    pub fn start(node: &Namespaces, storage: &Path, log: &Path) -> Result<Registry> {
        let config = "/run/registry.yml";
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '127.0.0.1:5000'}}\n\
             storage:\n  filesystem: {{rootdirectory: '{}'}}\n  maintenance: {{readonly: {{enabled: true}}}}\n",
            storage.canonicalize()?.display()
        );
        fs::write(node.path(config), text)?;
        let daemon = node.spawn(&["docker-registry", "serve", config].map(OsStr::new), log)?;
        until(Duration::from_secs(10), "the registry", || {
            Ok(node.run(["curl", "-sf", "http://127.0.0.1:5000/v2/"]).ok())
        })?;
        Ok(Registry(daemon))
    }

    /// Ends it, as an outage does.
    pub fn kill(mut self, node: &Namespaces) -> Result<()> {
        node.signal(self.0.pid, "KILL")?;
        self.0.wait(Duration::from_secs(5)).map(drop)
    }
}
