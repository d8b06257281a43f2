//! The table of contents of an archive or layout directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use sha2::Digest as _;

use super::super::manifest::{Digest, MAX_DOCUMENT};
use super::Error;

/// More entries than any image has layers and documents.
const MAX_ENTRIES: usize = 100_000;

/// Documents of one archive kept in memory together.
const MAX_DOCUMENTS: u64 = 64 << 20;

/// How the archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum Packing {
    /// An OCI layout directory.
    Directory,
    /// A tar that can be sought through.
    Plain,
    /// A tar through gzip.
    Gzip,
    /// A tar through zstd.
    Zstd,
}

/// One file of the archive.
#[derive(Debug)]
pub(in crate::images) struct Entry {
    /// Where its bytes start in a plain archive.
    pub(in crate::images) offset: u64,
    /// Its length.
    pub(in crate::images) size: u64,
    /// Digest, of compressed layers of docker archives only: nothing else tells it.
    pub(in crate::images) digest: Option<Digest>,
    /// What its first bytes say.
    pub(in crate::images) compression: Compression,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum Compression {
    /// As it is.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Compression {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// What is in an archive.
#[derive(Debug)]
pub(in crate::images) struct Contents {
    path: PathBuf,
    packing: Packing,
    entries: HashMap<String, Entry>,
    links: HashMap<String, String>,
    documents: HashMap<String, Vec<u8>>,
}

impl Contents {
    /// Reads it. Blocks.
    pub(in crate::images) fn read(path: &Path) -> Result<Self, Error> {
        let doing = |source| Error::Read { doing: "opening it".to_owned(), source };
        let meta = std::fs::metadata(path).map_err(doing)?;
        let mut contents = Self {
            path: path.to_owned(),
            packing: Packing::Directory,
            entries: HashMap::new(),
            links: HashMap::new(),
            documents: HashMap::new(),
        };
        if meta.is_dir() {
            contents.read_directory()?;
        } else if meta.is_file() {
            contents.read_archive(meta.len())?;
        } else {
            return Err(Error::Malformed("it is neither a file nor a directory".to_owned()));
        }
        Ok(contents)
    }

    /// How it is packed.
    pub(in crate::images) fn packing(&self) -> Packing {
        self.packing
    }

    /// Whether a file of that name is in it.
    pub(in crate::images) fn has(&self, name: &str) -> bool {
        self.resolve(name).is_some()
    }

    /// The name behind links. Old docker archives link equal layers to each other.
    pub(in crate::images) fn resolve(&self, name: &str) -> Option<&str> {
        let mut name = name;
        for _ in 0..10 {
            if let Some((known, _)) = self.entries.get_key_value(name) {
                return Some(known);
            }
            name = self.links.get(name)?;
        }
        None
    }

    /// The entry of that name, behind links.
    pub(in crate::images) fn entry(&self, name: &str) -> Result<&Entry, Error> {
        let missing = || Error::Malformed(format!("{name} is missing"));
        self.entries.get(self.resolve(name).ok_or_else(missing)?).ok_or_else(missing)
    }

    /// The length of that file.
    pub(in crate::images) fn size(&self, name: &str) -> Result<u64, Error> {
        Ok(self.entry(name)?.size)
    }

    /// The bytes of a small JSON document.
    pub(in crate::images) fn document(&self, name: &str) -> Result<&[u8], Error> {
        let missing = || Error::Malformed(format!("{name} is missing"));
        let name = self.resolve(name).ok_or_else(missing)?;
        self.documents.get(name).map(Vec::as_slice).ok_or_else(|| {
            Error::Malformed(format!("{name} is not a JSON document of at most {} MiB", MAX_DOCUMENT >> 20))
        })
    }

    /// The document that is the blob of that digest, verified.
    pub(in crate::images) fn blob(&self, digest: &Digest) -> Result<&[u8], Error> {
        let name = blob_name(digest);
        let bytes = self.document(&name)?;
        let actual = Digest::of(bytes);
        if actual != *digest {
            return Err(Error::Malformed(format!("{name} has the digest {actual}")));
        }
        Ok(bytes)
    }

    /// Opens a file of a directory or plain archive at an offset into it. Blocks.
    pub(in crate::images) fn open_at(&self, name: &str, offset: u64) -> std::io::Result<File> {
        let entry = self.entry(name).map_err(std::io::Error::other)?;
        let name = self.resolve(name).unwrap_or(name);
        let mut file = match self.packing {
            Packing::Directory => open_regular(&self.path.join(name))?,
            _ => File::open(&self.path)?,
        };
        file.seek(SeekFrom::Start(entry.offset.saturating_add(offset)))?;
        Ok(file)
    }

    /// The tar inside, from its start. Blocks.
    pub(in crate::images) fn unpacked(&self) -> std::io::Result<Box<dyn Read + Send>> {
        unpacked(File::open(&self.path)?, self.packing)
    }

    fn read_directory(&mut self) -> Result<(), Error> {
        let path = self.path.clone();
        let mut names = vec!["index.json".to_owned(), "oci-layout".to_owned()];
        match std::fs::read_dir(path.join("blobs/sha256")) {
            Ok(listing) => {
                for entry in listing.take(MAX_ENTRIES) {
                    let entry = entry.map_err(|source| Error::Read { doing: "listing blobs".to_owned(), source })?;
                    names.push(format!("blobs/sha256/{}", entry.file_name().to_string_lossy()));
                }
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { doing: "listing blobs".to_owned(), source }),
        }
        for name in names {
            let reading = |source| Error::Read { doing: format!("reading {name}"), source };
            let mut file = match open_regular(&path.join(&name)) {
                Ok(file) => file,
                // Whatever is no file cannot be a blob; should it be needed, it is reported as missing.
                Err(_) => continue,
            };
            let size = file.metadata().map_err(reading)?.len();
            self.add(&name, 0, size, &mut file).map_err(reading)?;
        }
        Ok(())
    }

    fn read_archive(&mut self, length: u64) -> Result<(), Error> {
        let reading = |source| Error::Read { doing: "reading it".to_owned(), source };
        let mut file = File::open(&self.path).map_err(reading)?;
        let mut head = Vec::new();
        (&mut file).take(4).read_to_end(&mut head).map_err(reading)?;
        file.seek(SeekFrom::Start(0)).map_err(reading)?;
        self.packing = match Compression::of(&head) {
            Compression::None => Packing::Plain,
            Compression::Gzip => Packing::Gzip,
            Compression::Zstd => Packing::Zstd,
        };
        if self.packing == Packing::Plain {
            let mut archive = tar::Archive::new(BufReader::new(file));
            self.read_entries(archive.entries_with_seek().map_err(reading)?, Some(length))
        } else {
            let mut archive = tar::Archive::new(unpacked(file, self.packing).map_err(reading)?);
            self.read_entries(archive.entries().map_err(reading)?, None)
        }
    }

    /// `length` is that of an archive that can be sought through: seeking goes past its end unnoticed.
    fn read_entries<R: Read>(&mut self, entries: tar::Entries<'_, R>, length: Option<u64>) -> Result<(), Error> {
        let mut count = 0;
        for entry in entries {
            let after = move |source| Error::Read { doing: format!("reading it, after {count} entries"), source };
            let mut entry = entry.map_err(after)?;
            count += 1;
            if count > MAX_ENTRIES {
                return Err(Error::Malformed(format!("it has more than {MAX_ENTRIES} entries")));
            }
            let raw = entry.path().map_err(after)?.into_owned();
            let name = safe_name(&raw)
                .ok_or_else(|| Error::Malformed(format!("the entry {} would lie outside of it", raw.display())))?;
            let (offset, size) = (entry.raw_file_position(), entry.size());
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    if length.is_some_and(|length| offset.saturating_add(size) > length) {
                        let source = std::io::ErrorKind::UnexpectedEof.into();
                        return Err(Error::Read { doing: format!("reading {name}, which is cut off"), source });
                    }
                    let reading = |source| Error::Read { doing: format!("reading {name}"), source };
                    self.add(&name, offset, size, &mut entry).map_err(reading)?;
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name().ok().flatten().map(|t| t.into_owned()).unwrap_or_default();
                    let base = match entry.header().entry_type() {
                        tar::EntryType::Symlink => raw.parent().unwrap_or(Path::new("")).join(&target),
                        _ => target,
                    };
                    if let Some(target) = collapse(&base) {
                        self.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        if count == 0 {
            return Err(Error::Malformed("it is empty or not a tar".to_owned()));
        }
        Ok(())
    }

    /// Takes note of one file; reads it only where its bytes are needed.
    fn add(&mut self, name: &str, offset: u64, size: u64, bytes: &mut dyn Read) -> std::io::Result<()> {
        let mut head = Vec::new();
        bytes.take(4).read_to_end(&mut head)?;
        let compression = Compression::of(&head);
        let mut digest = None;
        if matches!(head.first(), Some(b'{' | b'[')) && size <= MAX_DOCUMENT {
            bytes.take(size).read_to_end(&mut head)?;
            let kept: u64 = self.documents.values().map(|d| d.len() as u64).sum();
            if kept + head.len() as u64 > MAX_DOCUMENTS {
                return Err(std::io::Error::other("it holds too many documents"));
            }
            self.documents.insert(name.to_owned(), head);
        } else if compression != Compression::None && !name.starts_with("blobs/") {
            let mut hash = sha2::Sha256::new();
            hash.update(&head);
            std::io::copy(bytes, &mut hash)?;
            digest = Some(Digest::from_hash(&hash.finalize()));
        }
        self.entries.insert(name.to_owned(), Entry { offset, size, digest, compression });
        Ok(())
    }
}

/// The name of a blob in a layout.
pub(in crate::images) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn open_regular(path: &Path) -> std::io::Result<File> {
    // A link could lead out of the layout, and opening a pipe would wait for a writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("it is not a regular file")) }
}

fn unpacked(file: File, packing: Packing) -> std::io::Result<Box<dyn Read + Send>> {
    let file = BufReader::with_capacity(1 << 17, file);
    Ok(match packing {
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        Packing::Plain | Packing::Directory => Box::new(file),
    })
}

/// The entry's name without `./`; `None` for absolute names and such with `..`.
pub(in crate::images) fn safe_name(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// The name that a link's target has, if it lies in the archive.
fn collapse(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(safe_name(Path::new("./a//b/./c")).as_deref(), Some("a/b/c"));
        for bad in ["../a", "a/../b", "/a", "a/.."] {
            assert_eq!(safe_name(Path::new(bad)), None, "{bad}");
        }
        assert_eq!(collapse(Path::new("x/../y/layer.tar")).as_deref(), Some("y/layer.tar"));
        assert_eq!(collapse(Path::new("x/../../y")), None);
    }
}
