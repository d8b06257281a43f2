//! Container images made from the packages of this machine, without a registry, a daemon or a network.
//!
//! A [`LayerBuilder`] collects files into a tar whose bytes depend on nothing but the files (no times, fixed order), so
//! that digests are stable and layers are shared. [`catalog`] says what is in each image, [`store`] writes images in the
//! forms that nodelet reads: a registry's storage, an OCI layout, an OCI or docker archive.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub mod catalog;
pub mod store;

/// `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A finished layer.
#[derive(Debug)]
pub struct Layer {
    /// The uncompressed tar, as docker archives hold it.
    pub tar: Vec<u8>,
    /// The same, gzip-compressed, as registries hold it.
    pub gzip: Vec<u8>,
    /// Digest of `tar`.
    pub diff_id: String,
}

/// An image: layers from the bottom up and what to run by default.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers, the base first.
    pub layers: Vec<Rc<Layer>>,
    /// The `config` object of the OCI image configuration: `Cmd`, `Env`, `User`, ….
    pub config: Value,
}

impl Image {
    /// A new image with one more layer on top and another configuration.
    pub fn on(base: &Image, layer: LayerBuilder, config: Value) -> Result<Image> {
        let mut layers = base.layers.clone();
        layers.push(Rc::new(layer.finish()?));
        Ok(Image { layers, config })
    }

    /// The OCI image configuration, as stored.
    pub fn config_blob(&self) -> Vec<u8> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let blob = json!({
            "architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        blob.to_string().into_bytes()
    }

    /// The OCI manifest of the gzip-compressed form, as stored.
    pub fn manifest_blob(&self) -> Vec<u8> {
        let config = self.config_blob();
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                       "digest": digest(&layer.gzip), "size": layer.gzip.len()})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": store::MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": digest(&config), "size": config.len()},
            "layers": layers,
        });
        manifest.to_string().into_bytes()
    }
}

/// Collects the files of a layer.
pub struct LayerBuilder {
    tar: tar::Builder<Vec<u8>>,
    seen: BTreeSet<PathBuf>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        LayerBuilder { tar: tar::Builder::new(Vec::new()), seen: BTreeSet::new() }
    }
}

impl LayerBuilder {
    /// Adds a directory, and its parents as root's.
    pub fn dir(&mut self, path: &str, mode: u32, owner: u32) -> Result<()> {
        let path = inside(Path::new(path));
        self.parents(&path)?;
        if self.seen.insert(path.clone()) {
            self.append(header(tar::EntryType::Directory, mode, owner, 0), &path, &[])?;
        }
        Ok(())
    }

    /// Adds a file of root's.
    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = inside(Path::new(path));
        self.parents(&path)?;
        if self.seen.insert(path.clone()) {
            self.append(header(tar::EntryType::Regular, mode, 0, content.len() as u64), &path, content)?;
        }
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let path = inside(Path::new(path));
        self.parents(&path)?;
        if self.seen.insert(path.clone()) {
            let mut header = header(tar::EntryType::Symlink, 0o777, 0, 0);
            self.tar.append_link(&mut header, &path, target).context("writing a link")?;
        }
        Ok(())
    }

    /// Adds an entry just as it is said, whether anything good may come of it or not.
    pub fn raw(&mut self, name: &str, kind: tar::EntryType, link: &str, device: (u32, u32)) -> Result<()> {
        let mut header = header(kind, 0o666, 0, 0);
        let fields = header.as_old_mut();
        // The library refuses such names.
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_device_major(device.0)?;
        header.set_device_minor(device.1)?;
        header.set_cksum();
        self.tar.append(&header, std::io::empty()).with_context(|| format!("adding {name}"))
    }

    /// Adds a file of this machine under its own path, with its mode; symbolic links are followed.
    pub fn copy(&mut self, path: &Path) -> Result<()> {
        self.copy_as(path, path)
    }

    /// Adds a file of this machine under another path.
    pub fn copy_as(&mut self, from: &Path, to: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o755;
        self.file(&to.to_string_lossy(), &content, mode)
    }

    /// Adds a directory of this machine with everything below, under its own path; symbolic links are followed.
    pub fn tree(&mut self, path: &Path) -> Result<()> {
        let mut names: Vec<_> = fs::read_dir(path)
            .with_context(|| format!("listing {}", path.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        names.sort();
        self.dir(&path.to_string_lossy(), 0o755, 0)?;
        for name in names {
            match name.metadata() {
                Ok(meta) if meta.is_dir() => self.tree(&name)?,
                Ok(meta) if meta.is_file() => self.copy(&name)?,
                _ => {} // a dangling link or a socket: nothing an image could hold
            }
        }
        Ok(())
    }

    /// Adds a program of this machine and the shared libraries it names.
    pub fn program(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.copy_as(from, to)?;
        self.libraries_of(from)
    }

    /// Adds the shared libraries that a program or a library names.
    pub fn libraries_of(&mut self, path: &Path) -> Result<()> {
        let output = Command::new("ldd").arg(path).output().context("running ldd")?;
        // Lines are `name => /path (address)` or, for the loader, `/path (address)`; a static program has none.
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.copy(Path::new(library))?;
            }
        }
        Ok(())
    }

    /// Ends the layer.
    pub fn finish(self) -> Result<Layer> {
        let tar = self.tar.into_inner().context("ending a layer")?;
        let gzip = gzip(&tar)?;
        let diff_id = digest(&tar);
        Ok(Layer { tar, gzip, diff_id })
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !self.seen.contains(parent) => {
                self.dir(&parent.to_string_lossy(), 0o755, 0)
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, mut header: tar::Header, path: &Path, content: &[u8]) -> Result<()> {
        self.tar.append_data(&mut header, path, content).with_context(|| format!("adding {}", path.display()))
    }
}

/// Where a path of this machine goes in an image: `/bin`, `/lib` and the like are links into `/usr` in the base layer.
fn inside(path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let merged =
        ["bin", "sbin", "lib", "lib64"].iter().any(|top| relative.starts_with(top) && relative != Path::new(top));
    if merged { Path::new("usr").join(relative) } else { relative.to_path_buf() }
}

fn header(kind: tar::EntryType, mode: u32, owner: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.into());
    header.set_gid(owner.into());
    header.set_size(size);
    header.set_mtime(0);
    header
}

/// Compresses with the `gzip` program: a development build of a Rust one would take a minute over the database.
fn gzip(tar: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("gzip").args(["-n", "-4"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("gzip has no input")?;
    std::thread::scope(|scope| {
        // Fed from a thread: gzip stops reading when nobody takes its output.
        let feed = scope.spawn(move || stdin.write_all(tar));
        let output = child.wait_with_output()?;
        feed.join().expect("writing to a pipe does not panic")?;
        ensure!(output.status.success(), "gzip failed");
        Ok(output.stdout)
    })
}
