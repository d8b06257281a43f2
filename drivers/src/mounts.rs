//! Mounts of this process's mount namespace: reading the table, unmounting and deleting whole trees safely.
//!
//! Facts: `proc_pid_mountinfo(5)`, `openat2(2)`.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPoint {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Mounts on it are seen by its peers in other mount namespaces.
    pub(crate) shared: bool,
}

/// All mounts, in the order they were mounted in.
pub(crate) fn table() -> io::Result<Vec<MountPoint>> {
    // The thread's own: a thread may have a mount namespace of its own.
    Ok(parse(&std::fs::read("/proc/thread-self/mountinfo")?))
}

fn parse(table: &[u8]) -> Vec<MountPoint> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 - ext3 /dev/root rw`
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ').skip(4);
    let path = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mut optional = fields.skip(1).take_while(|field| *field != b"-");
    Some(MountPoint { path, shared: optional.any(|field| field.starts_with(b"shared:")) })
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Unmounts everything at and below `path`, the latest first. Processes that use a mount keep it (it is detached).
pub(crate) fn unmount_all(path: &Path) -> io::Result<()> {
    for mount in table()?.iter().rev().filter(|mount| mount.path.starts_with(path)) {
        match unmount(&mount.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Gone already: with the mount it was on, or in the meantime.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => crate::failpoint::passed("an unmount"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Unmounts everything at and below `path` and deletes it with all it holds, see [`delete_tree`].
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    // On what is not there nothing is mounted, and reading the table takes its time where there are many.
    if matches!(std::fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    unmount_all(path)?;
    delete_tree(path)
}

/// Deletes `path` with all it holds. Follows no symlink, and refuses to delete through a mount. Absence is success.
pub(crate) fn delete_tree(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return std::fs::remove_file(path),
        Ok(_) => {}
    }
    let top = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
    let mut moved = 0;
    // A directory that is too deep is moved to the top, and then it is its turn.
    while !clear(top.as_fd(), top.as_fd(), 0, &mut moved)? {}
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Depth up to which a tree is walked with one open directory for each level.
const MAX_DEPTH: u32 = 64;

/// Deletes what `directory` holds. `false`: something was moved to the top and is still to be deleted.
fn clear(top: BorrowedFd<'_>, directory: BorrowedFd<'_>, depth: u32, moved: &mut u64) -> io::Result<bool> {
    let mut done = true;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Some(child) = open_directory(directory, name)? else {
            tolerate_absence(rustix::fs::unlinkat(directory, name, AtFlags::empty()))?;
            continue;
        };
        if depth == MAX_DEPTH {
            *moved += 1;
            let new_name = CString::new(format!(".removing-{}-{moved}", std::process::id()))?;
            rustix::fs::renameat(directory, name, top, new_name)?;
            done = false;
            continue;
        }
        done &= clear(top, child.as_fd(), depth + 1, moved)?;
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            // Somebody still writes there: the top cannot be removed then, and says so.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// Opens `name` if it is a directory of the same mount; `None` when it is no directory.
fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match rustix::fs::openat2(directory, name, DIRECTORY, Mode::empty(), resolve) {
        Ok(child) => Ok(Some(child)),
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn tolerate_absence(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_mount_namespace;

    #[test]
    fn the_table_is_parsed() {
        let table = b"36 35 98:0 / /a\\040b rw,noatime shared:1 master:2 - ext3 /dev/root rw\n\
                      37 35 98:0 / /c rw - tmpfs shared:1 rw\nnonsense\n";
        let mount = |path: &str, shared| MountPoint { path: path.into(), shared };
        assert_eq!(parse(table), [mount("/a b", true), mount("/c", false)]);
    }

    #[test]
    fn trees_are_deleted_and_what_is_mounted_in_them_is_kept() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
            std::fs::create_dir_all(tree.join("a/b")).unwrap();
            std::fs::create_dir(&kept).unwrap();
            std::fs::write(kept.join("file"), "x").unwrap();
            std::fs::write(tree.join("a/file"), "x").unwrap();
            std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
            for _ in 0..2 {
                rustix::mount::mount_bind(&kept, tree.join("a/b")).unwrap();
            }
            remove_tree(&tree).unwrap();
            assert!(!tree.exists());
            assert_eq!(std::fs::read_to_string(kept.join("file")).unwrap(), "x");
            remove_tree(&tree).unwrap();
        });
    }

    #[test]
    fn a_very_deep_tree_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut at = rustix::fs::openat(CWD, &tree, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deeper", DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
