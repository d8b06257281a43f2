//! The kernel's cgroups, in the version that the node has, by the driver that a path belongs to.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::files::Group;
use super::systemd::Units;
use super::{
    Budgets, Cgroups, Error, Excess, Limits, Stat, Version, check_ours, depth_first_last, detect, is_below, names,
    systemd, v1, v2,
};
use crate::ids::{CgroupPath, SandboxId};

/// The cgroups below one parent.
#[derive(Debug)]
pub struct LinuxCgroups {
    parent: CgroupPath,
    tree: Tree,
    units: Arc<Units>,
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
        Self { parent, tree, units: Arc::default() }
    }

    /// The same, with a connection to systemd that others use, too.
    #[must_use]
    pub fn sharing(self, units: Arc<Units>) -> Self {
        Self { units, ..self }
    }

    /// Removes all cgroups in which nothing runs, the parent among them: for the tree of a driver that is no longer used.
    pub fn remove_unused(&self) -> Result<(), Error> {
        if self.stat(&self.parent)?.is_none() {
            return Ok(());
        }
        let mut paths = vec![self.parent.clone()];
        paths.extend(self.list()?);
        // What systemd has there beside ours, such as a service, is somebody else's.
        for path in paths.iter().rev().filter(|path| path.is_systemd() == self.parent.is_systemd()) {
            if self.pids(path)?.is_empty() {
                self.remove(path)?;
            }
        }
        Ok(())
    }

    /// Kills every process in it and below it: in version 1 those of each hierarchy, since whoever manages one, as
    /// systemd does `devices`, may have moved a process there.
    ///
    /// # Errors
    /// Its files cannot be read.
    pub fn kill(&self, path: &CgroupPath) -> Result<(), Error> {
        check_ours(&self.parent, path, "killing what is in it")?;
        match &self.tree {
            Tree::V1(tree) => tree.kill(path),
            Tree::V2(tree) => tree.kill(path),
        }
    }

    /// Sets the limits of huge pages, of I/O and of real-time processes, and lifts those that are not declared: under a
    /// running container `runc update` changes neither of the first two, and the last in an order that the kernel may
    /// refuse (its `update.go`, `cgroups/fs/cpu.go`). May be called again.
    ///
    /// # Errors
    /// As [`Cgroups::ensure`].
    pub fn set_rest(&self, path: &CgroupPath, limits: &Limits) -> Result<(), Error> {
        check_ours(&self.parent, path, "limiting its huge pages, I/O and real-time processes")?;
        match &self.tree {
            Tree::V1(tree) => tree.set_rest(path, limits),
            Tree::V2(tree) => tree.set_rest(path, limits),
        }
    }

    /// Where a cgroup has files: in version 1 in each hierarchy.
    fn groups(&self, path: &CgroupPath) -> Vec<Group> {
        match &self.tree {
            Tree::V1(tree) => tree.groups(path),
            Tree::V2(tree) => vec![tree.group(path)],
        }
    }

    /// In force before it answers is the memory; systemd sets the other limits within milliseconds.
    fn ensure_unit(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error> {
        let version = self.version();
        self.units.make(path)?;
        crate::failpoint::passed("making a slice");
        self.units.set(path, &systemd::lasting(limits, version))?;
        crate::failpoint::passed("limiting a slice");
        let excess = match &self.tree {
            Tree::V1(tree) => tree.ensure(path, limits)?,
            Tree::V2(tree) => tree.set_beside_systemd(path, limits)?,
        };
        self.tell_memory(path, (limits.memory_max, limits.memory_high), excess)?;
        Ok(excess)
    }

    /// systemd has to know what is in force: it sets it anew when it reads its units again.
    fn tell_memory(
        &self,
        path: &CgroupPath,
        (max, high): (Option<u64>, Option<u64>),
        excess: Option<Excess>,
    ) -> Result<(), Error> {
        let (max, high) = match excess {
            None => (max, high),
            Some(Excess { wanted, in_force, .. }) => (in_force, Some(high.map_or(wanted, |high| high.min(wanted)))),
        };
        self.units.set(path, &systemd::memory(max, high, self.version()))
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

    fn ensure(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error> {
        check_ours(&self.parent, path, "making it")?;
        if path.is_systemd() {
            return self.ensure_unit(path, limits);
        }
        match &self.tree {
            Tree::V1(tree) => tree.ensure(path, limits),
            Tree::V2(tree) => tree.ensure(path, limits),
        }
    }

    fn lower_memory(&self, path: &CgroupPath, max: u64, high: Option<u64>) -> Result<Option<Excess>, Error> {
        check_ours(&self.parent, path, "lowering its memory")?;
        match &self.tree {
            Tree::V1(tree) => tree.lower_memory(path, max),
            Tree::V2(tree) => tree.lower_memory(path, max, high),
        }
    }

    fn divide_realtime(&self, path: &CgroupPath, least: u64, declared: &Budgets) -> Result<(), Error> {
        check_ours(&self.parent, path, "dividing the time of real-time processes")?;
        match &self.tree {
            Tree::V1(tree) => tree.divide_realtime(&self.parent, path, least, declared),
            Tree::V2(_) => Ok(()),
        }
    }

    fn return_realtime(&self) -> Result<(), Error> {
        match &self.tree {
            Tree::V1(tree) => tree.return_realtime(&self.parent),
            Tree::V2(_) => Ok(()),
        }
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), Error> {
        check_ours(&self.parent, path, "removing it")?;
        if path.is_systemd() {
            self.kill(path)?;
            self.units.stop(path)?;
        }
        match &self.tree {
            Tree::V1(tree) => tree.remove(path),
            Tree::V2(tree) => tree.remove(path),
        }
    }

    fn list(&self) -> Result<Vec<CgroupPath>, Error> {
        let mut paths = BTreeSet::new();
        for group in self.groups(&self.parent) {
            paths.extend(group.descendants()?.into_iter().map(|group| group.path));
        }
        debug_assert!(paths.iter().all(|path| is_below(&self.parent, path)));
        let mut paths: Vec<_> = paths.into_iter().collect();
        depth_first_last(&mut paths);
        Ok(paths)
    }

    /// Looks at ResourceLimits only, of which there are fewer than of all others.
    fn of_sandbox(&self, id: &SandboxId) -> Result<Vec<CgroupPath>, Error> {
        let (mut found, mut next) = (Vec::new(), BTreeSet::from([self.parent.clone()]));
        while let Some(limit) = next.pop_first() {
            if let Ok(own) = limit.sandbox(id)
                && self.groups(&own).iter().any(|group| group.dir.is_dir())
            {
                found.push(own);
            }
            for group in self.groups(&limit) {
                next.extend(group.children(names::may_be_limit)?.into_iter().map(|group| group.path));
            }
        }
        Ok(found)
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
