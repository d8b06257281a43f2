//! File systems of the node that are full: what people are told, that containers keep what they have, and that all goes on
//! by itself once there is room.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, RUN, api};

nodelet_tests::on_containerd!(full_file_systems_are_told_and_harm_nothing);

const SANDBOXES: &str = "/run/nodelet/sandboxes";
const EPHEMERAL: &str = "/run/data/ephemeral";

/// With files of this many bytes.
fn manifest(size: usize) -> String {
    let value = "x".repeat(size);
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c}}, data: {{key: {value}}}}}
---
{{apiVersion: v1, kind: Secret, metadata: {{name: s}}, stringData: {{key: {value}, other: {value}}}}}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {{name: reader}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {{name: config, configMap: {{name: c}}}}
  - {{name: joined, projected: {{sources: [{{configMap: {{name: c}}}}, {{downwardAPI: {{items: [{{path: name,
      fieldRef: {{fieldPath: metadata.name}}}}]}}}}]}}}}
  - {{name: secret, secret: {{secretName: s}}}}
  containers:
  - name: main
    image: localhost:5000/shop/busybox:1
    command: [sleep, '2147483647']
    volumeMounts:
    - {{name: config, mountPath: /m/config}}
    - {{name: joined, mountPath: /m/joined}}
    - {{name: secret, mountPath: /m/secret}}
"
    )
}

const LATE: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: late}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: cache, emptyDir: {}}]
  containers:
  - name: main
    image: localhost:5000/shop/busybox:1
    command: [sleep, '2147483647']
    volumeMounts: [{name: cache, mountPath: /cache}]
";

/// Mounts a file system in memory at `path` with these limits, or changes them.
fn limit(node: &Node, path: &str, limits: &str) -> Result<()> {
    let is_new = node.namespaces.run(["mountpoint", "-q", path]).is_err();
    let options = if is_new { limits.to_owned() } else { format!("remount,{limits}") };
    node.namespaces.run(["mount", "-t", "tmpfs", "-o", &options, "limited", path]).map(drop)
}

/// Waits until the Workload's condition has all of `words`, and `nodelet why` the same.
fn until_told(node: &Node, workload: &str, words: &[&str]) -> Result<()> {
    node.until_workload(workload, &words.join(", "), |found| {
        let ready = api::condition(found, "Ready").filter(|ready| ready["status"] == "False");
        ready.is_some_and(|ready| words.iter().all(|word| ready.to_string().contains(word)))
    })?;
    let why = node.nodelet(&["why", "workload", workload])?;
    ensure!(words.iter().all(|word| why.contains(word)) && why.contains("next try in"), "{why}");
    Ok(())
}

/// Sizes of the files that the container sees.
fn seen(node: &Node) -> Result<String> {
    let script =
        "wc -c /m/*/* | grep -v total | while read -r size file; do echo ${file#/m/} $size; done | sort | xargs";
    node.nodelet(&["exec", "reader", "--", "sh", "-c", script]).map(|text| text.trim().to_owned())
}

fn full_file_systems_are_told_and_harm_nothing(node: &mut Node) -> Result<()> {
    fs::create_dir_all(node.namespaces.path(EPHEMERAL))?;
    limit(node, SANDBOXES, "nr_inodes=1000")?;
    limit(node, EPHEMERAL, "size=64k")?;
    node.apply(&manifest(5))?;
    node.until_ready("reader")?;
    let small = "config/key 5 joined/key 5 joined/name 6 secret/key 5 secret/other 5";
    ensure!(seen(node)? == small, "{}", seen(node)?);
    let pid = node.pid("reader")?;

    // An update that finds no room, in memory and on disk, while the container runs.
    let find = format!("echo {SANDBOXES}/*/volumes/secret");
    let secret = node.namespaces.run(["sh", "-c", &find])?.trim().to_owned();
    limit(node, &secret, "size=24k")?;
    node.apply(&manifest(40 << 10))?;
    let told = ["MountFailed", "volume joined", "writing 2 files with 40.0 KiB", "free of 64.0 KiB", "No space left"];
    until_told(node, "reader", &told)?;
    let sizes = seen(node)?;
    ensure!(sizes.ends_with("joined/key 5 joined/name 6 secret/key 5 secret/other 5"), "{sizes}");
    ensure!(sizes.starts_with("config/key 40960"), "what has room is new: {sizes}");
    limit(node, EPHEMERAL, "size=1m")?;
    let told = ["MountFailed", "volume secret", "writing 2 files with 80.0 KiB", "free of 24.0 KiB", "No space left"];
    until_told(node, "reader", &told)?;
    ensure!(seen(node)?.ends_with("joined/key 40960 joined/name 6 secret/key 5 secret/other 5"), "{}", seen(node)?);
    limit(node, &secret, "size=1m")?;
    node.until_ready("reader")?;
    ensure!(seen(node)?.ends_with("secret/key 40960 secret/other 40960"), "{}", seen(node)?);
    ensure!(node.pid("reader")? == pid, "it has run all the time");

    // No room for a sandbox, then none for its directory on disk.
    let before = node.inventory()?;
    let used = |path: &str| -> Result<u64> {
        let stat = node.namespaces.run(["stat", "-f", "-c", "%c %d", path])?;
        let mut numbers = stat.split_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next().context("a number").and_then(|number| Ok(number?));
        Ok(next()? - next()?)
    };
    limit(node, SANDBOXES, &format!("nr_inodes={}", used(SANDBOXES)?))?;
    limit(node, EPHEMERAL, &format!("nr_inodes={}", used(EPHEMERAL)?))?;
    node.apply(LATE)?;
    until_told(node, "late", &["SandboxFailed", "the state file", SANDBOXES, "0 inodes of", "No space left"])?;
    limit(node, SANDBOXES, "nr_inodes=1000")?;
    until_told(node, "late", &["MountFailed", "volume cache", EPHEMERAL, "0 inodes of", "No space left"])?;
    limit(node, EPHEMERAL, "nr_inodes=1000")?;
    node.until_ready("late")?;
    node.nodelet(&["delete", "workload", "late"])?;
    node.until_gone("workloads", "late")?;
    node.until_clean(&before)?;
    ensure!(fs::read_dir(node.namespaces.path(RUN).join("sandboxes"))?.count() == 1, "the reader's alone");
    node.nodelet(&["delete", "workload/reader", "configmap/c", "secret/s"]).map(drop)
}
