//! A layer as a stream of entries: decompressed, hashed and read with nothing taken on trust.
//!
//! Names become lists of plain components, so that nothing that works with an [`Entry`] can be led out of a directory
//! by its name. Extended headers are bounded: a layer of a few kilobytes can hold one of gigabytes.

pub(super) mod compare;
pub(super) mod extract;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::Digest as _;
use tar::EntryType;

use super::manifest::Digest;

/// Longest extended header. Real ones are a few hundred bytes; file capabilities and ACLs included.
const MAX_EXTENSION: u64 = 1 << 20;

/// Largest window of zstd, as a power of two: 32 MiB.
const ZSTD_WINDOW: u32 = 25;

/// Why a layer is not unpacked or compared here.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// The layer cannot be read, or the directory not be written.
    #[error("{doing}")]
    Io {
        /// What we were doing, with the entry.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layer must not be unpacked by anybody.
    #[error("{entry:?} {problem}")]
    Refused {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing wrong, but nothing for us: containerd knows more kinds of layers.
    #[error("{0} is left to containerd")]
    Unusual(String),
}

impl Problem {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    fn refused(entry: &Entry, problem: impl Into<String>) -> Self {
        Self::Refused { entry: entry.name(), problem: problem.into() }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// The target, as written.
    Symlink(Vec<u8>),
    /// Components of the target, which is in the same layer.
    Hardlink(Vec<Vec<u8>>),
    /// Character device: major and minor number.
    Device(u32, u32),
    Fifo,
}

/// One entry, without its content.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Components of the name; empty for the root of the layer. None is empty, `.` or `..`, none holds a slash.
    pub(super) path: Vec<Vec<u8>>,
    pub(super) kind: Kind,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission bits.
    pub(super) mode: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) size: u64,
}

impl Entry {
    /// For messages.
    pub(super) fn name(&self) -> String {
        printable(&self.path.join(&b'/'))
    }
}

/// What extended headers say about the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the whole layer and hands each entry with its content to `each`. Returns the digest of the decompressed
/// bytes. Blocks; ends early with an error when `stop` is set.
pub(super) fn read(
    blob: &Path,
    stop: &AtomicBool,
    mut each: impl FnMut(&Entry, &mut dyn Read) -> Result<(), Problem>,
) -> Result<Digest, Problem> {
    let reading = || format!("reading {}", blob.display());
    let file = File::open(blob).map_err(Problem::io(reading()))?;
    let unpacked = decompress(BufReader::with_capacity(64 << 10, file)).map_err(Problem::io(reading()))?;
    let mut archive = tar::Archive::new(Hashing { inner: unpacked, hash: sha2::Sha256::new(), stop });
    let mut extension = Extension::default();
    // Raw: the library would read extended headers of any size into memory.
    for entry in archive.entries().map_err(Problem::io(reading()))?.raw(true) {
        let mut raw = entry.map_err(Problem::io(reading()))?;
        match raw.header().entry_type() {
            EntryType::GNULongName => extension.path = Some(long_name(&mut raw).map_err(Problem::io(reading()))?),
            EntryType::GNULongLink => extension.link = Some(long_name(&mut raw).map_err(Problem::io(reading()))?),
            EntryType::XHeader => {
                let bytes = bounded(&mut raw).map_err(Problem::io(reading()))?;
                extension.add(&bytes)?;
            }
            EntryType::XGlobalHeader => {}
            _ => {
                let entry = parse(&raw, std::mem::take(&mut extension))?;
                each(&entry, &mut raw)?;
            }
        }
    }
    // The digest covers what follows the last entry as well.
    let mut rest = archive.into_inner();
    let mut buffer = vec![0; 16 << 10];
    while rest.read(&mut buffer).map_err(Problem::io(reading()))? > 0 {}
    Ok(Digest::from_hash(&rest.hash.finalize()))
}

/// By its first bytes, as containerd does: media types are often wrong.
fn decompress(mut file: BufReader<File>) -> io::Result<Box<dyn Read>> {
    let start = file.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(file)));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(file))
}

struct Hashing<'a, R> {
    inner: R,
    hash: sha2::Sha256,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

fn bounded(raw: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    raw.take(MAX_EXTENSION + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_EXTENSION {
        return Err(io::Error::other("an extended header has more than a mebibyte"));
    }
    Ok(bytes)
}

fn long_name(raw: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = bounded(raw)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

impl Extension {
    /// Records of `length key=value` and a line feed; a value may hold any byte.
    fn add(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        let malformed = || Problem::Unusual("an extended header that is malformed".to_owned());
        while !bytes.is_empty() {
            let space = bytes.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
            let length: usize = number(&bytes[..space]).ok_or_else(malformed)?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(number(value).ok_or_else(malformed)?),
                b"gid" => self.gid = Some(number(value).ok_or_else(malformed)?),
                b"mtime" => self.mtime = Some(time(value).ok_or_else(malformed)?),
                // Sizes beyond eight gigabytes, and sparse files.
                b"size" => return Err(Problem::Unusual("a file with its size in an extended header".to_owned())),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(Problem::Unusual("a sparse file".to_owned()));
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `1700000000.123456789`, or without the fraction.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let (seconds, nanos): (i64, u32) = (seconds.parse().ok()?, digits.parse().ok()?);
    // A fraction of a time before 1970 counts backwards; nobody depends on it.
    Some(if text.starts_with('-') { (seconds, 0) } else { (seconds, nanos) })
}

fn parse<R: Read>(raw: &tar::Entry<'_, R>, extension: Extension) -> Result<Entry, Problem> {
    let header = raw.header();
    let old = header.as_old();
    let name = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let reading = || format!("reading the header of {:?}", printable(&name));
    let mut entry = Entry {
        path: components(&name, &name)?,
        kind: Kind::File,
        uid: 0,
        gid: 0,
        mode: empty_is_zero(header.mode(), &old.mode).map_err(Problem::io(reading()))? & 0o7777,
        mtime: (0, 0),
        xattrs: extension.xattrs,
        size: raw.size(),
    };
    let id = |given: Option<u32>, field: io::Result<u64>| match given {
        Some(id) => Ok(id),
        None => field.and_then(|id| u32::try_from(id).map_err(io::Error::other)).map_err(Problem::io(reading())),
    };
    entry.uid = id(extension.uid, empty_is_zero(header.uid(), &old.uid))?;
    entry.gid = id(extension.gid, empty_is_zero(header.gid(), &old.gid))?;
    entry.mtime = match extension.mtime {
        Some(time) => time,
        None => {
            let seconds = empty_is_zero(header.mtime(), &old.mtime).map_err(Problem::io(reading()))?;
            (i64::try_from(seconds).unwrap_or_default(), 0)
        }
    };
    let link =
        || extension.link.clone().or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
    entry.kind = match header.entry_type() {
        // Old archives tell directories by a slash at the end.
        EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link()),
        EntryType::Link => Kind::Hardlink(components(&link(), &name)?),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => {
            let number =
                |field: io::Result<Option<u32>>| Ok(field.map_err(Problem::io(reading()))?.unwrap_or_default());
            Kind::Device(number(header.device_major())?, number(header.device_minor())?)
        }
        EntryType::Block => return Err(Problem::refused(&entry, "is a block device")),
        _ => return Err(Problem::Unusual(format!("the kind of {:?}", entry.name()))),
    };
    if let Kind::Device(major, minor) = entry.kind
        && !HARMLESS.contains(&(major, minor))
    {
        return Err(Problem::refused(&entry, format!("is the device {major}:{minor}")));
    }
    if let Some((name, _)) = entry.xattrs.iter().find(|(name, _)| is_overlay(name)) {
        return Err(Problem::refused(&entry, format!("has the attribute {}", printable(name))));
    }
    Ok(entry)
}

/// Some writers leave numbers out; everybody reads them as zero.
fn empty_is_zero<T: Default>(number: io::Result<T>, field: &[u8]) -> io::Result<T> {
    match number {
        Err(_) if field.iter().all(|b| matches!(b, 0 | b' ')) => Ok(T::default()),
        other => other,
    }
}

/// null, zero, full, random, urandom, tty, console, ptmx: what root filesystems of old have in `/dev`. Any other device
/// is a way to the node's disks or memory.
const HARMLESS: &[(u32, u32)] = &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// Attributes by which overlayfs keeps what it hides and redirects: a layer that brings its own would decide about
/// other layers.
fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// The components of a name; absolute names begin at the root of the layer.
fn components(path: &[u8], entry: &[u8]) -> Result<Vec<Vec<u8>>, Problem> {
    let parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
    let refused = |problem: &str| Problem::Refused { entry: printable(entry), problem: problem.to_owned() };
    parts
        .map(|part| match part {
            b".." => Err(refused("leads out of the layer")),
            part if part.contains(&0) => Err(refused("has a NUL in its name")),
            part => Ok(part.to_vec()),
        })
        .collect()
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(256).collect()
}

/// What the name of an entry says about layers below.
pub(super) enum Mark<'a> {
    /// Nothing: an entry like any other.
    None,
    /// What is below the directory in layers below is hidden.
    Opaque,
    /// The sibling of this name in layers below is hidden.
    Whiteout(&'a [u8]),
}

/// Whiteouts are empty files with a name that says so.
pub(super) fn mark(entry: &Entry) -> Result<Mark<'_>, Problem> {
    let Some(hidden) = entry.path.last().and_then(|name| name.strip_prefix(b".wh.")) else { return Ok(Mark::None) };
    match hidden {
        b".wh..opq" => Ok(Mark::Opaque),
        b"" | b"." | b".." => Err(Problem::refused(entry, "hides what no entry can be")),
        hidden if hidden.starts_with(b".wh.") => Err(Problem::Unusual(format!("the mark {:?}", entry.name()))),
        hidden => Ok(Mark::Whiteout(hidden)),
    }
}

#[cfg(test)]
mod tests;
