//! Broken connections, killed daemons, abandoned fetches: what has arrived is kept and never asked for again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::fixture::*;
use crate::images::{Error, Images as _, OnProgress, Options};
use crate::testing::PrivateContainerd;

const LAYER: u64 = 8 << 20;

fn one_attempt() -> Options {
    Options { attempts: 1, ..Options::default() }
}

#[tokio::test]
async fn a_cut_connection_costs_only_the_rest() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[random_layer("a", LAYER as usize)]);
    let proxy = Proxy::start(registry.port).await;
    let fetch = from_registry(&proxy.name("app:1"));
    let mut before = 0;
    for cut in [1 << 20, 3 << 20] {
        proxy.take();
        proxy.cut_after(cut);
        // A new driver each time: nothing may depend on what this process remembers.
        let error = images(&node, one_attempt()).fetch(&fetch, silent()).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        before += proxy.take();
        assert_eq!(images(&node, one_attempt()).get(&fetch.reference).await.unwrap(), None);
    }
    proxy.cut_after(u64::MAX);
    let image = images(&node, one_attempt()).fetch(&fetch, silent()).await.unwrap();
    let rest = proxy.take();
    // Documents are asked for again, and a few packets may be lost with the connection.
    let slack = 256 << 10;
    assert!(before > (4 << 20) - slack, "{before}");
    assert!(before + rest < image.size + slack, "{before} + {rest} for {}", image.size);
    assert_eq!(node.ctr(["content", "active"]).lines().count(), 1, "nothing unfinished is left");
}

#[tokio::test]
async fn one_fetch_continues_by_itself() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[random_layer("a", LAYER as usize)]);
    let proxy = Proxy::start(registry.port).await;
    proxy.cut_after(2 << 20);
    let (images, fetch) = (images(&node, Options::default()), from_registry(&proxy.name("app:1")));
    let fetching = tokio::spawn(async move { images.fetch(&fetch, silent()).await });
    while proxy.sent() < 2 << 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.cut_after(u64::MAX);
    let image = fetching.await.unwrap().unwrap();
    assert!(proxy.take() < image.size + (256 << 10));
}

/// Resolves when so many bytes have arrived, and gives the callback to tell.
fn reached(bytes: u64) -> (OnProgress, impl Future<Output = ()>) {
    let (sender, mut receiver) = tokio::sync::watch::channel(0);
    let callback: OnProgress = Arc::new(move |progress| {
        sender.send_replace(progress.bytes_done);
    });
    (callback, async move { drop(receiver.wait_for(|done| *done >= bytes).await) })
}

/// What may be under way to containerd's file: our buffer, queued messages and the connection's window.
const UNDER_WAY: u64 = 6 << 20;

#[tokio::test]
async fn a_killed_containerd_keeps_what_it_had() {
    let (mut node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[random_layer("a", 4 * LAYER as usize)]);
    let proxy = Proxy::start(registry.port).await;
    let (driver, fetch) = (images(&node, one_attempt()), from_registry(&proxy.name("app:1")));
    let (progress, half) = reached(2 * LAYER);
    let wish = fetch.clone();
    let fetching = tokio::spawn(async move { driver.fetch(&wish, progress).await });
    half.await;
    node.restart().await;
    let outcome = fetching.await.unwrap();
    assert!(outcome.is_err(), "{outcome:?}");
    proxy.take();
    let image = images(&node, one_attempt()).fetch(&fetch, silent()).await.unwrap();
    let rest = proxy.take();
    assert!(rest < image.size - 2 * LAYER + UNDER_WAY, "{rest} of {}", image.size);
}

#[tokio::test]
async fn a_fetch_outlives_a_restart_of_containerd() {
    let (mut node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[random_layer("a", 4 * LAYER as usize)]);
    let (driver, fetch) = (images(&node, Options::default()), from_registry(&registry.name("app:1")));
    let (progress, half) = reached(2 * LAYER);
    let fetching = tokio::spawn(async move { driver.fetch(&fetch, progress).await });
    half.await;
    node.restart().await;
    fetching.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_abandoned_fetch_is_continued_by_the_next() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[random_layer("a", 4 * LAYER as usize)]);
    let proxy = Proxy::start(registry.port).await;
    let (images, fetch) = (images(&node, Options::default()), from_registry(&proxy.name("app:1")));
    let (progress, half) = reached(2 * LAYER);
    tokio::select! {
        done = images.fetch(&fetch, progress) => panic!("too fast to be abandoned: {done:?}"),
        () = half => {}
    }
    // Its connection is closed some time after; what comes until then was asked for by nobody.
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.take();
    let image = images.fetch(&fetch, silent()).await.unwrap();
    let rest = proxy.take();
    assert!(rest < image.size - 2 * LAYER + UNDER_WAY, "{rest} of {}", image.size);
}

#[tokio::test]
async fn damaged_content_is_refused_and_nothing_of_it_stays() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[random_layer("a", LAYER as usize)]);
    // Another byte in the middle of the largest blob.
    let blobs = registry.dir.path().join("data/docker/registry/v2/blobs/sha256");
    let mut files: Vec<_> = walk(&blobs);
    files.sort_by_key(|f| std::fs::metadata(f).unwrap().len());
    let largest = files.last().unwrap();
    let good = std::fs::read(largest).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(largest, &bad).unwrap();
    let (images, fetch) = (images(&node, one_attempt()), from_registry(&registry.name("app:1")));
    let error = images.fetch(&fetch, silent()).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt { .. }), "{error:?}");
    assert_eq!(images.get(&fetch.reference).await.unwrap(), None);
    assert_eq!(node.ctr(["content", "active"]).lines().count(), 1, "nothing unfinished is left");
    // Repaired at the registry, it is fetched as if nothing had been.
    std::fs::write(largest, &good).unwrap();
    images.fetch(&fetch, silent()).await.unwrap();
    images.remove(&fetch.reference).await.unwrap();
    assert_eq!(inventory(&node), Vec::<String>::new());
}

#[tokio::test]
async fn a_failed_fetch_is_freed_by_remove() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[random_layer("a", LAYER as usize), file_layer("b", b"b")]);
    let proxy = Proxy::start(registry.port).await;
    proxy.cut_after(3 << 20);
    let (images, fetch) = (images(&node, one_attempt()), from_registry(&proxy.name("app:1")));
    images.fetch(&fetch, silent()).await.unwrap_err();
    assert!(node.ctr(["leases", "list", "-q"]).contains("nodelet-pull-"));
    images.remove(&fetch.reference).await.unwrap();
    assert_eq!(inventory(&node), Vec::<String>::new());
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
