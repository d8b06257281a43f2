//! Creating objects.

use std::sync::Arc;

use axum::body::Body;
use http::Response;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::refused;
use crate::registry::{Class, Resource};
use crate::request::{Context, Target};
use crate::server::{CREATED, Inner};
use crate::status::ApiError;
use crate::store::{Expect, Key, Stored, Write, WriteError};
use crate::{admission, body, core_kinds, represent};

/// Attempts at a generated name before giving up.
const ATTEMPTS: usize = 8;

pub(crate) async fn create(
    inner: &Inner,
    context: &Context,
    target: &Target<'_>,
    bytes: &[u8],
) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    if resource.namespaced && target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let mut object = body::object(context, bytes)?;
    admission::decode(context, resource, target.namespace.as_deref(), None, &mut object)?;
    admission::readable(resource, &object)?;
    let stored = create_object(inner, context, resource, object, false).await?;
    Ok(represent::object(context, resource, &stored, CREATED))
}

/// Creates a decoded object. `tracked` says that its managed fields are already worked out.
pub(crate) async fn create_object(
    inner: &Inner,
    context: &Context,
    resource: &Resource,
    object: Value,
    tracked: bool,
) -> Result<Arc<Stored>, ApiError> {
    let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
    let named = object["metadata"]["name"].as_str().is_some_and(|name| !name.is_empty());
    let generate = !named && !prefix.is_empty();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut object = object.clone();
        if generate {
            object["metadata"]["name"] = json!(generated_name(&prefix));
        }
        admission::for_create(inner, context, resource, &mut object, tracked)?;
        match write(inner, context, resource, object).await {
            Err((_, WriteError::Exists)) if generate && attempt < ATTEMPTS => {}
            Err((key, error)) => {
                let leaving = matches!(error, WriteError::Exists)
                    && inner.store.get(resource.table, &key).is_some_and(|stored| stored.deleting);
                let mut error = refused(inner, resource, &key, error);
                if leaving {
                    error.message = format!("object is being deleted: {}", error.message);
                }
                return Err(error);
            }
            Ok(stored) => return Ok(stored),
        }
    }
}

async fn write(
    inner: &Inner,
    context: &Context,
    resource: &Resource,
    mut object: Value,
) -> Result<Arc<Stored>, (Key, WriteError)> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    let key = Key::new(text("namespace"), text("name"));
    let namespaces = resource.namespaced.then(|| inner.registry.class(Class::Namespace).table);
    if context.dry_run {
        let state = inner.store.read();
        if state.get(resource.table, &key).is_some() {
            return Err((key, WriteError::Exists));
        }
        if let Some(namespaces) = namespaces
            && state.get(namespaces, &Key::new("", &key.namespace)).is_none()
        {
            return Err((key, WriteError::NamespaceMissing));
        }
        let mut stored = Stored::new(key.clone(), 0, json!({}));
        core_kinds::to_stored(resource, &mut object);
        stored.json = object.to_string().into();
        return Ok(Arc::new(stored));
    }
    core_kinds::to_stored(resource, &mut object);
    let write =
        Write { table: resource.table, key: key.clone(), expect: Expect::Absent, object, remove: false, namespaces };
    inner.store.write(write).await.map_err(|error| (key, error))
}

fn generated_name(prefix: &str) -> String {
    // Without vowels and look-alikes, so that no words come out.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    let mut name: String = prefix.chars().take(248).collect();
    for _ in 0..5 {
        name.push(char::from(*ALPHABET.choose(&mut rng).unwrap_or(&b'x')));
    }
    name
}
