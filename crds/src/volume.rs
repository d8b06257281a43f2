//! Volume: storage of one node that outlives the Workloads that use it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    common::{Condition, conditions_schema},
    quantity::Quantity,
    workload::volume_source::HostPathVolumeSource,
};

/// Storage on one node, with exactly one source.
///
/// The source cannot be changed later: what was written into it would be left behind. `nodeName` can be set once.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "nodelet.dev",
    version = "v1alpha1",
    kind = "Volume",
    namespaced,
    shortname = "vol",
    category = "nodelet",
    status = "VolumeStatus",
    derive = "PartialEq",
    doc = "Storage on one node that outlives the Workloads using it.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Pending, Ready, InUse or Failed."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether it can be used."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not."
    ),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".spec.capacity", description = "The asked size."),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodeName", description = "The node it is on."),
    printcolumn(
        name = "Used by",
        type_ = "string",
        json_path = ".status.usedBy",
        priority = 1,
        description = "Workloads using it now."
    ),
    printcolumn(
        name = "Path",
        type_ = "string",
        json_path = ".status.path",
        priority = 1,
        description = "Where it is on the node."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1,
        description = "The reason in a sentence."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when the object exists."
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(has(self.local) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) + (has(self.tmpfs) ? 1 : 0) + (has(self.block) ? 1 : 0) + (has(self.nfs) ? 1 : 0) == 1",
        "exactly one source is needed: local, hostPath, tmpfs, block or nfs"
    ),
    validation = (
        "has(self.local) == has(oldSelf.local) && (!has(self.local) || self.local == oldSelf.local)",
        "the source of a Volume cannot be changed: create another Volume"
    ),
    validation = (
        "has(self.hostPath) == has(oldSelf.hostPath) && (!has(self.hostPath) || self.hostPath == oldSelf.hostPath)",
        "the source of a Volume cannot be changed: create another Volume"
    ),
    validation = (
        "has(self.tmpfs) == has(oldSelf.tmpfs)",
        "the source of a Volume cannot be changed: create another Volume"
    ),
    validation = (
        "has(self.block) == has(oldSelf.block) && (!has(self.block) || self.block == oldSelf.block)",
        "the source of a Volume cannot be changed: create another Volume"
    ),
    validation = (
        "has(self.nfs) == has(oldSelf.nfs) && (!has(self.nfs) || self.nfs == oldSelf.nfs)",
        "the source of a Volume cannot be changed: create another Volume"
    ),
    validation = (
        "!has(oldSelf.nodeName) || (has(self.nodeName) && self.nodeName == oldSelf.nodeName)",
        "nodeName cannot be changed once it is set: the data is on that node"
    ),
    validation = ("!has(self.block) || has(self.capacity)", "a block volume needs a capacity"),
    validation = (
        "!has(self.capacity) || has(self.local) || has(self.tmpfs) || has(self.block)",
        "capacity has a meaning for local, tmpfs and block volumes only"
    ),
    validation = (
        "!has(self.owner) || has(self.local) || has(self.tmpfs) || has(self.block)",
        "owner has a meaning for local, tmpfs and block volumes only: others belong to whoever made them"
    )
)]
pub struct VolumeSpec {
    /// The node that holds the data. Empty: the only node, or the node of the first Workload that uses the Volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: Option<String>,
    /// A directory that nodelet owns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalSource>,
    /// A path that somebody else owns; it is never removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathVolumeSource>,
    /// A filesystem in memory; its content is lost at reboot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<TmpfsSource>,
    /// A filesystem of its own in a file of `capacity`, mounted through a loop device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockSource>,
    /// An NFS export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nfs: Option<NfsSource>,
    /// The size. Enforced for tmpfs, block and, where the filesystem has project quotas, local.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Quantity>,
    /// How many may use it: `ReadWriteOnce` is one Workload at a time, `ReadWriteMany` any number, `ReadOnlyMany` any
    /// number that only read.
    #[serde(default)]
    pub access_mode: AccessMode,
    /// What an empty volume is filled with when it is first mounted: `image` copies what the container's image has at
    /// the mount path, `none` leaves it empty.
    #[serde(default)]
    pub populate_from: PopulateFrom,
    /// Owner and mode of the volume's root directory, set when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<VolumeOwner>,
    /// What happens to the data when the object is deleted.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

/// The one source of a Volume.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum VolumeSourceRef<'a> {
    /// A directory that nodelet owns.
    Local(&'a LocalSource),
    /// A path that somebody else owns.
    HostPath(&'a HostPathVolumeSource),
    /// A filesystem in memory.
    Tmpfs(&'a TmpfsSource),
    /// A file-backed filesystem.
    Block(&'a BlockSource),
    /// An NFS export.
    Nfs(&'a NfsSource),
}

impl VolumeSpec {
    /// The source; `None` unless there is exactly one, which the schema's rules prevent.
    pub fn source(&self) -> Option<VolumeSourceRef<'_>> {
        let VolumeSpec { local, host_path, tmpfs, block, nfs, .. } = self;
        let mut sources = [
            local.as_ref().map(VolumeSourceRef::Local),
            host_path.as_ref().map(VolumeSourceRef::HostPath),
            tmpfs.as_ref().map(VolumeSourceRef::Tmpfs),
            block.as_ref().map(VolumeSourceRef::Block),
            nfs.as_ref().map(VolumeSourceRef::Nfs),
        ]
        .into_iter()
        .flatten();
        let first = sources.next();
        if sources.next().is_none() { first } else { None }
    }
}

/// A directory that nodelet owns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalSource {
    /// Absolute path. Empty: a directory of the Volume's own under `dataDir/volumes`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096), regex(pattern = "^(/.*)?$"))]
    pub path: String,
}

/// A filesystem in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TmpfsSource {}

/// A file-backed filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockSource {
    /// The filesystem made in it.
    #[serde(default)]
    pub fs_type: BlockFsType,
}

/// Filesystems that a block volume can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BlockFsType {
    /// ext4.
    #[default]
    Ext4,
    /// XFS; needs at least 300 MiB.
    Xfs,
}

/// An NFS export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NfsSource {
    /// Name or address of the server.
    #[schemars(length(min = 1, max = 253))]
    pub server: String,
    /// Absolute path of the export.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub path: String,
    /// Mount it read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// How many Workloads may use a Volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// One Workload at a time.
    ReadWriteOnce,
    /// Any number.
    #[default]
    ReadWriteMany,
    /// Any number, all of them reading only.
    ReadOnlyMany,
}

/// What an empty volume is filled with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PopulateFrom {
    /// Nothing.
    #[default]
    None,
    /// What the first container's image has at the mount path.
    Image,
}

/// What happens to the data when the object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// It stays.
    #[default]
    Retain,
    /// It is removed, unless somebody else owns it (`hostPath`, `nfs`).
    Delete,
}

/// Owner and mode of a volume's root directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeOwner {
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// Permission bits in octal, as a string. Default: `"0755"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-7]{3,4}$"))]
    pub mode: Option<String>,
}

impl VolumeOwner {
    /// The permission bits; `0o755` if none are given or they are not octal (which the schema prevents).
    pub fn mode_bits(&self) -> u32 {
        self.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o755)
    }
}

/// Where a Volume is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum VolumePhase {
    /// Not made yet, or not bound to a node.
    #[default]
    Pending,
    /// Made, and nobody uses it.
    Ready,
    /// At least one Workload uses it.
    InUse,
    /// Could not be made; tried again.
    Failed,
}

/// What became of a [`Volume`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The node that holds the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Pending, Ready, InUse or Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "VolumePhase")]
    pub phase: Option<VolumePhase>,
    /// Where the data is on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Size of the filesystem that holds the data, or the enforced limit, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Used space in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Names of the Workloads that use it now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub used_by: Vec<String>,
    /// `Ready`: the volume can be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
