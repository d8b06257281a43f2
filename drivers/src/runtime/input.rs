//! What a client writes to, on its way into the pipe of a program.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

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
}

impl PipeInput {
    /// Input that goes on when this end is closed: a container's, which others may attach to later.
    pub(super) fn lasting(pipe: pipe::Sender) -> Self {
        Self { pipe: Some(pipe), types_end: false, open: None }
    }

    /// Input that ends with this: of a program on a `tty` by Ctrl-D, of others by whoever `open` tells, since the shim
    /// holds an end of the pipe too.
    pub(super) fn ending(pipe: pipe::Sender, tty: bool, open: DropGuard) -> Self {
        Self { pipe: Some(pipe), types_end: tty, open: Some(open) }
    }
}

impl AsyncWrite for PipeInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match &mut self.pipe {
            Some(pipe) => Pin::new(pipe).poll_write(cx, bytes),
            None => Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
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
