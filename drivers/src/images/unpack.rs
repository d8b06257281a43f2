//! Layers become snapshots, bottom up.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::types;
use tonic::Status;

use super::Error;
use super::content::{Lease, label};
use super::manifest::{Descriptor, Digest};
use super::registry::failed;
use super::stored::has_snapshot;
use crate::containerd::{Answer, Containerd, absent_ok, is_already_exists};

/// Prefix of the keys of snapshots that are being unpacked.
const EXTRACT: &str = "extract-";

/// One layer and where it goes.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// The blob, complete in the content store.
    pub(super) blob: Descriptor,
    /// What it must unpack to.
    pub(super) diff_id: Digest,
    /// Name of its snapshot.
    pub(super) chain_id: Digest,
    /// Name of the snapshot below.
    pub(super) parent: Option<Digest>,
}

/// Unpacks the layer unless its snapshot is there. The lease holds the snapshot in both cases.
///
/// # Errors
/// [`Error::Failed`], also when the layer unpacks to something else than its image says; nothing stays behind then.
pub(super) async fn unpack(lease: &Lease, layer: &Layer) -> Result<(), Error> {
    let containerd = lease.containerd();
    if has_snapshot(containerd, &layer.chain_id).await? {
        return Ok(());
    }
    let key = format!("{EXTRACT}{} {}", uuid::Uuid::new_v4().simple(), layer.chain_id);
    match extract(lease, layer, &key).await {
        Ok(Extracted::Committed) => Ok(()),
        Ok(Extracted::AlreadyThere) => {
            remove(containerd, &key).await.map_err(|s| answered(format!("removing the snapshot {key}"), s))
        }
        Err(error) => {
            // The lease would hold it otherwise; should this fail too, the next attempt removes it.
            if let Err(status) = remove(containerd, &key).await {
                tracing::debug!(key, error = %Answer::from(status), "an unfinished snapshot stays for now");
            }
            Err(error)
        }
    }
}

enum Extracted {
    Committed,
    AlreadyThere,
}

async fn extract(lease: &Lease, layer: &Layer, key: &str) -> Result<Extracted, Error> {
    let containerd = lease.containerd();
    let snapshotter = containerd.snapshotter().to_owned();
    let chain_id = layer.chain_id.to_string();
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.clone(),
        key: key.to_owned(),
        parent: layer.parent.as_ref().map(Digest::to_string).unwrap_or_default(),
        labels: HashMap::from([("containerd.io/snapshot.ref".to_owned(), chain_id.clone())]),
    };
    let mounts = match containerd.snapshots().prepare(lease.request(prepare)).await {
        Ok(answer) => answer.into_inner().mounts,
        Err(status) if is_already_exists(&status) => return Ok(Extracted::AlreadyThere),
        Err(status) => return Err(answered(format!("preparing the snapshot {chain_id}"), status)),
    };
    let blob = &layer.blob;
    let apply = ApplyRequest {
        diff: Some(types::Descriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: blob.size as i64,
            ..Default::default()
        }),
        mounts,
        ..Default::default()
    };
    let applied = containerd
        .diff()
        .apply(lease.request(apply))
        .await
        .map_err(|status| answered(format!("unpacking the layer {}", blob.digest), status))?
        .into_inner()
        .applied;
    let actual = applied.map(|a| a.digest).unwrap_or_default();
    if actual != layer.diff_id.as_str() {
        let message = format!("it unpacks to {actual}, its image says {}", layer.diff_id);
        return Err(failed(format!("checking the layer {}", blob.digest), std::io::Error::other(message)));
    }
    let commit =
        CommitSnapshotRequest { snapshotter, name: chain_id.clone(), key: key.to_owned(), ..Default::default() };
    match containerd.snapshots().commit(lease.request(commit)).await {
        Ok(_) => {}
        Err(status) if is_already_exists(&status) => return Ok(Extracted::AlreadyThere),
        Err(status) => return Err(answered(format!("committing the snapshot {chain_id}"), status)),
    }
    let labels = HashMap::from([("containerd.io/uncompressed".to_owned(), layer.diff_id.to_string())]);
    label(containerd, &blob.digest, labels)
        .await
        .map_err(|status| answered(format!("labelling the layer {}", blob.digest), status))?;
    Ok(Extracted::Committed)
}

/// Removes what earlier attempts under this lease left half unpacked.
pub(super) async fn clear_leftovers(lease: &Lease) -> Result<(), Status> {
    for (kind, id) in lease.resources().await? {
        if kind.starts_with("snapshots/") && id.starts_with(EXTRACT) {
            remove(lease.containerd(), &id).await?;
        }
    }
    Ok(())
}

async fn remove(containerd: &Containerd, key: &str) -> Result<(), Status> {
    let request = containerd
        .request(RemoveSnapshotRequest { snapshotter: containerd.snapshotter().to_owned(), key: key.to_owned() });
    absent_ok(containerd.snapshots().remove(request).await).map(drop)
}

/// [`Error::Failed`] with containerd's answer.
pub(super) fn answered(doing: String, status: Status) -> Error {
    failed(doing, Answer::from(status))
}
