//! From a request to a session: refusing what can be refused with a plain answer, then the change of protocol.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::future::join_all;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

use super::channel::{Activity, Chunk, Sink, Source};
use super::remote::{Client, run};
use super::request::{Asked, Protocol, Request, protocol, read};
use super::tunnel::Tunnel;
use super::websocket::{self, Inlet};
use super::{StreamKind, StreamTarget, Streams, forward, spdy, status};
use crate::request::{Query, User};
use crate::status::ApiError;

/// Sessions at once.
const SESSIONS: usize = 1024;
/// Forwarded connections at once, over all sessions.
const CONNECTIONS: usize = 4096;
/// A session in which nothing comes or goes for so long ends, as with a kubelet.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// A client has so long to answer a goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// As an extension of a request: the server will stop, and sessions with it.
#[derive(Debug, Clone)]
pub(crate) struct Stopping(pub(crate) CancellationToken);

/// Serves streams over what runs.
#[derive(Clone)]
pub(crate) struct StreamServer {
    streams: Arc<dyn Streams>,
    sessions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl StreamServer {
    pub(crate) fn new(streams: Arc<dyn Streams>) -> Self {
        Self {
            streams,
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    /// Answers a request for a stream into `object`, with a change of protocol if all is well. The session then lives
    /// by itself.
    pub(crate) async fn answer(
        &self,
        kind: StreamKind,
        mut parts: http::request::Parts,
        (namespace, name): (String, String),
        object: Value,
    ) -> Result<Response<Body>, ApiError> {
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let request = read(kind, &query, namespace, name, object)?;
        let protocol = protocol(&parts.method, &parts.headers, &request.asked)?;
        let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
            return Err(ApiError::bad_request("this connection cannot be upgraded"));
        };
        let Ok(slot) = self.sessions.clone().try_acquire_owned() else {
            return Err(ApiError::new(429, "TooManyRequests", "too many streams are open, please try again later"));
        };
        self.streams.check(&request.target, kind).await.map_err(|error| status::refusal(&error))?;

        let user = parts.extensions.get::<User>().map_or_else(|| User::root().name, |user| user.name.clone());
        let StreamTarget { namespace, name, container, .. } = &request.target;
        tracing::info!(%user, %namespace, workload = %name, ?container, protocol = protocol.name(), "{kind:?}");
        let response = switch(&protocol)?;
        let stopping = parts.extensions.get::<Stopping>().map_or_else(CancellationToken::new, |s| s.0.clone());
        let (server, request) = (self.clone(), Arc::new(request));
        tokio::spawn(async move {
            let io = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
            };
            let activity = Arc::new(Activity::new());
            // What is dropped here is a session whose client is told nothing: it sees the connection end.
            tokio::select! {
                () = Box::pin(server.serve(io, request, protocol, activity.clone())) => {}
                () = activity.idle(IDLE) => tracing::debug!("a stream was idle for too long"),
                () = stopping.cancelled() => {}
            }
            drop(slot);
        });
        Ok(response)
    }

    async fn serve(&self, io: TokioIo<Upgraded>, request: Arc<Request>, protocol: Protocol, activity: Arc<Activity>) {
        let streams = self.streams.clone();
        match (&protocol, &request.asked) {
            (Protocol::Spdy { .. }, Asked::PortForward { .. }) => {
                spdy::forward(io, streams, request, self.connections.clone(), activity).await;
            }
            (Protocol::Tunnel { .. }, _) => {
                let tunnel = Tunnel::new(websocket::accept(io).await);
                spdy::forward(tunnel, streams, request, self.connections.clone(), activity).await;
            }
            (Protocol::WebSocket { .. }, Asked::PortForward { ports }) => {
                let slots = &self.connections;
                channels_forward(io, &*streams, &request, ports, &protocol, slots, activity).await;
            }
            (Protocol::Spdy { .. }, _) => spdy::remote(io, &*streams, &request, &protocol, activity).await,
            (Protocol::WebSocket { .. }, _) => channels_remote(io, &*streams, &request, &protocol, activity).await,
        }
    }
}

impl std::fmt::Debug for StreamServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamServer").finish_non_exhaustive()
    }
}

/// The answer with which HTTP ends on the connection.
fn switch(protocol: &Protocol) -> Result<Response<Body>, ApiError> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match protocol {
        Protocol::Spdy { name } => {
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            headers.insert("x-stream-protocol-version", HeaderValue::from_static(name));
        }
        Protocol::WebSocket { key, .. } | Protocol::Tunnel { key } => {
            let accept = derive_accept_key(key.as_bytes());
            let accept = HeaderValue::from_str(&accept).map_err(|error| ApiError::internal(error.to_string()))?;
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            if !protocol.name().is_empty() {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name()));
            }
        }
    }
    Ok(response)
}

/// `exec` and `attach` over the channels of a WebSocket: 0 stdin, 1 stdout, 2 stderr, 3 the end, 4 the terminal's size.
async fn channels_remote<T>(
    io: T,
    streams: &dyn Streams,
    request: &Request,
    protocol: &Protocol,
    activity: Arc<Activity>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let wanted = request.announced;
    let pipe = |wanted: bool| match wanted {
        true => {
            let (inlet, source) = Source::new(None);
            (Inlet::Open(inlet), Some(source))
        }
        false => (Inlet::Ignored, None),
    };
    let ((from_stdin, stdin), (from_resize, resize)) = (pipe(wanted.stdin), pipe(wanted.tty));
    let inlets = vec![from_stdin, Inlet::Ignored, Inlet::Ignored, Inlet::Ignored, from_resize];
    let socket = websocket::accept(io).await;
    let (channels, driver) = websocket::open(socket, protocol.encoding(), inlets, activity);
    let sink = |channel, wanted: bool| wanted.then(|| Sink::WebSocket(channels.sink(channel)));
    let (stdout, stderr) = (sink(1, wanted.stdout), sink(2, wanted.stderr));
    let client = Client {
        stdin,
        stdout,
        stderr,
        resize,
        error: Sink::WebSocket(channels.sink(3)),
        status: protocol.has_status(),
    };
    let work = async move {
        if protocol.greets() {
            let first = if wanted.stdout { 1 } else { 3 };
            let _ = channels.sink(first).send(Chunk::copy_of(&[])).await;
        }
        run(streams, request, client).await;
        drop(channels);
    };
    until_closed(driver, work).await;
}

/// `portforward` over the channels of a WebSocket: two for each port, bytes and an error. The first message of each is
/// the port's number.
async fn channels_forward<T>(
    io: T,
    streams: &dyn Streams,
    request: &Request,
    ports: &[u16],
    protocol: &Protocol,
    slots: &Semaphore,
    activity: Arc<Activity>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut inlets, mut sources) = (Vec::new(), Vec::new());
    for _ in ports {
        let (inlet, source) = Source::new(None);
        inlets.extend([Inlet::Open(inlet), Inlet::Ignored]);
        sources.push(source);
    }
    let socket = websocket::accept(io).await;
    let (channels, driver) = websocket::open(socket, protocol.encoding(), inlets, activity);
    let work = async move {
        let numbered = (0u8..).step_by(2).zip(ports).zip(sources);
        let connections = numbered.map(|((channel, port), source)| {
            let data = Sink::WebSocket(channels.sink(channel));
            let error = Sink::WebSocket(channels.sink(channel.saturating_add(1)));
            async move {
                let (mut data, mut error) = (data, error);
                for sink in [&mut data, &mut error] {
                    let _ = sink.send(Chunk::copy_of(&port.to_le_bytes())).await;
                }
                let carried = match slots.try_acquire() {
                    Ok(_slot) => forward::carry(streams, request, *port, source, &mut data).await,
                    Err(_) => Err(forward::TOO_MANY.into()),
                };
                if let Err(said) = carried {
                    let _ = error.send(Chunk::copy_of(said.as_bytes())).await;
                }
            }
        });
        join_all(connections).await;
        drop(channels);
    };
    until_closed(driver, work).await;
}

/// Lets both go on until the client is gone, or until the work is done and the client has answered the goodbye.
async fn until_closed(driver: impl Future<Output = ()>, work: impl Future<Output = ()>) {
    tokio::pin!(driver);
    {
        let mut work = Box::pin(work);
        // Work that is not done when the client is gone is for nobody.
        tokio::select! {
            () = driver.as_mut() => return,
            () = work.as_mut() => {}
        }
    }
    let _ = tokio::time::timeout(GOODBYE, driver).await;
}
