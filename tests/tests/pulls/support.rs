//! A private containerd, a registry, the fault proxy between them, and a process that pulls and can be killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodelet_drivers::images::{ContainerdImages, Fetch, Image, Images as _, OnProgress, Options};
use nodelet_drivers::testing::{Layer, PrivateContainerd, write_archive};
use nodelet_tests::containerd::Release;
use nodelet_tests::fault_proxy::FaultProxy;
use rand::RngCore as _;

/// What may be lost with a killed process: buffers of three sockets and the messages under way.
pub const UNDER_WAY: u64 = 8 << 20;

/// Everything between a pull and its image.
pub struct World {
    pub node: PrivateContainerd,
    pub registry: Registry,
    pub proxy: FaultProxy,
}

impl World {
    /// On the distribution's containerd, or on 2.x.
    pub async fn start(release: Release) -> Option<World> {
        let Some(programs) = release.programs() else {
            #[allow(clippy::print_stderr, reason = "shown by the test runner")]
            let () = eprintln!("no containerd {release:?} on this machine: left out");
            return None;
        };
        let node = PrivateContainerd::start_with(programs.join("containerd")).await;
        let registry = Registry::start();
        let proxy = FaultProxy::start(registry.port).expect("loopback can be listened on");
        Some(World { node, registry, proxy })
    }

    /// A driver with a memory of nothing, as an agent has when it starts.
    pub fn images(&self, options: Options) -> ContainerdImages {
        ContainerdImages::new(self.node.containerd(), options)
    }

    /// Fails if the image is not whole: by its digest at the registry, and byte by byte on the node.
    pub async fn assert_whole(&self, fetch: &Fetch, image: &Image) {
        let images = self.images(Options::default());
        assert_eq!(images.resolve(fetch).await.expect("the registry answers"), image.digest);
        assert_eq!(images.get(&fetch.reference).await.expect("containerd answers").as_ref(), Some(image));
        assert_eq!(images.verify(&fetch.reference).await.expect("containerd answers"), []);
        assert_eq!(self.ctr(&["content", "active"]).len(), 1, "a heading, and no unfinished blob");
        assert_eq!(self.ctr(&["leases", "list", "-q"]), Vec::<String>::new());
        assert!(self.ctr(&["snapshots", "list"]).iter().all(|line| !line.contains("extract-")));
    }

    /// Removes the image and fails if anything of it stays.
    pub async fn assert_leaves_nothing(&self, reference: &str) {
        self.images(Options::default()).remove(reference).await.expect("containerd answers");
        assert_eq!(self.inventory(), Vec::<String>::new());
    }

    /// All that a pull makes.
    pub fn inventory(&self) -> Vec<String> {
        [
            &["images", "list", "-q"][..],
            &["content", "list", "-q"],
            &["snapshots", "list"],
            &["leases", "list", "-q"],
            &["content", "active"],
        ]
        .into_iter()
        .flat_map(|command| self.ctr(command))
        .filter(|line| !line.starts_with("KEY") && !line.starts_with("REF"))
        .collect()
    }

    fn ctr(&self, command: &[&str]) -> Vec<String> {
        self.node.ctr(command).lines().map(str::to_owned).collect()
    }
}

/// A docker-registry on loopback.
pub struct Registry {
    child: Child,
    pub dir: tempfile::TempDir,
    pub port: u16,
}

impl Registry {
    fn start() -> Registry {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}/data}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config.yml"), config).expect("writable");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Registry { child, dir, port };
        let begin = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "docker-registry does not answer");
            #[allow(clippy::disallowed_methods, reason = "a thread of its own, and nothing tells when a port is open")]
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    /// Pushes an image with these layers, compressed with gzip.
    pub fn push(&self, name: &str, layers: &[Layer]) {
        let archive = self.dir.path().join(format!("{}.tar", name.replace(['/', ':'], "_")));
        write_archive(&archive, "x.test/x:1", layers, &serde_json::json!({"Cmd": ["sh"]}));
        self.copy(&format!("oci-archive:{}", archive.display()), name);
        std::fs::remove_file(archive).expect("just written");
    }

    fn copy(&self, from: &str, name: &str) {
        let to = format!("docker://127.0.0.1:{}/{name}", self.port);
        let output = Command::new("skopeo")
            .args(["copy", "-q", "--dest-tls-verify=false", from, &to])
            .output()
            .expect("skopeo is installed");
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A layer with one file of random bytes, which compression does not change.
pub fn random_layer(name: &str, bytes: usize) -> Layer {
    let mut data = vec![0; bytes];
    rand::rng().fill_bytes(&mut data);
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, name, data.as_slice()).expect("memory takes every byte");
    Layer(tar.into_inner().expect("memory takes every byte"))
}

pub fn fetch(reference: &str) -> Fetch {
    Fetch::new(reference)
}

pub fn silent() -> OnProgress {
    Arc::new(|_| {})
}

/// One attempt, and no patience with silence.
pub fn impatient() -> Options {
    Options { attempts: 1, stall: Duration::from_millis(500), ..Options::default() }
}

/// One error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What the test named `child` below needs to know.
const CHILD: &str = "NODELET_TEST_PULL";

/// A process of its own that pulls, to be killed.
pub struct Puller(Child);

impl Puller {
    /// Starts it: this very program, running only its test `child`.
    pub fn start(node: &PrivateContainerd, reference: &str) -> Puller {
        let wish = format!("{}\n{}\n{reference}", node.address().display(), node.namespace());
        let child = Command::new(std::env::current_exe().expect("a program knows itself"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(CHILD, wish)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it just ran");
        Puller(child)
    }

    pub fn running(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_none()
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body of the child.
pub async fn pull_as_child() {
    let Some(wish) = std::env::var_os(CHILD).and_then(|text| text.into_string().ok()) else { return };
    let [address, namespace, reference] = wish.split('\n').collect::<Vec<_>>()[..] else { panic!("{wish:?}") };
    let containerd = nodelet_drivers::containerd::Containerd::new(PathBuf::from(address), namespace, "overlayfs");
    let images = ContainerdImages::new(containerd.expect("valid names"), Options::default());
    images.fetch(&fetch(reference), silent()).await.expect("the pull succeeds unless it is killed");
}

/// All files below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
