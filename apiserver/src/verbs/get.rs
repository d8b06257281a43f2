//! Reading one object.

use axum::body::Body;
use http::{Response, StatusCode};

use super::key;
use crate::represent;
use crate::request::{Context, Target};
use crate::server::Inner;
use crate::status::ApiError;

pub(crate) fn get(inner: &Inner, context: &Context, target: &Target<'_>) -> Result<Response<Body>, ApiError> {
    let key = key(target)?;
    let resource = target.resource;
    let stored = inner.store.get(resource.table, &key).ok_or_else(|| ApiError::not_found(resource, &key.name))?;
    Ok(represent::object(context, resource, &stored, StatusCode::OK))
}
