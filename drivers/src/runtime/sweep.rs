//! What crashes leave behind and no record names.

use std::collections::BTreeSet;
use std::sync::Arc;

use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::snapshots::ListSnapshotsRequest;

use super::containerd::Shared;
use super::create::SNAPSHOT_LABEL;
use super::{Error, exec, list, orphans, reaper, remove, stdin};
use crate::ids::ContainerId;

/// See [`super::Runtime::sweep`].
pub(super) async fn sweep(owned: Arc<Shared>) -> Result<Vec<String>, Error> {
    let shared = &*owned;
    let containerd = &shared.containerd;
    // Before the records, so that the input of a container made meanwhile is not taken for one without.
    let inputs = stdin::list(&shared.options.run_dir);
    let request = containerd.request(ListContainersRequest::default());
    let records = containerd.containers().list(request).await;
    let records = records.map_err(|status| containerd.error("listing containers", status))?.into_inner().containers;
    let records: BTreeSet<String> = records.into_iter().map(|record| record.id).collect();
    let mut freed = Vec::new();
    for id in list::tasks(shared).await?.into_keys().filter(|id| !records.contains(id)) {
        let Ok(id) = ContainerId::new(id) else { continue };
        remove::remove(shared, &id).await?;
        freed.push(format!("task {id}, which had no container record"));
    }
    for id in snapshots(shared).await?.into_iter().filter(|id| !records.contains(id.as_str())) {
        remove::remove_snapshot(shared, &id).await?;
        freed.push(format!("snapshot {id}, which had no container record"));
    }
    for id in inputs.into_iter().filter(|id| !records.contains(id.as_str())) {
        stdin::remove(&shared.options.run_dir, &id);
        freed.push(format!("input of container {id}, which had no record"));
    }
    freed.extend(reaper::sweep(shared).await?);
    freed.extend(exec::clear_leftovers(owned.clone()).await);
    freed.extend(orphans::end_at_once(shared).await);
    Ok(freed)
}

/// Ids of containers that have or had a snapshot of ours.
async fn snapshots(shared: &Shared) -> Result<Vec<ContainerId>, Error> {
    let containerd = &shared.containerd;
    let failed = |status| containerd.error("listing snapshots", status);
    let request = containerd.request(ListSnapshotsRequest {
        snapshotter: containerd.snapshotter().to_owned(),
        filters: vec![format!("labels.\"{SNAPSHOT_LABEL}\"")],
    });
    let mut stream = containerd.snapshots().list(request).await.map_err(failed)?.into_inner();
    let mut ids = Vec::new();
    while let Some(part) = stream.message().await.map_err(failed)? {
        ids.extend(part.info.into_iter().filter_map(|info| ContainerId::new(info.name).ok()));
    }
    Ok(ids)
}
