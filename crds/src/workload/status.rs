//! What became of a Workload.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::container::ResourceAmounts;
use crate::common::{Condition, Time, conditions_schema};
use crate::quantity::Quantity;

/// What became of a Workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending, Running, Succeeded, Failed or Stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WorkloadPhase")]
    pub phase: Option<WorkloadPhase>,
    /// The node it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// `Ready`, `Initialized`, `ImagesReady`, `VolumesReady`, `NetworksReady`, `Progressing`; `ResizePending` and
    /// `ResizeInProgress` while limits are not in force as declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Its addresses, in the order of `spec.networks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["network", "ip"]))]
    pub addresses: Vec<WorkloadAddress>,
    /// When its containers were first started, for this generation of its sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// How many of its containers are ready, of how many, as `1/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_containers: Option<String>,
    /// Restarts of all its containers together.
    #[serde(default)]
    pub restarts: u32,
    /// The number of the revision that runs and was good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u32>,
    /// Revisions that were good and can be gone back to, the youngest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
    pub revisions: Vec<RevisionStatus>,
    /// Its init containers, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Its containers, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub container_statuses: Vec<ContainerStatus>,
}

impl WorkloadStatus {
    /// Fills what is only a sum of the containers' statuses: `readyContainers` and `restarts`.
    pub fn summarize(&mut self) {
        let ready = self.container_statuses.iter().filter(|container| container.ready).count();
        self.ready_containers = Some(format!("{ready}/{}", self.container_statuses.len()));
        let all = self.init_container_statuses.iter().chain(&self.container_statuses);
        self.restarts = all.fold(0, |sum, container| sum.saturating_add(container.restart_count));
    }
}

/// A revision that was good.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// Its number, counted from 1.
    pub number: u32,
    /// `metadata.generation` that it was made from.
    pub generation: i64,
    /// The images of its containers, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub images: Vec<String>,
    /// When it was found good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<Time>,
}

/// Where a Workload is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadPhase {
    /// Not all containers were started yet.
    #[default]
    Pending,
    /// All containers were started, and at least one runs or is about to again.
    Running,
    /// All containers ended well and stay so.
    Succeeded,
    /// All containers ended, at least one of them badly, and stay so.
    Failed,
    /// Held by `spec.stopped`.
    Stopped,
}

impl WorkloadPhase {
    /// The phase as the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkloadPhase::Pending => "Pending",
            WorkloadPhase::Running => "Running",
            WorkloadPhase::Succeeded => "Succeeded",
            WorkloadPhase::Failed => "Failed",
            WorkloadPhase::Stopped => "Stopped",
        }
    }
}

/// One address of a Workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadAddress {
    /// Name of the Network.
    pub network: String,
    /// The address.
    pub ip: String,
}

/// What became of one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// What it does now. Exactly one of its fields.
    #[serde(default, skip_serializing_if = "ContainerState::is_unknown")]
    pub state: ContainerState,
    /// How it ended before it was started again.
    #[serde(default, skip_serializing_if = "ContainerState::is_unknown")]
    pub last_state: ContainerState,
    /// Whether it can serve: it runs, has come up, and its readiness probe succeeds. For an init container: it ended
    /// well.
    #[serde(default)]
    pub ready: bool,
    /// Whether it runs and has come up: its startup probe, if any, succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<bool>,
    /// How often it was started again.
    #[serde(default)]
    pub restart_count: u32,
    /// The image, as the spec names it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The image's digest.
    #[serde(rename = "imageID", default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// The container's id, as `containerd://<id>`.
    #[serde(rename = "containerID", default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// What the node sets aside for it: its requests, or those before a change that waits for room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_resources: Option<ResourceAmounts>,
    /// The limits that are in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesInForce>,
}

/// What a container may use now. Limits of block devices are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesInForce {
    /// Its share of CPU, as the request that it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,
    /// What it cannot pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
    /// How many processes and threads it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// The CPUs that may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Time of its real-time processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime: Option<RealtimeInForce>,
    /// Memory above which it is slowed down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<Quantity>,
    /// Swap that it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_max: Option<Quantity>,
}

/// Time of the real-time processes of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeInForce {
    /// How much of each period they may run, in microseconds.
    #[serde(default)]
    pub runtime_microseconds: u64,
    /// Length of a period, in microseconds.
    #[serde(default)]
    pub period_microseconds: u64,
}

/// What a container does. At most one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// It does not run yet, or not again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<StateWaiting>,
    /// It runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<StateRunning>,
    /// It ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminated: Option<StateTerminated>,
}

impl ContainerState {
    /// It does not run yet, or not again.
    pub fn waiting(reason: impl Into<String>, message: impl Into<String>) -> Self {
        let waiting = StateWaiting { reason: reason.into(), message: message.into() };
        ContainerState { waiting: Some(waiting), ..Default::default() }
    }

    /// It runs since then.
    pub fn running(started_at: Option<Time>) -> Self {
        ContainerState { running: Some(StateRunning { started_at }), ..Default::default() }
    }

    /// It ended like that.
    pub fn terminated(end: StateTerminated) -> Self {
        ContainerState { terminated: Some(end), ..Default::default() }
    }

    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        *self == ContainerState::default()
    }
}

/// A container that does not run yet, or not again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateWaiting {
    /// Why, as one word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, as a sentence, with the cause and the next try.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateRunning {
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
}

/// A container that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateTerminated {
    /// Exit code of its first process; 128 plus the signal's number if a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why, as one word: `Completed`, `Error`, `OOMKilled`, `Unhealthy`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, as a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// The container's id, as `containerd://<id>`.
    #[serde(rename = "containerID", default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
}
