//! A layer into a directory that becomes overlayfs's: its files, and marks for what it hides of the layers below.
//!
//! The directory need not be on top of anything: what the layer says does not depend on what is below, but for the
//! attributes of directories that it uses without describing them. Those are [`Extracted::implied`], to be copied from
//! below by [`adopt`] when that is there.
//!
//! Every name is looked up beneath the directory's own descriptor, with symbolic links resolved as if it were the root
//! (`openat2`), so no layer can reach out of it, whatever it contains and whoever changes it meanwhile.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, open, openat, openat2,
    statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::{Entry, Kind, Mark, Problem, mark, read};
use crate::images::manifest::Digest;

/// Bytes copied at once.
const CHUNK: usize = 64 << 10;

/// A layer that is in its directory.
#[derive(Debug)]
pub(in crate::images) struct Extracted {
    /// Digest of its decompressed bytes.
    pub(in crate::images) diff_id: Digest,
    /// Directories that it uses and does not describe, parents first; the empty path is the root.
    pub(in crate::images) implied: Vec<Vec<u8>>,
}

/// Extracts the blob into an empty directory; `base` says that nothing is below. Blocks.
pub(in crate::images) fn extract(blob: &Path, dir: &Path, base: bool, stop: &AtomicBool) -> Result<Extracted, Problem> {
    let root = open(dir, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Problem::io(format!("opening {}", dir.display()))(e.into()))?;
    let mut target = Target {
        root,
        base,
        parent: None,
        implied: BTreeSet::from([Vec::new()]),
        directories: Vec::new(),
        buffer: vec![0; CHUNK],
    };
    let diff_id = read(blob, stop, |entry, content| target.put(entry, content))?;
    target.finish()?;
    Ok(Extracted { diff_id, implied: target.implied.into_iter().collect() })
}

/// Gives directories that a layer did not describe the attributes that they have below; `lower` is top first. Blocks.
pub(in crate::images) fn adopt(dir: &Path, implied: &[Vec<u8>], lower: &[&Path]) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let open = |dir: &Path| open(dir, flags, Mode::empty());
    let (root, lower) = (open(dir)?, lower.iter().map(|dir| open(dir)).collect::<Result<Vec<_>, _>>()?);
    for path in implied {
        let path = if path.is_empty() { b"." } else { path.as_slice() };
        for layer in &lower {
            // Whatever is there instead of a directory hides what is further below.
            let below =
                match openat2(layer, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS) {
                    Ok(below) => below,
                    Err(Errno::NOENT) => continue,
                    Err(_) => break,
                };
            let stat = rustix::fs::fstat(&below)?;
            let above = openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)?;
            fchown(&above, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
            fchmod(&above, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            futimens(&above, &times((stat.st_mtime, stat.st_mtime_nsec as u32)))?;
            break;
        }
    }
    Ok(())
}

struct Target {
    root: OwnedFd,
    base: bool,
    /// The directory of the last entry: the next one is mostly there too.
    parent: Option<(Vec<u8>, OwnedFd)>,
    implied: BTreeSet<Vec<u8>>,
    /// Times of directories, which every entry in them would change.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
}

impl Target {
    fn put(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), Problem> {
        self.put_or(entry, content).map_err(|error| match error {
            Failed::Problem(problem) => problem,
            // What containerd might do better: no such call, or not for us.
            Failed::Errno(e @ (Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP)) => {
                Problem::Unusual(format!("{:?} ({e})", entry.name()))
            }
            Failed::Errno(e) => Problem::io(format!("making {:?}", entry.name()))(e.into()),
        })
    }

    fn put_or(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), Failed> {
        let Some((name, above)) = entry.path.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(Problem::refused(entry, "stands for the root and is no directory").into());
            }
            self.implied.remove(&b""[..]);
            self.directories.push((Vec::new(), entry.mtime));
            let root = self.root.as_fd();
            fchown(root, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
            set_xattrs(root.as_raw_fd(), entry)?;
            fchmod(root, Mode::from_raw_mode(entry.mode))?;
            return Ok(());
        };
        let path = above.join(&b'/');
        let mut parent = self.directory(above, &path)?;
        let done = match mark(entry)? {
            // Nothing is below that could be hidden.
            Mark::Opaque | Mark::Whiteout(_) if self.base => Ok(()),
            Mark::Opaque => make_opaque(&parent),
            Mark::Whiteout(hidden) => self.hide(&parent, hidden, entry),
            Mark::None => self.make(&mut parent, name, entry, content),
        };
        self.parent = Some((path, parent));
        done
    }

    /// The directory of that path, made if need be.
    fn directory(&mut self, components: &[Vec<u8>], path: &[u8]) -> Result<OwnedFd, Failed> {
        if let Some((known, parent)) = self.parent.take()
            && known == path
        {
            return Ok(parent);
        }
        match self.beneath(path) {
            Err(Failed::Errno(Errno::NOENT)) => {}
            other => return other,
        }
        for end in 1..=components.len() {
            let part = components[..end].join(&b'/');
            match self.beneath(&part) {
                Err(Failed::Errno(Errno::NOENT)) => {}
                Err(error) => return Err(error),
                Ok(_) => continue,
            }
            let above = self.beneath(&components[..end - 1].join(&b'/'))?;
            match mkdirat(&above, OsStr::from_bytes(&components[end - 1]), Mode::from_raw_mode(0o755)) {
                // A link that leads to what only another layer has.
                Err(Errno::EXIST) => {
                    let what = format!("the link {:?} to another layer", super::printable(&part));
                    return Err(Problem::Unusual(what).into());
                }
                other => other?,
            }
            self.implied.insert(part);
        }
        self.beneath(path)
    }

    /// Opens a directory, with symbolic links resolved as if ours were the root.
    fn beneath(&self, path: &[u8]) -> Result<OwnedFd, Failed> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
    }

    fn make(&mut self, parent: &mut OwnedFd, name: &[u8], entry: &Entry, content: &mut dyn Read) -> Result<(), Failed> {
        let there = lookup(parent, name)?;
        let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode as RawMode) == FileType::Directory;
        let keep = entry.kind == Kind::Directory && there.as_ref().is_some_and(is_directory);
        // A directory that takes the place of a mark hides what the mark hid.
        let hides = there.as_ref().is_some_and(is_whiteout);
        if there.is_some() && !keep {
            remove(parent, name)?;
        }
        let at = OsStr::from_bytes(name);
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        match &entry.kind {
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(&*parent, at, flags, Mode::from_raw_mode(0o600))?);
                copy(content, &mut file, &mut self.buffer, entry)?;
                fchown(&file, uid, gid)?;
                set_xattrs(file.as_raw_fd(), entry)?;
                fchmod(&file, Mode::from_raw_mode(entry.mode))?;
                futimens(&file, &times(entry.mtime))?;
                return Ok(());
            }
            Kind::Directory => {
                if !keep {
                    mkdirat(&*parent, at, Mode::from_raw_mode(0o700))?;
                }
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(&*parent, at, flags, Mode::empty())?;
                if hides {
                    make_opaque(&made)?;
                }
                fchown(&made, uid, gid)?;
                set_xattrs(made.as_raw_fd(), entry)?;
                fchmod(&made, Mode::from_raw_mode(entry.mode))?;
                let path = entry.path.join(&b'/');
                self.implied.remove(&path);
                self.directories.push((path, entry.mtime));
                return Ok(());
            }
            Kind::Hardlink(target) => {
                let Some((target_name, above)) = target.split_last() else {
                    return Err(Problem::refused(entry, "is a link to the root").into());
                };
                let unusual = || Problem::Unusual(format!("the link {:?} to another layer", entry.name()));
                let from = match self.beneath(&above.join(&b'/')) {
                    Err(Failed::Errno(Errno::NOENT)) => return Err(unusual().into()),
                    other => other?,
                };
                return match linkat(&from, OsStr::from_bytes(target_name), &*parent, at, AtFlags::empty()) {
                    Err(Errno::NOENT) => Err(unusual().into()),
                    other => Ok(other?),
                };
            }
            Kind::Symlink(target) => symlinkat(OsStr::from_bytes(target), &*parent, at)?,
            Kind::Device(major, minor) => {
                let mode = Mode::from_raw_mode(entry.mode);
                mknodat(&*parent, at, FileType::CharacterDevice, mode, makedev(*major, *minor))?;
            }
            Kind::Fifo => mknodat(&*parent, at, FileType::Fifo, Mode::from_raw_mode(entry.mode), 0)?,
        }
        chownat(&*parent, at, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        for (key, value) in &entry.xattrs {
            let path = format!("/proc/self/fd/{}/", parent.as_raw_fd());
            let path = [path.as_bytes(), name].concat();
            tolerate(lsetxattr(path.as_slice(), key.as_slice(), value, XattrFlags::empty()))?;
        }
        if !matches!(entry.kind, Kind::Symlink(_)) {
            chmodat(&*parent, at, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        utimensat(&*parent, at, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Hides a name of the layers below, unless this layer has it anew.
    fn hide(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Failed> {
        let at = OsStr::from_bytes(name);
        match lookup(parent, name)? {
            None => {
                mknodat(parent, at, FileType::CharacterDevice, Mode::empty(), 0)?;
                let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                Ok(chownat(parent, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Some(stat) if FileType::from_raw_mode(stat.st_mode as RawMode) == FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                make_opaque(&openat(parent, at, flags, Mode::empty())?)
            }
            Some(_) => Ok(()),
        }
    }

    /// Sets the times of the directories, now that nothing is put into them any more.
    fn finish(&mut self) -> Result<(), Problem> {
        self.parent = None;
        for (path, mtime) in std::mem::take(&mut self.directories) {
            // One that was replaced meanwhile has no time of its own.
            if let Ok(directory) = self.beneath(&path) {
                let doing = || format!("setting the time of {:?}", super::printable(&path));
                futimens(&directory, &times(mtime)).map_err(|e| Problem::io(doing())(e.into()))?;
            }
        }
        Ok(())
    }
}

/// Two kinds of failure, told apart where the entry is known.
enum Failed {
    Errno(Errno),
    Problem(Problem),
}

impl From<Errno> for Failed {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

fn copy(from: &mut dyn Read, to: &mut File, buffer: &mut [u8], entry: &Entry) -> Result<(), Failed> {
    let mut left = entry.size;
    while left > 0 {
        let read = from.read(buffer).map_err(Problem::io(format!("reading {:?}", entry.name())))?;
        if read == 0 {
            let short = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(Problem::io(format!("reading {:?}", entry.name()))(short).into());
        }
        to.write_all(&buffer[..read]).map_err(Problem::io(format!("writing {:?}", entry.name())))?;
        left = left.saturating_sub(read as u64);
    }
    Ok(())
}

fn lookup(parent: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Failed> {
    match statat(parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode as RawMode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn remove(parent: &OwnedFd, name: &[u8]) -> Result<(), Failed> {
    match rustix::fs::unlinkat(parent, OsStr::from_bytes(name), AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(OsStr::from_bytes(name));
            std::fs::remove_dir_all(path)
                .map_err(|e| Problem::io(format!("replacing {:?}", super::printable(name)))(e).into())
        }
        other => Ok(other?),
    }
}

fn make_opaque(directory: &OwnedFd) -> Result<(), Failed> {
    Ok(fsetxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())?)
}

fn set_xattrs(file: i32, entry: &Entry) -> Result<(), Failed> {
    for (key, value) in &entry.xattrs {
        let path = format!("/proc/self/fd/{file}");
        tolerate(rustix::fs::setxattr(path.as_str(), key.as_slice(), value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// A filesystem without that kind of attribute is no reason to refuse the image; containerd thinks so too.
fn tolerate(outcome: Result<(), Errno>) -> Result<(), Failed> {
    match outcome {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
