//! A connection whose other end must not be slow for ever: neither in sending a request's headers nor in taking what is
//! sent to it. A client that is just silent between requests is not concerned.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What a connection is about.
#[derive(Debug, Default)]
pub(super) struct Phase(AtomicU8);

const IDLE: u8 = 0;
const HEADERS: u8 = 1;
const REQUEST: u8 = 2;
const PATIENT: u8 = 3;

impl Phase {
    /// A request's headers are there.
    pub(super) fn begin(&self) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now != PATIENT).then_some(REQUEST));
    }

    /// A request is answered, as far as its sender is concerned the next may begin.
    pub(super) fn end(&self) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now != PATIENT).then_some(IDLE));
    }

    /// From here on the client may take its time: a log in a pager, a stream of its own.
    pub(super) fn be_patient(&self) {
        self.0.store(PATIENT, Ordering::Relaxed);
    }

    fn is(&self, phase: u8) -> bool {
        self.0.load(Ordering::Relaxed) == phase
    }
}

pub(super) struct Paced<S> {
    stream: S,
    phase: Arc<Phase>,
    receive: Duration,
    send: Duration,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, phase: Arc<Phase>, receive: Duration, send: Duration) -> Self {
        Self { stream, phase, receive, send, reading: None, writing: None }
    }

    /// Fails once what is written has been waiting for too long.
    fn written<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() || self.phase.is(PATIENT) {
            self.writing = None;
            return written;
        }
        let send = self.send;
        let writing = self.writing.get_or_insert_with(|| Box::pin(sleep(send)));
        ready!(writing.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take what is sent")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let _ = self.phase.0.compare_exchange(IDLE, HEADERS, Ordering::Relaxed, Ordering::Relaxed);
        }
        if !self.phase.is(HEADERS) {
            self.reading = None;
            return read;
        }
        let receive = self.receive;
        let reading = self.reading.get_or_insert_with(|| Box::pin(sleep(receive)));
        if reading.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the headers do not come to an end")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.written(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.written(context, shut)
    }
}
