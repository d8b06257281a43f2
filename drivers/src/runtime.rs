//! Containers and tasks of the container runtime.
//!
//! # Contract
//! - The container record is the durable journal: it is created before its snapshot and task, carries all labels,
//!   and is removed last. Whatever a crash leaves half made is seen by [`Runtime::list`] and cleared by
//!   [`Runtime::remove`].
//! - Every call is idempotent: `create` of an existing equal id is `AlreadyExists`, `kill` and `remove` of something
//!   absent succeed.
//! - Containers of the same [`ContainerSpec::sandbox`] share one shim, and several sandboxes may ([`Options::shim_pool`]).
//!   With containerd 1.7 and later such a shim is kept by a container of the driver's own, an anchor, which is in no list
//!   and goes when it has no members. If the shim dies, the driver ends what containerd leaves running: until no
//!   process of a member is left, its state is [`TaskState::Unknown`] and [`Runtime::remove`] fails; then it has exited
//!   with 137.
//! - Nothing of another containerd namespace is ever read or touched.
//! - Losing the connection is not an error state of the driver: calls fail with [`Error::Unavailable`] until the
//!   daemon is back, and the event stream then says [`RuntimeEvent::Resync`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::cgroups::{Excess, Limits};
use crate::ids::{CgroupPath, ContainerId, SandboxId};
use crate::sandbox::UserNamespace;
use crate::volumes::SnapshotMount;

mod accounts;
mod anchors;
mod apparmor;
mod attach;
mod cdi;
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
mod orphans;
mod own;
mod reaper;
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
mod users;
mod view;

pub use containerd::{CREATIONS_PER_CPU, ContainerdRuntime, Options};
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
    /// Keep stdin open for [`Runtime::attach`]; without `tty` this needs a log.
    pub stdin: bool,
    /// The first who attached to stdin ends it by leaving.
    #[serde(default)]
    pub stdin_once: bool,
    /// Which namespaces the container joins.
    pub namespaces: Namespaces,
    /// Host name in a UTS namespace of its own, [`Namespace::Private`].
    #[serde(default)]
    pub hostname: Option<String>,
    /// Bind mounts and tmpfs mounts on top of the usual /proc, /dev, /sys.
    pub mounts: Vec<Mount>,
    /// The container's own cgroup; created by the OCI runtime.
    pub cgroup: CgroupPath,
    /// Limits of this container.
    pub limits: Limits,
    /// `name`, `soft`, `hard`: `("nofile", 1024, 4096)`.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Device files of the node that it gets.
    #[serde(default)]
    pub devices: Vec<DeviceWish>,
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
    /// Below it is a directory for each VOLUME of the image that `mounts` do not replace, made and filled with what the
    /// image has there when the first container needs it. Whoever removes this directory gives them back; `None`: such
    /// paths are part of the root filesystem.
    #[serde(default)]
    pub anonymous_volumes: Option<PathBuf>,
}

/// A device that a container gets. Where the node lacks it when the container is made, that fails with
/// [`Error::Invalid`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DeviceWish {
    /// A device file of the node.
    File {
        /// Its path on the node.
        path: String,
        /// Its path in the container.
        container_path: String,
        /// Any of `r`, `w` and `m` (make its file), as the device controller has them.
        permissions: String,
    },
    /// What a vendor's file of the Container Device Interface describes.
    Named {
        /// `vendor/class=device`.
        name: String,
    },
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
    /// Users, which the others then belong to; `None`: the node's.
    #[serde(default)]
    pub user: Option<UserNamespace>,
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
    /// One of the sandbox, which all of its containers have that ask for it. For processes only.
    Sandbox,
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
    /// AppArmor profile; `None`: as [`AppArmor::RuntimeDefault`] where the node has AppArmor, else none.
    pub apparmor: Option<AppArmor>,
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

/// An AppArmor profile that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// Our own one, which is loaded when it is first needed.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// The profile of this name, which is loaded in the kernel.
    Localhost(String),
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

    /// What the image of that name and digest asks for; nothing by default.
    async fn image_wishes(&self, image: &str, digest: &str) -> Result<ImageWishes, Error> {
        let _ = (image, digest);
        Ok(ImageWishes::default())
    }

    /// The files of an image, to be mounted read-only: a snapshot that stays until [`Runtime::remove_views`]. Twice with
    /// the same name is the same as once.
    async fn view(&self, sandbox: &SandboxId, name: &str, image: &str) -> Result<Vec<SnapshotMount>, Error>;

    /// Removes the view of that name, or all of the sandbox; absence is success. What is mounted goes first.
    async fn remove_views(&self, sandbox: &SandboxId, name: Option<&str>) -> Result<(), Error>;

    /// Starts the created task. Starting a running one succeeds.
    async fn start(&self, id: &ContainerId) -> Result<Started, Error>;

    /// Sends `signal` (name or number) to the first process, or to all of the container's processes. A container
    /// that is absent or has ended is a success.
    async fn kill(&self, id: &ContainerId, signal: &str, all: bool) -> Result<(), Error>;

    /// The signal that asks this container to stop: the specification's, else the image's STOPSIGNAL, else SIGTERM.
    async fn stop_signal(&self, id: &ContainerId) -> Result<String, Error>;

    /// Kills what is left of it, then removes task, snapshot and record, each step tolerating absence.
    async fn remove(&self, id: &ContainerId) -> Result<(), Error>;

    /// Changes the limits of the running container, without a restart, and records with it what is in force then.
    ///
    /// A memory limit below what it uses kills nobody: as with [`crate::cgroups::Cgroups::ensure`] the kernel reclaims,
    /// and while that is not enough all but this limit is set and the [`Excess`] is answered. Calling again goes on.
    async fn update_limits(&self, id: &ContainerId, limits: &Limits) -> Result<Option<Excess>, Error>;

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
    /// without an owner, programs in containers that nobody talks to any more. Says what it freed, one line each.
    /// Called once after start, when nothing is under way.
    async fn sweep(&self) -> Result<Vec<String>, Error>;

    /// The directory of this node that has what a container changed in its root: its writable layer. `None` where it cannot
    /// be reached without a mount, and for a container that has none.
    async fn writable_layer(&self, _id: &ContainerId) -> Result<Option<PathBuf>, Error> {
        Ok(None)
    }

    /// Ends shims that serve no container now and did not at the last call, as a containerd leaves them that dies while
    /// it makes a task. Says which, one line each. May be called at any time, also while containers are made.
    async fn end_orphan_shims(&self) -> Vec<String>;
}
