//! Shared shims that containerd is told to use, and what becomes of their containers when one dies.

use std::path::PathBuf;

use containerd_client::services::v1::sandbox::StoreListRequest;

use super::*;

/// A containerd 2.x, or the one that is asked for, and the program that sleeps in anchors, where this machine has both.
async fn pooled_node() -> Option<Node> {
    pooled_node_with(None).await
}

/// With another OCI runtime than containerd's own choice.
async fn pooled_node_with(oci_runtime: Option<&str>) -> Option<Node> {
    let newer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/containerd-2/bin/containerd");
    let containerd = std::env::var_os(crate::testing::CONTAINERD_VARIABLE).map_or(newer, PathBuf::from);
    if !containerd.exists() || !program().exists() {
        eprintln!("left out: it needs tests/bin/fetch-containerd and `make build`");
        return None;
    }
    let containerd = PrivateContainerd::start_with(containerd).await;
    containerd.import_busybox();
    let runtime = runtime_with(&containerd, 3, oci_runtime);
    let version = runtime.info().await.unwrap().version;
    if !super::super::info::at_least(&version, (1, 7)) {
        eprintln!("left out: containerd {version} knows no anchors");
        return None;
    }
    let fixture = Fixture::new(BUSYBOX, containerd.cgroup_parent());
    Some(Node { containerd, runtime, fixture })
}

/// `nodelet-logger`, as it was built beside this test.
fn program() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().with_file_name("nodelet-logger")
}

fn runtime_with(containerd: &PrivateContainerd, shim_pool: usize, oci_runtime: Option<&str>) -> ContainerdRuntime {
    let options = Options {
        run_dir: containerd.dir().join("run"),
        logger: program(),
        shim_pool,
        oci_runtime: oci_runtime.map(str::to_owned),
        cgroup_parent: containerd.cgroup_parent(),
        ..Options::default()
    };
    ContainerdRuntime::new(containerd.containerd(), options)
}

impl Node {
    /// A container in a sandbox of its own.
    fn alone(&self, id: &str) -> ContainerSpec {
        let mut spec = self.fixture.spec(id, "sleep 1000");
        spec.sandbox = SandboxId::new(format!("sandbox-{id}")).unwrap();
        spec
    }

    /// Runs so many, one after the other, and answers them with their pids.
    async fn run_all(&self, ids: impl IntoIterator<Item = &str>) -> Vec<(ContainerSpec, u32)> {
        let mut all = Vec::new();
        for id in ids {
            let spec = self.alone(id);
            let pid = self.run(&spec).await;
            all.push((spec, pid));
        }
        all
    }

    /// The agent of after a restart.
    fn restart_agent(&mut self, shim_pool: usize) {
        self.runtime = runtime_with(&self.containerd, shim_pool, None);
    }

    fn shims(&self) -> usize {
        shims(&self.containerd.namespace())
    }

    /// Removes all containers and waits until nothing is left of anything.
    async fn until_nothing_is_left(&self) {
        for container in self.runtime.list().await.unwrap() {
            self.runtime.remove(&container.id).await.unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.left().await;
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{left:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.runtime.sweep().await.unwrap(), Vec::<String>::new());
    }

    /// Everything that there can be of containers.
    async fn left(&self) -> Vec<String> {
        let namespace = self.containerd.namespace();
        let containerd = self.containerd.containerd();
        let sandboxes = containerd.sandboxes().list(containerd.request(StoreListRequest::default())).await;
        let sandboxes = sandboxes.unwrap().into_inner().list;
        let mut left: Vec<String> = ["containers list -q", "tasks list -q"]
            .iter()
            .flat_map(|line| self.ctr(line).lines().map(str::to_owned).collect::<Vec<_>>())
            .chain(sandboxes.into_iter().map(|sandbox| format!("sandbox {}", sandbox.sandbox_id)))
            .collect();
        left.extend(self.ctr("snapshots list").lines().filter(|line| line.contains("Active")).map(str::to_owned));
        left.extend((0..self.shims()).map(|_| "a shim".to_owned()));
        let bundles = self.containerd.state_dir().join("io.containerd.runtime.v2.task").join(&namespace);
        for directory in [bundles, Path::new("/run/containerd/runc").join(&namespace)] {
            left.extend(
                std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path().display().to_string()),
            );
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = format!("{}/state/", self.containerd.dir().display());
        left.extend(mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned));
        left.extend(cgroups_below(&self.containerd.cgroup_parent()));
        left
    }

    /// Waits until this container has ended by SIGKILL, and looks whether that is so.
    async fn until_killed(&self, spec: &ContainerSpec, pid: u32) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match get(&self.runtime, &spec.id).await.state {
                TaskState::Exited(exit) => {
                    assert_eq!(exit.code, 137);
                    break;
                }
                state => assert!(Instant::now() < deadline, "{state:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!is_alive(pid), "said to have exited, and runs");
    }
}

fn cgroups_below(parent: &crate::ids::CgroupPath) -> Vec<String> {
    use crate::cgroups::Cgroups as _;
    let cgroups = crate::cgroups::linux::LinuxCgroups::new("/sys/fs/cgroup", parent.clone());
    let all = cgroups.list().unwrap_or_default();
    all.iter().filter(|path| *path != parent).map(ToString::to_string).collect()
}

/// Whether a process runs; a zombie does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_pool_of_anchors_fills_is_taken_over_and_goes() {
    let Some(mut node) = pooled_node().await else { return };
    let all = node.run_all(["c0", "c1", "c2", "c3", "c4", "c5"]).await;
    assert_eq!(node.shims(), 2, "three to a shim");
    assert_eq!(node.runtime.list().await.unwrap().len(), 6, "anchors are in no list");
    assert_eq!(node.ctr("containers list -q").lines().count(), 8);
    assert_eq!(node.runtime.sweep().await.unwrap(), Vec::<String>::new());
    // The agent of after a restart knows who is where.
    node.restart_agent(3);
    assert_eq!(node.runtime.list().await.unwrap().len(), 6);
    let mut second = node.alone("second");
    second.sandbox = all[0].0.sandbox.clone();
    let pid = node.run(&second).await;
    assert_eq!(shim_of(pid), shim_of(all[0].1), "a sandbox stays together");
    node.run_all(["c6"]).await;
    assert_eq!(node.shims(), 3);
    // One without members goes; what runs is not touched.
    node.runtime.remove(&"c6".parse().unwrap()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.shims() > 2 {
        assert!(Instant::now() < deadline, "the third anchor stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(all.iter().all(|(_, pid)| is_alive(*pid)));
    // Switched off, containers get shims of their own again, and anchors go with their last members.
    node.restart_agent(0);
    assert_eq!(node.runtime.list().await.unwrap().len(), 7);
    node.run_all(["own"]).await;
    assert_eq!(node.shims(), 3);
    node.until_nothing_is_left().await;
}

#[test]
fn anchors_are_containers_of_crun_too() {
    if !Path::new("/usr/bin/crun").exists() {
        eprintln!("left out: there is no crun");
        return;
    }
    crate::testing::in_mount_namespace(|| {
        // crun refuses a node with both versions of cgroups; the second need not be seen here.
        let unified = "/sys/fs/cgroup/unified";
        if rustix::mount::unmount(unified, rustix::mount::UnmountFlags::DETACH).is_ok() {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", unified, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let Some(node) = pooled_node_with(Some("crun")).await else { return };
            node.run_all(["c0", "c1", "c2", "c3"]).await;
            assert_eq!(node.shims(), 2, "three to a shim");
            node.until_nothing_is_left().await;
        });
    });
}

#[tokio::test]
async fn a_dead_anchor_has_its_members_ended_before_anything_follows_them() {
    let Some(mut node) = pooled_node().await else { return };
    let mut events = node.runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let all = node.run_all(["a", "b", "c", "other"]).await;
    assert_eq!(node.shims(), 2);
    assert_ne!(shim_of(all[0].1), shim_of(all[3].1));
    // 1. While everything is there.
    kill(shim_of(all[0].1));
    wait_for(&mut events, &all[0].0.id, "exit").await;
    for (spec, pid) in &all[..3] {
        node.until_killed(spec, *pid).await;
        node.runtime.remove(&spec.id).await.unwrap();
    }
    assert!(is_alive(all[3].1), "it is in another shim");
    let again = node.run_all(["a", "b", "c"]).await;
    // 2. While no agent is there.
    let shim = shim_of(again[0].1);
    let in_it = |pid: u32| shim_of(pid) == shim;
    let (fallen, others): (Vec<_>, Vec<_>) = again.iter().chain(&all[3..]).partition(|(_, pid)| in_it(*pid));
    node.restart_agent(3);
    kill(shim);
    let listed = node.runtime.list().await.unwrap();
    for (spec, pid) in &fallen {
        let container = listed.iter().find(|container| container.id == spec.id).unwrap();
        assert!(matches!(&container.state, TaskState::Exited(exit) if exit.code == 137), "{:?}", container.state);
        assert!(!is_alive(*pid));
        node.runtime.remove(&spec.id).await.unwrap();
    }
    assert!(others.iter().all(|(_, pid)| is_alive(*pid)));
    // 3. While containerd is away, which finds them when it comes back.
    let again = node.run_all(["d", "e"]).await;
    let shims: std::collections::BTreeSet<i32> = again.iter().map(|(_, pid)| shim_of(*pid)).collect();
    node.containerd.kill();
    shims.into_iter().for_each(kill);
    let deadline = Instant::now() + Duration::from_secs(20);
    while again.iter().any(|(_, pid)| is_alive(*pid)) {
        assert!(Instant::now() < deadline, "nobody ends them");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.containerd.restart().await;
    for (spec, pid) in &again {
        node.until_killed(spec, *pid).await;
    }
    // 4. After containerd's restart, when it clears away itself what it has found.
    let again = node.run_all(["f"]).await;
    node.containerd.restart().await;
    assert!(is_alive(again[0].1));
    kill(shim_of(again[0].1));
    node.until_killed(&again[0].0, again[0].1).await;
    node.until_nothing_is_left().await;
}

#[tokio::test]
async fn deeds_on_anchors_disturb_nobody() {
    let Some(mut node) = pooled_node().await else { return };
    let all = node.run_all(["a"]).await;
    let shim = shim_of(all[0].1);
    let anchor = || node.ctr("containers list -q").lines().find(|id| id.starts_with("anchor-")).map(str::to_owned);
    let name = anchor().unwrap();
    // Its program.
    node.ctr(&format!("tasks kill --signal SIGKILL {name}"));
    let b = node.run_all(["b"]).await;
    assert_eq!(shim_of(b[0].1), shim);
    node.containerd.restart().await;
    // Its task: it is made again, in the same shim.
    node.ctr(&format!("tasks delete --force {name}"));
    let c = node.run_all(["c"]).await;
    assert_eq!(shim_of(c[0].1), shim);
    assert_eq!(node.shims(), 1);
    // Everything of it, and nobody needs it again.
    node.ctr(&format!("tasks delete --force {name}"));
    node.ctr(&format!("containers delete {name}"));
    node.restart_agent(3);
    assert!(is_alive(all[0].1));
    assert_eq!(node.runtime.list().await.unwrap().len(), 3);
    node.until_nothing_is_left().await;
}

#[tokio::test]
async fn creations_whose_shim_dies_leave_nothing() {
    let Some(node) = pooled_node().await else { return };
    for round in 0..3 {
        let specs: Vec<_> = (0..6).map(|n| node.alone(&format!("r{round}-{n}"))).collect();
        let creations = futures::future::join_all(specs.iter().map(|spec| async {
            let _ = node.runtime.create(spec).await;
            let _ = node.runtime.start(&spec.id).await;
        }));
        let namespace = node.containerd.namespace();
        let killing = async {
            // As soon as there is one, which is in the middle of something.
            loop {
                let running = super::super::orphans::running(&namespace);
                if let Some(pid) = running.values().next() {
                    kill(i32::try_from(*pid).unwrap());
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(40 * round)).await;
            if let Some(pid) = super::super::orphans::running(&namespace).values().next() {
                kill(i32::try_from(*pid).unwrap());
            }
        };
        futures::future::join(creations, killing).await;
        for spec in &specs {
            // As the planner does: until it is done.
            let deadline = Instant::now() + Duration::from_secs(20);
            while let Err(error) = node.runtime.remove(&spec.id).await {
                assert!(Instant::now() < deadline, "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        node.until_nothing_is_left().await;
    }
}
