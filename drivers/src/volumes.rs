//! Volumes: directories on the node that containers mount.
//!
//! # Contract
//! - Owned volumes live in `<dataDir>/volumes/<namespace>/<name>/data`; a given path is never created below, moved
//!   or deleted unless its type says so, and never deleted with the object.
//! - Paths from users are resolved with `openat2` so that no symlink leads out of the volume.
//! - Secrets are written to a tmpfs only.
//! - What is mounted for a volume is mounted below `<runDir>/volumes`; mounts elsewhere are never touched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::{SandboxId, VolumeKey};
use crate::room;

pub mod archive;
mod block;
#[cfg(test)]
pub(crate) mod conformance;
pub mod fake;
mod files;
mod group;
mod host_path;
pub mod linux;
mod loop_device;
mod nfs;
mod paths;
pub(crate) mod populate;
mod project;
mod quota;
mod snapshot;
mod sub_path;
mod walk;

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The declaration cannot be met as it is.
    #[error("{field}: {message}")]
    Invalid {
        /// The field in its declared spelling.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// A file system call failed.
    #[error("{doing}")]
    Io {
        /// What we were doing, with the path.
        doing: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
}

/// What a volume should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Its key.
    pub key: VolumeKey,
    /// Uid of its object, recorded beside the data: a retained directory is adopted by name.
    pub uid: String,
    /// Where it is.
    pub source: VolumeSource,
    /// Owner and mode of its top directory, applied when it is made.
    pub owner: Owner,
    /// How many bytes it may hold; needed by [`VolumeSource::Block`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
}

/// Where a volume's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// A directory of ours.
    Local,
    /// A directory given by path; made if absent.
    LocalPath(PathBuf),
    /// A path of the node, with Kubernetes' hostPath types.
    HostPath(PathBuf, HostPathType),
    /// A filesystem in memory.
    Tmpfs,
    /// A filesystem of its own in a file of ours.
    Block(BlockFs),
    /// An NFS export.
    Nfs(NfsExport),
}

impl VolumeSource {
    /// The data is ours to keep and to delete.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Local | Self::Tmpfs | Self::Block(_))
    }
}

/// Filesystems of [`VolumeSource::Block`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockFs {
    /// ext4: the smaller one, from 16 MiB on.
    Ext4,
    /// XFS: made for large ones.
    Xfs,
}

impl BlockFs {
    /// As the kernel calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// With fewer bytes it has no journal, or cannot be made.
    pub fn smallest(self) -> u64 {
        match self {
            Self::Ext4 => 16 << 20,
            Self::Xfs => 300 << 20,
        }
    }
}

/// An export of an NFS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfsExport {
    /// Name or address.
    pub server: String,
    /// Its path there.
    pub path: String,
    /// Never written.
    pub read_only: bool,
}

/// Kubernetes' hostPath types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HostPathType {
    /// No check.
    #[default]
    Any,
    /// A directory, made if nothing is there.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// A regular file, made empty if nothing is there, in a directory that is.
    FileOrCreate,
    /// A regular file.
    File,
    /// A unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Owner and mode of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user's id on the node.
    pub uid: u32,
    /// The group's id on the node.
    pub gid: u32,
    /// Permission bits, such as `0o755`.
    pub mode: u32,
}

/// A volume on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its key.
    pub key: VolumeKey,
    /// Where it is mounted from.
    pub path: PathBuf,
    /// It was made or found in order.
    pub complete: bool,
    /// Why it does not have the wanted capacity, where it has not: it can be used all the same.
    pub capacity_problem: Option<String>,
}

/// Use of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Size of what holds it, in bytes: its own limit, else the file system's.
    pub capacity_bytes: u64,
    /// Bytes used by it; `None` when only a walk of the tree could tell.
    pub used_bytes: Option<u64>,
}

/// A directory that lives and dies with a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EphemeralSpec {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The volume's name in the workload.
    pub name: String,
    /// What it holds.
    pub kind: Ephemeral,
}

/// Kinds of [`EphemeralSpec`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ephemeral {
    /// An empty directory on disk (`<dataDir>/ephemeral/<sandbox>/<name>`), world-writable as in Kubernetes.
    Disk {
        /// How many bytes it may hold: the filesystem sees to it, where it can.
        size_limit: Option<u64>,
    },
    /// An empty tmpfs of this many bytes at most.
    Memory {
        /// `None`: the kernel's default.
        size_limit: Option<u64>,
    },
    /// Files, swapped atomically as the kubelet does (`..data` symlink), so that running containers see updates.
    Files {
        /// Relative path (no `..`) to content and mode.
        files: BTreeMap<String, FileContent>,
        /// On a tmpfs; always true for secrets.
        in_memory: bool,
        /// Group that owns the files, if any.
        gid: Option<u32>,
    },
    /// The files of an image, read-only.
    Image(Vec<SnapshotMount>),
}

/// One of the mounts that show a snapshot, as containerd describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMount {
    /// `bind` or `overlay`, others are refused.
    pub kind: String,
    /// For `bind`: the directory.
    pub source: PathBuf,
    /// For `overlay`: where the layers are.
    pub options: Vec<String>,
}

/// What an empty volume is filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The files of the image.
    pub image: Vec<SnapshotMount>,
    /// The directory in them.
    pub path: String,
    /// Owner and mode of the volume's top directory stay what they are.
    pub keep_owner: bool,
}

impl std::fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk { size_limit } => f.debug_struct("Disk").field("size_limit", size_limit).finish(),
            Self::Memory { size_limit } => f.debug_struct("Memory").field("size_limit", size_limit).finish(),
            // Contents may be secret.
            Self::Files { files, in_memory, gid } => f
                .debug_struct("Files")
                .field("files", &files.keys().collect::<Vec<_>>())
                .field("in_memory", in_memory)
                .field("gid", gid)
                .finish(),
            Self::Image(mounts) => f.debug_tuple("Image").field(mounts).finish(),
        }
    }
}

/// One file of [`Ephemeral::Files`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// The node's volumes. See the module's contract.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// All volumes of ours on this node, also those whose object is gone (retained).
    async fn list(&self) -> Result<Vec<Volume>, Error>;

    /// Makes it or checks that it is in order.
    async fn ensure(&self, spec: &VolumeSpec) -> Result<Volume, Error>;

    /// Forgets it; `delete_data` removes the data of a directory of ours (never of a given path). Absence is
    /// success.
    async fn remove(&self, spec: &VolumeSpec, delete_data: bool) -> Result<(), Error>;

    /// Checks that what has this path and is mounted by us is there and answers; others are taken as they are.
    async fn check_mounted(&self, path: &std::path::Path) -> Result<(), Error>;

    /// How much it holds.
    async fn usage(&self, spec: &VolumeSpec) -> Result<Usage, Error>;

    /// Whether the volume at `root` is empty and was never filled, or filling it was interrupted.
    async fn wants_content(&self, root: &std::path::Path) -> Result<bool, Error>;

    /// Fills the volume at `root`, on behalf of a sandbox: all of it or, after a failure, nothing, and only once. Does
    /// nothing when somebody has written into it or the image has no such directory.
    async fn populate(&self, sandbox: &SandboxId, root: &std::path::Path, content: &Content) -> Result<(), Error>;

    /// Gives the volume at `root` to a group, if it is ours. One whose top directory is right is left as it is.
    async fn give_to_group(&self, root: &std::path::Path, gid: u32) -> Result<(), Error>;

    /// Makes or updates an ephemeral directory and returns its path.
    async fn ensure_ephemeral(&self, spec: &EphemeralSpec) -> Result<PathBuf, Error>;

    /// Checks a host path against its type, makes it if the type says so, and returns it.
    async fn ensure_host_path(&self, path: &std::path::Path, kind: HostPathType) -> Result<PathBuf, Error>;

    /// Resolves `sub_path` below `root` without ever leaving it, makes missing directories, and returns a path that
    /// stays bound to what was resolved (a bind mount below the sandbox's directory), safe against later renames.
    async fn ensure_sub_path(
        &self,
        sandbox: &SandboxId,
        root: &std::path::Path,
        sub_path: &str,
    ) -> Result<PathBuf, Error>;

    /// The directory of what the sandbox has on disk, for other things that live and die with it. It need not exist.
    fn ephemeral_dir(&self, sandbox: &SandboxId) -> PathBuf;

    /// Removes all ephemeral directories and sub-path mounts of the sandbox; absence is success.
    async fn remove_ephemeral(&self, sandbox: &SandboxId) -> Result<(), Error>;

    /// Ids of sandboxes that have ephemeral directories or mounts on the node.
    async fn list_ephemeral(&self) -> Result<Vec<SandboxId>, Error>;
}

fn io_error<'a>(verb: &'a str, path: &'a std::path::Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| failed(path, format!("{verb} {}", path.display()))(source)
}

/// A file system call below `path` failed.
fn failed(path: &std::path::Path, doing: String) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { doing, source: room::with_numbers(path, source) }
}

/// With its causes.
fn told(error: &Error) -> String {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A path of the node has to be absolute and free of `..`.
fn check_host_path(path: &std::path::Path) -> Result<(), Error> {
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    if path.is_absolute() && plain {
        return Ok(());
    }
    Err(paths::invalid("hostPath.path", format!("{} must be an absolute path without '..'", path.display())))
}

fn wrong_type(path: &std::path::Path, kind: HostPathType, found: &str) -> Error {
    paths::invalid("hostPath.type", format!("{} should be a {kind:?}, but there is {found}", path.display()))
}
