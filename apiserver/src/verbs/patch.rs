//! Patching objects, in the four ways.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;

use super::create::create_object;
use super::update::{Edited, modify};
use crate::admission::{self, Part};
use crate::apply::{self, Configuration};
use crate::registry::Class;
use crate::request::{Context, Target};
use crate::server::{CREATED, Inner};
use crate::status::{ApiError, FieldError};
use crate::{body, patch as patches, represent};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// From the live object to the patched one.
type Edit<'a> = Box<dyn Fn(&Value) -> Result<Value, ApiError> + Send + Sync + 'a>;

pub(crate) async fn patch(
    inner: &Inner,
    context: &Context,
    target: &Target<'_>,
    bytes: &[u8],
) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    let is_custom = resource.class == Class::Custom;
    if context.content_type != APPLY && context.query.get("force").is_some() {
        let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
        return Err(ApiError::invalid_options("PatchOptions", &[error]));
    }
    let edit: Edit<'_> = match context.content_type.as_str() {
        APPLY => return apply(inner, context, target, bytes).await,
        JSON => {
            let patch = patches::JsonPatch::parse(bytes)?;
            Box::new(move |live| patch.apply(live))
        }
        MERGE => {
            let patch = body::json(context, bytes)?;
            Box::new(move |live| Ok(patches::merge(live, &patch)))
        }
        STRATEGIC if !is_custom => {
            let patch = body::json(context, bytes)?;
            let schema = resource.document.parsed();
            Box::new(move |live| patches::strategic(&schema, live, &patch))
        }
        _ => {
            let accepted =
                if is_custom { [JSON, MERGE, APPLY].join(", ") } else { [JSON, MERGE, STRATEGIC, APPLY].join(", ") };
            return Err(ApiError::unsupported_media(&accepted));
        }
    };
    let edit = |live: &Value| {
        let mut object = edit(live)?;
        admission::decode(context, resource, target.namespace.as_deref(), target.name.as_deref(), &mut object)?;
        admission::readable(resource, &object).map_err(|error| ApiError { code: 422, reason: "Invalid", ..error })?;
        Ok(Edited { object, tracked: false })
    };
    let stored = modify(inner, context, target, edit).await?;
    Ok(represent::object(context, resource, &stored, StatusCode::OK))
}

/// Server-side apply: creates what is missing, otherwise merges by field ownership.
async fn apply(
    inner: &Inner,
    context: &Context,
    target: &Target<'_>,
    bytes: &[u8],
) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    let part = Part::of(target.subresource.as_deref());
    let Some(manager) = context.query.get("fieldManager") else {
        let message = "Required value: is required for apply patch".to_owned();
        let error = FieldError { message, ..FieldError::required("fieldManager") };
        return Err(ApiError::invalid_options("PatchOptions", &[error]));
    };
    let mut object = body::yaml(bytes)?;
    if object["metadata"]["managedFields"].as_array().is_some_and(|m| !m.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    for field in ["apiVersion", "kind"] {
        if !object[field].is_string() {
            return Err(ApiError::bad_request(format!("an applied object names its {field}")));
        }
    }
    admission::decode(context, resource, target.namespace.as_deref(), target.name.as_deref(), &mut object)?;
    admission::readable(resource, &object)?;
    let configuration = Configuration { object, manager, part, force: context.query.flag("force") };
    loop {
        let key = super::key(target)?;
        if inner.store.get(resource.table, &key).is_none() {
            if part == Part::Status {
                return Err(ApiError::not_found(resource, &key.name));
            }
            if configuration.object["metadata"]["uid"].as_str().is_some_and(|uid| !uid.is_empty()) {
                let detail = "the object has been deleted: it does not exist, and its uid is given";
                return Err(ApiError::conflict(resource, &key.name, detail));
            }
            let object = apply::first(resource, &configuration);
            match create_object(inner, context, resource, object, true).await {
                // Somebody else created it in this moment; now it is there to be merged with.
                Err(error) if error.reason == "AlreadyExists" => continue,
                Err(error) => return Err(error),
                Ok(stored) => return Ok(represent::object(context, resource, &stored, CREATED)),
            }
        }
        let edit = |live: &Value| {
            let object = apply::merge(resource, live, &configuration)?;
            Ok(Edited { object, tracked: true })
        };
        let stored = match modify(inner, context, target, edit).await {
            Err(error) if error.code == 404 && part == Part::Main => continue,
            other => other?,
        };
        return Ok(represent::object(context, resource, &stored, StatusCode::OK));
    }
}
