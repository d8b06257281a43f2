//! Images that are in containerd: from the record over index and manifest to configuration and snapshot.

use std::collections::HashMap;

use containerd_client::services::v1::snapshots::StatSnapshotRequest;
use containerd_client::services::v1::{GetImageRequest, Image as Record, InfoRequest, ReadContentRequest};
use tonic::Status;

use super::manifest::{ConfigRoot, Descriptor, Digest, Document, Invalid, MAX_DOCUMENT, Manifest, chain_ids};
use super::platform::{Platform, available, candidates};
use crate::containerd::{Answer, Containerd, absent_ok};

/// Label of an image record: the platform it was fetched for, if that was not the node's.
pub const PLATFORM_LABEL: &str = "nodelet.dev/platform";

/// Label of an image record: one of our fetches made it.
pub const FETCHED_LABEL: &str = "nodelet.dev/fetched";

/// Why an image of containerd could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// containerd's answer.
    #[error("{doing}")]
    Containerd {
        /// What we asked for.
        doing: String,
        /// Its answer; kept whole, so that a lost connection can be told apart.
        #[source]
        source: Status,
    },
    /// A document is not what it should be.
    #[error("reading the image {name}")]
    Invalid {
        /// The record.
        name: String,
        /// Why.
        #[source]
        source: Invalid,
    },
}

/// One image, with everything that its record leads to for its platform.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Name of the record.
    pub name: String,
    /// What the record points at: index or manifest.
    pub target: Digest,
    /// The platform's manifest.
    pub manifest: Manifest,
    /// The raw configuration.
    pub config: Vec<u8>,
    /// Digests of the unpacked layers.
    pub diff_ids: Vec<Digest>,
}

impl Stored {
    /// Name of the top layer's snapshot; `None` for an image without layers.
    pub fn top(&self) -> Option<Digest> {
        chain_ids(&self.diff_ids).pop()
    }
}

/// The blob, if it is in the content store. It must be a small document.
pub async fn read_document(containerd: &Containerd, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::Containerd { doing: format!("reading the blob {digest}"), source };
    let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let Some(info) = info(containerd, digest).await? else { return Ok(None) };
    if info.size < 0 || info.size as u64 > MAX_DOCUMENT {
        return Err(failed(Status::out_of_range(format!("{} bytes are too many for a document", info.size))));
    }
    let Some(mut stream) = absent_ok(containerd.content().read(containerd.request(request)).await).map_err(failed)?
    else {
        return Ok(None);
    };
    let mut bytes = Vec::with_capacity(info.size as usize);
    while let Some(part) = match stream.message().await {
        Ok(part) => part,
        Err(status) if crate::containerd::is_not_found(&status) => return Ok(None),
        Err(status) => return Err(failed(status)),
    } {
        bytes.extend_from_slice(&part.data);
    }
    Ok(Some(bytes))
}

/// Size and labels of a blob, if it is complete in the content store.
pub async fn info(
    containerd: &Containerd,
    digest: &Digest,
) -> Result<Option<containerd_client::services::v1::Info>, Error> {
    let request = containerd.request(InfoRequest { digest: digest.to_string() });
    let answer = absent_ok(containerd.content().info(request).await)
        .map_err(|source| Error::Containerd { doing: format!("looking for the blob {digest}"), source })?;
    Ok(answer.and_then(|a| a.info))
}

/// The record of that name.
pub async fn record(containerd: &Containerd, name: &str) -> Result<Option<Record>, Error> {
    let request = containerd.request(GetImageRequest { name: name.to_owned() });
    let answer = absent_ok(containerd.images().get(request).await)
        .map_err(|source| Error::Containerd { doing: format!("looking for the image {name}"), source })?;
    Ok(answer.and_then(|a| a.image))
}

/// The platform that a record was fetched for.
pub fn platform_of(labels: &HashMap<String, String>) -> Platform {
    labels.get(PLATFORM_LABEL).and_then(|text| Platform::parse(text).ok()).unwrap_or_else(Platform::node)
}

/// Follows the record to manifest and configuration; `None` when one of these documents is missing. Layers and
/// snapshots are not looked at.
pub async fn follow(containerd: &Containerd, record: &Record) -> Result<Option<Stored>, Error> {
    let invalid = |source| Error::Invalid { name: record.name.clone(), source };
    let Some(target) = &record.target else { return Ok(None) };
    let target = Digest::new(target.digest.clone())
        .map_err(|message| invalid(Invalid::Content { what: "its target".to_owned(), message }))?;
    let platform = platform_of(&record.labels);
    let Some(manifest) = manifest_for(containerd, &target, &platform).await.map_err(|e| e.named(&record.name))? else {
        return Ok(None);
    };
    let Some(config) = read_document(containerd, &manifest.config.digest).await? else { return Ok(None) };
    let diff_ids = ConfigRoot::parse(&manifest, &config).map_err(invalid)?.diff_ids().to_vec();
    Ok(Some(Stored { name: record.name.clone(), target, manifest, config, diff_ids }))
}

/// The manifest for `platform` below `root`, through any nesting of indexes that is sensible.
async fn manifest_for(
    containerd: &Containerd,
    root: &Digest,
    platform: &Platform,
) -> Result<Option<Manifest>, FollowError> {
    let mut open: Vec<(Digest, u8)> = vec![(root.clone(), 0)];
    while let Some((digest, depth)) = open.pop() {
        let Some(bytes) = read_document(containerd, &digest).await? else { continue };
        match Document::parse(&format!("the manifest {digest}"), &bytes)? {
            Document::Manifest(manifest) => return Ok(Some(manifest)),
            Document::Index(_) if depth >= 3 => {}
            Document::Index(index) => {
                let best: Vec<&Descriptor> = candidates(&index, platform);
                tracing::trace!(%digest, available = available(&index), "reading an index");
                open.extend(best.into_iter().rev().map(|d| (d.digest.clone(), depth + 1)));
            }
        }
    }
    Ok(None)
}

enum FollowError {
    Stored(Error),
    Invalid(Invalid),
}

impl FollowError {
    fn named(self, name: &str) -> Error {
        match self {
            FollowError::Stored(e) => e,
            FollowError::Invalid(source) => Error::Invalid { name: name.to_owned(), source },
        }
    }
}

impl From<Error> for FollowError {
    fn from(e: Error) -> Self {
        FollowError::Stored(e)
    }
}

impl From<Invalid> for FollowError {
    fn from(e: Invalid) -> Self {
        FollowError::Invalid(e)
    }
}

/// Whether the layer's snapshot is there, unpacked in full.
pub async fn has_snapshot(containerd: &Containerd, chain_id: &Digest) -> Result<bool, Error> {
    let request = containerd
        .request(StatSnapshotRequest { snapshotter: containerd.snapshotter().to_owned(), key: chain_id.to_string() });
    let answer = absent_ok(containerd.snapshots().stat(request).await)
        .map_err(|source| Error::Containerd { doing: format!("looking for the snapshot {chain_id}"), source })?;
    Ok(answer.is_some())
}

impl From<Error> for super::Error {
    fn from(error: Error) -> Self {
        let (doing, source): (String, std::sync::Arc<dyn std::error::Error + Send + Sync>) = match error {
            Error::Containerd { doing, source } => (doing, std::sync::Arc::new(Answer::from(source))),
            Error::Invalid { name, source } => (format!("reading the image {name}"), std::sync::Arc::new(source)),
        };
        super::Error::Failed { doing, source }
    }
}
