//! Images that a workload follows: those of containers that are pulled before every start, whose reference an Image
//! resolves anew now and then.
//!
//! With StartFirst another digest of such a reference is another revision, with a sandbox of its own. Which digests
//! make the sandbox is noted with it and its containers: what is not known for the moment, as all Images right after the
//! agent's start, changes nothing.

use std::collections::BTreeMap;

use kube::ResourceExt;
use nodelet_crds::image::PullPolicy;
use nodelet_crds::labels;
use nodelet_crds::workload::{UpdateStrategy, Workload};
use nodelet_drivers::images::normalize;
use nodelet_drivers::runtime::Container;

use crate::context::Context;
use crate::names::short_hash;

/// What each container follows to, by its name: a hash of the digest.
pub type Followed = BTreeMap<String, String>;

/// What the workload's containers follow to now; empty without StartFirst.
pub async fn followed(ctx: &Context, object: &Workload) -> Followed {
    let spec = &object.spec;
    if spec.update.as_ref().is_none_or(|update| update.strategy != UpdateStrategy::StartFirst) {
        return Followed::new();
    }
    let containers = ctx.containers.of_workload(&object.uid().unwrap_or_default()).unwrap_or_default();
    let (noted, runs) = (noted(&containers), running(&containers));
    let mut followed = Followed::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        let follows = matches!(container.image_pull_policy, PullPolicy::Always | PullPolicy::Newer);
        let present = match follows && is_refreshed(ctx, &container.image) {
            true => ctx.drivers.images.get(&container.image).await.ok().flatten(),
            false => None,
        };
        let digest = present.map(|image| image.digest);
        let (noted, runs) = (noted.get(&container.name), runs.get(container.name.as_str()).copied());
        if let Some(one) = follow(digest.as_deref(), noted, runs) {
            followed.insert(container.name.clone(), one);
        }
    }
    followed
}

/// Nothing changes while the present digest is unknown, or is what runs.
fn follow(present: Option<&str>, noted: Option<&String>, runs: Option<&str>) -> Option<String> {
    match present {
        Some(digest) if runs != Some(digest) => Some(short_hash(digest, 16)),
        _ => noted.cloned(),
    }
}

/// As a label.
pub fn label(followed: &Followed) -> Option<(String, String)> {
    let text = serde_json::to_string(followed).ok().filter(|_| !followed.is_empty())?;
    Some((labels::FOLLOWS.to_owned(), text))
}

/// What the youngest containers were made by.
fn noted(containers: &[Container]) -> Followed {
    let youngest = containers.iter().max_by_key(|container| container.created_at);
    let text = youngest.and_then(|container| container.labels.get(labels::FOLLOWS));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The digest that the youngest container of each name was made from.
fn running(containers: &[Container]) -> BTreeMap<&str, &str> {
    let mut all: Vec<&Container> = containers.iter().collect();
    all.sort_by_key(|container| container.created_at);
    let labels = all.into_iter().map(|container| &container.labels);
    labels.filter_map(|l| Some((l.get(labels::CONTAINER)?.as_str(), l.get(labels::IMAGE_DIGEST)?.as_str()))).collect()
}

/// Whether an Image of this node resolves the reference anew now and then.
pub fn is_refreshed(ctx: &Context, reference: &str) -> bool {
    let Ok(wanted) = normalize(reference) else { return false };
    ctx.stores.images.state().iter().any(|image| {
        let spec = &image.spec;
        let here = spec.node_selector.as_ref().is_none_or(|selector| selector.matches(&ctx.settings.node_labels));
        spec.refresh_seconds > 0 && here && normalize(&spec.reference).is_ok_and(|other| other == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_digest_than_what_runs_is_followed_to() {
        let (old, new) = (short_hash("old", 16), short_hash("new", 16));
        for (present, noted, runs, expected) in [
            // Before the first start, and when a new one was pushed.
            (Some("new"), None, None, Some(&new)),
            (Some("new"), Some(&old), Some("old"), Some(&new)),
            (Some("new"), None, Some("old"), Some(&new)),
            // What runs is what is there: as it was made.
            (Some("old"), None, Some("old"), None),
            (Some("old"), Some(&old), Some("old"), Some(&old)),
            // Not known, or not asked for any more.
            (None, Some(&old), Some("old"), Some(&old)),
            (None, None, Some("old"), None),
        ] {
            assert_eq!(follow(present, noted, runs).as_ref(), expected, "{present:?} {noted:?} {runs:?}");
        }
    }
}
