//! A power cut tears files of an image: the workload comes up again by itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::containerd::Registry;
use nodelet_tests::node::{DATA, Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(
    torn_files_are_repaired_after_a_power_cut,
    a_torn_layer_waits_for_the_network_and_keeps_nothing_from_starting,
);
nodelet_tests::on_containerd!(a_start_that_damage_prevents_repairs_the_image);

const SLEEPER: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 0
  networks: [{name: none}]
  containers: [{name: main, image: 'localhost:5000/shop/busybox:1', command: [sleep, '2147483647']}]
";

const SNAPSHOTS: &str = "/run/containerd-root/io.containerd.snapshotter.v1.overlayfs/snapshots";
const BLOBS: &str = "/run/containerd-root/io.containerd.content.v1.content/blobs/sha256";

/// What a file loses in a power cut.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Its content; the length stays, as with one that was never written back.
    Content,
    /// Its end.
    End,
}

fn torn_files_are_repaired_after_a_power_cut(node: &mut Node) -> Result<()> {
    node.apply(SLEEPER)?;
    node.until_ready("sleeper")?;
    // What is unpacked is made anew from the blobs, without a registry.
    node.registry.take().context("a registry")?.kill(&node.namespaces)?;
    for loss in [Loss::Content, Loss::End] {
        cut_power(node, SNAPSHOTS, loss)?;
    }
    let log = node.logs.join("registry-again.log");
    node.registry = Some(Registry::start(&node.namespaces, &node.images.registry, &log)?);
    for loss in [Loss::Content, Loss::End] {
        cut_power(node, BLOBS, loss)?;
    }
    let metrics = node.fetch("http://127.0.0.1:9440/metrics")?;
    ensure!(metrics.contains("nodelet_repairs_total{what=\"image\"} 1"), "{metrics}");
    ensure!(node.nodelet(&["events", "-A"])?.contains("Repaired image"), "nobody was told");
    Ok(())
}

fn a_torn_layer_waits_for_the_network_and_keeps_nothing_from_starting(node: &mut Node) -> Result<()> {
    node.apply(SLEEPER)?;
    node.until_ready("sleeper")?;
    node.registry.take().context("a registry")?.kill(&node.namespaces)?;
    let (torn, sound) = restart_with(node, BLOBS, Loss::End)?;
    ensure!(node.nodelet(&["events", "-A"])?.contains("ImageDamaged"), "nobody was told");
    ensure!(fs::read(&torn)? != sound, "repaired out of nothing");
    let pid = node.pid("sleeper")?;

    let log = node.logs.join("registry-again.log");
    node.registry = Some(Registry::start(&node.namespaces, &node.images.registry, &log)?);
    until(PATIENCE, "the layer to be fetched again", || {
        Ok(fs::read(&torn).is_ok_and(|now| now == sound).then_some(()))
    })
    .with_context(|| node.explain())?;
    until(PATIENCE, "the Event about it", || {
        Ok(node.nodelet(&["events", "-A"])?.contains("Repaired image").then_some(()))
    })?;
    ensure!(node.pid("sleeper")? == pid, "the repair restarted the container");
    Ok(())
}

/// After a power cut that tears a file, everything must be as it was.
fn cut_power(node: &mut Node, place: &str, loss: Loss) -> Result<()> {
    let (torn, sound) = restart_with(node, place, loss)?;
    // The blob's name is its digest; the file of a snapshot keeps its place.
    ensure!(fs::read(&torn)? == sound, "{} is still torn", torn.display());
    let boot = fs::read_to_string(node.namespaces.path(DATA).join("boot.json"))?;
    ensure!(boot.contains("shop/busybox"), "the image was not checked: {boot}");
    Ok(())
}

/// What a power cut does to a node as far as images are concerned: nothing runs, the greatest file below `place` is torn,
/// the boot is another. Returns once the workload is up again, with that file and what it was.
fn restart_with(node: &mut Node, place: &str, loss: Loss) -> Result<(PathBuf, Vec<u8>)> {
    let torn = greatest(node, place)?;
    let sound = fs::read(&torn)?;
    let before = node.until_ready("sleeper")?;
    node.kill_agent()?;
    for id in node.ctr(&["task", "ls", "-q"])?.lines() {
        node.ctr(&["task", "kill", "-s", "KILL", id])?;
        until(PATIENCE, "the container to end", || Ok(node.ctr(&["task", "rm", id]).ok()))?;
    }
    node.kill_containerd()?;
    tear(&torn, loss)?;
    let record = node.namespaces.path(DATA).join("boot.json");
    let mut boot: serde_json::Value = serde_json::from_slice(&fs::read(&record)?)?;
    ensure!(boot["orderly"] == false, "{boot}");
    boot["bootId"] = "another".into();
    fs::write(&record, boot.to_string())?;

    node.start_containerd()?;
    node.start_agent()?;
    let what = format!("to be up again after {} lost its {loss:?}", torn.display());
    node.until_workload("sleeper", &what, |it| api::ready(it) && api::container_id(it) != api::container_id(&before))?;
    Ok((torn, sound))
}

fn a_start_that_damage_prevents_repairs_the_image(node: &mut Node) -> Result<()> {
    node.apply(SLEEPER)?;
    let before = node.until_ready("sleeper")?;
    let torn = greatest(node, SNAPSHOTS)?;
    let sound = fs::read(&torn)?;
    tear(&torn, Loss::Content)?;
    node.ctr(&["task", "kill", "-s", "KILL", &api::container_id(&before).context("an id")?])?;
    node.until_workload("sleeper", "to run again", |it| {
        api::ready(it) && api::container_id(it) != api::container_id(&before)
    })?;
    // It may look as if it ran before it is noticed that it does not.
    until(PATIENCE, &format!("{} to be put right", torn.display()), || {
        Ok(fs::read(greatest(node, SNAPSHOTS)?).is_ok_and(|now| now == sound).then_some(()))
    })
    .with_context(|| node.explain())?;
    until(PATIENCE, "the Events about it", || {
        let events = node.nodelet(&["events", "-A"])?;
        Ok((events.contains("ImageDamaged") && events.contains("ImageRepaired")).then_some(()))
    })?;
    node.until_ready("sleeper").map(drop)
}

/// In the file's place, so that a program that runs from it is no hindrance.
fn tear(file: &Path, loss: Loss) -> Result<()> {
    let length = file.metadata()?.len();
    let torn = file.with_extension("torn");
    fs::copy(file, &torn)?;
    let handle = fs::File::options().write(true).open(&torn)?;
    match loss {
        Loss::Content => {
            handle.set_len(0)?;
            handle.set_len(length)?;
        }
        Loss::End => handle.set_len(length / 2)?,
    }
    fs::rename(torn, file).context("tearing a file")
}

/// The greatest file below a directory of the node, once there is one alone: what a repair replaced may go later.
fn greatest(node: &Node, directory: &str) -> Result<PathBuf> {
    let find = format!("find {directory} -type f -printf '%s %p\\n' | sort -rn | head -2");
    let path = until(PATIENCE, "one file that is greater than the others", || {
        let said = node.namespaces.run(["sh", "-c", &find])?;
        let mut lines = said.lines().filter_map(|line| line.split_once(' '));
        let (first, second) = (lines.next().context("no file")?, lines.next());
        Ok(second.is_none_or(|second| second.0 != first.0).then(|| first.1.to_owned()))
    })?;
    Ok(node.namespaces.path(path.trim()))
}
