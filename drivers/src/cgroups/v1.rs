//! Version 1: a hierarchy for each controller (or for several), in which a path stands for the same path in each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{Group, Limit, find_key};
use super::v2::{PERIOD, quota};
use super::{Error, Excess, IoLimit, Limits, Stat, device, realtime as rt, remove};
use crate::ids::CgroupPath;

/// Controllers that limits and use need. Others (devices, freezer, …) are left to the container runtime, except that
/// what it made there for our paths is removed with them.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"];

/// The hierarchies below one root.
#[derive(Debug)]
pub(super) struct Hierarchies {
    pub(super) root: PathBuf,
    pub(super) sysfs: PathBuf,
}

impl Hierarchies {
    /// `path` in the hierarchy of `controller`; `None` when the node has none.
    pub(super) fn group(&self, controller: &str, path: &CgroupPath) -> Option<Group> {
        let root = self.root.join(controller);
        root.is_dir().then(|| Group::new(&root, path))
    }

    /// `path` in every hierarchy, each once (`cpu` and `cpuacct` are often links to `cpu,cpuacct`). A directory without
    /// the files of a hierarchy is none: where one is not mounted, an OCI runtime may leave files of its own.
    pub(super) fn groups(&self, path: &CgroupPath) -> Vec<Group> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let roots: BTreeSet<PathBuf> = entries.filter_map(|entry| entry.path().canonicalize().ok()).collect();
        roots.iter().filter(|root| root.join("cgroup.procs").exists()).map(|root| Group::new(root, path)).collect()
    }

    pub(super) fn ensure(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error> {
        let is_new = CONTROLLERS
            .iter()
            .chain(&["hugetlb"])
            .all(|controller| self.group(controller, path).is_none_or(|group| !group.dir.exists()));
        for controller in CONTROLLERS {
            let Some(group) = self.group(controller, path) else { continue };
            match controller {
                "cpuset" => make_cpuset(&self.root.join(controller), path)?,
                _ => std::fs::create_dir_all(&group.dir).map_err(group.error("making it".to_owned()))?,
            }
            crate::failpoint::passed("making a cgroup");
        }
        // The kernel makes them without limits.
        if is_new && *limits == Limits::default() { Ok(None) } else { self.set_limits(path, limits) }
    }

    fn set_limits(&self, path: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, Error> {
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
            hugepages,
            io,
        } = limits;
        let text = |number: &Option<u64>| number.map(|number| number.to_string());
        let limit = |name, file, default, needs| Limit { name, file, default, needs };
        let set = |controller: &'static str, limit: Limit<'_>, value: Option<String>| match self.group(controller, path)
        {
            Some(group) => group.set_limit(&limit, value),
            None if value.is_none() => Ok(()),
            None => Err(Error::Unsupported { path: path.to_string(), limit: limit.name, needs: limit.needs }),
        };
        let cpu = "the cpu controller";
        set("cpu", limit("cpu.weight", "cpu.shares", "1024", cpu), cpu_share.map(|share| share.shares().to_string()))?;
        if cpu_millis.is_some() {
            set("cpu", limit("cpu.max", "cpu.cfs_period_us", "100000", cpu), Some(PERIOD.to_string()))?;
        }
        if realtime.is_some() && !self.divides_realtime() {
            return Err(Error::Unsupported { path: path.to_string(), limit: "cpu.realtime", needs: rt::NEEDS });
        }
        let quota = cpu_millis.map(|millis| quota(millis).to_string());
        set("cpu", limit("cpu.max", "cpu.cfs_quota_us", "-1", cpu), quota)?;
        set("pids", limit("pids.max", "pids.max", "max", "the pids controller"), text(pids_max))?;
        let soft = limit("memory.low", "memory.soft_limit_in_bytes", "-1", "the memory controller");
        set("memory", soft, text(memory_low))?;
        self.set_hugepages(path, hugepages)?;
        let excess = self.set_memory(path, *memory_max, *swap_max)?;
        self.set_cpus(path, cpuset.as_deref())?;
        self.set_io(path, io)?;
        match memory_high {
            None => Ok(excess),
            Some(_) => {
                Err(Error::Unsupported { path: path.to_string(), limit: "memory.high", needs: "cgroup version 2" })
            }
        }
    }

    /// Memory alone may never pass memory and swap together, so the order depends on the direction of the change.
    fn set_memory(&self, path: &CgroupPath, max: Option<u64>, swap: Option<u64>) -> Result<Option<Excess>, Error> {
        let unsupported = |limit, needs| Error::Unsupported { path: path.to_string(), limit, needs };
        let Some(group) = self.group("memory", path) else {
            return match max.or(swap) {
                None => Ok(None),
                Some(_) => Err(unsupported("memory.max", "the memory controller")),
            };
        };
        let both = match (max, swap) {
            (Some(max), Some(swap)) => Some(max.saturating_add(swap)),
            (None, Some(_)) => return Err(unsupported("memory.swapMax", "memory.max beside it (cgroup version 1)")),
            (_, None) => None,
        };
        let Some(now) = group.read_number(BOTH_FILE)? else {
            if swap.is_some() {
                return Err(unsupported("memory.swapMax", "swap accounting (kernel parameter swapaccount=1)"));
            }
            return approach(&group, MEMORY_FILE, max);
        };
        if max.unwrap_or(UNLIMITED) > now {
            set_bytes(&group, BOTH_FILE, both)?;
            return approach(&group, MEMORY_FILE, max);
        }
        match approach(&group, MEMORY_FILE, max)? {
            Some(excess) => Ok(Some(excess)),
            None => approach(&group, BOTH_FILE, both),
        }
    }

    pub(super) fn lower_memory(&self, path: &CgroupPath, max: u64) -> Result<Option<Excess>, Error> {
        let Some(group) = self.group("memory", path) else { return Ok(None) };
        let is_lower = group.read_number(MEMORY_FILE)?.is_some_and(|now| now > max);
        if is_lower { approach(&group, MEMORY_FILE, Some(max)) } else { Ok(None) }
    }

    /// A cpuset must stay within its parent's and contain its children's, so a smaller one goes to the children
    /// first, and a larger one is passed on to those that only had what they inherited.
    fn set_cpus(&self, path: &CgroupPath, cpus: Option<&str>) -> Result<(), Error> {
        const FILE: &str = "cpuset.cpus";
        let Some(group) = self.group("cpuset", path) else {
            return match cpus {
                None => Ok(()),
                Some(_) => Err(Error::Unsupported {
                    path: path.to_string(),
                    limit: "cpu.cpus",
                    needs: "the cpuset controller",
                }),
            };
        };
        let inherited = || -> Option<String> { std::fs::read_to_string(group.dir.parent()?.join(FILE)).ok() };
        let wanted = cpus.map(str::to_owned).or_else(inherited).unwrap_or_default().trim().to_owned();
        let before = group.read(FILE)?.unwrap_or_default().trim().to_owned();
        let (wanted_set, before_set) = (cpu_list(&wanted), cpu_list(&before));
        if wanted_set == before_set {
            return Ok(());
        }
        let below = group.descendants()?;
        for child in below.iter().rev() {
            let has = cpu_list(&child.read(FILE)?.unwrap_or_default());
            if !has.is_subset(&wanted_set) {
                let kept: Vec<String> = has.intersection(&wanted_set).map(u32::to_string).collect();
                child.write(FILE, &if kept.is_empty() { wanted.clone() } else { kept.join(",") })?;
            }
        }
        group.write(FILE, &wanted)?;
        for child in &below {
            if cpu_list(&child.read(FILE)?.unwrap_or_default()) == before_set {
                child.write(FILE, &wanted)?;
            }
        }
        Ok(())
    }

    fn set_hugepages(&self, path: &CgroupPath, hugepages: &BTreeMap<String, u64>) -> Result<(), Error> {
        match self.group("hugetlb", path) {
            Some(group) => group.set_hugepages(hugepages, "limit_in_bytes", "-1"),
            None if hugepages.is_empty() => Ok(()),
            None => {
                Err(Error::Unsupported { path: path.to_string(), limit: "hugepages", needs: "the hugetlb controller" })
            }
        }
    }

    /// See [`super::linux::LinuxCgroups::set_rest`].
    pub(super) fn set_rest(&self, path: &CgroupPath, limits: &Limits) -> Result<(), Error> {
        self.set_hugepages(path, &limits.hugepages)?;
        self.set_io(path, &limits.io)?;
        self.set_realtime(path, limits.realtime)
    }

    fn set_io(&self, path: &CgroupPath, io: &[IoLimit]) -> Result<(), Error> {
        let Some(group) = self.group("blkio", path) else {
            return match io.is_empty() {
                true => Ok(()),
                false => Err(Error::Unsupported { path: path.to_string(), limit: "io", needs: "the blkio controller" }),
            };
        };
        let mut numbers = Vec::new();
        for limit in io {
            let number = device::disk_number(&limit.device, &self.sysfs)
                .map_err(group.error(format!("limiting I/O of {}", limit.device)))?;
            numbers.push((number, limit));
        }
        type Field = fn(&IoLimit) -> Option<u64>;
        let files: [(&str, Field); 4] = [
            ("blkio.throttle.read_bps_device", |limit| limit.read_bytes_per_second),
            ("blkio.throttle.write_bps_device", |limit| limit.write_bytes_per_second),
            ("blkio.throttle.read_iops_device", |limit| limit.read_iops),
            ("blkio.throttle.write_iops_device", |limit| limit.write_iops),
        ];
        for (file, field) in files {
            let found = group.read(file)?.unwrap_or_default();
            let limited = found.lines().filter_map(|line| line.split_whitespace().next());
            let wanted =
                |device: &str| numbers.iter().any(|(number, limit)| number == device && field(limit).is_some());
            for device in limited.filter(|device| !wanted(device)) {
                group.write(file, &format!("{device} 0"))?;
            }
            for (number, value) in numbers.iter().filter_map(|(number, limit)| Some((number, field(limit)?))) {
                let line = format!("{number} {value}");
                if !found.lines().any(|found| found == line) {
                    group.write(file, &line)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn stat(&self, path: &CgroupPath) -> Result<Option<Stat>, Error> {
        let Some(group) = self.groups(path).into_iter().find(|group| group.dir.is_dir()) else { return Ok(None) };
        let of = |controller| self.group(controller, path).unwrap_or_else(|| group.clone());
        let memory = of("memory");
        // This counter alone does not include what is below.
        let mut oom_kills = 0;
        for group in memory.descendants()?.iter().chain([&memory]) {
            oom_kills += group.read_key("memory.oom_control", "oom_kill")?.unwrap_or(0);
        }
        let cpu = of("cpu").read("cpu.stat")?.unwrap_or_default();
        Ok(Some(Stat {
            cpu_usec: of("cpuacct").read_number("cpuacct.usage")?.unwrap_or(0) / 1000,
            throttled_usec: find_key(&cpu, "throttled_time").unwrap_or(0) / 1000,
            memory_bytes: memory.read_number("memory.usage_in_bytes")?.unwrap_or(0),
            inactive_file_bytes: memory.read_key("memory.stat", "total_inactive_file")?.unwrap_or(0),
            pids: match of("pids").read_number("pids.current")? {
                Some(pids) => pids,
                None => self.pids(path)?.len() as u64,
            },
            oom_kills,
        }))
    }

    /// A process may be in different cgroups of different hierarchies: all of them count.
    pub(super) fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, Error> {
        let mut pids = BTreeSet::new();
        for group in self.groups(path) {
            pids.extend(group.pids()?);
            for below in group.descendants()? {
                pids.extend(below.pids()?);
            }
        }
        Ok(pids.into_iter().collect())
    }

    /// Kills everything in it and below it.
    pub(super) fn kill(&self, path: &CgroupPath) -> Result<(), Error> {
        // What cannot fork is killed sooner.
        if let Some(group) = self.group("pids", path) {
            let _ = group.try_write("pids.max", "0");
        }
        remove::kill_all(&|| self.pids(path))
    }

    pub(super) fn remove(&self, path: &CgroupPath) -> Result<(), Error> {
        self.kill(path)?;
        remove::remove(&self.groups(path), || self.pids(path))
    }
}

/// The kernel's "no limit", as it reads it: the largest multiple of a page, below which everything is a limit.
const UNLIMITED: u64 = i64::MAX as u64 & !0xFFFF;

const MEMORY_FILE: &str = "memory.limit_in_bytes";
/// Memory and swap together.
const BOTH_FILE: &str = "memory.memsw.limit_in_bytes";

/// [`set_bytes`] of a limit that may be below what is used: the kernel then reclaims what it can and refuses the rest.
fn approach(group: &Group, file: &str, bytes: Option<u64>) -> Result<Option<Excess>, Error> {
    match (set_bytes(group, file, bytes), bytes) {
        (Err(Error::Io { source, .. }), Some(wanted)) if source.raw_os_error() == Some(libc::EBUSY) => {
            let used = group.read_number(&file.replace("limit", "usage"))?.unwrap_or(0);
            let in_force = group.read_number(file)?.filter(|limit| *limit < UNLIMITED);
            Ok(Some(Excess { wanted, used, in_force }))
        }
        (result, _) => result.map(|()| None),
    }
}

fn set_bytes(group: &Group, file: &str, bytes: Option<u64>) -> Result<(), Error> {
    match bytes {
        None if group.read_number(file)?.is_some_and(|now| now >= UNLIMITED) => Ok(()),
        None => group.write(file, "-1"),
        Some(bytes) => group.set(file, &bytes.to_string()),
    }
}

/// Makes `path` in the cpuset hierarchy. New cpusets are empty, and nothing can run in an empty one or below it.
fn make_cpuset(root: &Path, path: &CgroupPath) -> Result<(), Error> {
    let whole = Group::new(root, path);
    let mut above = root.to_owned();
    for part in path.as_str().split('/').skip(1) {
        let dir = above.join(part);
        std::fs::create_dir_all(&dir).map_err(whole.error("making it".to_owned()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let read = |dir: &Path| std::fs::read_to_string(dir.join(file)).unwrap_or_default().trim().to_owned();
            if read(&dir).is_empty() && !read(&above).is_empty() {
                let value = read(&above);
                let doing = format!("writing {value:?} to {file} of {}", dir.display());
                std::fs::write(dir.join(file), value).map_err(whole.error(doing))?;
            }
        }
        above = dir;
    }
    Ok(())
}

/// `0-2,4` as numbers; what cannot be read is left out, and the kernel judges it.
pub(super) fn cpu_list(text: &str) -> BTreeSet<u32> {
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            cpus.extend(first..=last.min(first.saturating_add(8192)));
        }
    }
    cpus
}

#[cfg(test)]
mod tests;
