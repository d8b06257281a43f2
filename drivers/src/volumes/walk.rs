//! Going through all that a volume holds, while its users change it.
//!
//! # Contract
//! - A directory is shown before what it holds, so that what is made in it meanwhile is made in one that was seen.
//! - No symlink is followed, and no other mount is entered.
//! - What goes or is replaced on the way is passed over.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// As many directories are open at a time.
const MAX_DEPTH: usize = 256;

/// Something in a volume.
pub(super) struct Found<'a> {
    /// Where it is.
    pub(super) directory: BorrowedFd<'a>,
    /// Its name there.
    pub(super) name: &'a CStr,
    /// What it was when it was seen.
    pub(super) stat: &'a Stat,
    /// Itself, if it is a directory.
    pub(super) opened: Option<&'a OwnedFd>,
}

impl Found<'_> {
    /// What it is.
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Opens a regular file to look at it; `None` when it is no longer there, or is something else by now.
    pub(super) fn open_file(&self) -> io::Result<Option<OwnedFd>> {
        open(self.directory, self.name, self.stat)
    }
}

/// Shows all that is below `directory`, itself not included.
pub(super) fn below(directory: BorrowedFd<'_>, visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>) -> io::Result<()> {
    deeper(directory, 0, visit)
}

fn deeper(
    directory: BorrowedFd<'_>,
    depth: usize,
    visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("directories are nested more than {MAX_DEPTH} deep")));
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let opened = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match open(directory, name, &stat)? {
                None => continue,
                some => some,
            },
            _ => None,
        };
        visit(&Found { directory, name, stat: &stat, opened: opened.as_ref() })?;
        if let Some(opened) = opened {
            deeper(opened.as_fd(), depth + 1, visit)?;
        }
    }
    Ok(())
}

fn open(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<Option<OwnedFd>> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    // A pipe that took the file's place must not keep us waiting for its writer.
    let how = if kind == FileType::Directory { OFlags::DIRECTORY } else { OFlags::NONBLOCK };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | how;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let found = match rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve) {
        Ok(found) => found,
        // Gone, replaced, or of another mount.
        Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let now = rustix::fs::fstat(&found)?;
    Ok((FileType::from_raw_mode(now.st_mode) == kind).then_some(found))
}
