//! Volumes that have to be mounted: in memory, from a file, from a server.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::dirs::{ensure_tmpfs, make_owned};
use super::{LinuxVolumes, names};
use crate::failpoint::passed;
use crate::ids::VolumeKey;
use crate::mounts;
use crate::volumes::paths::{invalid, mount_point, mounts_dir, volume_dir};
use crate::volumes::{Error, Usage, VolumeSource, VolumeSpec, block, io_error, nfs, told};

impl LinuxVolumes {
    /// Something is mounted for the volume.
    pub(super) fn is_mounted(&self, key: &VolumeKey) -> Result<bool, Error> {
        let at = mount_point(&self.run_dir, key);
        // The mount itself is not asked: its server may not answer.
        let table = mounts::table().map_err(io_error("reading the mounts at", &at))?;
        Ok(table.iter().any(|mount| mount.path == at))
    }

    /// Says why it is smaller than it should be, if it is.
    pub(super) fn ensure_mounted(&self, spec: &VolumeSpec) -> Result<Option<String>, Error> {
        let at = mount_point(&self.run_dir, &spec.key);
        let mounted = self.is_mounted(&spec.key)?;
        if !mounted {
            DirBuilder::new().recursive(true).mode(0o755).create(&at).map_err(io_error("making", &at))?;
        }
        let mut smaller = None;
        match &spec.source {
            VolumeSource::Tmpfs => {
                ensure_tmpfs(&at, 0o755, spec.capacity, false).map_err(io_error("mounting", &at))?;
                passed("mounting a volume in memory");
            }
            VolumeSource::Block(fs) => {
                let size = spec.capacity.ok_or_else(|| invalid("capacity", "a block volume needs one".to_owned()))?;
                let image = volume_dir(&self.data_dir, &spec.key).join("image");
                let shorter = block::ensure_file(&image, *fs, size)?;
                smaller = block::ensure_mounted(&image, *fs, &at, mounted)?.or(shorter).map(|error| told(&error));
            }
            VolumeSource::Nfs(export) => {
                // It belongs to whoever exports it.
                let ready = match mounted {
                    true => self.answers(&at),
                    false => nfs::mount_export(&self.waiting, export, &at),
                };
                return ready.map(|()| None);
            }
            VolumeSource::Local | VolumeSource::LocalPath(_) | VolumeSource::HostPath(..) => return Ok(None),
        }
        let data = self.path(spec);
        make_owned(&data, spec.owner).map_err(io_error("making", &data))?;
        Ok(smaller)
    }

    /// The directory was made by us, and belongs to nobody else.
    pub(super) fn is_ours(&self, path: &Path) -> bool {
        let ephemeral = [self.data_dir.join("ephemeral"), self.run_dir.join("sandboxes")];
        // An export is at the mount point itself.
        let volumes = [self.data_dir.join("volumes"), mounts_dir(&self.run_dir)];
        ephemeral.iter().any(|top| path.starts_with(top))
            || (volumes.iter().any(|top| path.starts_with(top)) && path.file_name().is_some_and(|name| name == "data"))
    }

    fn answers(&self, at: &Path) -> Result<(), Error> {
        let path = at.to_owned();
        match self.waiting.run(at, nfs::PATIENCE, move || std::fs::metadata(&path).map(drop)) {
            Some(result) => result.map_err(io_error("asking the server of", at)),
            None => Err(io_error("asking the server of", at)(nfs::no_answer())),
        }
    }

    /// See [`crate::volumes::Volumes::check_mounted`].
    pub(super) fn check_mounted_now(&self, path: &Path) -> Result<(), Error> {
        let Ok(below) = path.strip_prefix(mounts_dir(&self.run_dir)) else { return Ok(()) };
        let key: std::path::PathBuf = below.components().take(2).collect();
        let Some(key) = key.to_str().and_then(|key| VolumeKey::new(key).ok()) else { return Ok(()) };
        if !self.is_mounted(&key)? {
            // As after a boot; a container would write into the empty mount point.
            let source = io::Error::new(io::ErrorKind::NotFound, "it is not mounted yet");
            return Err(io_error("using", path)(source));
        }
        let at = mount_point(&self.run_dir, &key);
        // Only an export is used at its mount point, and only a server may keep us waiting.
        if path == at { self.answers(&at) } else { Ok(()) }
    }

    /// Takes away what is mounted for the volume. Containers that have it keep it until they end.
    pub(super) fn remove_mount(&self, key: &VolumeKey) -> Result<(), Error> {
        let at = mount_point(&self.run_dir, key);
        if self.is_mounted(key)? {
            nfs::unmount_export(&self.waiting, &at).map_err(io_error("unmounting", &at))?;
            passed("unmounting a volume");
        }
        mounts::remove_tree(&at).map_err(io_error("removing", &at))?;
        // Only when it was the last of its namespace.
        let _ = at.parent().map(std::fs::remove_dir);
        Ok(())
    }

    /// Mounts without a volume are left by a removal that was interrupted.
    pub(super) fn unmount_strangers(&self) -> io::Result<()> {
        let top = mounts_dir(&self.run_dir);
        let failed = |error: Error| io::Error::other(error.to_string());
        for namespace in names(&top).map_err(failed)? {
            for name in names(&top.join(&namespace)).map_err(failed)? {
                let Ok(key) = VolumeKey::new(format!("{namespace}/{name}")) else { continue };
                if !volume_dir(&self.data_dir, &key).join("meta.json").exists() {
                    self.remove_mount(&key).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn usage_of_mount(&self, spec: &VolumeSpec) -> Result<Usage, Error> {
        let at = mount_point(&self.run_dir, &spec.key);
        if !self.is_mounted(&spec.key)? {
            return Err(io_error("measuring", &at)(io::ErrorKind::NotFound.into()));
        }
        let stat = match spec.source {
            VolumeSource::Nfs(_) => {
                let path = at.clone();
                let stat = self.waiting.run(&at, nfs::PATIENCE, move || rustix::fs::statvfs(&path));
                stat.unwrap_or(Err(rustix::io::Errno::TIMEDOUT))
            }
            _ => rustix::fs::statvfs(&at),
        };
        let stat = stat.map_err(|error| io_error("measuring", &at)(error.into()))?;
        Ok(Usage {
            capacity_bytes: stat.f_blocks * stat.f_frsize,
            used_bytes: Some(stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize),
        })
    }
}
