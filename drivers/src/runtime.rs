//! Containers and tasks of the container runtime.
//!
//! # Contract
//! - The container record is the durable journal: it is created before its snapshot and task, carries all labels,
//!   and is removed last. Whatever a crash leaves half made is seen by [`Runtime::list`] and cleared by
//!   [`Runtime::remove`].
//! - Every call is idempotent: `create` of an existing equal id is `AlreadyExists`, `kill` and `remove` of something
//!   absent succeed.
//! - Containers of the same [`ContainerSpec::sandbox`] share one shim, and several sandboxes may ([`Options::shim_pool`]).
//! - Nothing of another containerd namespace is ever read or touched.
//! - Losing the connection is not an error state of the driver: calls fail with [`Error::Unavailable`] until the
//!   daemon is back, and the event stream then says [`RuntimeEvent::Resync`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::cgroups::Limits;
use crate::ids::{CgroupPath, ContainerId, SandboxId};

mod accounts;
mod attach;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod containerd;
mod create;
mod events;
mod exec;
mod exits;
pub mod fake;
mod image;
mod info;
mod input;
mod layers;
mod limits;
mod list;
mod node;
mod record;
mod remove;
mod session;
mod shims;
mod signal;
mod spec;
mod start;
mod stdin;
mod sweep;
#[cfg(test)]
mod tests;

pub use containerd::{ContainerdRuntime, Options};
pub use session::{Input, Output, Program, Session, Streams, TerminalSize};

/// What went wrong while talking to the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon does not answer; the call may be tried again later.
    #[error("containerd at {address} does not answer")]
    Unavailable {
        /// The socket.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object is not there.
    #[error("{what} {id} not found")]
    NotFound {
        /// "container", "image", "snapshot", …
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The object exists already.
    #[error("{what} {id} exists already")]
    AlreadyExists {
        /// "container", …
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The specification cannot be carried out, and trying again will not help: a user that is not in the image,
    /// a command that does not exist, a capability with an unknown name.
    #[error("{field}: {message}")]
    Invalid {
        /// The field of [`ContainerSpec`] in its declared spelling, such as `securityContext.runAsUser`.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The runtime refused or failed.
    #[error("{doing}")]
    Failed {
        /// What we were doing, with the object: "starting container x".
        doing: String,
        /// The daemon's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Facts about the runtime, for NodeState and `doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RuntimeInfo {
    /// containerd's version, such as `1.6.20`.
    pub version: String,
    /// The OCI runtime and its version, such as `runc 1.1.5`; empty when unknown.
    pub oci_runtime: String,
    /// The snapshotter in use.
    pub snapshotter: String,
}

/// One container to be made. Plain data: everything is decided before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its id.
    pub id: ContainerId,
    /// Containers with the same sandbox share a shim, perhaps with those of others.
    pub sandbox: SandboxId,
    /// Labels on the container record; keys and values are at most 4096 bytes together.
    pub labels: BTreeMap<String, String>,
    /// Name of the image record whose top snapshot is the root filesystem.
    pub image: String,
    /// ENTRYPOINT replacement; empty keeps the image's.
    pub command: Vec<String>,
    /// CMD replacement; empty keeps the image's unless `command` is set, as in Kubernetes.
    pub args: Vec<String>,
    /// Working directory; `None` keeps the image's.
    pub working_dir: Option<String>,
    /// Environment in order, laid over the image's.
    pub env: Vec<(String, String)>,
    /// Allocate a terminal.
    pub tty: bool,
    /// Keep stdin open for [`Runtime::attach`]; only together with `tty`.
    pub stdin: bool,
    /// Which namespaces the container joins.
    pub namespaces: Namespaces,
    /// Bind mounts and tmpfs mounts on top of the usual /proc, /dev, /sys.
    pub mounts: Vec<Mount>,
    /// The container's own cgroup; created by the OCI runtime.
    pub cgroup: CgroupPath,
    /// Limits of this container.
    pub limits: Limits,
    /// `name`, `soft`, `hard`: `("nofile", 1024, 4096)`.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// Sysctls, for namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Value for `oom_score_adj`; lowering it below the agent's own fails without CAP_SYS_RESOURCE, see
    /// `containerd.md`; the driver then keeps the inherited value.
    pub oom_score_adj: Option<i32>,
    /// Where its output goes.
    pub log: LogTarget,
    /// Overrides the image's STOPSIGNAL; names such as `SIGTERM` or numbers.
    pub stop_signal: Option<String>,
}

/// Namespaces of a container. `Path` joins a pinned one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network namespace.
    pub net: Namespace,
    /// System V IPC and POSIX message queues.
    pub ipc: Namespace,
    /// Host name.
    pub uts: Namespace,
    /// Processes.
    pub pid: Namespace,
}

/// One namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// A new one, private to the container.
    Private,
    /// The node's.
    Host,
    /// The one pinned at this path.
    Path(PathBuf),
}

/// One mount in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// What is mounted there.
    pub source: MountSource,
    /// Read-only.
    pub read_only: bool,
    /// `rprivate` (default when empty), `rslave`, `rshared`.
    pub propagation: String,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A host path; must exist.
    Bind(PathBuf),
    /// A fresh tmpfs of this many bytes (`None`: the kernel's default, half of memory).
    Tmpfs(Option<u64>),
}

/// User, privileges and confinement of a container. The defaults are the protecting ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Numeric user; `None` takes the image's USER (names are looked up in the image's passwd).
    pub run_as_user: Option<u32>,
    /// Numeric group.
    pub run_as_group: Option<u32>,
    /// Refuse to run as uid 0.
    pub run_as_non_root: bool,
    /// Additional groups (fsGroup and supplementalGroups).
    pub supplemental_groups: Vec<u32>,
    /// All capabilities, all devices, no seccomp, nothing masked.
    pub privileged: bool,
    /// Read-only root filesystem.
    pub read_only_root: bool,
    /// `false` sets no_new_privs. (Privileged containers are always allowed.)
    pub allow_privilege_escalation: bool,
    /// Capabilities to add, without or with `CAP_`; `ALL` is all.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop; `ALL` is all.
    pub drop_capabilities: Vec<String>,
    /// The seccomp profile.
    pub seccomp: Seccomp,
    /// AppArmor profile; `None`: the runtime's default, i.e. none.
    pub apparmor: Option<String>,
    /// Leave /proc unmasked (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}

/// A seccomp profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Docker's default list.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile file on the node, in the OCI or Docker format.
    Localhost(PathBuf),
}

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// Discarded.
    None,
    /// Through `nodelet-logger` into a file in the CRI format, rotated by size.
    File {
        /// The file, such as `dataDir/logs/<ns>_<workload>_<uid>/<container>/<attempt>.log`; its directory is made.
        path: PathBuf,
        /// Rotation size in bytes.
        max_size: u64,
        /// How many files to keep, the current one included.
        max_files: u32,
    },
}

/// A container as the runtime has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The image record it was made from.
    pub image: String,
    /// When the record was made.
    pub created_at: SystemTime,
    /// The limits it has now: those of its specification, or of the last [`Runtime::update_limits`].
    pub limits: Limits,
    /// What its task does.
    pub state: TaskState,
}

/// State of a container's task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum TaskState {
    /// There is a record and no task: never started, or half made, or its task was deleted by someone else.
    Absent,
    /// Made and not started.
    Created {
        /// Pid of the waiting init.
        pid: u32,
    },
    /// Runs.
    Running {
        /// Pid of its first process on the node.
        pid: u32,
    },
    /// Paused.
    Paused {
        /// Pid of its first process on the node.
        pid: u32,
    },
    /// Ended.
    Exited(Exit),
    /// The daemon knows of it but cannot tell its state; clean it up before reusing its name.
    Unknown,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exit {
    /// Exit status: 0-255, 128 + signal for a signal.
    pub code: u32,
    /// When.
    pub at: SystemTime,
    /// The kernel killed a process of the container for memory.
    pub oom_killed: bool,
}

/// What an image asks for beyond what [`Runtime::create`] takes from it by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageWishes {
    /// Its HEALTHCHECK.
    pub health_check: Option<HealthCheck>,
}

/// An image's HEALTHCHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Program and arguments, run in the container.
    pub command: Vec<String>,
    /// Between two checks.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Failures in this time after the start do not count.
    pub start_period: Duration,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

/// A started task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Pid of its first process on the node.
    pub pid: u32,
}

/// A process run by [`Runtime::exec`].
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give up and kill it after this long.
    pub timeout: Option<Duration>,
}

/// How an exec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// Exit status.
    pub code: u32,
    /// stdout and stderr, the first 16 KiB.
    pub output: Vec<u8>,
}

/// Something happened at the runtime. A hint to look, never the truth itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's record or task changed.
    Container {
        /// Which one.
        id: ContainerId,
        /// What, for the log: "exit", "oom", "delete", …
        topic: String,
    },
    /// An image record changed.
    Image {
        /// Its name.
        name: String,
    },
    /// The daemon went away: calls fail until the next [`RuntimeEvent::Resync`].
    Lost {
        /// In the connection's words.
        reason: String,
    },
    /// Events may have been missed (start, reconnect): look at everything.
    Resync,
}

/// The container runtime. See the module's contract.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Version facts; also the liveness check of the connection.
    async fn info(&self) -> Result<RuntimeInfo, Error>;

    /// All containers of our namespace that bear our labels, with their task's state.
    async fn list(&self) -> Result<Vec<Container>, Error>;

    /// One container; `None` when absent.
    async fn get(&self, id: &ContainerId) -> Result<Option<Container>, Error>;

    /// Record, snapshot and task, up to and excluding the start. After an error the caller calls
    /// [`Runtime::remove`] before trying again.
    async fn create(&self, spec: &ContainerSpec) -> Result<(), Error>;

    /// What an image asks for; nothing by default.
    async fn image_wishes(&self, image: &str) -> Result<ImageWishes, Error> {
        let _ = image;
        Ok(ImageWishes::default())
    }

    /// Starts the created task. Starting a running one succeeds.
    async fn start(&self, id: &ContainerId) -> Result<Started, Error>;

    /// Sends `signal` (name or number) to the first process, or to all of the container's processes. A container
    /// that is absent or has ended is a success.
    async fn kill(&self, id: &ContainerId, signal: &str, all: bool) -> Result<(), Error>;

    /// The signal that asks this container to stop: the specification's, else the image's STOPSIGNAL, else SIGTERM.
    async fn stop_signal(&self, id: &ContainerId) -> Result<String, Error>;

    /// Kills what is left of it, then removes task, snapshot and record, each step tolerating absence.
    async fn remove(&self, id: &ContainerId) -> Result<(), Error>;

    /// Changes the limits of the running container, without a restart, and records them with it.
    async fn update_limits(&self, id: &ContainerId, limits: &Limits) -> Result<(), Error>;

    /// Runs a program in the container and waits for it.
    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecResult, Error>;

    /// Starts a program in the container and connects the wanted streams to it. It is ended when the session is
    /// dropped, and nothing of it stays in either case.
    async fn open_exec(&self, id: &ContainerId, program: &Program) -> Result<Session, Error>;

    /// Attaches to the running container's own program: its output from now on, byte for byte, and its input if it
    /// was made with one ([`Error::Invalid`] otherwise). Any number may be attached at a time; a slow one delays
    /// nobody.
    async fn attach(&self, id: &ContainerId, streams: Streams) -> Result<Session, Error>;

    /// A stream of hints from now on, beginning with [`RuntimeEvent::Resync`] once it is surely subscribed. The
    /// driver reconnects by itself. A slow reader gets one [`RuntimeEvent::Resync`] instead of a long queue.
    fn events(&self) -> mpsc::Receiver<RuntimeEvent>;

    /// Frees what crashes left behind and no record names: shims without a task, snapshots and leases of ours
    /// without an owner, programs in containers that nobody talks to any more. Says what it freed, one line each. Called once after start, when nothing is under way.
    async fn sweep(&self) -> Result<Vec<String>, Error>;
}
