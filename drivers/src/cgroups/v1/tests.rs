use super::super::CpuShare;
use super::*;

/// Directories that look like hierarchies, since the kernel makes no files in them.
fn with_files(files: &[(&str, &str)]) -> (tempfile::TempDir, Hierarchies, CgroupPath) {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        let controller = name.split('/').next().unwrap();
        if controller != "unified" {
            std::fs::write(root.path().join(controller).join("cgroup.procs"), "").unwrap();
        }
    }
    let hierarchies = Hierarchies { root: root.path().to_owned(), sysfs: "/nonexistent".into() };
    (root, hierarchies, CgroupPath::new("/n/a").unwrap())
}

fn text(root: &tempfile::TempDir, file: &str) -> String {
    std::fs::read_to_string(root.path().join(file)).unwrap()
}

#[test]
fn limits_are_written_as_the_kernel_wants_them_and_lifted() {
    let (root, hierarchies, path) = with_files(&[
        ("cpu/n/a/cpu.shares", ""),
        ("cpu/n/a/cpu.cfs_period_us", ""),
        ("cpu/n/a/cpu.cfs_quota_us", ""),
        ("pids/n/a/pids.max", ""),
        ("memory/n/a/memory.limit_in_bytes", "9223372036854771712"),
        ("memory/n/a/memory.memsw.limit_in_bytes", "9223372036854771712"),
        ("memory/n/a/memory.soft_limit_in_bytes", ""),
    ]);
    let limits = Limits {
        cpu_millis: Some(250),
        cpu_share: Some(CpuShare::Weight(10_000)),
        memory_max: Some(1 << 30),
        memory_low: Some(5),
        swap_max: Some(1 << 20),
        pids_max: Some(7),
        ..Limits::default()
    };
    let files = [
        "cpu/n/a/cpu.shares",
        "cpu/n/a/cpu.cfs_period_us",
        "cpu/n/a/cpu.cfs_quota_us",
        "pids/n/a/pids.max",
        "memory/n/a/memory.limit_in_bytes",
        "memory/n/a/memory.memsw.limit_in_bytes",
        "memory/n/a/memory.soft_limit_in_bytes",
    ];
    hierarchies.ensure(&path, &limits).unwrap();
    let expected = ["262144", "100000", "25000", "7", "1073741824", "1074790400", "5"];
    assert_eq!(files.map(|file| text(&root, file)), expected);
    hierarchies.ensure(&path, &Limits::default()).unwrap();
    let expected = ["1024", "100000", "-1", "max", "-1", "-1", "-1"];
    assert_eq!(files.map(|file| text(&root, file)), expected);
}

#[test]
fn what_version_1_cannot_do_is_said_after_the_rest_is_done() {
    let (root, hierarchies, path) = with_files(&[("pids/n/a/pids.max", "")]);
    let limits = Limits { memory_high: Some(1), pids_max: Some(7), ..Limits::default() };
    let error = hierarchies.ensure(&path, &limits).unwrap_err();
    assert_eq!(error.to_string(), "cgroup /n/a: memory.high needs cgroup version 2");
    assert_eq!(text(&root, "pids/n/a/pids.max"), "7");
    let (_root, hierarchies, path) = with_files(&[("memory/n/a/memory.limit_in_bytes", "")]);
    for limits in [
        Limits { swap_max: Some(0), ..Limits::default() },
        Limits { swap_max: Some(0), memory_max: Some(5), ..Limits::default() },
        Limits { cpu_millis: Some(5), ..Limits::default() },
    ] {
        assert!(matches!(hierarchies.ensure(&path, &limits), Err(Error::Unsupported { .. })), "{limits:?}");
    }
}

#[test]
fn cpusets_are_filled_before_use_and_change_with_their_parents() {
    let (root, hierarchies, path) = with_files(&[
        ("cpuset/cpuset.cpus", "0-3\n"),
        ("cpuset/cpuset.mems", "0\n"),
        ("cpuset/n/cpuset.cpus", "\n"),
        ("cpuset/n/a/inner/cpuset.cpus", "0-3\n"),
        ("cpuset/n/a/fixed/cpuset.cpus", "1\n"),
    ]);
    let set = |cpus: Option<&str>| {
        hierarchies.ensure(&path, &Limits { cpuset: cpus.map(str::to_owned), ..Limits::default() }).unwrap();
        ["n", "n/a", "n/a/inner", "n/a/fixed"]
            .map(|at| text(&root, &format!("cpuset/{at}/cpuset.cpus")).trim().to_owned())
    };
    assert_eq!(set(None), ["0-3", "0-3", "0-3", "1"]);
    assert_eq!(text(&root, "cpuset/n/a/cpuset.mems"), "0");
    assert_eq!(set(Some("0-1")), ["0-3", "0-1", "0,1", "1"]);
    assert_eq!(set(Some("2")), ["0-3", "2", "2", "2"]);
    assert_eq!(set(None), ["0-3", "0-3", "0-3", "0-3"]);
}

#[test]
fn io_limits_of_other_devices_are_lifted() {
    let (root, hierarchies, path) = with_files(&[("blkio/n/a/blkio.throttle.read_bps_device", "8:0 100\n")]);
    hierarchies.ensure(&path, &Limits::default()).unwrap();
    assert_eq!(text(&root, "blkio/n/a/blkio.throttle.read_bps_device"), "8:0 0");
}

#[test]
fn use_is_read_from_every_controller() {
    let (_root, hierarchies, path) = with_files(&[
        ("cpuacct/n/a/cpuacct.usage", "5000\n"),
        ("cpu/n/a/cpu.stat", "nr_throttled 1\nthrottled_time 9000\n"),
        ("memory/n/a/memory.usage_in_bytes", "4096\n"),
        ("memory/n/a/memory.stat", "inactive_file 1\ntotal_inactive_file 1024\n"),
        ("memory/n/a/memory.oom_control", "oom_kill_disable 0\noom_kill 1\n"),
        ("memory/n/a/inner/memory.oom_control", "oom_kill 2\n"),
        ("pids/n/a/pids.current", "3\n"),
    ]);
    let expected =
        Stat { cpu_usec: 5, throttled_usec: 9, memory_bytes: 4096, inactive_file_bytes: 1024, pids: 3, oom_kills: 3 };
    assert_eq!(hierarchies.stat(&path).unwrap(), Some(expected));
}

#[test]
fn weights_become_shares_and_lists_become_numbers() {
    let shares = [1, 100, 10_000, 0].map(|weight| CpuShare::Weight(weight).shares());
    assert_eq!(shares, [2, 2597, 262_144, 2]);
    assert_eq!(cpu_list("0-2,4\n"), BTreeSet::from([0, 1, 2, 4]));
    assert_eq!(cpu_list("\n"), BTreeSet::new());
}

#[test]
fn a_directory_without_the_files_of_a_hierarchy_is_none() {
    // crun writes such a file where version 2 is known to the kernel and not mounted.
    let (root, hierarchies, path) = with_files(&[("cpu/n/a/cpu.shares", ""), ("unified/n/a/cgroup.procs", "")]);
    let groups = hierarchies.groups(&path);
    assert_eq!(groups.iter().map(|group| group.dir.clone()).collect::<Vec<_>>(), [root.path().join("cpu/n/a")]);
}
