//! Streams into running things: `exec`, `attach` and `portforward` of Workloads, and of the Pods that show them.
//!
//! The server speaks the protocols of kubectl and other clients (WebSocket, SPDY/3.1) and knows nothing of containers:
//! whoever runs them implements [`Streams`] and sees only bytes.
//!
//! A request's way: `request` reads it, `session` refuses it or changes the protocol, `websocket`, `tunnel` and `spdy/`
//! turn the connection into channels, `remote` and `forward` move bytes between those and what runs.

mod channel;
mod forward;
mod remote;
mod request;
mod session;
mod spdy;
mod status;
mod tunnel;
mod websocket;

use std::fmt;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

pub(crate) use request::kind_of;
pub(crate) use session::{Stopping, StreamServer};

/// What a client wants to reach. The object existed when the request came; the container, if there is one, is in its
/// specification.
#[derive(Debug, Clone)]
pub struct StreamTarget {
    /// Namespace of the Workload.
    pub namespace: String,
    /// Name of the Workload.
    pub name: String,
    /// The Workload as it was then, whether it was asked for as such or as a Pod.
    pub object: Value,
    /// The container, chosen and checked against the specification; `None` for `portforward`, which reaches the whole
    /// Workload.
    pub container: Option<String>,
}

/// What a client wants to do there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Run another program beside the container's.
    Exec,
    /// See and feed the container's own program.
    Attach,
    /// Connect to a port.
    PortForward,
}

/// Which of a program's streams the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StdStreams {
    /// What the program reads.
    pub stdin: bool,
    /// What it prints.
    pub stdout: bool,
    /// Its errors; never together with `tty`.
    pub stderr: bool,
    /// Run on a terminal. For `attach` it is what the container's specification says.
    pub tty: bool,
}

/// A terminal's size in characters, both greater than zero once told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Something to write to; `shutdown` tells the reader that nothing follows.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// Something to read from until its end.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A program that was started, or the one that was attached to.
///
/// Dropping it means that the client is gone: `stdin` has to end then, the program may go on. Nothing is read while a
/// client is slow, so the program waits when its pipes are full.
pub struct Process {
    /// Present if it was asked for (and, for `attach`, if the container has one). Shut down or dropped when the client
    /// sends no more.
    pub stdin: Option<Input>,
    /// Present if it was asked for.
    pub stdout: Option<Output>,
    /// Present if it was asked for and there is no terminal.
    pub stderr: Option<Output>,
    /// Told of every size the client's terminal takes, the first one included; present if there is a terminal.
    pub resize: Option<watch::Sender<TerminalSize>>,
    /// The exit code, once the program has ended: 128 + n for signal n. Output may still be in the pipes; it is read to
    /// its end, or until nothing has come for a while, since a child may hold a pipe open. For `attach` the code means
    /// nothing, and may come when the container's output ends.
    pub exit: BoxFuture<'static, Result<u32, StreamError>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}

/// A connection to a port, in both directions. `shutdown` closes the direction towards the port alone.
pub trait PortConnection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PortConnection for T {}

/// Why something cannot be reached or started. The message is for the client.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Asked for something that this container cannot do, such as input for one without.
    #[error("{0}")]
    Invalid(String),
    /// The container, or for `portforward` the Workload, is not running. Say what it is doing instead.
    #[error("{0}")]
    NotRunning(String),
    /// The program cannot be started: there is no such file, it is not executable, the working directory is gone.
    #[error("{0}")]
    Start(String),
    /// Nobody listens at the port, or the connection broke.
    #[error("{0}")]
    Connect(String),
    /// What runs containers does not answer, or failed.
    #[error("{message}")]
    Failed {
        /// What was tried.
        message: String,
        /// What went wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Reaches running containers. Everything may be called from many tasks at once.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// Whether the target is there now, so that a client which asks in vain gets a plain answer instead of a stream
    /// that fails. It may still be gone a moment later.
    ///
    /// # Errors
    /// [`StreamError::NotRunning`] above all.
    async fn check(&self, target: &StreamTarget, kind: StreamKind) -> Result<(), StreamError>;

    /// Starts a program in the container. Its environment, user and working directory are the container's.
    ///
    /// # Errors
    /// [`StreamError::Start`] if the program cannot be started.
    async fn exec(
        &self,
        target: &StreamTarget,
        command: Vec<String>,
        streams: StdStreams,
    ) -> Result<Process, StreamError>;

    /// Attaches to the container's own program. Several clients may at once: all see its output from now on, and what
    /// any of them sends is its input. That a client ends its input does not end the program's, unless the
    /// specification says so (`stdinOnce`).
    ///
    /// # Errors
    /// When the container is not running.
    async fn attach(&self, target: &StreamTarget, streams: StdStreams) -> Result<Process, StreamError>;

    /// Connects to a TCP port on the loopback address inside the Workload's network namespace.
    ///
    /// # Errors
    /// [`StreamError::Connect`] when nobody listens there.
    async fn connect(&self, target: &StreamTarget, port: u16) -> Result<Box<dyn PortConnection>, StreamError>;
}
