//! The sandbox of a workload: its network namespace pinned without a process, the files every container of it sees
//! (`/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`), and what several containers share besides: IPC and UTS
//! namespaces and memory.
//!
//! # Contract
//! - Everything of sandbox `<id>` lies below `<runDir>/sandboxes/<id>/`; `sandbox.json` is written there before
//!   anything is acquired and removed after everything is freed.
//! - A sandbox survives the agent and is found again by [`Sandboxes::list`]; it does not survive a reboot.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::SandboxId;

#[cfg(test)]
pub(crate) mod conformance;
pub mod connect;
mod etc;
pub mod fake;
pub mod linux;
mod pins;
mod propagation;
mod users;

pub use users::SIZE as USERS;

/// What went wrong with a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel call failed.
    #[error("sandbox {id}: {doing}")]
    Kernel {
        /// Which sandbox.
        id: SandboxId,
        /// What we were doing, with the path.
        doing: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The state file cannot be used.
    #[error("sandbox {id}: reading {path}")]
    State {
        /// Which sandbox.
        id: SandboxId,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What a sandbox should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its id.
    pub id: SandboxId,
    /// Caller's labels, kept as they are: owner uid, namespace, name, generation.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Host name of the UTS namespace.
    pub hostname: String,
    /// The network namespace.
    pub net: NetNamespace,
    /// Share the node's IPC namespace instead of an own one.
    pub host_ipc: bool,
    /// Have an own user namespace, which owns the others; then none of them may be the node's or another sandbox's.
    #[serde(default)]
    pub own_users: bool,
    /// Share the node's UTS namespace (with `net: Host`, as Kubernetes does).
    pub host_uts: bool,
    /// Its containers share IPC and UTS namespaces and /dev/shm. One container alone is given its own by the OCI
    /// runtime: each of these mounts of the node costs every later start of a container, which reads and copies all.
    #[serde(default = "shared")]
    pub shared: bool,
    /// Size of the /dev/shm that its containers share, in bytes (64 MiB is usual).
    pub shm_size: u64,
    /// `net.*` and `kernel.shm*` parameters set in its namespaces before any container starts.
    pub sysctls: std::collections::BTreeMap<String, String>,
}

/// Sandboxes recorded before there was a choice.
fn shared() -> bool {
    true
}

impl SandboxSpec {
    /// Has an IPC namespace and shared memory pinned for its containers.
    fn pins_ipc(&self) -> bool {
        self.shared && !self.host_ipc
    }

    /// Has a UTS namespace pinned for its containers.
    fn pins_uts(&self) -> bool {
        self.shared && !self.host_uts
    }
}

/// The network namespace of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetNamespace {
    /// A new one with `lo` up.
    New,
    /// The node's.
    Host,
    /// Another sandbox's.
    Of(SandboxId),
}

/// A sandbox that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sandbox {
    /// What it was made from.
    pub spec: SandboxSpec,
    /// Everything is in place; `false`: half made or damaged, call `ensure_sandbox` or `remove_sandbox`.
    pub complete: bool,
    /// Pinned network namespace; `None` with the node's.
    pub netns: Option<PathBuf>,
    /// Pinned IPC namespace; `None` with the node's, and if it is not [shared](SandboxSpec::shared).
    pub ipcns: Option<PathBuf>,
    /// Pinned UTS namespace; `None` with the node's, and if it is not shared.
    pub utsns: Option<PathBuf>,
    /// The tmpfs for /dev/shm; `None` with the node's IPC, and if it is not shared.
    pub shm: Option<PathBuf>,
    /// Its users; `None`: they are the node's.
    pub users: Option<UserNamespace>,
}

/// A pinned user namespace, in which users and groups from 0 to below [`USERS`] are a block of the node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// The pin.
    pub path: PathBuf,
    /// The node's user, and group, that is 0 inside.
    pub first: u32,
}

/// The files a sandbox gives to its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcFiles {
    /// Lines of `/etc/hosts` after the localhost ones.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// `nameserver` lines; empty copies the node's resolv.conf (systemd-resolved's real file, not 127.0.0.53).
    pub nameservers: Vec<IpAddr>,
    /// `search` domains.
    pub searches: Vec<String>,
    /// Keep the node's `search` domains if there are none here, although there are name servers.
    #[serde(default)]
    pub node_searches: bool,
    /// `options`, such as `ndots:2`.
    pub options: Vec<String>,
}

/// Paths of the written files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcPaths {
    /// To be mounted at `/etc/hosts`.
    pub hosts: PathBuf,
    /// To be mounted at `/etc/hostname`.
    pub hostname: PathBuf,
    /// To be mounted at `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl EtcPaths {
    /// The paths for a sandbox whose directory is `dir`.
    fn below(dir: &Path) -> Self {
        let etc = dir.join("etc");
        Self { hosts: etc.join("hosts"), hostname: etc.join("hostname"), resolv_conf: etc.join("resolv.conf") }
    }
}

/// The node's sandboxes. See the module's contract.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    /// All sandboxes, half-made ones included.
    async fn list(&self) -> Result<Vec<Sandbox>, Error>;

    /// One sandbox, checked against the kernel; `None` when there is no trace of it.
    async fn get(&self, id: &SandboxId) -> Result<Option<Sandbox>, Error>;

    /// Makes or completes it. An existing one with another spec is an error of the caller: remove it first.
    async fn ensure(&self, spec: &SandboxSpec) -> Result<Sandbox, Error>;

    /// Writes the files in place (same inode, so running containers see the change).
    async fn write_etc(&self, id: &SandboxId, files: &EtcFiles) -> Result<EtcPaths, Error>;

    /// Unmounts and removes everything of it; absence is success.
    async fn remove(&self, id: &SandboxId) -> Result<(), Error>;

    /// The directory of the sandbox, for other things that live and die with it (emptyDirs, secrets).
    fn dir(&self, id: &SandboxId) -> PathBuf;
}

/// `<run_dir>/sandboxes/<id>`.
pub fn sandbox_dir(run_dir: &Path, id: &SandboxId) -> PathBuf {
    run_dir.join("sandboxes").join(id.as_str())
}

fn differs(id: &SandboxId) -> Error {
    Error::Kernel {
        id: id.clone(),
        doing: "making it".to_owned(),
        source: std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "it exists with another specification and has to be removed first",
        ),
    }
}

fn other_is_absent(id: &SandboxId, other: &SandboxId) -> Error {
    Error::Kernel {
        id: id.clone(),
        doing: format!("joining the network namespace of sandbox {other}"),
        source: std::io::Error::new(std::io::ErrorKind::NotFound, "it has no network namespace of its own"),
    }
}
