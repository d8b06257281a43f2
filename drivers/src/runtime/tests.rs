//! The runtime on a real containerd: what the fake cannot have.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::conformance::{self, Fixture, exit, get, next, wait_for};
use super::*;
use crate::cgroups::IoLimit;
use crate::testing::{BUSYBOX, PrivateContainerd, leave_out};

mod anchors;

struct Node {
    containerd: PrivateContainerd,
    runtime: ContainerdRuntime,
    fixture: Fixture,
}

async fn node() -> Node {
    let containerd = PrivateContainerd::start().await;
    containerd.import_busybox();
    let runtime = runtime_of(&containerd);
    let fixture = Fixture::new(BUSYBOX, containerd.cgroup_parent());
    Node { containerd, runtime, fixture }
}

fn runtime_of(containerd: &PrivateContainerd) -> ContainerdRuntime {
    let (run_dir, logger) = (containerd.dir().join("run"), containerd.dir().join("logger"));
    ContainerdRuntime::new(containerd.containerd(), Options { run_dir, logger, ..Options::default() })
}

impl Node {
    async fn run(&self, spec: &ContainerSpec) -> u32 {
        self.runtime.create(spec).await.unwrap();
        self.runtime.start(&spec.id).await.unwrap().pid
    }

    /// Output of a script in the container.
    async fn sh(&self, id: &ContainerId, script: &str) -> String {
        let command = vec!["sh".to_owned(), "-c".to_owned(), format!("({script}) 2>&1")];
        let spec = ExecSpec { command, timeout: Some(Duration::from_secs(10)) };
        String::from_utf8(self.runtime.exec(id, &spec).await.unwrap().output).unwrap().trim().to_owned()
    }

    fn ctr(&self, line: &str) -> String {
        self.containerd.ctr(line.split(' '))
    }
}

fn shims(namespace: &str) -> usize {
    let is_shim = |entry: std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&command).replace('\0', " ");
        text.contains("shim-runc-v2 -namespace") && text.contains(&format!("-namespace {namespace} "))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| is_shim(entry).then_some(())).count()
}

#[tokio::test]
async fn conforms() {
    let node = node().await;
    conformance::all(&node.runtime, &node.fixture).await;
    assert!(node.ctr("snapshots list").lines().all(|line| !line.contains("Active")));
}

#[tokio::test]
async fn a_container_is_confined() {
    let node = node().await;
    let mut spec = node.fixture.spec("c", "sleep 1000");
    spec.security.run_as_user = Some(1000);
    spec.env = vec![("OWN".to_owned(), "a b".to_owned())];
    spec.ulimits = vec![("nofile".to_owned(), 100, 200)];
    spec.limits = Limits { memory_max: Some(32 << 20), pids_max: Some(40), cpu_millis: Some(500), ..Limits::default() };
    spec.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into();
    spec.mounts = vec![
        Mount {
            destination: "/data".to_owned(),
            source: MountSource::Bind(node.containerd.dir().to_owned()),
            read_only: true,
            propagation: String::new(),
        },
        Mount {
            destination: "/scratch".to_owned(),
            source: MountSource::Tmpfs(Some(1 << 20)),
            read_only: false,
            propagation: String::new(),
        },
    ];
    node.run(&spec).await;
    assert_eq!(node.sh(&spec.id, "id").await, "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)");
    assert_eq!(node.sh(&spec.id, "echo $HOME $FROM_IMAGE $OWN $(pwd)").await, "/home/app 1 a b /tmp");
    // Not the soft one: runc 1.1 sometimes sets it before its own runtime raises it.
    assert_eq!(node.sh(&spec.id, "ulimit -Hn").await, "200");
    assert_eq!(node.sh(&spec.id, "sysctl -n net.ipv4.ip_unprivileged_port_start").await, "80");
    let status = node.sh(&spec.id, "grep -E '^(CapBnd|Seccomp|NoNewPrivs):' /proc/self/status").await;
    let status: Vec<&str> = status.split_whitespace().collect();
    assert_eq!(status, ["CapBnd:", "00000000a80425fb", "NoNewPrivs:", "1", "Seccomp:", "2"]);
    assert!(node.sh(&spec.id, "touch /data/x").await.contains("Read-only file system"));
    assert!(node.sh(&spec.id, "grep ' /scratch ' /proc/mounts").await.contains("size=1024k"));
    assert!(node.sh(&spec.id, "unshare -U true").await.contains("Operation not permitted"));
    assert_eq!(node.sh(&spec.id, "cat /proc/kcore | wc -c").await.lines().last(), Some("0"));
    let root = Path::new("/sys/fs/cgroup");
    let file = match crate::cgroups::detect(root) {
        crate::cgroups::Version::V1 => {
            root.join("memory").join(&spec.cgroup.as_str()[1..]).join("memory.limit_in_bytes")
        }
        crate::cgroups::Version::V2 => root.join(&spec.cgroup.as_str()[1..]).join("memory.max"),
    };
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), (32 << 20).to_string());
    let limits = Limits { memory_max: Some(48 << 20), ..Limits::default() };
    node.runtime.update_limits(&spec.id, &limits).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), (48 << 20).to_string());
    node.runtime.remove(&spec.id).await.unwrap();
}

/// Neither is what the OCI runtime changes under a running container.
#[tokio::test]
async fn io_and_huge_pages_are_limited_and_set_free_while_it_runs() {
    let is_disk = |entry: &std::fs::DirEntry| Path::new("/dev").join(entry.file_name()).exists();
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let Some(disk) = disks.into_iter().find(is_disk) else { return leave_out("a disk with a node in /dev") };
    let number = std::fs::read_to_string(disk.path().join("dev")).unwrap().trim().to_owned();
    let device = format!("/dev/{}", disk.file_name().to_string_lossy());
    let node = node().await;
    let mut spec = node.fixture.spec("io", "sleep 1000");
    let io = |read, write| IoLimit {
        device: device.clone(),
        read_bytes_per_second: read,
        write_iops: write,
        ..IoLimit::default()
    };
    spec.limits.io = vec![io(Some(8 << 20), None)];
    node.run(&spec).await;
    let root = Path::new("/sys/fs/cgroup");
    let own = &spec.cgroup.as_str()[1..];
    let (io_files, pages) = match crate::cgroups::detect(root) {
        crate::cgroups::Version::V1 => (
            ["read_bps", "write_iops"]
                .map(|kind| root.join("blkio").join(own).join(format!("blkio.throttle.{kind}_device")))
                .to_vec(),
            root.join("hugetlb").join(own).join("hugetlb.2MB.limit_in_bytes"),
        ),
        crate::cgroups::Version::V2 => (vec![root.join(own).join("io.max")], root.join(own).join("hugetlb.2MB.max")),
    };
    let told = || {
        let lines: String = io_files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        let of_disk = lines.lines().filter_map(|line| line.strip_prefix(&number)?.strip_prefix(' '));
        of_disk.collect::<Vec<_>>().join(" ")
    };
    let is_v1 = io_files.len() == 2;
    assert_eq!(told(), if is_v1 { "8388608" } else { "rbps=8388608 wbps=max riops=max wiops=max" });
    let has_pages = pages.exists();
    if !has_pages {
        leave_out("limits of huge pages of 2 MiB");
    }
    let mut limits = Limits { io: vec![io(None, Some(200))], ..Limits::default() };
    if has_pages {
        limits.hugepages.insert("2MB".to_owned(), 4 << 20);
    }
    node.runtime.update_limits(&spec.id, &limits).await.unwrap();
    assert_eq!(told(), if is_v1 { "200" } else { "rbps=max wbps=max riops=max wiops=200" });
    let page_limit = || std::fs::read_to_string(&pages).unwrap();
    assert!(!has_pages || page_limit().trim() == (4 << 20).to_string());
    node.runtime.update_limits(&spec.id, &Limits::default()).await.unwrap();
    assert_eq!(told(), "");
    assert!(!has_pages || page_limit().trim() != (4 << 20).to_string());
    node.runtime.remove(&spec.id).await.unwrap();
}

#[tokio::test]
async fn the_writable_layer_is_found() {
    let node = node().await;
    let spec = node.fixture.spec("w", "sleep 1000");
    assert_eq!(node.runtime.writable_layer(&spec.id).await.unwrap(), None);
    node.run(&spec).await;
    node.sh(&spec.id, "echo changed >/file").await;
    let layer = node.runtime.writable_layer(&spec.id).await.unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(layer.join("file")).unwrap(), "changed\n");
    assert!(!layer.join("bin").exists(), "the image's own files are not in it");
    node.runtime.remove(&spec.id).await.unwrap();
}

#[tokio::test]
async fn users_of_the_image_are_found_and_root_can_be_refused() {
    let node = node().await;
    let mut spec = node.fixture.spec("u", "sleep 1000");
    spec.security.run_as_non_root = true;
    let error = node.runtime.create(&spec).await.unwrap_err();
    assert!(error.to_string().starts_with("securityContext.runAsNonRoot"), "{error}");
    node.runtime.remove(&spec.id).await.unwrap();
    // With the users of the image known, the refusal comes before anything is made.
    assert!(node.runtime.create(&spec).await.is_err());
    assert_eq!(node.runtime.get(&spec.id).await.unwrap(), None);
}

#[tokio::test]
async fn one_shim_serves_a_sandbox_and_ends_with_it() {
    let node = node().await;
    let specs: Vec<_> = ["a", "b", "c"].map(|id| node.fixture.spec(id, "sleep 1000")).into();
    for spec in &specs {
        node.run(spec).await;
    }
    assert_eq!(shims(&node.containerd.namespace()), 1);
    for spec in &specs {
        node.runtime.remove(&spec.id).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while shims(&node.containerd.namespace()) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(shims(&node.containerd.namespace()), 0);
}

#[tokio::test]
async fn memory_kills_are_told_apart() {
    let node = node().await;
    let mut events = node.runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let mut spec = node.fixture.spec("oom", "dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.limits = Limits { memory_max: Some(16 << 20), swap_max: Some(0), ..Limits::default() };
    node.run(&spec).await;
    wait_for(&mut events, &spec.id, "exit").await;
    assert!(exit(&get(&node.runtime, &spec.id).await).oom_killed);
    // Another agent, which has not seen it, reads it from the cgroup.
    assert!(exit(&get(&runtime_of(&node.containerd), &spec.id).await).oom_killed);
    node.runtime.remove(&spec.id).await.unwrap();
}

#[tokio::test]
async fn deeds_of_others_are_noticed_and_cleared() {
    let node = node().await;
    let mut events = node.runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let spec = node.fixture.spec("ext", "sleep 1000");
    node.run(&spec).await;
    node.ctr("tasks kill --signal SIGKILL ext");
    wait_for(&mut events, &spec.id, "exit").await;
    assert_eq!(exit(&get(&node.runtime, &spec.id).await).code, 137);
    node.ctr("tasks delete ext");
    wait_for(&mut events, &spec.id, "delete").await;
    node.ctr("images tag nodelet.test/busybox:1 nodelet.test/other:1");
    assert_eq!(next(&mut events).await, RuntimeEvent::Image { name: "nodelet.test/other:1".to_owned() });
    node.runtime.remove(&spec.id).await.unwrap();
    wait_for(&mut events, &spec.id, "delete").await;
}

#[tokio::test]
async fn a_task_whose_record_was_deleted_is_cleared() {
    let node = node().await;
    let spec = node.fixture.spec("bare", "sleep 1000");
    let pid = node.run(&spec).await;
    assert_eq!(node.runtime.list().await.unwrap().len(), 1);
    delete_record(&node, &spec.id).await;
    assert_eq!(node.runtime.list().await.unwrap().len(), 1, "known to this agent, so it is shown");
    assert_eq!(node.runtime.list().await.unwrap()[0].state, TaskState::Unknown);
    node.runtime.remove(&spec.id).await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(node.runtime.list().await.unwrap().is_empty());

    let pid = node.run(&spec).await;
    delete_record(&node, &spec.id).await;
    let other = runtime_of(&node.containerd);
    let freed = other.sweep().await.unwrap();
    assert!(freed[0].contains("task bare"), "{freed:?}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

async fn delete_record(node: &Node, id: &ContainerId) {
    let containerd = node.containerd.containerd();
    let message = containerd_client::services::v1::DeleteContainerRequest { id: id.to_string() };
    containerd.containers().delete(containerd.request(message)).await.unwrap();
}

#[tokio::test]
async fn containers_outlive_the_daemon() {
    let mut node = node().await;
    let mut events = node.runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let stays = node.fixture.spec("stays", "sleep 1000");
    let mut dies = node.fixture.spec("dies", "sleep 1000");
    dies.sandbox = "other".parse().unwrap();
    let pid = node.run(&stays).await;
    node.run(&dies).await;
    node.containerd.kill();
    assert!(matches!(node.runtime.list().await, Err(Error::Unavailable { .. })));
    // Signals and exits do not need the daemon.
    node.runtime.kill(&dies.id, "SIGKILL", false).await.unwrap();
    wait_for(&mut events, &dies.id, "exit").await;
    node.containerd.restart().await;
    while next(&mut events).await != RuntimeEvent::Resync {}
    assert_eq!(get(&node.runtime, &stays.id).await.state, TaskState::Running { pid });
    // Newer daemons forget how it ended; where the kernel tells, we still know.
    match get(&node.runtime, &dies.id).await.state {
        TaskState::Exited(exit) => assert_eq!(exit.code, 137),
        TaskState::Absent => assert!(!super::exits::pidfd::is_supported()),
        state => panic!("{state:?}"),
    }
    for spec in [stays, dies] {
        node.runtime.remove(&spec.id).await.unwrap();
    }
    assert_eq!(node.runtime.sweep().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_new_agent_finds_running_containers() {
    let node = node().await;
    let spec = node.fixture.spec("old", "sleep 1000");
    let pid = node.run(&spec).await;
    let other = runtime_of(&node.containerd);
    let mut events = other.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    assert_eq!(other.list().await.unwrap()[0].state, TaskState::Running { pid });
    other.kill(&spec.id, "SIGKILL", false).await.unwrap();
    wait_for(&mut events, &spec.id, "exit").await;
    assert_eq!(exit(&get(&other, &spec.id).await).code, 137);
    other.remove(&spec.id).await.unwrap();
}

#[tokio::test]
async fn an_abandoned_creation_goes_on() {
    let node = node().await;
    let spec = node.fixture.spec("hasty", "sleep 1000");
    let _ = tokio::time::timeout(Duration::from_millis(5), node.runtime.create(&spec)).await;
    node.runtime.drain().await;
    assert!(matches!(get(&node.runtime, &spec.id).await.state, TaskState::Created { .. }));
    node.runtime.remove(&spec.id).await.unwrap();
    assert_eq!(node.runtime.sweep().await.unwrap(), Vec::<String>::new());
}

/// Starts a shim as a client leaves it that dies in the middle of a creation.
async fn lose_shim(node: &Node) {
    let shim = std::env::var_os(crate::testing::CONTAINERD_VARIABLE)
        .and_then(|path| Some(Path::new(&path).parent()?.join("containerd-shim-runc-v2")))
        .unwrap_or_else(|| "/usr/bin/containerd-shim-runc-v2".into());
    let bundle = node.containerd.state_dir().join("io.containerd.runtime.v2.task").join(node.containerd.namespace());
    let bundle = bundle.join("lost");
    std::fs::create_dir_all(&bundle).unwrap();
    std::fs::write(bundle.join("config.json"), "{}").unwrap();
    // A shim does not start without somebody who reads its log.
    rustix::fs::mkfifoat(rustix::fs::CWD, bundle.join("log"), rustix::fs::Mode::RWXU).unwrap();
    let log = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(bundle.join("log"))
        .unwrap();
    let status = std::process::Command::new(shim)
        .current_dir(&bundle)
        .args(["-namespace", &node.containerd.namespace(), "-id", "lost", "-address"])
        .arg(node.containerd.address())
        .args(["-publish-binary", "/usr/bin/containerd", "start"])
        .env("TTRPC_ADDRESS", format!("{}.ttrpc", node.containerd.address().display()))
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    // It reads its directory while it starts, and is done when it looks for signals; newer ones do not say so.
    let _quiet = tokio::time::timeout(Duration::from_millis(500), async {
        let mut told = Vec::new();
        while !String::from_utf8_lossy(&told).contains("starting signal loop") {
            let mut part = [0; 4096];
            match rustix::io::read(&log, &mut part) {
                Ok(length) => told.extend_from_slice(&part[..length]),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await;
    std::fs::remove_dir_all(&bundle).unwrap();
    drop(log);
}

#[tokio::test]
async fn what_crashes_leave_is_swept() {
    let node = node().await;
    let kept = node.fixture.spec("kept", "sleep 1000");
    node.run(&kept).await;
    lose_shim(&node).await;
    assert_eq!(shims(&node.containerd.namespace()), 2);
    let freed = node.runtime.sweep().await.unwrap();
    assert_eq!(freed.len(), 1, "{freed:?}");
    assert!(freed[0].starts_with("shim lost"), "{freed:?}");
    assert_eq!(shims(&node.containerd.namespace()), 1);
    // While containers are made, one look is not enough.
    lose_shim(&node).await;
    assert_eq!(node.runtime.end_orphan_shims().await, Vec::<String>::new());
    assert_eq!(shims(&node.containerd.namespace()), 2);
    let freed = node.runtime.end_orphan_shims().await;
    assert_eq!(freed.len(), 1, "{freed:?}");
    assert_eq!(shims(&node.containerd.namespace()), 1);
    assert_eq!(node.runtime.end_orphan_shims().await, Vec::<String>::new());
    assert!(matches!(get(&node.runtime, &kept.id).await.state, TaskState::Running { .. }));
    node.runtime.remove(&kept.id).await.unwrap();
}

#[tokio::test]
async fn sandboxes_share_the_shims_of_a_pool_also_after_a_restart() {
    let node = node().await;
    let pooled = || {
        let (run_dir, logger) = (node.containerd.dir().join("run"), node.containerd.dir().join("logger"));
        let options = Options { run_dir, logger, shim_pool: 3, ..Options::default() };
        ContainerdRuntime::new(node.containerd.containerd(), options)
    };
    let open = 2 * std::thread::available_parallelism().unwrap().get();
    let in_sandbox = |id: &str, sandbox: &str| {
        let mut spec = node.fixture.spec(id, "sleep 1000");
        spec.sandbox = SandboxId::new(sandbox).unwrap();
        spec
    };
    let runtime = pooled();
    let mut pids = Vec::new();
    for n in 0..2 * open {
        let spec = in_sandbox(&format!("c{n}"), &format!("pooled{n}"));
        runtime.create(&spec).await.unwrap();
        pids.push(runtime.start(&spec.id).await.unwrap().pid);
    }
    let full = (2 * open).div_ceil(3);
    assert_eq!(shims(&node.containerd.namespace()), full);
    // The agent of after a restart finds the place that is left, and a second container of a sandbox its first.
    let runtime = pooled();
    runtime.list().await.unwrap();
    for (id, sandbox) in [("last", "pooled-last"), ("second", "pooled0")] {
        let spec = in_sandbox(id, sandbox);
        runtime.create(&spec).await.unwrap();
        pids.push(runtime.start(&spec.id).await.unwrap().pid);
    }
    assert_eq!(shims(&node.containerd.namespace()), full);
    assert_eq!(shim_of(*pids.last().unwrap()), shim_of(pids[0]));
    for container in runtime.list().await.unwrap() {
        runtime.remove(&container.id).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while shims(&node.containerd.namespace()) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(shims(&node.containerd.namespace()), 0);
}

/// Pid of the parent of a container's first process: its shim.
fn shim_of(pid: u32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_dead_shim_takes_its_sandbox_and_nothing_else() {
    let node = node().await;
    let mut events = node.runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let (a, b) = (node.fixture.spec("a", "sleep 1000"), node.fixture.spec("b", "sleep 1000"));
    let mut other = node.fixture.spec("other", "sleep 1000");
    other.sandbox = "other".parse().unwrap();
    let pid = node.run(&a).await;
    node.run(&b).await;
    let other_pid = node.run(&other).await;
    let shim = rustix::process::Pid::from_raw(shim_of(pid)).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    for spec in [&a, &b] {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let state = get(&node.runtime, &spec.id).await.state;
            if matches!(state, TaskState::Exited(_) | TaskState::Absent) {
                break;
            }
            assert!(Instant::now() < deadline, "{state:?}");
            let _ = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
        }
        node.runtime.remove(&spec.id).await.unwrap();
    }
    assert_eq!(get(&node.runtime, &other.id).await.state, TaskState::Running { pid: other_pid });
    // The sandbox gets a new shim.
    for spec in [&a, &b] {
        node.run(spec).await;
    }
    assert_eq!(shims(&node.containerd.namespace()), 2);
    for spec in [&a, &b, &other] {
        node.runtime.remove(&spec.id).await.unwrap();
    }
    assert_eq!(node.runtime.sweep().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn successors_follow_at_once() {
    let node = node().await;
    let mut events = node.runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    // Its shim ends with each of them, while the next one is being made.
    for attempt in 0..10 {
        let spec = node.fixture.spec(&format!("alone-{attempt}"), "sleep 1000");
        node.run(&spec).await;
        node.runtime.kill(&spec.id, "KILL", false).await.unwrap();
        wait_for(&mut events, &spec.id, "exit").await;
        assert_eq!(exit(&get(&node.runtime, &spec.id).await).code, 137);
        node.runtime.remove(&spec.id).await.unwrap();
    }
    assert!(node.runtime.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn output_goes_to_the_logger() {
    use std::os::unix::fs::PermissionsExt as _;
    let node = node().await;
    let logger = node.containerd.dir().join("logger");
    // Without PATH, as the shim runs it; says it is ready by closing descriptor 5.
    let script = "#!/bin/sh\nexec 5>&-\nwhile [ $# -gt 1 ]; do [ \"$1\" = path ] && out=$2; shift 2; done\n\
                  /bin/cat <&3 >>\"$out\" &\n/bin/cat <&4 >>\"$out\" &\nexec 3<&- 4<&-\nwait\n";
    std::fs::write(&logger, script).unwrap();
    std::fs::set_permissions(&logger, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = node.containerd.dir().join("logs/a b/0.log");
    let mut spec = node.fixture.spec("talks", "echo out; echo err >&2; exit 0");
    spec.log = LogTarget::File { path: path.clone(), max_size: 1 << 20, max_files: 2 };
    node.run(&spec).await;
    node.runtime.remove(&spec.id).await.unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains("out\n") && text.contains("err\n"), "{text:?}");
}

#[tokio::test]
async fn many_at_once() {
    let node = node().await;
    let mut events = node.runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let specs: Vec<_> = (0..12)
        .map(|n| {
            let mut spec = node.fixture.spec(&format!("n{n}"), "exit 5");
            spec.sandbox = format!("s{}", n / 3).parse().unwrap();
            spec
        })
        .collect();
    futures::future::join_all(specs.iter().map(|spec| node.run(spec))).await;
    for spec in &specs {
        // A hint may have come and gone before; the state is the truth.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(get(&node.runtime, &spec.id).await.state, TaskState::Exited(_)) && Instant::now() < deadline {
            let _ = tokio::time::timeout(Duration::from_millis(100), events.recv()).await;
        }
        assert_eq!(exit(&get(&node.runtime, &spec.id).await).code, 5);
    }
    futures::future::join_all(specs.iter().map(|spec| node.runtime.remove(&spec.id))).await;
    assert!(node.runtime.list().await.unwrap().is_empty());
    assert_eq!(node.runtime.sweep().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn privileged_reaches_the_node() {
    let node = node().await;
    let mut spec = node.fixture.spec("priv", "sleep 1000");
    spec.security.privileged = true;
    spec.namespaces = Namespaces {
        net: Namespace::Host,
        ipc: Namespace::Host,
        uts: Namespace::Host,
        pid: Namespace::Host,
        user: None,
    };
    node.run(&spec).await;
    assert_eq!(node.sh(&spec.id, "ls /dev/null /dev/kmsg").await, "/dev/kmsg\n/dev/null");
    assert_eq!(node.sh(&spec.id, "grep ^Seccomp: /proc/self/status | tr -d '\\t'").await, "Seccomp:0");
    assert_eq!(node.sh(&spec.id, "mount -t tmpfs x /tmp && echo mounted").await, "mounted");
    node.runtime.remove(&spec.id).await.unwrap();
}

/// systemd moves processes out of the hierarchies that it manages (here by hand), the only one that the OCI runtime of version 1
/// looks into among them.
#[tokio::test]
async fn who_was_moved_out_of_a_hierarchy_is_killed_all_the_same() {
    let devices = Path::new("/sys/fs/cgroup/devices");
    if !devices.join("cgroup.procs").exists() {
        return;
    }
    let node = node().await;
    let spec = node.fixture.spec("moved", "trap '' TERM; sleep 1000 & wait; sleep 1000");
    let pid = node.run(&spec).await;
    let mut events = node.runtime.events();
    let own = devices.join(&spec.cgroup.as_str()[1..]);
    let procs = own.join("cgroup.procs");
    let inside = || std::fs::read_to_string(&procs).unwrap();
    while let Some(pid) = inside().lines().next() {
        // A process may have ended meanwhile.
        let _ = std::fs::write(own.parent().unwrap().join("cgroup.procs"), pid);
    }
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    node.runtime.kill(&spec.id, "SIGKILL", true).await.unwrap();
    wait_for(&mut events, &spec.id, "exit").await;
    node.runtime.remove(&spec.id).await.unwrap();
    assert!(!own.exists());
}
