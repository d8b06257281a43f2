//! Workload: containers that live together, in the vocabulary of a Pod.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::Quantity;

pub mod container;
pub mod probe;
pub mod security;
pub mod status;
pub mod volume_source;

pub use container::{
    Container, ContainerPort, ContainerRestartPolicy, Device, EnvFromSource, EnvVar, EnvVarSource, KeySelector,
    LogDriver, Logging, MountPropagation, ObjectFieldSelector, OptionalReference, Protocol, ResourceAmounts,
    ResourceFieldSelector, Resources, Ulimit, UlimitName, VolumeMount,
};
pub use probe::{
    ExecAction, GrpcAction, HttpGetAction, HttpHeader, HttpScheme, Lifecycle, LifecycleHandler, Probe, ProbeHandler,
    SleepAction, TcpSocketAction,
};
pub use security::{
    Capabilities, ProcMount, SecurityContext, SecurityProfile, SecurityProfileType, Sysctl, WorkloadSecurityContext,
};
pub use status::{
    ContainerState, ContainerStatus, StateRunning, StateTerminated, StateWaiting, WorkloadAddress, WorkloadPhase,
    WorkloadStatus,
};
pub use volume_source::{
    ConfigMapVolumeSource, EmptyDirMedium, EmptyDirVolumeSource, HostPathType, HostPathVolumeSource, KeyToPath,
    OnChange, SecretVolumeSource, VolumeReference, VolumeSource, WorkloadVolume,
};

/// Containers that live together: one network namespace, shared volumes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "nodelet.dev",
    version = "v1alpha1",
    kind = "Workload",
    namespaced,
    shortname = "wl",
    category = "nodelet",
    status = "WorkloadStatus",
    derive = "PartialEq",
    doc = "Containers that live together on one node: one network namespace, shared volumes.",
    validation = ("size(self.metadata.name) <= 63", "the name of a Workload can have 63 characters at most: it is also its host name"),
    validation = (
        "!has(self.spec.networkOf) || self.spec.networkOf != self.metadata.name",
        "a Workload cannot join its own network namespace"
    ),
    validation = (
        "!has(self.spec.dependsOn) || !self.spec.dependsOn.exists(d, d.name == self.metadata.name)",
        "a Workload cannot depend on itself"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Pending, Running, Succeeded, Failed or Stopped."),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.readyContainers", description = "Ready containers of all."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not."),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts", description = "Restarts of all its containers."),
    printcolumn(name = "IP", type_ = "string", json_path = ".status.addresses[0].ip", description = "Its first address."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Since when the object exists."),
    printcolumn(name = "Images", type_ = "string", json_path = ".spec.containers[*].image", priority = 1, description = "What it runs."),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodeName", priority = 1, description = "Where it runs."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1, description = "The reason in a sentence.")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(self.networkOf) || !has(self.networks) || size(self.networks) == 0",
        "networks and networkOf exclude each other"
    ),
    validation = (
        "!has(self.networks) || size(self.networks) <= 1 || !self.networks.exists(n, n.name in ['host', 'none'])",
        "the networks host and none stand alone"
    ),
    validation = (
        "!has(self.networkOf) || self.containers.all(c, !has(c.ports) || c.ports.all(p, !has(p.hostPort)))",
        "with networkOf, ports are published by the Workload whose network is joined: remove hostPort"
    ),
    validation = (
        "!has(self.initContainers) || self.initContainers.all(i, !self.containers.exists(c, c.name == i.name))",
        "container names must be unique among initContainers and containers"
    ),
    validation = (
        "self.containers.all(c, !has(c.restartPolicy))",
        "restartPolicy of a single container has a meaning in initContainers only"
    ),
    validation = (
        "!has(self.initContainers) || self.initContainers.all(c, has(c.restartPolicy) || !(has(c.livenessProbe) || has(c.readinessProbe) || has(c.startupProbe) || has(c.lifecycle)))",
        "initContainers have no probes and no lifecycle, unless restartPolicy Always makes them sidecars"
    ),
    validation = (
        "self.containers.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name)))",
        "every volumeMount must name one of the volumes"
    ),
    validation = (
        "!has(self.initContainers) || self.initContainers.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name)))",
        "every volumeMount must name one of the volumes"
    ),
    validation = (
        "!has(self.shareProcessNamespace) || !self.shareProcessNamespace || !has(self.hostPID) || !self.hostPID",
        "shareProcessNamespace and hostPID exclude each other"
    )
)]
pub struct WorkloadSpec {
    /// The node to run on. Empty: the only node, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: Option<String>,
    /// A ResourceLimit of the namespace that the Workload is under.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource_limit: Option<String>,
    /// The networks it is attached to; the first has the default route. Default: `default`. `host` is the node's own
    /// network, `none` is loopback only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub networks: Vec<NetworkAttachment>,
    /// Another Workload of the namespace whose network namespace is joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub network_of: Option<String>,
    /// Host name inside. Default: the Workload's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// Who has a higher one goes later when the node is short of memory or disk, and takes the place of lower ones when it
    /// does not fit beside them. From 2000000000 on it is never evicted. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -2147483648_i64, max = 2147483647))]
    pub priority: Option<i32>,
    /// When containers that ended are started again: `Always`, `OnFailure` (exit code other than 0), `Never`,
    /// `UnlessStopped` (`Always`, but what was stopped stays so after a reboot).
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Stop the containers but keep the object and its volumes.
    #[serde(default)]
    pub stopped: bool,
    /// Workloads of the namespace that must be up before this one starts; honoured at every start, boot included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub depends_on: Vec<Dependency>,
    /// How a changed spec replaces running containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// Seconds that it may run, counted from its first start: then it is stopped and has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub active_deadline_seconds: Option<u32>,
    /// With restartPolicy OnFailure: how often a container is started again after a failure before the Workload has
    /// failed. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_limit: Option<u32>,
    /// How soon containers that ended by themselves are started again. Default: the node's
    /// `runtime.crashLoopBackOff`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crash_loop_back_off: Option<CrashLoopBackOff>,
    /// Seconds after which the object is deleted once its containers ended for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
    /// How many revisions that worked are kept to go back to, the present one aside. Default: 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub revision_history_limit: Option<u32>,
    /// Seconds between the stop signal and SIGKILL.
    #[serde(default = "ten")]
    #[schemars(range(max = 86400))]
    pub termination_grace_period_seconds: u32,
    /// Containers that run one after the other, to completion, before the others start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub init_containers: Vec<Container>,
    /// The containers.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub containers: Vec<Container>,
    /// What containers can mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub volumes: Vec<WorkloadVolume>,
    /// What holds for all containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<WorkloadSecurityContext>,
    /// Let the containers see each other's processes. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_process_namespace: Option<bool>,
    /// Let the containers see the node's processes. Default: false.
    #[serde(rename = "hostPID", skip_serializing_if = "Option::is_none")]
    pub host_pid: Option<bool>,
    /// Let the containers use the node's IPC objects. Default: false.
    #[serde(rename = "hostIPC", skip_serializing_if = "Option::is_none")]
    pub host_ipc: Option<bool>,
    /// Let users inside be those of the node. `false`: they are others, without any right there, and root inside is
    /// root only inside; not with `hostPID`, `hostIPC`, or the network `host` or of another Workload. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_users: Option<bool>,
    /// Name resolution inside, beyond what the networks give.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// Further lines of `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["ip"]))]
    pub host_aliases: Vec<HostAlias>,
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        WorkloadSpec {
            node_name: None,
            resource_limit: None,
            networks: Vec::new(),
            network_of: None,
            hostname: None,
            priority: None,
            restart_policy: RestartPolicy::default(),
            stopped: false,
            depends_on: Vec::new(),
            update: None,
            active_deadline_seconds: None,
            backoff_limit: None,
            crash_loop_back_off: None,
            ttl_seconds_after_finished: None,
            revision_history_limit: None,
            termination_grace_period_seconds: ten(),
            init_containers: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            security_context: None,
            share_process_namespace: None,
            host_pid: None,
            host_ipc: None,
            host_users: None,
            dns_config: None,
            host_aliases: Vec::new(),
        }
    }
}

/// The name of the network that a Workload joins if it names none.
pub const DEFAULT_NETWORK: &str = "default";

impl WorkloadSpec {
    /// The networks to attach to: what the spec names, or `default`. Empty if the Workload joins another's.
    pub fn attachments(&self) -> Vec<NetworkAttachment> {
        if self.network_of.is_some() {
            Vec::new()
        } else if self.networks.is_empty() {
            vec![NetworkAttachment { name: DEFAULT_NETWORK.to_owned(), ..Default::default() }]
        } else {
            self.networks.clone()
        }
    }
}

/// Limits of a network attachment, in bits per second (`10M` are ten million).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// What the Workload may receive. Not for macvlan, ipvlan and cni.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Quantity>,
    /// What the Workload may send. Not for cni.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Quantity>,
}

/// One network that a Workload is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.ip) || isIP(self.ip)", "ip must be an IPv4 or IPv6 address"))]
pub struct NetworkAttachment {
    /// Name of a Network of the namespace (`default` is also looked for in the namespace `default`), `host` or `none`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Further names that the Workload answers to in this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub aliases: Vec<String>,
    /// The address to have. Default: a free one, kept while the Workload exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    pub ip: Option<String>,
    /// The hardware address to have. Default: one that follows from the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$"))]
    pub mac: Option<String>,
    /// How much may pass. Changes take place at once, without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Drop what the Workload sends by addresses that are not its own. `false` for one that routes or bridges for others: a
    /// VPN gateway, a router, an engine with containers inside. It could then pose as its neighbours. Changes take place at
    /// once, without a restart. For bridge and vxlan; elsewhere there is no such check. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anti_spoofing: Option<bool>,
}

/// When containers that ended are started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    #[default]
    Always,
    /// After an exit code other than 0.
    OnFailure,
    /// Not at all.
    Never,
    /// As `Always`, but what was stopped stays so after a reboot.
    UnlessStopped,
}

/// Another Workload that must be up first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// Name of the Workload.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What it must have reached: `Started`, `Ready` or `Completed`.
    #[serde(default)]
    pub condition: DependencyCondition,
}

/// What a dependency must have reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DependencyCondition {
    /// All its containers were started.
    Started,
    /// Its condition `Ready` is true.
    #[default]
    Ready,
    /// It succeeded.
    Completed,
}

/// How a changed spec replaces running containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// `Recreate`: stop the old, then start the new. `StartFirst`: start the new beside the old with an address of its
    /// own, move the published ports over once it is healthy, then stop the old. Needs restartPolicy Always or
    /// UnlessStopped, a network of its own, no fixed address and no ReadWriteOnce Volume.
    #[serde(default)]
    pub strategy: UpdateStrategy,
    /// Seconds that the new containers must be ready, without a break, before the update counts as good. Default: 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 86400))]
    pub healthy_seconds: Option<u32>,
    /// Seconds after which an update that is not good by then has failed. Default: 600. Containers that crash three
    /// times in a row, or cannot be started, fail it earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub progress_deadline_seconds: Option<u32>,
    /// If an update failed, run the last revision that was good, with its image digests and its configuration, until
    /// the spec or the configuration changes again. Default: true with StartFirst, else false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_on_failure: Option<bool>,
}

/// In which order old and new containers are stopped and started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategy {
    /// Stop the old, then start the new.
    #[default]
    Recreate,
    /// Start the new, then stop the old.
    StartFirst,
}

/// How soon containers that ended by themselves are started again: at once after the first failure, then after
/// delays that double.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    /// The delay after the second failure in a row. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub initial_seconds: Option<u32>,
    /// The longest delay. Default: 300.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_seconds: Option<u32>,
    /// A container that ran this long is healthy: its failures before are forgotten. Default: 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub reset_seconds: Option<u32>,
}

/// Name resolution inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnsConfig {
    /// Addresses of name servers, before those of the networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 2, max = 45), regex(pattern = "^[0-9a-fA-F:.]+$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub nameservers: Vec<String>,
    /// Domains that short names are tried in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub searches: Vec<String>,
    /// Options of `resolv.conf`, such as `ndots`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub options: Vec<DnsOption>,
}

/// One option of `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnsOption {
    /// Its name.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9-]+$"))]
    pub name: String,
    /// Its value, for those that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = "^[A-Za-z0-9-]+$"))]
    pub value: Option<String>,
}

/// One line of `/etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("isIP(self.ip)", "ip must be an IPv4 or IPv6 address"))]
pub struct HostAlias {
    /// The address.
    #[schemars(length(min = 2, max = 45))]
    pub ip: String,
    /// The names.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 253), regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub hostnames: Vec<String>,
}

fn ten() -> u32 {
    10
}
