//! Takes up what a workload refers to: the only step before observing that talks to the API.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use nodelet_crds::network::Network;
use nodelet_crds::volume::{AccessMode, Volume};
use nodelet_crds::workload::{ContainerStatus, Workload};
use nodelet_drivers::ids::{CgroupPath, SandboxId};
use nodelet_drivers::runtime::TaskState;

use super::fit::Fit;
use super::follow::{self, Followed};
use super::refs;
use crate::context::{Context, find};
use crate::invalid::Invalid;
use crate::resource_limit;

/// Everything a workload names; `None` where the API has nothing of that name.
#[derive(Debug, Default)]
pub struct References {
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Option<Volume>>,
    /// For each `ReadWriteOnce` Volume: another Workload that has it now.
    pub holders: BTreeMap<String, String>,
    /// Networks by name.
    pub networks: BTreeMap<String, Option<Network>>,
    /// The cgroup of the ResourceLimit, if one is named.
    pub limit: Option<Result<CgroupPath, Invalid>>,
    /// Workloads that this one depends on, by name.
    pub dependencies: BTreeMap<String, Option<Arc<Workload>>>,
    /// A cycle among dependencies that this workload is part of: names, first and last the same.
    pub cycle: Option<Vec<String>>,
    /// Whether the node has room for it.
    pub fit: Fit,
    /// With `networkOf`: the other workload's complete sandbox.
    pub network_of: Option<SandboxId>,
    /// What its images are followed to.
    pub followed: Followed,
}

/// Reads the references of one workload.
pub async fn dereference(ctx: &Context, object: &Workload) -> Result<References, kube::Error> {
    let namespace = object.namespace().unwrap_or_default();
    let mut found = References::default();
    for name in refs::config_maps(object) {
        if !found.config_maps.contains_key(name) {
            found.config_maps.insert(name.to_owned(), find(&ctx.client, &namespace, name).await?);
        }
    }
    for name in refs::secrets(object) {
        if !found.secrets.contains_key(name) {
            found.secrets.insert(name.to_owned(), find(&ctx.client, &namespace, name).await?);
        }
    }
    for name in refs::volumes(object) {
        let volume: Option<Volume> = find(&ctx.client, &namespace, name).await?;
        if volume.as_ref().is_some_and(|v| v.spec.access_mode == AccessMode::ReadWriteOnce)
            && let Some(holder) = holder(ctx, object, name)
        {
            found.holders.insert(name.to_owned(), holder);
        }
        found.volumes.insert(name.to_owned(), volume);
    }
    for name in refs::networks(object) {
        found.networks.insert(name.to_owned(), find(&ctx.client, &namespace, name).await?);
    }
    if let Some(name) = &object.spec.resource_limit {
        found.limit = Some(resource_limit::cgroup_of(ctx, &namespace, name).await?);
    }
    let other = |name: &str| {
        ctx.stores.workloads.find(|w| w.metadata.name.as_deref() == Some(name) && w.namespace() == object.namespace())
    };
    for dependency in &object.spec.depends_on {
        let known = other(&dependency.name).map(|known| present(ctx, known));
        found.dependencies.insert(dependency.name.clone(), known);
    }
    found.cycle = cycle(object, other);
    if let Some(target) = object.spec.network_of.as_deref().and_then(other) {
        found.network_of = complete_sandbox(ctx, &target).await;
    }
    found.followed = follow::followed(ctx, object).await;
    Ok(found)
}

/// The workload, without its status if that tells of containers that do not run here: after a boot it does so until
/// their workload's first pass.
fn present(ctx: &Context, known: Arc<Workload>) -> Arc<Workload> {
    let elsewhere = known.spec.node_name.as_deref().is_some_and(|node| node != ctx.settings.node_name);
    let live = ctx.containers.of_workload(&known.uid().unwrap_or_default()).unwrap_or_default();
    let runs = |status: &ContainerStatus| {
        let is_live = |state: &TaskState| matches!(state, TaskState::Running { .. } | TaskState::Paused { .. });
        live.iter().any(|c| c.id.as_str() == status.container_id && is_live(&c.state))
    };
    let status = known.status.iter().flat_map(|status| &status.container_statuses);
    let is_true = status.filter(|status| status.state.running.is_some()).all(runs);
    if elsewhere || is_true { known } else { Arc::new(Workload { status: None, ..Workload::clone(&known) }) }
}

/// Another workload that has the volume: one that has a sandbox, or that was there first and does not wait for us.
fn holder(ctx: &Context, object: &Workload, volume: &str) -> Option<String> {
    let has_sandbox =
        |w: &Workload| !ctx.sandboxes.of_workload(w.metadata.uid.as_deref().unwrap_or_default()).is_empty();
    if has_sandbox(object) {
        return None;
    }
    let name = object.name_any();
    let named = |name: &str| {
        let namespace = object.namespace();
        ctx.stores.workloads.find(|w| w.metadata.name.as_deref() == Some(name) && w.namespace() == namespace)
    };
    let waits_for_us = |w: &Workload| dependency_path(w, &name, named).is_some();
    let age = |w: &Workload| (w.metadata.creation_timestamp.as_ref().map(|t| t.0), w.metadata.uid.clone());
    let mut others: Vec<Arc<Workload>> = ctx
        .stores
        .workloads
        .state()
        .into_iter()
        .filter(|w| w.namespace() == object.namespace() && w.metadata.uid != object.metadata.uid)
        .filter(|w| refs::volumes(w).any(|name| name == volume))
        .filter(|w| {
            let wants = !w.spec.stopped && w.metadata.deletion_timestamp.is_none();
            has_sandbox(w) || (wants && age(w) < age(object) && !waits_for_us(w))
        })
        .collect();
    others.sort_by_key(|w| (!has_sandbox(w), age(w)));
    others.first().map(|w| w.name_any())
}

/// The cycle of dependencies through `start`, if there is one.
fn cycle(start: &Workload, other: impl Fn(&str) -> Option<Arc<Workload>>) -> Option<Vec<String>> {
    dependency_path(start, &start.name_any(), other)
}

/// How `start` comes to depend on `target`: names, from the one to the other.
fn dependency_path(
    start: &Workload,
    target: &str,
    other: impl Fn(&str) -> Option<Arc<Workload>>,
) -> Option<Vec<String>> {
    // Depth first; each name is entered once, so this ends whatever the graph looks like.
    let mut entered = std::collections::BTreeSet::new();
    let mut stack: Vec<(String, Vec<String>)> =
        start.spec.depends_on.iter().map(|d| (d.name.clone(), vec![start.name_any()])).collect();
    while let Some((name, mut path)) = stack.pop() {
        path.push(name.clone());
        if name == target {
            return Some(path);
        }
        if !entered.insert(name.clone()) {
            continue;
        }
        for next in other(&name).iter().flat_map(|w| &w.spec.depends_on) {
            stack.push((next.name.clone(), path.clone()));
        }
    }
    None
}

async fn complete_sandbox(ctx: &Context, target: &Workload) -> Option<SandboxId> {
    for id in ctx.sandboxes.of_workload(target.metadata.uid.as_deref().unwrap_or_default()) {
        if let Ok(Some(sandbox)) = ctx.drivers.sandboxes.get(&id).await
            && sandbox.complete
        {
            return Some(id);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, depends_on: &[&str]) -> Arc<Workload> {
        let depends_on: Vec<_> = depends_on.iter().map(|n| serde_json::json!({"name": n})).collect();
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name},
                "spec": {"containers": [], "dependsOn": depends_on},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn cycles_are_named() {
        let all = [
            workload("a", &["b", "d"]),
            workload("b", &["c"]),
            workload("c", &["a"]),
            workload("d", &[]),
            workload("e", &["f"]),
            workload("f", &["f"]),
        ];
        let other = |name: &str| all.iter().find(|w| w.name_any() == name).cloned();
        assert_eq!(cycle(&all[0], other).unwrap(), ["a", "b", "c", "a"]);
        assert_eq!(cycle(&all[3], other), None);
        // A cycle elsewhere is not this workload's.
        assert_eq!(cycle(&all[4], other), None);
        assert_eq!(cycle(&all[5], other).unwrap(), ["f", "f"]);
        assert_eq!(dependency_path(&all[0], "c", other).unwrap(), ["a", "b", "c"]);
        assert_eq!(dependency_path(&all[3], "c", other), None);
    }
}
