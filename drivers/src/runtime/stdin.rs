//! The input of containers made with one: a named pipe for each, `<runDir>/stdin/<container>`.
//!
//! The shim opens it at the creation of the task, for reading and for writing, so that the program sees no end whoever
//! comes and goes on our side: not at an agent's restart either.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::unix::pipe;

use super::{Error, exec};
use crate::ids::ContainerId;

fn path(run_dir: &Path, id: &ContainerId) -> PathBuf {
    run_dir.join("stdin").join(id.as_str())
}

/// Makes the pipe, if it is not there, and returns its path.
pub(super) fn ensure(run_dir: &Path, id: &ContainerId) -> Result<String, Error> {
    let path = path(run_dir, id);
    let made = std::fs::create_dir_all(path.parent().unwrap_or(run_dir)).and_then(|()| exec::make_fifo(&path));
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::Failed { doing: format!("making the input of container {id}"), source: Box::new(error) })
        }
        _ => Ok(path.display().to_string()),
    }
}

/// Removes the pipe; absence is success.
pub(super) fn remove(run_dir: &Path, id: &ContainerId) {
    let _ = std::fs::remove_file(path(run_dir, id));
}

/// Containers that have a pipe.
pub(super) fn list(run_dir: &Path) -> Vec<ContainerId> {
    let entries = std::fs::read_dir(run_dir.join("stdin")).into_iter().flatten().flatten();
    entries.filter_map(|entry| ContainerId::new(entry.file_name().into_string().ok()?).ok()).collect()
}

/// Opens the pipe to write to the container's program.
pub(super) fn open(run_dir: &Path, id: &ContainerId) -> io::Result<pipe::Sender> {
    pipe::OpenOptions::new().open_sender(path(run_dir, id))
}
