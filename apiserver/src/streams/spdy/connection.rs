//! One connection: its streams, its windows, and the order of what is written.
//!
//! Kubernetes' clients know nothing of windows: they send what they have and never say how much they would take. So a
//! window of the client is respected once it has spoken of windows at all, and our own is announced but not enforced:
//! when nobody reads a stream, the connection is not read any further.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::frames::{self, Frame, FrameError, FrameReader, Reset};
use super::headers::{HeaderWriter, Headers};
use crate::streams::channel::{Activity, Chunk, Gone, QUEUE, Sink, Source};

/// Windows begin with so many bytes, by the protocol.
const WINDOW: i64 = 64 * 1024;
/// Consumed bytes are told to the client in portions of this.
const PORTION: u32 = 32 * 1024;
/// A word from us so often, which tells a vanished client from a silent one.
const BEAT: Duration = Duration::from_secs(10);
/// What is on its way to the client when the connection is to end has so long to get there.
const FAREWELL: Duration = Duration::from_secs(2);

/// A stream that the client has opened and that waits for an answer.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) source: Source,
    pub(super) sink: StreamSink,
}

impl Opened {
    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Lets the client use the stream.
    pub(super) async fn accept(self) -> (Source, Sink) {
        let _ = self.sink.connection.out.send(Out::Reply(self.id)).await;
        (self.source, Sink::Spdy(self.sink))
    }

    /// Refuses it.
    pub(super) async fn refuse(self) {
        self.sink.connection.reset(self.id, Reset::Refused).await;
    }
}

/// What goes to the client, in this order.
#[derive(Debug)]
enum Out {
    Frame(Bytes),
    /// Its headers are compressed in the order of writing.
    Reply(u32),
    /// The last of all.
    GoAway(u32),
}

/// What the ends of all streams share.
#[derive(Debug)]
pub(super) struct Shared {
    out: mpsc::Sender<Out>,
    table: Mutex<Table>,
    /// A window grew, or a stream ended.
    changed: Notify,
}

#[derive(Debug)]
struct Table {
    streams: HashMap<u32, Entry>,
    /// The last stream that the client opened.
    last: u32,
    /// What the client would take on all streams together.
    window: i64,
    /// What a new stream begins with.
    initial: i64,
    /// The client has spoken of windows, and of the common one.
    windows: bool,
    common: bool,
    /// Bytes consumed on all streams that the client was not told of.
    consumed: u32,
}

#[derive(Debug)]
struct Entry {
    /// Where input goes; gone when the client has finished.
    input: Option<mpsc::Sender<Bytes>>,
    /// We have finished.
    finished: bool,
    window: i64,
    consumed: u32,
    gone: CancellationToken,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends everything after what is on its way.
    pub(super) async fn go_away(&self, status: u32) {
        let _ = self.out.send(Out::GoAway(status)).await;
    }

    /// Forgets a stream and says why.
    async fn reset(&self, id: u32, why: Reset) {
        if let Some(entry) = self.forget(id) {
            entry.gone.cancel();
        }
        let _ = self.out.send(Out::Frame(frames::reset(id, why))).await;
    }

    fn forget(&self, id: u32) -> Option<Entry> {
        let entry = self.table().streams.remove(&id);
        self.changed.notify_waiters();
        entry
    }

    /// Takes up to `wanted` bytes from the windows: 0 if there is no room, an error if there is no stream.
    fn take(&self, id: u32, wanted: usize) -> Result<usize, Gone> {
        let mut table = self.table();
        let (windows, common) = (table.windows, if table.common { table.window } else { i64::MAX });
        let entry = table.streams.get_mut(&id).filter(|entry| !entry.finished).ok_or(Gone)?;
        let room = usize::try_from(entry.window.min(common)).unwrap_or(0);
        let taken = if windows { wanted.min(room) } else { wanted };
        let counted = i64::try_from(taken).unwrap_or(i64::MAX);
        entry.window = entry.window.saturating_sub(counted);
        table.window = table.window.saturating_sub(counted);
        Ok(taken)
    }

    /// Counts bytes that were read, or thrown away, and tells the client now and then.
    fn consumed(&self, id: u32, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let mut table = self.table();
        let mut told = Vec::new();
        table.consumed = table.consumed.saturating_add(count);
        if table.consumed >= PORTION {
            told.push((0, std::mem::take(&mut table.consumed)));
        }
        if let Some(entry) = table.streams.get_mut(&id) {
            entry.consumed = entry.consumed.saturating_add(count);
            if entry.consumed >= PORTION && entry.input.is_some() {
                told.push((id, std::mem::take(&mut entry.consumed)));
            }
        }
        for (id, delta) in told {
            // When there is no room, the client is told with the next portion.
            if self.out.try_send(Out::Frame(frames::window(id, delta))).is_err() {
                match table.streams.get_mut(&id) {
                    Some(entry) => entry.consumed = entry.consumed.saturating_add(delta),
                    None if id == 0 => table.consumed = table.consumed.saturating_add(delta),
                    None => {}
                }
            }
        }
    }
}

/// Counts what is read of a stream.
#[derive(Debug)]
pub(in crate::streams) struct Credit {
    connection: Arc<Shared>,
    id: u32,
}

impl Credit {
    pub(in crate::streams) fn consumed(&self, count: usize) {
        self.connection.consumed(self.id, count);
    }
}

/// One stream towards the client.
#[derive(Debug)]
pub(in crate::streams) struct StreamSink {
    connection: Arc<Shared>,
    id: u32,
    gone: CancellationToken,
}

impl StreamSink {
    pub(in crate::streams) async fn send(&self, mut chunk: Chunk) -> Result<(), Gone> {
        while chunk.len() > 0 {
            let changed = self.connection.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let room = self.connection.take(self.id, chunk.len())?;
            if room == 0 {
                changed.await;
                continue;
            }
            let part = if room < chunk.len() {
                chunk.split_to(room)
            } else {
                std::mem::replace(&mut chunk, Chunk::copy_of(&[]))
            };
            let header = frames::data_header(self.id, part.len(), false);
            self.connection.out.send(Out::Frame(part.framed(header))).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub(in crate::streams) async fn finish(&self) {
        let first = match self.connection.table().streams.get_mut(&self.id) {
            Some(entry) => !std::mem::replace(&mut entry.finished, true),
            None => false,
        };
        if first {
            let last = Chunk::copy_of(&[]).framed(frames::data_header(self.id, 0, true));
            let _ = self.connection.out.send(Out::Frame(last)).await;
        }
    }

    /// Ends the client's direction too, if it has not.
    pub(in crate::streams) async fn reset(&self) {
        let open = self.connection.forget(self.id).is_some_and(|entry| entry.input.is_some());
        if open {
            let _ = self.connection.out.send(Out::Frame(frames::reset(self.id, Reset::Cancel))).await;
        }
    }

    pub(in crate::streams) async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

/// Begins to read and write. The client may have `limit` streams open at once; new ones come out of the queue. The
/// future has to be polled for anything to happen; it ends when the client is gone or has been turned away, or has left
/// after [`Shared::go_away`].
pub(super) fn open<T>(
    io: T,
    limit: usize,
    activity: Arc<Activity>,
) -> (mpsc::Receiver<Opened>, Arc<Shared>, impl Future<Output = ()>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (out, outgoing) = mpsc::channel(QUEUE);
    let (opened, streams) = mpsc::channel(QUEUE);
    let table = Table {
        streams: HashMap::new(),
        last: 0,
        window: WINDOW,
        initial: WINDOW,
        windows: false,
        common: false,
        consumed: 0,
    };
    let shared = Arc::new(Shared { out, table: Mutex::new(table), changed: Notify::new() });
    let (from, to) = tokio::io::split(io);
    let handle = shared.clone();
    let driver = async move {
        let writing = write(to, outgoing, &shared, &activity);
        tokio::pin!(writing);
        let read = {
            let reading = read(from, &shared, opened, limit, &activity);
            tokio::pin!(reading);
            // Nothing is lost: the writer goes on below, the reader is not wanted once writing fails.
            tokio::select! {
                read = reading.as_mut() => read,
                written = writing.as_mut() => {
                    if written.is_ok() {
                        // The client was told goodbye; it may still be sending.
                        let _ = reading.await;
                    }
                    return;
                }
            }
        };
        let status = match read {
            // The client has shut its half; it may still be listening.
            Ok(()) => 0,
            Err(FrameError::Io(_)) => return,
            Err(error) => {
                tracing::debug!(%error, "a SPDY client was turned away");
                1
            }
        };
        for (_, entry) in shared.table().streams.drain() {
            entry.gone.cancel();
        }
        shared.changed.notify_waiters();
        let farewell = async { tokio::join!(shared.go_away(status), writing).1 };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    };
    (streams, handle, driver)
}

async fn read<T>(
    from: ReadHalf<T>,
    shared: &Arc<Shared>,
    opened: mpsc::Sender<Opened>,
    limit: usize,
    activity: &Activity,
) -> Result<(), FrameError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut reader = FrameReader::new(BufReader::with_capacity(64 * 1024, from));
    let mut leaving = false;
    while let Some(frame) = reader.next().await? {
        activity.touch();
        match frame {
            Frame::Open { id, .. } if leaving => shared.reset(id, Reset::Refused).await,
            Frame::Open { id, finished, unidirectional, headers } => {
                let accepted = match begin(shared, id, finished, unidirectional, limit)? {
                    Some((source, sink)) => opened.send(Opened { id, headers, source, sink }).await.is_ok(),
                    None => false,
                };
                if !accepted {
                    shared.reset(id, Reset::Refused).await;
                }
            }
            Frame::Data { id, bytes, finished } => data(shared, id, bytes, finished).await?,
            Frame::Headers { id, finished: true } => finish(shared, id),
            Frame::Reset { id } => {
                if let Some(entry) = shared.forget(id) {
                    entry.gone.cancel();
                }
            }
            // Pings of ours have even numbers; nobody waits for their answers.
            Frame::Ping(id) if id % 2 == 1 => drop(shared.out.send(Out::Frame(frames::ping(id))).await),
            Frame::InitialWindow(size) => {
                let mut table = shared.table();
                let size = i64::from(size & 0x7fff_ffff);
                let grown = size - table.initial;
                table.initial = size;
                table.windows = true;
                table.streams.values_mut().for_each(|entry| entry.window = entry.window.saturating_add(grown));
                shared.changed.notify_waiters();
            }
            Frame::Window { id, delta } => {
                let mut table = shared.table();
                table.windows = true;
                table.common |= id == 0;
                let window = match id {
                    0 => Some(&mut table.window),
                    id => table.streams.get_mut(&id).map(|entry| &mut entry.window),
                };
                if let Some(window) = window {
                    *window = window.saturating_add(i64::from(delta));
                }
                shared.changed.notify_waiters();
            }
            Frame::GoAway => leaving = true,
            Frame::Ping(_) | Frame::Headers { .. } | Frame::Other => {}
        }
    }
    Ok(())
}

/// Enters a new stream; `None` if there are too many.
fn begin(
    shared: &Arc<Shared>,
    id: u32,
    finished: bool,
    unidirectional: bool,
    limit: usize,
) -> Result<Option<(Source, StreamSink)>, FrameError> {
    let mut table = shared.table();
    if id.is_multiple_of(2) || id <= table.last {
        return Err(FrameError::Stream(id));
    }
    table.last = id;
    if table.streams.len() >= limit {
        return Ok(None);
    }
    let (inlet, source) = Source::new(Some(Credit { connection: shared.clone(), id }));
    let gone = CancellationToken::new();
    let entry = Entry {
        input: (!finished).then_some(inlet),
        finished: unidirectional,
        window: table.initial,
        consumed: 0,
        gone: gone.clone(),
    };
    table.streams.insert(id, entry);
    Ok(Some((source, StreamSink { connection: shared.clone(), id, gone })))
}

async fn data(shared: &Shared, id: u32, bytes: Bytes, finished: bool) -> Result<(), FrameError> {
    let (known, input) = {
        let table = shared.table();
        let entry = table.streams.get(&id);
        (id <= table.last && id % 2 == 1, entry.and_then(|entry| entry.input.clone()))
    };
    if !known {
        return Err(FrameError::Stream(id));
    }
    let count = bytes.len();
    if count > 0 {
        let taken = match input {
            // This is where the connection waits for whoever reads the stream.
            Some(input) => input.send(bytes).await.is_ok(),
            None => false,
        };
        if !taken {
            shared.consumed(id, count);
        }
    }
    if finished {
        finish(shared, id);
    }
    Ok(())
}

/// The client sends no more on a stream.
fn finish(shared: &Shared, id: u32) {
    let mut table = shared.table();
    if let Some(entry) = table.streams.get_mut(&id) {
        entry.input = None;
        if entry.finished {
            table.streams.remove(&id);
        }
    }
}

async fn write<T>(
    mut to: WriteHalf<T>,
    mut outgoing: mpsc::Receiver<Out>,
    shared: &Shared,
    activity: &Activity,
) -> std::io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut headers = HeaderWriter::new();
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.reset();
    let mut ping = 0u32;
    loop {
        // Both are cancel-safe; writing is not, and happens outside.
        let out = tokio::select! {
            out = outgoing.recv() => out,
            _ = beat.tick() => {
                ping = ping.wrapping_add(2).max(2);
                to.write_all(&frames::ping(ping)).await?;
                to.flush().await?;
                continue;
            }
        };
        activity.touch();
        match out {
            Some(Out::Frame(frame)) => to.write_all(&frame).await?,
            Some(Out::Reply(id)) => {
                let block = headers.write(&[]).ok_or_else(|| std::io::Error::other("compressing headers"))?;
                to.write_all(&frames::reply(id, &block)).await?;
            }
            Some(Out::GoAway(status)) => {
                let last = shared.table().last;
                to.write_all(&frames::go_away(last, status)).await?;
                return to.shutdown().await;
            }
            None => return to.shutdown().await,
        }
        if outgoing.is_empty() {
            to.flush().await?;
        }
    }
}
