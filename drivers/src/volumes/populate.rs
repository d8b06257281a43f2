//! Filling an empty volume with what the image has at the mount path, as Docker does.
//!
//! # Contract
//! - All of it or nothing: the copy is made in a directory of its own within the volume, is brought to the disk, gets
//!   another name, and only then do its entries move to where they belong. A crash before the new name leaves something
//!   to be thrown away, one after it something to be gone on with; either is seen at the next call.
//! - Once: a volume that was filled is marked, so that what its users empty stays empty. (Where the filesystem knows no
//!   such marks, as NFS, an emptied volume is filled again.)
//! - Owner, modes, times, extended attributes, hard links, symbolic links and pipes are kept; no data is copied where the
//!   filesystem can share it.

use std::ffi::CStr;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::paths::memory_dir;
use super::{Content, Error, SnapshotMount, failed, io_error, snapshot};
use crate::failpoint::passed;
use crate::ids::SandboxId;
use crate::mounts;

mod copy;

/// The copy while it is made, and when it is whole.
const HALF: &str = ".nodelet-populating";
const WHOLE: &str = ".nodelet-populated";
/// Of a filesystem, not of a user.
const NO_CONTENT: [&str; 3] = ["lost+found", HALF, WHOLE];
const MARK: &str = "trusted.nodelet.populated";

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether the volume waits to be filled: nobody has written into it, or filling it was interrupted.
pub(crate) fn is_wanted(root: &Path) -> Result<bool, Error> {
    let look = || -> io::Result<bool> {
        let top = open(root)?;
        if [HALF, WHOLE].iter().any(|name| exists(&top, name)) {
            return Ok(true);
        }
        Ok(!is_marked(&top) && is_empty(&top)?)
    };
    look().map_err(io_error("looking into", root))
}

/// Whether the files of this snapshot can be had.
pub(crate) fn is_possible(image: &[SnapshotMount]) -> bool {
    snapshot::can_be_mounted(image).is_ok()
}

/// Fills `root` for a sandbox: the image is mounted below the sandbox's directory meanwhile, so that whatever interrupts
/// us is cleared with the sandbox.
pub(crate) fn from_snapshot(run_dir: &Path, sandbox: &SandboxId, content: &Content, root: &Path) -> Result<(), Error> {
    // No volume's name begins with a dot.
    let at = memory_dir(run_dir, sandbox).join(format!(".content-{}", uuid::Uuid::new_v4().simple()));
    let mount = || {
        DirBuilder::new().recursive(true).mode(0o755).create(&at)?;
        snapshot::mount_read_only(&content.image, &at)
    };
    let result = mount()
        .map_err(io_error("mounting an image at", &at))
        .and_then(|()| populate(root, &at, &content.path, content.keep_owner));
    mounts::remove_tree(&at).map_err(io_error("removing", &at))?;
    result
}

/// Fills `root` from `path` in the tree at `image`. Nothing happens when there is no such directory.
fn populate(root: &Path, image: &Path, path: &str, keep_owner: bool) -> Result<(), Error> {
    let filling = |source| failed(root, format!("filling {} with {path} of the image", root.display()))(source);
    let top = open(root).map_err(filling)?;
    if !exists(&top, WHOLE) {
        // As far as it came it may be anything.
        mounts::delete_tree(&root.join(HALF)).map_err(filling)?;
        if is_marked(&top) || !is_empty(&top).map_err(filling)? {
            return Ok(());
        }
        let Some(from) = find(image, path).map_err(filling)? else { return Ok(()) };
        if let Err(error) = make_copy(&top, &from) {
            // The space may be what it lacked.
            let _ = mounts::delete_tree(&root.join(HALF));
            return Err(filling(error));
        }
    }
    take_over(&top, root, keep_owner).map_err(filling)
}

/// The directory that a container would see; links in the image stay in the image.
fn find(image: &Path, path: &str) -> io::Result<Option<OwnedFd>> {
    let top = open(image)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&top, path.trim_start_matches('/'), flags, Mode::empty(), resolve) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Fills an empty volume with what `make` puts into the directory that it is given: all of it or nothing.
pub(super) fn fill(root: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    let fill = || -> io::Result<()> {
        let top = open(root)?;
        mounts::delete_tree(&root.join(HALF))?;
        if exists(&top, WHOLE) || !is_empty(&top)? {
            return Err(io::Error::other("the volume is not empty"));
        }
        make_half(&top, |_| make(&root.join(HALF))).inspect_err(|_| {
            let _ = mounts::delete_tree(&root.join(HALF));
        })?;
        take_over(&top, root, false)
    };
    fill().map_err(io_error("filling", root))
}

/// A name of the copy while it is made.
pub(super) fn is_staging(name: &CStr) -> bool {
    [HALF, WHOLE].iter().any(|staging| name.to_bytes() == staging.as_bytes())
}

pub(super) use copy::attributes_of;

fn make_copy(top: &OwnedFd, from: &OwnedFd) -> io::Result<()> {
    make_half(top, |half| copy::tree(from, half))
}

fn make_half(top: &OwnedFd, make: impl FnOnce(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
    rustix::fs::mkdirat(top, HALF, Mode::RWXU)?;
    let half = rustix::fs::openat(top, HALF, DIRECTORY, Mode::empty())?;
    passed("beginning to fill a volume");
    make(&half)?;
    passed("copying into a volume");
    // The new name must not reach the disk before what it names.
    rustix::fs::syncfs(top)?;
    rustix::fs::renameat(top, HALF, top, WHOLE)?;
    rustix::fs::fsync(top)?;
    passed("completing what a volume is filled with");
    Ok(())
}

/// Moves what was copied to where it belongs.
fn take_over(top: &OwnedFd, root: &Path, keep_owner: bool) -> io::Result<()> {
    let whole = rustix::fs::openat(top, WHOLE, DIRECTORY, Mode::empty())?;
    for entry in Dir::read_from(&whole)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match rustix::fs::renameat_with(&whole, name, top, name, RenameFlags::NOREPLACE) {
            // Another user of the volume was there first, and keeps what it wrote.
            Ok(()) | Err(Errno::EXIST | Errno::NOENT) => passed("moving an entry into a volume"),
            // Filesystems without that flag: nothing of the name was there when the copy began.
            Err(Errno::INVAL) => rustix::fs::renameat(&whole, name, top, name)?,
            Err(error) => return Err(error.into()),
        }
    }
    if !keep_owner {
        copy::attributes(&whole, top)?;
    }
    match rustix::fs::fsetxattr(top, MARK, b"1", XattrFlags::empty()) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::fsync(top)?;
    drop(whole);
    mounts::delete_tree(&root.join(WHOLE))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, DIRECTORY & !OFlags::NOFOLLOW, Mode::empty())?)
}

fn exists(top: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(top, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn is_marked(top: &OwnedFd) -> bool {
    rustix::fs::fgetxattr(top, MARK, &mut [0_u8; 8]).is_ok()
}

fn is_empty(top: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = entry.file_name().to_str().unwrap_or("?");
        if name != "." && name != ".." && !NO_CONTENT.contains(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
