//! Clears away what belongs to no Workload any more: the store was restored from an older backup, or an object was
//! removed by force while the agent was away.
//!
//! Acts only after the API's Workloads and ResourceLimits and the node's containers have been read in full, and only on
//! things whose Workload the API denies when asked once more. If not a single Workload is known although the node is full
//! of them, the store is suspected, not the node: nothing is removed, and it is said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::{Api, ResourceExt};
use nodelet_crds::labels;
use nodelet_crds::workload::Workload;
use nodelet_drivers::ids::SandboxId;
use nodelet_drivers::runtime::Container;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, chain};
use crate::names;

/// Looks after the start and at every audit, until `stop`.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let read = async { ctx.stores.workloads_read.wait().await && ctx.stores.resource_limits_read.wait().await };
    tokio::select! {
        // Cancel-safe: we are leaving.
        read = read => if !read { return },
        () = stop.cancelled() => return,
    }
    let mut tick = tokio::time::interval(ctx.settings.audit);
    // Containers are read soon after the start; until then there is nothing to conclude.
    let mut soon = tokio::time::interval(std::time::Duration::from_secs(5));
    let mut done_once = false;
    loop {
        tokio::select! {
            // Cancel-safe: all only wait.
            _ = tick.tick() => {}
            _ = soon.tick(), if !done_once => {}
            () = stop.cancelled() => return,
        }
        if ctx.containers.all().is_none() {
            continue;
        }
        done_once = true;
        if let Err(error) = clear(&ctx).await {
            tracing::warn!("looking for leftovers: {}", chain(&error));
        }
    }
}

async fn clear(ctx: &Context) -> Result<(), kube::Error> {
    let Some(containers) = ctx.containers.all() else { return Ok(()) };
    let owned = by_owner(containers, ctx.sandboxes.owners());
    let recorded = ctx.histories.recorded().await;
    let forsaken = forsaken(ctx).await;
    if owned.is_empty() && recorded.is_empty() && forsaken.is_empty() {
        return Ok(());
    }
    // Asked anew: the watch may lag behind a Workload made this instant.
    let workloads = Api::<Workload>::all(ctx.client.clone()).list(&Default::default()).await?.items;
    let known: BTreeSet<String> = workloads.iter().filter_map(|w| w.metadata.uid.clone()).collect();
    if !known.is_empty() {
        for id in forsaken.iter().filter(|id| !may_be_wanted(ctx, id, &workloads)) {
            tracing::info!(sandbox = %id, "removing the directories of a sandbox that nobody wants any more");
            if let Err(error) = super::apply::teardown(ctx, id).await {
                tracing::warn!(sandbox = %id, "removing: {}", chain(&error));
            }
        }
    }
    let orphans: Vec<_> = owned.into_iter().filter(|(uid, _)| !known.contains(uid)).collect();
    if orphans.is_empty() {
        if !known.is_empty() {
            forget(ctx, recorded, &known).await;
        }
        return Ok(());
    }
    if known.is_empty() {
        let names: Vec<String> = orphans.iter().flat_map(|(_, c)| c).map(|c| c.id.to_string()).collect();
        tracing::warn!(
            containers = ?names,
            "the node runs containers of nodelet but the API knows no Workload at all; they are left alone. \
             Restore the store, or create any Workload to have them removed"
        );
        return Ok(());
    }
    for (uid, containers) in orphans {
        remove(ctx, &uid, containers).await;
    }
    forget(ctx, recorded, &known).await;
    Ok(())
}

/// Sandboxes with directories or mounts that have neither a record nor a container: a boot took their records, and
/// their workloads went while nobody looked, or another revision was wanted by then.
async fn forsaken(ctx: &Context) -> Vec<SandboxId> {
    let mut found = match ctx.drivers.volumes.list_ephemeral().await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!("looking for directories of sandboxes: {}", chain(&error));
            return Vec::new();
        }
    };
    // After them: a sandbox is in the index before it has any directory.
    let containers = ctx.containers.all().unwrap_or_default();
    let used: BTreeSet<&str> =
        containers.iter().filter_map(|c| c.labels.get(labels::SANDBOX)).map(String::as_str).collect();
    found.retain(|id| ctx.sandboxes.owner(id).is_none() && !used.contains(id.as_str()));
    found
}

/// A Workload of such a name is still to get its sandbox: after a boot it may be this one, with what it holds.
fn may_be_wanted(ctx: &Context, id: &SandboxId, workloads: &[Workload]) -> bool {
    let is_waiting = |w: &Workload| ctx.sandboxes.of_workload(w.metadata.uid.as_deref().unwrap_or_default()).is_empty();
    workloads.iter().any(|w| names::is_sandbox_of(id, &w.name_any()) && is_waiting(w))
}

/// Removes the records of revisions of Workloads that are gone.
async fn forget(ctx: &Context, recorded: Vec<String>, known: &BTreeSet<String>) {
    for uid in recorded.into_iter().filter(|uid| !known.contains(uid)) {
        if let Err(error) = ctx.histories.remove(&uid).await {
            tracing::warn!(uid, "removing a record of revisions: {error}");
        }
    }
}

fn by_owner(containers: Vec<Container>, sandbox_owners: Vec<String>) -> BTreeMap<String, Vec<Container>> {
    let mut owned: BTreeMap<String, Vec<Container>> = sandbox_owners.into_iter().map(|uid| (uid, Vec::new())).collect();
    for container in containers {
        if let Some(uid) = container.labels.get(labels::WORKLOAD_UID).cloned() {
            owned.entry(uid).or_default().push(container);
        }
    }
    owned
}

async fn remove(ctx: &Context, uid: &str, containers: Vec<Container>) {
    let mut sandboxes = ctx.sandboxes.of_workload(uid);
    for container in &containers {
        tracing::info!(container = %container.id, "removing a container whose Workload is gone");
        if let Err(error) = ctx.drivers.runtime.remove(&container.id).await {
            tracing::warn!(container = %container.id, "removing: {}", chain(&error));
            return;
        }
        let _ = ctx.containers.refresh(&container.id).await;
        sandboxes.extend(container.labels.get(labels::SANDBOX).and_then(|id| SandboxId::new(id.clone()).ok()));
    }
    for id in sandboxes {
        if let Err(error) = super::apply::teardown(ctx, &id).await {
            tracing::warn!(sandbox = %id, "removing: {}", chain(&error));
        }
    }
}
