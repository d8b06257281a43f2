//! The kernel's cgroups, in the version that the node has.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{Cgroups, Error, Limits, Stat, Version, check_ours, depth_first_last, detect, is_below, v1, v2};
use crate::ids::CgroupPath;

/// The cgroups below one parent.
#[derive(Debug)]
pub struct LinuxCgroups {
    parent: CgroupPath,
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    V1(v1::Hierarchies),
    V2(v2::Hierarchy),
}

impl LinuxCgroups {
    /// Those below `parent`, in the version that is mounted at `root` (usually `/sys/fs/cgroup`).
    pub fn new(root: impl Into<PathBuf>, parent: CgroupPath) -> Self {
        let root = root.into();
        let version = detect(&root);
        Self::with_version(root, parent, version)
    }

    /// As [`LinuxCgroups::new`], without looking: also for a version 2 hierarchy that has no controllers.
    pub fn with_version(root: impl Into<PathBuf>, parent: CgroupPath, version: Version) -> Self {
        let (root, sysfs) = (root.into(), PathBuf::from("/sys"));
        let tree = match version {
            Version::V1 => Tree::V1(v1::Hierarchies { root, sysfs }),
            Version::V2 => Tree::V2(v2::Hierarchy { root, sysfs }),
        };
        Self { parent, tree }
    }
}

impl Cgroups for LinuxCgroups {
    fn version(&self) -> Version {
        match self.tree {
            Tree::V1(_) => Version::V1,
            Tree::V2(_) => Version::V2,
        }
    }

    fn parent(&self) -> &CgroupPath {
        &self.parent
    }

    fn ensure(&self, path: &CgroupPath, limits: &Limits) -> Result<(), Error> {
        check_ours(&self.parent, path, "making it")?;
        match &self.tree {
            Tree::V1(tree) => tree.ensure(path, limits),
            Tree::V2(tree) => tree.ensure(path, limits),
        }
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), Error> {
        check_ours(&self.parent, path, "removing it")?;
        match &self.tree {
            Tree::V1(tree) => tree.remove(path),
            Tree::V2(tree) => tree.remove(path),
        }
    }

    fn list(&self) -> Result<Vec<CgroupPath>, Error> {
        let groups = match &self.tree {
            Tree::V1(tree) => tree.groups(&self.parent),
            Tree::V2(tree) => vec![tree.group(&self.parent)],
        };
        let mut paths = BTreeSet::new();
        for group in groups {
            paths.extend(group.descendants()?.into_iter().map(|group| group.path));
        }
        debug_assert!(paths.iter().all(|path| is_below(&self.parent, path)));
        let mut paths: Vec<_> = paths.into_iter().collect();
        depth_first_last(&mut paths);
        Ok(paths)
    }

    fn stat(&self, path: &CgroupPath) -> Result<Option<Stat>, Error> {
        match &self.tree {
            Tree::V1(tree) => tree.stat(path),
            Tree::V2(tree) => tree.stat(path),
        }
    }

    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, Error> {
        match &self.tree {
            Tree::V1(tree) => tree.pids(path),
            Tree::V2(tree) => tree.pids(path),
        }
    }
}

#[cfg(test)]
mod tests;
