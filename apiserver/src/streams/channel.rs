//! The two ends that a protocol gives to whoever moves bytes: [`Source`] for what the client sends, [`Sink`] for what
//! it gets. Both are bounded, so a slow side slows the other down and nothing piles up.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::spdy::{Credit, StreamSink};
use super::websocket::ChannelSink;

/// The most that is read, framed and sent at once.
pub(super) const CHUNK: usize = 32 * 1024;
/// Room for the frame's header in front of each chunk, so that nothing is copied to make a frame.
const HEADROOM: usize = 8;
/// Messages that may wait on their way in, for each channel, and on their way out, for each connection.
pub(super) const QUEUE: usize = 8;

/// The client is gone, or wants no more of this.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// Bytes on their way to a client, with room for a header before them.
#[derive(Debug)]
pub(super) struct Chunk(BytesMut);

impl Chunk {
    /// Waits for bytes; `None` at the end. Nothing is lost when the future is dropped.
    pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut buffer = BytesMut::with_capacity(HEADROOM + CHUNK);
        buffer.put_bytes(0, HEADROOM);
        let read = from.read_buf(&mut (&mut buffer).limit(CHUNK)).await?;
        Ok((read > 0).then_some(Self(buffer)))
    }

    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = BytesMut::with_capacity(HEADROOM + bytes.len());
        buffer.put_bytes(0, HEADROOM);
        buffer.put_slice(bytes);
        Self(buffer)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len() - HEADROOM
    }

    /// The bytes alone.
    pub(super) fn payload(&self) -> &[u8] {
        &self.0[HEADROOM..]
    }

    /// Takes the first bytes off; `self` keeps the rest.
    pub(super) fn split_to(&mut self, count: usize) -> Self {
        let first = Self::copy_of(&self.payload()[..count]);
        let rest = self.0.split_off(count);
        self.0 = rest;
        first
    }

    /// The bytes with `header` right before them.
    pub(super) fn framed<const N: usize>(mut self, header: [u8; N]) -> Bytes {
        const { assert!(N <= HEADROOM) }
        let mut bytes = self.0.split_off(HEADROOM - N);
        bytes[..N].copy_from_slice(&header);
        bytes.freeze()
    }
}

/// What a client sends on one channel, in pieces of any size.
#[derive(Debug)]
pub(super) struct Source {
    queue: mpsc::Receiver<Bytes>,
    credit: Option<Credit>,
}

impl Source {
    /// A source and where its protocol puts what came in; dropping that is the end of input.
    pub(super) fn new(credit: Option<Credit>) -> (mpsc::Sender<Bytes>, Self) {
        let (inlet, queue) = mpsc::channel(QUEUE);
        (inlet, Self { queue, credit })
    }

    /// The next piece; `None` when the client sends no more. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let bytes = self.queue.recv().await?;
        if let Some(credit) = &self.credit {
            credit.consumed(bytes.len());
        }
        Some(bytes)
    }
}

/// Where a client gets something on one channel.
#[derive(Debug)]
pub(super) enum Sink {
    /// A channel of a WebSocket.
    WebSocket(ChannelSink),
    /// A stream of a SPDY connection.
    Spdy(StreamSink),
}

impl Sink {
    /// Sends bytes, once there is room for them on the way.
    pub(super) async fn send(&mut self, chunk: Chunk) -> Result<(), Gone> {
        match self {
            Self::WebSocket(sink) => sink.send(chunk).await,
            Self::Spdy(sink) => sink.send(chunk).await,
        }
    }

    /// Says that nothing follows, where the protocol has a word for it.
    pub(super) async fn finish(&mut self) {
        match self {
            Self::WebSocket(_) => {}
            Self::Spdy(sink) => sink.finish().await,
        }
    }

    /// Ends the channel in both directions.
    pub(super) async fn close(mut self) {
        self.finish().await;
        match self {
            Self::WebSocket(_) => {}
            Self::Spdy(sink) => sink.reset().await,
        }
    }

    /// Waits until the client wants no more of this channel.
    pub(super) async fn gone(&self) {
        match self {
            Self::WebSocket(sink) => sink.gone().await,
            Self::Spdy(sink) => sink.gone().await,
        }
    }
}

/// When something last came or went on a connection.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    pub(super) fn touch(&self) {
        self.last.store(self.start.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// Waits until nothing has happened for so long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let since = self.start + Duration::from_secs(self.last.load(Ordering::Relaxed));
            if since.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(since + limit).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chunk_takes_a_header_and_can_be_cut() {
        let mut from: &[u8] = b"hello world";
        let mut chunk = Chunk::read(&mut from).await.unwrap().unwrap();
        assert!(Chunk::read(&mut from).await.unwrap().is_none());
        assert_eq!(chunk.len(), 11);
        let first = chunk.split_to(6);
        assert_eq!((first.payload(), chunk.payload()), (&b"hello "[..], &b"world"[..]));
        assert_eq!(&first.framed([7])[..], b"\x07hello ");
        assert_eq!(&chunk.framed(*b"12345678")[..], b"12345678world");
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_last_touch() {
        let activity = Activity::new();
        tokio::time::sleep(Duration::from_secs(50)).await;
        activity.touch();
        let began = Instant::now();
        activity.idle(Duration::from_secs(60)).await;
        assert_eq!(began.elapsed().as_secs(), 60);
    }
}
