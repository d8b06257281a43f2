//! [`Images`] in memory, with scripted registries, archives, delays and failures.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::manifest::Digest;
use super::platform::Platform;
use super::sharing::Sharing;
use super::{
    BlobUsage, Credentials, Damage, Disk, Error, Estimate, Fetch, Fetched, Image, ImageUsage, Images, OnProgress,
    Phase, Progress, SnapshotUsage, Source, Usage, normalize,
};

/// An image that the fake can fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Changes the digest, as pushing other content does.
    pub content: String,
    /// Compressed size in bytes.
    pub size: u64,
    /// For which platforms it is; empty is every one.
    pub platforms: Vec<String>,
    /// Who may fetch it; `None` is everybody.
    pub credentials: Option<Credentials>,
    /// How long a fetch takes.
    pub delay: Duration,
}

impl Offer {
    /// A small image for everybody, fetched at once.
    pub fn new(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            size: 1000,
            platforms: Vec::new(),
            credentials: None,
            delay: Duration::ZERO,
        }
    }

    fn digest(&self) -> String {
        Digest::of(self.content.as_bytes()).to_string()
    }
}

/// The images of a node that exists in memory only. Clones are the same node.
#[derive(Debug, Clone, Default)]
pub struct FakeImages {
    state: Arc<Mutex<State>>,
    running: Arc<Sharing<Wish, Option<Credentials>, Result<Image, Error>>>,
}

/// What makes two fetches the same.
type Wish = (String, Source, Platform);

#[derive(Debug, Default)]
struct State {
    registry: HashMap<String, Offer>,
    archives: HashMap<PathBuf, Offer>,
    node: BTreeMap<String, Image>,
    failures: HashMap<String, Vec<Error>>,
    damage: HashMap<String, Vec<Damage>>,
    fetches: Vec<Fetch>,
    transfers: usize,
    disk: Disk,
}

impl FakeImages {
    /// A node without images, and registries without content.
    pub fn new() -> Self {
        Self::default()
    }

    /// The registry has that image from now on.
    ///
    /// # Panics
    /// When `reference` is none: a script's mistake.
    pub fn push(&self, reference: &str, offer: Offer) {
        let name = normalize(reference).expect("a script names images correctly");
        self.state().registry.insert(name, offer);
    }

    /// The registry no longer has it.
    ///
    /// # Panics
    /// When `reference` is none: a script's mistake.
    pub fn unpush(&self, reference: &str) {
        let name = normalize(reference).expect("a script names images correctly");
        self.state().registry.remove(&name);
    }

    /// An archive with that image lies at `path`.
    pub fn put_archive(&self, path: impl Into<PathBuf>, offer: Offer) {
        self.state().archives.insert(path.into(), offer);
    }

    /// The next fetch of the reference fails so; further calls script the fetches after it.
    ///
    /// # Panics
    /// When `reference` is none: a script's mistake.
    pub fn fail_next(&self, reference: &str, error: Error) {
        let name = normalize(reference).expect("a script names images correctly");
        self.state().failures.entry(name).or_default().push(error);
    }

    /// The image is found damaged so, until it is repaired or removed.
    ///
    /// # Panics
    /// When `reference` is none: a script's mistake.
    pub fn damage(&self, reference: &str, damage: Vec<Damage>) {
        let name = normalize(reference).expect("a script names images correctly");
        self.state().damage.insert(name, damage);
    }

    /// Every fetch that was asked for, in order.
    pub fn fetches(&self) -> Vec<Fetch> {
        self.state().fetches.clone()
    }

    /// How many transfers there were: shared fetches count once.
    pub fn transfers(&self) -> usize {
        self.state().transfers
    }

    /// The filesystem is so from now on; fetched and removed images change it by their size.
    pub fn set_disk(&self, disk: Disk) {
        self.state().disk = disk;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(&self, name: &str, fetch: &Fetch, platform: &Platform) -> Result<Offer, Error> {
        let offer = match &fetch.source {
            Source::Registry => {
                let found = self.state().registry.get(name).cloned();
                found.ok_or_else(|| Error::NotFound { reference: name.to_owned() })?
            }
            Source::Archive(path) => self.state().archives.get(path).cloned().ok_or_else(|| Error::Archive {
                path: path.clone(),
                source: Arc::new(std::io::Error::from(std::io::ErrorKind::NotFound)),
            })?,
        };
        if offer.credentials.is_some() && offer.credentials != fetch.credentials {
            let source = Arc::new(std::io::Error::other("authentication required"));
            return Err(Error::Unauthorized { reference: name.to_owned(), source });
        }
        let suits = |text: &String| Platform::parse(text).is_ok_and(|p| platform.suits(&p).is_some());
        if !offer.platforms.is_empty() && !offer.platforms.iter().any(suits) {
            return Err(Error::Platform {
                reference: name.to_owned(),
                platform: platform.to_string(),
                available: offer.platforms.join(", "),
            });
        }
        Ok(offer)
    }
}

fn wish(fetch: &Fetch) -> Result<(String, Platform), Error> {
    let platform = match &fetch.platform {
        None => Platform::node(),
        Some(text) => Platform::parse(text)
            .map_err(|message| Error::InvalidReference { reference: fetch.reference.clone(), message })?,
    };
    Ok((normalize(&fetch.reference)?, platform))
}

#[async_trait]
impl Images for FakeImages {
    async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        Ok(self.state().node.get(&normalize(reference)?).cloned())
    }

    async fn list(&self) -> Result<Vec<Image>, Error> {
        Ok(self.state().node.values().cloned().collect())
    }

    async fn list_fetched(&self) -> Result<Vec<Fetched>, Error> {
        let fetched = |image: &Image| Fetched {
            reference: image.reference.clone(),
            digest: image.digest.clone(),
            size: image.size,
        };
        Ok(self.state().node.values().map(fetched).collect())
    }

    async fn disk(&self) -> Result<Disk, Error> {
        Ok(self.state().disk)
    }

    async fn fetch(&self, fetch: &Fetch, progress: OnProgress) -> Result<Image, Error> {
        let (name, platform) = wish(fetch)?;
        self.state().fetches.push(fetch.clone());
        progress(Progress::default());
        let outcome = loop {
            let joined = self.running.join(
                (name.clone(), fetch.source.clone(), platform.clone()),
                |panic| Err(super::registry::failed("fetching an image".to_owned(), std::io::Error::other(panic))),
                || {
                    let (fake, fetch, name, platform) = (self.clone(), fetch.clone(), name.clone(), platform.clone());
                    (fetch.credentials.clone(), async move { fake.transfer(&name, &fetch, &platform).await })
                },
            );
            let outcome = joined.result.await;
            let other = !joined.started && joined.about != fetch.credentials;
            if !(other && matches!(outcome, Err(Error::Unauthorized { .. }))) {
                break outcome;
            }
        };
        progress(match &outcome {
            Ok(image) => Progress { phase: Phase::Ready, bytes_done: image.size, bytes_total: image.size },
            Err(_) => Progress { phase: Phase::Failed, ..Progress::default() },
        });
        outcome
    }

    async fn names(&self, archive: &Path) -> Result<Vec<String>, Error> {
        let offer = self.state().archives.get(archive).cloned();
        let missing = || Arc::new(std::io::Error::from(std::io::ErrorKind::NotFound));
        let offer = offer.ok_or_else(|| Error::Archive { path: archive.to_owned(), source: missing() })?;
        Ok(vec![normalize(&format!("x.test/{}:1", offer.content))?])
    }

    async fn resolve(&self, fetch: &Fetch) -> Result<String, Error> {
        let (name, platform) = wish(fetch)?;
        Ok(self.offer(&name, fetch, &platform)?.digest())
    }

    async fn remove(&self, reference: &str) -> Result<(), Error> {
        let name = normalize(reference)?;
        let mut state = self.state();
        state.damage.remove(&name);
        if let Some(image) = state.node.remove(&name) {
            state.disk.available = state.disk.available.saturating_add(image.size).min(state.disk.total);
        }
        Ok(())
    }

    async fn estimate(&self, fetch: &Fetch) -> Result<Estimate, Error> {
        let (name, platform) = wish(fetch)?;
        let offer = self.offer(&name, fetch, &platform)?;
        let there = self.state().node.values().any(|image| image.digest == offer.digest());
        let (bytes_missing, bytes_unpacked) = if there { (0, 0) } else { (offer.size, 3 * offer.size) };
        Ok(Estimate { digest: offer.digest(), bytes_total: offer.size, bytes_missing, bytes_unpacked })
    }

    async fn usage(&self) -> Result<Usage, Error> {
        let state = self.state();
        let mut usage = Usage::default();
        for image in state.node.values() {
            usage.images.push(ImageUsage {
                reference: image.reference.clone(),
                digest: image.digest.clone(),
                blobs: vec![image.digest.clone()],
                snapshots: vec![image.config_digest.clone()],
                updated: None,
            });
            if usage.blobs.iter().all(|blob| blob.digest != image.digest) {
                usage.blobs.push(BlobUsage { digest: image.digest.clone(), size: image.size });
                usage.snapshots.push(SnapshotUsage {
                    name: image.config_digest.clone(),
                    parent: String::new(),
                    committed: true,
                    size: 3 * image.size,
                });
            }
        }
        Ok(usage)
    }

    async fn collect(&self, _wanted: &BTreeSet<String>) -> Result<(), Error> {
        Ok(())
    }

    async fn verify(&self, reference: &str) -> Result<Vec<Damage>, Error> {
        Ok(self.state().damage.get(&normalize(reference)?).cloned().unwrap_or_default())
    }

    async fn repair(&self, fetch: &Fetch, _damage: &[Damage], progress: OnProgress) -> Result<Image, Error> {
        let image = self.fetch(fetch, progress).await?;
        self.state().damage.remove(&image.reference);
        Ok(image)
    }
}

impl FakeImages {
    async fn transfer(&self, name: &str, fetch: &Fetch, platform: &Platform) -> Result<Image, Error> {
        let scripted = {
            let mut state = self.state();
            state.transfers += 1;
            state.failures.get_mut(name).filter(|left| !left.is_empty()).map(|left| left.remove(0))
        };
        if let Some(error) = scripted {
            return Err(error);
        }
        let offer = self.offer(name, fetch, platform)?;
        // Even without a delay others must be able to join, as they can at a real transfer.
        tokio::time::sleep(offer.delay).await;
        let image = Image {
            reference: name.to_owned(),
            digest: offer.digest(),
            config_digest: Digest::of(format!("config of {}", offer.content).as_bytes()).to_string(),
            size: offer.size,
            signed_by: fetch.signers.iter().map(|signer| signer.fingerprint().to_owned()).collect(),
        };
        let mut state = self.state();
        if state.node.insert(name.to_owned(), image.clone()).is_none() {
            state.disk.available = state.disk.available.saturating_sub(image.size);
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Node};
    use super::*;

    struct Memory(FakeImages);

    #[async_trait]
    impl Node for Memory {
        fn images(&self) -> &dyn Images {
            &self.0
        }
        fn name(&self, name: &str) -> String {
            format!("registry.test/{name}")
        }
        async fn push(&self, name: &str, content: &str) {
            let platforms = vec![Platform::node().to_string()];
            self.0.push(&self.name(name), Offer { platforms, ..Offer::new(content) });
        }
        async fn archive(&self, content: &str) -> PathBuf {
            let path = PathBuf::from(format!("/archives/{content}.tar"));
            self.0.put_archive(&path, Offer::new(content));
            path
        }
    }

    #[tokio::test]
    async fn the_fake_conforms() {
        conformance::run(&Memory(FakeImages::new())).await;
    }

    #[tokio::test]
    async fn scripts_are_followed() {
        let fake = FakeImages::new();
        fake.push("app", Offer { delay: Duration::from_millis(20), ..Offer::new("a") });
        let fetch = Fetch::new("app");
        fake.fail_next("app", Error::NotFound { reference: "app".to_owned() });
        let silent: OnProgress = Arc::new(|_| {});
        assert!(fake.fetch(&fetch, silent.clone()).await.is_err());
        let (one, two) = tokio::join!(fake.fetch(&fetch, silent.clone()), fake.fetch(&fetch, silent));
        assert_eq!(one.unwrap(), two.unwrap());
        assert_eq!((fake.fetches().len(), fake.transfers()), (3, 2));
    }
}
