//! Image archives on the node: OCI archives, docker archives and OCI layout directories.
//!
//! An archive is read twice and copied nowhere: once for its table of contents and small documents, once for the
//! layers, which go straight into the content store. A plain archive is sought through; a compressed one is
//! decompressed both times.

mod contents;
mod docker;
mod layout;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::manifest::{Descriptor, Digest, Invalid, Manifest};
use super::platform::Platform;
use contents::Contents;
pub(super) use source::{Part, stream};

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The file cannot be read, or ends too early.
    #[error("{doing}")]
    Read {
        /// What we were doing.
        doing: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{0}")]
    Malformed(String),
    /// One of its documents is unusable.
    #[error("one of its documents is unusable")]
    Document(#[from] Invalid),
    /// It holds several images, none of them of the wanted name.
    #[error("it holds several images and none is called {wanted}: {names}")]
    Ambiguous {
        /// The wanted reference.
        wanted: String,
        /// Names in the archive.
        names: String,
    },
    /// The image is for other platforms.
    #[error("it is not for {platform} but for {available}")]
    Platform {
        /// The wanted one.
        platform: String,
        /// What it has.
        available: String,
    },
}

/// One image of an archive: all its documents, and where its layers are.
#[derive(Debug)]
pub(super) struct ArchiveImage {
    /// The archive.
    pub(super) path: PathBuf,
    /// What the record will point at: index or manifest.
    pub(super) root: Descriptor,
    /// The documents above the manifest, outermost first, with their bytes; empty when the root is the manifest.
    pub(super) indexes: Vec<(Descriptor, Vec<u8>)>,
    /// Descriptor of the manifest.
    pub(super) manifest_blob: Descriptor,
    /// Bytes of the manifest.
    pub(super) manifest_bytes: Vec<u8>,
    /// The manifest.
    pub(super) manifest: Manifest,
    /// The configuration.
    pub(super) config: Vec<u8>,
    /// Where each layer's blob is, by digest.
    pub(super) layers: Vec<(Digest, String)>,
    /// The table of contents.
    pub(super) contents: Arc<Contents>,
}

/// Reads the table of contents and finds the image called `reference`, or the only one. Blocks.
///
/// # Errors
/// [`Error`], before anything was written anywhere.
pub(super) fn open(path: &Path, reference: &str, platform: &Platform) -> Result<ArchiveImage, Error> {
    let contents = Contents::read(path)?;
    let found = if contents.has("index.json") {
        layout::find(&contents, reference, platform)
    } else if contents.has("manifest.json") {
        docker::find(&contents, reference, platform)
    } else {
        Err(Error::Malformed("it is not an image archive: neither index.json nor manifest.json is in it".to_owned()))
    }?;
    for layer in &found.manifest.layers {
        let Some((_, name)) = found.layers.iter().find(|(digest, _)| *digest == layer.digest) else {
            return Err(Error::Malformed(format!("the layer {} is not in it", layer.digest)));
        };
        let size = contents.size(name)?;
        if size != layer.size {
            let message = format!("{name} has {size} bytes, its manifest says {}", layer.size);
            return Err(Error::Malformed(message));
        }
    }
    Ok(ArchiveImage {
        path: path.to_owned(),
        root: found.root,
        indexes: found.indexes,
        manifest_blob: found.manifest_blob,
        manifest_bytes: found.manifest_bytes,
        manifest: found.manifest,
        config: found.config,
        layers: found.layers,
        contents: Arc::new(contents),
    })
}

/// Normalised references of the images in it, each once. Blocks.
///
/// # Errors
/// [`Error`], also when there is none.
pub(super) fn names(path: &Path) -> Result<Vec<String>, Error> {
    let contents = Contents::read(path)?;
    let given = if contents.has("index.json") {
        layout::names(&contents)
    } else if contents.has("manifest.json") {
        docker::names(&contents)
    } else {
        Err(Error::Malformed("it is not an image archive: neither index.json nor manifest.json is in it".to_owned()))
    }?;
    let mut names = Vec::new();
    for name in given {
        let full = super::normalize(&name).map_err(|e| Error::Malformed(format!("it has an unusable name: {e}")))?;
        if !names.contains(&full) {
            names.push(full);
        }
    }
    if names.is_empty() {
        return Err(Error::Malformed("none of its images has a full name, such as registry.example/app:1".to_owned()));
    }
    Ok(names)
}

/// What the two formats have in common.
struct Found {
    root: Descriptor,
    indexes: Vec<(Descriptor, Vec<u8>)>,
    manifest_blob: Descriptor,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    config: Vec<u8>,
    layers: Vec<(Digest, String)>,
}

fn matches_platform(config: &[u8], manifest: &Manifest, wanted: &Platform) -> Result<(), Error> {
    let root = super::manifest::ConfigRoot::parse(manifest, config)?;
    let offered = root.platform();
    if root.os.is_empty() || root.architecture.is_empty() || wanted.suits(&offered).is_some() {
        return Ok(());
    }
    Err(Error::Platform { platform: wanted.to_string(), available: offered.to_string() })
}
