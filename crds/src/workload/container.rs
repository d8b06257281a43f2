//! One container of a Workload.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    probe::{Lifecycle, Probe},
    security::SecurityContext,
};
use crate::{image::PullPolicy, quantity::Quantity, resource_limit::IoLimit, resource_limit::Realtime};

/// Elements that are neither empty nor `.` or `..`, joined by slashes; or nothing. A pattern, not a rule: the cost of
/// a rule that looks into paths is multiplied by all mounts of all containers, and passes what an API server admits.
const RELATIVE_PATH_OR_EMPTY: &str = r"^(([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))*)?$";

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(self.ports) || self.ports.all(p, !has(p.name) || self.ports.exists_one(q, has(q.name) && q.name == p.name))",
        "port names must be unique within a container"
    ),
    validation = (
        "!has(self.livenessProbe) || self.livenessProbe.successThreshold == 1",
        "livenessProbe.successThreshold must be 1"
    ),
    validation = (
        "!has(self.startupProbe) || self.startupProbe.successThreshold == 1",
        "startupProbe.successThreshold must be 1"
    ),
    validation = (
        "!has(self.readinessProbe) || !has(self.readinessProbe.terminationGracePeriodSeconds)",
        "a readinessProbe ends no container: remove its terminationGracePeriodSeconds"
    ),
    validation = (
        "!has(self.volumeMounts) || (has(self.securityContext) && has(self.securityContext.privileged) && self.securityContext.privileged) || self.volumeMounts.all(m, !has(m.mountPropagation) || m.mountPropagation != 'Bidirectional')",
        "mountPropagation Bidirectional is for privileged containers only"
    )
)]
pub struct Container {
    /// Its name, unique among all containers of the Workload.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The image: `[registry/]name[:tag][@sha256:…]`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\s]+$"))]
    pub image: String,
    /// When to ask the registry: `Always`, only if the node lacks the image (`IfNotPresent`), `Never`, or `Newer`:
    /// ask, but keep what is there if the registry does not answer.
    #[serde(default)]
    pub image_pull_policy: PullPolicy,
    /// The program, instead of the image's entrypoint. `$(NAME)` stands for a variable of `env`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
    /// The program's arguments, instead of the image's. `$(NAME)` stands for a variable of `env`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// The directory the program starts in. Default: the image's, or `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub working_dir: Option<String>,
    /// Environment variables. They win over `envFrom` and over the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
    /// All keys of ConfigMaps and Secrets as environment variables; a later source wins over an earlier one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub env_from: Vec<EnvFromSource>,
    /// Devices of the node that the container gets, beside the harmless ones that all have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub devices: Vec<Device>,
    /// Give the container a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Keep standard input open, for `attach`.
    #[serde(default)]
    pub stdin: bool,
    /// End standard input when the first who attached to it has left. On a terminal the end is typed (Ctrl-D). Default:
    /// false, it stays open for as long as the container runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin_once: Option<bool>,
    /// Ports that the container serves, and where the node publishes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["containerPort", "protocol"])
    )]
    pub ports: Vec<ContainerPort>,
    /// What the container may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Where the Workload's volumes appear in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["mountPath"])
    )]
    pub volume_mounts: Vec<VolumeMount>,
    /// Has the container come up? Until it has, the other probes wait; if it does not, it is restarted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_probe: Option<Probe>,
    /// Is the container alive? If not, it is restarted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness_probe: Option<Probe>,
    /// Can the container serve? If not, the Workload is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<Probe>,
    /// What is done at the container's beginning and end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
    /// What the container may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<SecurityContext>,
    /// What becomes of its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// Only in `initContainers`: `Always` makes a sidecar, which is not waited for and runs as long as the Workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ContainerRestartPolicy")]
    pub restart_policy: Option<ContainerRestartPolicy>,
}

/// Restart policy of a single container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ContainerRestartPolicy {
    /// A sidecar.
    Always,
}

/// One environment variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.value) || !has(self.valueFrom)", "value and valueFrom exclude each other"))]
pub struct EnvVar {
    /// Its name.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[^=\\x00]+$"))]
    pub name: String,
    /// Its value. `$(NAME)` stands for a variable declared before; `$$` is a plain `$`. Default: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131072))]
    pub value: Option<String>,
    /// Where its value comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// Where a variable's value comes from. Exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(has(self.configMapKeyRef) ? 1 : 0) + (has(self.secretKeyRef) ? 1 : 0) + (has(self.fieldRef) ? 1 : 0) + (has(self.resourceFieldRef) ? 1 : 0) == 1",
        "exactly one source is needed: configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef"
    )
)]
pub struct EnvVarSource {
    /// A key of a ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeySelector>,
    /// A key of a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeySelector>,
    /// A field of the Workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field_ref: Option<ObjectFieldSelector>,
    /// A request or limit of a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_field_ref: Option<ResourceFieldSelector>,
}

/// One key of a ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySelector {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// Whether the container starts without the object or the key. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// A field of the Workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectFieldSelector {
    /// The field: `metadata.name`, `metadata.namespace`, `metadata.uid`, `metadata.labels`, `metadata.annotations`
    /// (both also with a key, as `metadata.labels['app']`), or `spec.nodeName`.
    #[schemars(length(min = 1, max = 512))]
    pub field_path: String,
}

/// A request or limit of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceFieldSelector {
    /// Name of the container; needed in volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub container_name: Option<String>,
    /// The amount: `limits.cpu`, `limits.memory`, `requests.cpu` or `requests.memory`.
    #[schemars(regex(pattern = r"^(limits|requests)\.(cpu|memory)$"))]
    pub resource: String,
    /// The unit the amount is given in. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divisor: Option<Quantity>,
}

/// All keys of a ConfigMap or a Secret as variables. Exactly one of `configMapRef` and `secretRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.configMapRef) != has(self.secretRef)", "exactly one of configMapRef and secretRef is needed"))]
pub struct EnvFromSource {
    /// Put before every key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256), regex(pattern = "^[^=\\x00]*$"))]
    pub prefix: String,
    /// The ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<OptionalReference>,
    /// The Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<OptionalReference>,
}

/// A ConfigMap or Secret that may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptionalReference {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whether the container starts without the object. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// A port that a container serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(self.hostIP) || self.hostIP == '' || isIP(self.hostIP)",
        "hostIP must be an IPv4 or IPv6 address"
    ),
    validation = (
        "!has(self.hostIP) || self.hostIP == '' || has(self.hostPort)",
        "hostIP has a meaning with hostPort only"
    ),
    validation = (
        "!has(self.hostPortEnd) || (has(self.hostPort) && self.hostPortEnd >= self.hostPort && self.hostPortEnd - self.hostPort < 1024 && self.containerPort + self.hostPortEnd - self.hostPort <= 65535)",
        "hostPortEnd is the last of at most 1024 ports from hostPort, and the ports from containerPort on must be as many"
    )
)]
pub struct ContainerPort {
    /// A name for probes to refer to, unique within the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// The port within the container.
    #[schemars(range(min = 1))]
    pub container_port: u16,
    /// The port of the node that leads there. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub host_port: Option<u16>,
    /// The last of a range of ports of the node, from `hostPort`, at most 1024 of them: each next one leads to the next port
    /// from `containerPort` on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub host_port_end: Option<u16>,
    /// The node's address that `hostPort` is on. Empty: all.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub host_ip: Option<String>,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What a container may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the container should have when others want it too, and what the node sets aside for it. CPU becomes its
    /// share, as the kubelet gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,
    /// What the container can never pass. Above the memory limit the kernel kills it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
    /// How many processes and threads it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4194304))]
    pub pids: Option<u32>,
    /// Limits of its processes, as `ulimit` sets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ulimits: Vec<Ulimit>,
    /// The CPUs that may be used, as a list of numbers and ranges: `0-1,4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"))]
    pub cpus: Option<String>,
    /// Time that its real-time processes may have, which have none without it. To become one, a process also needs the
    /// capability `SYS_NICE` or the ulimit `rtprio`. Needs cgroup version 1 and a kernel that divides this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime: Option<Realtime>,
    /// Memory above which the container is slowed down and its memory reclaimed, before the limit kills it. Needs
    /// cgroup version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<Quantity>,
    /// Swap that it may use beside its memory limit; 0 forbids swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_max: Option<Quantity>,
    /// Limits of block devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["device"]))]
    pub io: Vec<IoLimit>,
}

/// A device of the node in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its path on the node, `/dev/ttyUSB0`, or its name by the Container Device Interface, `vendor.com/gpu=0`: then the
    /// vendor's file in `/etc/cdi` or `/var/run/cdi` says what the container gets, and nothing else is said here.
    #[schemars(
        length(min = 5, max = 256),
        regex(
            pattern = "^(/dev/[^ ]+|[A-Za-z0-9][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9._-]*=[A-Za-z0-9][A-Za-z0-9._:-]*)$"
        )
    )]
    pub path: String,
    /// Its path in the container. Default: the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 256), regex(pattern = "^/[^ ]+$"))]
    pub container_path: Option<String>,
    /// What the container may do with it: read (`r`), write (`w`), make its file (`m`). Default: `rwm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 3), regex(pattern = "^r?w?m?$"))]
    pub permissions: Option<String>,
}

/// Amounts of CPU, memory and huge pages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceAmounts {
    /// CPU time, in CPUs: `500m` or `1.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory in bytes: `128Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Bytes of huge pages of 2 MiB. As in Kubernetes, what is requested and the limit are the same.
    #[serde(rename = "hugepages-2Mi", skip_serializing_if = "Option::is_none")]
    pub hugepages_2mi: Option<Quantity>,
    /// Bytes of huge pages of 1 GiB.
    #[serde(rename = "hugepages-1Gi", skip_serializing_if = "Option::is_none")]
    pub hugepages_1gi: Option<Quantity>,
}

/// One limit of processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "self.hard == -1 || (self.soft != -1 && self.soft <= self.hard)",
        "soft must not be above hard"
    )
)]
pub struct Ulimit {
    /// Which limit: `core`, `cpu`, `data`, `fsize`, `locks`, `memlock`, `msgqueue`, `nice`, `nofile`, `nproc`, `rss`,
    /// `rtprio`, `rttime`, `sigpending`, `stack` or `as`.
    pub name: UlimitName,
    /// The limit in force; -1 is none.
    #[schemars(range(min = -1))]
    pub soft: i64,
    /// What a process may raise the limit to; -1 is no bound.
    #[schemars(range(min = -1))]
    pub hard: i64,
}

/// The limits that the kernel knows, without `RLIMIT_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UlimitName {
    /// Address space in bytes.
    As,
    /// Core file size in bytes.
    Core,
    /// CPU time in seconds.
    Cpu,
    /// Data segment in bytes.
    Data,
    /// File size in bytes.
    Fsize,
    /// File locks.
    Locks,
    /// Locked memory in bytes.
    Memlock,
    /// Message queues in bytes.
    Msgqueue,
    /// Nice ceiling.
    Nice,
    /// Open files.
    Nofile,
    /// Processes of the user.
    Nproc,
    /// Resident memory in bytes; the kernel ignores it.
    Rss,
    /// Real-time priority.
    Rtprio,
    /// Real-time CPU time in microseconds.
    Rttime,
    /// Pending signals.
    Sigpending,
    /// Stack in bytes.
    Stack,
}

impl UlimitName {
    /// The name as an OCI runtime wants it.
    pub fn oci_name(self) -> &'static str {
        match self {
            UlimitName::As => "RLIMIT_AS",
            UlimitName::Core => "RLIMIT_CORE",
            UlimitName::Cpu => "RLIMIT_CPU",
            UlimitName::Data => "RLIMIT_DATA",
            UlimitName::Fsize => "RLIMIT_FSIZE",
            UlimitName::Locks => "RLIMIT_LOCKS",
            UlimitName::Memlock => "RLIMIT_MEMLOCK",
            UlimitName::Msgqueue => "RLIMIT_MSGQUEUE",
            UlimitName::Nice => "RLIMIT_NICE",
            UlimitName::Nofile => "RLIMIT_NOFILE",
            UlimitName::Nproc => "RLIMIT_NPROC",
            UlimitName::Rss => "RLIMIT_RSS",
            UlimitName::Rtprio => "RLIMIT_RTPRIO",
            UlimitName::Rttime => "RLIMIT_RTTIME",
            UlimitName::Sigpending => "RLIMIT_SIGPENDING",
            UlimitName::Stack => "RLIMIT_STACK",
        }
    }
}

/// Where a volume appears in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of one of the Workload's volumes.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Absolute path in the container.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/[^:]*$"))]
    pub mount_path: String,
    /// Mount only this path of the volume, relative to its root and without `..`; made as a directory if nothing is
    /// there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024), regex(pattern = RELATIVE_PATH_OR_EMPTY))]
    pub sub_path: String,
    /// Mount it read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Whether mounts made later are seen on the other side: `None` (default), `HostToContainer`, `Bidirectional`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "MountPropagation")]
    pub mount_propagation: Option<MountPropagation>,
}

/// Whether mounts made later are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MountPropagation {
    /// Not seen.
    #[default]
    None,
    /// The container sees the node's.
    HostToContainer,
    /// Both see each other's.
    Bidirectional,
}

/// What becomes of a container's output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Logging {
    /// Where it goes: `file`, in the Kubernetes log format below `dataDir/logs`.
    #[serde(default)]
    pub driver: LogDriver,
    /// A file of this size is rotated. Default: 10Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Quantity>,
    /// Files kept for a container, the current one included. Default: 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_files: Option<u32>,
}

/// Where output goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogDriver {
    /// A file of the node, rotated by size.
    #[default]
    File,
}
