//! What every [`Images`] must do, as one suite that runs on the fake and on a real containerd with a registry.
//!
//! Panics with the broken rule.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::{Error, Fetch, Image, Images, OnProgress, Phase, Progress, Source};

/// The world around the images: a registry and a place for archives.
#[async_trait]
pub trait Node: Send + Sync {
    /// The images under test.
    fn images(&self) -> &dyn Images;
    /// The reference of an image in the registry: `app:1`.
    fn name(&self, name: &str) -> String;
    /// Puts an image for the node's platform into the registry; equal content means equal digests.
    async fn push(&self, name: &str, content: &str);
    /// Makes an archive with an image.
    async fn archive(&self, content: &str) -> PathBuf;
}

/// Runs the whole suite on a node without images.
pub async fn run(node: &dyn Node) {
    let images = node.images();
    assert_eq!(images.list().await.expect("an empty node can be listed"), []);
    let app = fetch_is_seen_by_all_and_repeatable(node).await;
    a_moved_tag_replaces_the_image(node, &app).await;
    refusals_change_nothing(node).await;
    equal_wishes_get_equal_answers(node).await;
    archives_are_known_by_the_wished_name(node).await;
    let all = images.list().await.expect("listing");
    images.collect(&BTreeSet::new()).await.expect("collecting");
    assert_eq!(images.list().await.expect("listing"), all, "an image is never collected");
    for image in all {
        images.remove(&image.reference).await.expect("removing");
        images.remove(&image.reference).await.expect("removing what is absent");
        assert_eq!(images.get(&image.reference).await.expect("getting"), None, "removed means gone");
    }
    assert_eq!(images.list().await.expect("listing"), []);
}

fn wish(reference: &str) -> Fetch {
    Fetch::new(reference)
}

fn collect() -> (OnProgress, Arc<Mutex<Vec<Progress>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    (Arc::new(move |p| sink.lock().expect("no test panics in here").push(p)), seen)
}

async fn fetch_is_seen_by_all_and_repeatable(node: &dyn Node) -> Image {
    let (images, name) = (node.images(), node.name("app:1"));
    node.push("app:1", "first").await;
    assert_eq!(images.get(&name).await.expect("getting"), None, "what was not fetched is not there");
    let before = images.estimate(&wish(&name)).await.expect("estimating");
    assert!(before.bytes_missing == before.bytes_total && before.bytes_unpacked > 0, "{before:?}");
    let (progress, seen) = collect();
    let image = images.fetch(&wish(&name), progress.clone()).await.expect("fetching");
    let after = images.estimate(&wish(&name)).await.expect("estimating");
    assert_eq!((&after.digest, after.bytes_total), (&image.digest, image.size));
    assert_eq!((after.bytes_missing, after.bytes_unpacked), (0, 0), "nothing is fetched twice");
    let usage = images.usage().await.expect("usage");
    assert_eq!(usage.images.len(), 1);
    let known = |digest: &String| usage.blobs.iter().any(|blob| blob.digest == *digest);
    assert!(usage.images[0].blobs.iter().all(known) && !usage.images[0].snapshots.is_empty(), "{usage:?}");
    assert_eq!(images.verify(&name).await.expect("verifying"), [], "what was fetched is sound");
    assert_eq!(image.reference, super::normalize(&name).expect("the suite's names are valid"));
    let last = seen.lock().expect("no panic").last().cloned().expect("progress is told");
    assert_eq!((last.phase, last.bytes_done), (Phase::Ready, last.bytes_total), "the last progress is the whole");
    assert_eq!(last.bytes_total, image.size);
    assert_eq!(images.get(&name).await.expect("getting").as_ref(), Some(&image));
    assert_eq!(images.list().await.expect("listing"), std::slice::from_ref(&image));
    assert_eq!(images.resolve(&wish(&name)).await.expect("resolving"), image.digest);
    assert_eq!(images.fetch(&wish(&name), progress).await.expect("fetching again"), image);
    let held = images.list_fetched().await.expect("listing what was fetched");
    let held: Vec<_> = held.iter().map(|held| (&held.reference, &held.digest, held.size)).collect();
    assert_eq!(held, [(&image.reference, &image.digest, image.size)]);
    let disk = images.disk().await.expect("looking at the disk");
    assert!(disk.available <= disk.total, "{disk:?}");
    image
}

async fn a_moved_tag_replaces_the_image(node: &dyn Node, before: &Image) {
    let (images, name) = (node.images(), node.name("app:1"));
    node.push("app:1", "second").await;
    assert_ne!(images.resolve(&wish(&name)).await.expect("resolving"), before.digest);
    assert_eq!(images.get(&name).await.expect("getting").as_ref(), Some(before), "resolving changes nothing");
    let after = images.fetch(&wish(&name), collect().0).await.expect("fetching");
    assert_ne!(after.digest, before.digest);
    assert_eq!(images.list().await.expect("listing"), [after]);
}

async fn refusals_change_nothing(node: &dyn Node) {
    let images = node.images();
    let before = images.list().await.expect("listing");
    let missing = wish(&node.name("nothing:1"));
    let (progress, seen) = collect();
    assert!(matches!(images.fetch(&missing, progress).await, Err(Error::NotFound { .. })));
    let last = seen.lock().expect("no panic").last().map(|p| p.phase);
    assert_eq!(last, Some(Phase::Failed), "a failure is progress too");
    assert!(matches!(images.resolve(&missing).await, Err(Error::NotFound { .. })));
    let other = Fetch { platform: Some("linux/s390x".to_owned()), ..wish(&node.name("app:1")) };
    assert!(matches!(images.fetch(&other, collect().0).await, Err(Error::Platform { .. })));
    assert!(matches!(images.get("Not A Name").await, Err(Error::InvalidReference { .. })));
    assert!(matches!(images.fetch(&wish("Not A Name"), collect().0).await, Err(Error::InvalidReference { .. })));
    let gone = Fetch { source: Source::Archive("/nonexistent/x.tar".into()), ..wish("x.test/gone:1") };
    assert!(matches!(images.fetch(&gone, collect().0).await, Err(Error::Archive { .. })));
    assert_eq!(images.list().await.expect("listing"), before);
}

async fn equal_wishes_get_equal_answers(node: &dyn Node) {
    node.push("shared:1", "shared").await;
    let name = wish(&node.name("shared:1"));
    let all = (0..5).map(|_| node.images().fetch(&name, collect().0));
    let answers = futures::future::join_all(all).await;
    let first = answers[0].as_ref().expect("fetching");
    assert!(answers.iter().all(|a| a.as_ref().expect("fetching") == first));
}

async fn archives_are_known_by_the_wished_name(node: &dyn Node) {
    let path = node.archive("packed").await;
    assert_eq!(node.images().names(&path).await.expect("listing an archive").len(), 1);
    let missing = node.images().names("/nonexistent/x.tar".as_ref()).await;
    assert!(matches!(missing, Err(Error::Archive { .. })));
    let fetch = Fetch { source: Source::Archive(path), ..wish("x.test/packed:1") };
    let digest = node.images().resolve(&fetch).await.expect("resolving an archive");
    let image = node.images().fetch(&fetch, collect().0).await.expect("fetching from an archive");
    assert_eq!((image.reference.as_str(), &image.digest), ("x.test/packed:1", &digest));
    assert_eq!(node.images().get("x.test/packed:1").await.expect("getting"), Some(image));
}
