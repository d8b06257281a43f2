//! Following changes: what happened since a version, and what happens from now on.
//!
//! A change is serialised once for all watchers of a table. Nothing is buffered for a watcher: it reads the history of
//! the table as fast as its client takes what it sends. One that falls behind the history is cut off with
//! `410 Expired` and lists again.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use crate::registry::{Registry, Resource, View};
use crate::request::{Context, Form, Target};
use crate::selector::Selector;
use crate::server::Inner;
use crate::status::ApiError;
use crate::store::{Change, ChangeKind, Stored};
use crate::{represent, store};

/// A watch without a time limit of its own ends after this, as on a real server after 30 to 60 minutes.
const LONGEST: Duration = Duration::from_secs(40 * 60);
/// Silence after which a bookmark tells the client where it stands.
const BOOKMARK: Duration = Duration::from_secs(60);

pub(crate) fn watch(inner: &Arc<Inner>, context: &Context, target: &Target<'_>) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    let query = &context.query;
    let mut fields = query.text("fieldSelector").to_owned();
    if let Some(name) = &target.name {
        fields = format!("{fields},metadata.name={name}");
    }
    let selector = Selector::parse(resource, query.text("labelSelector"), &fields)?;
    let bookmarks = query.flag("allowWatchBookmarks");
    let initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    super::list::check_options(query, true)?;
    let after = query.number("resourceVersion")?.filter(|rv| *rv > 0);
    let all_first = initial == Some(true) || (initial.is_none() && after.is_none());
    let timeout = query.number("timeoutSeconds")?.map_or(LONGEST, Duration::from_secs).min(LONGEST);

    let mut watcher = Watcher {
        registry: inner.registry.clone(),
        resource: resource.id,
        inner: Arc::downgrade(inner),
        context: context.for_watch(),
        namespace: target.namespace.clone(),
        selector,
        bookmarks,
        ready: VecDeque::new(),
        live: None,
        seen: 0,
        deadline: Instant::now() + timeout,
        next_bookmark: Instant::now() + BOOKMARK,
        first: true,
    };
    watcher.start(inner, after, all_first, initial == Some(true));
    let frames = stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), watcher))
    });
    let mut response = Response::new(Body::from_stream(frames));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// What a client is told next.
enum Next {
    /// An object that was there at the start.
    Object(Arc<Stored>),
    Change(Arc<Change>),
    Frame(Bytes),
}

struct Watcher {
    registry: Arc<Registry>,
    resource: usize,
    inner: Weak<Inner>,
    context: Context,
    namespace: Option<String>,
    selector: Selector,
    bookmarks: bool,
    ready: VecDeque<Next>,
    /// `None` once nothing more will come.
    live: Option<Receiver<u64>>,
    /// Every change up to this version is told, or among `ready`.
    seen: u64,
    deadline: Instant,
    next_bookmark: Instant,
    /// Whether no event has been sent yet; a Table names its columns in the first one.
    first: bool,
}

impl Watcher {
    /// Queues what the client has to be told first, and subscribes to the rest, without a gap between the two.
    fn start(&mut self, inner: &Inner, after: Option<u64>, all_first: bool, end_mark: bool) {
        let registry = self.registry.clone();
        let resource = registry.get(self.resource);
        let (subscription, objects, current) = {
            let state = inner.store.read();
            let current = state.rv;
            if after.is_some_and(|after| after > current) {
                // From before a restore, or from another server: what it knows never happened here.
                drop(state);
                self.expired(&ApiError::expired(after.unwrap_or_default(), current));
                return;
            }
            let objects = if all_first { state.list(resource.table, self.namespace.as_deref()) } else { Vec::new() };
            self.seen = if all_first { current } else { after.unwrap_or(current) };
            (state.subscribe(resource.table, self.seen), objects, current)
        };
        let live = match subscription {
            Ok(live) => live,
            Err(oldest) => return self.expired(&ApiError::expired(after.unwrap_or_default(), oldest)),
        };
        self.ready.extend(objects.into_iter().filter(|object| self.selector.matches(object)).map(Next::Object));
        if end_mark && self.bookmarks {
            self.bookmark(current, true);
        }
        self.live = Some(live);
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            while let Some(next) = self.ready.pop_front() {
                if let Some(frame) = self.frame(next) {
                    return Some(frame);
                }
            }
            // Noted before looking, so that what comes after the look wakes.
            self.live.as_mut()?.borrow_and_update();
            self.fetch()?;
            if !self.ready.is_empty() {
                continue;
            }
            let live = self.live.as_mut()?;
            let wake = self.deadline.min(self.next_bookmark);
            // Waiting is cancel-safe: a change that was not seen is seen again.
            let changed = tokio::select! {
                changed = live.changed() => Some(changed),
                () = sleep_until(wake) => None,
            };
            match changed {
                Some(Ok(())) => {}
                Some(Err(_)) => return None,
                None => self.tick(),
            }
        }
    }

    /// Takes the next changes from the history; `None` if the server is gone.
    fn fetch(&mut self) -> Option<()> {
        let inner = self.inner.upgrade()?;
        let table = self.registry.get(self.resource).table;
        let found = inner.store.read().next_changes(table, self.seen);
        match found {
            Ok(changes) => {
                if let Some(last) = changes.last() {
                    self.seen = last.rv();
                }
                self.ready.extend(changes.into_iter().map(Next::Change));
            }
            Err(oldest) => {
                let (seen, message) = (self.seen, "the watch fell too far behind and is cut off: list again");
                self.expired(&ApiError::new(410, "Expired", format!("{message} ({seen}, {oldest})")));
            }
        }
        Some(())
    }

    /// Sends a bookmark if it is time, and ends the watch if it is over.
    fn tick(&mut self) {
        let now = Instant::now();
        self.next_bookmark = now + BOOKMARK;
        let ended = now >= self.deadline;
        if let (true, Some(inner)) = (self.bookmarks, self.inner.upgrade()) {
            let table = self.registry.get(self.resource).table;
            let state = inner.store.read();
            // With no later change in its table, the client has seen everything there is.
            let settled = state.next_changes(table, self.seen).is_ok_and(|later| later.is_empty()).then_some(state.rv);
            drop(state);
            if let Some(rv) = settled {
                self.bookmark(rv, false);
            }
        }
        if ended {
            self.live = None;
        }
    }

    /// The event that tells of something, if it concerns this watch.
    fn frame(&mut self, next: Next) -> Option<Bytes> {
        match next {
            Next::Frame(frame) => Some(frame),
            Next::Object(object) => Some(self.event("ADDED", &object)),
            Next::Change(change) => self.change(&change),
        }
    }

    fn change(&mut self, change: &Change) -> Option<Bytes> {
        if self.namespace.as_deref().is_some_and(|n| *change.object.key.namespace != *n) {
            return None;
        }
        let kind = if self.selector.is_everything() {
            change.kind
        } else {
            let was = change.previous.as_ref().is_some_and(|previous| self.selector.matches(previous));
            let is = change.kind != ChangeKind::Deleted && self.selector.matches(&change.object);
            match (was, is) {
                (false, false) => return None,
                (false, true) => ChangeKind::Added,
                (true, true) => ChangeKind::Modified,
                (true, false) if change.kind == ChangeKind::Deleted => ChangeKind::Deleted,
                (true, false) => {
                    // It left the selection: shown as it was when it still belonged to it.
                    let previous = change.previous.as_ref()?;
                    let shown = Stored::new(previous.key.clone(), change.rv(), previous.value());
                    return Some(self.event("DELETED", &shown));
                }
            }
        };
        let is_shared = self.context.form == Form::Object && self.registry.get(self.resource).view == View::Stored;
        if is_shared && kind == change.kind {
            self.first = false;
            return Some(change.frame.clone());
        }
        Some(self.event(kind.name(), &change.object))
    }

    fn event(&mut self, kind: &str, object: &Stored) -> Bytes {
        let bytes = represent::object_bytes(&self.context, self.registry.get(self.resource), object, self.first);
        self.first = false;
        store::frame(kind, &bytes)
    }

    fn bookmark(&mut self, rv: u64, end_of_initial: bool) {
        let object = bookmark(self.registry.get(self.resource), self.context.form, rv, end_of_initial);
        self.ready.push_back(Next::Frame(store::frame("BOOKMARK", object.to_string().as_bytes())));
    }

    fn expired(&mut self, error: &ApiError) {
        self.ready.push_back(Next::Frame(store::frame("ERROR", error.to_status().to_string().as_bytes())));
        self.live = None;
    }
}

fn bookmark(resource: &Resource, form: Form, rv: u64, end_of_initial: bool) -> Value {
    let mut metadata = json!({"resourceVersion": rv.to_string(), "creationTimestamp": null});
    if end_of_initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    match form {
        Form::Object => json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata}),
        Form::Metadata => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
        }
        Form::Table => json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": rv.to_string()},
            "columnDefinitions": [],
            "rows": [{"cells": [], "object": {
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}}],
        }),
    }
}
