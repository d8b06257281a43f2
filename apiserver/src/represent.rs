//! Answers: an object or a list in the form that the client accepts.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::core_kinds;
use crate::registry::{Registry, Resource, View};
use crate::request::{Context, Form};
use crate::store::Stored;
use crate::table;

/// Answers with JSON.
pub(crate) fn answer(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A stored object, parsed, in the form of a resource's version.
pub(crate) fn view(resource: &Resource, stored: &Stored) -> Value {
    let mut value = stored.value();
    core_kinds::to_view(resource, &mut value);
    value
}

/// The bytes of a stored object in the form of a resource's version, shared where the forms are the same.
fn view_bytes(resource: &Resource, stored: &Stored) -> Bytes {
    match resource.view {
        View::Stored => stored.json.clone(),
        View::NewEvents | View::Pods => Bytes::from(view(resource, stored).to_string()),
    }
}

/// One object of a watch event or an answer, in the client's form. For a table in a watch, only the first event
/// carries the column definitions.
pub(crate) fn object_bytes(context: &Context, resource: &Resource, stored: &Stored, headers: bool) -> Bytes {
    match context.form {
        Form::Object => view_bytes(resource, stored),
        Form::Metadata => Bytes::from(metadata_only(stored).to_string()),
        Form::Table => Bytes::from(
            table::of(
                resource,
                &[stored],
                include(context),
                headers,
                json!({"resourceVersion": stored.rv.to_string()}),
            )
            .to_string(),
        ),
    }
}

fn include(context: &Context) -> table::Include {
    match context.query.get("includeObject") {
        Some("Object") => table::Include::Object,
        Some("None") => table::Include::None,
        _ => table::Include::Metadata,
    }
}

/// Answers with one object.
pub(crate) fn object(context: &Context, resource: &Resource, stored: &Stored, code: StatusCode) -> Response<Body> {
    answer(code, object_bytes(context, resource, stored, true))
}

/// Where a list stands: its version, and how to go on if it is not complete.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) rv: u64,
    pub(crate) next: Option<String>,
    pub(crate) remaining: Option<usize>,
}

impl Page {
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.rv.to_string()});
        if let Some(next) = &self.next {
            metadata["continue"] = json!(next);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        metadata
    }
}

/// Answers with a list.
pub(crate) fn list(
    registry: &Arc<Registry>,
    context: &Context,
    resource: &Resource,
    items: Vec<Arc<Stored>>,
    page: &Page,
) -> Response<Body> {
    let head = match context.form {
        Form::Table => {
            let columns = table::definitions(resource);
            format!(
                r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"columnDefinitions":{columns},"rows":["#,
                page.metadata()
            )
        }
        Form::Metadata => format!(
            r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{},"items":["#,
            page.metadata()
        ),
        Form::Object => format!(
            r#"{{"kind":{},"apiVersion":{},"metadata":{},"items":["#,
            Value::String(resource.list_kind()),
            Value::String(resource.api_version()),
            page.metadata()
        ),
    };
    let mut parts = Parts {
        registry: registry.clone(),
        resource: resource.id,
        form: context.form,
        include: include(context),
        now: Timestamp::now(),
        items: items.into_iter(),
        buffer: head.into_bytes(),
        is_first: true,
        is_over: false,
    };
    let first = parts.next().unwrap_or_default();
    if parts.is_over {
        return answer(StatusCode::OK, first);
    }
    let body = futures::stream::iter(std::iter::once(first).chain(parts).map(Ok::<_, Infallible>));
    let mut response = answer(StatusCode::OK, "");
    *response.body_mut() = Body::from_stream(body);
    response
}

/// A list as it goes over the wire: made while the client reads it, so that a long list is neither waited for nor in
/// memory twice.
struct Parts {
    registry: Arc<Registry>,
    resource: usize,
    form: Form,
    include: table::Include,
    now: Timestamp,
    items: std::vec::IntoIter<Arc<Stored>>,
    buffer: Vec<u8>,
    is_first: bool,
    is_over: bool,
}

/// Length at which a part of a list is sent.
const PART: usize = 64 << 10;

impl Iterator for Parts {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        let registry = self.registry.clone();
        let resource = registry.get(self.resource);
        while self.buffer.len() < PART {
            let Some(stored) = self.items.next() else {
                self.buffer.extend_from_slice(b"]}");
                self.is_over = true;
                break;
            };
            if !std::mem::take(&mut self.is_first) {
                self.buffer.push(b',');
            }
            self.push(resource, &stored);
        }
        Some(Bytes::from(std::mem::take(&mut self.buffer)))
    }
}

impl Parts {
    fn push(&mut self, resource: &Resource, stored: &Stored) {
        let made = match self.form {
            // The stored bytes are joined as they are: a list costs no parsing, whatever its length.
            Form::Object if resource.view == View::Stored => {
                self.buffer.extend_from_slice(&stored.json);
                return;
            }
            Form::Object => view(resource, stored),
            Form::Metadata => metadata_only(stored),
            Form::Table => table::row(resource, stored, self.include, self.now),
        };
        // Writing JSON into memory cannot fail: its keys are strings.
        let _ = serde_json::to_writer(&mut self.buffer, &made);
    }
}

fn metadata_only(stored: &Stored) -> Value {
    partial(stored.value())
}

/// The PartialObjectMetadata of an object.
pub(crate) fn partial(mut object: Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"].take()})
}
