//! What there is on a node, as one flat set that can be compared: what a workload leaves behind is what is there
//! afterwards and was not before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::{DATA, Node, PATIENCE, RUN};
use crate::wait::until;

impl Node {
    /// Everything that nodelet may have made: objects in containerd (image layers excepted, images stay), links, routes,
    /// packet-filter rules, cgroups, mounts, processes, and files of sandboxes and volumes.
    pub fn inventory(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        let mut add = |kind: &str, lines: &str| {
            let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
            all.extend(lines.map(|line| format!("{kind}: {line}")));
        };
        add("container", &self.ctr(&["containers", "ls", "-q"])?);
        add("task", &self.ctr(&["tasks", "ls", "-q"])?);
        add("lease", &self.ctr(&["leases", "ls", "-q"])?);
        let snapshots = self.ctr(&["snapshots", "ls"])?;
        add(
            "snapshot",
            &snapshots
                .lines()
                .filter(|line| !line.contains("Committed") && !line.starts_with("KEY"))
                .fold(String::new(), |all, line| all + line + "\n"),
        );
        let ingests = self.ctr(&["content", "active"])?;
        add("ingest", ingests.split_once('\n').map_or("", |(_head, rows)| rows));
        for link in self.namespaces.run(["ip", "-o", "link"])?.lines() {
            add("link", link.split(": ").nth(1).unwrap_or(link));
        }
        add("packet filter", &self.namespaces.run(["nft", "--stateless", "list", "ruleset"])?);
        for mount in self.namespaces.mounts()? {
            if !mount.contains("/io.containerd.") && (mount.starts_with(RUN) || mount.starts_with(DATA)) {
                add("mount", &mount);
            }
        }
        for process in ["containerd-shim", "nodelet-logger", "runc"] {
            let list = self.namespaces.run(["sh", "-c", &format!("pgrep -af '^[^ ]*{process}' || true")])?;
            add("process", &list);
        }
        for directory in ["sandboxes", "network"] {
            add("file", &names(&self.namespaces.path(RUN).join(directory)));
        }
        // A deleted volume is moved to `.removed` at once and emptied from there; what stays in it has leaked.
        for directory in ["volumes", "volumes/.removed", "ephemeral"] {
            add("file", &names(&self.namespaces.path(DATA).join(directory)));
        }
        for cgroup in self.cgroups.below()? {
            add("cgroup", &cgroup.display().to_string());
        }
        Ok(all)
    }

    /// Waits until the node holds what it held before, and fails with what is left over or missing.
    pub fn until_clean(&self, before: &BTreeSet<String>) -> Result<()> {
        let mut difference = Vec::new();
        until(PATIENCE, "the node to be clean", || {
            let now = self.inventory()?;
            difference = now.symmetric_difference(before).cloned().collect();
            Ok(difference.is_empty().then_some(()))
        })
        .map_err(|error| error.context(format!("left over or missing: {difference:#?}\n{}", self.explain())))
    }
}

fn names(directory: &Path) -> String {
    let Ok(entries) = fs::read_dir(directory) else { return String::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.path().display().to_string()));
    let names = names.filter(|name| !name.ends_with("/.removed"));
    // The path goes through /proc and holds a PID; what is below /run says enough.
    names.map(|name| name.split_once("/root").map_or(name.clone(), |(_, inside)| inside.to_owned()) + "\n").collect()
}

/// The cgroup below which a node's containers live. Cgroups belong to the machine, so they are removed by hand.
#[derive(Debug)]
pub struct Cgroups {
    name: String,
}

impl Cgroups {
    /// One for a node of this name.
    pub fn named(node: &str) -> Cgroups {
        Cgroups { name: format!("nodelet-test-{node}") }
    }

    /// As `runtime.cgroupParent` wants it.
    pub fn parent(&self) -> String {
        format!("/{}", self.name)
    }

    /// The directories of the parent: one with cgroup v2, one for each controller with v1.
    pub fn roots(&self) -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_dir(top).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let places = controllers.chain([top.to_owned()]).map(|place| place.join(&self.name));
        // cpu and cpuacct are often two names of one directory.
        let real: BTreeSet<_> = places.filter_map(|place| place.canonicalize().ok()).collect();
        real.into_iter().collect()
    }

    /// All cgroups below the parent, the deepest first.
    fn below(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for root in self.roots() {
            walk(&root, &mut found);
        }
        Ok(found)
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
            found.push(entry.path());
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _busy = until(Duration::from_secs(5), "empty cgroups", || {
            for cgroup in self.below()?.into_iter().chain(self.roots()) {
                let _busy = fs::remove_dir(cgroup);
            }
            Ok(self.roots().is_empty().then_some(()))
        });
    }
}
