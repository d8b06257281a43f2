//! Images: names, contents and how they get onto the node.
//!
//! # Contract
//! - Bytes go straight into the runtime's content store; an interrupted transfer is kept and continued.
//! - An image record appears only when every blob is there and verified and every layer is unpacked.
//! - Two concurrent wishes for the same reference share one transfer.
//! - Half-made content is protected by a lease until it is referenced, and given free by [`Images::remove`] or
//!   [`crate::runtime::Runtime::sweep`].

mod archive;
pub mod auth;
pub mod config;
pub mod conformance;
mod content;
mod credentials;
mod disk;
mod driver;
pub mod fake;
pub mod hosts;
mod layer;
mod local;
pub mod manifest;
pub mod platform;
mod progress;
mod pull;
mod recent;
pub mod reference;
mod registry;
mod sharing;
mod signature;
mod slots;
pub mod stored;
#[cfg(test)]
mod tests;
mod throttle;
mod transfer;
mod unpack;
mod usage;
mod verify;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use crate::runtime::Error as RuntimeError;
pub use driver::{ContainerdImages, Options};
pub use fake::FakeImages;
pub use signature::{KeyError, Signer};

/// What went wrong while getting an image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The reference cannot be understood.
    #[error("{reference:?} is not an image reference: {message}")]
    InvalidReference {
        /// As given.
        reference: String,
        /// What was expected.
        message: String,
    },
    /// The archive or layout is unreadable or not one.
    #[error("reading the image archive {path}")]
    Archive {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The registry does not have it. Trying again helps only when somebody pushes it.
    #[error("{reference} is not in the registry")]
    NotFound {
        /// Which one.
        reference: String,
    },
    /// The registry wants (other) credentials.
    #[error("the registry refused access to {reference}")]
    Unauthorized {
        /// Which one.
        reference: String,
        /// The registry's words.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// There is no variant for the wanted platform.
    #[error("{reference} has no variant for {platform}; it has {available}")]
    Platform {
        /// Which one.
        reference: String,
        /// The platform asked for.
        platform: String,
        /// What it has.
        available: String,
    },
    /// The registry wants fewer requests, or is overloaded. Trying earlier than it says makes it worse.
    #[error("the registry {server} is too busy for {reference}")]
    Busy {
        /// Which one.
        reference: String,
        /// Who answered.
        server: String,
        /// When it may be asked again, if it said so.
        retry_after: Option<Duration>,
        /// Its words.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// No answer, a connection that broke or was silent for too long. What has arrived is kept and continued.
    #[error("{doing}")]
    Unreachable {
        /// What we were doing, with the object.
        doing: String,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The image's documents cannot be used: not an image, or lengths, digests and counts that contradict each other.
    #[error("{reference} is not a usable image")]
    Unusable {
        /// Which one.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// What came is not what its digest says, also when it was fetched afresh. Nothing of it is kept.
    #[error("the content of {digest} is damaged")]
    Corrupt {
        /// Which blob or layer.
        digest: String,
        /// How it differs.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A layer wants to write where it must not, or brings what no image needs.
    #[error("the layer {digest} is refused: {entry:?} {problem}")]
    Refused {
        /// Which layer.
        digest: String,
        /// Name of the entry in it.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A signature that is required is missing or wrong. Nothing of the image was stored.
    #[error("{reference} at {digest} is not signed by {signer}")]
    Unsigned {
        /// Which image.
        reference: String,
        /// Digest of what the reference points at: what had to be signed.
        digest: String,
        /// The key that did not sign it.
        signer: Box<Signer>,
        /// What was found instead.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Transfer or unpacking failed; trying again continues where it stopped.
    #[error("{doing}")]
    Failed {
        /// What we were doing, with the object.
        doing: String,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// The failure in one word for conditions and metrics; the same failure has the same word in every version.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidReference { .. } => "InvalidReference",
            Self::Archive { .. } => "ArchiveUnusable",
            Self::NotFound { .. } => "ImageNotFound",
            Self::Unauthorized { .. } => "Unauthorized",
            Self::Platform { .. } => "PlatformMissing",
            Self::Busy { .. } => "RegistryBusy",
            Self::Unreachable { .. } => "RegistryUnreachable",
            Self::Unusable { .. } => "ImageUnusable",
            Self::Corrupt { .. } => "ContentCorrupt",
            Self::Refused { .. } => "LayerRefused",
            Self::Unsigned { .. } => "VerificationFailed",
            Self::Failed { .. } => "PullFailed",
        }
    }

    /// How long to wait at least before trying again, if the registry said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    /// A registry, named by the reference.
    Registry,
    /// An OCI or docker archive (plain, gzip or zstd), or an OCI layout directory, on the node.
    Archive(PathBuf),
}

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token. Never printed.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A wish to have an image on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// As the user wrote it; normalised by [`normalize`].
    pub reference: String,
    /// Where from.
    pub source: Source,
    /// `os/arch[/variant]`; `None` is the node's.
    pub platform: Option<String>,
    /// For the reference's registry.
    pub credentials: Option<Credentials>,
    /// Of several fetches that wait, the one with the highest goes first.
    pub priority: i32,
    /// Upper bound of its download rate, in bytes per second; 0 is none.
    pub max_bytes_per_second: u64,
    /// Keys that must all have signed the image, in order and each once; checked before anything of it is stored.
    pub signers: Vec<Signer>,
}

impl Fetch {
    /// From the registry, for the node's platform, without any of the rest.
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            source: Source::Registry,
            platform: None,
            credentials: None,
            priority: 0,
            max_bytes_per_second: 0,
            signers: Vec::new(),
        }
    }
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// The normalised reference.
    pub reference: String,
    /// Digest of what the reference points at (index or manifest): `sha256:…`.
    pub digest: String,
    /// Digest of the platform's configuration blob, the "image id".
    pub config_digest: String,
    /// Compressed size in bytes of what is on the node for the platform.
    pub size: u64,
    /// Fingerprints of the keys whose signature of `digest` was found right when it was fetched; see [`Signer`].
    pub signed_by: Vec<String>,
}

impl Image {
    /// Whether every one of these keys is known to have signed it.
    pub fn is_signed_by(&self, signers: &[Signer]) -> bool {
        signers.iter().all(|signer| self.signed_by.iter().any(|known| known == signer.fingerprint()))
    }
}

/// An image that a fetch of ours put on the node, whole or damaged: what a collector may remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// The normalised reference.
    pub reference: String,
    /// Digest of what the reference points at: `sha256:…`.
    pub digest: String,
    /// Compressed size in bytes of what is on the node for the platform; 0 when its documents are missing.
    pub size: u64,
}

/// The filesystem that holds the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// What is left of it for everybody, in bytes.
    pub available: u64,
}

impl Disk {
    /// How much of it is used, in percent; what only root may use counts as used.
    pub fn used_percent(&self) -> u64 {
        let used = u128::from(self.total.saturating_sub(self.available)) * 100;
        used.div_ceil(u128::from(self.total.max(1))).min(100) as u64
    }
}

/// How far a fetch is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// `Resolving`, `Pulling`, `Unpacking`, `Ready` or `Failed`.
    pub phase: Phase,
    /// Bytes on the node.
    pub bytes_done: u64,
    /// Bytes in all; 0 until known.
    pub bytes_total: u64,
}

/// Phase of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum Phase {
    /// The registry is asked what the reference stands for.
    #[default]
    Resolving,
    /// Layers are on their way.
    Pulling,
    /// All bytes are there; layers become snapshots.
    Unpacking,
    /// Containers can be made of it.
    Ready,
    /// The fetch has ended without the image.
    Failed,
}

/// What a fetch would bring, known from the image's documents alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Estimate {
    /// Digest of what the reference points at now.
    pub digest: String,
    /// Compressed bytes of the whole image.
    pub bytes_total: u64,
    /// Compressed bytes that are not on the node yet; what an interrupted transfer left counts as there.
    pub bytes_missing: u64,
    /// Bytes that the layers without a snapshot will take when unpacked. An estimate: a manifest does not say.
    pub bytes_unpacked: u64,
}

/// Everything that images take on the node's disk, in our containerd namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Image records, complete or not.
    pub images: Vec<ImageUsage>,
    /// Complete blobs.
    pub blobs: Vec<BlobUsage>,
    /// Snapshots: unpacked layers and the writable layers of containers.
    pub snapshots: Vec<SnapshotUsage>,
    /// Unfinished blobs.
    pub ingests: Vec<IngestUsage>,
    /// References with an interrupted fetch, whose blobs are held for its continuation.
    pub unfinished: BTreeSet<String>,
}

/// One image record and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageUsage {
    /// The normalised reference.
    pub reference: String,
    /// Digest of what it points at.
    pub digest: String,
    /// Digests of its blobs on the node: indexes, manifest, configuration, layers.
    pub blobs: Vec<String>,
    /// Names of its layers' snapshots, bottom first.
    pub snapshots: Vec<String>,
    /// When the record was last written: with the first fetch and with every one that moved it.
    pub updated: Option<SystemTime>,
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlobUsage {
    /// Its digest.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotUsage {
    /// Its name: a chain id for a layer, a container's id for its writable layer.
    pub name: String,
    /// Name of the snapshot below; empty for none.
    pub parent: String,
    /// A finished layer; else a writable layer or one being unpacked.
    pub committed: bool,
    /// Bytes on disk, without what is below.
    pub size: u64,
}

/// One unfinished blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IngestUsage {
    /// Its name in the content store.
    pub name: String,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes in all, if known.
    pub total: u64,
    /// When bytes last came.
    pub updated: Option<SystemTime>,
}

/// Something of an image that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Damage {
    /// A blob is missing or has other content.
    Blob {
        /// Which one.
        digest: String,
        /// It is a layer: nothing is started from it once it is unpacked.
        layer: bool,
        /// How it differs.
        problem: String,
    },
    /// A layer's snapshot is missing or differs from the layer.
    Snapshot {
        /// Its name, the chain id.
        name: String,
        /// How it differs; the first difference of several.
        problem: String,
    },
}

/// Receives progress; called often, must not block.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// The node's images. See the module's contract.
#[async_trait]
pub trait Images: Send + Sync {
    /// The image of that (not yet normalised) reference if it is complete on the node.
    async fn get(&self, reference: &str) -> Result<Option<Image>, Error>;

    /// All complete images of our namespace.
    async fn list(&self) -> Result<Vec<Image>, Error>;

    /// The images that we fetched. What others brought (`ctr images import`) is not among them: it is not ours to
    /// remove.
    async fn list_fetched(&self) -> Result<Vec<Fetched>, Error>;

    /// How full the filesystem is that holds the images. Cheap.
    async fn disk(&self) -> Result<Disk, Error>;

    /// Gets it, whatever is there already, and returns what it now is. Cancelling leaves the transfer resumable.
    async fn fetch(&self, fetch: &Fetch, progress: OnProgress) -> Result<Image, Error>;

    /// Normalised references of the images in an archive. Reads its documents only.
    ///
    /// # Errors
    /// [`Error::Archive`] if it is none, or if one of its images has no full name.
    async fn names(&self, archive: &Path) -> Result<Vec<String>, Error>;

    /// Asks the registry for the digest the reference has now, without transferring the image.
    async fn resolve(&self, fetch: &Fetch) -> Result<String, Error>;

    /// What fetching it would bring. Reads documents from the registry and stores nothing.
    async fn estimate(&self, fetch: &Fetch) -> Result<Estimate, Error>;

    /// Forgets the image record; the runtime's collector frees what nothing else uses before this returns.
    async fn remove(&self, reference: &str) -> Result<(), Error>;

    /// Everything that takes room. Reads only; costs a walk over the runtime's metadata.
    async fn usage(&self) -> Result<Usage, Error>;

    /// Gives up interrupted fetches of references (normalised) that are not in `wanted` and not running, then frees
    /// what no image, container or remaining fetch refers to, before it returns. Never touches an image record.
    async fn collect(&self, wanted: &BTreeSet<String>) -> Result<(), Error>;

    /// Reads all of a complete or damaged image on the node and says what differs from its digests; empty when all is
    /// well or the image is not there at all. Reads every byte: meant for the first use after an unclean boot and for
    /// a start that failed with signs of damage. Snapshots of snapshotters that keep no directories are not compared.
    async fn verify(&self, reference: &str) -> Result<Vec<Damage>, Error>;

    /// Makes the image whole again: drops the damaged blobs, fetches what is missing, unpacks the damaged snapshots
    /// anew. It stays what it was, by its digest, and the registry is asked for nothing but what is damaged; only what
    /// that has no more either is replaced by what the reference stands for now. Snapshots in use are exchanged under
    /// their name; a running container keeps what it has mounted. Where nothing can be fetched, nothing is dropped.
    async fn repair(&self, fetch: &Fetch, damage: &[Damage], progress: OnProgress) -> Result<Image, Error>;
}

/// The full form of a reference as Docker understands it: `nginx` is `docker.io/library/nginx:latest`.
///
/// # Errors
/// [`Error::InvalidReference`].
pub fn normalize(reference: &str) -> Result<String, Error> {
    Ok(reference::parse(reference)?.whole())
}
