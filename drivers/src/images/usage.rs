//! What images take on disk, what a fetch would add, and freeing what nothing needs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest, UsageRequest};
use containerd_client::services::v1::{
    Image as Record, ListContentRequest, ListImagesRequest, ListRequest, ListStatusesRequest,
};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tonic::Status;

use super::content::{self, LEASE_IMAGE_LABEL, Lease};
use super::driver::Inner;
use super::manifest::{Digest, Document, Manifest, chain_ids};
use super::stored;
use super::unpack::answered;
use super::{BlobUsage, Error, ImageUsage, IngestUsage, SnapshotUsage, Usage};
use crate::containerd::{Containerd, absent_ok};

/// Reads it all.
pub(super) async fn observe(inner: &Inner) -> Result<Usage, Error> {
    let containerd = &inner.containerd;
    let (blobs, snapshots, ingests, leases) =
        tokio::try_join!(blobs(containerd), snapshots(containerd), ingests(containerd), unfinished(containerd))?;
    let known: BTreeSet<&str> = blobs.iter().map(|b| b.digest.as_str()).collect();
    let unpacked: BTreeSet<&str> = snapshots.iter().map(|s| s.name.as_str()).collect();
    let images = stream::iter(records(containerd).await?)
        .map(|record| async { image(containerd, record, &known, &unpacked).await })
        .buffered(8)
        .try_collect()
        .await?;
    Ok(Usage { images, unfinished: leases.into_values().collect(), blobs, snapshots, ingests })
}

/// Gives up unwanted fetches, then runs the collector.
pub(super) async fn collect(
    inner: &Inner,
    wanted: &BTreeSet<String>,
    running: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let containerd = &inner.containerd;
    for (id, reference) in unfinished(containerd).await? {
        if !wanted.contains(&reference) && !running(&reference) {
            content::release(containerd, &id, false)
                .await
                .map_err(|s| answered(format!("giving up the fetch of {reference}"), s))?;
        }
    }
    // The collector has no call of its own: the end of any lease can ask for it, and waits.
    let doing = |status| answered("running containerd's collector".to_owned(), status);
    let id = format!("nodelet-collect-{}", uuid::Uuid::new_v4().simple());
    Lease::ensure(containerd, &id, "").await.map_err(doing)?.release(true).await.map_err(doing)
}

/// Leases of fetches: their ids and what they are for.
async fn unfinished(containerd: &Containerd) -> Result<BTreeMap<String, String>, Error> {
    let request = containerd.request(ListRequest::default());
    let answer = containerd.leases().list(request).await;
    let leases = answer.map_err(|s| answered("listing leases".to_owned(), s))?.into_inner().leases;
    let of = |mut labels: HashMap<String, String>| labels.remove(LEASE_IMAGE_LABEL).filter(|name| !name.is_empty());
    Ok(leases.into_iter().filter_map(|lease| of(lease.labels).map(|name| (lease.id, name))).collect())
}

async fn records(containerd: &Containerd) -> Result<Vec<Record>, Error> {
    let answer = containerd.images().list(containerd.request(ListImagesRequest::default())).await;
    Ok(answer.map_err(|s| answered("listing images".to_owned(), s))?.into_inner().images)
}

async fn blobs(containerd: &Containerd) -> Result<Vec<BlobUsage>, Error> {
    let doing = |status: Status| answered("listing blobs".to_owned(), status);
    let request = containerd.request(ListContentRequest::default());
    let mut stream = containerd.content().list(request).await.map_err(doing)?.into_inner();
    let mut found = Vec::new();
    while let Some(part) = stream.message().await.map_err(doing)? {
        let blob = |i: containerd_client::services::v1::Info| BlobUsage {
            size: u64::try_from(i.size).unwrap_or_default(),
            digest: i.digest,
        };
        found.extend(part.info.into_iter().map(blob));
    }
    Ok(found)
}

async fn ingests(containerd: &Containerd) -> Result<Vec<IngestUsage>, Error> {
    let answer = containerd.content().list_statuses(containerd.request(ListStatusesRequest::default())).await;
    let statuses = answer.map_err(|s| answered("listing unfinished blobs".to_owned(), s))?.into_inner().statuses;
    let ingest = |s: containerd_client::services::v1::Status| IngestUsage {
        name: s.r#ref,
        bytes: u64::try_from(s.offset).unwrap_or_default(),
        total: u64::try_from(s.total).unwrap_or_default(),
        updated: s.updated_at.and_then(time),
    };
    Ok(statuses.into_iter().map(ingest).collect())
}

async fn snapshots(containerd: &Containerd) -> Result<Vec<SnapshotUsage>, Error> {
    let doing = |status: Status| answered("listing snapshots".to_owned(), status);
    let snapshotter = containerd.snapshotter().to_owned();
    let request = ListSnapshotsRequest { snapshotter: snapshotter.clone(), ..Default::default() };
    let mut stream = containerd.snapshots().list(containerd.request(request)).await.map_err(doing)?.into_inner();
    let mut listed = Vec::new();
    while let Some(part) = stream.message().await.map_err(doing)? {
        listed.extend(part.info);
    }
    stream::iter(listed)
        .map(|info| {
            let request = containerd.request(UsageRequest { snapshotter: snapshotter.clone(), key: info.name.clone() });
            async move {
                // One that went meanwhile takes no room.
                let usage = absent_ok(containerd.snapshots().usage(request).await).map_err(doing)?;
                Ok::<_, Error>(usage.map(|usage| SnapshotUsage {
                    committed: info.kind == Kind::Committed as i32,
                    size: u64::try_from(usage.size).unwrap_or_default(),
                    name: info.name,
                    parent: info.parent,
                }))
            }
        })
        .buffered(8)
        .try_filter_map(|found| async move { Ok(found) })
        .try_collect()
        .await
}

/// What a record leads to, as far as it is there.
async fn image(
    containerd: &Containerd,
    record: Record,
    known: &BTreeSet<&str>,
    unpacked: &BTreeSet<&str>,
) -> Result<ImageUsage, Error> {
    let target = record.target.as_ref().map(|t| t.digest.clone()).unwrap_or_default();
    let mut blobs = BTreeSet::new();
    let mut open: Vec<String> = vec![target.clone()];
    while let Some(digest) = open.pop() {
        let Ok(parsed) = Digest::new(digest.clone()) else { continue };
        if !known.contains(digest.as_str()) || !blobs.insert(digest) {
            continue;
        }
        let Some(bytes) = stored::read_document(containerd, &parsed).await? else { continue };
        match Document::parse("a document", &bytes) {
            Ok(Document::Index(index)) => open.extend(index.manifests.into_iter().map(|m| m.digest.to_string())),
            Ok(Document::Manifest(manifest)) => blobs.extend(named(&manifest, known)),
            Err(_) => {}
        }
    }
    let stored = match stored::follow(containerd, &record).await {
        Ok(stored) => stored,
        Err(stored::Error::Invalid { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let chain = stored.map(|s| chain_ids(&s.diff_ids)).unwrap_or_default();
    let snapshots = chain.iter().map(Digest::to_string).filter(|name| unpacked.contains(name.as_str())).collect();
    Ok(ImageUsage {
        reference: record.name,
        digest: target,
        blobs: blobs.into_iter().collect(),
        snapshots,
        updated: record.updated_at.and_then(time),
    })
}

fn named(manifest: &Manifest, known: &BTreeSet<&str>) -> Vec<String> {
    let all = std::iter::once(&manifest.config).chain(&manifest.layers);
    all.map(|blob| blob.digest.to_string()).filter(|digest| known.contains(digest.as_str())).collect()
}

fn time(stamp: prost_types::Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(stamp.seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, u32::try_from(stamp.nanos).unwrap_or_default()))
}

/// How much larger layers become, judging by their kind. Typical images: gzip 2.4 to 3, zstd 2.6 to 3.4.
pub(super) fn unpacked_size(media_type: &str, size: u64) -> u64 {
    match media_type {
        m if m.ends_with("zstd") => size.saturating_mul(7) / 2,
        m if m.ends_with("gzip") => size.saturating_mul(3),
        _ => size,
    }
}

/// Bytes that an interrupted transfer of the blob left.
pub(super) async fn arrived(containerd: &Containerd, digest: &Digest) -> Result<u64, Error> {
    let request = containerd_client::services::v1::StatusRequest { r#ref: content::ingest_name(digest) };
    let answer = absent_ok(containerd.content().status(containerd.request(request)).await)
        .map_err(|s| answered(format!("looking for the unfinished blob {digest}"), s))?;
    Ok(answer.and_then(|a| a.status).map_or(0, |s| u64::try_from(s.offset).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_layers_grow() {
        assert_eq!(unpacked_size("application/vnd.oci.image.layer.v1.tar", 10), 10);
        assert_eq!(unpacked_size("application/vnd.oci.image.layer.v1.tar+gzip", 10), 30);
        assert_eq!(unpacked_size("application/vnd.docker.image.rootfs.diff.tar.gzip", 10), 30);
        assert_eq!(unpacked_size("application/vnd.oci.image.layer.v1.tar+zstd", u64::MAX), u64::MAX / 2);
    }
}
