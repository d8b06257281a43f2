//! Damage: finding blobs and snapshots that a power cut left half written, and putting them right.

use containerd_client::services::v1::{DeleteContentRequest, ReadContentRequest};
use sha2::Digest as _;

use super::driver::Inner;
use super::manifest::{Descriptor, Digest, Document, chain_ids};
use super::stored;
use super::unpack::answered;
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
            found.push(Damage::Blob { digest: blob.digest.to_string(), problem });
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
        return Ok(vec![Damage::Blob { digest: target.to_string(), problem }]);
    };
    let blobs = std::iter::once(&image.manifest.config).chain(&image.manifest.layers);
    for blob in blobs {
        if let Some(problem) = problem(containerd, &blob.digest).await? {
            found.push(Damage::Blob { digest: blob.digest.to_string(), problem });
        }
    }
    for chain_id in chain_ids(&image.diff_ids) {
        if !stored::has_snapshot(containerd, &chain_id).await? {
            found.push(Damage::Snapshot { name: chain_id.to_string(), problem: "it is missing".to_owned() });
        }
    }
    Ok(found)
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
pub(super) async fn drop_blob(containerd: &Containerd, digest: &Digest) -> Result<(), Error> {
    if let Some(root) = super::local::content_root(containerd).await {
        let file = root.join("blobs/sha256").join(digest.hex());
        match tokio::fs::remove_file(&file).await {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(super::registry::failed(format!("removing {}", file.display()), e)),
        }
    }
    let request = containerd.request(DeleteContentRequest { digest: digest.to_string() });
    absent_ok(containerd.content().delete(request).await)
        .map(drop)
        .map_err(|s| answered(format!("dropping the blob {digest}"), s))
}
