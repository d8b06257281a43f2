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
mod disk;
mod driver;
pub mod fake;
pub mod hosts;
pub mod manifest;
pub mod platform;
mod progress;
mod pull;
pub mod reference;
mod registry;
mod sharing;
pub mod stored;
#[cfg(test)]
mod tests;
mod transfer;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use crate::runtime::Error as RuntimeError;
pub use driver::{ContainerdImages, Options};
pub use fake::FakeImages;

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
#[allow(missing_docs)]
pub enum Phase {
    #[default]
    Resolving,
    Pulling,
    Unpacking,
    Ready,
    Failed,
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

    /// Asks the registry for the digest the reference has now, without transferring the image.
    async fn resolve(&self, fetch: &Fetch) -> Result<String, Error>;

    /// Forgets the image record; the runtime's collector frees what nothing else uses before this returns.
    async fn remove(&self, reference: &str) -> Result<(), Error>;
}

/// The full form of a reference as Docker understands it: `nginx` is `docker.io/library/nginx:latest`.
///
/// # Errors
/// [`Error::InvalidReference`].
pub fn normalize(reference: &str) -> Result<String, Error> {
    Ok(reference::parse(reference)?.whole())
}
