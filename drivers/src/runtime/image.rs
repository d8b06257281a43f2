//! What a container needs to know of its image: the top snapshot, the defaults of its configuration, its accounts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::{GetImageRequest, ReadContentRequest};
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::accounts::Accounts;
use super::containerd::Shared;
use super::{Error, HealthCheck};
use crate::containerd::{absent_ok, is_not_found};

/// Manifests and configurations are small; anything larger is not one.
const MAX_METADATA: usize = 8 << 20;
/// How many images are remembered.
const REMEMBERED: usize = 256;

/// What a container needs to know of an image. Everything in it follows from the digest.
#[derive(Debug)]
pub(super) struct ImageFacts {
    /// Name of the committed snapshot of the top layer; empty for an image without layers.
    pub(super) chain_id: String,
    /// The `config` object: ENTRYPOINT, CMD, ENV, USER, …
    pub(super) config: oci_spec::image::Config,
    /// Its HEALTHCHECK, unless that is `NONE`.
    pub(super) health_check: Option<HealthCheck>,
    /// Its users and groups; known after the first container of it.
    pub(super) accounts: std::sync::OnceLock<Accounts>,
}

/// Facts by digest, so that only the first container of an image pays for reading them.
#[derive(Debug, Default)]
pub(super) struct ImageCache {
    facts: Mutex<HashMap<String, Arc<ImageFacts>>>,
}

impl ImageCache {
    /// What is remembered of the image that a record points at by that digest.
    pub(super) fn get(&self, digest: &str) -> Option<Arc<ImageFacts>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn put(&self, digest: String, facts: Arc<ImageFacts>) {
        let mut map = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= REMEMBERED {
            map.clear();
        }
        map.insert(digest, facts);
    }
}

/// Facts of the image record `name`.
pub(super) async fn facts(shared: &Shared, name: &str) -> Result<Arc<ImageFacts>, Error> {
    let containerd = &shared.containerd;
    let absent = || Error::NotFound { what: "image", id: name.to_owned() };
    let request = containerd.request(GetImageRequest { name: name.to_owned() });
    let target = absent_ok(containerd.images().get(request).await)
        .map_err(|status| containerd.error(format!("reading image {name}"), status))?
        .and_then(|answer| answer.image)
        .and_then(|image| image.target)
        .ok_or_else(absent)?;
    if let Some(facts) = shared.images.get(&target.digest) {
        return Ok(facts);
    }
    let facts = Arc::new(read_facts(shared, name, &target.digest, &target.media_type).await?);
    shared.images.put(target.digest, facts.clone());
    Ok(facts)
}

async fn read_facts(shared: &Shared, name: &str, digest: &str, media_type: &str) -> Result<ImageFacts, Error> {
    let doing = || format!("reading the metadata of image {name}");
    let broken = |source: serde_json::Error| Error::Failed { doing: doing(), source: Box::new(source) };
    let raw = read_blob(shared, digest, doing).await?.ok_or_else(|| missing(digest))?;
    let is_index = media_type.ends_with("image.index.v1+json") || media_type.ends_with("manifest.list.v2+json");
    let manifest: ImageManifest = if is_index {
        let index: ImageIndex = serde_json::from_slice(&raw).map_err(broken)?;
        manifest_of(shared, name, &index).await?
    } else {
        serde_json::from_slice(&raw).map_err(broken)?
    };
    let config_digest = manifest.config().digest().to_string();
    let raw = read_blob(shared, &config_digest, doing).await?.ok_or_else(|| missing(&config_digest))?;
    let image: ImageConfiguration = serde_json::from_slice(&raw).map_err(broken)?;
    let docker: DockerConfiguration = serde_json::from_slice(&raw).unwrap_or_default();
    Ok(ImageFacts {
        health_check: docker.config.and_then(|config| config.healthcheck).and_then(DockerHealthCheck::read),
        chain_id: chain_id(image.rootfs().diff_ids()),
        config: image.config().clone().unwrap_or_default(),
        accounts: std::sync::OnceLock::new(),
    })
}

/// What Docker keeps in the configuration beside what the OCI specification knows.
#[derive(Debug, Default, Deserialize)]
struct DockerConfiguration {
    config: Option<DockerConfig>,
}

#[derive(Debug, Deserialize)]
struct DockerConfig {
    #[serde(rename = "Healthcheck")]
    healthcheck: Option<DockerHealthCheck>,
}

/// Times in nanoseconds; 0 stands for Docker's default.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DockerHealthCheck {
    test: Option<Vec<String>>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    retries: i64,
}

impl DockerHealthCheck {
    fn read(self) -> Option<HealthCheck> {
        let test = self.test.unwrap_or_default();
        let (how, rest) = test.split_first()?;
        let command = match how.as_str() {
            "CMD" if !rest.is_empty() => rest.to_vec(),
            // Docker takes the image's SHELL, and almost always that is this one.
            "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.first()?.clone()],
            _ => return None,
        };
        let time = |nanoseconds: i64, default: u64| match u64::try_from(nanoseconds) {
            Ok(0) | Err(_) => Duration::from_secs(default),
            Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
        };
        Some(HealthCheck {
            command,
            interval: time(self.interval, 30),
            timeout: time(self.timeout, 30),
            start_period: time(self.start_period, 0),
            retries: u32::try_from(self.retries).ok().filter(|retries| *retries > 0).unwrap_or(3),
        })
    }
}

/// The manifest that is on the node, of those for this node's platform.
async fn manifest_of(shared: &Shared, name: &str, index: &ImageIndex) -> Result<ImageManifest, Error> {
    let doing = || format!("reading the manifest of image {name}");
    let architecture = oci_spec::image::Arch::default();
    let mut fallback = None;
    for entry in index.manifests() {
        let platform = entry.platform().as_ref();
        let native =
            platform.is_none_or(|p| *p.architecture() == architecture && *p.os() == oci_spec::image::Os::Linux);
        let foreign_kind = platform.is_some_and(|p| p.architecture().to_string() == "unknown");
        if foreign_kind || (fallback.is_some() && !native) {
            continue;
        }
        let Some(raw) = read_blob(shared, entry.digest().as_ref(), doing).await? else { continue };
        let manifest = serde_json::from_slice(&raw)
            .map_err(|source| Error::Failed { doing: doing(), source: Box::new(source) })?;
        if native {
            return Ok(manifest);
        }
        // Fetched on purpose for another platform, with an emulator to run it.
        fallback = Some(manifest);
    }
    fallback.ok_or_else(|| missing(name))
}

fn missing(digest: &str) -> Error {
    Error::NotFound { what: "image content", id: digest.to_owned() }
}

async fn read_blob(shared: &Shared, digest: &str, doing: impl Fn() -> String) -> Result<Option<Vec<u8>>, Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(ReadContentRequest { digest: digest.to_owned(), ..Default::default() });
    let mut stream = match containerd.content().read(request).await {
        Ok(response) => response.into_inner(),
        Err(status) if is_not_found(&status) => return Ok(None),
        Err(status) => return Err(containerd.error(doing(), status)),
    };
    let mut data = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(part)) => data.extend_from_slice(&part.data),
            Ok(None) => return Ok(Some(data)),
            Err(status) if is_not_found(&status) => return Ok(None),
            Err(status) => return Err(containerd.error(doing(), status)),
        }
        if data.len() > MAX_METADATA {
            return Err(Error::Failed {
                doing: doing(),
                source: format!("{digest} is larger than metadata is").into(),
            });
        }
    }
}

/// The name under which the topmost of these layers is kept: the OCI image specification's ChainID.
fn chain_id(diff_ids: &[String]) -> String {
    let mut layers = diff_ids.iter();
    let mut chain = layers.next().cloned().unwrap_or_default();
    for diff_id in layers {
        let hash = Sha256::digest(format!("{chain} {diff_id}"));
        chain = hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"));
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_are_read_as_docker_writes_them() {
        let read = |text: &str| {
            let docker: DockerConfiguration = serde_json::from_str(text).unwrap();
            docker.config.and_then(|config| config.healthcheck).and_then(DockerHealthCheck::read)
        };
        let check = read(
            r#"{"config": {"Healthcheck": {"Test": ["CMD-SHELL", "true || false"], "Interval": 1500000000,
                "Timeout": 2000000000, "StartPeriod": 3000000000, "Retries": 4}}}"#,
        )
        .unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "true || false"]);
        assert_eq!((check.interval, check.timeout), (Duration::from_millis(1500), Duration::from_secs(2)));
        assert_eq!((check.start_period, check.retries), (Duration::from_secs(3), 4));
        let plain = read(r#"{"config": {"Healthcheck": {"Test": ["CMD", "/bin/check", "-q"]}}}"#).unwrap();
        assert_eq!((plain.command, plain.retries), (vec!["/bin/check".to_owned(), "-q".to_owned()], 3));
        assert_eq!(plain.interval, Duration::from_secs(30));
        for none in [
            "{}",
            r#"{"config": {}}"#,
            r#"{"config": {"Healthcheck": {"Test": ["NONE"]}}}"#,
            r#"{"config": {"Healthcheck": {"Test": []}}}"#,
            r#"{"config": {"Healthcheck": {"Interval": 5}}}"#,
        ] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        assert_eq!(chain_id(&[]), "");
        assert_eq!(chain_id(&["sha256:a".to_owned()]), "sha256:a");
        let two = chain_id(&["sha256:a".to_owned(), "sha256:b".to_owned()]);
        // printf 'sha256:a sha256:b' | sha256sum
        assert_eq!(two, "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8");
    }
}
