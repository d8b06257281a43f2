//! What one client, and all of them together, may take: requests and watches at a time, memory for bodies, and time.
//!
//! Callers in this process are not limited: the reconcilers must go on whatever clients do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::Response;
use http::request::Parts;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::body;
use crate::request::User;
use crate::status::ApiError;

/// Bounds on what clients may take. Beyond them they are answered with `429` and `Retry-After`, or cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests at a time, watches and streams apart.
    pub requests: usize,
    /// Requests of one user at a time.
    pub requests_per_user: usize,
    /// Watches and followed logs at a time.
    pub watches: usize,
    /// Watches and followed logs of one user.
    pub watches_per_user: usize,
    /// Connections to each listener; more wait in the kernel's queue.
    pub connections: usize,
    /// Bytes of all bodies that are received and worked on at a time. What they are parsed into takes many times that.
    pub bodies: usize,
    /// Bytes of all large answers that are being sent at a time.
    pub answers: usize,
    /// Time for a request's headers from their first byte on, and again for its body.
    pub receive: Duration,
    /// Time in which a client has to take something of what is sent to it.
    pub send: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 600,
            requests_per_user: 400,
            watches: 1500,
            watches_per_user: 1000,
            connections: 2048,
            bodies: 8 << 20,
            answers: 64 << 20,
            receive: Duration::from_secs(30),
            send: Duration::from_secs(30),
        }
    }
}

/// Answers of this size or more count as large.
const LARGE: usize = 256 << 10;
/// How long a request waits for memory that others have.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who counts what is under way.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: Limits,
    requests: Mutex<Counts>,
    watches: Mutex<Counts>,
    bodies: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_user: HashMap<String, usize>,
}

/// A place among what is under way; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Gate>,
    user: String,
    watch: bool,
}

impl Gate {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let (bodies, answers) = (Semaphore::new(limits.bodies), Semaphore::new(limits.answers));
        let (bodies, answers) = (Arc::new(bodies), Arc::new(answers));
        Arc::new(Self { limits, requests: Mutex::default(), watches: Mutex::default(), bodies, answers })
    }

    fn counts(&self, watch: bool) -> (&Mutex<Counts>, usize, usize) {
        let Limits { requests, requests_per_user, watches, watches_per_user, .. } = self.limits;
        if watch { (&self.watches, watches, watches_per_user) } else { (&self.requests, requests, requests_per_user) }
    }

    /// A place for a request, if there is one for its sender.
    pub(crate) fn enter(self: &Arc<Self>, parts: &Parts) -> Result<Place, ApiError> {
        let root = User::root();
        let user = &parts.extensions.get::<User>().unwrap_or(&root).name;
        let watch = is_watch(parts);
        let (counts, most, most_per_user) = self.counts(watch);
        let mut counts = counts.lock().unwrap_or_else(|p| p.into_inner());
        let own = counts.by_user.get(user).copied().unwrap_or(0);
        if counts.all >= most || own >= most_per_user {
            return Err(ApiError::too_many_requests());
        }
        counts.all += 1;
        *counts.by_user.entry(user.clone()).or_default() += 1;
        Ok(Place { gate: self.clone(), user: user.clone(), watch })
    }

    /// Reads a body: within the limits of size, time and memory. The permit stands for the memory.
    pub(crate) async fn receive<B>(
        &self,
        parts: &Parts,
        mut body: B,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ApiError>
    where
        B: http_body::Body + Unpin,
        B::Data: Buf,
        B::Error: Into<tower::BoxError>,
    {
        let announced = parts.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > body::LIMIT) {
            return Err(ApiError::too_large(body::LIMIT));
        }
        let deadline = Instant::now() + self.limits.receive;
        let mut bytes = BytesMut::new();
        let mut held: Option<OwnedSemaphorePermit> = None;
        loop {
            let late = |_| ApiError::new(408, "Timeout", "Timeout: the body of the request did not come in time");
            let Some(frame) = timeout_at(deadline, body.frame()).await.map_err(late)? else { break };
            let frame = frame.map_err(|error| {
                let error: tower::BoxError = error.into();
                ApiError::bad_request(format!("reading the body: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.remaining() > body::LIMIT {
                return Err(ApiError::too_large(body::LIMIT));
            }
            let more = acquire(&self.bodies, data.remaining()).await?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            bytes.put(data);
        }
        Ok((bytes.freeze(), held))
    }

    /// Keeps a request's place until its answer is sent, if that takes long or much: a watch, a large list.
    pub(crate) async fn send(&self, place: Place, response: Response<Body>) -> Result<Response<Body>, ApiError> {
        let size = http_body::Body::size_hint(response.body()).upper().map(|size| usize::try_from(size).unwrap_or(0));
        let memory = match size {
            Some(size) if size < LARGE => return Ok(response),
            Some(size) => Some(acquire(&self.answers, size.min(self.limits.answers)).await?),
            None => None,
        };
        // Connections that speak another protocol from here on have limits of their own.
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let held = (place, memory);
        Ok(response.map(|body| {
            Body::from_stream(body.into_data_stream().map(move |data| {
                let _ = &held;
                data
            }))
        }))
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    match timeout(PATIENCE, semaphore.clone().acquire_many_owned(bytes)).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(ApiError::too_many_requests()),
    }
}

/// Whether the answer to a request goes on for long.
fn is_watch(parts: &Parts) -> bool {
    let query = parts.uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).any(|(key, value)| {
        matches!(&*key, "watch" | "follow") && matches!(&*value, "true" | "1" | "True" | "TRUE" | "t" | "T")
    })
}

impl Drop for Place {
    fn drop(&mut self) {
        let (counts, ..) = self.gate.counts(self.watch);
        let mut counts = counts.lock().unwrap_or_else(|p| p.into_inner());
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.by_user.get_mut(&self.user) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.by_user.remove(&self.user);
            }
        }
    }
}
