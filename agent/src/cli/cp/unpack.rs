//! A tar stream of a container as files of this machine.
//!
//! The container is not trusted: nothing is written outside the destination, whatever names and links it sends. A name
//! that leads out is an error; what is neither file, directory nor a link to within is left out and said.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use bytes::{Buf as _, Bytes};
use tar::EntryType;
use tokio::sync::mpsc;

/// Unpacks to `destination`, which stands for the first `depth` parts of every name. Blocking. Returns what was left
/// out.
pub(super) fn unpack(pieces: mpsc::Receiver<Bytes>, depth: usize, destination: &Path) -> io::Result<Vec<String>> {
    let mut archive = tar::Archive::new(Pieces { pieces, current: Bytes::new() });
    let mut left_out = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let inside = inside(&name, depth)?;
        let target = if inside.as_os_str().is_empty() { destination.to_owned() } else { destination.join(&inside) };
        refuse_links_on_the_way(destination, &inside)?;
        match entry.header().entry_type() {
            EntryType::Directory => {
                if !target.is_dir() {
                    std::fs::create_dir(&target)?;
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // A link that is in the way is replaced, not followed.
                if !inside.as_os_str().is_empty() && target.is_symlink() {
                    std::fs::remove_file(&target)?;
                }
                let mut file = std::fs::File::create(&target)?;
                io::copy(&mut entry, &mut file)?;
                set_mode(&file, entry.header().mode().unwrap_or(0o644))?;
            }
            EntryType::Symlink => {
                let link = entry.link_name()?.unwrap_or_default().into_owned();
                if inside.as_os_str().is_empty() || !stays_inside(&inside, &link) {
                    left_out.push(format!("{} -> {}, a link that leads out", name.display(), link.display()));
                    continue;
                }
                if target.is_symlink() || target.is_file() {
                    std::fs::remove_file(&target)?;
                }
                std::os::unix::fs::symlink(&link, &target)?;
            }
            EntryType::Link => {
                let of = self::inside(&entry.link_name()?.unwrap_or_default(), depth)?;
                refuse_links_on_the_way(destination, &of)?;
                let _ = std::fs::remove_file(&target);
                std::fs::hard_link(destination.join(of), &target)?;
            }
            other => left_out.push(format!("{}, which is no file ({other:?})", name.display())),
        }
    }
    Ok(left_out)
}

/// The part of a name below the destination.
fn inside(name: &Path, depth: usize) -> io::Result<PathBuf> {
    let mut parts = Vec::new();
    for part in name.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part),
            _ => return Err(leads_out(name)),
        }
    }
    if parts.len() < depth {
        return Err(leads_out(name));
    }
    Ok(parts[depth..].iter().collect())
}

fn leads_out(name: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the container sent a name that leads out: {}", name.display()))
}

/// The directories on the way to a name must be directories: through a link one would write elsewhere.
fn refuse_links_on_the_way(destination: &Path, inside: &Path) -> io::Result<()> {
    let mut place = destination.to_owned();
    let parts: Vec<_> = inside.components().collect();
    for part in parts.iter().take(parts.len().saturating_sub(1)) {
        place.push(part);
        if place.is_symlink() {
            let text = format!("{} is a link; nothing is written through it", place.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    }
    Ok(())
}

/// Whether a link at `inside` leads to something below the destination, going by its text.
fn stays_inside(inside: &Path, link: &Path) -> bool {
    let mut depth = inside.components().count() - 1;
    for part in link.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(_) => depth += 1,
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

/// Permissions as they were, without set-id bits.
fn set_mode(file: &std::fs::File, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(mode & 0o777))
}

struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive that a hostile tar may have made: names are put in as they are.
    fn archive(entries: &[(&str, EntryType, &str)]) -> mpsc::Receiver<Bytes> {
        let mut bytes = Vec::new();
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let is_file = *kind == EntryType::Regular;
            header.set_size(if is_file { content.len() as u64 } else { 0 });
            if !is_file {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            if is_file {
                bytes.extend_from_slice(content.as_bytes());
                bytes.resize(bytes.len().next_multiple_of(512), 0);
            }
        }
        bytes.resize(bytes.len() + 1024, 0);
        let (sender, receiver) = mpsc::channel(1024);
        for piece in bytes.chunks(100) {
            sender.try_send(Bytes::copy_from_slice(piece)).expect("there is room");
        }
        receiver
    }

    #[test]
    fn a_tree_arrives() {
        let dir = tempfile::tempdir().expect("a directory");
        let pieces = archive(&[
            ("./x/", EntryType::Directory, ""),
            ("./x/a", EntryType::Regular, "hello"),
            ("./x/d/", EntryType::Directory, ""),
            ("./x/d/link", EntryType::Symlink, "../a"),
            ("./x/d/same", EntryType::Link, "./x/a"),
            ("./x/out", EntryType::Symlink, "../../etc/passwd"),
            ("./x/abs", EntryType::Symlink, "/etc/passwd"),
            ("./x/pipe", EntryType::Fifo, ""),
        ]);
        let target = dir.path().join("there");
        let left_out = unpack(pieces, 1, &target).expect("it is unpacked");
        assert_eq!(left_out.len(), 3, "{left_out:?}");
        for name in ["a", "d/link", "d/same"] {
            assert_eq!(std::fs::read_to_string(target.join(name)).expect(name), "hello");
        }
        assert!(!target.join("out").exists() && !target.join("abs").is_symlink());
    }

    #[test]
    fn nothing_is_written_outside() {
        for name in ["./x/../../evil", "/evil", "../evil", "./x/d/../../../evil"] {
            let dir = tempfile::tempdir().expect("a directory");
            let target = dir.path().join("a/b");
            std::fs::create_dir_all(&target).expect("a directory");
            assert!(unpack(archive(&[(name, EntryType::Regular, "x")]), 1, &target).is_err(), "{name}");
            assert!(!dir.path().join("evil").exists() && !dir.path().join("a/evil").exists());
        }
        // Through a link that was there, or that came before.
        let dir = tempfile::tempdir().expect("a directory");
        let (target, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(&target).expect("a directory");
        std::fs::create_dir_all(&outside).expect("a directory");
        std::os::unix::fs::symlink(&outside, target.join("l")).expect("a link");
        assert!(unpack(archive(&[("x/l/evil", EntryType::Regular, "x")]), 1, &target).is_err());
        assert!(!outside.join("evil").exists());
        // A file replaces a link and is not written through it.
        std::fs::write(outside.join("kept"), "kept").expect("a file");
        std::os::unix::fs::symlink(outside.join("kept"), target.join("f")).expect("a link");
        unpack(archive(&[("x/f", EntryType::Regular, "new")]), 1, &target).expect("it is unpacked");
        assert_eq!(std::fs::read_to_string(outside.join("kept")).expect("a file"), "kept");
        assert_eq!(std::fs::read_to_string(target.join("f")).expect("a file"), "new");
        // A hard link to something outside.
        assert!(unpack(archive(&[("x/h", EntryType::Link, "../out/kept")]), 1, &target).is_err());
        assert!(unpack(archive(&[("x/h", EntryType::Link, "x/l/kept")]), 1, &target).is_err());
    }
}
