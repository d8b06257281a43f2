//! ResourceLimit: a cgroup that several Workloads share.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    common::{Condition, NodeSelector, conditions_schema},
    quantity::Quantity,
};

/// Limits for the sum of all Workloads that name it.
///
/// A change is applied to the live cgroup at once; no process restarts.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "nodelet.dev",
    version = "v1alpha1",
    kind = "ResourceLimit",
    namespaced,
    shortname = "rl",
    category = "nodelet",
    status = "ResourceLimitStatus",
    derive = "PartialEq",
    doc = "A cgroup that several Workloads share: the sum of its members can never pass it.",
    validation = ("!has(self.spec.parent) || self.spec.parent != self.metadata.name", "a ResourceLimit cannot be its own parent"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the limits are in force."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not."),
    printcolumn(name = "CPU", type_ = "string", json_path = ".spec.cpu.max", description = "CPU time that all members may use together."),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory.max", description = "Memory that all members may use together."),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.usage.memoryBytes", description = "Bytes of memory in use."),
    printcolumn(name = "OOM kills", type_ = "integer", json_path = ".status.oomKills", description = "Processes the kernel killed for the memory limit."),
    printcolumn(name = "Members", type_ = "string", json_path = ".status.members", priority = 1, description = "Workloads under it."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1, description = "The reason in a sentence."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Since when the object exists.")
)]
#[serde(rename_all = "camelCase")]
pub struct ResourceLimitSpec {
    /// Another ResourceLimit of the namespace that this one is inside of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub parent: Option<String>,
    /// Limits of CPU time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuLimit>,
    /// Limits of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryLimit>,
    /// Limit of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<PidsLimit>,
    /// Limits of block devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["device"]))]
    pub io: Vec<IoLimit>,
    /// The nodes that have this limit. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
}

/// Limits of CPU time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuLimit {
    /// CPU time that all members may use together, in CPUs: `1500m` or `1.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Quantity>,
    /// Share against siblings when CPU is short, 1 to 10000; the kernel's default is 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub weight: Option<u32>,
    /// The CPUs that may be used, as a list of numbers and ranges: `0-1,4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"))]
    pub cpus: Option<String>,
    /// Time that the real-time processes of all members may be given together; without it, as much as they need. Needs
    /// cgroup version 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime: Option<Realtime>,
}

/// Time of processes in the scheduling classes SCHED_FIFO and SCHED_RR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "self.runtimeMicroseconds <= self.periodMicroseconds",
        "runtimeMicroseconds must not be above periodMicroseconds"
    )
)]
pub struct Realtime {
    /// How much of each period they may run, in microseconds.
    #[schemars(range(min = 1, max = 1000000))]
    pub runtime_microseconds: u32,
    /// Length of a period, in microseconds.
    #[serde(default = "Realtime::usual_period")]
    #[schemars(range(min = 100, max = 1000000))]
    pub period_microseconds: u32,
}

impl Realtime {
    /// The kernel's default: a second.
    fn usual_period() -> u32 {
        1_000_000
    }
}

/// Limits of memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(self.high) || !has(self.max) || quantity(string(self.high)).compareTo(quantity(string(self.max))) <= 0",
        "memory.high must not be above memory.max"
    ),
    validation = (
        "!has(self.low) || !has(self.max) || quantity(string(self.low)).compareTo(quantity(string(self.max))) <= 0",
        "memory.low must not be above memory.max"
    )
)]
pub struct MemoryLimit {
    /// Above this the kernel kills a process of the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Quantity>,
    /// Above this members are slowed down and their memory reclaimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<Quantity>,
    /// Up to this memory is not reclaimed while others have some to give.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<Quantity>,
    /// Swap that may be used; 0 forbids swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_max: Option<Quantity>,
}

/// Limit of processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PidsLimit {
    /// How many processes and threads there may be.
    #[schemars(range(min = 1, max = 4194304))]
    pub max: u32,
}

/// Limits of one block device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "has(self.readBytesPerSecond) || has(self.writeBytesPerSecond) || has(self.readIOPS) || has(self.writeIOPS)",
        "name at least one limit for the device"
    )
)]
pub struct IoLimit {
    /// Path of the device's node, such as `/dev/vda`.
    #[schemars(length(min = 6, max = 256), regex(pattern = "^/dev/[^ ]+$"))]
    pub device: String,
    /// Bytes read per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<Quantity>,
    /// Bytes written per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_second: Option<Quantity>,
    /// Read operations per second.
    #[serde(rename = "readIOPS", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub read_iops: Option<u32>,
    /// Write operations per second.
    #[serde(rename = "writeIOPS", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub write_iops: Option<u32>,
}

/// What became of a [`ResourceLimit`], all nodes together. Each node's part is in its NodeState.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceLimitStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Names of the Workloads under it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub members: Vec<String>,
    /// What the members use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<ResourceUsage>,
    /// Processes that the kernel killed for the memory limit.
    #[serde(default)]
    pub oom_kills: u64,
    /// Time that members were held back for the CPU limit, in seconds.
    #[serde(default)]
    pub throttled_seconds: f64,
    /// `Ready`: the limits are in force on every selected node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// What a group of processes uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceUsage {
    /// CPU time used since the group exists, in seconds.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// Memory in use, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Processes and threads.
    #[serde(default)]
    pub pids: u64,
}
