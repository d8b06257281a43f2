//! The checks that only read files, with the file system's root as a parameter.

use std::fs;
use std::path::{Path, PathBuf};

use nodelet_drivers::cgroups::{Version, detect};

use super::Finding;
use crate::config::NodeletConfiguration;

/// Where to look.
pub(super) struct Node {
    pub(super) root: PathBuf,
}

impl Default for Node {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Node {
    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }
}

/// All of them.
pub(super) fn all(node: &Node, configuration: &NodeletConfiguration) -> Vec<Finding> {
    vec![
        privileges(node),
        kernel(node),
        cgroups(node),
        overlayfs(node),
        nftables(node),
        clock(jiff::Timestamp::now()),
        disk(&configuration.data_dir),
        run_dir(node, &configuration.run_dir),
        log_writer(),
    ]
}

fn privileges(node: &Node) -> Finding {
    const CHECK: &str = "privileges";
    let status = node.read("proc/self/status");
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let lacks = |(_, bit): &&(&str, u32)| mask & (1_u64 << bit) == 0;
    let needed = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];
    let missing: Vec<&str> = needed.iter().filter(lacks).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        return Finding::failed(
            CHECK,
            format!("without {}", missing.join(", ")),
            "run it as root; in a container, privileged",
        );
    }
    if lacks(&&("CAP_SYS_RESOURCE", 24)) {
        let message = "without CAP_SYS_RESOURCE: containers keep the agent's oom_score_adj and hard limits";
        return Finding::warning(CHECK, message, "grant it if workloads need other values");
    }
    Finding::ok(CHECK, "all that are needed")
}

fn kernel(node: &Node) -> Finding {
    const CHECK: &str = "kernel";
    let release = node.read("proc/sys/kernel/osrelease");
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if version < (5, 4) {
        return Finding::failed(
            CHECK,
            format!("{release} is too old"),
            "5.4 or newer is needed, for pidfds among others",
        );
    }
    let missing: Vec<&str> = ["net", "mnt", "ipc", "uts", "pid"]
        .into_iter()
        .filter(|ns| !node.root.join("proc/self/ns").join(ns).exists())
        .collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, release);
    }
    Finding::failed(
        CHECK,
        format!("without namespaces: {}", missing.join(", ")),
        "boot a kernel with them (CONFIG_NAMESPACES)",
    )
}

fn cgroups(node: &Node) -> Finding {
    const CHECK: &str = "cgroups";
    let version = detect(&node.root.join("sys/fs/cgroup"));
    let (mode, present): (&str, Vec<String>) = match version {
        Version::V2 => {
            let controllers = node.read("sys/fs/cgroup/cgroup.controllers");
            ("v2", controllers.split_whitespace().map(str::to_owned).collect())
        }
        Version::V1 => {
            let mounts = node.read("proc/mounts");
            let v1 = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup"));
            ("v1", v1.filter_map(|line| line.split(' ').nth(3)).flat_map(|o| o.split(',')).map(str::to_owned).collect())
        }
    };
    let needed = ["cpu", "memory", "pids"];
    let missing: Vec<&str> = needed.into_iter().filter(|needed| !present.iter().any(|there| there == needed)).collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, format!("{mode} with {}", needed.join(", ")));
    }
    let remedy = match version {
        Version::V2 => {
            "enable them on the kernel's command line (cgroup_enable=memory), or in /sys/fs/cgroup/cgroup.subtree_control"
        }
        Version::V1 => "mount them below /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1",
    };
    Finding::failed(CHECK, format!("{mode} without {}", missing.join(", ")), remedy)
}

fn overlayfs(node: &Node) -> Finding {
    const CHECK: &str = "overlayfs";
    let known = node.read("proc/filesystems").lines().any(|line| line.ends_with("\toverlay"));
    if known {
        return Finding::ok(CHECK, "known to the kernel");
    }
    Finding::warning(CHECK, "not loaded", "`modprobe overlay`; without it set runtime.snapshotter: native")
}

fn nftables(node: &Node) -> Finding {
    const CHECK: &str = "nftables";
    let release = node.read("proc/sys/kernel/osrelease");
    let builtin = node.read(&format!("lib/modules/{}/modules.builtin", release.trim()));
    let is_loaded = node.root.join("sys/module/nf_tables").exists() || builtin.contains("/nf_tables.ko");
    if is_loaded {
        return Finding::ok(CHECK, "known to the kernel");
    }
    Finding::warning(
        CHECK,
        "not loaded; it is at the first use, if the kernel has it",
        "`modprobe nf_tables` to be sure",
    )
}

fn clock(now: jiff::Timestamp) -> Finding {
    const CHECK: &str = "clock";
    let year = now.to_zoned(jiff::tz::TimeZone::UTC).year();
    if year < 2026 {
        let message =
            format!("it is {year}: registries' certificates will not be valid yet; nothing is stopped for it");
        return Finding::warning(CHECK, message, "set the clock, or let chrony or systemd-timesyncd do it");
    }
    Finding::ok(CHECK, now.round(jiff::Unit::Second).unwrap_or(now).to_string())
}

fn disk(data_dir: &Path) -> Finding {
    const CHECK: &str = "disk";
    let there = data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = match rustix::fs::statvfs(there) {
        Ok(stat) => stat,
        Err(error) => return Finding::failed(CHECK, format!("{}: {error}", there.display()), "mount it"),
    };
    let percent = |free: u64, all: u64| if all == 0 { 100 } else { free.saturating_mul(100) / all };
    let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    let (space, inodes) = (percent(stat.f_bavail, stat.f_blocks), percent(stat.f_favail, stat.f_files));
    let message = format!("{free_mib} MiB and {inodes} % of inodes are free at {}", there.display());
    if free_mib < 100 || inodes == 0 {
        return Finding::failed(CHECK, message, "make room: the store and logs cannot be written");
    }
    if space < 15 || inodes < 5 {
        return Finding::warning(CHECK, message, "make room, or move dataDir");
    }
    Finding::ok(CHECK, message)
}

fn run_dir(node: &Node, run_dir: &Path) -> Finding {
    const CHECK: &str = "runDir";
    let mounts = node.read("proc/mounts");
    let of = |line: &str| {
        let mut fields = line.split(' ');
        let (point, type_) = (fields.nth(1)?.to_owned(), fields.next()?.to_owned());
        run_dir.starts_with(&point).then_some((point.len(), type_))
    };
    let holder = mounts.lines().filter_map(of).max();
    match holder {
        Some((_, type_)) if type_ != "tmpfs" => {
            let message = format!("{} is on {type_}: what a reboot must forget would survive it", run_dir.display());
            Finding::warning(CHECK, message, "choose a directory below /run")
        }
        _ => Finding::ok(CHECK, run_dir.display().to_string()),
    }
}

fn log_writer() -> Finding {
    const CHECK: &str = "nodelet-logger";
    let beside = std::env::current_exe().unwrap_or_default().with_file_name("nodelet-logger");
    let path = std::env::var_os("NODELET_LOGGER").map_or(beside, PathBuf::from);
    if path.is_file() {
        return Finding::ok(CHECK, path.display().to_string());
    }
    Finding::failed(CHECK, format!("missing at {}", path.display()), "install it beside nodelet, or set NODELET_LOGGER")
}

/// Whether a program is in `$PATH`.
pub(super) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// containerd 1.6 and newer.
pub(super) fn is_supported(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) >= (1, 6)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// A node made of files.
    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Node) {
        let directory = tempfile::tempdir().expect("temporary directory");
        for (path, text) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("makes the directory");
            fs::write(path, text).expect("writes");
        }
        let node = Node { root: directory.path().to_owned() };
        (directory, node)
    }

    #[test]
    fn a_bare_node_fails_with_remedies() {
        let (_directory, node) = node(&[]);
        for finding in [privileges(&node), kernel(&node), cgroups(&node)] {
            assert!(finding.verdict == Verdict::Failed && !finding.remedy.is_empty(), "{finding:?}");
        }
        assert_eq!(overlayfs(&node).verdict, Verdict::Warning);
    }

    #[test]
    fn a_good_node_passes() {
        let (_directory, node) = node(&[
            ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
            ("proc/self/ns/net", ""),
            ("proc/self/ns/mnt", ""),
            ("proc/self/ns/ipc", ""),
            ("proc/self/ns/uts", ""),
            ("proc/self/ns/pid", ""),
            ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("proc/filesystems", "nodev\ttmpfs\nnodev\toverlay\n"),
            ("proc/mounts", "/dev/vda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n"),
            ("lib/modules/6.1.0-18-amd64/modules.builtin", "kernel/net/netfilter/nf_tables.ko\n"),
        ]);
        let run = Path::new("/run/nodelet");
        for finding in
            [privileges(&node), kernel(&node), cgroups(&node), overlayfs(&node), nftables(&node), run_dir(&node, run)]
        {
            assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
        }
        assert_eq!(run_dir(&node, Path::new("/var/run-x")).verdict, Verdict::Warning);
        assert_eq!(clock("1970-01-02T00:00:00Z".parse().expect("a time")).verdict, Verdict::Warning);
    }

    #[test]
    fn versions_of_containerd() {
        for (version, supported) in [("1.6.20", true), ("v2.1.0", true), ("1.5.9", false), ("", false)] {
            assert_eq!(is_supported(version), supported, "{version}");
        }
    }
}
