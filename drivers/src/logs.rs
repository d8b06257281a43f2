//! Reading and following container logs in the CRI format, across rotations.
//!
//! A line is `2016-10-06T00:17:09.669794202Z stdout F message` (Kubernetes, "CRI logging format"; `P` marks a part
//! of a line that was longer than the writer's buffer). `nodelet-logger` writes `<attempt>.log` and rotates it to
//! `<attempt>.log.1`, `.2`, … by rename, 1 being the youngest.
//!
//! # Contract
//! - Files are read from the oldest to the current one. A rotation at any moment loses and doubles nothing, unless the
//!   writer deletes files faster than they are read: then what is left is read.
//! - Lines are given whole: parts are joined, for each stream by itself.
//! - Something that is no record (written by others, torn by a crash) is given as it is rather than hidden.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;

mod files;
mod follow;
mod lines;
mod record;
mod tail;

pub use record::{Record, Source, parse};

/// Which part of a log to read, and how to show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Only the last lines (of those that the other options leave).
    pub tail_lines: Option<u64>,
    /// Only lines written at this time or later.
    pub since: Option<SystemTime>,
    /// Put its time before each line.
    pub timestamps: bool,
    /// End after this many bytes, in the middle of a line if need be.
    pub limit_bytes: Option<u64>,
    /// Only this stream.
    pub source: Option<Source>,
}

/// Reads the log of one attempt.
#[derive(Debug, Clone)]
pub struct LogReader {
    path: PathBuf,
    options: Options,
}

impl LogReader {
    /// For the log whose current file is `path`, see [`path`].
    pub fn new(path: impl Into<PathBuf>, options: Options) -> Self {
        Self { path: path.into(), options }
    }

    /// What is there now, as chunks of whole lines.
    pub fn read(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        follow::stream(self.path, self.options, None)
    }

    /// What is there and what comes, as chunks of whole lines, woken by the kernel when files change. `done` says that
    /// nothing more will be written (the container has ended): the stream then ends as soon as everything is read.
    /// The directory of the log has to exist, the log need not.
    pub fn follow(self, done: BoxFuture<'static, ()>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        follow::stream(self.path, self.options, Some(done))
    }

    /// What is written from the moment on at which this returns, byte for byte: parts of lines as they come. Ends as
    /// [`LogReader::follow`] does.
    ///
    /// # Errors
    /// The log's directory cannot be watched or read.
    pub async fn attach(
        self,
        done: BoxFuture<'static, ()>,
    ) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static> {
        Ok(Box::pin(follow::attach(self.path, self.options, done).await?))
    }
}

/// The current file of an attempt's log in a container's log directory.
pub fn path(dir: &Path, attempt: u32) -> PathBuf {
    dir.join(format!("{attempt}.log"))
}

/// The attempts that have left a log in a container's log directory, in order; none when it does not exist.
pub fn attempts(dir: &Path) -> Vec<u32> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut attempts: Vec<u32> = names
        .filter_map(|name| {
            let (attempt, rotation) = name.split_once(".log")?;
            let is_log = rotation.is_empty() || rotation.strip_prefix('.')?.parse::<u32>().is_ok();
            is_log.then(|| attempt.parse().ok()).flatten()
        })
        .collect();
    attempts.sort_unstable();
    attempts.dedup();
    attempts
}

/// Removes a directory of logs with all in it; absence is success. Their writers must have ended.
pub fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
