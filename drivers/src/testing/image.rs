//! A tiny image with a shell, made from the node's static busybox.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Name of the image that [`busybox_archive`] makes for most tests.
pub const BUSYBOX: &str = "nodelet.test/busybox:1";

/// One layer: an uncompressed tar.
#[derive(Debug, Clone)]
pub struct Layer(pub Vec<u8>);

/// Applets that the image links to busybox.
const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "dd", "echo", "env", "false", "free", "grep", "head", "hostname", "httpd", "id", "ip",
    "kill", "ln", "ls", "mkdir", "mknod", "mount", "nc", "nslookup", "ping", "printf", "ps", "pwd", "rm", "sed", "seq",
    "sh", "sleep", "stat", "sync", "sysctl", "tail", "test", "touch", "tr", "true", "umount", "uname", "unshare", "wc",
    "wget", "whoami", "yes",
];

/// Two layers: the programs with a user `app` (uid 1000, gid 1000, also in group `extra`, 2000), and one above that
/// replaces the `group` file and deletes `/etc/gone`.
pub fn busybox_layers() -> Vec<Layer> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .expect("busybox-static is installed");
    let mut base = Tar::default();
    for dir in ["bin/", "dev/", "etc/", "home/", "home/app/", "proc/", "root/", "sys/", "var/", "run/"] {
        base.dir(dir, 0o755);
    }
    base.dir("tmp/", 0o1777);
    base.file("bin/busybox", &busybox, 0o755);
    for applet in APPLETS {
        base.link(&format!("bin/{applet}"), "busybox");
    }
    base.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n", 0o644);
    base.file("etc/group", b"root:x:0:\nold:x:1:app\n", 0o644);
    base.file("etc/gone", b"x", 0o644);
    let mut top = Tar::default();
    top.file("etc/group", b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n", 0o644);
    top.file("etc/.wh.gone", b"", 0o644);
    vec![base.finish(), top.finish()]
}

/// Writes [`busybox_layers`] as an OCI archive whose image is called `name`.
pub fn busybox_archive(path: &Path, name: &str) {
    let config = json!({
        "Env": ["PATH=/bin", "FROM_IMAGE=1"],
        "Cmd": ["sh", "-c", "echo hello; sleep 3600"],
        "WorkingDir": "/tmp",
        "StopSignal": "SIGINT",
    });
    write_archive(path, name, &busybox_layers(), &config);
}

/// Writes an OCI archive with one image of the node's platform; `config` is its `config` object.
pub fn write_archive(path: &Path, name: &str, layers: &[Layer], config: &Value) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(&layer.0)).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes();
    let descriptors: Vec<Value> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", &layer.0)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": descriptors,
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();

    let mut archive = Tar::default();
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    archive.file("index.json", index.as_bytes(), 0o644);
    for blob in [&config, &manifest].into_iter().chain(layers.iter().map(|layer| &layer.0)) {
        archive.file(&format!("blobs/{}", digest(blob).replace(':', "/")), blob, 0o644);
    }
    std::fs::write(path, archive.finish().0).expect("the archive can be written");
}

fn descriptor(media_type: &str, data: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(data), "size": data.len()})
}

fn digest(data: &[u8]) -> String {
    let hash = Sha256::digest(data);
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// A tar in memory.
struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Tar {
    fn dir(&mut self, path: &str, mode: u32) {
        let mut header = header(tar::EntryType::Directory, 0, mode);
        self.0.append_data(&mut header, path, std::io::empty()).expect("memory takes every byte");
    }

    fn file(&mut self, path: &str, data: &[u8], mode: u32) {
        let mut header = header(tar::EntryType::Regular, data.len() as u64, mode);
        self.0.append_data(&mut header, path, data).expect("memory takes every byte");
    }

    fn link(&mut self, path: &str, target: &str) {
        let mut header = header(tar::EntryType::Symlink, 0, 0o777);
        self.0.append_link(&mut header, path, target).expect("memory takes every byte");
    }

    fn finish(self) -> Layer {
        Layer(self.0.into_inner().expect("memory takes every byte"))
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(1);
    header
}
