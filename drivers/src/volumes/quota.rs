//! Which directory of a volume has which project, so that the filesystem limits and counts what it holds.
//!
//! # Contract
//! - A number is given to one directory at a time. It is recorded in `<dataDir>/projects/<number>` before the directory
//!   gets it and until the directory is gone or without it, so that no crash lets two share a limit.
//! - A number that something on the filesystem has, whoever gave it, is not given. A directory that belongs to somebody
//!   else's project is left alone.
//! - What is in a directory already is put into its project, once; what is made meanwhile inherits it.
//! - Where the filesystem has no project quotas, nothing is changed, and it is said why.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::project::{self, Quota, Support};
use super::{Error, io_error, told, walk};
use crate::failpoint::passed;

/// Far from those that administrators, the kubelet and other container engines choose.
const FIRST: u32 = 0x6e6f_0000;
const LAST: u32 = FIRST + 0xffff;

/// The projects of this node's volumes.
#[derive(Debug)]
pub(super) struct Projects {
    directory: PathBuf,
    records: Mutex<BTreeMap<u32, Record>>,
}

/// Of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The directory that it is given to.
    path: PathBuf,
    /// All that the directory held was put into it.
    whole: bool,
}

impl Projects {
    /// Reads the records below `data_dir`, and forgets those of directories there that are gone.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let directory = data_dir.join("projects");
        let this = Self { records: Mutex::new(read(&directory)?), directory };
        let gone = |record: &&Record| record.path.starts_with(data_dir) && !record.path.exists();
        let gone: Vec<_> = this.lock().values().filter(gone).map(|record| record.path.clone()).collect();
        for path in gone {
            // It stays recorded, so its number is not given again.
            if let Err(error) = this.release(&path) {
                tracing::warn!("{}", told(&error));
            }
        }
        Ok(this)
    }

    /// Counts what the directory holds and, with a limit, lets it hold no more than that many bytes. Without a limit
    /// one that it had is taken away, and a directory is begun to be counted only if it is `fresh`. Says why it is not
    /// limited, if so.
    pub(super) fn ensure(&self, path: &Path, limit: Option<u64>, fresh: bool) -> Result<Option<String>, Error> {
        if limit.is_none() && !fresh && self.number(path).is_none() {
            return Ok(None);
        }
        let ensure = || -> io::Result<Option<String>> {
            let top = open_directory(path)?;
            let support = project::support(&top)?;
            if support == Support::None {
                return Ok(Some("its filesystem has no project quotas that nodelet can use".to_owned()));
            }
            let number = match self.join(path, &top)? {
                Ok(number) => number,
                Err(stranger) => return Ok(Some(format!("it is in project {stranger}, which is not nodelet's"))),
            };
            project::limit(&top, number, limit)?;
            passed("limiting a volume");
            let counted = "its filesystem counts what projects hold, but is not mounted so that it limits them";
            Ok((support == Support::Counted).then(|| counted.to_owned()))
        };
        let problem = ensure().map_err(io_error("limiting", path))?;
        Ok(problem.filter(|_| limit.is_some()).map(|why| format!("{} is not limited: {why}", path.display())))
    }

    /// What the directory holds and may hold, where that is known.
    pub(super) fn quota(&self, path: &Path) -> Result<Option<Quota>, Error> {
        let Some(number) = self.number(path) else { return Ok(None) };
        let quota = || -> io::Result<Option<Quota>> {
            let top = open_directory(path)?;
            let mut quota = match project::support(&top)? {
                Support::None => return Ok(None),
                _ if project::of(&top)?.0 != number => return Ok(None),
                Support::Counted => Quota { limit: None, ..project::quota(&top, number)? },
                Support::Enforced => project::quota(&top, number)?,
            };
            // The directory itself is not what a user put into it.
            quota.files = quota.files.saturating_sub(1);
            Ok(Some(quota))
        };
        quota().map_err(io_error("measuring", path))
    }

    /// Gives back the projects of all directories at and below `path`; what is left of them belongs to none.
    pub(super) fn release(&self, path: &Path) -> Result<(), Error> {
        let ours = |(_, record): &(&u32, &Record)| record.path.starts_with(path);
        let all: Vec<_> = self.lock().iter().filter(ours).map(|(n, record)| (*n, record.path.clone())).collect();
        for (number, path) in all {
            self.empty(number, &path).map_err(io_error("taking the limit from", &path))?;
            let file = self.file(number);
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &file)(error));
                }
                _ => {}
            }
            self.lock().remove(&number);
            passed("giving back a project");
        }
        // Only when it was the last.
        let _ = std::fs::remove_dir(&self.directory);
        Ok(())
    }

    fn empty(&self, number: u32, path: &Path) -> io::Result<()> {
        let nearest = path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let top = open_directory(nearest)?;
        if project::support(&top)? == Support::None {
            // They were switched off. The number is not given again while it has anything.
            return Ok(());
        }
        if nearest == path && project::of(&top)?.0 == number {
            put_all(&top, &[number], 0)?;
        }
        project::limit(&top, number, None)
    }

    /// Puts the directory with all it holds into its project, a new one if it has none yet. `Err`: it is in somebody
    /// else's.
    fn join(&self, path: &Path, top: &OwnedFd) -> io::Result<Result<u32, u32>> {
        let (present, inherited) = project::of(top)?;
        let number = {
            let mut records = self.lock();
            let known = records.iter().find(|(_, record)| record.path == path);
            let number = match known {
                Some((number, record)) if record.whole && inherited && *number == present => return Ok(Ok(*number)),
                Some((number, _)) => *number,
                None if present == 0 => free(&records, top)?,
                None if !(FIRST..=LAST).contains(&present) => return Ok(Err(present)),
                // The records were lost.
                None if !records.contains_key(&present) => present,
                // It was moved out of another volume.
                None => free(&records, top)?,
            };
            let record = Record { path: path.to_owned(), whole: false };
            self.write(number, &record)?;
            records.insert(number, record);
            number
        };
        passed("recording a project");
        // While it is limited, what is too much already could not be put into it.
        project::limit(top, number, None)?;
        put_all(top, &[0, present], number)?;
        passed("putting a directory into its project");
        let record = Record { path: path.to_owned(), whole: true };
        self.write(number, &record)?;
        self.lock().insert(number, record);
        Ok(Ok(number))
    }

    fn number(&self, path: &Path) -> Option<u32> {
        self.lock().iter().find(|(_, record)| record.path == path).map(|(number, _)| *number)
    }

    fn write(&self, number: u32, record: &Record) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let file = self.file(number);
        let draft = file.with_extension("new");
        let mut open = File::create(&draft)?;
        open.write_all(&serde_json::to_vec(record)?)?;
        open.sync_all()?;
        std::fs::rename(draft, file)
    }

    fn file(&self, number: u32) -> PathBuf {
        self.directory.join(number.to_string())
    }

    /// Every change of the records is one call, so they are whole whoever panicked.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that is nobody's, on this filesystem neither.
fn free(records: &BTreeMap<u32, Record>, top: &OwnedFd) -> io::Result<u32> {
    for number in (FIRST..=LAST).filter(|number| !records.contains_key(number)) {
        if project::quota(top, number)? == Quota::default() {
            return Ok(number);
        }
    }
    Err(io::Error::other(format!("all projects from {FIRST} to {LAST} are taken")))
}

/// Puts a directory and what it holds of the projects `from` into the project `to`, 0 being none.
fn put_all(top: &OwnedFd, from: &[u32], to: u32) -> io::Result<()> {
    let inherited = to != 0;
    project::put(top, to, inherited)?;
    // A volume within this one has its own.
    let put = |file: &OwnedFd, inherited| match project::of(file)?.0 {
        present if present == to || from.contains(&present) => project::put(file, to, inherited),
        _ => Ok(()),
    };
    walk::below(top.as_fd(), &mut |found| match (found.kind(), found.opened) {
        (_, Some(directory)) => put(directory, inherited),
        (FileType::RegularFile, None) => found.open_file()?.map_or(Ok(()), |file| put(&file, false)),
        // They take no space, and cannot be opened without effect.
        _ => Ok(()),
    })
}

fn read(directory: &Path) -> io::Result<BTreeMap<u32, Record>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut records = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        match serde_json::from_slice(&std::fs::read(&path)?) {
            Ok(record) => {
                records.insert(number, record);
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "the record of a project is damaged"),
        }
    }
    Ok(records)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests;
