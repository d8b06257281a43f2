//! Registry credentials from `kubernetes.io/dockerconfigjson` Secrets.

use k8s_openapi::api::core::v1::Secret;
use kube::{Client, ResourceExt};
use nodelet_crds::image::Image;
use nodelet_drivers::images::{Credentials, auth};

use crate::context::find;

/// The credentials that the Image's pull secrets have for its registry: the first that fits. The inner error says
/// which Secret is missing or unusable.
pub async fn for_image(client: &Client, image: &Image) -> Result<Result<Option<Credentials>, String>, kube::Error> {
    let namespace = image.namespace().unwrap_or_default();
    for (index, reference) in image.spec.pull_secrets.iter().enumerate() {
        let field = format!("spec.pullSecrets[{index}]");
        let Some(secret) = find::<Secret>(client, &namespace, &reference.name).await? else {
            return Ok(Err(format!("{field}: Secret {:?} does not exist in namespace {namespace}", reference.name)));
        };
        let Some(config) = secret.data.as_ref().and_then(|data| data.get(".dockerconfigjson")) else {
            return Ok(Err(format!(
                "{field}: Secret {:?} has no key .dockerconfigjson; create it with type kubernetes.io/dockerconfigjson",
                reference.name
            )));
        };
        match auth::credentials_for(&image.spec.reference, &config.0) {
            Ok(Some(credentials)) => return Ok(Ok(Some(credentials))),
            Ok(None) => {}
            Err(error) => return Ok(Err(format!("{field}: Secret {:?}: {error}", reference.name))),
        }
    }
    Ok(Ok(None))
}
