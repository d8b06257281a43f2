//! Directories that live and die with a sandbox.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::LinuxVolumes;
use super::dirs::{ensure_tmpfs, make_owned};
use crate::failpoint::passed;
use crate::ids::SandboxId;
use crate::mounts;
use crate::room::size;
use crate::sandbox::linux::ids_below;
use crate::sandbox::sandbox_dir;
use crate::volumes::paths::{check_file_path, check_name, disk_dir, memory_dir, sub_path_mount, sub_paths_dir};
use crate::volumes::{
    Content, Ephemeral, EphemeralSpec, Error, Owner, failed, files, io_error, populate, snapshot, sub_path, told,
};

impl LinuxVolumes {
    pub(super) fn ensure_ephemeral_now(&self, spec: &EphemeralSpec) -> Result<PathBuf, Error> {
        check_name(&spec.name)?;
        let in_memory = memory_dir(&self.run_dir, &spec.sandbox).join(&spec.name);
        let on_disk = disk_dir(&self.data_dir, &spec.sandbox).join(&spec.name);
        let any = Owner { uid: 0, gid: 0, mode: 0o777 };
        match &spec.kind {
            Ephemeral::Disk { size_limit } => {
                make_owned(&on_disk, any).map_err(io_error("making", &on_disk))?;
                passed("making a volume on disk");
                // What the filesystem does not hold to is watched.
                match self.projects.ensure(&on_disk, *size_limit, false) {
                    Ok(None) => {}
                    Ok(Some(why)) => tracing::debug!("{why}"),
                    Err(error) => tracing::warn!("{}", told(&error)),
                }
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
                let writing = |source| {
                    let bytes: usize = files.values().map(|file| file.data.len()).sum();
                    let what =
                        format!("writing {} files with {} to {}", files.len(), size(bytes as u64), path.display());
                    failed(&path, what)(source)
                };
                files::write(&path, files, *gid).map_err(writing)?;
                passed("the files of a volume");
                Ok(path)
            }
            Ephemeral::Image(mounts) => {
                let mount = || {
                    if is_mount_point(&in_memory)? {
                        return Ok(());
                    }
                    DirBuilder::new().recursive(true).mode(0o755).create(&in_memory)?;
                    snapshot::mount_read_only(mounts, &in_memory)
                };
                mount().map_err(io_error("mounting an image at", &in_memory))?;
                passed("mounting an image");
                Ok(in_memory)
            }
        }
    }

    pub(super) fn populate_now(&self, sandbox: &SandboxId, root: &Path, content: &Content) -> Result<(), Error> {
        let turn = {
            let mut all = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(root.to_owned()).or_default().clone()
        };
        let _held = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !populate::is_wanted(root)? {
            return Ok(());
        }
        populate::from_snapshot(&self.run_dir, sandbox, content, root)
    }

    pub(super) fn ensure_sub_path_now(
        &self,
        sandbox: &SandboxId,
        root: &Path,
        sub_path: &str,
    ) -> Result<PathBuf, Error> {
        let mount_point = sub_path_mount(&self.run_dir, sandbox, root, sub_path);
        sub_path::bind(root, sub_path, &mount_point)?;
        Ok(mount_point)
    }

    pub(super) fn remove_ephemeral_now(&self, sandbox: &SandboxId) -> Result<(), Error> {
        // Sub-paths first: they are mounts of what comes after.
        for dir in [
            sub_paths_dir(&self.run_dir, sandbox),
            memory_dir(&self.run_dir, sandbox),
            disk_dir(&self.data_dir, sandbox),
        ] {
            mounts::remove_tree(&dir).map_err(io_error("removing", &dir))?;
            passed("removing a directory of volumes");
        }
        self.projects.release(&disk_dir(&self.data_dir, sandbox))?;
        // Only when there is no sandbox (any more), in which case it is empty.
        let _ = std::fs::remove_dir(sandbox_dir(&self.run_dir, sandbox));
        Ok(())
    }

    pub(super) fn list_ephemeral_now(&self) -> Vec<SandboxId> {
        let in_memory = ids_below(&self.run_dir.join("sandboxes"))
            .into_iter()
            .filter(|id| memory_dir(&self.run_dir, id).exists() || sub_paths_dir(&self.run_dir, id).exists());
        let mut ids: Vec<_> = ids_below(&self.data_dir.join("ephemeral")).into_iter().chain(in_memory).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

/// By the mount table: a bind mount has the device of what it shows.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(mounts::table()?.iter().any(|mount| mount.path == path))
}
