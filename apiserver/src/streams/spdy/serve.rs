//! What the streams of a connection mean: for `exec` and `attach` one for each of a program's streams, for
//! `portforward` a pair for each connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection::{Opened, open};
use crate::streams::channel::{Activity, Chunk, Sink, Source};
use crate::streams::remote::{Client, run};
use crate::streams::request::{Protocol, Request};
use crate::streams::{StdStreams, Streams, forward as bridge};

/// A client has so long to open the streams that it announced.
const OPENING: Duration = Duration::from_secs(30);
/// A client has so long to leave once everything is said.
const GOODBYE: Duration = Duration::from_secs(5);
/// The longest name of a connection; kubectl counts.
const NAME: usize = 64;
/// Forwarded connections at once, for each client.
const CONNECTIONS: usize = 2048;

/// Serves `exec` or `attach`.
pub(in crate::streams) async fn remote<T>(
    io: T,
    streams: &dyn Streams,
    request: &Request,
    protocol: &Protocol,
    activity: Arc<Activity>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (opened, connection, driver) = open(io, 8, activity);
    let work = async {
        match tokio::time::timeout(OPENING, collect(opened, request.announced, protocol)).await {
            Ok(Some(client)) => run(streams, request, client).await,
            Ok(None) => {}
            Err(_) => tracing::debug!("a client did not open its streams in time"),
        }
        connection.go_away(0).await;
    };
    until_done(driver, work).await;
}

/// Lets both go on until the client is gone, or until the work is done and the client has left.
async fn until_done(driver: impl Future<Output = ()>, work: impl Future<Output = ()>) {
    tokio::pin!(driver);
    {
        tokio::pin!(work);
        // Work that is not done when the client is gone is for nobody.
        tokio::select! {
            () = driver.as_mut() => return,
            () = work.as_mut() => {}
        }
    }
    let _ = tokio::time::timeout(GOODBYE, driver).await;
}

/// Waits for the streams that belong to the request, and refuses others. `None` when the client is gone.
async fn collect(mut opened: mpsc::Receiver<Opened>, wanted: StdStreams, protocol: &Protocol) -> Option<Client> {
    let mut error = None;
    let (mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None);
    let resizable = wanted.tty && protocol.has_resize();
    loop {
        let complete = (stdin.is_some() || !wanted.stdin)
            && (stdout.is_some() || !wanted.stdout)
            && (stderr.is_some() || !wanted.stderr)
            && (resize.is_some() || !resizable);
        match error.take() {
            Some(error) if complete => {
                // What is left over of a stream in one direction stays open until the connection ends.
                let status = protocol.has_status();
                return Some(Client { stdin, stdout, stderr, resize, error, status });
            }
            unfinished => error = unfinished,
        }
        let stream = opened.recv().await?;
        match stream.header("streamtype") {
            Some("error") if error.is_none() => error = Some(stream.accept().await.1),
            Some("stdin") if wanted.stdin && stdin.is_none() => stdin = Some(stream.accept().await.0),
            Some("stdout") if wanted.stdout && stdout.is_none() => stdout = Some(stream.accept().await.1),
            Some("stderr") if wanted.stderr && stderr.is_none() => stderr = Some(stream.accept().await.1),
            Some("resize") if resizable && resize.is_none() => resize = Some(stream.accept().await.0),
            _ => stream.refuse().await,
        }
    }
}

/// One half of a pair that waits for the other.
#[derive(Debug, Default)]
struct Pair {
    since: Option<Instant>,
    port: u16,
    data: Option<(Source, Sink)>,
    error: Option<Sink>,
}

/// Serves `portforward`. `connections` are those of all clients.
pub(in crate::streams) async fn forward<T>(
    io: T,
    streams: Arc<dyn Streams>,
    request: Arc<Request>,
    connections: Arc<Semaphore>,
    activity: Arc<Activity>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut opened, _connection, driver) = open(io, 2 * CONNECTIONS, activity);
    let work = async {
        let mut pairs: HashMap<String, Pair> = HashMap::new();
        let mut carried = JoinSet::new();
        let mut sweep = tokio::time::interval(OPENING);
        loop {
            // All are cancel-safe.
            let stream = tokio::select! {
                stream = opened.recv() => stream,
                Some(_) = carried.join_next() => continue,
                _ = sweep.tick() => {
                    refuse_late(&mut pairs).await;
                    continue;
                }
            };
            let Some(stream) = stream else { break };
            let Some((id, pair)) = join(&mut pairs, stream).await else { continue };
            let Pair { port, data: Some((source, mut sink)), error: Some(mut error), .. } = pair else {
                pairs.insert(id, pair);
                continue;
            };
            let Ok(slot) = connections.clone().try_acquire_owned() else {
                let _ = error.send(Chunk::copy_of(bridge::TOO_MANY.as_bytes())).await;
                error.close().await;
                sink.close().await;
                continue;
            };
            let (streams, request) = (streams.clone(), request.clone());
            carried.spawn(async move {
                if let Err(said) = bridge::carry(&*streams, &request, port, source, &mut sink).await {
                    let _ = error.send(Chunk::copy_of(said.as_bytes())).await;
                }
                error.close().await;
                sink.close().await;
                drop(slot);
            });
        }
    };
    until_done(driver, work).await;
}

/// Puts a stream to its pair and takes the pair out; `None` if the stream was refused.
async fn join(pairs: &mut HashMap<String, Pair>, stream: Opened) -> Option<(String, Pair)> {
    let port = stream.header("port").and_then(|port| port.parse().ok()).filter(|port: &u16| *port > 0);
    let is_error = match stream.header("streamtype") {
        Some("error") => Some(true),
        Some("data") => Some(false),
        _ => None,
    };
    let named = stream.header("requestid").is_none_or(|id| id.len() <= NAME);
    let (Some(port), Some(is_error), true) = (port, is_error, named) else {
        stream.refuse().await;
        return None;
    };
    let id = match stream.header("requestid") {
        Some(id) => id.to_owned(),
        // Old clients open both in a row, the error first.
        None if is_error => stream.id.to_string(),
        None => stream.id.saturating_sub(2).to_string(),
    };
    let mut pair = pairs.remove(&id).unwrap_or_default();
    let twice = if is_error { pair.error.is_some() } else { pair.data.is_some() };
    if twice {
        stream.refuse().await;
        return Some((id, pair));
    }
    pair.port = port;
    pair.since.get_or_insert_with(Instant::now);
    let (source, sink) = stream.accept().await;
    if is_error {
        pair.error = Some(sink);
    } else {
        pair.data = Some((source, sink));
    }
    Some((id, pair))
}

/// Ends halves whose other half never came.
async fn refuse_late(pairs: &mut HashMap<String, Pair>) {
    let late: Vec<String> = pairs
        .iter()
        .filter(|(_, pair)| pair.since.is_some_and(|since| since.elapsed() > OPENING))
        .map(|(id, _)| id.clone())
        .collect();
    for id in late {
        let Some(pair) = pairs.remove(&id) else { continue };
        for sink in [pair.error, pair.data.map(|(_, sink)| sink)].into_iter().flatten() {
            sink.close().await;
        }
    }
}
