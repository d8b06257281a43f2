//! A volume that belongs to a group: `fsGroup`.
//!
//! # Contract
//! - Afterwards everything in the volume belongs to the group and can be read and written by it; new files inherit it.
//! - The top directory changes last and tells that all is done: a volume whose top is right is not walked again.
//! - No symlink is followed, and no other mount is entered.
//!
//! Facts: the kubelet's rules for `fsGroup` with `fsGroupChangePolicy: OnRootMismatch`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat};

use super::Error;
use super::walk::{self, Found};

const FILES: u32 = 0o660;
/// The set-gid bit: what is made there has the directory's group.
const DIRECTORIES: u32 = 0o2770;

/// Gives the volume at `root` to the group.
pub(super) fn give(root: &Path, gid: u32) -> Result<(), Error> {
    let give = || -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&top)?;
        if is_right(&stat, gid, DIRECTORIES) {
            return Ok(());
        }
        walk::below(top.as_fd(), &mut |found| give_entry(found, gid))?;
        change(&top, gid, DIRECTORIES)
    };
    give().map_err(|source| Error::Io { doing: format!("giving {} to group {gid}", root.display()), source })
}

fn is_right(stat: &Stat, gid: u32, mode: u32) -> bool {
    stat.st_gid == gid && stat.st_mode & mode == mode
}

fn give_entry(found: &Found<'_>, gid: u32) -> io::Result<()> {
    match found.kind() {
        FileType::Directory => found.opened.map_or(Ok(()), |opened| change(opened, gid, DIRECTORIES)),
        FileType::RegularFile if is_right(found.stat, gid, FILES) => Ok(()),
        FileType::RegularFile => found.open_file()?.map_or(Ok(()), |file| change(&file, gid, FILES)),
        _ if found.stat.st_gid == gid => Ok(()),
        _ => {
            let group = Some(Gid::from_raw(gid));
            Ok(rustix::fs::chownat(found.directory, found.name, None, group, AtFlags::SYMLINK_NOFOLLOW)?)
        }
    }
}

/// The group before the mode, because another group clears set-id bits.
fn change(file: &OwnedFd, gid: u32, mode: u32) -> io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    if stat.st_gid != gid {
        rustix::fs::fchown(file, None, Some(Gid::from_raw(gid)))?;
    }
    if stat.st_gid != gid || stat.st_mode & mode != mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode((stat.st_mode & 0o7777) | mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn all_of_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/program"), "x").unwrap();
        std::fs::set_permissions(root.join("a/b/program"), std::fs::Permissions::from_mode(0o4700)).unwrap();
        std::fs::write(&outside, "x").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        give(&root, 2000).unwrap();
        let seen = |path: &Path| {
            let stat = std::fs::symlink_metadata(path).unwrap();
            (stat.gid(), stat.mode() & 0o7777)
        };
        for directory in [root.clone(), root.join("a"), root.join("a/b")] {
            assert_eq!(seen(&directory), (2000, 0o2775), "{}", directory.display());
        }
        assert_eq!(seen(&root.join("a/b/program")), (2000, 0o4760));
        assert_eq!(seen(&root.join("link")).0, 2000);
        assert_eq!(seen(&outside), (0, 0o600), "what a link leads to is not the volume's");

        // Its top is right, so nothing is walked.
        std::os::unix::fs::chown(root.join("a"), None, Some(7)).unwrap();
        give(&root, 2000).unwrap();
        assert_eq!(seen(&root.join("a")).0, 7);
        // An interrupted walk leaves the top as it was.
        std::os::unix::fs::chown(&root, None, Some(0)).unwrap();
        give(&root, 2000).unwrap();
        assert_eq!((seen(&root.join("a")).0, seen(&root).0), (2000, 2000));
    }
}
