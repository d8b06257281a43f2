//! Stops all workloads because the system goes down: those that others depend on last, within a given time.
//!
//! The reconcilers have been stopped before, so that nothing is started again; that is left to the next boot. Statuses
//! stay as they are: this is neither a restart nor a failure. Hooks and grace periods count as far as the time
//! allows: it is divided evenly among the levels of dependencies that still have to follow.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use kube::{Api, Client, ResourceExt};
use nodelet_crds::labels;
use nodelet_crds::workload::Workload;
use nodelet_drivers::ids::{ContainerId, SandboxId};
use nodelet_drivers::runtime::{Container, Runtime, TaskState};
use tokio::time::Instant;

use crate::context::{Drivers, chain};
use crate::workload::{desired, hooks};

/// How often it is looked whether what was asked to stop has ended; its events have nobody to read them any more.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a container without a known workload gets.
const GRACE: Duration = Duration::from_secs(10);

/// Stops everything that runs and answers how many containers that were. Failures are logged: the system goes down
/// whatever comes of it.
pub async fn stop_all(client: &Client, drivers: &Drivers, within: Duration) -> usize {
    let deadline = Instant::now() + within;
    let workloads = match Api::<Workload>::all(client.clone()).list(&Default::default()).await {
        Ok(list) => list.items,
        Err(error) => {
            tracing::warn!("reading the workloads, which are stopped in no order: {}", chain(&error));
            Vec::new()
        }
    };
    let running: Vec<Container> = match drivers.runtime.list().await {
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
        let mut members: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
        for container in &running {
            let uid = container.labels.get(labels::WORKLOAD_UID).map_or("", String::as_str);
            // What nobody knows goes first.
            let its = by_uid.get(uid).and_then(|workload| levels.get(&key(workload)).copied()).unwrap_or_default();
            if its == level {
                members.entry(uid).or_default().push(container);
            }
        }
        let stopping = members.into_iter().map(|(uid, all)| stop(drivers, all, by_uid.get(uid).copied(), share));
        join_all(stopping).await;
    }
    running.len()
}

/// Stops the containers of one workload within `share`, its sidecars after the others, the last one first.
async fn stop(drivers: &Drivers, all: Vec<&Container>, workload: Option<&Workload>, share: Duration) {
    let mut turns: BTreeMap<Reverse<u32>, Vec<&Container>> = BTreeMap::new();
    for container in all {
        let sidecar = container.labels.get(labels::SIDECAR).and_then(|place| place.parse().ok());
        turns.entry(Reverse(sidecar.unwrap_or(u32::MAX))).or_default().push(container);
    }
    let deadline = Instant::now() + share;
    let mut rest = u32::try_from(turns.len()).unwrap_or(1);
    for (_, turn) in turns {
        let share = deadline.saturating_duration_since(Instant::now()) / rest.max(1);
        join_all(turn.into_iter().map(|container| stop_one(drivers, container, workload, share))).await;
        rest -= 1;
    }
}

/// Stops one, however long its grace period, within `share`.
async fn stop_one(drivers: &Drivers, container: &Container, workload: Option<&Workload>, share: Duration) {
    let grace = workload.map_or(GRACE, |w| Duration::from_secs(u64::from(w.spec.termination_grace_period_seconds)));
    let within = grace.min(share);
    let deadline = Instant::now() + within;
    let (id, runtime) = (&container.id, &*drivers.runtime);
    let asked = async {
        if let Err(why) = run_hook(drivers, container, workload, within).await {
            tracing::warn!(container = %id, why, "preStop hook failed");
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

/// The hook that the workload has for this container, of whichever kind; what the container itself remembers of one
/// serves where the workload is not known or names it no more.
async fn run_hook(
    drivers: &Drivers,
    container: &Container,
    workload: Option<&Workload>,
    within: Duration,
) -> Result<(), String> {
    let name = container.labels.get(labels::CONTAINER);
    let declared = workload.and_then(|w| {
        let mut all = w.spec.containers.iter().chain(&w.spec.init_containers);
        all.find(|declared| Some(&declared.name) == name)
    });
    let hook = match declared {
        Some(declared) => declared.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone()),
        None => container.labels.get(labels::PRE_STOP).and_then(|text| serde_json::from_str(text).ok()),
    };
    let sandbox = container.labels.get(labels::SANDBOX).and_then(|id| SandboxId::new(id.clone()).ok());
    let (Some(hook), Some(sandbox)) = (hook, sandbox) else { return Ok(()) };
    let ports = declared.map(desired::named_ports).unwrap_or_default();
    let target = hooks::target(drivers, &container.id, &sandbox, &ports).await;
    hooks::run(drivers, &target, &hook, within).await
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
