//! The streams of a program that somebody talks to: those of an exec, and those of a container that was attached to.

use std::fmt;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::Error;

/// Which of a program's streams are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// What it reads.
    pub stdin: bool,
    /// What it prints.
    pub stdout: bool,
    /// Its errors. With a terminal there is only one stream, `stdout`.
    pub stderr: bool,
    /// Run it on a terminal of its own. For [`super::Runtime::attach`] the container's specification decides.
    pub tty: bool,
}

/// A program to be started by [`super::Runtime::open_exec`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Program and arguments.
    pub command: Vec<String>,
    /// What to connect; what is not is `/dev/null`.
    pub streams: Streams,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Something to write to.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// Something to read from until its end.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A program's streams, as far as they were asked for. Nothing is read ahead: a program waits while nobody reads what
/// it prints and the pipe is full.
pub struct Session {
    /// Of an exec: `shutdown` or drop is the end of the program's input (on a terminal, `shutdown` types Ctrl-D). Of a
    /// container: `shutdown` and drop end nothing, its input stays open for the next.
    pub stdin: Option<Input>,
    /// What it prints.
    pub stdout: Option<Output>,
    /// Its errors.
    pub stderr: Option<Output>,
    /// Takes the sizes of the terminal; present if there is one.
    pub resize: Option<watch::Sender<TerminalSize>>,
    /// Its exit code. Output may still come afterwards, and longest as long as a child of the program holds the pipe.
    /// Dropping this before it resolves says that nobody wants the program any more: of an exec, its input ends, it
    /// is sent SIGHUP, and SIGKILL if it does not end by that; a container is not touched.
    pub exit: BoxFuture<'static, Result<u32, Error>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}
