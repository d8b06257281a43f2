//! Image: the wish to have an image on nodes before anything runs it, and how to get it there.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Condition, NodeSelector, SecretReference, conditions_schema};

/// An image that shall be on the selected nodes.
///
/// Workloads pull what they name without one; an Image fetches ahead, keeps current, pins, or loads from an archive.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "nodelet.dev",
    version = "v1alpha1",
    kind = "Image",
    namespaced,
    shortname = "img",
    category = "nodelet",
    status = "ImageStatus",
    derive = "PartialEq",
    doc = "An image that shall be on the selected nodes, whether or not something runs it.",
    printcolumn(name = "Reference", type_ = "string", json_path = ".spec.reference", description = "What to have."),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether every selected node has it."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not."
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.readyNodes",
        description = "Nodes that have it."
    ),
    printcolumn(
        name = "Failed",
        type_ = "integer",
        json_path = ".status.failedNodes",
        priority = 1,
        description = "Nodes that failed to get it."
    ),
    printcolumn(
        name = "Digest",
        type_ = "string",
        json_path = ".status.digest",
        priority = 1,
        description = "What the reference resolved to."
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
        "!has(self.archive) || !has(self.pullSecrets) || size(self.pullSecrets) == 0",
        "an image from an archive needs no pullSecrets: remove archive or pullSecrets"
    ),
    validation = (
        "!has(self.archive) || !has(self.refreshSeconds) || self.refreshSeconds == 0",
        "an image from an archive is not refreshed from a registry: remove archive or refreshSeconds"
    ),
    validation = (
        "!has(self.refreshSeconds) || self.refreshSeconds == 0 || !self.reference.contains('@')",
        "a reference by digest never changes: remove refreshSeconds or refer to a tag"
    ),
    validation = (
        "!has(self.refreshSeconds) || self.refreshSeconds == 0 || self.pullPolicy != 'Never'",
        "pullPolicy Never and refreshSeconds contradict each other"
    )
)]
pub struct ImageSpec {
    /// The image: `[registry/]name[:tag][@sha256:…]`. `docker.io`, `library/` and `:latest` are implied as usual.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\s]+$"))]
    pub reference: String,
    /// Take the image from here instead of a registry. It is then known on the node by `reference`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveSource>,
    /// When to ask the registry: `Always`, only if the node lacks it (`IfNotPresent`), `Never`, or `Newer`: ask, but
    /// keep what is there if the registry does not answer.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Resolve the tag anew this often, in seconds; 0 is never.
    #[serde(default)]
    pub refresh_seconds: u32,
    /// Secrets of type `kubernetes.io/dockerconfigjson` with credentials for the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub pull_secrets: Vec<SecretReference>,
    /// Platform to choose from a multi-platform image, as `os/architecture[/variant]`. Default: the node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$"))]
    pub platform: Option<String>,
    /// Require a signature before anything of the image is unpacked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// Never collect the image, even if nothing uses it.
    #[serde(default)]
    pub pin: bool,
    /// Pulls of higher priority start first.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Upper bound of this pull's download rate on each node, in bytes per second; 0 is unbounded.
    #[serde(default)]
    pub max_bytes_per_second: u64,
    /// The nodes that shall have the image. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
}

/// An image on the node's own disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveSource {
    /// Absolute path of an OCI or docker archive (a tar file, also compressed), or of an OCI layout directory.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub path: String,
}

/// How an image must be signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verify {
    /// The key that the cosign signature must be made with.
    pub public_key: PublicKey,
}

/// Where a public key is found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublicKey {
    /// Secret of the namespace whose key `cosign.pub` holds the PEM.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// When the registry is asked for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// At every start; fails if the registry does.
    Always,
    /// Only if the node lacks the image.
    #[default]
    IfNotPresent,
    /// Not at all; fails if the node lacks the image.
    Never,
    /// At every start, but what is there serves if the registry does not answer.
    Newer,
}

/// What became of an [`Image`] on all nodes together. Each node's part is in its NodeState.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes that the selector matches.
    #[serde(default)]
    pub desired_nodes: u32,
    /// Nodes that have the image.
    #[serde(default)]
    pub ready_nodes: u32,
    /// Nodes that failed to get the image and try again.
    #[serde(default)]
    pub failed_nodes: u32,
    /// The digest that the reference resolved to last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// `Ready`: every selected node has the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
