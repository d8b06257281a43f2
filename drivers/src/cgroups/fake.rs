//! Cgroups in memory, with the contract of the real ones: for tests of whole nodes without a kernel.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use super::{Budgets, Cgroups, Error, Excess, Limits, Stat, Version, depth_first_last, is_below};
use crate::ids::CgroupPath;

/// A hierarchy that exists in memory only.
#[derive(Debug)]
pub struct FakeCgroups {
    parent: CgroupPath,
    version: Version,
    groups: Mutex<BTreeMap<CgroupPath, Group>>,
    broken: Mutex<BTreeMap<CgroupPath, String>>,
}

#[derive(Debug, Default, Clone)]
struct Group {
    limits: Limits,
    stat: Stat,
    pids: Vec<u32>,
}

impl FakeCgroups {
    /// An empty hierarchy whose groups lie below `parent`.
    pub fn new(parent: CgroupPath) -> Self {
        Self { parent, version: Version::V2, groups: Mutex::default(), broken: Mutex::default() }
    }

    /// The limits that `path` has now; `None` when it does not exist.
    pub fn limits(&self, path: &CgroupPath) -> Option<Limits> {
        lock(&self.groups).get(path).map(|group| group.limits.clone())
    }

    /// Sets what [`Cgroups::stat`] says of `path` itself (its children's use is added to it).
    pub fn set_stat(&self, path: &CgroupPath, stat: Stat) {
        self.make(path);
        if let Some(group) = lock(&self.groups).get_mut(path) {
            group.stat = stat;
        }
    }

    /// Puts a process into `path`, which is made if it is absent, as a container runtime does.
    pub fn add_process(&self, path: &CgroupPath, pid: u32) {
        self.make(path);
        if let Some(group) = lock(&self.groups).get_mut(path) {
            group.pids.push(pid);
        }
    }

    /// From now on writing to `path` fails with this message; `None` repairs it.
    pub fn fail(&self, path: &CgroupPath, message: Option<&str>) {
        let mut broken = lock(&self.broken);
        match message {
            Some(message) => broken.insert(path.clone(), message.to_owned()),
            None => broken.remove(path),
        };
    }

    fn make(&self, path: &CgroupPath) {
        let mut groups = lock(&self.groups);
        groups.entry(self.parent.clone()).or_default();
        let mut at = String::new();
        for part in path.as_str().split('/').skip(1) {
            at = format!("{at}/{part}");
            let Ok(step) = CgroupPath::new(at.as_str()) else { return };
            if is_below(&self.parent, &step) {
                groups.entry(step).or_default();
            }
        }
    }

    fn excess(&self, path: &CgroupPath, wanted: u64) -> Result<Option<Excess>, Error> {
        let used = self.stat(path)?.unwrap_or_default().memory_bytes;
        let in_force = self.limits(path).and_then(|limits| limits.memory_max);
        let is_above = used > wanted && in_force.is_none_or(|now| now > wanted);
        Ok(is_above.then_some(Excess { wanted, used, in_force }))
    }

    fn check(&self, path: &CgroupPath, doing: &str) -> Result<(), Error> {
        super::check_ours(&self.parent, path, doing)?;
        match lock(&self.broken).get(path) {
            Some(message) => Err(Error::Io {
                path: path.to_string(),
                doing: doing.to_owned(),
                source: io::Error::other(message.clone()),
            }),
            None => Ok(()),
        }
    }
}

impl Cgroups for FakeCgroups {
    fn version(&self) -> Version {
        self.version
    }

    fn parent(&self) -> &CgroupPath {
        &self.parent
    }

    fn ensure(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error> {
        self.check(path, "making it")?;
        self.make(path);
        let excess = match limits.memory_max {
            Some(max) => self.excess(path, max)?,
            None => None,
        };
        if let Some(group) = lock(&self.groups).get_mut(path) {
            let in_force = excess.map_or(limits.memory_max, |excess| excess.in_force);
            group.limits = Limits { memory_max: in_force, ..limits.clone() };
        }
        Ok(excess)
    }

    fn lower_memory(&self, path: &CgroupPath, max: u64, _: Option<u64>) -> Result<Option<Excess>, Error> {
        self.check(path, "lowering its memory")?;
        let excess = self.excess(path, max)?;
        match lock(&self.groups).get_mut(path) {
            Some(group) if excess.is_none() && group.limits.memory_max.is_none_or(|now| now > max) => {
                group.limits.memory_max = Some(max);
            }
            _ => {}
        }
        Ok(excess)
    }

    fn divide_realtime(&self, path: &CgroupPath, _: u64, _: &Budgets) -> Result<(), Error> {
        self.check(path, "dividing the time of real-time processes")
    }

    fn return_realtime(&self) -> Result<(), Error> {
        Ok(())
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), Error> {
        self.check(path, "removing it")?;
        lock(&self.groups).retain(|at, _| !is_below(path, at));
        Ok(())
    }

    fn list(&self) -> Result<Vec<CgroupPath>, Error> {
        let mut paths: Vec<_> = lock(&self.groups).keys().filter(|path| **path != self.parent).cloned().collect();
        depth_first_last(&mut paths);
        Ok(paths)
    }

    fn stat(&self, path: &CgroupPath) -> Result<Option<Stat>, Error> {
        let groups = lock(&self.groups);
        if !groups.contains_key(path) {
            return Ok(None);
        }
        let mut sum = Stat::default();
        for (_, group) in groups.iter().filter(|(at, _)| is_below(path, at)) {
            sum.cpu_usec += group.stat.cpu_usec;
            sum.throttled_usec += group.stat.throttled_usec;
            sum.memory_bytes += group.stat.memory_bytes;
            sum.inactive_file_bytes += group.stat.inactive_file_bytes;
            sum.pids += group.stat.pids.max(group.pids.len() as u64);
            sum.oom_kills += group.stat.oom_kills;
        }
        Ok(Some(sum))
    }

    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, Error> {
        let groups = lock(&self.groups);
        let mut pids: Vec<u32> =
            groups.iter().filter(|(at, _)| is_below(path, at)).flat_map(|(_, group)| group.pids.clone()).collect();
        pids.sort_unstable();
        Ok(pids)
    }
}

/// A poisoned lock means that another test thread panicked while it held plain data; the data is still whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_contract() {
        let parent = CgroupPath::new("/nodelet-fake").unwrap();
        super::super::conformance::run(&FakeCgroups::new(parent));
    }

    #[test]
    fn failures_are_injected_and_repaired() {
        let fake = FakeCgroups::new(CgroupPath::new("/nodelet-fake").unwrap());
        let path = CgroupPath::new("/nodelet-fake/a").unwrap();
        fake.fail(&path, Some("no space"));
        assert!(fake.ensure(&path, &Limits::default()).is_err());
        fake.fail(&path, None);
        fake.ensure(&path, &Limits::default()).unwrap();
        fake.add_process(&path.join("web").unwrap(), 7);
        assert_eq!(fake.pids(&path).unwrap(), [7]);
        assert_eq!(fake.stat(&path).unwrap().unwrap().pids, 1);
    }
}
