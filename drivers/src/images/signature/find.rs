//! Where signatures are: beside the image in its registry, under the tag that its digest makes (`sha256-….sig`) or as
//! artifacts that refer to it; or in the same archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::super::Error;
use super::super::archive::ArchiveImage;
use super::super::driver::{Inner, Wish};
use super::super::manifest::{Descriptor, Digest};
use super::super::pull::{From, Plan, patiently};
use super::super::registry::Repository;
use super::super::transfer;
use super::key::Signer;
use super::payload::{Evidence, Problem, judge};

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Nobody signs an image more often; who claims so wants to keep us busy.
const MOST: usize = 64;
/// No honest signature is larger.
const LARGEST: u64 = 1 << 20;

/// A manifest of signatures, read leniently: only what is needed.
#[derive(Debug, Default, Deserialize)]
struct Signatures {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Signatures {
    fn parse(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// The layers that may be signatures.
    fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        let may_be = |layer: &&Descriptor| {
            (layer.media_type == SIMPLE_SIGNING || layer.media_type.starts_with(BUNDLE)) && layer.size <= LARGEST
        };
        self.layers.iter().filter(may_be).take(MOST)
    }
}

fn evidence(layer: &Descriptor, bytes: Vec<u8>) -> Evidence {
    if layer.media_type == SIMPLE_SIGNING {
        let signature = layer.annotation(SIGNATURE).unwrap_or_default().to_owned();
        Evidence::Simple { payload: bytes, signature }
    } else {
        Evidence::Bundle(bytes)
    }
}

/// Succeeds if every key that the wish names signed what the plan is about to store.
pub(in crate::images) async fn check(inner: &Arc<Inner>, wish: &Wish, plan: &Plan) -> Result<(), Error> {
    if wish.signers.is_empty() {
        return Ok(());
    }
    let mut open = Open::new(&wish.signers, &plan.root.digest);
    match &plan.from {
        From::Registry(repository) => in_registry(inner, repository, &mut open).await?,
        From::Archive(archive) => in_archive(archive, &mut open),
    }
    match open.signers.into_iter().next() {
        None => Ok(()),
        Some((signer, problems)) => Err(Error::Unsigned {
            reference: wish.reference.clone(),
            digest: plan.root.digest.to_string(),
            signer: Box::new(signer.clone()),
            source: Arc::new(Missing { found: problems }),
        }),
    }
}

/// The keys whose signature has not been found yet, with what was found instead.
struct Open<'a> {
    digest: &'a Digest,
    signers: BTreeMap<&'a Signer, Vec<Problem>>,
    seen: BTreeSet<String>,
}

impl<'a> Open<'a> {
    fn new(signers: &'a [Signer], digest: &'a Digest) -> Self {
        let signers = signers.iter().map(|signer| (signer, Vec::new())).collect();
        Self { digest, signers, seen: BTreeSet::new() }
    }

    fn is_done(&self) -> bool {
        self.signers.is_empty()
    }

    fn consider(&mut self, evidence: &Evidence) {
        let digest = self.digest;
        self.signers.retain(|signer, problems| match judge(evidence, signer, digest) {
            Ok(()) => false,
            Err(problem) => {
                problems.push(problem);
                true
            }
        });
    }
}

async fn in_registry(inner: &Arc<Inner>, repository: &Repository, open: &mut Open<'_>) -> Result<(), Error> {
    let hex = open.digest.hex();
    let tagged = repository.at_tag(&format!("sha256-{hex}.sig"));
    if let Some(bytes) = if_there(patiently(inner, || tagged.root()).await)? {
        consider_layers(inner, repository, &Signatures::parse(&bytes), open).await?;
    }
    if open.is_done() {
        return Ok(());
    }
    let referrers = if_there(patiently(inner, || repository.referrers(open.digest)).await)?.unwrap_or_default();
    for referrer in referrers.into_iter().take(MOST) {
        if open.is_done() {
            return Ok(());
        }
        if let Some(bytes) = if_there(patiently(inner, || repository.manifest(&referrer)).await)? {
            consider_layers(inner, repository, &Signatures::parse(&bytes), open).await?;
        }
    }
    Ok(())
}

async fn consider_layers(
    inner: &Arc<Inner>,
    repository: &Repository,
    signatures: &Signatures,
    open: &mut Open<'_>,
) -> Result<(), Error> {
    for layer in signatures.layers() {
        // Equal payloads have equal digests; the signature beside them differs.
        let signature = layer.annotation(SIGNATURE).unwrap_or_default();
        if open.is_done() || open.seen.len() >= MOST || !open.seen.insert(format!("{} {signature}", layer.digest)) {
            continue;
        }
        if let Some(bytes) = if_there(patiently(inner, || transfer::document(repository, layer)).await)? {
            open.consider(&evidence(layer, bytes));
        }
    }
    Ok(())
}

/// An archive brings its signatures along, as `cosign save` writes them.
fn in_archive(archive: &ArchiveImage, open: &mut Open<'_>) {
    #[derive(Default, Deserialize)]
    struct Listed {
        #[serde(default)]
        manifests: Vec<Descriptor>,
    }
    let Ok(index) = archive.contents.document("index.json") else { return };
    let listed: Listed = serde_json::from_slice(index).unwrap_or_default();
    for manifest in listed.manifests.iter().take(MOST) {
        let Ok(bytes) = archive.contents.blob(&manifest.digest) else { continue };
        for layer in Signatures::parse(bytes).layers() {
            // A payload that is not what its digest says has no right signature either.
            if let Ok(bytes) = archive.contents.blob(&layer.digest) {
                open.consider(&evidence(layer, bytes.to_vec()));
            }
        }
    }
}

fn if_there<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was found in place of the signature.
#[derive(Debug)]
struct Missing {
    found: Vec<Problem>,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other_image = self.found.iter().find_map(|problem| match problem {
            Problem::OtherImage(digest) => Some(digest),
            _ => None,
        });
        let malformed = self.found.iter().find_map(|problem| match problem {
            Problem::Malformed(message) => Some(message),
            _ => None,
        });
        let number = self.found.len();
        let signatures = if number == 1 { "the one signature" } else { "none of the signatures" };
        match (other_image, malformed) {
            (Some(digest), _) => write!(f, "the key's signature that was found is of {digest}"),
            _ if number == 0 => write!(f, "no signature was found"),
            (None, Some(message)) => write!(f, "{number} found, not one of this key; one is unusable: {message}"),
            (None, None) if number == 1 => write!(f, "{signatures} that was found is of another key"),
            (None, None) => write!(f, "{signatures} that were found ({number}) is of this key"),
        }
    }
}
