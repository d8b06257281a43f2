//! Facts about the node that decide what a container's specification may ask for. Read once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cgroups::linux::LinuxCgroups;
use crate::cgroups::systemd::Units;
use crate::cgroups::{self, Version};
use crate::ids::CgroupPath;

/// Number of CAP_SYS_RESOURCE in the kernel's list.
const CAP_SYS_RESOURCE: u32 = 24;

/// What the node allows.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where the cgroup hierarchy is mounted.
    pub(super) cgroup_root: PathBuf,
    /// Its version.
    pub(super) cgroup_version: Version,
    /// The connection to systemd, for cgroups that it makes.
    units: Arc<Units>,
    /// Bounding capability set, one bit per capability: what "all capabilities" means here.
    pub(super) capabilities: u64,
    /// Lowest `oom_score_adj` that can be given; without CAP_SYS_RESOURCE the kernel refuses to go below our own.
    pub(super) lowest_oom_score_adj: i32,
    /// Highest hard limits that can be given are our own.
    pub(super) rlimits_are_capped: bool,
    /// Swap is accounted for (always in version 2, a boot parameter in version 1).
    pub(super) swap_limit: bool,
    /// The kernel divides the time of real-time processes, which it does in version 1 only.
    pub(super) divides_realtime: bool,
}

impl Node {
    /// The cgroups below `parent`.
    pub(super) fn cgroups(&self, parent: CgroupPath) -> LinuxCgroups {
        LinuxCgroups::with_version(&self.cgroup_root, parent, self.cgroup_version).sharing(self.units.clone())
    }

    /// Reads the facts of this process and of the hierarchy at `cgroup_root`.
    pub(super) fn observe(cgroup_root: &Path) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        let effective = set("CapEff:").unwrap_or(0);
        let may_raise = effective & (1 << CAP_SYS_RESOURCE) != 0;
        let own_score = std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|s| s.trim().parse().ok());
        let cgroup_version = cgroups::detect(cgroup_root);
        Self {
            cgroup_root: cgroup_root.to_owned(),
            cgroup_version,
            units: Arc::default(),
            capabilities: set("CapBnd:").unwrap_or(effective),
            lowest_oom_score_adj: if may_raise { -1000 } else { own_score.unwrap_or(0) },
            rlimits_are_capped: !may_raise,
            divides_realtime: cgroup_version == Version::V1 && cgroup_root.join("cpu/cpu.rt_runtime_us").exists(),
            swap_limit: match cgroup_version {
                Version::V2 => true,
                Version::V1 => cgroup_root.join("memory/memory.memsw.limit_in_bytes").exists(),
            },
        }
    }
}
