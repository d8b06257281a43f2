//! Replacing objects, and the one way in which every change to an existing object is made.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;

use super::{key, refused};
use crate::admission::{self, Part};
use crate::registry::{Class, Resource};
use crate::request::{Context, Target};
use crate::server::Inner;
use crate::status::ApiError;
use crate::store::{Expect, Key, Stored, Write, WriteError};
use crate::{body, core_kinds, represent};

/// A change that meets others again and again gives up after so many rounds; in each of them another one succeeded.
const ATTEMPTS: usize = 100;

pub(crate) async fn update(
    inner: &Inner,
    context: &Context,
    target: &Target<'_>,
    bytes: &[u8],
) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    let mut object = body::object(context, bytes)?;
    admission::decode(context, resource, target.namespace.as_deref(), target.name.as_deref(), &mut object)?;
    admission::readable(resource, &object)?;
    let edit = |_: &Value| Ok(Edited { object: object.clone(), tracked: false });
    let stored = modify(inner, context, target, edit).await?;
    Ok(represent::object(context, resource, &stored, StatusCode::OK))
}

/// What an edit makes of the live object.
pub(crate) struct Edited {
    pub(crate) object: Value,
    /// Whether `managedFields` are already worked out.
    pub(crate) tracked: bool,
}

/// Changes an object: `edit` makes the new one from the live one, and is asked again whenever another change came
/// between. An object that comes out as it was is not written. One whose last finalizer goes while it is being
/// deleted is removed.
pub(crate) async fn modify(
    inner: &Inner,
    context: &Context,
    target: &Target<'_>,
    edit: impl Fn(&Value) -> Result<Edited, ApiError>,
) -> Result<Arc<Stored>, ApiError> {
    let resource = target.resource;
    let key = key(target)?;
    let part = Part::of(target.subresource.as_deref());
    for _ in 0..ATTEMPTS {
        let stored = inner.store.get(resource.table, &key).ok_or_else(|| ApiError::not_found(resource, &key.name))?;
        let live = represent::view(resource, &stored);
        let Edited { mut object, tracked } = edit(&live)?;
        admission::for_update(inner, context, resource, part, &live, &mut object, tracked)?;
        if object == live {
            return Ok(stored);
        }
        core_kinds::to_stored(resource, &mut object);
        if context.dry_run {
            return Ok(Arc::new(Stored::new(key, stored.rv, object)));
        }
        let remove = is_released(resource, &object);
        match inner.store.write(replacement(resource, &key, stored.rv, object, remove)).await {
            Err(WriteError::Changed) => {}
            Err(error) => return Err(refused(inner, resource, &key, error)),
            Ok(stored) => return Ok(stored),
        }
    }
    Err(ApiError::modified(resource, &key.name))
}

pub(crate) fn replacement(resource: &Resource, key: &Key, rv: u64, object: Value, remove: bool) -> Write {
    let expect = Expect::Version(rv);
    Write { table: resource.table, key: key.clone(), expect, object, remove, namespaces: None }
}

/// Whether an object is being deleted and nothing holds it any more.
pub(crate) fn is_released(resource: &Resource, object: &Value) -> bool {
    let held = |finalizers: &Value| finalizers.as_array().is_some_and(|f| !f.is_empty());
    object["metadata"]["deletionTimestamp"].is_string()
        && !held(&object["metadata"]["finalizers"])
        && !(resource.class == Class::Namespace && held(&object["spec"]["finalizers"]))
}
