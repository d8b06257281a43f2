//! Control groups: the limits of workloads and of ResourceLimits, in version 1 and 2 alike.
//!
//! # Contract
//! - The root of the hierarchy is a parameter; only paths below our parent (`/nodelet`) are touched.
//! - In version 1 a path stands for the same path in each controller's hierarchy.
//! - The path of a slice or scope is systemd's, which makes and removes it: `names` has the rule. What is read is read from
//!   the same files in both cases.
//! - Facts: kernel documentation `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ids::{CgroupPath, SandboxId};

#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod device;
mod excess;
pub mod fake;
mod files;
pub mod linux;
mod names;
mod realtime;
mod remove;
pub mod systemd;
mod v1;
mod v2;

pub use excess::Excess;
pub use names::Driver;
pub use realtime::{Budgets, Realtime};

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the hierarchy could not be read or written.
    #[error("cgroup {path}: {doing}")]
    Io {
        /// Which cgroup.
        path: String,
        /// What we were doing: "writing 100 to pids.max".
        doing: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// A limit cannot be expressed on this node.
    #[error("cgroup {path}: {limit} needs {needs}")]
    Unsupported {
        /// Which cgroup.
        path: String,
        /// Which limit.
        limit: &'static str,
        /// "the memory controller", "cgroup version 2".
        needs: &'static str,
    },
    /// There is too little time for real-time processes, in microseconds of a second.
    #[error(
        "cgroup {path} has {has} microseconds of a second for real-time processes, of which others have {taken}, and \
         {wanted} are needed: lower this or theirs, or raise {}",
        realtime::source(path)
    )]
    NoRealtime {
        /// The cgroup that has too little.
        path: String,
        /// What it has.
        has: u64,
        /// What others below it have of that.
        taken: u64,
        /// What is needed.
        wanted: u64,
    },
    /// systemd did not do what it was asked for.
    #[error("cgroup {path}: {doing}")]
    Unit {
        /// Which cgroup.
        path: String,
        /// What it was asked for.
        doing: String,
        /// Its answer, or why there was none.
        #[source]
        source: Box<zbus::Error>,
    },
}

/// Version of the hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// A hierarchy for each controller, below one directory.
    V1,
    /// One hierarchy of all controllers.
    V2,
}

/// Limits of one cgroup; `None` leaves the kernel's default (no limit).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time per wall time in thousandths of a CPU: 1500 is one and a half.
    pub cpu_millis: Option<u64>,
    /// Share of CPU under contention.
    #[serde(default)]
    pub cpu_share: Option<CpuShare>,
    /// Time of real-time processes (v1 only); without it there is none. Of a cgroup with others below it,
    /// [`Cgroups::divide_realtime`] sets it.
    #[serde(default)]
    pub realtime: Option<Realtime>,
    /// CPUs it may use, in list format: `0-1,3`.
    pub cpuset: Option<String>,
    /// Memory in bytes above which it is killed.
    pub memory_max: Option<u64>,
    /// Memory in bytes above which it is slowed and reclaimed (v2 only).
    pub memory_high: Option<u64>,
    /// Memory in bytes that is kept from reclaim (`memory.low`; soft limit in v1).
    pub memory_low: Option<u64>,
    /// Swap in bytes it may use beside `memory_max`.
    pub swap_max: Option<u64>,
    /// Number of processes and threads.
    pub pids_max: Option<u64>,
    /// Huge pages in bytes, by the kernel's name of their size: `2MB`, `1GB`.
    #[serde(default)]
    pub hugepages: BTreeMap<String, u64>,
    /// Limits per block device.
    pub io: Vec<IoLimit>,
}

/// A share of CPU under contention, in the unit of either version. They are converted into each other as runc does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuShare {
    /// 1 to 10000, 100 is usual: `cpu.weight` of version 2.
    Weight(u64),
    /// 2 to 262144, 1024 is usual: `cpu.shares` of version 1. The kubelet gives as many to a CPU that is requested.
    Shares(u64),
}

impl CpuShare {
    /// In the unit of version 2.
    pub fn weight(self) -> u64 {
        match self {
            CpuShare::Weight(weight) => weight.clamp(1, 10_000),
            CpuShare::Shares(shares) => 1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142,
        }
    }

    /// In the unit of version 1.
    pub fn shares(self) -> u64 {
        match self {
            CpuShare::Weight(weight) => 2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9_999,
            CpuShare::Shares(shares) => shares.clamp(2, 262_144),
        }
    }
}

/// Limits for one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// Device path such as `/dev/vda`.
    pub device: String,
    /// Bytes that may be read in a second.
    pub read_bytes_per_second: Option<u64>,
    /// Bytes that may be written in a second.
    pub write_bytes_per_second: Option<u64>,
    /// Reads in a second, however large.
    pub read_iops: Option<u64>,
    /// Writes in a second, however large.
    pub write_iops: Option<u64>,
}

/// Use of one cgroup and everything below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stat {
    /// CPU time used, in microseconds.
    pub cpu_usec: u64,
    /// Time it was held back by its CPU limit, in microseconds.
    pub throttled_usec: u64,
    /// Memory in bytes, page cache included.
    pub memory_bytes: u64,
    /// Page cache that could be dropped at once, in bytes (`inactive_file`); memory minus this is the working set.
    pub inactive_file_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Processes killed for memory.
    pub oom_kills: u64,
}

/// The node's cgroups. Calls are a few file operations each and synchronous; see the module's contract.
pub trait Cgroups: Send + Sync {
    /// Version of the hierarchy in use.
    fn version(&self) -> Version;

    /// Our parent, such as `/nodelet`.
    fn parent(&self) -> &CgroupPath;

    /// Makes the cgroup (and its parents) and sets its limits; a limit that became `None` is lifted.
    ///
    /// A memory limit below what is used kills nobody: the kernel reclaims, and while that is not enough, the limit that
    /// was in force stays so and the [`Excess`] is answered. All other limits are set then. Calling again goes on.
    fn ensure(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error>;

    /// Brings the memory limit of a cgroup that exists down to `max`, in the same way, and leaves all else as it is but
    /// `memory.high`, which in version 2 becomes `high`. Nothing is done where the limit is not below what is in force.
    fn lower_memory(&self, path: &CgroupPath, max: u64, high: Option<u64>) -> Result<Option<Excess>, Error>;

    /// Gives `path`, a cgroup with others below it, the time of real-time processes that is declared for it, or what those
    /// below it have, at least `least` microseconds of a second. Those above have what they need for that and no more,
    /// unless theirs is declared. May be called again; nothing is done where the kernel does not divide this time.
    ///
    /// # Errors
    /// [`Error::NoRealtime`] if there is too little above, or too little is declared for those below.
    fn divide_realtime(&self, path: &CgroupPath, least: u64, declared: &Budgets) -> Result<(), Error>;

    /// Takes the time of real-time processes that no container has back from sandboxes and from our parent: what an agent
    /// left that was killed. ResourceLimits follow by [`Cgroups::divide_realtime`]. Only while no container is being made.
    ///
    /// # Errors
    /// Files cannot be read or written.
    fn return_realtime(&self) -> Result<(), Error>;

    /// Removes it and all below it; processes in it are killed first (`cgroup.kill`, or one by one in v1). Absence
    /// is success.
    fn remove(&self, path: &CgroupPath) -> Result<(), Error>;

    /// All cgroups below our parent, deepest last; in v1 the union over controllers.
    fn list(&self) -> Result<Vec<CgroupPath>, Error>;

    /// Those of a sandbox, below whichever ResourceLimits.
    fn of_sandbox(&self, id: &SandboxId) -> Result<Vec<CgroupPath>, Error> {
        let mut all = self.list()?;
        all.retain(|path| path.as_sandbox().as_ref() == Some(id));
        Ok(all)
    }

    /// Its use; `None` when it does not exist.
    fn stat(&self, path: &CgroupPath) -> Result<Option<Stat>, Error>;

    /// Pids of the processes in it and below it.
    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, Error>;
}

/// The version mounted at `root` (usually `/sys/fs/cgroup`): v2 if the controllers are there, else v1.
pub fn detect(root: &Path) -> Version {
    match std::fs::read_to_string(root.join("cgroup.controllers")) {
        Ok(controllers) if !controllers.trim().is_empty() => Version::V2,
        _ => Version::V1,
    }
}

/// Whether `path` is `parent` or lies below it.
fn is_below(parent: &CgroupPath, path: &CgroupPath) -> bool {
    path.as_str().strip_prefix(parent.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Refuses to touch what is not ours.
fn check_ours(parent: &CgroupPath, path: &CgroupPath, doing: &str) -> Result<(), Error> {
    if is_below(parent, path) {
        return Ok(());
    }
    Err(Error::Io {
        path: path.to_string(),
        doing: doing.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::PermissionDenied, format!("it is not below {parent}")),
    })
}

/// Sorts so that parents come before their children and the deepest come last.
fn depth_first_last(paths: &mut [CgroupPath]) {
    paths.sort_by_key(|path| (path.as_str().matches('/').count(), path.clone()));
}
