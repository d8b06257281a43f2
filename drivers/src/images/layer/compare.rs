//! Whether a directory still is what a layer made of it: types, owners, modes, sizes, targets and every byte.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat, open, openat2, readlinkat, statat};

use super::{Entry, Kind, Mark, Problem, mark, read};
use crate::images::manifest::Digest;

/// The first difference between the layer and the directory, if there is one. Blocks.
///
/// Times are not compared, nor is what the directory has beyond the layer: a power cut loses, it does not invent.
pub(in crate::images) fn compare(
    blob: &Path,
    dir: &Path,
    base: bool,
    diff_id: &Digest,
    stop: &AtomicBool,
) -> Result<Option<String>, Problem> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = match open(dir, flags, Mode::empty()) {
        Ok(root) => root,
        Err(e) => return Ok(Some(format!("its directory cannot be opened: {e}"))),
    };
    // An entry may be replaced by a later one; only the last word counts.
    let mut differences = BTreeMap::new();
    let actual = read(blob, stop, |entry, content| {
        let at = entry.path.join(&b'/');
        if entry.kind != Kind::Directory {
            let below = [at.as_slice(), b"/"].concat();
            differences.retain(|known: &Vec<u8>, _| !known.starts_with(&below));
        }
        match difference(&root, base, entry, content)? {
            Some(difference) => differences.insert(at, difference),
            None => differences.remove(&at),
        };
        Ok(())
    })?;
    if actual != *diff_id {
        return Err(Problem::Unusual(format!("a layer that unpacks to {actual}")));
    }
    let first = differences.into_iter().next();
    Ok(first.map(|(path, problem)| format!("/{} {problem}", super::printable(&path))))
}

fn difference(root: &OwnedFd, base: bool, entry: &Entry, content: &mut dyn Read) -> Result<Option<String>, Problem> {
    // Marks have other forms in the directory; what they hide is not lost data.
    if base && !matches!(mark(entry)?, Mark::None) || matches!(mark(entry)?, Mark::Opaque | Mark::Whiteout(_)) {
        return Ok(None);
    }
    let Some((name, above)) = entry.path.split_last() else { return Ok(None) };
    let above = above.join(&b'/');
    let above = if above.is_empty() { b"." } else { above.as_slice() };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let parent = match openat2(root, above, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(parent) => parent,
        Err(e) => return Ok(Some(format!("cannot be reached: {e}"))),
    };
    let name = OsStr::from_bytes(name);
    let stat = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(e) => return Ok(Some(format!("cannot be read: {e}"))),
    };
    if let Some(difference) = attributes(entry, &stat) {
        return Ok(Some(difference));
    }
    match &entry.kind {
        Kind::Symlink(target) => match readlinkat(&parent, name, Vec::new()) {
            Ok(actual) if actual.as_bytes() == target.as_slice() => Ok(None),
            _ => Ok(Some("leads elsewhere".to_owned())),
        },
        Kind::File => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
                Ok(file) => same_bytes(File::from(file), content, entry),
                Err(e) => Ok(Some(format!("cannot be opened: {e}"))),
            }
        }
        _ => Ok(None),
    }
}

fn attributes(entry: &Entry, stat: &Stat) -> Option<String> {
    let wanted = match entry.kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Device(..) => FileType::CharacterDevice,
        Kind::Fifo => FileType::Fifo,
        // The attributes are those of what it links to.
        Kind::Hardlink(_) => return None,
    };
    let actual = FileType::from_raw_mode(stat.st_mode as RawMode);
    if actual != wanted {
        return Some(format!("is a {actual:?} instead of a {wanted:?}"));
    }
    if entry.kind == Kind::File && stat.st_size as u64 != entry.size {
        return Some(format!("has {} bytes of {}", stat.st_size, entry.size));
    }
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        return Some("has another owner".to_owned());
    }
    let mode = stat.st_mode & 0o7777;
    (!matches!(entry.kind, Kind::Symlink(_)) && mode != entry.mode).then(|| format!("has the mode {mode:o}"))
}

fn same_bytes(mut file: File, content: &mut dyn Read, entry: &Entry) -> Result<Option<String>, Problem> {
    let (mut wanted, mut actual) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut at = 0;
    loop {
        let read = content.read(&mut wanted).map_err(Problem::io(format!("reading {:?}", entry.name())))?;
        if read == 0 {
            return Ok(None);
        }
        if file.read_exact(&mut actual[..read]).is_err() || actual[..read] != wanted[..read] {
            return Ok(Some(format!("has other content after byte {at}")));
        }
        at += read;
    }
}
