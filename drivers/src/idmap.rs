//! Mounts on which the owners of files are other users than on their file system, as a user namespace has them
//! (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`; Documentation/filesystems/idmappings.rst).
//!
//! # Contract
//! - Nothing on the file system changes. What user 0 of the user namespace writes belongs to user 0 there.
//! - A file system that cannot be mounted like this (as NFS cannot) is told as [`io::ErrorKind::Unsupported`].
#![allow(unsafe_code)]

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Mounts `source`, with what is mounted below it, at `target`, which is made like it: a directory or a file.
/// `user_namespace` is an open namespace, by whose map owners are translated.
pub(crate) fn bind(source: &Path, target: &Path, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the descriptors are open, the path is a C string, and the structure is read during the call only, as many
    // bytes of it as are named.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP) => {
                let reason = "its file system cannot be mounted with other owners (ID-mapped mounts)";
                io::Error::new(io::ErrorKind::Unsupported, format!("{}: {reason}", source.display()))
            }
            _ => error,
        });
    }
    if std::fs::metadata(source)?.is_dir() {
        DirBuilder::new().recursive(true).mode(0o755).create(target)?;
    } else {
        File::options().create(true).append(true).mode(0o644).open(target)?;
    }
    Ok(move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
