//! Layers become snapshots, bottom up.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::types;
use tonic::Status;

use super::content::{Lease, add_labels};
use super::driver::Inner;
use super::layer::Problem;
use super::manifest::{Descriptor, Digest, Manifest};
use super::registry::failed;
use super::stored::has_snapshot;
use super::{Error, local};
use crate::containerd::{Answer, Containerd, absent_ok, is_already_exists};

/// Prefix of the keys of snapshots that are being unpacked.
const EXTRACT: &str = "extract-";

/// The snapshotter whose directories we know.
const OVERLAYFS: &str = "overlayfs";

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

/// The layers of an image with the names of their snapshots, bottom first.
pub(super) fn layers(manifest: &Manifest, diff_ids: &[Digest], chain: &[Digest]) -> Vec<Layer> {
    let all = manifest.layers.iter().zip(diff_ids).zip(chain).enumerate();
    all.map(|(i, ((blob, diff_id), chain_id))| Layer {
        blob: blob.clone(),
        diff_id: diff_id.clone(),
        chain_id: chain_id.clone(),
        parent: i.checked_sub(1).map(|below| chain[below].clone()),
    })
    .collect()
}

/// Blobs smaller than this wait for their parent: to extract them takes less than to put them on it afterwards.
const STAGED: u64 = 1 << 20;

/// Who made a layer's snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unpacked {
    /// We did, so that the lease holds it.
    Here,
    /// Somebody else did.
    Elsewhere,
}

/// Unpacks the layer.
///
/// A large layer is extracted by us into a snapshot of its own, beside the others of its image, and put on top of its
/// parent when that is there; any other is extracted on top of it at once. What we do not do ourselves containerd does,
/// in the order of the layers; see docs/decisions/0013.
///
/// # Errors
/// [`Error::Refused`] and [`Error::Corrupt`] for the layer's own faults, else [`Error::Failed`]; nothing stays behind.
pub(super) async fn unpack(inner: &Inner, lease: &Lease, layer: &Layer) -> Result<Unpacked, Error> {
    let id = uuid::Uuid::new_v4().simple();
    let (own, stage) = (format!("{EXTRACT}{id} {}", layer.chain_id), format!("{EXTRACT}{id} {}", layer.diff_id));
    let mut keys = Keys { own, stage, staged: false };
    let outcome = unpack_as(inner, lease, layer, &mut keys).await;
    // What was committed bears its final name by now.
    let own = (!matches!(outcome, Ok(Unpacked::Here))).then_some(&keys.own);
    for key in own.into_iter().chain(keys.staged.then_some(&keys.stage)) {
        // The lease would hold it otherwise; should this fail too, the next attempt removes it.
        if let Err(status) = remove(lease.containerd(), key).await {
            tracing::debug!(key, error = %Answer::from(status), "an unfinished snapshot stays for now");
        }
    }
    outcome
}

/// Names of snapshots that a layer needs until it is unpacked.
struct Keys {
    /// What is committed.
    own: String,
    /// Where the layer is extracted to while its parent is not there.
    stage: String,
    /// Whether that was made.
    staged: bool,
}

async fn unpack_as(inner: &Inner, lease: &Lease, layer: &Layer, keys: &mut Keys) -> Result<Unpacked, Error> {
    let Some(parent) = &layer.parent else { return extract_in_place(inner, lease, layer, &keys.own).await };
    if layer.blob.size < STAGED || has_snapshot(&inner.containerd, parent).await? {
        parent_is_there(inner, parent).await?;
        return extract_in_place(inner, lease, layer, &keys.own).await;
    }
    keys.staged = true;
    let staged = stage(inner, lease, layer, &keys.stage).await?;
    parent_is_there(inner, parent).await?;
    let Some((directory, implied)) = staged else { return extract(inner, lease, layer, &keys.own).await };
    let Some(mounts) = prepare(lease, layer, &keys.own).await? else { return Ok(Unpacked::Elsewhere) };
    let (Some(upper), Some(lower)) = (local::upper(&mounts), local::lower(&mounts)) else {
        return apply(inner, lease, layer, &keys.own, mounts).await;
    };
    let doing = format!("putting the layer {} on its parent", layer.blob.digest);
    blocking(&doing, move || {
        let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        super::layer::extract::adopt(&directory, &implied, &lower)?;
        local::exchange(&directory, &upper)
    })
    .await?;
    commit(inner, lease, layer, &keys.own).await
}

/// Extracts the layer into its own snapshot, on top of its parent, if it has one, which is there.
async fn extract_in_place(inner: &Inner, lease: &Lease, layer: &Layer, key: &str) -> Result<Unpacked, Error> {
    let Some(mounts) = prepare(lease, layer, key).await? else { return Ok(Unpacked::Elsewhere) };
    let lower = if layer.parent.is_some() { local::lower(&mounts) } else { Some(Vec::new()) };
    let (Some(directory), Some(lower)) = (local::upper(&mounts), lower) else {
        return apply(inner, lease, layer, key, mounts).await;
    };
    let Some(implied) = extract_into(inner, layer, &directory).await? else {
        // What we left of the layer must not mix with what containerd makes of it.
        remove(lease.containerd(), key).await.map_err(|s| answered(format!("removing the snapshot {key}"), s))?;
        return extract(inner, lease, layer, key).await;
    };
    if !lower.is_empty() {
        let doing = format!("putting the layer {} on its parent", layer.blob.digest);
        blocking(&doing, move || {
            let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
            super::layer::extract::adopt(&directory, &implied, &lower)
        })
        .await?;
    }
    commit(inner, lease, layer, key).await
}

/// Extracts the layer into a snapshot that has no parent; `None` leaves it to containerd.
async fn stage(
    inner: &Inner,
    lease: &Lease,
    layer: &Layer,
    key: &str,
) -> Result<Option<(PathBuf, Vec<Vec<u8>>)>, Error> {
    let containerd = lease.containerd();
    if containerd.snapshotter() != OVERLAYFS || inner.local.blob(containerd, &layer.blob).await.is_none() {
        return Ok(None);
    }
    let request =
        PrepareSnapshotRequest { snapshotter: OVERLAYFS.to_owned(), key: key.to_owned(), ..Default::default() };
    let mounts = containerd
        .snapshots()
        .prepare(lease.request(request))
        .await
        .map_err(|status| answered(format!("preparing a place for the layer {}", layer.blob.digest), status))?
        .into_inner()
        .mounts;
    let Some(directory) = local::upper(&mounts) else { return Ok(None) };
    let implied = extract_into(inner, layer, &directory).await?;
    Ok(implied.map(|implied| (directory, implied)))
}

/// Extracts the layer's blob into the directory and checks it; `None` leaves it to containerd.
pub(super) async fn extract_into(
    inner: &Inner,
    layer: &Layer,
    directory: &Path,
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    if inner.containerd.snapshotter() != OVERLAYFS {
        return Ok(None);
    }
    let Some(blob) = inner.local.blob(&inner.containerd, &layer.blob).await else { return Ok(None) };
    let doing = format!("unpacking the layer {}", layer.blob.digest);
    let permit = inner.unpacking.acquire().await.map_err(|e| failed(doing.clone(), e))?;
    let stop = Arc::new(AtomicBool::new(false));
    // Who no longer waits for the thread tells it so.
    let guard = StopOnDrop(stop.clone());
    let (directory, base) = (directory.to_owned(), layer.parent.is_none());
    let task = tokio::task::spawn_blocking(move || super::layer::extract::extract(&blob, &directory, base, &stop));
    let outcome = task.await.map_err(|e| failed(doing.clone(), e))?;
    drop((permit, guard));
    match outcome {
        Ok(done) if done.diff_id == layer.diff_id => Ok(Some(done.implied)),
        Ok(done) => Err(other_content(layer, done.diff_id.as_str())),
        Err(Problem::Unusual(what)) => {
            tracing::debug!(layer = %layer.blob.digest, what, "containerd unpacks a layer");
            Ok(None)
        }
        Err(Problem::Refused { entry, problem }) => {
            Err(Error::Refused { digest: layer.blob.digest.to_string(), entry, problem })
        }
        // The bytes are what their digest says; what cannot be read of them was never a layer.
        Err(Problem::Io { source, .. }) if source.raw_os_error().is_none() => {
            Err(Error::Corrupt { digest: layer.blob.digest.to_string(), source: Arc::new(source) })
        }
        Err(problem) => Err(failed(doing, problem)),
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) async fn blocking(
    doing: &str,
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<(), Error> {
    let outcome = tokio::task::spawn_blocking(work).await.map_err(|e| failed(doing.to_owned(), e))?;
    outcome.map_err(|e| failed(doing.to_owned(), e))
}

/// Waits until somebody has unpacked the layer below.
async fn parent_is_there(inner: &Inner, parent: &Digest) -> Result<(), Error> {
    let mut news = inner.unpacked.subscribe();
    while !has_snapshot(&inner.containerd, parent).await? {
        loop {
            match news.recv().await {
                Ok(made) if made == *parent => return Ok(()),
                Ok(_) => {}
                // Some were missed: look. The sender lives as long as `inner`.
                Err(_) => break,
            }
        }
    }
    Ok(())
}

fn other_content(layer: &Layer, actual: &str) -> Error {
    let message = format!("it unpacks to {actual}, its image says {}", layer.diff_id);
    Error::Corrupt { digest: layer.blob.digest.to_string(), source: Arc::new(std::io::Error::other(message)) }
}

/// The mounts of a new snapshot for the layer; `None` when somebody else has unpacked it.
async fn prepare(lease: &Lease, layer: &Layer, key: &str) -> Result<Option<Vec<types::Mount>>, Error> {
    let containerd = lease.containerd();
    let chain_id = layer.chain_id.to_string();
    let prepare = PrepareSnapshotRequest {
        snapshotter: containerd.snapshotter().to_owned(),
        key: key.to_owned(),
        parent: layer.parent.as_ref().map(Digest::to_string).unwrap_or_default(),
        labels: HashMap::from([("containerd.io/snapshot.ref".to_owned(), chain_id.clone())]),
    };
    match containerd.snapshots().prepare(lease.request(prepare)).await {
        Ok(answer) => Ok(Some(answer.into_inner().mounts)),
        Err(status) if is_already_exists(&status) => Ok(None),
        Err(status) => Err(answered(format!("preparing the snapshot {chain_id}"), status)),
    }
}

/// By containerd.
async fn extract(inner: &Inner, lease: &Lease, layer: &Layer, key: &str) -> Result<Unpacked, Error> {
    match prepare(lease, layer, key).await? {
        Some(mounts) => apply(inner, lease, layer, key, mounts).await,
        None => Ok(Unpacked::Elsewhere),
    }
}

async fn apply(
    inner: &Inner,
    lease: &Lease,
    layer: &Layer,
    key: &str,
    mounts: Vec<types::Mount>,
) -> Result<Unpacked, Error> {
    let blob = &layer.blob;
    let apply = ApplyRequest {
        diff: Some(types::Descriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: blob.size as i64,
            ..Default::default()
        }),
        mounts,
        // From 1.7 on; older ones do not know the field.
        sync_fs: true,
        ..Default::default()
    };
    let applied = lease
        .containerd()
        .diff()
        .apply(lease.request(apply))
        .await
        .map_err(|status| answered(format!("unpacking the layer {}", blob.digest), status))?
        .into_inner()
        .applied;
    let actual = applied.map(|a| a.digest).unwrap_or_default();
    if actual != layer.diff_id.as_str() {
        return Err(other_content(layer, &actual));
    }
    commit(inner, lease, layer, key).await
}

async fn commit(inner: &Inner, lease: &Lease, layer: &Layer, key: &str) -> Result<Unpacked, Error> {
    let containerd = lease.containerd();
    let (chain_id, snapshotter) = (layer.chain_id.to_string(), containerd.snapshotter().to_owned());
    let commit =
        CommitSnapshotRequest { snapshotter, name: chain_id.clone(), key: key.to_owned(), ..Default::default() };
    match containerd.snapshots().commit(lease.request(commit)).await {
        Ok(_) => {}
        Err(status) if is_already_exists(&status) => return Ok(Unpacked::Elsewhere),
        Err(status) => return Err(answered(format!("committing the snapshot {chain_id}"), status)),
    }
    // The layer above need not wait for the rest. Nobody listening is fine.
    let _ = inner.unpacked.send(layer.chain_id.clone());
    let labels = HashMap::from([("containerd.io/uncompressed".to_owned(), layer.diff_id.to_string())]);
    add_labels(containerd, &layer.blob.digest, labels)
        .await
        .map_err(|status| answered(format!("labelling the layer {}", layer.blob.digest), status))?;
    Ok(Unpacked::Here)
}

/// The directories of a chain of snapshots, bottom first; `None` when they cannot be reached.
pub(super) async fn directories(containerd: &Containerd, top: &Digest) -> Result<Option<Vec<PathBuf>>, Error> {
    if containerd.snapshotter() != OVERLAYFS {
        return Ok(None);
    }
    let key = format!("{EXTRACT}{} view", uuid::Uuid::new_v4().simple());
    let view = ViewSnapshotRequest {
        snapshotter: OVERLAYFS.to_owned(),
        key: key.clone(),
        parent: top.to_string(),
        ..Default::default()
    };
    let doing = |status| answered(format!("looking into the snapshot {top}"), status);
    let mounts = containerd.snapshots().view(containerd.request(view)).await.map_err(doing)?.into_inner().mounts;
    remove(containerd, &key).await.map_err(doing)?;
    Ok(local::lower(&mounts).map(|mut directories| {
        directories.reverse();
        directories
    }))
}

/// Unpacks a layer anew and puts it in the place of its damaged directory, in one step.
pub(super) async fn replace(inner: &Inner, lease: &Lease, layer: &Layer, chain: &[PathBuf]) -> Result<(), Error> {
    let doing = format!("unpacking the layer {} anew", layer.blob.digest);
    let Some((damaged, below)) = chain.split_last() else { return Ok(()) };
    let key = format!("{EXTRACT}{} {}", uuid::Uuid::new_v4().simple(), layer.diff_id);
    let outcome = async {
        let Some((directory, implied)) = stage(inner, lease, layer, &key).await? else {
            return Err(failed(doing.clone(), std::io::Error::other("its directory cannot be reached")));
        };
        let (damaged, below) = (damaged.clone(), below.to_vec());
        blocking(&doing, move || {
            let lower: Vec<&Path> = below.iter().rev().map(PathBuf::as_path).collect();
            super::layer::extract::adopt(&directory, &implied, &lower)?;
            local::sync(&directory)?;
            local::exchange(&directory, &damaged)
        })
        .await
    }
    .await;
    if let Err(status) = remove(lease.containerd(), &key).await {
        tracing::debug!(key, error = %Answer::from(status), "an unfinished snapshot stays for now");
    }
    outcome
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
