//! Version 2: one hierarchy, every controller in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::{Group, Limit};
use super::{CpuShare, Error, Excess, IoLimit, Limits, Stat, device, excess, realtime as rt, remove};
use crate::failpoint::passed;
use crate::ids::CgroupPath;

/// Controllers that limits need, in the order they are enabled.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];

/// The hierarchy at one root.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) root: PathBuf,
    pub(super) sysfs: PathBuf,
}

impl Hierarchy {
    pub(super) fn group(&self, path: &CgroupPath) -> Group {
        Group::new(&self.root, path)
    }

    pub(super) fn ensure(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error> {
        let group = self.group(path);
        std::fs::create_dir_all(&group.dir).map_err(group.error("making it".to_owned()))?;
        passed("making a cgroup");
        self.enable_controllers(&group.dir, &CONTROLLERS);
        passed("enabling the controllers of a cgroup");
        self.set_limits(&group, limits)
    }

    /// What systemd is not asked for: memory, since a limit below what is used would kill, and huge pages, which it knows
    /// nothing of.
    pub(super) fn set_beside_systemd(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error> {
        let group = self.group(path);
        if !limits.hugepages.is_empty() {
            self.enable_controllers(&group.dir, &["hugetlb"]);
        }
        self.set_hugepages(&group, limits)?;
        match group.has("memory.max") {
            true => excess::set_v2(&group, limits.memory_max, limits.memory_high),
            false => Ok(None),
        }
    }

    /// A file of a controller exists only where the controller is enabled in every cgroup above. Failures are not
    /// told here: a limit that then cannot be set tells more.
    fn enable_controllers(&self, dir: &Path, names: &[&str]) {
        let Ok(below) = dir.strip_prefix(&self.root) else { return };
        let mut at = self.root.clone();
        for part in below {
            let read = |file| std::fs::read_to_string(at.join(file)).unwrap_or_default();
            let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
            let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
            // One at a time: one that cannot be enabled must not keep the others from it.
            for name in names.iter().filter(|name| has(&available, name) && !has(&enabled, name)) {
                if let Err(error) = std::fs::write(at.join("cgroup.subtree_control"), format!("+{name}")) {
                    tracing::debug!(cgroup = %at.display(), controller = *name, %error, "not enabled");
                }
            }
            at.push(part);
        }
    }

    fn set_limits(&self, group: &Group, limits: &Limits) -> Result<Option<Excess>, Error> {
        let Limits {
            cpu_millis,
            cpu_share,
            realtime,
            cpuset,
            memory_max,
            memory_high,
            memory_low,
            swap_max,
            pids_max,
            hugepages: _,
            io,
        } = limits;
        let (cpu, memory) = ("the cpu controller", "the memory controller");
        let text = |number: &Option<u64>| number.map(|number| number.to_string());
        let limit = |name, file, default, needs| Limit { name, file, default, needs };
        if realtime.is_some() {
            return Err(Error::Unsupported { path: group.path.to_string(), limit: "cpu.realtime", needs: rt::NEEDS });
        }
        let cpu_max = cpu_millis.map(|millis| format!("{} {PERIOD}", quota(millis)));
        group.set_limit(&limit("cpu.max", "cpu.max", "max 100000", cpu), cpu_max)?;
        group.set_limit(&limit("cpu.weight", "cpu.weight", "100", cpu), text(&cpu_share.map(CpuShare::weight)))?;
        group.set_limit(&limit("cpu.cpus", "cpuset.cpus", "", "the cpuset controller"), cpuset.clone())?;
        group.set_limit(&limit("memory.low", "memory.low", "0", memory), text(memory_low))?;
        group.set_limit(&limit("memory.swapMax", "memory.swap.max", "max", "swap accounting"), text(swap_max))?;
        let excess = match group.has("memory.max") {
            true => excess::set_v2(group, *memory_max, *memory_high)?,
            false => {
                group.set_limit(&limit("memory.max", "memory.max", "max", memory), text(memory_max))?;
                group.set_limit(&limit("memory.high", "memory.high", "max", memory), text(memory_high))?;
                None
            }
        };
        group.set_limit(&limit("pids.max", "pids.max", "max", "the pids controller"), text(pids_max))?;
        self.set_hugepages(group, limits)?;
        self.set_io(group, io)?;
        Ok(excess)
    }

    fn set_hugepages(&self, group: &Group, limits: &Limits) -> Result<(), Error> {
        group.set_hugepages(&limits.hugepages, "max", "max")
    }

    /// See [`super::linux::LinuxCgroups::set_rest`].
    pub(super) fn set_rest(&self, path: &CgroupPath, limits: &Limits) -> Result<(), Error> {
        let group = self.group(path);
        let named = [("hugetlb", !limits.hugepages.is_empty()), ("io", !limits.io.is_empty())];
        let needed: Vec<&str> = named.iter().filter(|(_, needed)| *needed).map(|(name, _)| *name).collect();
        self.enable_controllers(&group.dir, &needed);
        self.set_hugepages(&group, limits)?;
        self.set_io(&group, &limits.io)
    }

    pub(super) fn lower_memory(&self, path: &CgroupPath, max: u64, high: Option<u64>) -> Result<Option<Excess>, Error> {
        let group = self.group(path);
        // Without the controller there is no limit to be lowered; setting it tells.
        let Some(now) = group.read("memory.max")? else { return Ok(None) };
        let is_lower = now.trim().parse::<u64>().map_or(true, |now| now > max);
        if is_lower { excess::set_v2(&group, Some(max), high) } else { Ok(None) }
    }

    fn set_io(&self, group: &Group, io: &[IoLimit]) -> Result<(), Error> {
        let Some(found) = group.read("io.max")? else {
            return match io.is_empty() {
                true => Ok(()),
                false => {
                    Err(Error::Unsupported { path: group.path.to_string(), limit: "io", needs: "the io controller" })
                }
            };
        };
        let mut lines = BTreeMap::new();
        for line in found.lines().filter_map(|line| line.split(' ').next()).filter(|device| !device.is_empty()) {
            lines.insert(line.to_owned(), io_line(&IoLimit::default()));
        }
        for limit in io {
            let number = device::disk_number(&limit.device, &self.sysfs)
                .map_err(group.error(format!("limiting I/O of {}", limit.device)))?;
            lines.insert(number, io_line(limit));
        }
        lines.iter().try_for_each(|(device, line)| group.write("io.max", &format!("{device} {line}")))
    }

    pub(super) fn stat(&self, path: &CgroupPath) -> Result<Option<Stat>, Error> {
        let group = self.group(path);
        if !group.dir.is_dir() {
            return Ok(None);
        }
        let cpu = group.read("cpu.stat")?.unwrap_or_default();
        let pids = match group.read_number("pids.current")? {
            Some(pids) => pids,
            None => self.pids(path)?.len() as u64,
        };
        Ok(Some(Stat {
            cpu_usec: super::files::find_key(&cpu, "usage_usec").unwrap_or(0),
            throttled_usec: super::files::find_key(&cpu, "throttled_usec").unwrap_or(0),
            memory_bytes: group.read_number("memory.current")?.unwrap_or(0),
            inactive_file_bytes: group.read_key("memory.stat", "inactive_file")?.unwrap_or(0),
            pids,
            // Of everything below as well.
            oom_kills: group.read_key("memory.events", "oom_kill")?.unwrap_or(0),
        }))
    }

    pub(super) fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, Error> {
        let group = self.group(path);
        let mut pids = group.pids()?;
        for below in group.descendants()? {
            pids.extend(below.pids()?);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    pub(super) fn remove(&self, path: &CgroupPath) -> Result<(), Error> {
        self.kill(path)?;
        remove::remove(&[self.group(path)], || self.pids(path))
    }

    /// Kills everything in it and below it.
    pub(super) fn kill(&self, path: &CgroupPath) -> Result<(), Error> {
        let group = self.group(path);
        // At once, also what is just being forked (kernel 5.14).
        if !group.has("cgroup.kill") {
            return remove::kill_all(&|| self.pids(path));
        }
        match group.write("cgroup.kill", "1") {
            // Whoever ran in it has just removed it.
            Err(Error::Io { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                Ok(())
            }
            result => result,
        }
    }
}

/// Length of a period of CPU time in microseconds, the kernel's default.
pub(super) const PERIOD: u64 = 100_000;

/// CPU time for each period; the kernel takes no less than a millisecond.
pub(super) fn quota(millis: u64) -> u64 {
    millis.saturating_mul(PERIOD / 1000).max(1000)
}

fn io_line(limit: &IoLimit) -> String {
    let IoLimit { device: _, read_bytes_per_second, write_bytes_per_second, read_iops, write_iops } = limit;
    let text = |value: &Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
    format!(
        "rbps={} wbps={} riops={} wiops={}",
        text(read_bytes_per_second),
        text(write_bytes_per_second),
        text(read_iops),
        text(write_iops)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a cgroup, since the kernel makes no files in it.
    fn with_files(files: &[(&str, &str)]) -> (tempfile::TempDir, Hierarchy, CgroupPath) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("n/a")).unwrap();
        for (name, text) in files {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let hierarchy = Hierarchy { root: root.path().to_owned(), sysfs: "/nonexistent".into() };
        (root, hierarchy, CgroupPath::new("/n/a").unwrap())
    }

    const FILES: [&str; 8] = [
        "cpu.max",
        "cpu.weight",
        "cpuset.cpus",
        "memory.max",
        "memory.high",
        "memory.low",
        "memory.swap.max",
        "pids.max",
    ];

    fn texts(root: &Path) -> Vec<String> {
        FILES.iter().map(|file| std::fs::read_to_string(root.join("n/a").join(file)).unwrap()).collect()
    }

    #[test]
    fn limits_are_written_as_the_kernel_wants_them_and_lifted() {
        let names: Vec<_> = FILES.iter().map(|file| format!("n/a/{file}")).collect();
        let (root, hierarchy, path) = with_files(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
        let limits = Limits {
            cpu_millis: Some(1500),
            cpu_share: Some(CpuShare::Weight(50)),
            realtime: None,
            cpuset: Some("0-1".to_owned()),
            memory_max: Some(512),
            memory_high: Some(448),
            memory_low: Some(64),
            swap_max: Some(0),
            pids_max: Some(9),
            hugepages: Default::default(),
            io: Vec::new(),
        };
        hierarchy.ensure(&path, &limits).unwrap();
        assert_eq!(texts(root.path()), ["150000 100000", "50", "0-1", "512", "448", "64", "0", "9"]);
        hierarchy.ensure(&path, &Limits::default()).unwrap();
        assert_eq!(texts(root.path()), ["max 100000", "100", "", "max", "max", "0", "max", "max"]);
    }

    #[test]
    fn a_limit_without_its_controller_is_an_error_and_no_limit_is_none() {
        let (_root, hierarchy, path) = with_files(&[]);
        hierarchy.ensure(&path, &Limits::default()).unwrap();
        let error = hierarchy.ensure(&path, &Limits { memory_max: Some(1), ..Limits::default() }).unwrap_err();
        assert_eq!(error.to_string(), "cgroup /n/a: memory.max needs the memory controller");
    }

    #[test]
    fn controllers_are_enabled_down_the_path() {
        let control = "cgroup.subtree_control";
        let (root, hierarchy, path) = with_files(&[
            ("cgroup.controllers", "cpuset cpu io memory pids rdma"),
            (control, "cpu memory pids"),
            ("n/cgroup.controllers", "memory"),
        ]);
        hierarchy.ensure(&path, &Limits::default()).unwrap();
        // A plain file keeps the last write only.
        assert_eq!(std::fs::read_to_string(root.path().join(control)).unwrap(), "+io");
        assert_eq!(std::fs::read_to_string(root.path().join("n").join(control)).unwrap(), "+memory");
        assert!(!root.path().join("n/a").join(control).exists(), "not for what is below it");
    }

    #[test]
    fn io_limits_of_other_devices_are_lifted() {
        let (root, hierarchy, path) = with_files(&[("n/a/io.max", "8:0 rbps=1 wbps=max riops=max wiops=max\n")]);
        hierarchy.ensure(&path, &Limits::default()).unwrap();
        let text = std::fs::read_to_string(root.path().join("n/a/io.max")).unwrap();
        assert_eq!(text, "8:0 rbps=max wbps=max riops=max wiops=max");
        let limit = IoLimit { write_iops: Some(9), read_bytes_per_second: Some(5), ..IoLimit::default() };
        assert_eq!(io_line(&limit), "rbps=5 wbps=max riops=max wiops=9");
    }

    #[test]
    fn use_is_read() {
        let (_root, hierarchy, path) = with_files(&[
            ("n/a/cpu.stat", "usage_usec 12\nuser_usec 5\nthrottled_usec 7\n"),
            ("n/a/memory.current", "4096\n"),
            ("n/a/memory.stat", "inactive_file 1024\n"),
            ("n/a/memory.events", "low 0\noom 2\noom_kill 1\n"),
            ("n/a/pids.current", "3\n"),
        ]);
        let expected = Stat {
            cpu_usec: 12,
            throttled_usec: 7,
            memory_bytes: 4096,
            inactive_file_bytes: 1024,
            pids: 3,
            oom_kills: 1,
        };
        assert_eq!(hierarchy.stat(&path).unwrap(), Some(expected));
        assert_eq!(hierarchy.stat(&CgroupPath::new("/n/b").unwrap()).unwrap(), None);
    }

    #[test]
    fn a_tiny_share_of_a_cpu_is_what_the_kernel_can_do() {
        assert_eq!((quota(1), quota(10), quota(2500)), (1000, 1000, 250_000));
    }
}
