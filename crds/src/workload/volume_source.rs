//! What a Workload mounts: Volumes of the namespace, or sources declared in place.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::container::{ObjectFieldSelector, ResourceFieldSelector};
use crate::{image::PullPolicy, quantity::Quantity};

/// Elements that are neither empty nor `.` or `..`, joined by slashes.
const RELATIVE_PATH: &str = r"^([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))*$";

/// Something that containers of the Workload can mount by name. Exactly one source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(has(self.volume) ? 1 : 0) + (has(self.emptyDir) ? 1 : 0) + (has(self.configMap) ? 1 : 0) + (has(self.secret) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) + (has(self.image) ? 1 : 0) + (has(self.downwardAPI) ? 1 : 0) + (has(self.projected) ? 1 : 0) == 1",
        "exactly one source is needed: volume, emptyDir, configMap, secret, hostPath, image, downwardAPI or projected"
    )
)]
pub struct WorkloadVolume {
    /// The name that volumeMounts refer to.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A Volume of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeReference>,
    /// A directory that is empty at first and removed with the Workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolumeSource>,
    /// The keys of a ConfigMap as files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
    /// The keys of a Secret as files, in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
    /// A path of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathVolumeSource>,
    /// The files of an image, read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolumeSource>,
    /// Facts about the Workload as files.
    #[serde(rename = "downwardAPI", skip_serializing_if = "Option::is_none")]
    pub downward_api: Option<DownwardApiVolumeSource>,
    /// Several of the above in one directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projected: Option<ProjectedVolumeSource>,
}

/// The one source of a [`WorkloadVolume`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum VolumeSource<'a> {
    /// A Volume of the namespace.
    Volume(&'a VolumeReference),
    /// A directory that is empty at first.
    EmptyDir(&'a EmptyDirVolumeSource),
    /// The keys of a ConfigMap.
    ConfigMap(&'a ConfigMapVolumeSource),
    /// The keys of a Secret.
    Secret(&'a SecretVolumeSource),
    /// A path of the node.
    HostPath(&'a HostPathVolumeSource),
    /// The files of an image.
    Image(&'a ImageVolumeSource),
    /// Facts about the Workload.
    DownwardApi(&'a DownwardApiVolumeSource),
    /// Several in one directory.
    Projected(&'a ProjectedVolumeSource),
}

impl WorkloadVolume {
    /// The source; `None` unless there is exactly one, which the schema's rules prevent.
    pub fn source(&self) -> Option<VolumeSource<'_>> {
        let WorkloadVolume {
            name: _,
            volume,
            empty_dir,
            config_map,
            secret,
            host_path,
            image,
            downward_api,
            projected,
        } = self;
        let mut sources = [
            volume.as_ref().map(VolumeSource::Volume),
            empty_dir.as_ref().map(VolumeSource::EmptyDir),
            config_map.as_ref().map(VolumeSource::ConfigMap),
            secret.as_ref().map(VolumeSource::Secret),
            host_path.as_ref().map(VolumeSource::HostPath),
            image.as_ref().map(VolumeSource::Image),
            downward_api.as_ref().map(VolumeSource::DownwardApi),
            projected.as_ref().map(VolumeSource::Projected),
        ]
        .into_iter()
        .flatten();
        let first = sources.next();
        if sources.next().is_none() { first } else { None }
    }
}

/// A Volume of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeReference {
    /// Name of the Volume.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A directory that is empty at first and removed with the Workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDirVolumeSource {
    /// `Memory` for a filesystem in memory; empty for the node's disk.
    #[serde(default, skip_serializing_if = "EmptyDirMedium::is_disk")]
    pub medium: EmptyDirMedium,
    /// How much it may hold. Enforced for `Memory`, and on disk where the filesystem has project quotas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// What an emptyDir is stored on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EmptyDirMedium {
    /// The node's disk.
    #[default]
    #[serde(rename = "")]
    Disk,
    /// Memory; counts against the containers' memory limits.
    Memory,
}

impl EmptyDirMedium {
    fn is_disk(&self) -> bool {
        *self == EmptyDirMedium::Disk
    }
}

/// What happens to running containers when the content of a ConfigMap or Secret changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnChange {
    /// The files are replaced, all at once.
    #[default]
    Update,
    /// The files are replaced and the containers that mount them restarted.
    Restart,
    /// The files are replaced and the containers that mount them sent SIGHUP.
    Signal,
}

/// The keys of a ConfigMap as files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolumeSource {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The keys to take and the files they become. Empty: all, each under its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub items: Vec<KeyToPath>,
    /// Permission bits of files without one of their own. Default: 0644 (420 in JSON).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 511))]
    pub default_mode: Option<u16>,
    /// Whether the Workload starts without the ConfigMap or the keys. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// What happens to running containers when the content changes: `Update` replaces the files, `Restart` also
    /// restarts the containers that mount them, `Signal` sends these SIGHUP.
    #[serde(default)]
    pub on_change: OnChange,
}

/// The keys of a Secret as files, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolumeSource {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// The keys to take and the files they become. Empty: all, each under its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub items: Vec<KeyToPath>,
    /// Permission bits of files without one of their own. Default: 0644 (420 in JSON).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 511))]
    pub default_mode: Option<u16>,
    /// Whether the Workload starts without the Secret or the keys. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// What happens to running containers when the content changes: `Update` replaces the files, `Restart` also
    /// restarts the containers that mount them, `Signal` sends these SIGHUP.
    #[serde(default)]
    pub on_change: OnChange,
}

/// One key as one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyToPath {
    /// The key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// The file, relative to the mount; without `..`.
    #[schemars(
        length(min = 1, max = 4096),
        regex(pattern = RELATIVE_PATH)
    )]
    pub path: String,
    /// Permission bits of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 511))]
    pub mode: Option<u16>,
}

/// A path of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPathVolumeSource {
    /// Absolute path on the node.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub path: String,
    /// What must be there, or is made: empty (no check), `DirectoryOrCreate`, `Directory`, `FileOrCreate`, `File`,
    /// `Socket`, `CharDevice`, `BlockDevice`.
    #[serde(rename = "type", default, skip_serializing_if = "HostPathType::is_unchecked")]
    pub type_: HostPathType,
}

/// What must be at a host path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HostPathType {
    /// No check is made.
    #[default]
    #[serde(rename = "")]
    Unchecked,
    /// A directory; made with mode 0755 if nothing is there.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// A file; made empty with mode 0644 if nothing is there.
    FileOrCreate,
    /// A file.
    File,
    /// A unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl HostPathType {
    fn is_unchecked(&self) -> bool {
        *self == HostPathType::Unchecked
    }
}

/// The files of an image, read-only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageVolumeSource {
    /// The image.
    #[schemars(length(min = 1, max = 1024))]
    pub reference: String,
    /// When to ask the registry.
    #[serde(default)]
    pub pull_policy: PullPolicy,
}

/// Facts about the Workload as files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownwardApiVolumeSource {
    /// The files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub items: Vec<DownwardApiVolumeFile>,
    /// Permission bits of files without one of their own. Default: 0644 (420 in JSON).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 511))]
    pub default_mode: Option<u16>,
}

/// One fact as one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.fieldRef) != has(self.resourceFieldRef)", "exactly one of fieldRef and resourceFieldRef is needed"))]
pub struct DownwardApiVolumeFile {
    /// The file, relative to the mount; without `..`.
    #[schemars(length(min = 1, max = 4096), regex(pattern = RELATIVE_PATH))]
    pub path: String,
    /// A field of the Workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_ref: Option<ObjectFieldSelector>,
    /// A request or limit of a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_field_ref: Option<ResourceFieldSelector>,
    /// Permission bits of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 511))]
    pub mode: Option<u16>,
}

/// Several sources in one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectedVolumeSource {
    /// The sources; a later one may not have a file of an earlier one.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub sources: Vec<ProjectedSource>,
    /// Permission bits of files without one of their own. Default: 0644 (420 in JSON).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 511))]
    pub default_mode: Option<u16>,
}

/// One of the sources of a projected volume. Exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(has(self.configMap) ? 1 : 0) + (has(self.secret) ? 1 : 0) + (has(self.downwardAPI) ? 1 : 0) == 1",
        "exactly one source is needed: configMap, secret or downwardAPI"
    )
)]
pub struct ProjectedSource {
    /// The keys of a ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeyProjection>,
    /// The keys of a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeyProjection>,
    /// Facts about the Workload.
    #[serde(rename = "downwardAPI", skip_serializing_if = "Option::is_none")]
    pub downward_api: Option<DownwardApiProjection>,
}

/// The keys of a ConfigMap or Secret within a projected volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyProjection {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The keys to take and the files they become. Empty: all, each under its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub items: Vec<KeyToPath>,
    /// Whether the Workload starts without the object or the keys. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// Facts about the Workload within a projected volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownwardApiProjection {
    /// The files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub items: Vec<DownwardApiVolumeFile>,
}
