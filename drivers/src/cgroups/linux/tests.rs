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

/// Where systemd runs; the virtual machine of `tests/bin/vm systemd` sees to that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_keep_the_contract() {
    if !super::super::systemd::is_running() {
        #[allow(clippy::print_stderr)] // shown by the test runner
        {
            eprintln!("not tested: systemd does not run here");
        }
        return;
    }
    let run = || {
        let own = Own(LinuxCgroups::new(ROOT, CgroupPath::new("/nodelet_conformance.slice").unwrap()));
        conformance::run(&own.0);
        let (outer, limits) = (own.0.parent.below("outer").unwrap(), Limits { pids_max: Some(9), ..Limits::default() });
        let inner = outer.below("inner").unwrap();
        own.0.ensure(&inner, &Limits::default()).unwrap();
        own.0.ensure(&outer, &limits).unwrap();
        let mut child = own.spawn(&inner, "exec sleep 1000");
        while own.0.pids(&inner).unwrap().is_empty() {
            std::thread::yield_now();
        }
        own.0.remove(&outer).unwrap();
        child.wait().unwrap();
        assert_eq!(own.0.list().unwrap(), [], "with what ran in it");
    };
    tokio::task::spawn_blocking(run).await.unwrap();
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
                other => assert_eq!(other.unwrap(), None),
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
fn a_limit_below_the_use_kills_nobody_and_is_set_once_it_can_be() {
    let own = Own::new();
    let path = own.path("a");
    let limits = |mib: u64| Limits { memory_max: Some(mib << 20), ..Limits::default() };
    assert_eq!(own.0.ensure(&path, &limits(64)).unwrap(), None);
    // Files in memory, which nothing but their removal gives back.
    let file = Path::new("/dev/shm").join(&own.0.parent.as_str()[1..]);
    let script = format!("dd if=/dev/zero of={} bs=1M count=24 2>/dev/null && exec sleep 1000", file.display());
    let mut child = own.spawn(&path, &script);
    let used = || own.0.stat(&path).unwrap().unwrap().memory_bytes;
    while used() < 24 << 20 {
        std::thread::yield_now();
    }
    for wanted in [16, 8] {
        let excess = own.0.ensure(&path, &limits(wanted)).unwrap().expect("more is used");
        assert_eq!((excess.wanted, excess.in_force), (wanted << 20, Some(64 << 20)));
        assert!(excess.used >= 24 << 20);
        assert_eq!(own.0.lower_memory(&path, wanted << 20, None).unwrap().map(|e| e.wanted), Some(wanted << 20));
    }
    assert_eq!(child.try_wait().unwrap(), None, "nobody was killed");
    std::fs::remove_file(&file).unwrap();
    // Whoever wrote it may have it open yet.
    while own.0.ensure(&path, &limits(8)).unwrap().is_some() {
        std::thread::yield_now();
    }
    assert_eq!(own.0.lower_memory(&path, 8 << 20, None).unwrap(), None);
    assert_eq!(own.0.stat(&path).unwrap().unwrap().oom_kills, 0);
    child.kill().unwrap();
    child.wait().unwrap();
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
            other => assert_eq!(other.unwrap(), None),
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
        other => assert_eq!(other.unwrap(), None),
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
