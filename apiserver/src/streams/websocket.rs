//! Channels over a WebSocket: the first byte of each message is the channel's number.
//!
//! `v5` and `v4.channel.k8s.io` and their older forms, with the base64 variants that browsers liked. In `v5` a message
//! of channel 255 names a channel that the client closes.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::channel::{Activity, CHUNK, Chunk, Gone, QUEUE};

/// The longest message that is taken: some clients send whatever they have in one.
const MESSAGE: usize = 16 << 20;
/// A word from us so often: it tells a vanished client from a silent one, and keeps those waiting that want to hear
/// something while a program does not read its input.
const BEAT: Duration = Duration::from_secs(10);
/// The channel that closes others.
const CLOSE: u8 = 255;

/// How channels are written in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Encoding {
    /// Digits for channels, base64 for bytes, text messages.
    pub(super) base64: bool,
    /// Channels can be closed alone.
    pub(super) closes: bool,
}

/// One channel towards the client.
#[derive(Debug)]
pub(super) struct ChannelSink {
    channel: u8,
    base64: bool,
    queue: mpsc::Sender<Message>,
}

impl ChannelSink {
    pub(super) async fn send(&self, chunk: Chunk) -> Result<(), Gone> {
        let message = if self.base64 {
            let digit = char::from(b'0'.saturating_add(self.channel));
            Message::text(format!("{digit}{}", STANDARD.encode(chunk.payload())))
        } else {
            Message::Binary(chunk.framed([self.channel]))
        };
        self.queue.send(message).await.map_err(|_| Gone)
    }

    pub(super) async fn gone(&self) {
        self.queue.closed().await;
    }
}

/// Makes sinks for the channels of one socket. Once all of them are gone, and this, the socket is closed.
#[derive(Debug)]
pub(super) struct Channels {
    encoding: Encoding,
    queue: mpsc::Sender<Message>,
}

impl Channels {
    pub(super) fn sink(&self, channel: u8) -> ChannelSink {
        ChannelSink { channel, base64: self.encoding.base64, queue: self.queue.clone() }
    }
}

/// Where messages of a channel go.
#[derive(Debug)]
pub(super) enum Inlet {
    /// Somebody reads them.
    Open(mpsc::Sender<Bytes>),
    /// They mean nothing, or nothing any more.
    Ignored,
}

/// Why a client is turned away in the middle.
#[derive(Debug)]
struct Violation {
    code: CloseCode,
    reason: &'static str,
}

/// The server's end of a WebSocket whose handshake is done.
pub(super) async fn accept<T>(io: T) -> WebSocketStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(64 * 1024)
        .write_buffer_size(64 * 1024)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Begins to move messages. The future has to be polled for anything to happen; it ends when the client is gone, has
/// been turned away, or, after the last sink, has been told goodbye and has answered.
pub(super) fn open<T>(
    socket: WebSocketStream<T>,
    encoding: Encoding,
    mut inlets: Vec<Inlet>,
    activity: Arc<Activity>,
) -> (Channels, impl Future<Output = ()>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (queue, outgoing) = mpsc::channel(QUEUE);
    let (mut sink, mut stream) = socket.split();
    let driver = async move {
        let violation = {
            let reading = read(&mut stream, encoding, &mut inlets, &activity);
            tokio::pin!(reading);
            // Dropping the writer loses nothing that matters: its client is gone or turned away. A message that it
            // had begun is kept by the socket, so a farewell never ends up inside it.
            tokio::select! {
                read = reading.as_mut() => read,
                written = write(&mut sink, outgoing, &activity) => match written {
                    Ok(()) => reading.await,
                    Err(_) => Ok(()),
                },
            }
        };
        if let Err(Violation { code, reason }) = violation {
            tracing::debug!(%reason, "a WebSocket client was turned away");
            let farewell = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
            let _ = tokio::time::timeout(Duration::from_secs(2), sink.send(farewell)).await;
        }
    };
    (Channels { encoding, queue }, driver)
}

async fn read<T>(
    stream: &mut SplitStream<WebSocketStream<T>>,
    encoding: Encoding,
    inlets: &mut [Inlet],
    activity: &Activity,
) -> Result<(), Violation>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = stream.next().await {
        activity.touch();
        // Some clients send text where they mean bytes.
        let bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => text.into(),
            // Answering them is the library's, after the next read.
            Ok(_) => continue,
            Err(error) => return violation(&error),
        };
        let (channel, payload) = take_apart(encoding, bytes)?;
        if encoding.closes && channel == CLOSE {
            let Some(inlet) = payload.first().and_then(|named| inlets.get_mut(usize::from(*named))) else {
                return Err(Violation { code: CloseCode::Protocol, reason: "no such channel to close" });
            };
            *inlet = Inlet::Ignored;
            continue;
        }
        match inlets.get_mut(usize::from(channel)) {
            Some(Inlet::Open(sender)) => {
                // In pieces, so that no more than two messages wait, however long they are.
                let mut payload = payload;
                while !payload.is_empty() {
                    let piece = payload.split_to(payload.len().min(CHUNK));
                    // Whoever read it may have stopped to.
                    if sender.send(piece).await.is_err() {
                        break;
                    }
                }
            }
            Some(Inlet::Ignored) => {}
            None => return Err(Violation { code: CloseCode::Protocol, reason: "no such channel" }),
        }
    }
    Ok(())
}

fn take_apart(encoding: Encoding, mut bytes: Bytes) -> Result<(u8, Bytes), Violation> {
    let Some(first) = bytes.first().copied() else {
        return Err(Violation { code: CloseCode::Protocol, reason: "a message without a channel" });
    };
    let rest = bytes.split_off(1);
    if !encoding.base64 {
        return Ok((first, rest));
    }
    let decoded = STANDARD.decode(&rest);
    let decoded = decoded.map_err(|_| Violation { code: CloseCode::Invalid, reason: "this is not base64" })?;
    Ok((first.wrapping_sub(b'0'), decoded.into()))
}

/// What a failed read says of the client; nothing, if it is just gone.
fn violation(error: &Error) -> Result<(), Violation> {
    let (code, reason) = match error {
        Error::Capacity(_) => (CloseCode::Size, "a message longer than 16 MiB"),
        Error::Utf8(_) => (CloseCode::Invalid, "text that is not UTF-8"),
        Error::Protocol(_) | Error::AttackAttempt => (CloseCode::Protocol, "this is not a WebSocket's protocol"),
        _ => return Ok(()),
    };
    Err(Violation { code, reason })
}

async fn write<T>(
    sink: &mut SplitSink<WebSocketStream<T>, Message>,
    mut outgoing: mpsc::Receiver<Message>,
    activity: &Activity,
) -> Result<(), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.reset();
    loop {
        // Both are cancel-safe.
        tokio::select! {
            message = outgoing.recv() => match message {
                Some(message) => {
                    activity.touch();
                    sink.feed(message).await?;
                    if outgoing.is_empty() {
                        sink.flush().await?;
                    }
                }
                None => break,
            },
            _ = beat.tick() => sink.send(Message::Pong(Bytes::new())).await?,
        }
    }
    sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::streams::channel::Source;

    /// A masked frame, as clients send it.
    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            long => {
                frame.push(0x80 | 126);
                frame.extend((long as u16).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever comes, in frames or not: the connection ends, and nothing else does.
        #[test]
        fn no_bytes_make_it_panic_or_hang(
            frames in proptest::collection::vec((0u8..16, proptest::collection::vec(any::<u8>(), 0..200)), 0..6),
            tail in proptest::collection::vec(any::<u8>(), 0..64),
            base64 in any::<bool>(),
            closes in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (near, far) = tokio::io::duplex(1 << 12);
                let (inlet, mut source) = Source::new(None);
                let inlets = vec![Inlet::Open(inlet), Inlet::Ignored];
                let socket = accept(far).await;
                let (channels, driver) = open(socket, Encoding { base64, closes }, inlets, Arc::new(Activity::new()));
                let reader = tokio::spawn(async move { while source.next().await.is_some() {} });
                let mut wire: Vec<u8> = frames.iter().flat_map(|(opcode, payload)| frame(*opcode, payload)).collect();
                wire.extend(tail);
                let (mut from, mut to) = tokio::io::split(near);
                let writing = async {
                    // The server may have closed before.
                    let _ = to.write_all(&wire).await;
                    let _ = to.shutdown().await;
                };
                let mut back = Vec::new();
                let all = async { tokio::join!(driver, writing, from.read_to_end(&mut back)) };
                tokio::time::timeout(Duration::from_secs(10), all).await.unwrap().2.unwrap();
                reader.await.unwrap();
                drop(channels);
            });
        }
    }
}
