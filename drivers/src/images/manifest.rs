//! Manifests and indexes: what a reference points at, read leniently and checked once. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::platform::Platform;

/// Largest manifest, index or configuration that is read into memory. Registries limit manifests to 4 MiB.
pub const MAX_DOCUMENT: u64 = 8 << 20;

/// Media types that a registry may answer a manifest request with, best first.
pub const ACCEPTED: &[&str] = &[OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// An uncompressed OCI layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Why a document is not one that we can use.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// Not JSON or not of the expected form.
    #[error("{what} is not valid JSON of its kind")]
    Json {
        /// "the manifest sha256:…".
        what: String,
        /// The parser's words.
        #[source]
        source: serde_json::Error,
    },
    /// Neither a manifest nor an index.
    #[error("{what} has the unsupported media type {media_type:?}")]
    MediaType {
        /// Which document.
        what: String,
        /// As found.
        media_type: String,
    },
    /// Something else than a container image, such as a chart or a signature.
    #[error("it is an artifact of type {media_type:?}, not a container image")]
    Artifact {
        /// Media type of the configuration or layer that shows it.
        media_type: String,
    },
    /// Digests, sizes or counts that cannot be true.
    #[error("{what}: {message}")]
    Content {
        /// Which document.
        what: String,
        /// What is wrong.
        message: String,
    },
}

/// A checked digest: `sha256:` and 64 hexadecimal digits. containerd stores content under sha256 alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Checks the text.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let good = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if good { Ok(Self(text)) } else { Err(format!("{text:?} is not a sha256 digest")) }
    }

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::from_hash(&sha2::Sha256::digest(bytes))
    }

    /// The digest with a finished hash.
    pub fn from_hash(hash: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in hash {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// With its algorithm: `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without its algorithm.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::new(text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

/// Points at a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is; empty in some old documents.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// In an index: what it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text by key, such as the name of an image in a layout's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// A descriptor without platform and annotations.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, platform: None, annotations: None }
    }

    /// The annotation `key`, if it is there.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// An index: several manifests, usually one for each platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What it says it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// What it points at.
    pub manifests: Vec<Descriptor>,
}

/// The manifest of one image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What it says it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration, whose digest is the image's id.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Bytes of configuration and layers, each blob counted once.
    pub fn size(&self) -> u64 {
        let mut seen = std::collections::BTreeSet::new();
        std::iter::once(&self.config)
            .chain(&self.layers)
            .filter(|d| seen.insert(&d.digest))
            .fold(0u64, |sum, d| sum.saturating_add(d.size))
    }
}

/// What a reference can point at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several platforms.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

impl Document {
    /// Reads `bytes`, known as `what` in errors. The form decides, not a header that a registry may get wrong.
    ///
    /// # Errors
    /// [`Invalid`], also for artifacts that are no container images and for Docker's schema 1.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self, Invalid> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Form {
            #[serde(default)]
            schema_version: u32,
            #[serde(default)]
            media_type: String,
            manifests: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
        }
        let json = |source| Invalid::Json { what: what.to_owned(), source };
        let form: Form = serde_json::from_slice(bytes).map_err(json)?;
        let known = matches!(form.media_type.as_str(), "" | OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST);
        if !known || form.schema_version != 2 {
            let media_type =
                if known { format!("schema version {}", form.schema_version) } else { form.media_type.clone() };
            return Err(Invalid::MediaType { what: what.to_owned(), media_type });
        }
        // A document that is both would mean different things to different readers.
        match (form.manifests, form.config) {
            (Some(_), None) => Ok(Document::Index(serde_json::from_slice(bytes).map_err(json)?)),
            (None, Some(_)) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
                check_manifest(what, &manifest)?;
                Ok(Document::Manifest(manifest))
            }
            _ => Err(Invalid::Content {
                what: what.to_owned(),
                message: "it must have either manifests or a config".to_owned(),
            }),
        }
    }

    /// The media type that the content has, whether it says so or not.
    pub fn media_type(&self) -> &str {
        match self {
            Document::Index(index) if index.media_type.is_empty() => OCI_INDEX,
            Document::Index(index) => &index.media_type,
            Document::Manifest(manifest) if !manifest.media_type.is_empty() => &manifest.media_type,
            Document::Manifest(manifest) if manifest.config.media_type == DOCKER_CONFIG => DOCKER_MANIFEST,
            Document::Manifest(_) => OCI_MANIFEST,
        }
    }
}

fn check_manifest(what: &str, manifest: &Manifest) -> Result<(), Invalid> {
    if !matches!(manifest.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG | "") {
        return Err(Invalid::Artifact { media_type: manifest.config.media_type.clone() });
    }
    if let Some(layer) = manifest.layers.iter().find(|l| !is_layer(&l.media_type)) {
        return Err(Invalid::Artifact { media_type: layer.media_type.clone() });
    }
    if manifest.config.size > MAX_DOCUMENT {
        return Err(Invalid::Content {
            what: what.to_owned(),
            message: format!("a configuration of {} bytes is too large", manifest.config.size),
        });
    }
    Ok(())
}

/// A layer that containerd can unpack. Encrypted ones are none.
fn is_layer(media_type: &str) -> bool {
    let docker = media_type.strip_prefix("application/vnd.docker.image.rootfs.");
    let oci = media_type.strip_prefix("application/vnd.oci.image.layer.");
    match (docker, oci) {
        (Some(rest), _) => matches!(
            rest,
            "diff.tar" | "diff.tar.gzip" | "diff.tar.zstd" | "foreign.diff.tar" | "foreign.diff.tar.gzip"
        ),
        (_, Some(rest)) => {
            matches!(rest.strip_prefix("nondistributable.").unwrap_or(rest), "v1.tar" | "v1.tar+gzip" | "v1.tar+zstd")
        }
        _ => false,
    }
}

/// What the driver needs of a configuration; the runtime reads the rest.
#[derive(Debug, Deserialize)]
pub struct ConfigRoot {
    /// For which architecture.
    #[serde(default)]
    pub architecture: String,
    /// For which system.
    #[serde(default)]
    pub os: String,
    /// For which variant of the architecture.
    #[serde(default)]
    pub variant: Option<String>,
    rootfs: Rootfs,
}

#[derive(Debug, Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl ConfigRoot {
    /// Reads the configuration that belongs to `manifest`.
    ///
    /// # Errors
    /// [`Invalid`] when it cannot be read or counts other layers than the manifest.
    pub fn parse(manifest: &Manifest, bytes: &[u8]) -> Result<Self, Invalid> {
        let what = format!("the configuration {}", manifest.config.digest);
        let config: Self =
            serde_json::from_slice(bytes).map_err(|source| Invalid::Json { what: what.clone(), source })?;
        let count = config.diff_ids().len();
        if count != manifest.layers.len() {
            let message = format!("it counts {count} layers, its manifest {}", manifest.layers.len());
            return Err(Invalid::Content { what, message });
        }
        Ok(config)
    }

    /// Digests of the unpacked layers, bottom first.
    pub fn diff_ids(&self) -> &[Digest] {
        self.rootfs.diff_ids.as_deref().unwrap_or_default()
    }

    /// The platform it is for.
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }
}

/// Names of the snapshots of the layers, bottom first: the digest of what a layer and all below it unpack to.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            None => diff.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn manifest_json(config_type: &str, layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{}","size":7}}]}}"#,
            digest(1),
            digest(2)
        )
    }

    #[test]
    fn documents_are_told_apart_by_form() {
        let manifest = manifest_json(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd");
        let Document::Manifest(m) = Document::parse("m", manifest.as_bytes()).unwrap() else { panic!() };
        assert_eq!(m.size(), 9);
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse("i", index.as_bytes()).unwrap(), Document::Index(_)));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for (json, part) in [
            (manifest_json("application/vnd.cncf.helm.config.v1+json", OCI_LAYER), "helm.config"),
            (manifest_json(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "encrypted"),
            (r#"{"schemaVersion":1}"#.to_owned(), "schema version 1"),
            (r#"{"schemaVersion":2,"manifests":[],"config":{}}"#.to_owned(), "either"),
            (r#"{"schemaVersion":2}"#.to_owned(), "either"),
            ("<html>".to_owned(), "not valid JSON"),
            (manifest_json(OCI_CONFIG, OCI_LAYER).replace(digest(2).as_str(), "sha256:../../x"), "not valid JSON"),
        ] {
            let error = Document::parse("it", json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{error} should say {part}");
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let chain = chain_ids(&[digest(1), digest(2), digest(3)]);
        assert_eq!(chain[0], digest(1));
        assert_eq!(chain[1], Digest::of(format!("{} {}", digest(1), digest(2)).as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], digest(3)).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn a_lying_configuration_is_noticed() {
        let manifest = manifest_json(OCI_CONFIG, OCI_LAYER);
        let Document::Manifest(manifest) = Document::parse("m", manifest.as_bytes()).unwrap() else { panic!() };
        let error = ConfigRoot::parse(&manifest, br#"{"rootfs":{"diff_ids":[]}}"#).unwrap_err();
        assert!(error.to_string().contains("counts 0 layers"), "{error}");
    }
}
