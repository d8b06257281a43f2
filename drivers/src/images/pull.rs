//! One fetch, from reference to image record.
//!
//! The order is what keeps a crash harmless: a lease first, under it blobs and snapshots, then the documents with
//! labels that lead the collector to these, then the record, and the lease goes last. The lease's id is made from
//! the wish, so the next attempt finds and continues what the last one left.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{CreateImageRequest, Image as Record, UpdateImageRequest};
use containerd_client::types;
use futures::TryFutureExt as _;
use futures::future::try_join_all;
use tokio::sync::watch;

use super::archive::{self, ArchiveImage};
use super::content::{self, Lease, put_document};
use super::driver::{Inner, Wish};
use super::manifest::{ConfigRoot, Descriptor, Digest, Document, Invalid, Manifest, chain_ids};
use super::platform::{Platform, available, candidates};
use super::progress::Tracker;
use super::registry::{Failure, Repository, Retry, failed};
use super::stored::{self, FETCHED_LABEL, PLATFORM_LABEL};
use super::throttle::Throttle;
use super::transfer::{self, Transfers};
use super::unpack::{self, Layer, Unpacked, answered};
use super::{Credentials, Error, Estimate, Image, Phase, Source, local, reference, signature, usage};
use crate::containerd::is_already_exists;

/// How often the progress is looked at to tell whether a pull is slow.
const LOOK: Duration = Duration::from_secs(2);

/// A server that wants a longer pause is left alone; the fetch fails and says when to come back.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is known of an image once its documents have been read.
pub(super) struct Plan {
    /// What the record will point at.
    pub(super) root: Descriptor,
    /// Indexes above the manifest, outermost first.
    indexes: Vec<(Descriptor, Vec<u8>)>,
    manifest_blob: Descriptor,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    config: Vec<u8>,
    diff_ids: Vec<Digest>,
    pub(super) from: From,
}

impl Plan {
    /// The layers with the names of their snapshots, bottom first.
    fn layers(&self, chain: &[Digest]) -> Vec<Layer> {
        unpack::layers(&self.manifest, &self.diff_ids, chain)
    }
}

/// Where the layers come from.
pub(super) enum From {
    Registry(Box<Repository>),
    Archive(Arc<ArchiveImage>),
}

/// How a fetch goes about it, apart from what it is for: those of who came first hold for all who join.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) credentials: Option<Credentials>,
    pub(super) priority: i32,
    /// Its own rate, below that of all.
    pub(super) throttle: Arc<Throttle>,
}

/// Fetches the image, whatever of it is there already.
pub(super) async fn run(inner: Arc<Inner>, wish: Wish, terms: Terms, tracker: Arc<Tracker>) -> Result<Image, Error> {
    let mut slot = inner.pulls.take(terms.priority).await;
    let plan = slot.wait(plan(&inner, &wish, terms.credentials.clone())).await?;
    if !(wish.repair && known_as_signed(&inner, &wish, &plan.root).await?) {
        slot.wait(signature::check(&inner, &wish, &plan)).await?;
    }
    tracker.total(plan.manifest.size());
    tracker.phase(Phase::Pulling);

    let doing = |what: &str| format!("{what} {}", wish.reference);
    let lease = Lease::ensure(&inner.containerd, &lease_id(&wish), &wish.reference)
        .await
        .map_err(|s| answered(doing("taking the lease for"), s))?;
    let outcome = {
        let mut work = std::pin::pin!(store(&inner, &wish, &plan, &lease, &terms, &tracker));
        loop {
            // Both arms are cancel-safe: the work is pinned and a tick is only a look at the progress.
            tokio::select! {
                biased;
                outcome = &mut work => break outcome,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = tracker.latest();
            if now.phase == Phase::Pulling {
                slot.progress(now.bytes_done);
            }
        }
    };
    match (&outcome, &wish.source) {
        // Nothing of a broken archive may stay, and nothing of it can be continued.
        (Err(_), Source::Archive(_)) => {
            if let Err(status) = lease.release(true).await {
                tracing::debug!(image = wish.reference, %status, "a lease stays until it expires");
            }
        }
        (Err(_), Source::Registry) => {}
        (Ok(_), _) => {
            // The image is complete without this; a lease that stays expires.
            if let Err(status) = lease.release(false).await {
                tracing::debug!(image = wish.reference, %status, "a lease stays until it expires");
            }
        }
    }
    outcome
}

async fn store(
    inner: &Arc<Inner>,
    wish: &Wish,
    plan: &Plan,
    lease: &Lease,
    terms: &Terms,
    tracker: &Arc<Tracker>,
) -> Result<Image, Error> {
    let doing = |what: &str| format!("{what} {}", wish.reference);
    unpack::clear_leftovers(lease).await.map_err(|s| answered(doing("clearing what is left of"), s))?;

    let chain = chain_ids(&plan.diff_ids);
    let config_labels = chain
        .last()
        .map(|top| (format!("containerd.io/gc.ref.snapshot.{}", inner.containerd.snapshotter()), top.to_string()));
    let config_blob = &plan.manifest.config;
    put_document(lease, config_blob, &plan.config, config_labels.into_iter().collect())
        .await
        .map_err(|s| answered(doing("storing the configuration of"), s))?;
    tracker.blob(&config_blob.digest, config_blob.size);

    let ready = watch::Sender::new(HashSet::new());
    let arrivals = ready.subscribe();
    let arrive = async {
        match &plan.from {
            From::Registry(repository) => {
                let transfers = Transfers::new(inner, lease, repository, terms);
                transfers.get_all(&plan.manifest.layers, tracker, &ready).await?;
            }
            From::Archive(archive) => transfer::from_archive(inner, lease, archive, tracker, &ready).await?,
        }
        tracker.phase(Phase::Unpacking);
        Ok(())
    };
    tokio::try_join!(arrive, unpack_all(inner, lease, plan, &chain, arrivals))?;

    let mut labels =
        HashMap::from([("containerd.io/gc.ref.content.config".to_owned(), config_blob.digest.to_string())]);
    for (i, layer) in plan.manifest.layers.iter().enumerate() {
        labels.insert(format!("containerd.io/gc.ref.content.l.{i}"), layer.digest.to_string());
    }
    put_document(lease, &plan.manifest_blob, &plan.manifest_bytes, labels)
        .await
        .map_err(|s| answered(doing("storing the manifest of"), s))?;
    let mut below = &plan.manifest_blob;
    for (index, bytes) in plan.indexes.iter().rev() {
        let labels = HashMap::from([("containerd.io/gc.ref.content.m.0".to_owned(), below.digest.to_string())]);
        put_document(lease, index, bytes, labels).await.map_err(|s| answered(doing("storing the index of"), s))?;
        below = index;
    }
    record(inner, wish, &plan.root).await?;
    Ok(Image {
        reference: wish.reference.clone(),
        digest: plan.root.digest.to_string(),
        config_digest: config_blob.digest.to_string(),
        size: plan.manifest.size(),
        signed_by: wish.signers.iter().map(|signer| signer.fingerprint().to_owned()).collect(),
    })
}

async fn plan(inner: &Arc<Inner>, wish: &Wish, credentials: Option<Credentials>) -> Result<Plan, Error> {
    match &wish.source {
        Source::Registry => plan_registry(inner, wish, credentials).await,
        Source::Archive(path) => {
            plan_archive(open_archive(path.clone(), wish.reference.clone(), wish.platform.clone()).await?)
        }
    }
}

/// What [`run`] would transfer and unpack.
pub(super) async fn estimate(
    inner: &Arc<Inner>,
    wish: &Wish,
    credentials: Option<Credentials>,
) -> Result<Estimate, Error> {
    let plan = plan(inner, wish, credentials).await?;
    let mut estimate =
        Estimate { digest: plan.root.digest.to_string(), bytes_total: plan.manifest.size(), ..Estimate::default() };
    let mut seen = HashSet::new();
    for blob in std::iter::once(&plan.manifest.config).chain(&plan.manifest.layers) {
        if seen.insert(&blob.digest) && stored::info(&inner.containerd, &blob.digest).await?.is_none() {
            let arrived = usage::arrived(&inner.containerd, &blob.digest).await?;
            estimate.bytes_missing += blob.size.saturating_sub(arrived);
        }
    }
    for (chain_id, layer) in chain_ids(&plan.diff_ids).iter().zip(&plan.manifest.layers) {
        if !stored::has_snapshot(&inner.containerd, chain_id).await? {
            estimate.bytes_unpacked += usage::unpacked_size(&layer.media_type, layer.size);
        }
    }
    Ok(estimate)
}

/// Unpacks each layer as soon as it is there, several at once.
async fn unpack_all(
    inner: &Arc<Inner>,
    lease: &Lease,
    plan: &Plan,
    chain: &[Digest],
    arrivals: watch::Receiver<HashSet<Digest>>,
) -> Result<(), Error> {
    let layers = plan.layers(chain).into_iter();
    try_join_all(layers.map(|layer| unpack_when_there(inner, lease, layer, arrivals.clone()))).await?;
    // Everything is on the disk before the image counts as there: a record survives a power cut, and what it leads to
    // must too. Blobs were written out by containerd; this is for the snapshots, and for directories of both.
    if let Some(root) = inner.local.content_root(&inner.containerd).await.map(Path::to_owned)
        && let Some(top) = chain.last()
        && let Some(snapshots) = unpack::directories(&inner.containerd, top).await?
    {
        let doing = "writing the image to the disk";
        unpack::blocking(doing, move || {
            local::sync(&root)?;
            snapshots.last().map_or(Ok(()), |directory| local::sync(directory))
        })
        .await?;
    }
    Ok(())
}

async fn unpack_when_there(
    inner: &Arc<Inner>,
    lease: &Lease,
    layer: Layer,
    mut arrivals: watch::Receiver<HashSet<Digest>>,
) -> Result<(), Error> {
    if arrivals.wait_for(|there| there.contains(&layer.blob.digest)).await.is_err() {
        // The transfer failed, and its error ends the fetch.
        std::future::pending::<()>().await;
    }
    let there = || stored::has_snapshot(&inner.containerd, &layer.chain_id);
    loop {
        if there().await? {
            lease
                .hold_snapshot(layer.chain_id.as_str())
                .await
                .map_err(|s| answered(format!("holding the snapshot {}", layer.chain_id), s))?;
            // The collector may have run in between.
            if there().await? {
                return Ok(());
            }
        }
        let joined = inner.snapshots.join(
            layer.chain_id.clone(),
            |panic| Err(failed("unpacking a layer".to_owned(), std::io::Error::other(panic))),
            || {
                let (inner, lease, layer) = (inner.clone(), lease.clone(), layer.clone());
                ((), async move { unpack::unpack(&inner, &lease, &layer).await })
            },
        );
        match joined.result.await {
            Ok(Unpacked::Here) if joined.started => return Ok(()),
            // It is there by another's hand, which our lease must get hold of.
            Ok(_) => {}
            // Somebody else's failure may have been theirs alone.
            Err(_) if !joined.started => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes the record, or lets it point at the new content.
async fn record(inner: &Inner, wish: &Wish, root: &Descriptor) -> Result<(), Error> {
    let platform = if wish.platform == Platform::node() { String::new() } else { wish.platform.to_string() };
    let mut labels = HashMap::from([(FETCHED_LABEL.to_owned(), "true".to_owned())]);
    if !platform.is_empty() {
        labels.insert(PLATFORM_LABEL.to_owned(), platform);
    }
    labels.extend(signature::labels(&wish.signers, root.digest.as_str()));
    let image = Record {
        name: wish.reference.clone(),
        labels,
        target: Some(types::Descriptor {
            media_type: root.media_type.clone(),
            digest: root.digest.to_string(),
            size: root.size as i64,
            ..Default::default()
        }),
        ..Default::default()
    };
    let doing = || format!("recording the image {}", wish.reference);
    let known = stored::record(&inner.containerd, &wish.reference).await?;
    if known.as_ref().is_some_and(|k| {
        let same = |key: &str| k.labels.get(key) == image.labels.get(key);
        k.target == image.target
            && same(PLATFORM_LABEL)
            && signature::labels(&wish.signers, root.digest.as_str()).all(|(key, _)| same(&key))
    }) {
        return Ok(());
    }
    let mut images = inner.containerd.images();
    let create = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
    match images.create(inner.containerd.request(create)).await {
        Ok(_) => return Ok(()),
        Err(status) if is_already_exists(&status) => {}
        Err(status) => return Err(answered(doing(), status)),
    }
    // A label in the mask without a value is removed.
    let mut paths = vec!["target".to_owned(), format!("labels.{PLATFORM_LABEL}"), format!("labels.{FETCHED_LABEL}")];
    paths.extend(signature::labels(&wish.signers, root.digest.as_str()).map(|(key, _)| format!("labels.{key}")));
    let update = UpdateImageRequest {
        image: Some(image),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    };
    images.update(inner.containerd.request(update)).await.map(drop).map_err(|status| answered(doing(), status))
}

/// The same for every attempt at the same wish.
fn lease_id(wish: &Wish) -> String {
    let source = match &wish.source {
        Source::Registry => String::new(),
        Source::Archive(path) => path.display().to_string(),
    };
    let mut text = format!("{}\n{}\n{source}", wish.reference, wish.platform);
    if wish.repair {
        text.push_str("\nrepair");
    }
    wish.signers.iter().for_each(|signer| text.extend(["\n", signer.fingerprint()]));
    format!("nodelet-pull-{}", &Digest::of(text.as_bytes()).hex()[..40])
}

async fn plan_registry(inner: &Arc<Inner>, wish: &Wish, credentials: Option<Credentials>) -> Result<Plan, Error> {
    let parsed = reference::parse(&wish.reference)?;
    let repository = inner.repository(&parsed, credentials).await?;
    let unusable = |e: Invalid| Error::Unusable { reference: wish.reference.clone(), source: Arc::new(e) };
    let mut bytes = root(inner, wish, &repository).await?;
    let mut indexes = Vec::new();
    loop {
        let digest = Digest::of(&bytes);
        let document = Document::parse(&format!("the manifest {digest}"), &bytes).map_err(unusable)?;
        let blob = Descriptor::new(document.media_type(), digest, bytes.len() as u64);
        match document {
            Document::Index(_) if indexes.len() >= 3 => {
                return Err(unusable(Invalid::Content {
                    what: "its indexes".to_owned(),
                    message: "they are nested too deeply".to_owned(),
                }));
            }
            Document::Index(index) => {
                let next = candidates(&index, &wish.platform).first().map(|d| d.digest.clone());
                let Some(next) = next else {
                    return Err(Error::Platform {
                        reference: wish.reference.clone(),
                        platform: wish.platform.to_string(),
                        available: available(&index),
                    });
                };
                indexes.push((blob, std::mem::take(&mut bytes)));
                bytes = manifest(inner, &repository, &next).await?;
            }
            Document::Manifest(manifest) => {
                let config = config(inner, &repository, &manifest.config).await?;
                let root = ConfigRoot::parse(&manifest, &config).map_err(unusable)?;
                let offered = root.platform();
                // Images that do not say what they are for are taken at the user's word.
                let says = !root.os.is_empty() && !root.architecture.is_empty();
                if says && wish.platform.suits(&offered).is_none() {
                    return Err(Error::Platform {
                        reference: wish.reference.clone(),
                        platform: wish.platform.to_string(),
                        available: offered.to_string(),
                    });
                }
                let diff_ids = root.diff_ids().to_vec();
                let root = indexes.first().map_or_else(|| blob.clone(), |(first, _)| first.clone());
                return Ok(Plan {
                    root,
                    indexes,
                    manifest_blob: blob,
                    manifest_bytes: bytes,
                    manifest,
                    config,
                    diff_ids,
                    from: From::Registry(Box::new(repository)),
                });
            }
        }
    }
}

/// Whether the record says that the signatures of just this were found right.
async fn known_as_signed(inner: &Inner, wish: &Wish, root: &Descriptor) -> Result<bool, Error> {
    let record = stored::record(&inner.containerd, &wish.reference).await?;
    let known = record.map(|record| signature::signed_by(&record.labels, root.digest.as_str())).unwrap_or_default();
    Ok(wish.signers.iter().all(|signer| known.iter().any(|key| key == signer.fingerprint())))
}

/// What the reference stands for. To repair an image is to make whole what it was, also when the tag has moved or the
/// registry does not answer; only what nobody has any more is replaced by what the tag stands for now.
async fn root(inner: &Inner, wish: &Wish, repository: &Repository) -> Result<Vec<u8>, Error> {
    if wish.repair
        && let Some(record) = stored::record(&inner.containerd, &wish.reference).await?
        && let Some(target) = record.target.and_then(|target| Digest::new(target.digest).ok())
    {
        match manifest(inner, repository, &target).await {
            Err(Error::NotFound { .. }) => {}
            other => return other,
        }
    }
    Ok(patiently(inner, || repository.root()).await?.to_vec())
}

/// The manifest or index of that digest.
async fn manifest(inner: &Inner, repository: &Repository, digest: &Digest) -> Result<Vec<u8>, Error> {
    match sound_document(inner, digest).await {
        Some(bytes) => Ok(bytes),
        None => Ok(patiently(inner, || repository.manifest(digest)).await?.to_vec()),
    }
}

/// A document of the content store, unless it is damaged there or cannot be read.
async fn sound_document(inner: &Inner, digest: &Digest) -> Option<Vec<u8>> {
    let bytes = stored::read_document(&inner.containerd, digest).await.ok()??;
    (Digest::of(&bytes) == *digest).then_some(bytes)
}

/// The configuration.
async fn config(inner: &Arc<Inner>, repository: &Repository, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    if let Some(bytes) = sound_document(inner, &blob.digest).await {
        return Ok(bytes);
    }
    patiently(inner, || transfer::document(repository, blob)).await
}

fn plan_archive(archive: ArchiveImage) -> Result<Plan, Error> {
    let unusable = |e: Invalid| Error::Archive { path: archive.path.clone(), source: Arc::new(e) };
    let diff_ids = ConfigRoot::parse(&archive.manifest, &archive.config).map_err(unusable)?.diff_ids().to_vec();
    Ok(Plan {
        root: archive.root.clone(),
        indexes: archive.indexes.clone(),
        manifest_blob: archive.manifest_blob.clone(),
        manifest_bytes: archive.manifest_bytes.clone(),
        manifest: archive.manifest.clone(),
        config: archive.config.clone(),
        diff_ids,
        from: From::Archive(Arc::new(archive)),
    })
}

/// Reads an archive's table of contents off the async threads.
pub(super) async fn open_archive(path: PathBuf, reference: String, platform: Platform) -> Result<ArchiveImage, Error> {
    let at = path.clone();
    let name = reference.clone();
    let opened = tokio::task::spawn_blocking(move || archive::open(&at, &name, &platform))
        .map_err(|e| failed(format!("reading the archive {}", path.display()), e))
        .await?;
    opened.map_err(|error| match error {
        archive::Error::Platform { platform, available } => Error::Platform { reference, platform, available },
        other => Error::Archive { path, source: Arc::new(other) },
    })
}

/// Names of the images in an archive.
pub(super) async fn archive_names(path: &Path) -> Result<Vec<String>, Error> {
    let at = path.to_owned();
    let names = tokio::task::spawn_blocking(move || archive::names(&at))
        .map_err(|e| failed(format!("reading the archive {}", path.display()), e))
        .await?;
    names.map_err(|error| Error::Archive { path: path.to_owned(), source: Arc::new(error) })
}

/// Tries again what may succeed next time, with growing pauses.
pub(super) async fn patiently<T, F, Fut>(inner: &Inner, mut ask: F) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Failure>>,
{
    let mut tries = 0;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(failure) => {
                tries += 1;
                match pause(tries, failure.retry) {
                    Some(pause) if tries < inner.options.attempts => tokio::time::sleep(pause).await,
                    _ => return Err(failure.error),
                }
            }
        }
    }
}

/// How long to wait before trying again: exponential with jitter, so that many nodes do not come back at the same
/// moment, and not before the server wants it. `None` when waiting here makes no sense: the caller does it better.
pub(super) fn pause(tries: u32, retry: Retry) -> Option<Duration> {
    let (first, longest) = match retry {
        Retry::No => return None,
        Retry::Soon => (200, 10_000),
        Retry::Later(None) => (2000, 60_000),
        Retry::Later(Some(wanted)) if wanted > LONGEST_PAUSE => return None,
        Retry::Later(Some(wanted)) => {
            let jitter = Duration::from_millis(rand::random_range(0..1000));
            return Some(wanted + jitter);
        }
    };
    let full: u64 = (first << tries.saturating_sub(1).min(16)).min(longest);
    Some(Duration::from_millis(rand::random_range(full / 2..=full)))
}

/// Makes sure that nothing of the blob's ingest stays when it can never become right.
pub(super) async fn drop_ingest(inner: &Inner, digest: &Digest) {
    if let Err(status) = content::abort(&inner.containerd, digest).await {
        tracing::debug!(%digest, %status, "a broken blob stays until its lease ends");
    }
}
