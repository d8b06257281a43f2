//! The v1 Node of this node, for `kubectl get nodes` and tools that expect one. It repeats what NodeState says.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use nodelet_crds::node_state::{NodeAddressType, NodeResources, NodeStateStatus};

use crate::context::{Context, FIELD_MANAGER};

/// Makes the Node what NodeState says, if it is not.
pub async fn publish(ctx: &Context, state: &NodeStateStatus) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let name = &ctx.settings.node_name;
    let existing = match api.get_opt(name).await? {
        Some(node) => node,
        None => api.create(&PostParams::default(), &object(name, &ctx.settings.node_labels)).await?,
    };
    let status = status(state, existing.status.as_ref());
    if existing.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = serde_json::json!({ "status": status });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    api.patch_status(name, &params, &Patch::Merge(&patch)).await.map(|_| ())
}

fn object(name: &str, labels: &BTreeMap<String, String>) -> Node {
    let mut all = labels.clone();
    let architecture = architecture();
    let own = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture.as_str()),
    ];
    for (key, value) in own {
        all.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(all), ..Default::default() };
    Node { metadata, ..Default::default() }
}

fn status(state: &NodeStateStatus, before: Option<&NodeStatus>) -> NodeStatus {
    let versions = state.versions.clone().unwrap_or_default();
    let conditions = state.conditions.iter().map(|condition| NodeCondition {
        type_: condition.type_.clone(),
        status: condition.status.clone(),
        reason: Some(condition.reason.clone()),
        message: Some(condition.message.clone()),
        last_transition_time: Some(Time(condition.last_transition_time.0)),
        // A heartbeat would be a write every few seconds on a node's flash; the agent's life shows in its metrics.
        last_heartbeat_time: None,
    });
    // The type is the key of this list: the first of each. NodeState has them all.
    let mut addresses: Vec<NodeAddress> = Vec::new();
    for address in &state.addresses {
        let type_ = match address.type_ {
            NodeAddressType::Hostname => "Hostname",
            NodeAddressType::InternalIP => "InternalIP",
        };
        if !addresses.iter().any(|known| known.type_ == type_) {
            addresses.push(NodeAddress { address: address.address.clone(), type_: type_.to_owned() });
        }
    }
    NodeStatus {
        capacity: resources(state.capacity.as_ref()),
        allocatable: resources(state.allocatable.as_ref()),
        conditions: Some(conditions.collect()),
        addresses: Some(addresses),
        node_info: Some(NodeSystemInfo {
            boot_id: state.boot_id.clone().unwrap_or_default(),
            container_runtime_version: format!("containerd://{}", versions.containerd),
            kernel_version: versions.kernel,
            kubelet_version: format!("nodelet {}", versions.nodelet),
            operating_system: "linux".to_owned(),
            architecture: architecture(),
            os_image: versions.os_image,
            ..Default::default()
        }),
        ..before.cloned().unwrap_or_default()
    }
}

fn resources(of: Option<&NodeResources>) -> Option<BTreeMap<String, Quantity>> {
    let of = of?;
    let quantity = |q: &Option<nodelet_crds::quantity::Quantity>| q.as_ref().map(|q| Quantity(q.to_string()));
    let all = [
        ("cpu", quantity(&of.cpu)),
        ("memory", quantity(&of.memory)),
        ("ephemeral-storage", quantity(&of.ephemeral_storage)),
    ];
    Some(all.into_iter().filter_map(|(name, q)| Some((name.to_owned(), q?))).collect())
}

/// In the words of OCI and Kubernetes: `amd64`, `arm64`.
fn architecture() -> String {
    nodelet_drivers::images::platform::Platform::node().architecture
}
