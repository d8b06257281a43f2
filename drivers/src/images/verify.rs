//! Damage: finding blobs and snapshots that a power cut left half written, and putting them right.

use std::sync::atomic::AtomicBool;

use containerd_client::services::v1::{DeleteContentRequest, ReadContentRequest};
use sha2::Digest as _;

use super::content::Lease;
use super::driver::Inner;
use super::layer::Problem;
use super::layer::compare::compare;
use super::manifest::{Descriptor, Digest, Document, chain_ids};
use super::registry::failed;
use super::stored::{self, Stored, has_snapshot};
use super::unpack::{Layer, answered, directories, layers, replace};
use super::{Damage, Error};
use crate::containerd::{Containerd, absent_ok};

/// Everything that differs from what the record of that name says.
pub(super) async fn verify(inner: &Inner, name: &str) -> Result<Vec<Damage>, Error> {
    let containerd = &inner.containerd;
    let Some(record) = stored::record(containerd, name).await? else { return Ok(Vec::new()) };
    let Some(target) = record.target.as_ref().and_then(|t| Digest::new(t.digest.clone()).ok()) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    // The documents first: only what they say is true of the rest.
    let mut sound = true;
    let mut open = vec![Descriptor::new("", target.clone(), 0)];
    while let Some(blob) = open.pop() {
        // An index names manifests for other platforms, which are not here; its own must be, and is looked for below.
        if blob.digest != target && stored::info(containerd, &blob.digest).await?.is_none() {
            continue;
        }
        if let Some(problem) = problem(containerd, &blob.digest).await? {
            sound = false;
            found.push(Damage::Blob { digest: blob.digest.to_string(), layer: false, problem });
            continue;
        }
        let Some(bytes) = stored::read_document(containerd, &blob.digest).await? else { continue };
        if let Ok(Document::Index(index)) = Document::parse("a document", &bytes) {
            open.extend(index.manifests);
        }
    }
    if !sound {
        return Ok(found);
    }
    let Some(image) = stored::follow(containerd, &record).await? else {
        let problem = "its manifest or configuration is missing".to_owned();
        return Ok(vec![Damage::Blob { digest: target.to_string(), layer: false, problem }]);
    };
    let blobs = std::iter::once(&image.manifest.config).chain(&image.manifest.layers);
    for blob in blobs {
        if let Some(problem) = problem(containerd, &blob.digest).await? {
            let layer = blob.digest != image.manifest.config.digest;
            found.push(Damage::Blob { digest: blob.digest.to_string(), layer, problem });
        }
    }
    found.extend(snapshots(inner, &image, &found).await?);
    Ok(found)
}

/// Damaged snapshots of an image. Layers whose blob is damaged are compared after that was fetched again.
async fn snapshots(inner: &Inner, image: &Stored, blobs: &[Damage]) -> Result<Vec<Damage>, Error> {
    let containerd = &inner.containerd;
    let mut found = Vec::new();
    let layers = layers(&image.manifest, &image.diff_ids, &chain_ids(&image.diff_ids));
    let mut there = Vec::new();
    for layer in layers {
        if has_snapshot(containerd, &layer.chain_id).await? {
            there.push(layer);
        } else {
            found.push(Damage::Snapshot { name: layer.chain_id.to_string(), problem: "it is missing".to_owned() });
        }
    }
    let Some(top) = there.last() else { return Ok(found) };
    let Some(directories) = directories(containerd, &top.chain_id).await? else { return Ok(found) };
    for (layer, directory) in there.iter().zip(directories) {
        let damaged =
            |damage: &Damage| matches!(damage, Damage::Blob { digest, .. } if *digest == layer.blob.digest.as_str());
        let Some(blob) = inner.local.blob(containerd, &layer.blob).await.filter(|_| !blobs.iter().any(damaged)) else {
            continue;
        };
        let (base, diff_id) = (layer.parent.is_none(), layer.diff_id.clone());
        let compared =
            tokio::task::spawn_blocking(move || compare(&blob, &directory, base, &diff_id, &AtomicBool::new(false)));
        let doing = || format!("comparing the snapshot {}", layer.chain_id);
        match compared.await.map_err(|e| failed(doing(), e))? {
            Ok(None) => {}
            Ok(Some(problem)) => found.push(Damage::Snapshot { name: layer.chain_id.to_string(), problem }),
            Err(Problem::Unusual(what)) => tracing::debug!(snapshot = %layer.chain_id, what, "not compared"),
            Err(problem) => return Err(failed(doing(), problem)),
        }
    }
    Ok(found)
}

/// Drops the damaged blobs.
pub(super) async fn drop_blobs(inner: &Inner, damage: &[Damage]) -> Result<(), Error> {
    for damage in damage {
        if let Damage::Blob { digest, .. } = damage
            && let Ok(digest) = Digest::new(digest.clone())
        {
            drop_blob(inner, &digest).await?;
        }
    }
    Ok(())
}

/// Unpacks damaged snapshots of a complete image anew. Those of layers whose blob was damaged are looked at as well.
pub(super) async fn replace_snapshots(inner: &Inner, name: &str, damage: &[Damage]) -> Result<(), Error> {
    let containerd = &inner.containerd;
    let Some(record) = stored::record(containerd, name).await? else { return Ok(()) };
    let Some(image) = stored::follow(containerd, &record).await? else { return Ok(()) };
    let found = if damage.iter().any(|damage| matches!(damage, Damage::Blob { .. })) {
        snapshots(inner, &image, &[]).await?
    } else {
        damage.to_vec()
    };
    let bad = |layer: &Layer| {
        found.iter().any(|damage| matches!(damage, Damage::Snapshot { name, .. } if name == layer.chain_id.as_str()))
    };
    let layers = layers(&image.manifest, &image.diff_ids, &chain_ids(&image.diff_ids));
    if !layers.iter().any(bad) {
        return Ok(());
    }
    let Some(top) = layers.last() else { return Ok(()) };
    let Some(directories) = directories(containerd, &top.chain_id).await? else { return Ok(()) };
    let doing = |status| answered(format!("taking a lease to repair {name}"), status);
    let id = format!("nodelet-repair-{}", uuid::Uuid::new_v4().simple());
    let lease = Lease::ensure(containerd, &id, "").await.map_err(doing)?;
    let mut outcome = Ok(());
    for (i, layer) in layers.iter().enumerate().filter(|(_, layer)| bad(layer)) {
        outcome = replace(inner, &lease, layer, &directories[..=i.min(directories.len() - 1)]).await;
        if outcome.is_err() {
            break;
        }
    }
    if let Err(status) = lease.release(false).await {
        tracing::debug!(name, %status, "a lease stays until it expires");
    }
    outcome
}

/// What is wrong with the blob, if anything. Reads it in pieces.
async fn problem(containerd: &Containerd, digest: &Digest) -> Result<Option<String>, Error> {
    let Some(info) = stored::info(containerd, digest).await? else { return Ok(Some("it is missing".to_owned())) };
    let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let mut stream = match containerd.content().read(containerd.request(request)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if crate::containerd::is_unavailable(&status) => {
            return Err(answered(format!("reading the blob {digest}"), status));
        }
        Err(status) => return Ok(Some(format!("it cannot be read: {}", status.message()))),
    };
    let (mut hash, mut length) = (sha2::Sha256::new(), 0);
    loop {
        match stream.message().await {
            Ok(None) => break,
            Ok(Some(part)) => {
                hash.update(&part.data);
                length += part.data.len() as u64;
            }
            Err(status) if crate::containerd::is_unavailable(&status) => {
                return Err(answered(format!("reading the blob {digest}"), status));
            }
            Err(status) => return Ok(Some(format!("it cannot be read: {}", status.message()))),
        }
    }
    if length != info.size as u64 {
        return Ok(Some(format!("it has {length} bytes of {}", info.size)));
    }
    let actual = Digest::from_hash(&hash.finalize());
    Ok((actual != *digest).then(|| format!("its content is that of {actual}")))
}

/// Drops a damaged blob so that nothing takes it for whole; absence is fine.
///
/// containerd would take the damaged file for the blob as soon as somebody wants it again, so the file goes too,
/// where it can be reached.
async fn drop_blob(inner: &Inner, digest: &Digest) -> Result<(), Error> {
    let containerd = &inner.containerd;
    if let Some(root) = inner.local.content_root(containerd).await {
        let file = root.join("blobs/sha256").join(digest.hex());
        match tokio::fs::remove_file(&file).await {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(format!("removing {}", file.display()), e)),
        }
    }
    let request = containerd.request(DeleteContentRequest { digest: digest.to_string() });
    absent_ok(containerd.content().delete(request).await)
        .map(drop)
        .map_err(|s| answered(format!("dropping the blob {digest}"), s))
}
