//! What several kinds share: node selection, references to Secrets, and the handling of conditions.

use std::collections::BTreeMap;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Which nodes an object concerns, by their labels. Empty selects every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelector {
    /// Labels that the node must have, with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements; all of them must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<NodeSelectorRequirement>,
}

/// One requirement on one label of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
        "values are required for the operators In and NotIn, and forbidden for Exists and DoesNotExist"
    )
)]
pub struct NodeSelectorRequirement {
    /// The label's name.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label is judged: `In` and `NotIn` compare with `values`, `Exists` and `DoesNotExist` ask for presence.
    /// A node without the label fulfils `NotIn`.
    pub operator: SelectorOperator,
    /// The values that `In` and `NotIn` compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
}

/// How a [`NodeSelectorRequirement`] judges a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SelectorOperator {
    /// The label is one of the values.
    In,
    /// The label is none of the values, or absent.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl NodeSelector {
    /// Whether a node with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether every node is selected.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl NodeSelectorRequirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOperator::In => value.is_some_and(|value| self.values.contains(value)),
            SelectorOperator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// A Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The condition types that nodelet writes.
pub mod condition_type {
    /// The object is as its spec asks; on every kind.
    pub const READY: &str = "Ready";
    /// Workload: all init containers have completed.
    pub const INITIALIZED: &str = "Initialized";
    /// Workload: all images are on the node.
    pub const IMAGES_READY: &str = "ImagesReady";
    /// Workload: all volumes are there and mounted.
    pub const VOLUMES_READY: &str = "VolumesReady";
    /// Workload: all networks are there and addresses assigned.
    pub const NETWORKS_READY: &str = "NetworksReady";
    /// Workload: the newest generation is being rolled out (`True`) or has been (`False`).
    pub const PROGRESSING: &str = "Progressing";
    /// Workload: a change of its limits waits for room, or cannot be carried out. Absent while it does not hold.
    pub const RESIZE_PENDING: &str = "ResizePending";
    /// Workload: a change of its limits is not in force yet. Absent while it does not hold.
    pub const RESIZE_IN_PROGRESS: &str = "ResizeInProgress";
    /// Volume: it has its capacity, and cannot hold more.
    pub const CAPACITY_ENFORCED: &str = "CapacityEnforced";
    /// NodeState: memory is short.
    pub const MEMORY_PRESSURE: &str = "MemoryPressure";
    /// NodeState: disk space is short.
    pub const DISK_PRESSURE: &str = "DiskPressure";
    /// NodeState: every archive of the drop-in directory has been imported.
    pub const ARCHIVES_IMPORTED: &str = "ArchivesImported";
    /// NodeState: containerd answers.
    pub const CONTAINERD_READY: &str = "ContainerdReady";
}

/// The three values of a condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// It cannot be told at present.
    Unknown,
}

impl ConditionStatus {
    /// The value as the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionStatus::True => "True",
            ConditionStatus::False => "False",
            ConditionStatus::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { ConditionStatus::True } else { ConditionStatus::False }
    }
}

/// Writes one condition into the list, in place.
///
/// `lastTransitionTime` moves to `now` only if the status changes or the condition is new; a new reason or message
/// keeps it. Order in the list is kept, new conditions go to the end. Setting what is already there changes nothing,
/// so an unchanged status compares equal and need not be written.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: impl Into<ConditionStatus>,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Time,
) {
    let status = status.into().as_str();
    let message = message.into();
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(condition) => {
            if condition.status != status {
                condition.last_transition_time = now;
                status.clone_into(&mut condition.status);
            }
            reason.clone_into(&mut condition.reason);
            condition.message = message;
            condition.observed_generation = generation;
        }
        None => conditions.push(Condition {
            last_transition_time: now,
            message,
            observed_generation: generation,
            reason: reason.to_owned(),
            status: status.to_owned(),
            type_: type_.to_owned(),
        }),
    }
}

/// The condition of this type, if it was ever written.
pub fn find_condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of this type is `True`. Absent and `Unknown` are not.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find_condition(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// The present time, cut to whole seconds as the API stores it.
pub fn now() -> Time {
    let now = k8s_openapi::jiff::Timestamp::now();
    Time(k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The schema of a list of [`Condition`]: the fields of metav1, merged by type.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the object's state.",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "description": "What it is about, in CamelCase.", "maxLength": 316 },
                "status": {
                    "type": "string",
                    "description": "`True`, `False` or `Unknown`.",
                    "enum": ["True", "False", "Unknown"],
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "The generation of the spec that it is about.",
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When the status changed last.",
                },
                "reason": {
                    "type": "string",
                    "description": "Why, as one word for programs.",
                    "minLength": 1,
                    "maxLength": 1024,
                },
                "message": {
                    "type": "string",
                    "description": "Why, as a sentence for people.",
                    "maxLength": 32768,
                },
            },
        },
    })
}

pub(crate) fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests;
