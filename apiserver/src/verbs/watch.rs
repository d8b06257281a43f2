//! Following changes: what happened since a version, and what happens from now on.
//!
//! A change is serialised once for all watchers of a table. A watcher that cannot keep up is cut off with
//! `410 Expired` and lists again; nothing is buffered for it without end.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use crate::registry::{Registry, Resource, View};
use crate::request::{Context, Form, Target};
use crate::selector::Selector;
use crate::server::Inner;
use crate::status::ApiError;
use crate::store::{Change, ChangeKind, Stored, Subscription};
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
    if initial == Some(true) && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(ApiError::new(
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
             setting resourceVersionMatch to NotOlderThan",
        ));
    }
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

struct Watcher {
    registry: Arc<Registry>,
    resource: usize,
    inner: Weak<Inner>,
    context: Context,
    namespace: Option<String>,
    selector: Selector,
    bookmarks: bool,
    ready: VecDeque<Bytes>,
    /// `None` once nothing more will come.
    live: Option<Receiver<Arc<Change>>>,
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
        let (subscription, objects) = {
            let state = inner.store.read();
            let current = state.rv;
            if after.is_some_and(|after| after > current) {
                // From before a restore, or from another server: what it knows never happened here.
                drop(state);
                self.expired(&ApiError::expired(after.unwrap_or_default(), current));
                return;
            }
            let objects = if all_first { state.list(resource.table, self.namespace.as_deref()) } else { Vec::new() };
            let from = if all_first { current } else { after.unwrap_or(current) };
            (state.subscribe(resource.table, from), objects)
        };
        let Subscription { missed, live, current } = match subscription {
            Ok(subscription) => subscription,
            Err(oldest) => return self.expired(&ApiError::expired(after.unwrap_or_default(), oldest)),
        };
        for object in objects {
            if self.selector.matches(&object) {
                self.push("ADDED", &object);
            }
        }
        for change in missed {
            self.take(&change);
        }
        if end_mark && self.bookmarks {
            self.bookmark(current, true);
        }
        self.live = Some(live);
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            let live = self.live.as_mut()?;
            let wake = self.deadline.min(self.next_bookmark);
            // Receiving is cancel-safe: a change that was not returned is received again.
            let received = tokio::select! {
                received = live.recv() => Some(received),
                () = sleep_until(wake) => None,
            };
            match received {
                Some(Ok(change)) => self.take(&change),
                Some(Err(RecvError::Lagged(missed))) => {
                    let message = format!("the watch fell {missed} changes behind and is cut off: list again");
                    self.expired(&ApiError::new(410, "Expired", message));
                }
                Some(Err(RecvError::Closed)) => return None,
                None => self.tick(),
            }
        }
    }

    /// Sends a bookmark if it is time, and ends the watch if it is over.
    fn tick(&mut self) {
        let now = Instant::now();
        self.next_bookmark = now + BOOKMARK;
        let ended = now >= self.deadline;
        if let (true, Some(inner), Some(live)) = (self.bookmarks, self.inner.upgrade(), &self.live) {
            let state = inner.store.read();
            // Under the lock nothing is published, so with nothing waiting the client has seen everything.
            let settled = live.is_empty().then_some(state.rv);
            drop(state);
            if let Some(rv) = settled {
                self.bookmark(rv, false);
            }
        }
        if ended {
            self.live = None;
        }
    }

    fn take(&mut self, change: &Change) {
        if self.namespace.as_deref().is_some_and(|n| *change.object.key.namespace != *n) {
            return;
        }
        let registry = self.registry.clone();
        let resource = registry.get(self.resource);
        if self.selector.is_everything() {
            if self.context.form == Form::Object && resource.view == View::Stored {
                self.first = false;
                self.ready.push_back(change.frame());
            } else {
                self.push(change.kind.name(), &change.object);
            }
            return;
        }
        let was = change.previous.as_ref().is_some_and(|previous| self.selector.matches(previous));
        let is = change.kind != ChangeKind::Deleted && self.selector.matches(&change.object);
        match (was, is) {
            (false, false) => {}
            (false, true) => self.push("ADDED", &change.object),
            (true, true) => self.push("MODIFIED", &change.object),
            (true, false) if change.kind == ChangeKind::Deleted => self.push("DELETED", &change.object),
            (true, false) => {
                // It left the selection: shown as it was when it still belonged to it.
                if let Some(previous) = &change.previous {
                    self.push("DELETED", &Stored::new(previous.key.clone(), change.rv(), previous.value()));
                }
            }
        }
    }

    fn push(&mut self, kind: &str, object: &Stored) {
        let registry = self.registry.clone();
        let bytes = represent::object_bytes(&self.context, registry.get(self.resource), object, self.first);
        self.first = false;
        self.ready.push_back(store::frame(kind, &bytes));
    }

    fn bookmark(&mut self, rv: u64, end_of_initial: bool) {
        let object = bookmark(self.registry.get(self.resource), self.context.form, rv, end_of_initial);
        self.ready.push_back(store::frame("BOOKMARK", object.to_string().as_bytes()));
    }

    fn expired(&mut self, error: &ApiError) {
        self.ready.push_back(store::frame("ERROR", error.to_status().to_string().as_bytes()));
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
