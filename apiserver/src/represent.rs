//! Answers: an object or a list in the form that the client accepts.

use std::sync::Arc;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::core_kinds;
use crate::registry::{Resource, View};
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
pub(crate) fn list(context: &Context, resource: &Resource, items: &[Arc<Stored>], page: &Page) -> Response<Body> {
    let refs: Vec<&Stored> = items.iter().map(AsRef::as_ref).collect();
    let body = match context.form {
        Form::Table => Bytes::from(table::of(resource, &refs, include(context), true, page.metadata()).to_string()),
        Form::Metadata => Bytes::from(
            json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": page.metadata(),
                "items": refs.iter().map(|o| metadata_only(o)).collect::<Vec<_>>(),
            })
            .to_string(),
        ),
        // The stored bytes are joined as they are: a list costs no parsing, whatever its length.
        Form::Object => {
            let size: usize = refs.iter().map(|o| o.json.len() + 1).sum();
            let mut body = BytesMut::with_capacity(size + 256);
            let head = format!(
                r#"{{"kind":{},"apiVersion":{},"metadata":{},"items":["#,
                Value::String(resource.list_kind()),
                Value::String(resource.api_version()),
                page.metadata()
            );
            body.put_slice(head.as_bytes());
            for (i, object) in refs.iter().enumerate() {
                if i > 0 {
                    body.put_u8(b',');
                }
                body.put_slice(&view_bytes(resource, object));
            }
            body.put_slice(b"]}");
            body.freeze()
        }
    };
    answer(StatusCode::OK, body)
}

fn metadata_only(stored: &Stored) -> Value {
    partial(&stored.value())
}

/// The PartialObjectMetadata of an object.
pub(crate) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}
