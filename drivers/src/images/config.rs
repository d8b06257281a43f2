//! The configuration of an image, as the runtime needs it to make containers.

use oci_spec::image::ImageConfiguration;

use super::stored::{self, Error};
use crate::containerd::Containerd;
use crate::runtime::Error as RuntimeError;

/// Reads the configuration of the image record `name` and the name of its top snapshot, the parent of a container's
/// root filesystem; that is empty for an image without layers, which `Prepare` takes for "no parent".
///
/// # Errors
/// [`RuntimeError::NotFound`] when the record or its documents are not on the node, [`RuntimeError::Invalid`] when
/// the image cannot be understood, else the connection's errors.
pub async fn image_config(containerd: &Containerd, name: &str) -> Result<(ImageConfiguration, String), RuntimeError> {
    let failed = |error: Error| match error {
        Error::Containerd { doing, source } => containerd.error(doing, source),
        Error::Invalid { ref source, .. } => RuntimeError::Invalid {
            field: "image".to_owned(),
            message: format!("{name} is not a usable image: {source}"),
        },
    };
    let absent = || RuntimeError::NotFound { what: "image", id: name.to_owned() };
    let record = stored::record(containerd, name).await.map_err(failed)?.ok_or_else(absent)?;
    let image = stored::follow(containerd, &record).await.map_err(failed)?.ok_or_else(absent)?;
    let config = serde_json::from_slice(&image.config).map_err(|e| RuntimeError::Invalid {
        field: "image".to_owned(),
        message: format!("{name} has an unusable configuration: {e}"),
    })?;
    Ok((config, image.top().map(String::from).unwrap_or_default()))
}
