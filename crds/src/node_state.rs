//! NodeState: what one node has and is doing. It has no desired part; its agent is the only writer.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    common::{Condition, Time, conditions_schema},
    network::Subnet,
    quantity::Quantity,
    resource_limit::ResourceUsage,
};

/// One node: cluster-scoped, named as the node.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodelet.dev",
    version = "v1alpha1",
    kind = "NodeState",
    no_spec,
    shortname = "nst",
    category = "nodelet",
    status = "NodeStateStatus",
    derive = "PartialEq",
    doc = "What one node has and is doing, written by its agent alone.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the agent can run Workloads."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not."
    ),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.capacity.cpu", description = "CPUs of the node."),
    printcolumn(
        name = "Memory",
        type_ = "string",
        json_path = ".status.capacity.memory",
        description = "Memory of the node."
    ),
    printcolumn(
        name = "Nodelet",
        type_ = "string",
        json_path = ".status.versions.nodelet",
        description = "Version of the agent."
    ),
    printcolumn(
        name = "Containerd",
        type_ = "string",
        json_path = ".status.versions.containerd",
        priority = 1,
        description = "Version of containerd."
    ),
    printcolumn(
        name = "Kernel",
        type_ = "string",
        json_path = ".status.versions.kernel",
        priority = 1,
        description = "Version of the kernel."
    ),
    printcolumn(
        name = "Cgroups",
        type_ = "string",
        json_path = ".status.cgroupMode",
        priority = 1,
        description = "v1, v2 or hybrid."
    ),
    printcolumn(
        name = "Memory pressure",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"MemoryPressure\")].status",
        priority = 1,
        description = "Whether memory is short."
    ),
    printcolumn(
        name = "Disk pressure",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"DiskPressure\")].status",
        priority = 1,
        description = "Whether disk space is short."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when the object exists."
    )
)]
pub struct NodeStateSpec {}

/// What a node has and is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStateStatus {
    /// What the node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<NodeResources>,
    /// What Workloads may use of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocatable: Option<NodeResources>,
    /// Versions of what runs on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<NodeVersions>,
    /// Which cgroup hierarchy limits are set in: `v1`, `v2`, or `hybrid` (controllers in v1 beside an empty v2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CgroupMode")]
    pub cgroup_mode: Option<CgroupMode>,
    /// How the node is reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type", "address"]))]
    pub addresses: Vec<NodeAddress>,
    /// When the agent started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_start_time: Option<Time>,
    /// The kernel's id of this boot; a new one means that the node was restarted.
    #[serde(rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// `Ready`, `MemoryPressure`, `DiskPressure`, `ContainerdReady`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// This node's part of every Image that selects it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"]))]
    pub images: Vec<NodeImage>,
    /// Images that are on their way to this node, whoever asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["reference"]))]
    pub transfers: Vec<NodeTransfer>,
    /// This node's part of every Network that selects it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"]))]
    pub networks: Vec<NodeNetwork>,
    /// This node's part of every ResourceLimit that selects it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"]))]
    pub resource_limits: Vec<NodeResourceLimit>,
}

/// Amounts of a node's resources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeResources {
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Bytes of the filesystem that holds the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Quantity>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// Versions of what runs on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeVersions {
    /// The agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nodelet: String,
    /// containerd.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub containerd: String,
    /// The OCI runtime, with its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// The kernel's release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// The operating system's name and version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub os_image: String,
    /// The platform, as `os/architecture[/variant]`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
}

/// Which cgroup hierarchy limits are set in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// One hierarchy for each controller.
    V1,
    /// The unified hierarchy.
    V2,
    /// Controllers in v1, beside a v2 hierarchy without any.
    Hybrid,
}

/// One way to reach a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddress {
    /// `Hostname` or `InternalIP`.
    #[serde(rename = "type")]
    pub type_: NodeAddressType,
    /// The name or address.
    pub address: String,
}

/// Kinds of [`NodeAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NodeAddressType {
    /// The node's name.
    Hostname,
    /// An address of one of its links.
    InternalIP,
}

/// Where an image is on its way to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ImagePhase {
    /// Finding out what the reference stands for.
    #[default]
    Resolving,
    /// Fetching content.
    Pulling,
    /// Unpacking layers.
    Unpacking,
    /// On the node.
    Ready,
    /// Failed; tried again.
    Failed,
}

/// One node's part of an Image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeImage {
    /// Namespace of the Image.
    pub namespace: String,
    /// Name of the Image.
    pub name: String,
    /// The generation of the Image that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The full reference.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reference: String,
    /// Digest that the reference resolved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Size of the content for this platform, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Resolving, Pulling, Unpacking, Ready or Failed.
    #[serde(default)]
    pub phase: ImagePhase,
    /// Bytes that are on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Bytes that are needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes that arrive in a second, of late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Seconds that the rest takes at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// When the registry was last asked what the reference stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_at: Option<Time>,
    /// A sentence for people: the cause and the next try, after a failure.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// One image on its way to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTransfer {
    /// The full reference.
    pub reference: String,
    /// Resolving, Pulling or Unpacking.
    #[serde(default)]
    pub phase: ImagePhase,
    /// Bytes that are on the node.
    #[serde(default)]
    pub bytes_done: u64,
    /// Bytes that are needed, once known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes that arrive in a second, of late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Seconds that the rest takes at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// How far one node is with its part of a shared object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PartPhase {
    /// Not done yet.
    #[default]
    Pending,
    /// Done.
    Ready,
    /// Failed; tried again.
    Failed,
}

/// One node's part of a Network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetwork {
    /// Namespace of the Network.
    pub namespace: String,
    /// Name of the Network.
    pub name: String,
    /// The generation of the Network that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending, Ready or Failed.
    #[serde(default)]
    pub phase: PartPhase,
    /// Name of the link on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The subnets in use, the chosen ones included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "subnets_schema")]
    pub subnets: Vec<Subnet>,
    /// Addresses assigned to Workloads.
    #[serde(default)]
    pub endpoints: u32,
    /// A sentence for people: the cause and the next try, after a failure.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The schema of [`Subnet`] without its rules: in a list of a list they would be too costly for an API server, and
/// what an agent reports was checked when it was asked for.
fn subnets_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["cidr"],
        "items": {
            "type": "object",
            "description": "An address range of a network.",
            "required": ["cidr"],
            "properties": {
                "cidr": { "type": "string", "description": "The range as `address/prefix`." },
                "gateway": { "type": "string", "description": "The node's own address in it." },
                "range": { "type": "string", "description": "The part that addresses are assigned from." },
            },
        },
    })
}

/// One node's part of a ResourceLimit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeResourceLimit {
    /// Namespace of the ResourceLimit.
    pub namespace: String,
    /// Name of the ResourceLimit.
    pub name: String,
    /// The generation of the ResourceLimit that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending, Ready or Failed.
    #[serde(default)]
    pub phase: PartPhase,
    /// The group's path below the cgroup filesystem's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Names of the Workloads under it on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub members: Vec<String>,
    /// What they use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<ResourceUsage>,
    /// Processes that the kernel killed for the memory limit.
    #[serde(default)]
    pub oom_kills: u64,
    /// Time that members were held back for the CPU limit, in seconds.
    #[serde(default)]
    pub throttled_seconds: f64,
    /// A sentence for people: the cause and the next try, after a failure.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
