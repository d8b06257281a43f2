//! The disk fills up: images that nobody needs go, what is needed stays, and what cannot fit is not begun.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use serde_json::Value;

nodelet_tests::on_each_containerd!(a_full_disk_is_relieved_of_what_nobody_needs);
nodelet_tests::on_containerd!(
    unneeded_images_are_pruned_on_request,
    a_pull_that_cannot_fit_is_refused_with_the_numbers
);

/// A workload that does nothing in an image.
fn workload(name: &str, image: &str) -> String {
    format!(
        "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  networks: [{{name: none}}]
  containers: [{{name: main, image: 'localhost:5000/{image}', command: [sleep, '2147483647']}}]
"
    )
}

/// Names of the images that containerd has.
fn images(node: &Node) -> Result<Vec<String>> {
    Ok(node.ctr(&["image", "ls", "-q"])?.lines().map(str::to_owned).collect())
}

/// Gives the filesystem below containerd and the agent another size: what is used now and `spare` KiB more.
fn resize(node: &Node, spare: &str) -> Result<()> {
    let script = format!("used=$(df -k --output=used /run | tail -1); mount -o remount,size=$((used + {spare}))k /run");
    node.namespaces.run(["sh", "-c", &script]).map(drop)
}

fn a_full_disk_is_relieved_of_what_nobody_needs(node: &mut Node) -> Result<()> {
    node.stop_agent()?;
    let config = fs::read_to_string(node.config())?;
    let often = config.replace("auditSeconds: 86400", "auditSeconds: 10")
        + "images: {gc: {highPercent: 90, lowPercent: 50, minAgeSeconds: 0}}\neviction: {pressureTransitionSeconds: 1}\n";
    fs::write(node.config(), often)?;
    node.start_agent()?;

    node.ctr(&["image", "pull", "--plain-http", "localhost:5000/test/counter:1"])?;
    node.apply(&workload("needed", "shop/busybox:1"))?;
    node.apply(&workload("leaves", "shop/redis:1"))?;
    node.until_ready("needed")?;
    node.until_ready("leaves")?;
    node.nodelet(&["delete", "workload", "leaves"])?;
    node.until_gone("workloads", "leaves")?;
    ensure!(images(node)?.len() == 3, "nothing goes while there is room: {:?}", images(node)?);

    let pid = node.pid("needed")?;
    resize(node, "used / 20")?;
    until(PATIENCE, "the image that nobody needs to go", || {
        Ok(images(node)?.iter().all(|image| !image.contains("redis")).then_some(()))
    })
    .with_context(|| node.explain())?;
    let left = images(node)?;
    ensure!(left.iter().any(|image| image.contains("counter")), "another hand's image was removed: {left:?}");
    ensure!(left.iter().any(|image| image.contains("busybox")), "a needed image was removed: {left:?}");
    ensure!(node.pid("needed")? == pid, "the container was replaced");

    // It says what it did, and what it cannot help.
    until(PATIENCE, "an Event about it", || {
        Ok(node.nodelet(&["events", "-A"])?.contains("ImagesCollected").then_some(()))
    })?;
    node.namespaces.run(["sh", "-c", "head -c 8M /dev/zero >/run/ballast"])?;
    resize(node, "used / 50")?;
    until_pressure(node, "True")?;
    resize(node, "used * 4")?;
    until_pressure(node, "False")
}

fn until_pressure(node: &Node, status: &str) -> Result<()> {
    until(PATIENCE, &format!("condition DiskPressure to be {status}"), || {
        let states = node.get("/apis/nodelet.dev/v1alpha1/nodestates")?.context("NodeStates")?;
        let found = api::condition(&states["items"][0], "DiskPressure").is_some_and(|it| it["status"] == status);
        Ok(found.then_some(()))
    })
    .with_context(|| node.explain())
}

fn unneeded_images_are_pruned_on_request(node: &mut Node) -> Result<()> {
    node.apply(&workload("needed", "shop/busybox:1"))?;
    node.apply(&workload("leaves", "shop/redis:1"))?;
    node.until_ready("needed")?;
    node.until_ready("leaves")?;
    let all_needed = prune(node, &["--dry-run"])?;
    ensure!(all_needed["removed"] == serde_json::json!([]), "{all_needed:#}");

    node.nodelet(&["delete", "workload", "leaves"])?;
    node.until_gone("workloads", "leaves")?;
    let would = prune(node, &["--dry-run"])?;
    ensure!(would["removed"][0]["reference"] == "localhost:5000/shop/redis:1", "{would:#}");
    ensure!(images(node)?.len() == 2, "a dry run removed something");
    let done = prune(node, &[])?;
    ensure!(done["removed"] == would["removed"] && done["freedBytes"].as_u64() > Some(1 << 20), "{done:#}");
    ensure!(done["kept"][0]["neededBy"] == "Workload default/needed", "{done:#}");
    ensure!(images(node)? == ["localhost:5000/shop/busybox:1"], "{:?}", images(node)?);
    let text = node.nodelet(&["images", "prune"])?;
    ensure!(text.is_empty(), "nothing is left to remove: {text}");

    // What was removed is there again when somebody needs it.
    node.apply(&workload("back", "shop/redis:1"))?;
    node.until_ready("back").map(drop)
}

fn prune(node: &Node, flags: &[&str]) -> Result<Value> {
    let words = [&["images", "prune", "-o", "json"], flags].concat();
    let mut answer: Value = serde_json::from_str(&node.nodelet(&words)?)?;
    Ok(answer["items"][0]["collection"].take())
}

fn a_pull_that_cannot_fit_is_refused_with_the_numbers(node: &mut Node) -> Result<()> {
    resize(node, "20000")?;
    node.apply(&workload("large", "shop/postgres:1"))?;
    let refused = node.until_workload("large", "refused", |workload| {
        api::condition(workload, "ImagesReady").is_some_and(|condition| condition["reason"] == "InsufficientStorage")
    })?;
    let condition = api::condition(&refused, "ImagesReady").context("a condition")?;
    let message = condition["message"].as_str().context("a message")?;
    for needed in ["shop/postgres:1 does not fit", "to download", "are left", "nodelet images prune", "try 2 in"] {
        ensure!(message.contains(needed), "{needed:?} is missing: {message}");
    }
    ensure!(images(node)?.is_empty(), "a partial image is visible: {:?}", images(node)?);
    let ingests = node.ctr(&["content", "active"])?;
    ensure!(!ingests.contains("layer"), "the pull was begun: {ingests}");
    resize(node, "2000000")?;
    node.until_ready("large").map(drop)
}
