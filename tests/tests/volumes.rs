//! Volumes of every source, mounted in every way, by root and by others; filled from images; shared and not shared.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(every_source_in_every_way);
nodelet_tests::on_containerd!(
    an_empty_volume_is_filled_from_the_image,
    kills_between_effects_leave_nothing,
    who_fills_a_directory_beyond_its_limit_has_to_go,
);

/// A volume, and what its mounts should be.
struct Case {
    /// Its name.
    name: &'static str,
    /// Its source in the Workload.
    source: String,
    /// The Volume's spec, if it is one.
    volume: Option<&'static str>,
    /// A directory or file in it.
    part: &'static str,
    /// Whoever may write does, where the mount is not read-only.
    written: Written,
    /// What must be seen at its top.
    holds: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Written {
    ByAll,
    ByRoot,
    Never,
}

/// The Volume that has a loop device; the machine's, so its name tells whose it is.
fn disk() -> String {
    format!("disk-{}", std::process::id())
}

fn cases() -> Vec<Case> {
    let volume = |name: &'static str, spec| Case {
        name,
        source: format!("volume: {{name: {}}}", if name == "disk" { disk() } else { name.to_owned() }),
        volume: Some(spec),
        part: "part",
        written: Written::ByAll,
        holds: "",
    };
    let inline = |name, source: &str, written, part, holds| Case {
        name,
        source: source.to_owned(),
        volume: None,
        part,
        written,
        holds,
    };
    vec![
        volume("local", "{local: {}, owner: {uid: 1000, gid: 1000, mode: '0700'}, reclaimPolicy: Delete}"),
        Case {
            written: Written::ByRoot,
            ..volume("given", "{local: {path: /run/given}, owner: {mode: '0755'}, reclaimPolicy: Delete}")
        },
        Case {
            written: Written::ByRoot,
            ..volume("host", "{hostPath: {path: /run/host, type: DirectoryOrCreate}, reclaimPolicy: Delete}")
        },
        volume("tmpfs", "{tmpfs: {}, capacity: 1Mi, owner: {uid: 1000, mode: '0700'}, reclaimPolicy: Delete}"),
        volume(
            "disk",
            "{block: {fsType: ext4}, capacity: 16Mi, owner: {uid: 1000, mode: '0700'}, reclaimPolicy: Delete}",
        ),
        Case {
            written: Written::Never,
            ..volume("readers", "{local: {}, owner: {mode: '0777'}, accessMode: ReadOnlyMany, reclaimPolicy: Delete}")
        },
        inline("empty", "emptyDir: {}", Written::ByAll, "part", ""),
        inline("memory", "emptyDir: {medium: Memory, sizeLimit: 1Mi}", Written::ByAll, "part", ""),
        inline("path", "hostPath: {path: /run/inline, type: DirectoryOrCreate}", Written::ByRoot, "part", ""),
        inline("config", "configMap: {name: c}", Written::Never, "key", "key"),
        inline("secret", "secret: {secretName: s}", Written::Never, "key", "key"),
        inline(
            "downward",
            "downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}",
            Written::Never,
            "name",
            "name",
        ),
        inline(
            "projected",
            "projected: {sources: [{configMap: {name: c, items: [{key: key, path: a}]}}, {secret: {name: s}}]}",
            Written::Never,
            "a",
            "a key",
        ),
        inline("image", "image: {reference: 'localhost:5000/shop/nginx:1'}", Written::Never, "usr/share/nginx", "usr"),
    ]
}

/// Tells of each mount whether it can be written, and what it holds.
const SCRIPT: &str = r#"
for m in /m/*; do
  if [ -d $m ]; then f=$m/by-$(id -u); else f=$m; fi
  if (echo x >>$f) 2>/dev/null; then w=yes; else w=no; fi
  if [ -d $m ]; then c=$(ls $m | tr '\n' ' '); else c=$(cat $m | tr '\n' ' '); fi
  echo "seen ${m#/m/} $w $c"
done
echo finished
exec sleep 2147483647
"#;

fn manifest(cases: &[Case]) -> String {
    let mut text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {key: value}}\n---\n\
                    {apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {key: hidden}}\n"
        .to_owned();
    for case in cases {
        if let Some(spec) = case.volume {
            let name = if case.name == "disk" { disk() } else { case.name.to_owned() };
            text += &format!(
                "---\n{{apiVersion: nodelet.dev/v1alpha1, kind: Volume, metadata: {{name: {name}}}, spec: {spec}}}\n"
            );
        }
    }
    text += "---\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {name: matrix}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  volumes:\n";
    for case in cases {
        text += &format!("  - {{name: {}, {}}}\n", case.name, case.source);
    }
    text += "  containers:\n";
    for user in [0, 1000] {
        text += &format!(
            "  - name: user{user}\n    image: localhost:5000/shop/busybox:1\n    securityContext: {{runAsUser: {user}}}\n    \
             command: [sh, -c]\n    args: [{}]\n    volumeMounts:\n",
            serde_json::Value::from(SCRIPT)
        );
        for case in cases {
            for (access, read_only) in [("rw", false), ("ro", true)] {
                let name = case.name;
                let mount = format!("name: {name}, readOnly: {read_only}, mountPath: /m/{name}-{access}");
                text += &format!("    - {{{mount}-top}}\n    - {{{mount}-part, subPath: {}}}\n", case.part);
            }
        }
    }
    text
}

fn loops_of(name: &str) -> usize {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(name)).count()
}

fn every_source_in_every_way(node: &mut Node) -> Result<()> {
    // The image of one of the volumes stays, as all images do.
    node.nodelet(&["images", "pull", "localhost:5000/shop/nginx:1"])?;
    let before = node.inventory()?;
    // A mount of the node below a path that is mounted.
    fs::create_dir_all(node.namespaces.path("/run/inline/below"))?;
    node.namespaces.run(["mount", "-t", "tmpfs", "below", "/run/inline/below"])?;
    let cases = cases();
    node.apply(&manifest(&cases))?;
    node.until_ready("matrix")?;
    ensure!(loops_of(&disk()) == 1, "one loop device for the one block volume");
    for user in [0, 1000] {
        let container = format!("user{user}");
        let log = until(PATIENCE, "the mounts to be tried", || {
            let log = node.nodelet(&["logs", "matrix", "-c", &container])?;
            Ok(log.contains("finished").then_some(log))
        })?;
        let seen: BTreeMap<&str, &str> =
            log.lines().filter_map(|line| line.split_once("seen ")?.1.split_once(' ')).collect();
        ensure!(seen.len() == cases.len() * 4, "{log}");
        for case in &cases {
            for (way, read_only) in [("rw", false), ("ro", true)] {
                for what in ["top", "part"] {
                    let mount = format!("{}-{way}-{what}", case.name);
                    let found = seen.get(mount.as_str()).with_context(|| format!("{mount} was not seen: {log}"))?;
                    let may = case.written == Written::ByAll || (case.written == Written::ByRoot && user == 0);
                    let wanted = if may && !read_only { "yes" } else { "no" };
                    ensure!(found.starts_with(wanted), "user {user}, {mount}: {found}");
                    if what == "top" {
                        let holds = case.holds.split(' ').all(|name| found.contains(name));
                        ensure!(holds, "user {user}, {mount}: {found}");
                    }
                }
            }
        }
    }
    let disk_object = node.object("volumes", &disk())?.context("the block volume")?;
    let capacity = disk_object["status"]["capacityBytes"].as_u64().unwrap_or_default();
    ensure!((8 << 20..=16 << 20).contains(&capacity), "{disk_object:#}");
    ensure!(disk_object["status"]["usedBy"][0] == "matrix", "{disk_object:#}");

    // `readOnly` holds below, too.
    let write = |way: &str| {
        let script = format!("echo x >/m/path-{way}-top/below/file");
        node.nodelet(&["exec", "matrix", "-c", "user0", "--", "sh", "-c", &script])
    };
    ensure!(write("rw").is_ok() && write("ro").is_err(), "what is mounted below a read-only mount can be written");
    node.namespaces.run(["umount", "-l", "/run/inline/below"])?;
    while_it_is_used(node)?;

    // Who is used cannot go, and says by whom.
    node.nodelet(&["delete", "--no-wait", "volume", "local"])?;
    until(PATIENCE, "the users to be named", || {
        let volume = node.object("volumes", "local")?.context("it is used")?;
        Ok(volume["status"]["conditions"].to_string().contains("no longer used by matrix").then_some(()))
    })?;
    node.nodelet(&["delete", "workload", "matrix"])?;
    node.until_gone("volumes", "local")?;
    for case in cases.iter().filter(|case| case.volume.is_some() && case.name != "local") {
        let name = if case.name == "disk" { disk() } else { case.name.to_owned() };
        node.nodelet(&["delete", "volume", &name])?;
    }
    node.nodelet(&["delete", "configmap/c", "secret/s"])?;
    node.until_clean(&before)?;
    until(PATIENCE, "the loop device to be freed", || Ok((loops_of(&disk()) == 0).then_some(())))?;
    for kept in ["/run/given/part/by-0", "/run/host/by-0", "/run/inline/by-0"] {
        ensure!(node.namespaces.path(kept).exists(), "{kept} is not ours to delete");
    }
    Ok(())
}

/// A copy of a Volume that is written to, of one moment.
fn while_it_is_used(node: &Node) -> Result<()> {
    let disk = disk();
    let backup =
        |file: &str, freeze: &[&str]| node.nodelet(&[&["volumes", "backup", disk.as_str(), file][..], freeze].concat());
    let refused = backup("/run/disk.tar.zst", &[]).err().context("it is used")?;
    ensure!(format!("{refused:#}").contains("is used by matrix") && format!("{refused:#}").contains("--freeze"));
    backup("/run/disk.tar.zst", &["--freeze"])?;
    ensure!(node.namespaces.path("/run/disk.tar.zst").exists());
    let object = node.object("volumes", &disk)?.context("the block volume")?;
    let inside = format!("{}/own.tar.zst", object["status"]["path"].as_str().context("a path")?);
    let refused = backup(&inside, &["--freeze"]).err().context("it would wait for itself")?;
    ensure!(format!("{refused:#}").contains("is on the filesystem that is frozen"), "{refused:#}");
    // It is thawed again.
    let script = "echo after >>/m/disk-rw-top/by-0";
    node.nodelet(&["exec", "matrix", "-c", "user0", "--", "sh", "-c", script]).map(drop)
}

const COPY: &str = "{apiVersion: nodelet.dev/v1alpha1, kind: Volume, metadata: {name: copy},
    spec: {block: {}, capacity: 16Mi, reclaimPolicy: Delete}}";

const FILLED: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Volume
metadata: {name: content}
spec: {local: {}, populateFrom: image, reclaimPolicy: Retain}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: filled}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: content, volume: {name: content}}]
  containers:
  - name: main
    image: localhost:5000/shop/nginx:1
    command: [sleep, '2147483647']
    volumeMounts: [{name: content, mountPath: /usr/share/nginx}]
";

fn an_empty_volume_is_filled_from_the_image(node: &mut Node) -> Result<()> {
    node.nodelet(&["images", "pull", "localhost:5000/shop/nginx:1"])?;
    let before = node.inventory()?;
    node.apply(FILLED)?;
    node.until_ready("filled")?;
    let volume = node.object("volumes", "content")?.context("the volume")?;
    let data = node.namespaces.path(volume["status"]["path"].as_str().context("a path")?);
    ensure!(fs::read_to_string(data.join("html/index.html"))? == "<h1>nginx</h1>\n");

    // Retained without its object, and found again by its name: with what was written into it, and not filled again.
    fs::write(data.join("html/index.html"), "ours")?;
    let list = |node: &Node| node.nodelet(&["volumes", "--config", "/run/config.yaml"]);
    ensure!(!list(node)?.contains("Orphan"), "it has its object");
    node.nodelet(&["delete", "workload/filled", "volume/content"])?;
    node.until_gone("volumes", "content")?;
    ensure!(data.join("html").exists(), "it was to be retained");
    ensure!(list(node)?.contains("Orphan"), "what is kept without an object is told");
    node.apply(&FILLED.replace("Retain", "Delete"))?;
    let workload = node.until_ready("filled")?;
    ensure!(fs::read_to_string(data.join("html/index.html"))? == "ours");
    ensure!(api::restarts(&workload) == 0, "{workload:#}");

    // To a file, and from there into another Volume.
    let backup = ["volumes", "backup", "content", "/run/content.tar.zst"];
    let refused = node.nodelet(&backup).err().context("it is used")?;
    ensure!(format!("{refused:#}").contains("is used by filled"), "{refused:#}");
    node.nodelet(&["stop", "filled"])?;
    until(PATIENCE, "the copy", || Ok(node.nodelet(&backup).ok()))?;
    node.apply(COPY)?;
    until(PATIENCE, "the other volume", || {
        Ok(node.nodelet(&["volumes", "restore", "copy", "/run/content.tar.zst"]).ok())
    })?;
    let other = node.object("volumes", "copy")?.context("the other volume")?;
    let other = node.namespaces.path(other["status"]["path"].as_str().context("a path")?);
    ensure!(fs::read_to_string(other.join("html/index.html"))? == "ours");
    let again = node.nodelet(&["volumes", "restore", "copy", "/run/content.tar.zst"]).err().context("it is full")?;
    ensure!(format!("{again:#}").contains("is not empty"), "{again:#}");
    node.nodelet(&["delete", "volume/copy"])?;
    one_at_a_time(node)?;
    node.nodelet(&["delete", "workload/filled", "volume/content"])?;
    node.until_gone("volumes", "content")?;
    node.until_clean(&before)
}

/// A second user of a ReadWriteOnce Volume waits, knows for whom, and comes up when that one stops.
fn one_at_a_time(node: &Node) -> Result<()> {
    node.apply(&FILLED.replace("Retain", "Delete, accessMode: ReadWriteOnce"))?;
    node.nodelet(&["start", "filled"])?;
    node.until_ready("filled")?;
    let (_, workload) = FILLED.split_once("---").context("a Volume and a Workload")?;
    node.apply(&workload.replace("name: filled", "name: second"))?;
    node.until_workload("second", "waiting for the first", |second| {
        second["status"]["conditions"].to_string().contains("is ReadWriteOnce and used by Workload \\\"filled\\\"")
    })?;
    node.nodelet(&["stop", "filled"])?;
    node.until_ready("second")?;
    node.nodelet(&["delete", "workload/second"]).map(drop)
}

fn victims() -> String {
    FILLED.replace("{local: {}, populateFrom: image, reclaimPolicy: Retain}", "{block: {}, capacity: 16Mi, populateFrom: image, reclaimPolicy: Delete}")
        .replace("name: content}\nspec: {block", &format!("name: {}}}\nspec: {{block", disk()))
        .replace("[{name: content, volume: {name: content}}]", &format!(
            "[{{name: content, volume: {{name: {}}}}}, {{name: memory, volume: {{name: memory}}}}, \
              {{name: tools, image: {{reference: 'localhost:5000/shop/busybox:1'}}}}]", disk()))
        .replace("[{name: content, mountPath: /usr/share/nginx}]",
            "[{name: content, mountPath: /usr/share/nginx}, {name: memory, mountPath: /memory, subPath: a/b}, {name: tools, mountPath: /tools}]")
        + "---\n{apiVersion: nodelet.dev/v1alpha1, kind: Volume, metadata: {name: memory}, spec: {tmpfs: {}, reclaimPolicy: Delete}}\n"
}

/// The agent dies again and again while Volumes are made, filled, mounted, unmounted and removed.
#[allow(clippy::print_stderr)] // shown by the test runner
fn kills_between_effects_leave_nothing(node: &mut Node) -> Result<()> {
    for image in ["busybox", "nginx"] {
        node.nodelet(&["images", "pull", &format!("localhost:5000/shop/{image}:1")])?;
    }
    let before = node.inventory()?;
    let volumes = [disk(), "memory".to_owned()];
    let made =
        |node: &Node| node.object("workloads", "filled").is_ok_and(|found| found.is_some_and(|w| api::ready(&w)));
    let gone = |node: &Node| {
        let absent = |plural: &str, name: &str| matches!(node.object(plural, name), Ok(None));
        absent("workloads", "filled") && volumes.iter().all(|name| absent("volumes", name))
    };
    let remove = |node: &Node| {
        let mut words = vec!["delete", "--no-wait", "--ignore-not-found", "workload/filled", "volume/memory"];
        let disk = format!("volume/{}", disk());
        words.push(&disk);
        node.nodelet(&words)
    };
    let mut kills = [0, 0];
    for first in [1, 2] {
        kills[0] += node.killed_between_effects(first, true, |node| node.apply(&victims()), made)?;
        node.revive_agent()?;
        node.until_ready("filled")?;
        let volume = node.object("volumes", &disk())?.context("the block volume")?;
        let data = node.namespaces.path(volume["status"]["path"].as_str().context("a path")?);
        ensure!(
            fs::read_to_string(data.join("html/index.html"))? == "<h1>nginx</h1>\n",
            "half of it was taken for whole"
        );
        ensure!(!data.join(".nodelet-populated").exists() && loops_of(&disk()) == 1);
        kills[1] += node.killed_between_effects(first, true, remove, gone)?;
        node.revive_agent()?;
        until(PATIENCE, "all to be gone", || Ok(gone(node).then_some(())))?;
        node.until_clean(&before)?;
        until(PATIENCE, "the loop device to be freed", || Ok((loops_of(&disk()) == 0).then_some(())))?;
    }
    ensure!(kills.iter().all(|kills| *kills > 4), "killed {kills:?} times: was the agent built with its failpoints?");
    eprintln!("{kills:?} kills while making and removing Volumes, nothing left over");
    Ok(())
}

const GREEDY: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: greedy}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: cache, emptyDir: {sizeLimit: 1Mi}}]
  containers:
  - name: main
    image: localhost:5000/shop/busybox:1
    command: [sh, -c, 'dd if=/dev/zero of=/cache/file bs=1M count=3 && exec sleep 2147483647']
    volumeMounts: [{name: cache, mountPath: /cache}]
";

/// Where no filesystem holds it to its limit, as on the machines that run this.
fn who_fills_a_directory_beyond_its_limit_has_to_go(node: &mut Node) -> Result<()> {
    node.apply(GREEDY)?;
    node.until_ready("greedy")?;
    let evicted = node.until_workload("greedy", "evicted", |workload| {
        api::condition(workload, "Ready").is_some_and(|ready| ready["reason"] == "Evicted")
    })?;
    let message = api::condition(&evicted, "Ready").context("the condition")?["message"].to_string();
    ensure!(message.contains("volume cache holds 3.0 MiB, its sizeLimit is 1.0 MiB"), "{message}");
    // What it held goes with it, and it gets another chance.
    node.until_ready("greedy")?;
    node.nodelet(&["delete", "workload", "greedy"]).map(drop)
}
