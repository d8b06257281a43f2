//! What a client writes to, on its way into the pipe of a program.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio_util::sync::DropGuard;

/// Ctrl-D, which a terminal takes for the end of input.
const END_OF_INPUT: u8 = 4;

/// The writing end of a program's input.
pub(super) struct PipeInput {
    pipe: Option<pipe::Sender>,
    /// `shutdown` types the end of input.
    types_end: bool,
    /// Whoever has to be told that this end is closed.
    open: Option<DropGuard>,
    /// A reader of ours, until the shim is one, and how many bytes were written meanwhile.
    placeholder: Option<(Placeholder, u64)>,
}

impl PipeInput {
    /// Input that goes on when this end is closed: a container's, which others may attach to later.
    pub(super) fn lasting(pipe: pipe::Sender) -> Self {
        Self { pipe: Some(pipe), types_end: false, open: None, placeholder: None }
    }

    /// Input that ends with this: of a program on a `tty` by Ctrl-D, of others by whoever `open` tells, since the shim
    /// holds an end of the pipe too.
    pub(super) fn ending(pipe: pipe::Sender, tty: bool, open: DropGuard) -> Self {
        Self { pipe: Some(pipe), types_end: tty, open: Some(open), placeholder: None }
    }

    /// Lets `placeholder` go as soon as the shim has read something.
    pub(super) fn relieving(self, placeholder: Option<Placeholder>) -> Self {
        Self { placeholder: placeholder.map(|placeholder| (placeholder, 0)), ..self }
    }
}

/// A reading end of a program's input that nobody reads from, until the shim has opened its own.
///
/// The shim opens the input of an exec in the background, and may do so after the start has returned (`copyPipes` in
/// containerd's cmd/containerd-shim-runc-v2/process/io.go: `fifo.OpenFifo` with `O_NONBLOCK`). Without any reader a
/// write fails, and what was written is lost with the last end (pipe(7)).
#[derive(Debug, Clone)]
pub(super) struct Placeholder(Arc<Mutex<Option<OwnedFd>>>);

impl Placeholder {
    /// Opens the named pipe at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let pipe = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(Arc::new(Mutex::new(Some(pipe)))))
    }

    /// Closes it if somebody has read of the `written` bytes; whether it is closed.
    fn yield_to_reader(&self, written: u64) -> bool {
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.as_ref().and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok()).is_none_or(|unread| unread < written) {
            *pipe = None;
        }
        pipe.is_none()
    }
}

impl AsyncWrite for PipeInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { pipe: Some(pipe), placeholder, .. } = &mut *self else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        // After it, a write fails when the program stops to read.
        if placeholder.as_ref().is_some_and(|(placeholder, written)| placeholder.yield_to_reader(*written)) {
            *placeholder = None;
        }
        let written = ready!(Pin::new(pipe).poll_write(cx, bytes))?;
        if let Some((_, all)) = placeholder {
            *all += written as u64;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.types_end
            && let Some(pipe) = &mut self.pipe
        {
            ready!(Pin::new(pipe).poll_write(cx, &[END_OF_INPUT]))?;
        }
        self.pipe = None;
        self.open = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// An input nobody reads from yet, its path, and what keeps it.
    fn input(directory: &Path) -> (PipeInput, std::path::PathBuf, Placeholder) {
        let path = directory.join("stdin");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let placeholder = Placeholder::open(&path).unwrap();
        let pipe = pipe::OpenOptions::new().open_sender(&path).unwrap();
        let open = CancellationToken::new().drop_guard();
        (PipeInput::ending(pipe, false, open).relieving(Some(placeholder.clone())), path, placeholder)
    }

    #[tokio::test]
    async fn what_is_written_waits_for_a_reader_that_comes_late() {
        let directory = tempfile::tempdir().unwrap();
        let (mut input, path, placeholder) = input(directory.path());
        input.write_all(b"a line\n").await.unwrap();
        input.shutdown().await.unwrap();
        drop(input);
        // Not with tokio: a reader that comes after the last writer is never told of the end (pipe_poll in fs/pipe.c).
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        drop(placeholder);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "a line\n");
    }

    #[tokio::test]
    async fn a_reader_that_stops_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (mut input, path, _placeholder) = input(directory.path());
        input.write_all(&[7; 100]).await.unwrap();
        let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        input.write_all(&[7; 100]).await.unwrap();
        reader.read_exact(&mut [0; 5]).await.unwrap();
        drop(reader);
        let error = input.write_all(&[7; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_full_pipe_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let (mut input, path, placeholder) = input(directory.path());
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let mut read = Vec::new();
        let writing = async {
            input.write_all(&sent).await.unwrap();
            input.shutdown().await.unwrap();
        };
        let reading = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
            reader.read_to_end(&mut read).await.unwrap();
        };
        tokio::join!(writing, reading);
        drop(placeholder);
        assert_eq!(read, sent);
    }
}
