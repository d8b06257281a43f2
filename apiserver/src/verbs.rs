//! What can be done with objects: one verb, one file.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod patch;
pub(crate) mod update;
pub(crate) mod watch;

use crate::registry::{Class, Resource};
use crate::request::Target;
use crate::server::Inner;
use crate::status::ApiError;
use crate::store::{Key, WriteError};

/// The key of the object that a request names.
fn key(target: &Target<'_>) -> Result<Key, ApiError> {
    let name = target.name.as_deref().ok_or_else(ApiError::method_not_allowed)?;
    Ok(Key::new(target.namespace.as_deref().unwrap_or_default(), name))
}

/// The error that a refused write is to its client.
fn refused(inner: &Inner, resource: &Resource, key: &Key, error: WriteError) -> ApiError {
    let namespaces = inner.registry.class(Class::Namespace);
    match error {
        WriteError::Exists => ApiError::already_exists(resource, &key.name),
        WriteError::Missing => ApiError::not_found(resource, &key.name),
        WriteError::Changed => ApiError::modified(resource, &key.name),
        WriteError::NamespaceMissing => ApiError::not_found(namespaces, &key.namespace),
        WriteError::NamespaceTerminating => ApiError::forbidden(
            resource,
            &key.name,
            &format!("unable to create new content in namespace {} because it is being terminated", key.namespace),
        ),
        WriteError::Full => ApiError::new(
            507,
            "InsufficientStorage",
            format!(
                "no space left on the disk of {}: nothing was changed; free space and try again",
                inner.options.store.display()
            ),
        ),
        WriteError::TooLarge { most } => ApiError::too_large(most),
        WriteError::TooDeep { .. } => ApiError::bad_request(error.to_string()),
        WriteError::Storage(detail) => ApiError::internal(format!("the store: {detail}")),
    }
}
