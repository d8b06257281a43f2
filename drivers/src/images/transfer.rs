//! Bytes of blobs from registry or archive into the content store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tonic::Status;

use super::Error;
use super::archive::{self, ArchiveImage, Part};
use super::content::{Ingest, Lease, MESSAGE, Opened, is_corrupt};
use super::driver::Inner;
use super::manifest::{Descriptor, Digest};
use super::progress::Tracker;
use super::pull::{Terms, drop_ingest, pause};
use super::registry::{Failure, Repository, Retry, failed};
use super::slots::Slot;
use super::stored;
use super::unpack::answered;
use crate::containerd::is_unavailable;

/// A small document from the registry, verified.
pub(super) async fn document(repository: &Repository, blob: &Descriptor) -> Result<Vec<u8>, Failure> {
    let wrong = |message: String| Failure { error: corrupt(blob, message), retry: Retry::Soon };
    let mut stream = repository.blob(blob, 0).await?.bytes;
    let mut bytes = Vec::with_capacity(blob.size as usize);
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(|e| broken(blob, e))?);
        if bytes.len() as u64 > blob.size {
            return Err(wrong(format!("the registry sends more than its {} bytes", blob.size)));
        }
    }
    if (bytes.len() as u64) < blob.size {
        return Err(broken(blob, std::io::ErrorKind::UnexpectedEof.into()));
    }
    let actual = Digest::of(&bytes);
    if actual != blob.digest {
        return Err(wrong(format!("the registry sent other content, {actual}")));
    }
    Ok(bytes)
}

/// Transfers from one repository under one lease.
#[derive(Clone)]
pub(super) struct Transfers {
    inner: Arc<Inner>,
    lease: Lease,
    repository: Repository,
    terms: Terms,
}

impl Transfers {
    pub(super) fn new(inner: &Arc<Inner>, lease: &Lease, repository: &Repository, terms: &Terms) -> Self {
        let (inner, lease, repository) = (inner.clone(), lease.clone(), repository.clone());
        Self { inner, lease, repository, terms: terms.clone() }
    }

    /// Gets all layers, several at once, and tells of each as it is complete.
    pub(super) async fn get_all(
        &self,
        layers: &[Descriptor],
        tracker: &Tracker,
        ready: &watch::Sender<HashSet<Digest>>,
    ) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let mut open: FuturesUnordered<_> = layers
            .iter()
            .filter(|layer| seen.insert(&layer.digest))
            .map(|layer| async move { self.ensure(layer, tracker).await.map(|()| layer) })
            .collect();
        while let Some(done) = open.next().await {
            let layer = done?;
            ready.send_modify(|there| {
                there.insert(layer.digest.clone());
            });
        }
        Ok(())
    }

    /// The blob is in the store and held by the lease after this, by whosever transfer.
    async fn ensure(&self, blob: &Descriptor, tracker: &Tracker) -> Result<(), Error> {
        loop {
            if present(&self.lease, blob).await? {
                tracker.blob(&blob.digest, blob.size);
                return Ok(());
            }
            let joined = self.inner.blobs.join(
                blob.digest.clone(),
                |panic| Err(failed("transferring a blob".to_owned(), std::io::Error::other(panic))),
                || {
                    let (bytes, progress) = watch::channel(0);
                    let (transfers, blob) = (self.clone(), blob.clone());
                    (progress, async move { transfers.transfer(&blob, &bytes).await })
                },
            );
            let (mut progress, mut result) = (joined.about, joined.result);
            let outcome = loop {
                let bytes = *progress.borrow_and_update();
                tracker.blob(&blob.digest, bytes);
                // Both arms are cancel-safe: the result is shared and the value stays in the channel.
                tokio::select! {
                    biased;
                    outcome = &mut result => break outcome,
                    changed = progress.changed() => if changed.is_err() { break result.clone().await },
                }
            };
            match outcome {
                Ok(()) if joined.started => {
                    tracker.blob(&blob.digest, blob.size);
                    return Ok(());
                }
                // It is there by another's transfer: look whether our lease got hold of it in time.
                Ok(()) => {}
                // Another image's repository or password may have been the reason.
                Err(_) if !joined.started => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn transfer(&self, blob: &Descriptor, bytes: &watch::Sender<u64>) -> Result<(), Error> {
        let mut slot = self.inner.layers.take(self.terms.priority).await;
        let mut tries = 0;
        let mut corrupt = false;
        let mut reached = 0;
        let most = self.inner.options.attempts;
        loop {
            let failure = match self.attempt(blob, bytes, &mut slot).await {
                Ok(()) => return Ok(()),
                // Bytes that were damaged on the way, or left by an earlier attempt, deserve one fresh start.
                Err(Broken::Corrupt(_)) if !corrupt => {
                    corrupt = true;
                    continue;
                }
                Err(Broken::Corrupt(error)) => return Err(error),
                Err(Broken::Failed(failure)) => failure,
            };
            let now = *bytes.borrow();
            tries = if now > reached { 1 } else { tries + 1 };
            reached = reached.max(now);
            // One attempt means one, also with progress.
            match pause(tries, failure.retry) {
                Some(pause) if tries < most && most > 1 => {
                    tracing::debug!(digest = %blob.digest, at = now, ?pause, error = %failure.error, "continuing a transfer");
                    slot.wait(tokio::time::sleep(pause)).await;
                }
                _ => return Err(failure.error),
            }
        }
    }

    async fn attempt(&self, blob: &Descriptor, bytes: &watch::Sender<u64>, slot: &mut Slot) -> Result<(), Broken> {
        let Self { inner, lease, repository, terms } = self;
        let mut ingest = match Ingest::open(lease, blob).await.map_err(|s| storing(blob, s))? {
            Opened::Present => return Ok(()),
            Opened::Writing(ingest) => ingest,
        };
        bytes.send_replace(ingest.offset());
        if ingest.offset() < blob.size {
            let stream = slot.wait(repository.blob(blob, ingest.offset())).await?;
            let mut skip = ingest.offset().saturating_sub(stream.start);
            let mut stream = stream.bytes;
            let mut buffer = BytesMut::with_capacity(MESSAGE);
            let ended = loop {
                match slot.wait(stream.next()).await {
                    None => break None,
                    Some(Err(e)) => break Some(e),
                    Some(Ok(mut chunk)) => {
                        let skipped = skip.min(chunk.len() as u64);
                        skip -= skipped;
                        let _ = chunk.split_to(skipped as usize);
                        let reached = ingest.offset() + (buffer.len() + chunk.len()) as u64;
                        if reached > blob.size {
                            drop(ingest);
                            drop_ingest(inner, &blob.digest).await;
                            let message = format!("the registry sends more than its {} bytes", blob.size);
                            return Err(Broken::Corrupt(corrupt(blob, message)));
                        }
                        inner.throttle.pass(chunk.len()).await;
                        terms.throttle.pass(chunk.len()).await;
                        slot.progress(reached);
                        append(&mut ingest, &mut buffer, chunk).await.map_err(|s| storing(blob, s))?;
                        bytes.send_replace(reached);
                    }
                }
            };
            // Also what came before the connection broke is kept.
            ingest.write(buffer.split().freeze()).await.map_err(|s| storing(blob, s))?;
            if ended.is_some() || ingest.offset() < blob.size {
                ingest.settle().await.map_err(|s| storing(blob, s))?;
            }
            if let Some(error) = ended {
                return Err(broken(blob, error).into());
            }
            if ingest.offset() < blob.size {
                return Err(broken(blob, std::io::ErrorKind::UnexpectedEof.into()).into());
            }
        }
        let (registry, repository) = repository.source();
        let labels = HashMap::from([(format!("containerd.io/distribution.source.{registry}"), repository.to_owned())]);
        match ingest.commit(labels).await {
            Ok(()) => Ok(()),
            Err(status) if is_corrupt(&status) => {
                drop_ingest(inner, &blob.digest).await;
                Err(Broken::Corrupt(corrupt(blob, status.message().to_owned())))
            }
            Err(status) => Err(storing(blob, status).into()),
        }
    }
}

/// Whether the blob is complete in the store. It is under the lease then, so that it stays. One that is not there comes
/// under it when it is written.
async fn present(lease: &Lease, blob: &Descriptor) -> Result<bool, Error> {
    let there = || stored::info(lease.containerd(), &blob.digest);
    let held = match there().await? {
        None => None,
        Some(_) => {
            lease
                .hold_blob(&blob.digest)
                .await
                .map_err(|s| answered(format!("holding the blob {}", blob.digest), s))?;
            // The collector may have run in between.
            there().await?
        }
    };
    match held {
        None => Ok(false),
        Some(info) if info.size == blob.size as i64 => Ok(true),
        Some(info) => {
            // Its digest was checked when it came, so it is the manifest that lies.
            Err(corrupt(blob, format!("it has {} bytes, its manifest says {}", info.size, blob.size)))
        }
    }
}

enum Broken {
    /// The content is not what its digest says; nothing of it is kept.
    Corrupt(Error),
    /// What arrived is kept.
    Failed(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Broken::Failed(failure)
    }
}

/// Collects small chunks into whole messages.
async fn append(ingest: &mut Ingest, buffer: &mut BytesMut, mut chunk: Bytes) -> Result<(), Status> {
    while !chunk.is_empty() {
        let room = MESSAGE - buffer.len();
        buffer.extend_from_slice(&chunk.split_to(room.min(chunk.len())));
        if buffer.len() == MESSAGE {
            ingest.write(buffer.split().freeze()).await?;
            buffer.reserve(MESSAGE);
        }
    }
    Ok(())
}

fn corrupt(blob: &Descriptor, message: String) -> Error {
    Error::Corrupt { digest: blob.digest.to_string(), source: Arc::new(std::io::Error::other(message)) }
}

/// The connection broke or ended too early.
fn broken(blob: &Descriptor, error: std::io::Error) -> Failure {
    let error = Error::Unreachable { doing: format!("getting the blob {}", blob.digest), source: Arc::new(error) };
    Failure { error, retry: Retry::Soon }
}

/// containerd's failure; one that restarts is worth waiting for.
fn storing(blob: &Descriptor, status: Status) -> Failure {
    let transient = is_unavailable(&status) || status.code() == tonic::Code::Aborted;
    let retry = if transient { Retry::Soon } else { Retry::No };
    Failure { error: answered(format!("storing the blob {}", blob.digest), status), retry }
}

/// Writes the layers of an archive in the order in which it has them.
pub(super) async fn from_archive(
    inner: &Arc<Inner>,
    lease: &Lease,
    archive: &ArchiveImage,
    tracker: &Arc<Tracker>,
    ready: &watch::Sender<HashSet<Digest>>,
) -> Result<(), Error> {
    let arrived = |blob: &Descriptor| {
        tracker.blob(&blob.digest, blob.size);
        ready.send_modify(|there| {
            there.insert(blob.digest.clone());
        });
    };
    let mut missing: HashMap<&Digest, &Descriptor> = HashMap::new();
    for blob in &archive.manifest.layers {
        if present(lease, blob).await? {
            arrived(blob);
        } else {
            missing.insert(&blob.digest, blob);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = archive.layers.iter().filter(|(digest, _)| missing.contains_key(digest)).cloned().collect();
    let mut parts = archive::stream(archive.contents.clone(), wanted);
    let mut current: Option<Writing<'_>> = None;
    loop {
        let part = parts.recv().await;
        if !matches!(part, Some(Part::Data(_) | Part::Failed(_)))
            && let Some(done) = current.take()
        {
            let blob = done.blob;
            done.finish(inner, archive).await?;
            missing.remove(&blob.digest);
            arrived(blob);
        }
        match part {
            None => break,
            Some(Part::Begin(digest)) => {
                if let Some(blob) = missing.get(&digest) {
                    current = Some(Writing::open(lease, blob).await?);
                }
            }
            Some(Part::Data(data)) => {
                if let Some(writing) = &mut current {
                    tracker.blob(&writing.blob.digest, writing.write(data).await?);
                }
            }
            Some(Part::Failed(source)) => {
                let doing = current.as_ref().map_or("reading it".to_owned(), |w| format!("reading {}", w.blob.digest));
                return Err(unusable(archive, archive::Error::Read { doing, source }));
            }
        }
    }
    match missing.keys().next() {
        None => Ok(()),
        Some(digest) => {
            let message = format!("the layer {digest} was there when it was opened and is gone");
            Err(unusable(archive, archive::Error::Malformed(message)))
        }
    }
}

/// A blob of an archive on its way.
struct Writing<'a> {
    blob: &'a Descriptor,
    /// `None` when somebody else finished it meanwhile.
    ingest: Option<Box<Ingest>>,
    /// Bytes that an earlier attempt left.
    skip: u64,
    read: u64,
}

impl<'a> Writing<'a> {
    async fn open(lease: &Lease, blob: &'a Descriptor) -> Result<Self, Error> {
        let opened = Ingest::open(lease, blob).await.map_err(|s| storing(blob, s).error)?;
        Ok(match opened {
            Opened::Present => Self { blob, ingest: None, skip: 0, read: 0 },
            Opened::Writing(ingest) => Self { blob, skip: ingest.offset(), ingest: Some(ingest), read: 0 },
        })
    }

    /// Returns how many bytes are there.
    async fn write(&mut self, mut data: Bytes) -> Result<u64, Error> {
        self.read += data.len() as u64;
        if let Some(ingest) = &mut self.ingest {
            let skipped = self.skip.min(data.len() as u64);
            self.skip -= skipped;
            let _ = data.split_to(skipped as usize);
            ingest.write(data).await.map_err(|s| storing(self.blob, s).error)?;
        }
        Ok(self.read)
    }

    async fn finish(self, inner: &Inner, archive: &ArchiveImage) -> Result<(), Error> {
        let Some(ingest) = self.ingest else { return Ok(()) };
        match ingest.commit(HashMap::new()).await {
            Ok(()) => Ok(()),
            Err(status) if is_corrupt(&status) => {
                drop_ingest(inner, &self.blob.digest).await;
                let digest = &self.blob.digest;
                let name = archive.layers.iter().find(|(d, _)| d == digest).map_or("", |(_, name)| name);
                let message = format!("{name} is damaged: its digest is not {digest}");
                Err(unusable(archive, archive::Error::Malformed(message)))
            }
            Err(status) => Err(storing(self.blob, status).error),
        }
    }
}

fn unusable(archive: &ArchiveImage, error: archive::Error) -> Error {
    Error::Archive { path: archive.path.clone(), source: Arc::new(error) }
}
