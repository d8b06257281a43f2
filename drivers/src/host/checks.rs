//! Checks of the node, each with what to do about it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{disk, trial};
use crate::cgroups::{self, Version};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// As it should be.
    Ok,
    /// nodelet works, with less.
    Warn,
    /// nodelet, or what it is for, does not work.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when all is well.
    pub remedy: String,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Places {
    /// Root of the cgroups, usually `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// nodelet's data.
    pub data_dir: PathBuf,
    /// nodelet's run directory.
    pub run_dir: PathBuf,
}

/// Runs all checks; takes some milliseconds and blocks. Changes nothing: what has to be tried out is tried in
/// namespaces of its own.
pub fn run(places: &Places) -> Vec<Check> {
    let uname = rustix::system::uname();
    let status = read("/proc/self/status");
    let forward = read("/proc/sys/net/ipv4/ip_forward");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut checks = vec![
        kernel(&uname.release().to_string_lossy()),
        openat2(),
        tried("overlayfs", trial::overlay(), "load the module: modprobe overlay"),
        tried("bridge links", trial::link("bridge"), "load the module: modprobe bridge"),
        tried("veth links", trial::link("veth"), "load the module: modprobe veth"),
        tried("nftables", trial::nftables(trial::INET), "load the modules: modprobe nf_tables nft_chain_nat nft_nat"),
        sender_checks(trial::nftables(trial::BRIDGE)),
        controllers(&places.cgroup_root),
        seccomp(&status),
    ];
    checks.extend(capabilities(&status));
    checks.extend([
        ip_forward(forward.trim()),
        space("data directory", &places.data_dir),
        space("run directory", &places.run_dir),
        clock(now),
        inotify(read("/proc/sys/fs/inotify/max_user_instances").trim()),
    ]);
    checks.extend(crate::network::checks::run());
    checks
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, level: Level::Ok, found: found.into(), remedy: String::new() }
}

fn fault(name: &'static str, level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, level, found: found.into(), remedy: remedy.into() }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn tried(name: &'static str, result: std::io::Result<()>, remedy: &str) -> Check {
    match result {
        Ok(()) => ok(name, "works"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            fault(name, Level::Fail, "could not be tried: not permitted", "run as root, in a container as privileged")
        }
        Err(error) => fault(name, Level::Fail, error.to_string(), format!("{remedy}, or use a kernel that has it")),
    }
}

/// Without tables for bridges all works but the check of what containers send.
fn sender_checks(result: std::io::Result<()>) -> Check {
    let name = "nftables of bridges";
    match result {
        Ok(()) => ok(name, "work"),
        Err(error) => fault(
            name,
            Level::Warn,
            format!("{error}: containers with NET_RAW or NET_ADMIN can send by the addresses of others"),
            "use a kernel with CONFIG_NF_TABLES_BRIDGE",
        ),
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (0..=4, _) | (5, 0..=5) => fault("kernel", Level::Fail, release, "use Linux 5.6 or newer"),
        (5, 6..=13) => {
            fault("kernel", Level::Warn, release, "use Linux 5.14 or newer: whole cgroups can then be killed at once")
        }
        _ => ok("kernel", release),
    }
}

fn openat2() -> Check {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    match openat2(CWD, ".", OFlags::PATH, Mode::empty(), ResolveFlags::BENEATH) {
        Ok(_) => ok("safe paths (openat2)", "works"),
        Err(error) => fault(
            "safe paths (openat2)",
            Level::Fail,
            error.to_string(),
            "use Linux 5.6 or newer; in a container, allow openat2 in its seccomp profile",
        ),
    }
}

fn controllers(root: &Path) -> Check {
    let version = cgroups::detect(root);
    let has = |name: &str| match version {
        Version::V1 => root.join(name).join("cgroup.procs").exists(),
        Version::V2 => std::fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|list| list.split_whitespace().any(|controller| controller == name)),
    };
    let io = if version == Version::V1 { "blkio" } else { "io" };
    let missing = |names: &[&str]| names.iter().copied().filter(|name| !has(name)).collect::<Vec<_>>().join(", ");
    let (needed, wanted) = (missing(&["cpu", "memory", "pids"]), missing(&["cpuset", io]));
    let name = "cgroup controllers";
    let what = if version == Version::V1 { "version 1" } else { "version 2" };
    let remedy = "mount the hierarchy at /sys/fs/cgroup and remove cgroup_disable= from the kernel's command line; on \
                  a Raspberry Pi add cgroup_enable=memory";
    match (needed.is_empty(), wanted.is_empty()) {
        (false, _) => fault(name, Level::Fail, format!("{what}, without {needed}"), remedy),
        (true, false) => fault(name, Level::Warn, format!("{what}, without {wanted}"), remedy),
        (true, true) => ok(name, what),
    }
}

fn seccomp(status: &str) -> Check {
    match status.lines().any(|line| line.starts_with("Seccomp:")) {
        true => ok("seccomp", "available"),
        false => fault(
            "seccomp",
            Level::Warn,
            "not in this kernel",
            "use a kernel with CONFIG_SECCOMP_FILTER; until then containers need seccompProfile: Unconfined",
        ),
    }
}

fn capabilities(status: &str) -> Vec<Check> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(0);
    [
        ("CAP_NET_ADMIN", 12, Level::Fail, "networks cannot be made"),
        ("CAP_SYS_ADMIN", 21, Level::Fail, "mounts and namespaces cannot be made"),
        ("CAP_SYS_RESOURCE", 24, Level::Warn, "hard limits cannot be raised nor oom_score_adj lowered"),
    ]
    .into_iter()
    .map(|(name, bit, level, without)| match effective & (1 << bit) {
        0 => fault(name, level, format!("missing: {without}"), "run as root; in a container, as privileged"),
        _ => ok(name, "held"),
    })
    .collect()
}

fn ip_forward(value: &str) -> Check {
    match value {
        "1" => ok("IPv4 forwarding", "on"),
        _ => fault(
            "IPv4 forwarding",
            Level::Warn,
            "off: workloads reach nothing outside of the node",
            "sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d to keep it",
        ),
    }
}

/// The directory need not exist yet; what it will be on counts.
fn space(name: &'static str, path: &Path) -> Check {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let disk = match disk(existing) {
        Ok(disk) => disk,
        Err(error) => return fault(name, Level::Fail, error.to_string(), format!("make {} usable", path.display())),
    };
    let mib = disk.available_bytes >> 20;
    let found = format!("{}: {mib} MiB free", path.display());
    let percent = disk.available_bytes.saturating_mul(100) / disk.capacity_bytes.max(1);
    let few_inodes = disk.inodes > 0 && disk.inodes_free.saturating_mul(100) / disk.inodes < 5;
    let remedy = "remove what is not needed (nodelet images prune), or use a larger file system";
    match () {
        () if mib < 64 => fault(name, Level::Fail, found, remedy),
        () if few_inodes => fault(name, Level::Warn, format!("{found}, and it is short of inodes"), remedy),
        () if percent < 10 && mib < 10 << 10 => fault(name, Level::Warn, found, remedy),
        () => ok(name, found),
    }
}

/// Beginning of 2025 in seconds since 1970: nodelet was written after it.
const BEGIN_OF_2025: u64 = 1_735_689_600;

fn clock(now: u64) -> Check {
    if now >= BEGIN_OF_2025 {
        return ok("clock", "plausible");
    }
    fault(
        "clock",
        Level::Warn,
        "before 2025: certificates are refused and times in logs are wrong",
        "set the clock, and keep it with systemd-timesyncd or chrony",
    )
}

fn inotify(instances: &str) -> Check {
    match instances.parse::<u32>() {
        Ok(instances @ ..128) => fault(
            "inotify instances",
            Level::Warn,
            instances.to_string(),
            "sysctl -w fs.inotify.max_user_instances=1024: each follower of a log takes one",
        ),
        _ => ok("inotify instances", instances),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_run_says_something_of_everything() {
        let places =
            Places { cgroup_root: "/sys/fs/cgroup".into(), data_dir: "/nonexistent/a".into(), run_dir: "/run".into() };
        let checks = run(&places);
        assert!(checks.len() > 12);
        for check in &checks {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(check.level == Level::Ok, check.remedy.is_empty(), "{check:?}");
        }
        let of = |name| checks.iter().find(|check| check.name == name).unwrap().level;
        for name in ["overlayfs", "bridge links", "veth links", "nftables", "safe paths (openat2)", "CAP_SYS_ADMIN"] {
            assert_eq!(of(name), Level::Ok, "{name}: {checks:#?}");
        }
    }

    #[test]
    fn levels_follow_what_is_found() {
        for (release, level) in [
            ("4.19.0-21-amd64", Level::Fail),
            ("5.4.0", Level::Fail),
            ("5.10.0-28-arm64", Level::Warn),
            ("5.15.1", Level::Ok),
            ("6.1-rc1", Level::Ok),
            ("nonsense", Level::Fail),
        ] {
            assert_eq!(kernel(release).level, level, "{release}");
        }
        assert_eq!(clock(0).level, Level::Warn);
        assert_eq!(ip_forward("0").level, Level::Warn);
        assert_eq!((inotify("8").level, inotify("128").level, inotify("").level), (Level::Warn, Level::Ok, Level::Ok));
        let levels: Vec<_> = capabilities("CapEff:\t0000000000201000\n").iter().map(|check| check.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Ok, Level::Warn]);
        assert_eq!(seccomp("Name:\tx\n").level, Level::Warn);
    }

    #[test]
    fn controllers_of_both_versions_are_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(controllers(root.path()).level, Level::Fail);
        for name in ["cpu", "memory", "pids", "cpuset", "blkio"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("cgroup.procs"), "").unwrap();
        }
        assert_eq!(controllers(root.path()), ok("cgroup controllers", "version 1"));
        std::fs::write(root.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let check = controllers(root.path());
        assert_eq!((check.level, check.found.as_str()), (Level::Warn, "version 2, without cpuset, io"));
    }
}
