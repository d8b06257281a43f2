//! The forms an image is written in.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{Image, digest};

/// Media type of an OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Adds an image to the storage directory of a docker-registry (its filesystem driver, which is read at each request,
/// so a registry may be serving it).
pub fn registry(storage: &Path, repository: &str, tag: &str, image: &Image) -> Result<()> {
    let root = storage.join("docker/registry/v2");
    let layers = root.join("repositories").join(repository).join("_layers/sha256");
    let link = |directory: &Path, digest: &str| write(&directory.join("link"), digest.as_bytes());
    let put = |bytes: &[u8]| -> Result<String> {
        let digest = digest(bytes);
        let hex = digest.trim_start_matches("sha256:");
        write(&root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"), bytes)?;
        Ok(digest)
    };
    let blobs = image.layers.iter().map(|layer| layer.gzip.clone()).chain([image.config_blob()]);
    for blob in blobs {
        let digest = put(&blob)?;
        link(&layers.join(digest.trim_start_matches("sha256:")), &digest)?;
    }
    manifest(storage, repository, tag, &image.manifest_blob())
}

/// Makes a manifest what the tag of a repository stands for, whether its blobs are there or not.
pub fn manifest(storage: &Path, repository: &str, tag: &str, manifest: &[u8]) -> Result<()> {
    let root = storage.join("docker/registry/v2");
    let digest = digest(manifest);
    let hex = digest.trim_start_matches("sha256:");
    write(&root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"), manifest)?;
    let manifests = root.join("repositories").join(repository).join("_manifests");
    let link = |directory: &Path| write(&directory.join("link"), digest.as_bytes());
    link(&manifests.join("revisions/sha256").join(hex))?;
    link(&manifests.join("tags").join(tag).join("index/sha256").join(hex))?;
    link(&manifests.join("tags").join(tag).join("current"))
}

/// Writes an OCI layout directory that holds one image under a name.
pub fn oci_layout(directory: &Path, name: &str, image: &Image) -> Result<()> {
    let blobs = directory.join("blobs/sha256");
    let manifest = image.manifest_blob();
    for blob in image.layers.iter().map(|layer| &layer.gzip).chain([&image.config_blob(), &manifest]) {
        write(&blobs.join(digest(blob).trim_start_matches("sha256:")), blob)?;
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{
        "mediaType": MANIFEST, "digest": digest(&manifest), "size": manifest.len(),
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
    }]});
    write(&directory.join("index.json"), index.to_string().as_bytes())?;
    write(&directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Writes an OCI archive: a tar of an OCI layout.
pub fn oci_archive(file: &Path, name: &str, image: &Image) -> Result<()> {
    let layout = tempfile::tempdir()?;
    oci_layout(layout.path(), name, image)?;
    let mut tar = tar::Builder::new(create(file)?);
    tar.append_dir_all("", layout.path()).context("writing an OCI archive")?;
    tar.finish().context("ending an OCI archive")
}

/// Writes an archive as `docker save` does.
pub fn docker_archive(file: &Path, name: &str, image: &Image) -> Result<()> {
    let mut tar = tar::Builder::new(create(file)?);
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = super::header(tar::EntryType::Regular, 0o644, 0, bytes.len() as u64);
        tar.append_data(&mut header, path, bytes).context("writing a docker archive")
    };
    let mut layers = Vec::new();
    for layer in &image.layers {
        let path = format!("{}/layer.tar", layer.diff_id.trim_start_matches("sha256:"));
        add(&path, &layer.tar)?;
        layers.push(path);
    }
    let config = image.config_blob();
    let config_path = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
    add(&config_path, &config)?;
    let manifest = json!([{"Config": config_path, "RepoTags": [name], "Layers": layers}]);
    add("manifest.json", manifest.to_string().as_bytes())?;
    tar.finish().context("ending a docker archive")
}

fn create(file: &Path) -> Result<fs::File> {
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(file).with_context(|| format!("creating {}", file.display()))
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}
