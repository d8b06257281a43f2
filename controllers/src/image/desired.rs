//! From an Image's spec to what this node should do about it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nodelet_crds::image::{Image, PullPolicy};
use nodelet_crds::reasons;
use nodelet_drivers::images::{Credentials, Fetch, Signer, Source, normalize};

use crate::invalid::Invalid;

/// An Image, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// What to have; `None` when the Image is for other nodes.
    pub fetch: Option<Fetch>,
    /// When to fetch.
    pub policy: PullPolicy,
}

/// Checks the spec for a node with these labels; `signers` are all who must have signed it.
pub fn validate(
    object: &Image,
    node_labels: &BTreeMap<String, String>,
    credentials: Option<Credentials>,
    signers: Vec<Signer>,
) -> Result<Desired, Invalid> {
    let spec = &object.spec;
    Invalid::unsupported(nodelet_crds::unsupported::unsupported(spec))?;
    let policy = spec.pull_policy;
    if spec.node_selector.as_ref().is_some_and(|selector| !selector.matches(node_labels)) {
        return Ok(Desired { fetch: None, policy });
    }
    normalize(&spec.reference)
        .map_err(|error| Invalid { reason: reasons::INVALID_SPEC, message: format!("spec.reference: {error}") })?;
    let source = match &spec.archive {
        Some(archive) => Source::Archive(PathBuf::from(&archive.path)),
        None => Source::Registry,
    };
    let platform = spec.platform.clone();
    let fetch = Fetch {
        reference: spec.reference.clone(),
        source,
        platform,
        credentials,
        priority: spec.priority,
        max_bytes_per_second: spec.max_bytes_per_second,
        signers,
    };
    Ok(Desired { fetch: Some(fetch), policy })
}
