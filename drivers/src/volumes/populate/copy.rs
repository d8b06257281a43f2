//! Copying a tree by descriptors, with all that a filesystem knows of its files.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::DIRECTORY;

/// As many directories are open at a time.
const MAX_DEPTH: usize = 256;
/// The kernel's own limits.
const MAX_NAMES: usize = 64 << 10;
const MAX_VALUE: usize = 64 << 10;

/// Copies what `from` holds, and its own attributes, into the empty directory `to`.
pub(super) fn tree(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut copier = Copier { links: HashMap::new() };
    copier.directory(from, to, 0)
}

struct Copier {
    /// Where files with several names went, by device and inode.
    links: HashMap<(u64, u64), (OwnedFd, CString)>,
}

impl Copier {
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("directories are nested more than {MAX_DEPTH} deep")));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entry(from, to, name, depth)?;
            }
        }
        // Last: entries change the times, and a mode may forbid writing.
        attributes(from, to)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let inner = rustix::fs::openat(from, name, DIRECTORY, Mode::empty())?;
                self.directory(&inner, &rustix::fs::openat(to, name, DIRECTORY, Mode::empty())?, depth + 1)
            }
            FileType::RegularFile => self.file(from, to, name, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target, to, name)?;
                own_entry(to, name, &stat)
            }
            kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
                rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
                own_entry(to, name, &stat)
            }
            // Nobody listens at a socket in an image.
            _ => Ok(()),
        }
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some((directory, first)) = self.links.get(&key) {
            return Ok(rustix::fs::linkat(directory, first, to, name, AtFlags::empty())?);
        }
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = File::from(rustix::fs::openat(from, name, flags | OFlags::RDONLY, Mode::empty())?);
        let new = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let copy = File::from(rustix::fs::openat(to, name, new, Mode::RUSR | Mode::WUSR)?);
        if rustix::fs::ioctl_ficlone(&copy, &source).is_err() {
            io::copy(&mut &source, &mut &copy)?;
        }
        attributes(&source, &copy)?;
        if stat.st_nlink > 1 {
            self.links.insert(key, (to.try_clone()?, name.to_owned()));
        }
        Ok(())
    }
}

/// What has no descriptor of its own without being opened.
fn own_entry(directory: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(directory, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, extended attributes, mode and times, in this order: a new owner takes set-id bits and capabilities away.
pub(super) fn attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(&from)?;
    rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    extended_attributes(&from, &to)?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(rustix::fs::futimens(&to, &times(&stat))?)
}

fn extended_attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    for (name, value) in attributes_of(from)? {
        match rustix::fs::fsetxattr(&to, &name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => tracing::debug!(?name, "the volume's filesystem does not know this attribute"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The extended attributes of a file that are its own.
pub(in crate::volumes) fn attributes_of(from: impl AsFd) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0_u8; MAX_NAMES];
    let length = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Of the filesystem that the image is mounted with, and of our own.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"trusted.nodelet.") {
            continue;
        }
        let name = CString::new(name)?;
        let mut value = vec![0_u8; MAX_VALUE];
        let length = match rustix::fs::fgetxattr(&from, &name, &mut value[..]) {
            // Removed since.
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        value.truncate(length);
        found.push((name, value));
    }
    Ok(found)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: i64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap)] // the types differ between architectures
    Timestamps {
        last_access: time(stat.st_atime as i64, stat.st_atime_nsec as i64),
        last_modification: time(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
    }
}
