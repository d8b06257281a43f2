//! A registry on loopback, images to put into it, and a proxy that counts and cuts.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngCore as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::images::{ContainerdImages, Credentials, Fetch, OnProgress, Options, Source};
use crate::testing::{Layer, PrivateContainerd, write_archive};

/// Debian's `docker-registry` with its files in a directory of its own.
pub(super) struct Registry {
    child: Child,
    pub(super) dir: tempfile::TempDir,
    pub(super) port: u16,
}

impl Registry {
    pub(super) async fn start() -> Self {
        Self::start_with("").await
    }

    /// `more` is appended to its configuration.
    pub(super) async fn start_with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}/data}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n{more}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { child, dir, port };
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("docker-registry does not answer");
    }

    /// The reference of `name` here.
    pub(super) fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Pushes an image with these layers, compressed with gzip.
    pub(super) fn push(&self, name: &str, layers: &[Layer]) {
        self.push_with(name, layers, &[]);
    }

    pub(super) fn push_with(&self, name: &str, layers: &[Layer], options: &[&str]) {
        let archive = self.dir.path().join(format!("{}.tar", name.replace(['/', ':'], "_")));
        write_archive(&archive, "x.test/x:1", layers, &serde_json::json!({"Cmd": ["sh"]}));
        skopeo(
            [&["copy", "-q", "--dest-tls-verify=false"][..], options].concat(),
            &[&format!("oci-archive:{}", archive.display()), &format!("docker://{}", self.name(name))],
        );
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn skopeo(options: Vec<&str>, arguments: &[&str]) {
    let output = Command::new("skopeo").args(options).args(arguments).output().expect("skopeo is installed");
    assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
}

pub(super) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A layer with one file of random bytes, so that compression changes little.
pub(super) fn random_layer(name: &str, bytes: usize) -> Layer {
    let mut data = vec![0; bytes];
    rand::rng().fill_bytes(&mut data);
    file_layer(name, &data)
}

pub(super) fn file_layer(name: &str, data: &[u8]) -> Layer {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, name, data).unwrap();
    Layer(tar.into_inner().unwrap())
}

pub(super) fn images(node: &PrivateContainerd, options: Options) -> ContainerdImages {
    ContainerdImages::new(node.containerd(), options)
}

pub(super) fn from_registry(reference: &str) -> Fetch {
    Fetch::new(reference)
}

pub(super) fn from_archive(reference: &str, path: &Path) -> Fetch {
    Fetch { source: Source::Archive(PathBuf::from(path)), ..from_registry(reference) }
}

pub(super) fn with_password(fetch: Fetch, username: &str, password: &str) -> Fetch {
    let credentials = Some(Credentials { username: username.to_owned(), password: password.to_owned() });
    Fetch { credentials, ..fetch }
}

pub(super) fn silent() -> OnProgress {
    Arc::new(|_| {})
}

/// Everything of the namespace that a pull makes: images, blobs, snapshots, leases, unfinished blobs.
pub(super) fn inventory(node: &PrivateContainerd) -> Vec<String> {
    [
        vec!["images", "list", "-q"],
        vec!["content", "list", "-q"],
        vec!["snapshots", "list"],
        vec!["leases", "list", "-q"],
        vec!["content", "active"],
    ]
    .into_iter()
    .flat_map(|command| node.ctr(command).lines().map(str::to_owned).collect::<Vec<_>>())
    .filter(|line| !line.starts_with("KEY") && !line.starts_with("REF"))
    .collect()
}

/// Forwards to the registry, counts what the registry sends, and cuts when told to.
pub(super) struct Proxy {
    pub(super) port: u16,
    sent: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(super) async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sent, limit) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
        let (counted, allowed) = (sent.clone(), limit.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(forward(client, target, counted.clone(), allowed.clone()));
            }
        });
        Self { port, sent, limit, task }
    }

    pub(super) fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Bytes that the registry sent through since the start or the last call.
    pub(super) fn take(&self) -> u64 {
        self.sent.swap(0, Ordering::SeqCst)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Every connection is cut as soon as so many bytes were sent since the last [`Self::take`].
    pub(super) fn cut_after(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: TcpStream, target: u16, sent: Arc<AtomicU64>, limit: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 || sent.load(Ordering::SeqCst) >= limit.load(Ordering::SeqCst) {
                return std::io::Result::Ok(());
            }
            to_client.write_all(&buffer[..read]).await?;
            sent.fetch_add(read as u64, Ordering::SeqCst);
        }
    };
    // Whichever side ends first ends both.
    tokio::select! { _ = up => {}, _ = down => {} }
}
