//! Volumes on the file system. Layout:
//!
//! ```text
//! <dataDir>/volumes/<namespace>/<name>/meta.json     what it should be, with the uid of its object
//!                                      data/         the data of a directory of ours
//!                                      image        the filesystem of a block volume
//! <dataDir>/volumes/.removed/                        directories on their way out
//! <runDir>/volumes/<namespace>/<name>/               what is mounted for a volume
//! <dataDir>/ephemeral/<sandbox>/<name>/              on disk, gone with the sandbox
//! <dataDir>/projects/<number>                        which directory is limited by this project
//! <runDir>/sandboxes/<sandbox>/volumes/<name>/       tmpfs, gone with the sandbox
//! <runDir>/sandboxes/<sandbox>/subpaths/<hash>       bind mount of a part of a volume
//! ```

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::nfs::Waiting;
use super::paths::{disk_dir, mounts_dir, source_path, volume_dir};
use super::quota::Projects;
use super::{
    Content, EphemeralSpec, Error, HostPathType, Usage, Volume, VolumeSource, VolumeSpec, Volumes, group, host_path,
    io_error, populate, told,
};
use crate::ids::{SandboxId, VolumeKey};
use crate::mounts;

mod dirs;
mod ephemeral;
mod mounted;

use dirs::{is_mount, make_owned, own};

/// The volumes of this node, below one data and one run directory.
#[derive(Debug, Clone)]
pub struct LinuxVolumes {
    data_dir: PathBuf,
    run_dir: PathBuf,
    /// Held while the directory of what is on its way out appears, is moved into, and disappears.
    leaving: Arc<Mutex<()>>,
    /// Calls that wait for file servers.
    waiting: Waiting,
    /// One at a time fills a volume.
    filling: Arc<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>>,
    /// What limits directories of a shared filesystem.
    projects: Arc<Projects>,
}

impl LinuxVolumes {
    /// Makes the directories, and finishes removals that were interrupted.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> io::Result<Self> {
        let (data_dir, run_dir) = (data_dir.into(), run_dir.into());
        for (dir, mode) in [
            (data_dir.join("volumes"), 0o755),
            (data_dir.join("ephemeral"), 0o700),
            (run_dir.join("sandboxes"), 0o700),
            (mounts_dir(&run_dir), 0o755),
        ] {
            DirBuilder::new().recursive(true).mode(0o755).create(dir.parent().unwrap_or(&dir))?;
            DirBuilder::new().recursive(true).mode(mode).create(&dir)?;
        }
        // As the mount table has them.
        let data_dir = data_dir.canonicalize()?;
        let this = Self {
            projects: Arc::new(Projects::open(&data_dir)?),
            data_dir,
            run_dir: run_dir.canonicalize()?,
            leaving: Arc::default(),
            waiting: Waiting::default(),
            filling: Arc::default(),
        };
        mounts::remove_tree(&this.removed_dir())?;
        this.unmount_strangers()?;
        Ok(this)
    }

    #[cfg(test)]
    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// File system calls are quick, mostly, but they block.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(Self) -> T + Send + 'static) -> T {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(this)).await {
            Ok(result) => result,
            // Blocking tasks are not cancelled, so it can only have panicked.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn removed_dir(&self) -> PathBuf {
        // No namespace begins with a dot.
        self.data_dir.join("volumes/.removed")
    }

    fn path(&self, spec: &VolumeSpec) -> PathBuf {
        source_path(&self.data_dir, &self.run_dir, spec)
    }

    fn list_now(&self) -> Result<Vec<Volume>, Error> {
        let top = self.data_dir.join("volumes");
        let mut found = Vec::new();
        for namespace in names(&top)? {
            for name in names(&top.join(&namespace))? {
                let Ok(key) = VolumeKey::new(format!("{namespace}/{name}")) else { continue };
                found.extend(self.look(&key)?);
            }
        }
        Ok(found)
    }

    /// What is there under this name; data without a readable description is a retained directory of ours.
    fn look(&self, key: &VolumeKey) -> Result<Option<Volume>, Error> {
        let dir = volume_dir(&self.data_dir, key);
        let meta = dir.join("meta.json");
        let spec: Option<VolumeSpec> = match std::fs::read(&meta) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(|error| tracing::warn!(volume = %key, %error, "meta.json is damaged"))
                .ok(),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(error) => return Err(io_error("reading", &meta)(error)),
        };
        Ok(match spec {
            Some(spec) => {
                let path = self.path(&spec);
                let complete = match spec.source {
                    VolumeSource::Local | VolumeSource::LocalPath(_) => path.is_dir(),
                    VolumeSource::HostPath(_, kind) => host_path::is_in_order(&path, kind),
                    VolumeSource::Tmpfs | VolumeSource::Block(_) | VolumeSource::Nfs(_) => self.is_mounted(key)?,
                };
                Some(Volume { key: key.clone(), path, complete, capacity_problem: None })
            }
            None => {
                let path = dir.join("data");
                path.is_dir().then(|| Volume { key: key.clone(), path, complete: false, capacity_problem: None })
            }
        })
    }

    fn ensure_now(&self, spec: &VolumeSpec) -> Result<Volume, Error> {
        // Recorded first, so that whatever is made is found again.
        self.write_meta(spec)?;
        let path = self.path(spec);
        let limited = |fresh| self.projects.ensure(&path, spec.capacity, fresh);
        let problem = match &spec.source {
            VolumeSource::Local => {
                let fresh = !path.is_dir();
                make_owned(&path, spec.owner).map_err(io_error("making", &path))?;
                // It can be used without a limit, so what is wrong with the limit is told and no failure.
                limited(fresh).unwrap_or_else(|error| Some(told(&error)))
            }
            VolumeSource::LocalPath(path) => {
                if host_path::ensure(path, HostPathType::DirectoryOrCreate)? {
                    own(path, spec.owner).map_err(io_error("setting the owner of", path))?;
                }
                limited(false).unwrap_or_else(|error| Some(told(&error)))
            }
            VolumeSource::HostPath(path, kind) => {
                if host_path::ensure(path, *kind)? && path.is_dir() {
                    own(path, spec.owner).map_err(io_error("setting the owner of", path))?;
                }
                foreign(spec, path)
            }
            VolumeSource::Nfs(_) => self.ensure_mounted(spec)?.or_else(|| foreign(spec, &path)),
            VolumeSource::Tmpfs | VolumeSource::Block(_) => self.ensure_mounted(spec)?,
        };
        let capacity_problem = problem.filter(|_| spec.capacity.is_some());
        Ok(Volume { key: spec.key.clone(), path, complete: true, capacity_problem })
    }

    fn write_meta(&self, spec: &VolumeSpec) -> Result<(), Error> {
        let dir = volume_dir(&self.data_dir, &spec.key);
        let meta = dir.join("meta.json");
        let write = || {
            let text = serde_json::to_vec_pretty(spec)?;
            if std::fs::read(&meta).is_ok_and(|found| found == text) {
                return Ok(());
            }
            DirBuilder::new().recursive(true).mode(0o755).create(&dir)?;
            let draft = dir.join("meta.json.new");
            std::fs::write(&draft, text)?;
            // The name must not survive a power failure without the content.
            std::fs::File::open(&draft)?.sync_all()?;
            std::fs::rename(&draft, &meta)
        };
        write().map_err(io_error("writing", &meta))
    }

    fn remove_now(&self, spec: &VolumeSpec, delete_data: bool) -> Result<(), Error> {
        let dir = volume_dir(&self.data_dir, &spec.key);
        // What is in memory would be lost with its mount.
        if delete_data || spec.source != VolumeSource::Tmpfs {
            self.remove_mount(&spec.key)?;
        }
        match (spec.source.is_ours(), delete_data) {
            // Kept with its description: it is listed, and adopted by the next volume of this name.
            (true, false) => return Ok(()),
            (true, true) => {
                self.delete(&dir).map_err(io_error("removing", &dir))?;
                self.projects.release(&dir)?;
            }
            (false, _) => {
                if matches!(spec.source, VolumeSource::LocalPath(_)) {
                    self.projects.release(&self.path(spec))?;
                }
                let meta = dir.join("meta.json");
                match std::fs::remove_file(&meta) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error("removing", &meta)(error));
                    }
                    _ => {}
                }
                let _ = std::fs::remove_dir(&dir);
            }
        }
        // Only when it was the last of its namespace.
        let _ = dir.parent().map(std::fs::remove_dir);
        Ok(())
    }

    /// Moved away in one step before it is deleted: half of its data can then never be adopted.
    fn delete(&self, dir: &Path) -> io::Result<()> {
        mounts::unmount_all(dir)?;
        let removed = self.removed_dir();
        let away = removed.join(uuid::Uuid::new_v4().to_string());
        let moved = {
            let _held = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
            DirBuilder::new().recursive(true).mode(0o700).create(&removed)?;
            std::fs::rename(dir, &away)
        };
        let result = match moved {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => mounts::remove_tree(&away),
        };
        let _held = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        // Stays while something else is on its way out.
        let _ = std::fs::remove_dir(&removed);
        result
    }

    fn usage_now(&self, spec: &VolumeSpec) -> Result<Usage, Error> {
        let path = self.path(spec);
        if matches!(spec.source, VolumeSource::Tmpfs | VolumeSource::Block(_) | VolumeSource::Nfs(_)) {
            return self.usage_of_mount(spec);
        }
        let quota = self.projects.quota(&path)?;
        let stat = rustix::fs::statvfs(&path).map_err(|error| io_error("measuring", &path)(error.into()))?;
        // Of a directory the file system only knows the sum with all others.
        let own_file_system = is_mount(&path);
        let used = || own_file_system.then(|| stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize);
        Ok(Usage {
            capacity_bytes: quota.and_then(|quota| quota.limit).unwrap_or(stat.f_blocks * stat.f_frsize),
            used_bytes: quota.map(|quota| quota.used).or_else(used),
        })
    }
}

#[async_trait]
impl Volumes for LinuxVolumes {
    async fn list(&self) -> Result<Vec<Volume>, Error> {
        self.blocking(|this| this.list_now()).await
    }

    async fn ensure(&self, spec: &VolumeSpec) -> Result<Volume, Error> {
        let spec = spec.clone();
        self.blocking(move |this| this.ensure_now(&spec)).await
    }

    async fn remove(&self, spec: &VolumeSpec, delete_data: bool) -> Result<(), Error> {
        let spec = spec.clone();
        self.blocking(move |this| this.remove_now(&spec, delete_data)).await
    }

    async fn check_mounted(&self, path: &Path) -> Result<(), Error> {
        let path = path.to_owned();
        self.blocking(move |this| this.check_mounted_now(&path)).await
    }

    async fn usage(&self, spec: &VolumeSpec) -> Result<Usage, Error> {
        let spec = spec.clone();
        self.blocking(move |this| this.usage_now(&spec)).await
    }

    async fn give_to_group(&self, root: &Path, gid: u32) -> Result<(), Error> {
        let root = root.to_owned();
        self.blocking(move |this| if this.is_ours(&root) { group::give(&root, gid) } else { Ok(()) }).await
    }

    async fn wants_content(&self, root: &Path) -> Result<bool, Error> {
        let root = root.to_owned();
        self.blocking(move |_| populate::is_wanted(&root)).await
    }

    async fn populate(&self, sandbox: &SandboxId, root: &Path, content: &Content) -> Result<(), Error> {
        let (sandbox, root, content) = (sandbox.clone(), root.to_owned(), content.clone());
        self.blocking(move |this| this.populate_now(&sandbox, &root, &content)).await
    }

    async fn ensure_ephemeral(&self, spec: &EphemeralSpec) -> Result<PathBuf, Error> {
        let spec = spec.clone();
        self.blocking(move |this| this.ensure_ephemeral_now(&spec)).await
    }

    async fn ensure_host_path(&self, path: &Path, kind: HostPathType) -> Result<PathBuf, Error> {
        let path = path.to_owned();
        self.blocking(move |_| host_path::ensure(&path, kind).map(|_| path)).await
    }

    async fn ensure_sub_path(&self, sandbox: &SandboxId, root: &Path, sub_path: &str) -> Result<PathBuf, Error> {
        let (sandbox, root, sub_path) = (sandbox.clone(), root.to_owned(), sub_path.to_owned());
        self.blocking(move |this| this.ensure_sub_path_now(&sandbox, &root, &sub_path)).await
    }

    fn ephemeral_dir(&self, sandbox: &SandboxId) -> PathBuf {
        disk_dir(&self.data_dir, sandbox)
    }

    async fn remove_ephemeral(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let sandbox = sandbox.clone();
        self.blocking(move |this| this.remove_ephemeral_now(&sandbox)).await
    }

    async fn list_ephemeral(&self) -> Result<Vec<SandboxId>, Error> {
        Ok(self.blocking(|this| this.list_ephemeral_now()).await)
    }
}

/// Why the capacity of what is not ours does not hold.
fn foreign(spec: &VolumeSpec, path: &Path) -> Option<String> {
    let _ = spec.capacity?;
    Some(format!("{} is not limited: whoever owns it says what it may hold", path.display()))
}

/// Names in a directory, in order.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        other => other.map_err(io_error("reading", dir)),
    }
}

#[cfg(test)]
mod tests;
