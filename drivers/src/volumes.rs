//! Volumes: directories on the node that containers mount.
//!
//! # Contract
//! - Owned volumes live in `<dataDir>/volumes/<namespace>/<name>/data`; a given path is never created below, moved
//!   or deleted unless its type says so, and never deleted with the object.
//! - Paths from users are resolved with `openat2` so that no symlink leads out of the volume.
//! - Secrets are written to a tmpfs only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::{SandboxId, VolumeKey};

#[cfg(test)]
pub(crate) mod conformance;
pub mod fake;
mod files;
mod host_path;
pub mod linux;
mod paths;
mod sub_path;

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
}

/// Kubernetes' hostPath types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum HostPathType {
    /// No check.
    #[default]
    Any,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// Owner and mode of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Owner {
    pub uid: u32,
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
    Disk,
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
}

impl std::fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk => f.write_str("Disk"),
            Self::Memory { size_limit } => f.debug_struct("Memory").field("size_limit", size_limit).finish(),
            // Contents may be secret.
            Self::Files { files, in_memory, gid } => f
                .debug_struct("Files")
                .field("files", &files.keys().collect::<Vec<_>>())
                .field("in_memory", in_memory)
                .field("gid", gid)
                .finish(),
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

    /// How much it holds.
    async fn usage(&self, spec: &VolumeSpec) -> Result<Usage, Error>;

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

    /// Removes all ephemeral directories and sub-path mounts of the sandbox; absence is success.
    async fn remove_ephemeral(&self, sandbox: &SandboxId) -> Result<(), Error>;

    /// Ids of sandboxes that have ephemeral directories or mounts on the node.
    async fn list_ephemeral(&self) -> Result<Vec<SandboxId>, Error>;
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
