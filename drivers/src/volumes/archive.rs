//! Volumes as files: tar, compressed with zstd.
//!
//! # Contract
//! - Contents, owners, modes, times, extended attributes, hard and symbolic links, pipes and devices are kept. GNU tar
//!   reads the archives (`tar --zstd --xattrs --xattrs-include='*' -xpf`).
//! - No symlink is followed while reading, and nothing is written outside the volume while restoring.
//! - Restoring is all or nothing, as filling a volume from an image is.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags, makedev,
};
use rustix::io::Errno;

use super::Error;
use super::populate;

const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;
/// How PAX headers name extended attributes.
const XATTR: &str = "SCHILY.xattr.";
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A filesystem on which nothing changes until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    top: File,
}

/// Freezes the filesystem that is mounted for a volume. Whoever writes to it waits.
///
/// # Errors
/// The filesystem cannot be frozen, as those in memory or of servers.
pub fn freeze(root: &Path) -> Result<Frozen, Error> {
    let frozen = || {
        let top = File::open(root)?;
        // SAFETY: the argument is ignored; the descriptor is open.
        let result = unsafe { libc::ioctl(top.as_raw_fd(), FIFREEZE as _, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Frozen { top }) }
    };
    frozen().map_err(|source| Error::Io { doing: format!("freezing the filesystem of {}", root.display()), source })
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: the argument is ignored; the descriptor is open.
        unsafe { libc::ioctl(self.top.as_raw_fd(), FITHAW as _, 0) };
    }
}

/// Writes what the volume at `root` holds into `to`. Answers the number of files and bytes.
///
/// # Errors
/// Something could not be read or written.
pub fn write(root: &Path, to: impl Write) -> Result<(u64, u64), Error> {
    let pack = || -> io::Result<(u64, u64)> {
        let top = rustix::fs::openat(CWD, root, DIRECTORY & !OFlags::NOFOLLOW, Mode::empty())?;
        let mut packer =
            Packer { tar: tar::Builder::new(zstd::Encoder::new(to, 3)?), links: HashMap::new(), files: 0, bytes: 0 };
        packer.directory(&top, Path::new("."))?;
        packer.tar.into_inner()?.finish()?.flush()?;
        Ok((packer.files, packer.bytes))
    };
    pack().map_err(|source| Error::Io { doing: format!("reading {}", root.display()), source })
}

struct Packer<W: Write> {
    tar: tar::Builder<W>,
    /// Where files with several names are in the archive.
    links: HashMap<(u64, u64), PathBuf>,
    files: u64,
    bytes: u64,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, from: &OwnedFd, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(from)?;
        self.attributes(from)?;
        self.append(&mut header(&stat, tar::EntryType::Directory), path, io::empty())?;
        let mut entries: Vec<CString> = Vec::new();
        for entry in Dir::read_from(from)? {
            entries.push(entry?.file_name().to_owned());
        }
        entries.sort();
        for name in entries.iter().filter(|name| ![c".", c".."].contains(&name.as_c_str())) {
            if populate::is_staging(name) {
                continue;
            }
            self.entry(from, name, &path.join(OsStr::from_bytes(name.as_bytes())))?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &OwnedFd, name: &CStr, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(&rustix::fs::openat(from, name, DIRECTORY, Mode::empty())?, path),
            FileType::RegularFile => self.file(from, name, path, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
                self.files += 1;
                self.tar.append_link(&mut header(&stat, tar::EntryType::Symlink), path, target)
            }
            FileType::Fifo => self.append(&mut header(&stat, tar::EntryType::Fifo), path, io::empty()),
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                let char_device = kind == FileType::CharacterDevice;
                let mut header = header(&stat, if char_device { tar::EntryType::Char } else { tar::EntryType::Block });
                header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                self.append(&mut header, path, io::empty())
            }
            // A socket is of the process that listens at it.
            _ => Ok(()),
        }
    }

    fn file(&mut self, from: &OwnedFd, name: &CStr, path: &Path, stat: &Stat) -> io::Result<()> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&key) {
            let first = first.clone();
            return self.tar.append_link(&mut header(stat, tar::EntryType::Link), path, first);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
        self.attributes(&file)?;
        let mut header = header(stat, tar::EntryType::Regular);
        let size = file.metadata()?.len();
        header.set_size(size);
        // One that changes meanwhile keeps the length that was announced.
        self.append(&mut header, path, file.take(size).chain(io::repeat(0)).take(size))?;
        self.bytes += size;
        if stat.st_nlink > 1 {
            self.links.insert(key, path.to_owned());
        }
        Ok(())
    }

    fn append(&mut self, header: &mut tar::Header, path: &Path, data: impl Read) -> io::Result<()> {
        self.files += 1;
        self.tar.append_data(header, path, data)
    }

    fn attributes(&mut self, file: impl std::os::fd::AsFd) -> io::Result<()> {
        let all = populate::attributes_of(file)?;
        let named: Vec<_> = all
            .iter()
            .filter_map(|(name, value)| Some((format!("{XATTR}{}", name.to_str().ok()?), value.as_slice())))
            .collect();
        if named.is_empty() {
            return Ok(());
        }
        self.tar.append_pax_extensions(named.iter().map(|(name, value)| (name.as_str(), *value)))
    }
}

fn header(stat: &Stat, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(0);
    header
}

/// Fills the empty volume at `root` with what [`write()`] wrote: all of it or nothing.
///
/// # Errors
/// The volume is not empty, or something could not be read or written.
pub fn read(root: &Path, from: impl Read) -> Result<(), Error> {
    populate::fill(root, |half| {
        let mut archive = tar::Archive::new(zstd::Decoder::new(from)?);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_preserve_mtime(true);
        // Times and modes of directories last: what is written into them changes them.
        let mut directories = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            let path = entry.path()?.into_owned();
            let attributes = attributes(&mut entry)?;
            if matches!(kind, tar::EntryType::Fifo | tar::EntryType::Char | tar::EntryType::Block) {
                make_node(half, &path, entry.header())?;
                continue;
            }
            if !entry.unpack_in(half)? {
                return Err(io::Error::other(format!("{} leads out of the volume", path.display())));
            }
            if kind.is_dir() {
                directories.push((path, entry.header().clone(), attributes));
                continue;
            }
            set(&half.join(safe(&path)?), &attributes)?;
        }
        for (path, header, attributes) in directories.into_iter().rev() {
            finish_directory(&half.join(safe(&path)?), &header, &attributes)?;
        }
        Ok(())
    })
}

/// Pipes and devices, which the library does not make.
fn make_node(half: &Path, path: &Path, header: &tar::Header) -> io::Result<()> {
    let (parent, name) = (safe(path)?.parent().unwrap_or(Path::new(".")), path.file_name().unwrap_or_default());
    let top = rustix::fs::openat(CWD, half, DIRECTORY, Mode::empty())?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = rustix::fs::openat2(&top, parent, DIRECTORY, Mode::empty(), beneath)?;
    let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
    let device = || Ok::<_, io::Error>(makedev(number(header.device_major())?, number(header.device_minor())?));
    let (kind, device) = match header.entry_type() {
        tar::EntryType::Char => (FileType::CharacterDevice, device()?),
        tar::EntryType::Block => (FileType::BlockDevice, device()?),
        // Its fields may be blank.
        _ => (FileType::Fifo, 0),
    };
    rustix::fs::mknodat(&parent, name, kind, Mode::RUSR, device)?;
    let (uid, gid) = (id(header.uid()?)?, id(header.gid()?)?);
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(header.mode()? & 0o7777), AtFlags::empty())?;
    let time = Timespec { tv_sec: i64::try_from(header.mtime()?).map_err(io::Error::other)?, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn id(id: u64) -> io::Result<u32> {
    u32::try_from(id).map_err(io::Error::other)
}

/// Names that stay within.
fn safe(path: &Path) -> io::Result<&Path> {
    let inside =
        path.components().all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if inside { Ok(path) } else { Err(io::Error::other(format!("{} leads out of the volume", path.display()))) }
}

fn attributes(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(XATTR)) {
            found.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

fn set(path: &Path, attributes: &[(String, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in attributes {
        match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => tracing::warn!(name, "the volume's filesystem does not know this attribute"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn finish_directory(path: &Path, header: &tar::Header, attributes: &[(String, Vec<u8>)]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::os::unix::fs::lchown(path, Some(id(header.uid()?)?), Some(id(header.gid()?)?))?;
    set(path, attributes)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(header.mode()? & 0o7777))?;
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(header.mtime()?);
    File::open(path)?.set_times(std::fs::FileTimes::new().set_accessed(at).set_modified(at))
}

#[cfg(test)]
mod tests;
