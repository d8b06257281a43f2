//! Directories with an owner, and filesystems in memory.

use std::ffi::CString;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::mounts;
use crate::volumes::Owner;

/// Makes the directory with its owner and mode, in one step: a directory that exists is never half made, and keeps
/// what its users changed.
pub(super) fn make_owned(path: &Path, owner: Owner) -> io::Result<()> {
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
pub(super) fn own(path: &Path, owner: Owner) -> io::Result<()> {
    chown(path, Some(owner.uid), Some(owner.gid))?;
    std::fs::set_permissions(path, Permissions::from_mode(owner.mode & 0o7777))
}

pub(super) fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let parent = path.parent().and_then(device);
    parent.is_some() && device(path).is_some() && device(path) != parent
}

/// Mounts a tmpfs, or gives the one that is there another size.
pub(super) fn ensure_tmpfs(path: &Path, mode: u32, size: Option<u64>, secret: bool) -> io::Result<()> {
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

pub(super) const MOUNT_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
