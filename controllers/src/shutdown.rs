//! Stops all workloads because the system goes down: those that others depend on last, within a given time.
//!
//! The reconcilers have been stopped before, so that nothing is started again; that is left to the next boot. Statuses
//! stay as they are: this is neither a restart nor a failure. Hooks and grace periods count as far as the time
//! allows: it is divided evenly among the levels of dependencies that still have to follow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use kube::{Api, Client, ResourceExt};
use nodelet_crds::labels;
use nodelet_crds::workload::Workload;
use nodelet_drivers::ids::ContainerId;
use nodelet_drivers::runtime::{Container, ExecSpec, Runtime, TaskState};
use tokio::time::Instant;

use crate::context::chain;

/// How often it is looked whether what was asked to stop has ended; its events have nobody to read them any more.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a container without a known workload gets.
const GRACE: Duration = Duration::from_secs(10);

/// Stops everything that runs and answers how many containers that were. Failures are logged: the system goes down
/// whatever comes of it.
pub async fn stop_all(client: &Client, runtime: &dyn Runtime, within: Duration) -> usize {
    let deadline = Instant::now() + within;
    let workloads = match Api::<Workload>::all(client.clone()).list(&Default::default()).await {
        Ok(list) => list.items,
        Err(error) => {
            tracing::warn!("reading the workloads, which are stopped in no order: {}", chain(&error));
            Vec::new()
        }
    };
    let running: Vec<Container> = match runtime.list().await {
        Ok(all) => all.into_iter().filter(|container| matches!(container.state, TaskState::Running { .. })).collect(),
        Err(error) => {
            tracing::warn!("workloads cannot be stopped: {}", chain(&error));
            return 0;
        }
    };
    let by_uid: BTreeMap<String, &Workload> =
        workloads.iter().filter_map(|workload| Some((workload.uid()?, workload))).collect();
    let levels = levels(&workloads);
    let last = levels.values().copied().max().unwrap_or_default();
    for level in 0..=last {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(last - level + 1).unwrap_or(1);
        let members = running.iter().filter_map(|container| {
            let workload = container.labels.get(labels::WORKLOAD_UID).and_then(|uid| by_uid.get(uid)).copied();
            // What nobody knows goes first.
            let its = workload.and_then(|workload| levels.get(&key(workload)).copied()).unwrap_or_default();
            (its == level).then_some((container, workload))
        });
        join_all(members.map(|(container, workload)| stop(runtime, container, workload, share))).await;
    }
    running.len()
}

/// Stops one, however long its grace period, within `share`.
async fn stop(runtime: &dyn Runtime, container: &Container, workload: Option<&Workload>, share: Duration) {
    let grace = workload.map_or(GRACE, |w| Duration::from_secs(u64::from(w.spec.termination_grace_period_seconds)));
    let deadline = Instant::now() + grace.min(share);
    let id = &container.id;
    let asked = async {
        let name = container.labels.get(labels::CONTAINER);
        let spec = workload.and_then(|w| w.spec.containers.iter().find(|c| Some(&c.name) == name));
        let hook = spec.and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref()?.exec.as_ref());
        if let Some(hook) = hook {
            let spec = ExecSpec { command: hook.command.clone(), timeout: Some(grace.min(share)) };
            if let Err(error) = runtime.exec(id, &spec).await {
                tracing::warn!(container = %id, error = %chain(&error), "preStop hook failed");
            }
        }
        let signal = runtime.stop_signal(id).await?;
        runtime.kill(id, &signal, false).await?;
        until_ended(runtime, id).await
    };
    match tokio::time::timeout_at(deadline, asked).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(container = %id, error = %chain(&error), "stopping"),
        Err(_elapsed) => tracing::info!(container = %id, "killed: it did not end within its time"),
    }
    // Whatever is left of it is killed. How it ended is forgotten: it did not end by itself, so the next boot begins
    // anew, also what runs only until it has ended.
    if let Err(error) = runtime.remove(id).await {
        tracing::warn!(container = %id, error = %chain(&error), "removing what was stopped");
    }
}

async fn until_ended(runtime: &dyn Runtime, id: &ContainerId) -> Result<(), nodelet_drivers::runtime::Error> {
    while runtime.get(id).await?.is_some_and(|container| matches!(container.state, TaskState::Running { .. })) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn key(workload: &Workload) -> (String, String) {
    (workload.namespace().unwrap_or_default(), workload.name_any())
}

/// When each workload's turn is: one that others depend on comes after all of those. A cycle ends somewhere.
fn levels(workloads: &[Workload]) -> BTreeMap<(String, String), usize> {
    let mut levels: BTreeMap<_, usize> = workloads.iter().map(|workload| (key(workload), 0)).collect();
    // No chain is longer than there are workloads.
    for _ in 0..workloads.len() {
        let mut changed = BTreeSet::new();
        for workload in workloads {
            let own = levels.get(&key(workload)).copied().unwrap_or_default();
            for dependency in &workload.spec.depends_on {
                let other = (workload.namespace().unwrap_or_default(), dependency.name.clone());
                if let Some(level) = levels.get_mut(&other).filter(|level| **level <= own && own < workloads.len()) {
                    *level = own + 1;
                    changed.insert(other);
                }
            }
        }
        if changed.is_empty() {
            break;
        }
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, needs: &[&str]) -> Workload {
        let depends_on: Vec<_> = needs.iter().map(|name| serde_json::json!({"name": name})).collect();
        serde_json::from_value(serde_json::json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name, "namespace": "default"},
            "spec": {"dependsOn": depends_on, "containers": [{"name": "main", "image": "x"}]}
        }))
        .unwrap()
    }

    fn levels_of(workloads: &[Workload]) -> Vec<(String, usize)> {
        levels(workloads).into_iter().map(|((_, name), level)| (name, level)).collect()
    }

    #[test]
    fn what_others_need_goes_last() {
        let all = [
            workload("db", &[]),
            workload("front", &["api"]),
            workload("api", &["db", "queue"]),
            workload("queue", &["db"]),
            workload("alone", &["absent"]),
        ];
        let levels = levels_of(&all);
        let expected = [("alone", 0), ("api", 1), ("db", 3), ("front", 0), ("queue", 2)];
        assert_eq!(levels, expected.map(|(name, level)| (name.to_owned(), level)));
    }

    #[test]
    fn a_cycle_ends() {
        assert_eq!(levels_of(&[workload("a", &["b"]), workload("b", &["a"])]).len(), 2);
    }
}
