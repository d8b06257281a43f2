//! The named pipes between us and an exec's streams.
//!
//! An exec has a directory `<runDir>/exec/<container>@<exec>/`. It is made before the program is added to the container
//! and removed after the program was deleted from it, so what is there at the start of an agent names every program
//! that a crash left behind.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, Mode};
use tokio::net::unix::pipe;

use super::super::input::Unread;
use super::super::session::Streams;
use crate::ids::ContainerId;

/// Stands between the two ids; no id holds one.
const SEPARATOR: char = '@';
/// Wished capacity of a pipe: fewer, longer turns for all involved. A node may grant less.
const CAPACITY: usize = 256 << 10;

/// Execs of this process, which a sweep leaves alone.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Live(Arc<Mutex<BTreeSet<String>>>);

impl Live {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

/// The directory of one exec.
pub(super) struct Fifos {
    dir: PathBuf,
    name: String,
    live: Live,
    streams: Streams,
    keep: bool,
}

/// Our ends.
#[derive(Default)]
pub(super) struct Ends {
    pub(super) stdin: Option<Unread>,
    /// A second one, so that the input does not end before the shim reads it.
    pub(super) keeper: Option<Unread>,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
}

/// All execs' directories.
pub(super) fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("exec")
}

/// The ids in a directory's name.
pub(super) fn ids(name: &str) -> Option<(ContainerId, &str)> {
    let (container, exec) = name.split_once(SEPARATOR)?;
    Some((ContainerId::new(container).ok()?, exec))
}

impl Fifos {
    /// Makes the directory and the pipes that `streams` need.
    pub(super) fn make(
        run_dir: &Path,
        live: &Live,
        id: &ContainerId,
        exec: &str,
        streams: Streams,
    ) -> io::Result<Self> {
        let name = format!("{id}{SEPARATOR}{exec}");
        let dir = directory(run_dir).join(&name);
        live.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        let fifos = Self { dir, name, live: live.clone(), streams, keep: false };
        std::fs::create_dir_all(&fifos.dir)?;
        for path in [fifos.stdin(), fifos.stdout(), fifos.stderr()] {
            if !path.is_empty() {
                make(Path::new(&path))?;
            }
        }
        Ok(fifos)
    }

    fn path(&self, wanted: bool, name: &str) -> String {
        if wanted { self.dir.join(name).display().to_string() } else { String::new() }
    }

    /// The pipe's path, or nothing if it was not asked for; as containerd wants it.
    pub(super) fn stdin(&self) -> String {
        self.path(self.streams.stdin, "stdin")
    }

    /// Always there: the shim takes no program with an input and without outputs.
    pub(super) fn stdout(&self) -> String {
        self.path(true, "stdout")
    }

    /// There if there is no terminal.
    pub(super) fn stderr(&self) -> String {
        self.path(!self.streams.tty, "stderr")
    }

    /// Opens our ends before the shim opens its own: it would wait for a reader, and a reader must not see an end
    /// before the first writer.
    pub(super) fn open_early(&self) -> io::Result<Ends> {
        self.open(true)
    }

    /// Opens our ends once the shim has those of the outputs, so that the end of one side is seen by the other.
    pub(super) fn open_late(&self) -> io::Result<Ends> {
        self.open(false)
    }

    fn open(&self, both_ways: bool) -> io::Result<Ends> {
        let mut options = pipe::OpenOptions::new();
        options.read_write(both_ways);
        let receiver = |path: String| match path.is_empty() {
            true => Ok(None),
            false => options.open_receiver(path).map(Some),
        };
        let stdin = self.stdin();
        let input = || match stdin.is_empty() {
            true => Ok(None),
            false => Unread::open(Path::new(&stdin), both_ways).map(Some),
        };
        let ends = Ends {
            stdin: input()?,
            keeper: input()?,
            stdout: receiver(self.stdout())?,
            stderr: receiver(self.stderr())?,
        };
        if both_ways {
            use std::os::fd::AsFd as _;
            let pipes = [&ends.stdout, &ends.stderr].into_iter().flatten().map(|pipe| pipe.as_fd());
            for pipe in ends.stdin.iter().map(|pipe| pipe.as_fd()).chain(pipes) {
                let _ = rustix::pipe::fcntl_setpipe_size(pipe, CAPACITY);
            }
        }
        Ok(ends)
    }

    /// Leaves the directory to the next sweep: the program could not be deleted.
    pub(super) fn leave(mut self) {
        self.keep = true;
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
        self.live.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// Makes a named pipe that only root uses.
pub(in super::super) fn make(path: &Path) -> io::Result<()> {
    rustix::fs::mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR)?;
    Ok(())
}
