//! A driver of images without registries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nodelet_drivers::images::{
    Damage, Disk, Error, Estimate, Fetch, Fetched, Image, Images, OnProgress, Usage, normalize,
};
use nodelet_drivers::runtime::fake::FakeRuntime;
use tokio::sync::watch;

/// Images that are there as soon as somebody fetches them, except those named `missing`.
pub(super) struct InstantImages {
    pub(super) runtime: Arc<FakeRuntime>,
    pub(super) present: Mutex<BTreeMap<String, Image>>,
    /// How often something new was pushed, by reference.
    pub(super) pushes: Mutex<BTreeMap<String, u64>>,
    pub(super) fetches: Mutex<Vec<Fetch>>,
    /// How often a tag was looked up.
    pub(super) resolved: watch::Sender<usize>,
}

impl InstantImages {
    pub(super) fn push(&self, reference: &str) {
        *self.pushes.lock().unwrap().entry(normalize(reference).unwrap()).or_default() += 1;
    }

    pub(super) fn image(&self, reference: String) -> Image {
        let pushes = self.pushes.lock().unwrap().get(&reference).copied().unwrap_or_default();
        let digest = format!("sha256:{:064x}", reference.len() as u64 + 1000 * pushes);
        Image { reference, digest: digest.clone(), config_digest: digest, size: 1, signed_by: Vec::new() }
    }
}

#[async_trait]
impl Images for InstantImages {
    async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        let name = normalize(reference)?;
        Ok(self.present.lock().unwrap().get(&name).cloned())
    }

    async fn list(&self) -> Result<Vec<Image>, Error> {
        Ok(self.present.lock().unwrap().values().cloned().collect())
    }

    async fn list_fetched(&self) -> Result<Vec<Fetched>, Error> {
        let fetched = |i: &Image| Fetched { reference: i.reference.clone(), digest: i.digest.clone(), size: i.size };
        Ok(self.list().await?.iter().map(fetched).collect())
    }

    async fn disk(&self) -> Result<Disk, Error> {
        Ok(Disk::default())
    }

    async fn fetch(&self, fetch: &Fetch, _: OnProgress) -> Result<Image, Error> {
        self.fetches.lock().unwrap().push(fetch.clone());
        let name = normalize(&fetch.reference)?;
        if name.contains("missing") {
            return Err(Error::NotFound { reference: name });
        }
        let mut image = self.image(name.clone());
        if let Some(signer) = fetch.signers.first().filter(|_| name.contains("unsigned")) {
            return Err(Error::Unsigned {
                reference: name,
                digest: image.digest,
                signer: Box::new(signer.clone()),
                source: Arc::new(std::io::Error::other("no signature was found")),
            });
        }
        image.signed_by = fetch.signers.iter().map(|signer| signer.fingerprint().to_owned()).collect();
        self.runtime.add_image(&name, None);
        self.present.lock().unwrap().insert(name, image.clone());
        Ok(image)
    }

    async fn names(&self, archive: &Path) -> Result<Vec<String>, Error> {
        let text = std::fs::read_to_string(archive).unwrap_or_default();
        match text.strip_prefix("archive of ") {
            Some(name) => Ok(vec![normalize(name.trim())?]),
            None => {
                let source = Arc::new(std::io::Error::other("it is no archive"));
                Err(Error::Archive { path: archive.to_owned(), source })
            }
        }
    }

    async fn resolve(&self, fetch: &Fetch) -> Result<String, Error> {
        self.resolved.send_modify(|times| *times += 1);
        Ok(self.image(normalize(&fetch.reference)?).digest)
    }

    async fn remove(&self, reference: &str) -> Result<(), Error> {
        self.present.lock().unwrap().remove(&normalize(reference)?);
        Ok(())
    }

    async fn estimate(&self, fetch: &Fetch) -> Result<Estimate, Error> {
        Ok(Estimate { digest: self.resolve(fetch).await?, ..Estimate::default() })
    }

    async fn usage(&self) -> Result<Usage, Error> {
        Ok(Usage::default())
    }

    async fn collect(&self, _wanted: &BTreeSet<String>) -> Result<(), Error> {
        Ok(())
    }

    async fn verify(&self, _reference: &str) -> Result<Vec<Damage>, Error> {
        Ok(Vec::new())
    }

    async fn repair(&self, fetch: &Fetch, _damage: &[Damage], progress: OnProgress) -> Result<Image, Error> {
        self.fetch(fetch, progress).await
    }
}
