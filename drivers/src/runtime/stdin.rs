//! The input of containers made with one, below `<runDir>/stdin/<container>`.
//!
//! With a terminal that is a named pipe. The shim opens it at the creation of the task, for reading and for writing, so
//! that the program sees no end whoever comes and goes on our side: not at an agent's restart either.
//!
//! Without a terminal the shim gives a program whose output is logged no input. It is then a directory, and the pipe in
//! it is held open by the log's writer and handed to the program by a stand-in for the OCI runtime; `logger/src/input.rs`
//! says what is in there. An input that is used once is renamed when its only user comes, so that an agent that starts
//! knows which ones to end.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::containerd::Options;
use super::input::Unread;
use super::{Error, exec};
use crate::failpoint::passed;
use crate::ids::ContainerId;

const INPUT: &str = "in";
/// [`INPUT`] of which the only user has come.
const TAKEN: &str = "taken";
const END: &str = "end";
const STAND_IN: &str = "oci-runtime";

/// Where the input of a container is.
pub(super) fn directory(run_dir: &Path, id: &ContainerId) -> PathBuf {
    run_dir.join("stdin").join(id.as_str())
}

/// What runs as the OCI runtime of a container whose input is a directory.
pub(super) fn stand_in(run_dir: &Path, id: &ContainerId) -> String {
    directory(run_dir, id).join(STAND_IN).display().to_string()
}

/// Makes the pipe of a container with a terminal, if it is not there, and returns its path.
pub(super) fn ensure_pipe(run_dir: &Path, id: &ContainerId) -> Result<String, Error> {
    let path = directory(run_dir, id);
    let made = std::fs::create_dir_all(path.parent().unwrap_or(run_dir)).and_then(|()| make_pipe(&path));
    made.map_err(|source| Error::Failed {
        doing: format!("making the input of container {id}"),
        source: source.into(),
    })?;
    Ok(path.display().to_string())
}

/// Makes the directory of a container without a terminal.
pub(super) fn ensure_input(options: &Options, id: &ContainerId) -> Result<(), Error> {
    let directory = directory(&options.run_dir, id);
    let make = || {
        std::fs::create_dir_all(&directory)?;
        make_pipe(&directory.join(INPUT))?;
        make_pipe(&directory.join(END))?;
        std::fs::write(directory.join("runtime"), options.oci_runtime.as_deref().unwrap_or("runc"))?;
        tolerate(io::ErrorKind::AlreadyExists, symlink(&options.logger, directory.join(STAND_IN)))
    };
    make().map_err(|source: io::Error| Error::Failed {
        doing: format!("making the input of container {id}"),
        source: source.into(),
    })?;
    passed("making the input of a container");
    Ok(())
}

fn make_pipe(path: &Path) -> io::Result<()> {
    tolerate(io::ErrorKind::AlreadyExists, exec::make_fifo(path))
}

fn tolerate(kind: io::ErrorKind, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        other => other,
    }
}

/// Removes what there is of the input; absence is success.
pub(super) fn remove(run_dir: &Path, id: &ContainerId) {
    let path = directory(run_dir, id);
    if std::fs::remove_file(&path).is_err() {
        let _ = std::fs::remove_dir_all(&path);
    }
}

/// Containers that have an input.
pub(super) fn list(run_dir: &Path) -> Vec<ContainerId> {
    let entries = std::fs::read_dir(run_dir.join("stdin")).into_iter().flatten().flatten();
    entries.filter_map(|entry| ContainerId::new(entry.file_name().into_string().ok()?).ok()).collect()
}

/// Opens the input to write to the container's program.
pub(super) fn open(run_dir: &Path, id: &ContainerId) -> io::Result<Unread> {
    let path = directory(run_dir, id);
    let path = if path.is_dir() { path.join(INPUT) } else { path };
    Unread::writer(&path)
}

/// Opens the input for its only user.
pub(super) fn take(run_dir: &Path, id: &ContainerId) -> io::Result<Unread> {
    let directory = directory(run_dir, id);
    let taken = directory.join(TAKEN);
    match std::fs::rename(directory.join(INPUT), &taken) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), "it is used once (stdinOnce), and was"))
        }
        Err(error) => Err(error),
        Ok(()) => Unread::writer(&taken),
    }
}

/// Lets the program see the end of its input, once nobody writes to it. Of one on a terminal this does nothing.
pub(super) fn end(run_dir: &Path, id: &ContainerId) {
    let end = directory(run_dir, id).join(END);
    let told =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(end).and_then(|mut pipe| pipe.write(b"\n"));
    // Nobody listens once the container has ended, or the input has.
    if let Err(error) = told {
        tracing::debug!(container = %id, %error, "ending the input of a container");
    }
}

/// Ends the inputs whose only user has come, after the start of an agent: he has gone with the one before.
pub(super) fn end_taken(run_dir: &Path) {
    for id in list(run_dir) {
        if directory(run_dir, &id).join(TAKEN).exists() {
            end(run_dir, &id);
        }
    }
}
