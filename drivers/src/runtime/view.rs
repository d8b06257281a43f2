//! The files of images for others than containers: read-only snapshots.
//!
//! They bear a label that keeps containerd's collector away from them and from what they show, and one that names the
//! sandbox they are for: by it they are found and removed, whatever became of the agent that made them.

use std::time::SystemTime;

use containerd_client::services::v1::snapshots::{
    ListSnapshotsRequest, MountsRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::types::Mount;

use super::containerd::Shared;
use super::{Error, image};
use crate::containerd::{absent_ok, is_already_exists, is_not_found};
use crate::failpoint::passed;
use crate::ids::SandboxId;
use crate::volumes::SnapshotMount;

/// The sandbox that a view is for.
const LABEL: &str = "nodelet.dev/view-of";
/// What bears it is never collected; the value is for people.
const ROOT_LABEL: &str = "containerd.io/gc.root";

/// See [`super::Runtime::view`].
pub(super) async fn view(
    shared: &Shared,
    sandbox: &SandboxId,
    name: &str,
    image_name: &str,
) -> Result<Vec<SnapshotMount>, Error> {
    let containerd = &shared.containerd;
    let facts = image::facts(shared, image_name).await?;
    let failed = |status| containerd.error(format!("preparing the files of image {image_name}"), status);
    let key = key(sandbox, name);
    let snapshotter = containerd.snapshotter().to_owned();
    let request = containerd.request(ViewSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.clone(),
        parent: facts.chain_id.clone(),
        labels: [(LABEL.to_owned(), sandbox.to_string()), (ROOT_LABEL.to_owned(), now())].into(),
    });
    let made = containerd.snapshots().view(request).await;
    passed("preparing the files of an image");
    let mounts = match made {
        Ok(answer) => answer.into_inner().mounts,
        Err(status) if is_already_exists(&status) => {
            let request = containerd.request(MountsRequest { snapshotter, key });
            containerd.snapshots().mounts(request).await.map_err(failed)?.into_inner().mounts
        }
        Err(status) if is_not_found(&status) => {
            return Err(Error::NotFound { what: "snapshot of image", id: image_name.to_owned() });
        }
        Err(status) => return Err(failed(status)),
    };
    Ok(mounts.into_iter().map(of_mount).collect())
}

fn of_mount(mount: Mount) -> SnapshotMount {
    SnapshotMount { kind: mount.r#type, source: mount.source.into(), options: mount.options }
}

/// See [`super::Runtime::remove_views`].
pub(super) async fn remove(shared: &Shared, sandbox: &SandboxId, name: Option<&str>) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let failed = |status| containerd.error(format!("removing the views of sandbox {sandbox}"), status);
    let snapshotter = containerd.snapshotter().to_owned();
    let keys = match name {
        Some(name) => vec![key(sandbox, name)],
        None => list(shared, sandbox).await?,
    };
    for key in keys {
        let request = containerd.request(RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key });
        absent_ok(containerd.snapshots().remove(request).await).map_err(failed)?;
        passed("removing the files of an image");
    }
    Ok(())
}

async fn list(shared: &Shared, sandbox: &SandboxId) -> Result<Vec<String>, Error> {
    let containerd = &shared.containerd;
    let failed = |status| containerd.error(format!("listing the views of sandbox {sandbox}"), status);
    let request = containerd.request(ListSnapshotsRequest {
        snapshotter: containerd.snapshotter().to_owned(),
        filters: vec![format!("labels.\"{LABEL}\"=={sandbox}")],
    });
    let mut stream = containerd.snapshots().list(request).await.map_err(failed)?.into_inner();
    let mut keys = Vec::new();
    while let Some(part) = stream.message().await.map_err(failed)? {
        keys.extend(part.info.into_iter().map(|info| info.name));
    }
    Ok(keys)
}

fn key(sandbox: &SandboxId, name: &str) -> String {
    format!("{sandbox}.view.{name}")
}

fn now() -> String {
    jiff::Timestamp::try_from(SystemTime::now()).unwrap_or_default().to_string()
}
