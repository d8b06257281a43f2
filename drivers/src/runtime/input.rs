//! What a client writes to, on its way into the pipe of a program.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::DropGuard;

/// Ctrl-D, which a terminal takes for the end of input.
const END_OF_INPUT: u8 = 4;
/// How soon it is looked again for a reader, at first and at last.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The writing end of a program's input.
pub(super) struct PipeInput {
    pipe: End,
    /// `shutdown` types the end of input.
    types_end: bool,
    /// Whoever has to be told that this end is closed.
    open: Option<DropGuard>,
}

/// How far a writing end is.
enum End {
    Unread(Unread),
    Open(pipe::Sender),
    Closed,
}

/// A writing end of a named pipe that perhaps nobody reads from yet.
///
/// The shim opens the input of an exec in the background, and may do so after its start has returned (`copyPipes` in
/// containerd's cmd/containerd-shim-runc-v2/process/io.go); that of a container with a terminal too. Until then a write
/// would fail, what was written would be lost with the last end, and an end would never be seen: whoever opens a pipe to
/// read waits for a writer (fifo(7)).
pub(super) struct Unread {
    pipe: OwnedFd,
    pause: Duration,
    paused: Pin<Box<Sleep>>,
}

impl Unread {
    /// Opens the named pipe at `path`: for reading as well if it shall have a reader, else while it has one.
    pub(super) fn open(path: &Path, both_ways: bool) -> io::Result<Self> {
        let access = if both_ways { OFlags::RDWR } else { OFlags::WRONLY };
        let pipe = rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { pipe, pause: PAUSE, paused: Box::pin(sleep(PAUSE)) })
    }

    /// Opens the named pipe at `path` to write to it, whether or not it has a reader yet.
    pub(super) fn writer(path: &Path) -> io::Result<Self> {
        let _reader_for_a_moment = Self::open(path, true)?;
        Self::open(path, false)
    }

    /// Waits until somebody reads. One who has stopped to read is not told from one who has not begun, so this may
    /// wait as long as the program runs.
    pub(super) async fn reader(&mut self) {
        poll_fn(|cx| self.poll_reader(cx)).await;
    }

    fn poll_reader(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_reader() {
            ready!(self.paused.as_mut().poll(cx));
            self.pause = LONGEST_PAUSE.min(self.pause * 2);
            self.paused.as_mut().reset(Instant::now() + self.pause);
        }
        Poll::Ready(())
    }

    /// A pipe that can be written to and has no reader is in error (pipe_poll in fs/pipe.c).
    fn has_reader(&self) -> bool {
        let mut pipe = [PollFd::new(&self.pipe, PollFlags::OUT)];
        poll(&mut pipe, Some(&Timespec::default())).is_ok() && !pipe[0].revents().contains(PollFlags::ERR)
    }
}

impl AsFd for Unread {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl PipeInput {
    /// Input that goes on when this end is closed: a container's, which others may attach to later.
    pub(super) fn lasting(pipe: Unread) -> Self {
        Self { pipe: End::Unread(pipe), types_end: false, open: None }
    }

    /// Input that ends with this: of a program on a `tty` by Ctrl-D, of others by whoever `open` tells, since the shim
    /// holds an end of the pipe too.
    pub(super) fn ending(pipe: Unread, tty: bool, open: DropGuard) -> Self {
        Self { pipe: End::Unread(pipe), types_end: tty, open: Some(open) }
    }

    /// The pipe, once there is a reader. Only then is it tokio's: one that was without is taken for closed for ever.
    fn poll_pipe(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut pipe::Sender>> {
        if let End::Unread(unread) = &mut self.pipe {
            ready!(unread.poll_reader(cx));
        }
        self.pipe = match std::mem::replace(&mut self.pipe, End::Closed) {
            End::Unread(Unread { pipe, .. }) => End::Open(pipe::Sender::from_owned_fd(pipe)?),
            end => end,
        };
        match &mut self.pipe {
            End::Open(pipe) => Poll::Ready(Ok(pipe)),
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl AsyncWrite for PipeInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(ready!(self.poll_pipe(cx))?).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.types_end && !matches!(self.pipe, End::Closed) {
            ready!(Pin::new(ready!(self.poll_pipe(cx))?).poll_write(cx, &[END_OF_INPUT]))?;
        }
        self.pipe = End::Closed;
        self.open = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::path::PathBuf;

    use futures::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// An input nobody reads from yet, as a started exec has it; its path, a second end, and what tells of its end.
    fn input(directory: &Path) -> (PipeInput, PathBuf, Unread, CancellationToken) {
        let path = directory.join("stdin");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let (pipe, keeper) = (Unread::writer(&path).unwrap(), Unread::writer(&path).unwrap());
        let ended = CancellationToken::new();
        (PipeInput::ending(pipe, false, ended.clone().drop_guard()), path, keeper, ended)
    }

    #[tokio::test]
    async fn a_reader_that_comes_late_gets_everything_and_its_end() {
        let large: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        for sent in [&[][..], b"a line\n", &large] {
            let directory = tempfile::tempdir().unwrap();
            let (mut input, path, mut keeper, ended) = input(directory.path());
            let sending = async move {
                input.write_all(sent).await.unwrap();
                input.shutdown().await.unwrap();
                ended.cancelled().await;
                keeper.reader().await;
            };
            tokio::pin!(sending);
            assert!(sending.as_mut().now_or_never().is_none(), "nobody reads yet");
            // As the shim does: it waits for a writer.
            let reading = tokio::task::spawn_blocking(|| {
                let mut read = Vec::new();
                File::open(path).unwrap().read_to_end(&mut read).unwrap();
                read
            });
            sending.await;
            assert!(reading.await.unwrap() == sent, "{} bytes", sent.len());
        }
    }

    #[tokio::test]
    async fn a_reader_that_stops_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (mut input, path, _keeper, _) = input(directory.path());
        let reader = std::thread::spawn(move || File::open(path).unwrap().read_exact(&mut [0; 5]).unwrap());
        let error = loop {
            if let Err(error) = input.write_all(&[7; 10_000]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        reader.join().unwrap();
    }
}
