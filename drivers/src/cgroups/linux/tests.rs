//! On the node's own hierarchy, below a parent of the test's own.

use std::path::Path;
use std::process::{Child, Command};

use super::super::{IoLimit, conformance};
use super::*;

const ROOT: &str = "/sys/fs/cgroup";

/// A parent that nobody else uses, removed in the end.
struct Own(LinuxCgroups);

impl Own {
    fn new() -> Self {
        let parent = CgroupPath::new(format!("/nodelet-test-{}", uuid::Uuid::new_v4().simple())).unwrap();
        Self(LinuxCgroups::new(ROOT, parent))
    }

    fn path(&self, name: &str) -> CgroupPath {
        self.0.parent.join(name).unwrap()
    }

    /// Where the files of `controller` are.
    fn dir(&self, controller: &str, path: &CgroupPath) -> PathBuf {
        match self.0.version() {
            Version::V1 => Path::new(ROOT).join(controller).join(&path.as_str()[1..]),
            Version::V2 => Path::new(ROOT).join(&path.as_str()[1..]),
        }
    }

    /// Runs a shell script in the cgroup.
    fn spawn(&self, path: &CgroupPath, script: &str) -> Child {
        let procs = |controller| self.dir(controller, path).join("cgroup.procs").display().to_string();
        let join = format!("echo $$ > {} && echo $$ > {}", procs("memory"), procs("pids"));
        Command::new("sh").arg("-c").arg(format!("{join} && {script}")).spawn().unwrap()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.remove(&self.0.parent);
    }
}

#[test]
fn keeps_the_contract() {
    conformance::run(&Own::new().0);
}

#[test]
fn nothing_is_left_when_the_parent_goes() {
    let own = Own::new();
    own.0.ensure(&own.path("a"), &Limits::default()).unwrap();
    own.0.remove(own.0.parent()).unwrap();
    for entry in std::fs::read_dir(ROOT).unwrap() {
        assert!(!entry.unwrap().path().join(&own.0.parent.as_str()[1..]).exists());
    }
}

#[test]
fn processes_are_counted_and_killed_with_their_cgroup() {
    let own = Own::new();
    let (outer, inner) = (own.path("a"), own.path("a/b"));
    own.0.ensure(&inner, &Limits::default()).unwrap();
    let mut child = own.spawn(&inner, "trap '' TERM; echo ready > /dev/null; while :; do sleep 1000; done");
    while !own.0.pids(&outer).unwrap().contains(&child.id()) {
        std::thread::yield_now();
    }
    assert!(own.0.stat(&outer).unwrap().unwrap().pids >= 1);
    own.0.remove(&outer).unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(own.0.stat(&outer).unwrap(), None);
}

#[test]
fn limits_change_in_both_directions_under_use() {
    let own = Own::new();
    let path = own.path("a");
    for mib in [256, 64, 512] {
        for swap_max in [None, Some(0), Some(16 << 20)] {
            let limits = Limits { memory_max: Some(mib << 20), swap_max, ..Limits::default() };
            match own.0.ensure(&path, &limits) {
                Err(Error::Unsupported { .. }) => {} // no swap accounting here
                other => other.unwrap(),
            }
            let file = match own.0.version() {
                Version::V1 => "memory.limit_in_bytes",
                Version::V2 => "memory.max",
            };
            let found = std::fs::read_to_string(own.dir("memory", &path).join(file)).unwrap();
            assert_eq!(found.trim(), (mib << 20).to_string());
        }
    }
    own.0.ensure(&path, &Limits::default()).unwrap();
}

#[test]
fn a_kill_for_memory_is_counted_above_as_well() {
    let own = Own::new();
    let (outer, inner) = (own.path("a"), own.path("a/b"));
    own.0.ensure(&inner, &Limits::default()).unwrap();
    let limits = Limits { memory_max: Some(8 << 20), swap_max: Some(0), ..Limits::default() };
    if matches!(own.0.ensure(&inner, &limits), Err(Error::Unsupported { .. })) {
        own.0.ensure(&inner, &Limits { swap_max: None, ..limits }).unwrap();
    }
    let mut child = own.spawn(&inner, "exec tail /dev/zero");
    assert!(!child.wait().unwrap().success());
    for path in [&inner, &outer] {
        assert!(own.0.stat(path).unwrap().unwrap().oom_kills >= 1, "{path}");
    }
}

#[test]
fn cpusets_are_narrowed_and_widened_on_the_kernel() {
    let own = Own::new();
    let (outer, inner) = (own.path("a"), own.path("a/b"));
    own.0.ensure(&inner, &Limits::default()).unwrap();
    for cpuset in [Some("0".to_owned()), None, Some("0".to_owned())] {
        match own.0.ensure(&outer, &Limits { cpuset, ..Limits::default() }) {
            Err(Error::Unsupported { .. }) => return, // no cpuset controller here
            other => other.unwrap(),
        }
    }
}

#[test]
fn io_limits_name_the_whole_disk() {
    let own = Own::new();
    let path = own.path("a");
    let Some(disk) = ["/dev/vda", "/dev/sda", "/dev/nvme0n1"].into_iter().find(|disk| Path::new(disk).exists()) else {
        return;
    };
    let limit = IoLimit { device: disk.to_owned(), read_bytes_per_second: Some(1 << 20), ..IoLimit::default() };
    match own.0.ensure(&path, &Limits { io: vec![limit], ..Limits::default() }) {
        // No such controller, or its throttling is not built in.
        Err(Error::Unsupported { .. }) => return,
        other => other.unwrap(),
    }
    own.0.ensure(&path, &Limits::default()).unwrap();
    let file = match own.0.version() {
        Version::V1 => "blkio.throttle.read_bps_device",
        Version::V2 => "io.max",
    };
    assert_eq!(std::fs::read_to_string(own.dir("blkio", &path).join(file)).unwrap(), "", "lifted");
}

/// Without controllers version 2 still makes, lists, kills and removes.
#[test]
fn version_2_beside_version_1() {
    let root = Path::new(ROOT).join("unified");
    if !root.join("cgroup.procs").exists() {
        return;
    }
    let parent = CgroupPath::new(format!("/nodelet-test-{}", uuid::Uuid::new_v4().simple())).unwrap();
    let own = Own(LinuxCgroups::with_version(&root, parent, Version::V2));
    let path = own.path("a/b");
    own.0.ensure(&path, &Limits::default()).unwrap();
    let limited = own.0.ensure(&path, &Limits { pids_max: Some(5), ..Limits::default() });
    assert!(matches!(limited, Err(Error::Unsupported { .. })));
    let procs = root.join(&path.as_str()[1..]).join("cgroup.procs");
    let mut child =
        Command::new("sh").arg("-c").arg(format!("echo $$ > {} && exec sleep 1000", procs.display())).spawn().unwrap();
    while own.0.pids(&own.path("a")).unwrap() != [child.id()] {
        std::thread::yield_now();
    }
    assert_eq!(own.0.stat(&path).unwrap().unwrap().pids, 1);
    own.0.remove(own.0.parent()).unwrap();
    child.wait().unwrap();
    assert!(own.0.list().unwrap().is_empty());
}
