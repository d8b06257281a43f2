//! [`Images`] on containerd: who asks for what, and what is there. The pull itself is in [`super::pull`].

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_client::services::v1::{DeleteImageRequest, ListImagesRequest, ListRequest};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_spec::distribution::Reference;
use tokio::sync::{Semaphore, broadcast, watch};

use super::content::{self, LEASE_IMAGE_LABEL};
use super::disk::Root;
use super::local::Local;
use super::manifest::Digest;
use super::platform::Platform;
use super::progress::Tracker;
use super::pull::Terms;
use super::recent::Recent;
use super::registry::{Registries, Repository};
use super::sharing::Sharing;
use super::slots::Slots;
use super::stored::{self, FETCHED_LABEL, Stored};
use super::throttle::Throttle;
use super::unpack::{Unpacked, answered};
use super::{
    Credentials, Damage, Disk, Error, Estimate, Fetch, Fetched, Image, Images, OnProgress, Phase, Signer, Source,
    Usage, credentials, pull, reference, signature, usage, verify,
};
use crate::containerd::{Containerd, absent_ok};

/// How the driver behaves. Every field can be changed without changing what is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Images that are fetched at once; one that waits for a slow registry does not count.
    pub parallel_pulls: usize,
    /// Blobs that are transferred at once, over all images; a slow one does not count.
    pub parallel_layers: usize,
    /// Attempts for one request or blob before its fetch fails; one that made progress counts anew.
    pub attempts: u32,
    /// A connection to a registry that is silent for so long is given up and made again.
    pub stall: Duration,
    /// Where containerd's `hosts.toml` files are, usually `/etc/containerd/certs.d`.
    pub registries_dir: Option<PathBuf>,
    /// Credentials for all who bring none: a file like Docker's `config.json`, credential helpers included.
    pub credentials_file: Option<PathBuf>,
    /// Bytes in a second from registries, over all transfers; `None` and 0 are no limit.
    pub max_bytes_per_second: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            parallel_pulls: 3,
            parallel_layers: 4,
            attempts: 5,
            stall: Duration::from_secs(30),
            registries_dir: None,
            credentials_file: None,
            max_bytes_per_second: None,
        }
    }
}

/// The images of one containerd namespace. Clones share their transfers.
#[derive(Debug, Clone)]
pub struct ContainerdImages {
    inner: Arc<Inner>,
}

/// What all fetches share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) containerd: Containerd,
    pub(super) options: Options,
    pub(super) registries: Registries,
    pub(super) root: Root,
    pub(super) local: Local,
    /// Layers that we unpack at once: more than the processors gain nothing.
    pub(super) unpacking: Semaphore,
    /// Tells the names of snapshots that have just been committed, for those that wait for one.
    pub(super) unpacked: broadcast::Sender<Digest>,
    pub(super) pulls: Slots,
    pub(super) layers: Slots,
    pub(super) throttle: Throttle,
    pub(super) blobs: Sharing<Digest, watch::Receiver<u64>, Result<(), Error>>,
    pub(super) snapshots: Sharing<Digest, (), Result<Unpacked, Error>>,
    fetches: Sharing<Wish, About, Result<Image, Error>>,
    recent: Recent,
}

impl Inner {
    /// The servers of a repository, asked with these credentials or else with the node's own.
    pub(super) async fn repository(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Repository, Error> {
        let credentials = match credentials {
            Some(given) => Some(given),
            None => credentials::of_node(self.options.credentials_file.as_deref(), &reference.whole()).await?,
        };
        self.registries.repository(reference, credentials)
    }
}

/// What makes two fetches the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wish {
    /// Normalised.
    pub(super) reference: String,
    pub(super) source: Source,
    pub(super) platform: Platform,
    /// Who must have signed it: a fetch without that condition has nothing to say to one with it.
    pub(super) signers: Vec<Signer>,
    /// Make whole what the record points at, by digest and from what is there, instead of what the reference stands
    /// for now.
    pub(super) repair: bool,
}

#[derive(Debug, Clone)]
struct About {
    tracker: Arc<Tracker>,
    credentials: Option<Credentials>,
}

impl ContainerdImages {
    /// The images of `containerd`'s namespace.
    pub fn new(containerd: Containerd, options: Options) -> Self {
        let inner = Inner {
            registries: Registries::new(options.registries_dir.clone(), options.stall),
            pulls: Slots::new(options.parallel_pulls),
            layers: Slots::new(options.parallel_layers),
            throttle: Throttle::new(options.max_bytes_per_second),
            blobs: Sharing::default(),
            snapshots: Sharing::default(),
            fetches: Sharing::default(),
            recent: Recent::default(),
            root: Root::default(),
            local: Local::default(),
            unpacking: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
            unpacked: broadcast::Sender::new(256),
            containerd,
            options,
        };
        Self { inner: Arc::new(inner) }
    }

    fn containerd(&self) -> &Containerd {
        &self.inner.containerd
    }

    /// The image of that record if everything it leads to is there.
    async fn complete(&self, record: &containerd_client::services::v1::Image) -> Result<Option<Image>, Error> {
        // A broken image is not there; fetching it anew repairs it.
        let stored = match stored::follow(self.containerd(), record).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(None),
            Err(error @ stored::Error::Invalid { .. }) => {
                tracing::debug!(image = record.name, %error, "an image is unusable");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        for layer in &stored.manifest.layers {
            if stored::info(self.containerd(), &layer.digest).await?.is_none() {
                return Ok(None);
            }
        }
        if let Some(top) = stored.top()
            && !stored::has_snapshot(self.containerd(), &top).await?
        {
            return Ok(None);
        }
        Ok(Some(image(stored, &record.labels)))
    }

    fn wish(&self, fetch: &Fetch) -> Result<Wish, Error> {
        let platform = match &fetch.platform {
            None => Platform::node(),
            Some(text) => Platform::parse(text)
                .map_err(|message| Error::InvalidReference { reference: fetch.reference.clone(), message })?,
        };
        Ok(Wish {
            reference: reference::parse(&fetch.reference)?.whole(),
            source: fetch.source.clone(),
            platform,
            signers: fetch.signers.clone(),
            repair: false,
        })
    }
}

fn image(stored: Stored, labels: &HashMap<String, String>) -> Image {
    Image {
        signed_by: signature::signed_by(labels, stored.target.as_str()),
        size: stored.manifest.size(),
        digest: stored.target.to_string(),
        config_digest: stored.manifest.config.digest.to_string(),
        reference: stored.name,
    }
}

#[async_trait]
impl Images for ContainerdImages {
    async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        let name = super::normalize(reference)?;
        let Some(record) = stored::record(self.containerd(), &name).await? else { return Ok(None) };
        if let Some(image) = self.inner.recent.get(&record, Instant::now()) {
            return Ok(Some(image));
        }
        let image = self.complete(&record).await?;
        if let Some(image) = &image {
            self.inner.recent.put(record, image.clone(), Instant::now());
        }
        Ok(image)
    }

    async fn list(&self) -> Result<Vec<Image>, Error> {
        let found: Vec<Option<Image>> = stream::iter(self.records().await?)
            .map(|record| async move { self.complete(&record).await })
            .buffered(8)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn list_fetched(&self) -> Result<Vec<Fetched>, Error> {
        let ours = self.records().await?.into_iter().filter(|record| record.labels.contains_key(FETCHED_LABEL));
        stream::iter(ours)
            .map(|record| async move {
                let size = match stored::follow(self.containerd(), &record).await {
                    Ok(stored) => stored.map_or(0, |stored| stored.manifest.size()),
                    Err(stored::Error::Invalid { .. }) => 0,
                    Err(error) => return Err(error.into()),
                };
                let digest = record.target.map(|target| target.digest).unwrap_or_default();
                Ok(Fetched { reference: record.name, digest, size })
            })
            .buffered(8)
            .try_collect()
            .await
    }

    async fn disk(&self) -> Result<Disk, Error> {
        self.inner.root.disk(self.containerd()).await
    }

    async fn fetch(&self, fetch: &Fetch, progress: OnProgress) -> Result<Image, Error> {
        self.get_by(self.wish(fetch)?, fetch, progress).await
    }

    async fn names(&self, archive: &Path) -> Result<Vec<String>, Error> {
        pull::archive_names(archive).await
    }

    async fn resolve(&self, fetch: &Fetch) -> Result<String, Error> {
        let wish = self.wish(fetch)?;
        match &wish.source {
            Source::Registry => {
                let parsed = reference::parse(&wish.reference)?;
                let repository = self.inner.repository(&parsed, fetch.credentials.clone()).await?;
                pull::patiently(&self.inner, || repository.digest()).await
            }
            Source::Archive(path) => {
                let archive = pull::open_archive(path.clone(), wish.reference.clone(), wish.platform.clone()).await?;
                Ok(archive.root.digest.to_string())
            }
        }
    }

    async fn estimate(&self, fetch: &Fetch) -> Result<Estimate, Error> {
        pull::estimate(&self.inner, &self.wish(fetch)?, fetch.credentials.clone()).await
    }

    async fn usage(&self) -> Result<Usage, Error> {
        usage::observe(&self.inner).await
    }

    async fn collect(&self, wanted: &BTreeSet<String>) -> Result<(), Error> {
        self.inner.recent.clear();
        usage::collect(&self.inner, wanted, |name| self.inner.fetches.any(|wish| wish.reference == name)).await
    }

    async fn verify(&self, reference: &str) -> Result<Vec<Damage>, Error> {
        verify::verify(&self.inner, &super::normalize(reference)?).await
    }

    async fn repair(&self, fetch: &Fetch, damage: &[Damage], progress: OnProgress) -> Result<Image, Error> {
        self.inner.recent.clear();
        if damage.iter().any(|damage| matches!(damage, Damage::Blob { .. })) {
            // What is damaged is worth more than nothing while its source does not answer.
            self.resolve(fetch).await?;
            verify::drop_blobs(&self.inner, damage).await?;
        }
        let wish = Wish { repair: true, ..self.wish(fetch)? };
        let image = self.get_by(wish, fetch, progress).await?;
        verify::replace_snapshots(&self.inner, &image.reference, damage).await?;
        Ok(image)
    }

    async fn remove(&self, reference: &str) -> Result<(), Error> {
        self.inner.recent.clear();
        let name = super::normalize(reference)?;
        // What an interrupted fetch left goes too, unless it is running again.
        if !self.inner.fetches.any(|wish| wish.reference == name) {
            self.drop_leases(&name).await?;
        }
        let request =
            self.containerd().request(DeleteImageRequest { name: name.clone(), sync: true, ..Default::default() });
        absent_ok(self.containerd().images().delete(request).await)
            .map_err(|status| answered(format!("removing the image {name}"), status))?;
        Ok(())
    }
}

impl ContainerdImages {
    /// Joins or starts the work for the wish.
    async fn get_by(&self, wish: Wish, fetch: &Fetch, progress: OnProgress) -> Result<Image, Error> {
        loop {
            let joined = self.inner.fetches.join(
                wish.clone(),
                |panic| Err(super::registry::failed("fetching an image".to_owned(), std::io::Error::other(panic))),
                || {
                    let tracker = Arc::new(Tracker::default());
                    let about = About { tracker: tracker.clone(), credentials: fetch.credentials.clone() };
                    let terms = Terms {
                        credentials: fetch.credentials.clone(),
                        priority: fetch.priority,
                        throttle: Arc::new(Throttle::new(Some(fetch.max_bytes_per_second))),
                    };
                    (about, pull::run(self.inner.clone(), wish.clone(), terms, tracker))
                },
            );
            let mut latest = joined.about.tracker.watch();
            let mut result = joined.result;
            let outcome = loop {
                progress(latest.borrow_and_update().clone());
                // Both arms are cancel-safe: the result is shared and the value stays in the channel.
                tokio::select! {
                    biased;
                    outcome = &mut result => break outcome,
                    changed = latest.changed() => if changed.is_err() { break result.clone().await },
                }
            };
            // Somebody else's password is no reason to refuse this one.
            let other = !joined.started && joined.about.credentials != fetch.credentials;
            if other && matches!(outcome, Err(Error::Unauthorized { .. })) {
                continue;
            }
            let mut last = latest.borrow().clone();
            last.phase = if outcome.is_ok() { Phase::Ready } else { Phase::Failed };
            progress(last);
            return outcome;
        }
    }

    async fn records(&self) -> Result<Vec<containerd_client::services::v1::Image>, Error> {
        let request = self.containerd().request(ListImagesRequest::default());
        let answer = self.containerd().images().list(request).await;
        Ok(answer.map_err(|status| answered("listing images".to_owned(), status))?.into_inner().images)
    }

    async fn drop_leases(&self, name: &str) -> Result<(), Error> {
        let doing = |status| answered(format!("releasing what was fetched of {name}"), status);
        let filters = vec![format!("labels.\"{LEASE_IMAGE_LABEL}\"==\"{name}\"")];
        let request = self.containerd().request(ListRequest { filters });
        let leases = self.containerd().leases().list(request).await.map_err(doing)?.into_inner().leases;
        // A filter that an older daemon reads differently must not cost others their leases.
        for lease in leases.iter().filter(|l| l.labels.get(LEASE_IMAGE_LABEL).is_some_and(|n| n == name)) {
            content::release(self.containerd(), &lease.id, true).await.map_err(doing)?;
        }
        Ok(())
    }
}
