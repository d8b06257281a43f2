//! The OCI layout: `index.json` and blobs by digest.

use super::super::manifest::{Descriptor, Document, Index, OCI_INDEX};
use super::super::normalize;
use super::super::platform::{Platform, available, candidates};
use super::contents::{Contents, blob_name};
use super::{Error, Found, matches_platform};

/// The full name of an image, written by containerd, docker and nodelet.
const FULL_NAME: &str = "io.containerd.image.name";
/// What an entry is, in layouts of cosign: signatures and attestations are listed beside the image.
const KIND: &str = "kind";
/// A tag, or the full name, depending on who wrote it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Finds the image called `reference`, or the only one.
pub(super) fn find(contents: &Contents, reference: &str, platform: &Platform) -> Result<Found, Error> {
    let bytes = contents.document("index.json")?;
    let Document::Index(mut index) = Document::parse("index.json", bytes)? else {
        return Err(Error::Malformed("index.json is not an index".to_owned()));
    };
    index.manifests.retain(is_image);
    let mut path = Vec::new();
    let mut root = match choose(&index, reference)? {
        Choice::One(one) => one.clone(),
        // The index itself lists the platforms of one image.
        Choice::Platforms => best(&index, platform)?.clone(),
    };
    root.platform = None;
    root.annotations = None;
    let mut current = root.clone();
    loop {
        let bytes = contents.blob(&current.digest)?.to_vec();
        if bytes.len() as u64 != current.size {
            let name = blob_name(&current.digest);
            return Err(Error::Malformed(format!(
                "{name} has {} bytes, its descriptor says {}",
                bytes.len(),
                current.size
            )));
        }
        let document = Document::parse(&format!("the manifest {}", current.digest), &bytes)?;
        document.media_type().clone_into(&mut current.media_type);
        match document {
            Document::Index(_) if path.len() >= 3 => {
                return Err(Error::Malformed("its indexes are nested too deeply".to_owned()));
            }
            Document::Index(index) => {
                let next = best(&index, platform)?.clone();
                path.push((current, bytes));
                current = next;
            }
            Document::Manifest(manifest) => {
                let config = contents.blob(&manifest.config.digest)?.to_vec();
                matches_platform(&config, &manifest, platform)?;
                let layers = manifest.layers.iter().map(|l| (l.digest.clone(), blob_name(&l.digest))).collect();
                if path.is_empty() {
                    root = current.clone();
                } else if let Some((first, _)) = path.first() {
                    root = first.clone();
                }
                return Ok(Found {
                    root,
                    indexes: path,
                    manifest_blob: current,
                    manifest_bytes: bytes,
                    manifest,
                    config,
                    layers,
                });
            }
        }
    }
}

/// The full names that it gives its images; a mere tag names none.
pub(super) fn names(contents: &Contents) -> Result<Vec<String>, Error> {
    let Document::Index(index) = Document::parse("index.json", contents.document("index.json")?)? else {
        return Err(Error::Malformed("index.json is not an index".to_owned()));
    };
    let full = |entry: &Descriptor| {
        let is_full = |name: &&str| name.contains('/') || name.contains(':');
        entry.annotation(FULL_NAME).or_else(|| entry.annotation(REF_NAME).filter(is_full)).map(str::to_owned)
    };
    Ok(index.manifests.iter().filter(|entry| is_image(entry)).filter_map(full).collect())
}

fn is_image(entry: &Descriptor) -> bool {
    let of_cosign = entry.annotation(KIND).and_then(|kind| kind.strip_prefix("dev.cosignproject.cosign/"));
    let is_signature_tag = |name: &str| name.contains("sha256-") && name.ends_with(".sig");
    of_cosign.is_none_or(|kind| kind.starts_with("image")) && !entry.annotation(REF_NAME).is_some_and(is_signature_tag)
}

enum Choice<'a> {
    One(&'a Descriptor),
    Platforms,
}

/// By full name, else the only one, else by tag.
fn choose<'a>(index: &'a Index, reference: &str) -> Result<Choice<'a>, Error> {
    let name = |d: &'a Descriptor| d.annotation(FULL_NAME).or_else(|| d.annotation(REF_NAME));
    let is_full = |d: &&Descriptor| {
        [FULL_NAME, REF_NAME]
            .iter()
            .any(|key| d.annotation(key).and_then(|n| normalize(n).ok()).as_deref() == Some(reference))
    };
    if let Some(one) = index.manifests.iter().find(is_full) {
        return Ok(Choice::One(one));
    }
    if let [one] = index.manifests.as_slice() {
        return Ok(Choice::One(one));
    }
    let tag = reference.rsplit_once(':').map(|(_, tag)| tag);
    let tagged: Vec<&Descriptor> = index
        .manifests
        .iter()
        .filter(|d| tag.is_some() && d.annotation(REF_NAME) == tag && d.annotation(FULL_NAME).is_none())
        .collect();
    if let [one] = tagged.as_slice() {
        return Ok(Choice::One(one));
    }
    if !index.manifests.is_empty() && index.manifests.iter().all(|d| name(d).is_none() && d.platform.is_some()) {
        return Ok(Choice::Platforms);
    }
    if index.manifests.is_empty() {
        return Err(Error::Malformed("index.json lists no image".to_owned()));
    }
    let names: Vec<&str> = index.manifests.iter().map(|d| name(d).unwrap_or("(without name)")).collect();
    Err(Error::Ambiguous { wanted: reference.to_owned(), names: names.join(", ") })
}

fn best<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, Error> {
    let is_document =
        |d: &&&Descriptor| d.media_type.is_empty() || d.media_type.contains("manifest") || d.media_type == OCI_INDEX;
    candidates(index, platform)
        .iter()
        .find(is_document)
        .copied()
        .ok_or_else(|| Error::Platform { platform: platform.to_string(), available: available(index) })
}
