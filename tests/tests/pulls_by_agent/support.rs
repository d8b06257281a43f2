//! A registry with images of the test's own, the fault proxy before it, and what a node must hold after a pull.

use std::fs;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::containerd::Registry;
use nodelet_tests::fault_proxy::FaultProxy;
use nodelet_tests::images::{Image, LayerBuilder, digest, store};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};

/// A registry on the node, and the proxy before it.
pub struct Site {
    pub proxy: FaultProxy,
    storage: tempfile::TempDir,
}

impl Site {
    /// In place of the registry that the node has.
    pub fn on(node: &mut Node) -> Result<Site> {
        let storage = tempfile::tempdir()?;
        node.registry.take().context("a registry")?.kill(&node.namespaces)?;
        node.registry = Some(Registry::start(&node.namespaces, storage.path(), &node.logs.join("own-registry.log"))?);
        // What waits in sockets was sent and is lost with who should have read it: as little as the kernel allows, however
        // late the reader is on a busy machine.
        let small = "cd /proc/sys/net/ipv4 && echo 4096 32768 65536 >tcp_rmem && echo 4096 16384 32768 >tcp_wmem";
        node.namespaces.run(["sh", "-c", small])?;
        let proxy = FaultProxy::start_in(&node.namespaces, 5000)?;
        Ok(Site { proxy, storage })
    }

    /// Adds an image with these layers and answers its digest and size.
    pub fn push(&self, name: &str, layers: Vec<Rc<nodelet_tests::images::Layer>>) -> Result<Pushed> {
        self.push_image(name, &Image { layers, config: json!({"Cmd": ["true"]}) })
    }

    /// Adds an image.
    pub fn push_image(&self, name: &str, image: &Image) -> Result<Pushed> {
        store::registry(self.storage.path(), name, "1", image)?;
        let (manifest, config) = (image.manifest_blob(), image.config_blob());
        let layers: Vec<(String, u64)> =
            image.layers.iter().map(|layer| (digest(&layer.gzip), layer.gzip.len() as u64)).collect();
        let size = layers.iter().map(|(_, size)| size).sum::<u64>() + config.len() as u64;
        Ok(Pushed { reference: self.proxy.name(&format!("{name}:1")), digest: digest(&manifest), layers, size })
    }

    /// Puts another manifest in the place of an image's own.
    pub fn push_manifest(&self, name: &str, image: &Image, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut manifest: Value = serde_json::from_slice(&image.manifest_blob())?;
        change(&mut manifest);
        store::manifest(self.storage.path(), name, "1", manifest.to_string().as_bytes())
    }
}

/// An image in the registry.
pub struct Pushed {
    pub reference: String,
    pub digest: String,
    /// Digests and sizes of the layers' blobs.
    pub layers: Vec<(String, u64)>,
    /// Of configuration and layers.
    pub size: u64,
}

/// A layer with one file of bytes that compression does not change.
pub fn random_layer(name: &str, bytes: usize, seed: u64) -> Result<Rc<nodelet_tests::images::Layer>> {
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut content);
    let mut layer = LayerBuilder::default();
    layer.file(name, &content, 0o644)?;
    Ok(Rc::new(layer.finish()?))
}

/// An Image.
pub fn wish(name: &str, reference: &str) -> Value {
    json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
        "spec": {"reference": reference},
    })
}

/// Declares the Image `app`.
pub fn want(node: &Node, reference: &str) -> Result<()> {
    node.apply(&wish("app", reference).to_string()).map(drop)
}

/// Waits until an Image is as wanted.
pub fn until_image(node: &Node, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    until(PATIENCE, &format!("{name}: {what}"), || Ok(node.object("images", name)?.filter(|image| wanted(image))))
        .with_context(|| format!("{:#?}\n{}", node.object("images", name), node.explain()))
}

/// Waits until the image is ready, and fails unless it is just what was pushed, with nothing beside.
pub fn until_whole(node: &Node, image: &Pushed) -> Result<()> {
    let ready = until_image(node, "app", "ready", api::ready)?;
    ensure!(ready["status"]["digest"] == image.digest.as_str(), "{ready:#}");
    for (layer, size) in &image.layers {
        let hex = layer.trim_start_matches("sha256:");
        let path = format!("/run/containerd-root/io.containerd.content.v1.content/blobs/sha256/{hex}");
        let bytes = fs::read(node.namespaces.path(path)).with_context(|| format!("the blob {layer}"))?;
        ensure!(bytes.len() as u64 == *size && digest(&bytes) == *layer, "the blob {layer} is another");
    }
    let names = node.ctr(&["image", "ls", "-q"])?;
    ensure!(names.trim() == image.reference, "{names}");
    Ok(())
}

/// Waits until the pull has failed, fails unless its condition says all these words and no image is visible, and answers
/// the condition's message.
pub fn until_failed(node: &Node, what: &str, words: &[&str]) -> Result<String> {
    let failed = until_image(node, "app", what, |image| {
        api::condition(image, "Ready").is_some_and(|it| it["status"] == "False" && it["reason"] == "PullFailed")
    })?;
    let message = api::condition(&failed, "Ready").and_then(|it| it["message"].as_str()).context("a message")?;
    for word in words {
        ensure!(message.contains(word), "{what}: {word:?} is missing: {message}");
    }
    no_image(node)?;
    Ok(message.to_owned())
}

/// Fails if an image can be seen: nothing that is not whole may be.
pub fn no_image(node: &Node) -> Result<()> {
    let names = node.ctr(&["image", "ls", "-q"])?;
    ensure!(names.is_empty(), "a partial image is visible: {names}");
    Ok(())
}

/// Deletes the Image `app` and fails unless nothing of it stays: no image, blob, snapshot, lease or unfinished blob.
pub fn until_nothing_left(node: &Node) -> Result<()> {
    node.nodelet(&["delete", "image", "app"])?;
    until_empty(node)
}

/// Waits until containerd holds nothing.
pub fn until_empty(node: &Node) -> Result<()> {
    let ctr = node.programs.join("ctr");
    let script = format!(
        "set -e; c='{} -n nodelet'; $c image ls -q; $c content ls -q; $c snapshots ls | tail -n +2; \
         $c leases ls -q; $c content active | tail -n +2",
        ctr.display()
    );
    let mut left = String::new();
    until(PATIENCE, "nothing of the image", || {
        left = node.namespaces.run(["sh", "-c", &script])?;
        Ok(left.trim().is_empty().then_some(()))
    })
    .with_context(|| left.clone())
}
