//! The cgroup files of a process, in whichever version the machine has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Node;

/// The cgroups that a process is in.
#[derive(Debug)]
pub struct CgroupFiles {
    /// As `/proc/<pid>/cgroup` has them.
    lines: Vec<(String, String)>,
}

impl Node {
    /// Those of a process of the node, by its PID there.
    pub fn cgroup_files(&self, pid: u32) -> Result<CgroupFiles> {
        let text = fs::read_to_string(self.namespaces.path(format!("/proc/{pid}/cgroup")))?;
        let parts = text.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let lines = parts.filter(|parts| parts.len() == 3).map(|parts| (parts[1].to_owned(), parts[2].to_owned()));
        Ok(CgroupFiles { lines: lines.collect() })
    }
}

impl CgroupFiles {
    /// The controllers are in version 1.
    pub fn is_v1(&self) -> bool {
        self.lines.iter().any(|(controllers, _)| controllers.split(',').any(|name| name == "memory"))
    }

    /// Where a controller has its files for the process; `above` levels higher in the tree.
    pub fn directory(&self, controller: &str, above: usize) -> Result<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let of = |wanted: &str| self.lines.iter().find(|(names, _)| names.split(',').any(|name| name == wanted));
        let found = match self.is_v1() {
            true => of(controller).map(|(_, path)| root.join(controller).join(path.trim_start_matches('/'))),
            false => of("").map(|(_, path)| root.join(path.trim_start_matches('/'))),
        };
        let own = found.with_context(|| format!("no cgroup of controller {controller}"))?;
        own.ancestors().nth(above).map(Path::to_owned).context("no cgroup so high")
    }

    /// The text of a file, by its name in either version.
    pub fn read(&self, controller: &str, above: usize, v1: &str, v2: &str) -> Result<String> {
        let path = self.directory(controller, above)?.join(if self.is_v1() { v1 } else { v2 });
        Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
    }

    /// The memory limit, `above` levels higher in the tree.
    pub fn memory_limit(&self, above: usize) -> Result<u64> {
        Ok(self.read("memory", above, "memory.limit_in_bytes", "memory.max")?.parse()?)
    }
}
