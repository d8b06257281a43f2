//! Volumes on the file system. Layout:
//!
//! ```text
//! <dataDir>/volumes/<namespace>/<name>/meta.json     what it should be, with the uid of its object
//!                                      data/         the data of a directory of ours
//! <dataDir>/volumes/.removed/                        directories on their way out
//! <dataDir>/ephemeral/<sandbox>/<name>/              on disk, gone with the sandbox
//! <runDir>/sandboxes/<sandbox>/volumes/<name>/       tmpfs, gone with the sandbox
//! <runDir>/sandboxes/<sandbox>/subpaths/<hash>       bind mount of a part of a volume
//! ```

use std::ffi::CString;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use super::paths::{check_file_path, check_name, disk_dir, memory_dir, sub_path_mount, sub_paths_dir, volume_dir};
use super::{
    Ephemeral, EphemeralSpec, Error, HostPathType, Owner, Usage, Volume, VolumeSource, VolumeSpec, Volumes, files,
    host_path, sub_path,
};
use crate::failpoint::passed;
use crate::ids::{SandboxId, VolumeKey};
use crate::mounts;
use crate::sandbox::linux::ids_below;
use crate::sandbox::sandbox_dir;

/// The volumes of this node, below one data and one run directory.
#[derive(Debug, Clone)]
pub struct LinuxVolumes {
    data_dir: PathBuf,
    run_dir: PathBuf,
    /// Held while the directory of what is on its way out appears, is moved into, and disappears.
    leaving: Arc<Mutex<()>>,
}

impl LinuxVolumes {
    /// Makes the directories, and finishes removals that were interrupted.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> io::Result<Self> {
        let (data_dir, run_dir) = (data_dir.into(), run_dir.into());
        for (dir, mode) in
            [(data_dir.join("volumes"), 0o755), (data_dir.join("ephemeral"), 0o700), (run_dir.join("sandboxes"), 0o700)]
        {
            DirBuilder::new().recursive(true).mode(0o755).create(dir.parent().unwrap_or(&dir))?;
            DirBuilder::new().recursive(true).mode(mode).create(&dir)?;
        }
        // As the mount table has them.
        let this =
            Self { data_dir: data_dir.canonicalize()?, run_dir: run_dir.canonicalize()?, leaving: Arc::default() };
        mounts::remove_tree(&this.removed_dir())?;
        Ok(this)
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
        match &spec.source {
            VolumeSource::Local => volume_dir(&self.data_dir, &spec.key).join("data"),
            VolumeSource::LocalPath(path) | VolumeSource::HostPath(path, _) => path.clone(),
        }
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
                };
                Some(Volume { key: key.clone(), path, complete })
            }
            None => {
                let path = dir.join("data");
                path.is_dir().then(|| Volume { key: key.clone(), path, complete: false })
            }
        })
    }

    fn ensure_now(&self, spec: &VolumeSpec) -> Result<Volume, Error> {
        // Recorded first, so that whatever is made is found again.
        self.write_meta(spec)?;
        let path = self.path(spec);
        match &spec.source {
            VolumeSource::Local => make_owned(&path, spec.owner).map_err(io_error("making", &path))?,
            VolumeSource::LocalPath(path) => {
                if host_path::ensure(path, HostPathType::DirectoryOrCreate)? {
                    own(path, spec.owner).map_err(io_error("setting the owner of", path))?;
                }
            }
            VolumeSource::HostPath(path, kind) => {
                if host_path::ensure(path, *kind)? && path.is_dir() {
                    own(path, spec.owner).map_err(io_error("setting the owner of", path))?;
                }
            }
        }
        Ok(Volume { key: spec.key.clone(), path, complete: true })
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
        match (&spec.source, delete_data) {
            // Kept with its description: it is listed, and adopted by the next volume of this name.
            (VolumeSource::Local, false) => return Ok(()),
            (VolumeSource::Local, true) => self.delete(&dir).map_err(io_error("removing", &dir))?,
            (VolumeSource::LocalPath(_) | VolumeSource::HostPath(..), _) => {
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
        let stat = rustix::fs::statvfs(&path).map_err(|error| io_error("measuring", &path)(error.into()))?;
        // Of a directory the file system only knows the sum with all others.
        let own_file_system = is_mount(&path);
        Ok(Usage {
            capacity_bytes: stat.f_blocks * stat.f_frsize,
            used_bytes: own_file_system.then(|| stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize),
        })
    }

    fn ensure_ephemeral_now(&self, spec: &EphemeralSpec) -> Result<PathBuf, Error> {
        check_name(&spec.name)?;
        let in_memory = memory_dir(&self.run_dir, &spec.sandbox).join(&spec.name);
        let on_disk = disk_dir(&self.data_dir, &spec.sandbox).join(&spec.name);
        let any = Owner { uid: 0, gid: 0, mode: 0o777 };
        match &spec.kind {
            Ephemeral::Disk => {
                make_owned(&on_disk, any).map_err(io_error("making", &on_disk))?;
                passed("making a volume on disk");
                Ok(on_disk)
            }
            Ephemeral::Memory { size_limit } => {
                ensure_tmpfs(&in_memory, 0o777, *size_limit, false).map_err(io_error("mounting", &in_memory))?;
                passed("making a volume in memory");
                Ok(in_memory)
            }
            Ephemeral::Files { files, in_memory: secret, gid } => {
                files.keys().try_for_each(|path| check_file_path(path))?;
                let path = if *secret { in_memory } else { on_disk };
                if *secret {
                    ensure_tmpfs(&path, 0o755, None, true).map_err(io_error("mounting", &path))?;
                    passed("making a secret volume");
                } else {
                    make_owned(&path, Owner { mode: 0o755, ..any }).map_err(io_error("making", &path))?;
                }
                files::write(&path, files, *gid).map_err(io_error("writing the files of", &path))?;
                passed("the files of a volume");
                Ok(path)
            }
        }
    }

    fn ensure_sub_path_now(&self, sandbox: &SandboxId, root: &Path, sub_path: &str) -> Result<PathBuf, Error> {
        let mount_point = sub_path_mount(&self.run_dir, sandbox, root, sub_path);
        sub_path::bind(root, sub_path, &mount_point)?;
        Ok(mount_point)
    }

    fn remove_ephemeral_now(&self, sandbox: &SandboxId) -> Result<(), Error> {
        // Sub-paths first: they are mounts of what comes after.
        for dir in [
            sub_paths_dir(&self.run_dir, sandbox),
            memory_dir(&self.run_dir, sandbox),
            disk_dir(&self.data_dir, sandbox),
        ] {
            mounts::remove_tree(&dir).map_err(io_error("removing", &dir))?;
            passed("removing a directory of volumes");
        }
        // Only when there is no sandbox (any more), in which case it is empty.
        let _ = std::fs::remove_dir(sandbox_dir(&self.run_dir, sandbox));
        Ok(())
    }

    fn list_ephemeral_now(&self) -> Vec<SandboxId> {
        let in_memory = ids_below(&self.run_dir.join("sandboxes"))
            .into_iter()
            .filter(|id| memory_dir(&self.run_dir, id).exists() || sub_paths_dir(&self.run_dir, id).exists());
        let mut ids: Vec<_> = ids_below(&self.data_dir.join("ephemeral")).into_iter().chain(in_memory).collect();
        ids.sort();
        ids.dedup();
        ids
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

    async fn usage(&self, spec: &VolumeSpec) -> Result<Usage, Error> {
        let spec = spec.clone();
        self.blocking(move |this| this.usage_now(&spec)).await
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

    async fn remove_ephemeral(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let sandbox = sandbox.clone();
        self.blocking(move |this| this.remove_ephemeral_now(&sandbox)).await
    }

    async fn list_ephemeral(&self) -> Result<Vec<SandboxId>, Error> {
        Ok(self.blocking(|this| this.list_ephemeral_now()).await)
    }
}

fn io_error(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let doing = format!("{verb} {}", path.display());
    move |source| Error::Io { doing, source }
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

/// Makes the directory with its owner and mode, in one step: a directory that exists is never half made, and keeps
/// what its users changed.
fn make_owned(path: &Path, owner: Owner) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(path);
    DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    mounts::remove_tree(&draft)?;
    DirBuilder::new().mode(0o700).create(&draft)?;
    own(&draft, owner)?;
    std::fs::rename(&draft, path)
}

/// The owner before the mode, because chown clears set-id bits.
fn own(path: &Path, owner: Owner) -> io::Result<()> {
    chown(path, Some(owner.uid), Some(owner.gid))?;
    std::fs::set_permissions(path, Permissions::from_mode(owner.mode & 0o7777))
}

fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let parent = path.parent().and_then(device);
    parent.is_some() && device(path).is_some() && device(path) != parent
}

/// Mounts a tmpfs, or gives the one that is there another size.
fn ensure_tmpfs(path: &Path, mode: u32, size: Option<u64>, secret: bool) -> io::Result<()> {
    let option = |size: u64| format!("size={size}");
    if is_mount(path) {
        let Some(size) = size else { return Ok(()) };
        let stat = rustix::fs::statvfs(path)?;
        // The kernel rounds up to whole pages.
        if stat.f_blocks == size.div_ceil(stat.f_frsize) {
            return Ok(());
        }
        return Ok(mount_remount(path, MOUNT_FLAGS, CString::new(option(size))?.as_c_str())?);
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    let options = format!("mode={mode:o}{}", size.map(|size| format!(",{}", option(size))).unwrap_or_default());
    if secret {
        // Since kernel 6.4. Without it, what is in memory may reach the disk through swap.
        let noswap = CString::new(format!("{options},noswap"))?;
        match mount("tmpfs", path, "tmpfs", MOUNT_FLAGS, Some(noswap.as_c_str())) {
            Err(Errno::INVAL) => {}
            other => return Ok(other?),
        }
    }
    let options = CString::new(options)?;
    Ok(mount("tmpfs", path, "tmpfs", MOUNT_FLAGS, Some(options.as_c_str()))?)
}

const MOUNT_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

#[cfg(test)]
mod tests;
