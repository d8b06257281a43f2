//! The docker archive: `manifest.json`, a configuration and layers by path. The OCI manifest is made from these.

use serde::Deserialize;

use super::super::manifest::{ConfigRoot, Descriptor, Digest, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use super::super::normalize;
use super::super::platform::Platform;
use super::contents::{Compression, Contents, safe_name};
use super::{Error, Found, matches_platform};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Finds the image called `reference`, or the only one.
pub(super) fn find(contents: &Contents, reference: &str, platform: &Platform) -> Result<Found, Error> {
    let items: Vec<Item> = serde_json::from_slice(contents.document("manifest.json")?)
        .map_err(|e| Error::Malformed(format!("manifest.json is unusable: {e}")))?;
    let item = choose(&items, reference)?;
    let config_name = inside(&item.config)?;
    let config = contents.document(&config_name)?.to_vec();
    let config_blob = Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64);
    let paths: Vec<String> = item.layers.iter().flatten().map(|p| inside(p)).collect::<Result<_, _>>()?;

    // Counted before the diff ids are taken for the digests of uncompressed layers.
    let mut manifest =
        Manifest { schema_version: 2, media_type: OCI_MANIFEST.to_owned(), config: config_blob, layers: Vec::new() };
    manifest.layers = vec![manifest.config.clone(); paths.len()];
    let root = ConfigRoot::parse(&manifest, &config)?;
    manifest.layers.clear();
    let mut layers = Vec::new();
    for (path, diff_id) in paths.iter().zip(root.diff_ids()) {
        let entry = contents.entry(path)?;
        let (suffix, digest) = match (entry.compression, &entry.digest) {
            (Compression::Gzip, Some(digest)) => ("+gzip", digest),
            (Compression::Zstd, Some(digest)) => ("+zstd", digest),
            _ => ("", diff_id),
        };
        manifest.layers.push(Descriptor::new(format!("{OCI_LAYER}{suffix}"), digest.clone(), entry.size));
        layers.push((digest.clone(), path.clone()));
    }
    matches_platform(&config, &manifest, platform)?;
    let manifest_bytes =
        serde_json::to_vec(&manifest).map_err(|e| Error::Malformed(format!("its manifest cannot be written: {e}")))?;
    let manifest_blob = Descriptor::new(OCI_MANIFEST, Digest::of(&manifest_bytes), manifest_bytes.len() as u64);
    Ok(Found {
        root: manifest_blob.clone(),
        indexes: Vec::new(),
        manifest_blob,
        manifest_bytes,
        manifest,
        config,
        layers,
    })
}

/// The names that it gives its images.
pub(super) fn names(contents: &Contents) -> Result<Vec<String>, Error> {
    let items: Vec<Item> = serde_json::from_slice(contents.document("manifest.json")?)
        .map_err(|e| Error::Malformed(format!("manifest.json is unusable: {e}")))?;
    Ok(items.into_iter().flat_map(|item| item.repo_tags.unwrap_or_default()).collect())
}

fn choose<'a>(items: &'a [Item], reference: &str) -> Result<&'a Item, Error> {
    let tags = |item: &'a Item| item.repo_tags.iter().flatten().map(String::as_str);
    if let Some(item) = items.iter().find(|i| tags(i).any(|t| normalize(t).ok().as_deref() == Some(reference))) {
        return Ok(item);
    }
    match items {
        [] => Err(Error::Malformed("manifest.json lists no image".to_owned())),
        [only] => Ok(only),
        several => {
            let mut names: Vec<&str> = several.iter().flat_map(tags).collect();
            if names.is_empty() {
                names.push("(without name)");
            }
            Err(Error::Ambiguous { wanted: reference.to_owned(), names: names.join(", ") })
        }
    }
}

fn inside(path: &str) -> Result<String, Error> {
    safe_name(std::path::Path::new(path))
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Error::Malformed(format!("manifest.json names {path:?}, which would lie outside of it")))
}
