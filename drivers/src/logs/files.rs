//! The files of one log, read in order while the writer renames them.
//!
//! The writer rotates the oldest first: `x.1` becomes `x.2`, `x` becomes `x.1`, then it makes a new `x`. So a file's
//! number only grows, and a file always has a smaller number than those written before it. An open file keeps its
//! inode, so it is found again under whatever name it has now.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes read at once.
const READ: usize = 64 << 10;
/// A line of the file that is longer is no record; it is given in pieces.
const LONGEST: usize = 1 << 20;
/// How often a search is begun anew because of a rotation in between.
const ATTEMPTS: u32 = 1000;

/// A position in a log.
#[derive(Debug)]
pub(super) struct Cursor {
    path: PathBuf,
    current: Option<Place>,
    /// The begin of a line whose newline was not read yet.
    begun: Vec<u8>,
}

/// A position in one file.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) file: File,
    pub(super) inode: u64,
    pub(super) offset: u64,
    /// It was seen to be no longer the current file, after which nothing is written to it.
    finished: bool,
}

impl Place {
    pub(super) fn new(file: File, offset: u64) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode, offset, finished: false })
    }

    /// The same file at another offset.
    pub(super) fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }
}

/// What [`Cursor::advance`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something was read.
    Read,
    /// Everything that is there has been read.
    CaughtUp,
}

impl Cursor {
    /// At `start`, or at the begin of the oldest file.
    pub(super) fn new(path: PathBuf, start: Option<Place>) -> Self {
        Self { path, current: start, begun: Vec::new() }
    }

    /// Reads once and gives every line that is now whole to `take`, without its newline.
    pub(super) fn advance(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<Progress> {
        loop {
            let Some(place) = &mut self.current else {
                self.current = oldest(&self.path)?.map(|file| Place::new(file, 0)).transpose()?;
                if self.current.is_none() {
                    return Ok(Progress::CaughtUp);
                }
                continue;
            };
            let mut buffer = vec![0; READ];
            let read = place.file.read_at(&mut buffer, place.offset)?;
            if read > 0 {
                place.offset += read as u64;
                self.split(&buffer[..read], &mut take);
                return Ok(Progress::Read);
            }
            let length = place.file.metadata()?.len();
            if length < place.offset {
                // A torn record was taken back, or somebody emptied the file.
                place.offset = length;
                self.begun.clear();
                continue;
            }
            if !place.finished {
                if inode(&self.path)? == Some(place.inode) {
                    return Ok(Progress::CaughtUp);
                }
                // Something may have been written between our read and the rename: once more to the end.
                place.finished = true;
                continue;
            }
            let Some(next) = successor(&self.path, place)? else { return Ok(Progress::CaughtUp) };
            if !self.begun.is_empty() {
                take(&std::mem::take(&mut self.begun));
            }
            self.current = Some(Place::new(next, 0)?);
        }
    }

    /// The last line, if it has no newline and none will come.
    pub(super) fn take_rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.begun)).filter(|rest| !rest.is_empty())
    }

    fn split(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.begun.is_empty() {
                take(line);
            } else {
                self.begun.extend_from_slice(line);
                take(&self.begun);
                self.begun.clear();
            }
            bytes = rest;
        }
        self.begun.extend_from_slice(bytes);
        if self.begun.len() > LONGEST {
            take(&self.begun);
            self.begun.clear();
        }
    }
}

/// File `number` of the log: 0 is the current one, 1 the youngest of the rotated.
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        _ => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            name.into()
        }
    }
}

/// The numbers that have a file, in order.
pub(super) fn numbers(path: &Path) -> io::Result<Vec<u32>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let found = entry?.file_name();
        let Some(rest) = found.to_str().and_then(|found| found.strip_prefix(name)) else { continue };
        match rest.strip_prefix('.').map(str::parse::<u32>) {
            None if rest.is_empty() => numbers.push(0),
            Some(Ok(number)) if number > 0 => numbers.push(number),
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file with the highest number.
fn oldest(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS {
        let Some(last) = numbers(path)?.last().copied() else { return Ok(None) };
        let Some(file) = open(&numbered(path, last))? else { continue };
        // Had it been renamed before we opened it, another would be the last now.
        if numbers(path)?.last() == Some(&last) && inode(&numbered(path, last))? == Some(file.metadata()?.ino()) {
            return Ok(Some(file));
        }
    }
    Err(rotating(path))
}

/// The file that was written right after `place`, which is finished; `None` when it does not exist yet.
fn successor(path: &Path, place: &Place) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS {
        let numbers = numbers(path)?;
        // Upwards: its number may grow meanwhile, but it cannot get past us.
        let highest = numbers.last().copied().unwrap_or(0) + 1;
        let mut own = None;
        for number in 0..=highest {
            if inode(&numbered(path, number))? == Some(place.inode) {
                own = Some(number);
                break;
            }
        }
        let Some(own) = own else { return after_the_deleted(path, place) };
        let mut next = None;
        for number in (0..own).rev() {
            if let Some(file) = open(&numbered(path, number))? {
                next = Some((number, file));
                break;
            }
        }
        // In the middle of a rotation there is a gap, and the file above it may just be moving into it.
        let below = next.as_ref().map_or(0, |(number, _)| number + 1);
        let has_gap_still = || -> io::Result<bool> {
            for number in below..own {
                if inode(&numbered(path, number))?.is_some() {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        if has_gap_still()? && inode(&numbered(path, own))? == Some(place.inode) {
            return Ok(next.map(|(_, file)| file));
        }
    }
    Err(rotating(path))
}

/// What comes after a file that the writer has deleted: the oldest that is not older than it.
fn after_the_deleted(path: &Path, place: &Place) -> io::Result<Option<File>> {
    let ended = place.file.metadata()?.modified()?;
    let has_followed = |file: &File| -> io::Result<bool> { Ok(file.metadata()?.modified()? >= ended) };
    if let Some(file) = oldest(path)?
        && has_followed(&file)?
    {
        return Ok(Some(file));
    }
    // Somebody else deleted it, and older ones are there, which were read: what follows is the current file.
    match open(path)? {
        Some(file) if has_followed(&file)? => Ok(Some(file)),
        _ => Ok(None),
    }
}

fn rotating(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{} is rotated faster than it can be read", path.display()))
}
