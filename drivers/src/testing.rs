//! Fixtures for tests against the real thing: a private containerd and a tiny image.
//!
//! A [`PrivateContainerd`] has its own root, state, socket, containerd namespace and cgroup parent, so any number of
//! them run beside each other and beside the node's own daemon. Dropping it ends everything it started, also when a
//! test panics: containers, shims, the daemon, mounts, cgroups and directories.
//!
//! As fixtures these panic with the reason when the node cannot do what a test needs.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use containerd_client::services::v1::images_client::ImagesClient;

use crate::containerd::Containerd;
use crate::ids::CgroupPath;

mod cleanup;
mod image;
mod mount_namespace;

pub use image::{BUSYBOX, Layer, busybox_archive, busybox_layers, write_archive};
pub use mount_namespace::in_mount_namespace;

/// Names the containerd binary to test with; default is the one in `PATH`. Its shim is looked for beside it.
pub const CONTAINERD_VARIABLE: &str = "NODELET_TEST_CONTAINERD";

/// Says that this machine lacks what a test, or a part of one, is about, so that it is left out; fails where
/// `NODELET_LEAVE_OUT=nothing` demands all of it, as in the virtual machines of `make vm`.
pub fn leave_out(what: &str) {
    let demanded = std::env::var_os("NODELET_LEAVE_OUT").is_some_and(|wish| wish == "nothing");
    assert!(!demanded, "{what}: this machine does not have it");
    #[allow(clippy::print_stderr)] // shown by the test runner
    {
        eprintln!("left out, this machine does not have it: {what}");
    }
}

/// A containerd of its own for one test.
#[derive(Debug)]
pub struct PrivateContainerd {
    dir: PathBuf,
    id: String,
    binary: PathBuf,
    child: Option<Child>,
}

impl PrivateContainerd {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        let binary = std::env::var_os(CONTAINERD_VARIABLE).map_or_else(|| PathBuf::from("containerd"), PathBuf::from);
        Self::start_with(binary).await
    }

    /// The same with this very program, whatever the environment says.
    pub async fn start_with(binary: PathBuf) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        let mut fixture = Self { dir: PathBuf::from(format!("/tmp/nodelet-test-{id}")), id, binary, child: None };
        std::fs::create_dir_all(&fixture.dir).expect("the test's directory can be made");
        fixture.write_config();
        fixture.restart().await;
        fixture
    }

    /// A directory for the test's own files, removed in the end.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The socket.
    pub fn address(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// The containerd namespace of the test, unique on the node: runc's state directory is shared by all daemons.
    pub fn namespace(&self) -> String {
        format!("nodelet-test-{}", self.id)
    }

    /// A cgroup below which the test's containers go; removed in the end.
    pub fn cgroup_parent(&self) -> CgroupPath {
        CgroupPath::new(format!("/nodelet-test-{}", self.id)).expect("the id is hexadecimal")
    }

    /// Where its shims and the OCI runtime's processes keep their state.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A connection to it.
    pub fn containerd(&self) -> Containerd {
        Containerd::new(self.address(), &self.namespace(), "overlayfs").expect("the names are valid")
    }

    /// Runs `ctr` in the test's namespace and returns its output.
    pub fn ctr<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> String {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.address())
            .args(["--namespace", &self.namespace()])
            .args(arguments)
            .output()
            .expect("ctr is installed");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "ctr: {text}");
        text
    }

    /// Makes [`BUSYBOX`] and imports it.
    pub fn import_busybox(&self) {
        let archive = self.dir.join("busybox.tar");
        busybox_archive(&archive, BUSYBOX);
        self.import(&archive);
    }

    /// Imports and unpacks an archive with `ctr`.
    pub fn import(&self, archive: &Path) {
        self.ctr(["images", "import", &archive.display().to_string()]);
    }

    /// Pid of the daemon.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills the daemon with SIGKILL; containers go on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills the daemon if it runs, and starts it again.
    pub async fn restart(&mut self) {
        self.kill();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("containerd.log"))
            .expect("the log can be opened");
        let mut command = Command::new(&self.binary);
        if let Some(parent) = self.binary.parent().filter(|p| !p.as_os_str().is_empty()) {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", parent.display()));
        }
        let child = command
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("a descriptor can be copied")))
            .stderr(Stdio::from(log))
            // Not in the test runner's group, which gets the terminal's signals.
            .process_group(0)
            .spawn()
            .expect("containerd is installed");
        self.child = Some(child);
        self.wait_ready().await;
    }

    async fn wait_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let containerd = self.containerd();
        loop {
            // Listing images needs the metadata plugin; the version is answered a little earlier.
            let request = containerd.request(containerd_client::services::v1::ListImagesRequest::default());
            let mut images: ImagesClient<_> = containerd.images();
            if images.list(request).await.is_ok() {
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default();
                panic!("containerd does not start ({ended:?}):\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn write_config(&self) {
        let dir = self.dir.display();
        // Plugins that would listen on fixed addresses, or need modules and tools, are switched off.
        let config = format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs",
]
[grpc]
address = "{dir}/containerd.sock"
[ttrpc]
address = "{dir}/containerd.sock.ttrpc"
[debug]
address = "{dir}/debug.sock"
"#
        );
        std::fs::write(self.dir.join("config.toml"), config).expect("the configuration can be written");
    }
}

impl Drop for PrivateContainerd {
    fn drop(&mut self) {
        // The daemon first: it would start to clean up on its own while its shims die.
        self.kill();
        cleanup::end_shims(&self.namespace(), &self.state_dir());
        cleanup::unmount_below(&self.dir);
        cleanup::remove_cgroup(&self.cgroup_parent());
        let _ = std::fs::remove_dir_all(Path::new("/run/containerd/runc").join(self.namespace()));
        if std::env::var_os("NODELET_TEST_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_private_containerd_runs_a_container_and_leaves_nothing() {
        let fixture = PrivateContainerd::start().await;
        let (dir, namespace) = (fixture.dir().to_owned(), fixture.namespace());
        fixture.import_busybox();
        assert!(fixture.ctr(["images", "list", "-q"]).contains(BUSYBOX));
        let cgroup = format!("{}/c1", fixture.cgroup_parent());
        fixture.ctr(["run", "-d", "--cgroup", cgroup.as_str(), BUSYBOX, "c1", "sleep", "1000"]);
        assert!(fixture.ctr(["tasks", "list"]).contains("RUNNING"));
        drop(fixture);
        assert!(!dir.exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&namespace), "{mounts}");
    }
}
