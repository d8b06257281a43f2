//! Deleting objects: at once, or after those who hold them have let go.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::update::{is_released, replacement};
use super::{key, refused};
use crate::admission::now;
use crate::registry::{Class, Resource};
use crate::represent::{self, Page};
use crate::request::{Context, Target};
use crate::selector::Selector;
use crate::server::Inner;
use crate::status::{self, ApiError};
use crate::store::{Key, Stored, WriteError};
use crate::{body, core_kinds};

/// Held while dependents are deleted first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Held while dependents lose their owner.
pub(crate) const ORPHAN: &str = "orphan";

/// `DeleteOptions`, as far as they mean something here.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options {
    propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
    preconditions: Option<Preconditions>,
    dry_run: Option<Vec<String>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

/// The finalizer that a way of deleting adds.
fn finalizer(options: &Options, context: &Context) -> Result<Option<&'static str>, ApiError> {
    let policy = options.propagation_policy.as_deref().or_else(|| context.query.get("propagationPolicy"));
    let orphan = options.orphan_dependents.unwrap_or_else(|| context.query.flag("orphanDependents"));
    match policy {
        Some("Foreground") => Ok(Some(FOREGROUND)),
        Some("Orphan") => Ok(Some(ORPHAN)),
        Some("Background") => Ok(None),
        None => Ok(orphan.then_some(ORPHAN)),
        Some(other) => Err(ApiError::new(
            422,
            "Invalid",
            format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: \
                 supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            ),
        )),
    }
}

fn parse(context: &Context, bytes: &[u8]) -> Result<(Options, bool), ApiError> {
    let options: Options = if bytes.iter().all(u8::is_ascii_whitespace) {
        Options::default()
    } else {
        serde_json::from_value(body::object(context, bytes)?)
            .map_err(|error| ApiError::bad_request(format!("DeleteOptions: {error}")))?
    };
    let dry_run = context.dry_run || options.dry_run.as_deref().is_some_and(|d| d.iter().any(|d| d == "All"));
    Ok((options, dry_run))
}

pub(crate) async fn delete(
    inner: &Inner,
    context: &Context,
    target: &Target<'_>,
    bytes: &[u8],
) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    let key = key(target)?;
    let (options, dry_run) = parse(context, bytes)?;
    let stored = delete_object(inner, context, resource, &key, &options, dry_run).await?;
    if stored.deleting {
        return Ok(represent::object(context, resource, &stored, StatusCode::OK));
    }
    let status = status::success(resource, &key.name, &stored.uid);
    Ok(represent::answer(StatusCode::OK, status.to_string()))
}

pub(crate) async fn delete_collection(
    inner: &Inner,
    context: &Context,
    target: &Target<'_>,
    bytes: &[u8],
) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    if (resource.namespaced && target.namespace.is_none()) || resource.class == Class::Namespace {
        return Err(ApiError::method_not_allowed());
    }
    let (options, dry_run) = parse(context, bytes)?;
    let query = &context.query;
    let selector = Selector::parse(resource, query.text("labelSelector"), query.text("fieldSelector"))?;
    let items = inner.store.read().list(resource.table, target.namespace.as_deref());
    let mut gone = Vec::new();
    for item in items.into_iter().filter(|item| selector.matches(item)) {
        match delete_object(inner, context, resource, &item.key, &options, dry_run).await {
            Ok(stored) => gone.push(stored),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let rv = inner.store.read().rv;
    Ok(represent::list(&inner.registry, context, resource, gone, &Page { rv, ..Page::default() }))
}

async fn delete_object(
    inner: &Inner,
    context: &Context,
    resource: &Resource,
    key: &Key,
    options: &Options,
    dry_run: bool,
) -> Result<Arc<Stored>, ApiError> {
    if resource.class == Class::Namespace && matches!(&*key.name, "default" | "kube-system") {
        return Err(ApiError::forbidden(resource, &key.name, "this namespace may not be deleted"));
    }
    let finalizer = finalizer(options, context)?;
    loop {
        let stored = inner.store.get(resource.table, key).ok_or_else(|| ApiError::not_found(resource, &key.name))?;
        check(resource, &stored, options)?;
        let mut object = stored.value();
        let remove = mark(resource, &mut object, finalizer);
        if dry_run || (!remove && object == stored.value()) {
            return Ok(stored);
        }
        match inner.store.write(replacement(resource, key, stored.rv, object, remove)).await {
            Err(WriteError::Changed) => {}
            Err(error) => return Err(refused(inner, resource, key, error)),
            Ok(written) => return Ok(written),
        }
    }
}

fn check(resource: &Resource, stored: &Stored, options: &Options) -> Result<(), ApiError> {
    let Some(Preconditions { uid, resource_version }) = &options.preconditions else { return Ok(()) };
    let rv = stored.rv.to_string();
    for (what, wanted, found, perhaps) in [
        ("UID", uid, &*stored.uid, "deleted and then recreated"),
        ("ResourceVersion", resource_version, rv.as_str(), "modified"),
    ] {
        if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
            let detail = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). \
                 The object might have been {perhaps}"
            );
            let mut error = ApiError::conflict(resource, &stored.key.name, &detail);
            // A real server names the kind here, not the plural.
            error.message = error.message.replacen(&resource.qualified(), &resource.qualified_kind(), 1);
            return Err(error);
        }
    }
    Ok(())
}

/// Notes in a stored object that it is to be deleted, and says whether it can go at once. An object that goes at
/// once is left as it was, for its watchers.
pub(crate) fn mark(resource: &Resource, object: &mut Value, finalizer: Option<&str>) -> bool {
    let before = object.clone();
    let metadata = &mut object["metadata"];
    if metadata["deletionTimestamp"].is_string() {
        return is_released(resource, object);
    }
    if let Some(finalizer) = finalizer {
        match metadata["finalizers"].as_array_mut() {
            Some(list) if list.iter().any(|f| f == finalizer) => {}
            Some(list) => list.push(json!(finalizer)),
            None => metadata["finalizers"] = json!([finalizer]),
        }
    }
    metadata["deletionTimestamp"] = json!(now());
    metadata["deletionGracePeriodSeconds"] = json!(0);
    if let Some(generation) = metadata["generation"].as_i64() {
        metadata["generation"] = json!(generation + 1);
    }
    if resource.class == Class::Namespace {
        object["status"]["phase"] = json!("Terminating");
    }
    let released = is_released(resource, object);
    if released {
        *object = before;
    }
    core_kinds::to_stored(resource, object);
    released
}
