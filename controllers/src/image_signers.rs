//! Who must have signed an image, as the Images of the API say.
//!
//! An Image with `verify` speaks for its reference on every node that it selects, whoever pulls: Workloads of all
//! namespaces, other Images, archives. It speaks for references by digest to the same repository as well, since what a
//! tag stands for can also be named so. All keys that are asked for must have signed.

use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nodelet_crds::image::Image;
use nodelet_drivers::images::{Signer, normalize};

use crate::context::{Context, find};

/// The key of a Secret that holds the PEM.
const PUBLIC_KEY: &str = "cosign.pub";

/// The Images that exist now. The watch may lag behind, and who was quicker must not decide what is verified.
pub async fn declared(ctx: &Context) -> Result<Vec<Image>, kube::Error> {
    Ok(Api::<Image>::all(ctx.client.clone()).list(&ListParams::default()).await?.items)
}

/// Who must have signed `reference` on this node. The inner error says which Secret is missing or unusable: then
/// nothing may be pulled.
pub async fn signers(
    ctx: &Context,
    images: &[Image],
    reference: &str,
) -> Result<Result<Vec<Signer>, String>, kube::Error> {
    let mut signers = Vec::new();
    for image in images.iter().filter(|image| speaks_for(image, reference, ctx)) {
        let Some(verify) = &image.spec.verify else { continue };
        let (namespace, name) = (image.namespace().unwrap_or_default(), &verify.public_key.secret_name);
        let whose = format!("Secret {namespace}/{name}");
        let by = format!("required by Image {namespace}/{}", image.name_any());
        let Some(secret) = find::<Secret>(&ctx.client, &namespace, name).await? else {
            return Ok(Err(format!("{whose}, {by}, does not exist: create it with the public key under {PUBLIC_KEY}")));
        };
        let Some(pem) = secret.data.as_ref().and_then(|data| data.get(PUBLIC_KEY)) else {
            return Ok(Err(format!("{whose}, {by}, has no key {PUBLIC_KEY}")));
        };
        match Signer::new(whose.clone(), &pem.0) {
            Ok(signer) => signers.push(signer),
            Err(error) => return Ok(Err(format!("{whose}, {by}: {PUBLIC_KEY}: {error}"))),
        }
    }
    signers.sort();
    signers.dedup_by(|a, b| a.fingerprint() == b.fingerprint());
    Ok(Ok(signers))
}

fn speaks_for(image: &Image, reference: &str, ctx: &Context) -> bool {
    image.spec.verify.is_some()
        && image.metadata.deletion_timestamp.is_none()
        && image.spec.node_selector.as_ref().is_none_or(|selector| selector.matches(&ctx.settings.node_labels))
        && covers(&image.spec.reference, reference)
}

/// Whether what is said of `declared` is said of `named` as well.
fn covers(declared: &str, named: &str) -> bool {
    let (Ok(declared), Ok(named)) = (normalize(declared), normalize(named)) else { return false };
    if declared == named {
        return true;
    }
    named.contains('@') && repository(&declared) == repository(&named)
}

/// A full reference without tag and digest.
fn repository(reference: &str) -> &str {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_for_the_same_image_are_covered() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (named, expected) in [
            ("app:1", true),
            ("docker.io/library/app:1", true),
            ("app:2", false),
            ("other:1", false),
            ("localhost:5000/app:1", false),
            (&format!("app@{digest}"), true),
            (&format!("app:1@{digest}"), true),
            (&format!("app:2@{digest}"), true),
            (&format!("other@{digest}"), false),
        ] {
            assert_eq!(covers("app:1", named), expected, "{named}");
        }
        assert!(covers("localhost:5000/app", &format!("localhost:5000/app@{digest}")));
    }
}
