//! One agent per data directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The directory cannot be had for ourselves.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent has it.
    #[error("another agent{pid} uses {data_dir}; stop it first, or give this one its own dataDir and runDir", data_dir = data_dir.display())]
    Taken {
        /// The directory.
        data_dir: PathBuf,
        /// ` (pid 1234)`, if known.
        pid: String,
    },
    /// The lock file cannot be used.
    #[error("locking {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Held as long as the agent runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join("nodelet.lock");
        let failed = |source| Error::File { path: path.clone(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim();
                let pid = if pid.is_empty() { String::new() } else { format!(" (pid {pid})") };
                return Err(Error::Taken { data_dir: data_dir.to_owned(), pid });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let first = Lock::take(directory.path()).expect("free");
        let second = Lock::take(directory.path()).expect_err("taken").to_string();
        assert!(second.starts_with(&format!("another agent (pid {}) uses ", std::process::id())), "{second}");
        drop(first);
        Lock::take(directory.path()).expect("free again");
    }
}
