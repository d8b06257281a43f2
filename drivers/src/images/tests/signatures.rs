//! Signatures in a real registry and in archives, at every place where cosign puts them.

use std::error::Error as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::fixture::*;
use crate::images::manifest::Digest;
use crate::images::signature::testing::Key;
use crate::images::signature::{Evidence, Signer};
use crate::images::{ContainerdImages, Error, Fetch, Images as _, Options};
use crate::testing::PrivateContainerd;

const APP: &str = "app:1";

struct Case {
    node: PrivateContainerd,
    registry: Registry,
    images: ContainerdImages,
    empty: Vec<String>,
}

impl Case {
    async fn new() -> Self {
        let registry = Registry::start().await;
        registry.push(APP, &[random_layer("one", 40_000)]);
        let node = PrivateContainerd::start().await;
        let images = images(&node, Options { attempts: 2, ..Options::default() });
        let empty = inventory(&node);
        Self { node, registry, images, empty }
    }

    async fn digest(&self) -> Digest {
        let digest = self.images.resolve(&from_registry(&self.registry.name(APP))).await.unwrap();
        Digest::new(digest).unwrap()
    }

    fn fetch(&self, keys: &[&Key]) -> Fetch {
        let signer = |key: &&Key| Signer::new("Secret default/signer", key.pem().as_bytes()).unwrap();
        Fetch { signers: keys.iter().map(signer).collect(), ..from_registry(&self.registry.name(APP)) }
    }

    /// Fails to fetch, leaves nothing behind, and answers what was said.
    async fn refused(&self, keys: &[&Key]) -> String {
        let fetch = self.fetch(keys);
        let error = self.images.fetch(&fetch, silent()).await.unwrap_err();
        let Error::Unsigned { digest, signer, .. } = &error else { panic!("{error:?}") };
        let text = error.to_string();
        assert!(text.contains(digest) && text.contains(signer.fingerprint()) && text.contains("Secret default/signer"));
        assert_eq!(inventory(&self.node), self.empty, "nothing of it may be stored");
        error.source().unwrap().to_string()
    }
}

/// A manifest as cosign makes it, with its blobs.
struct Artifact {
    manifest: Value,
    blobs: Vec<Vec<u8>>,
}

fn artifact(evidence: &[Evidence], subject: Option<&Digest>) -> Artifact {
    let config = b"{}".to_vec();
    let mut blobs = vec![config.clone()];
    let mut layers = Vec::new();
    let mut kind = "application/vnd.dev.cosign.artifact.sig.v1+json";
    for one in evidence {
        let (media_type, bytes, annotations) = match one {
            Evidence::Simple { payload, signature } => (
                "application/vnd.dev.cosign.simplesigning.v1+json",
                payload,
                json!({ "dev.cosignproject.cosign/signature": signature }),
            ),
            Evidence::Bundle(bytes) => {
                kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
                (kind, bytes, json!({}))
            }
        };
        let digest = Digest::of(bytes);
        layers.push(json!({
            "mediaType": media_type, "digest": digest.as_str(), "size": bytes.len(), "annotations": annotations,
        }));
        blobs.push(bytes.clone());
    }
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": Digest::of(&config).as_str(),
        },
        "layers": layers,
    });
    if let Some(subject) = subject {
        manifest["artifactType"] = kind.into();
        manifest["subject"] = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject.as_str(), "size": 1,
        });
    }
    Artifact { manifest, blobs }
}

/// Puts it into the repository `app` under that tag.
fn push(registry: &Registry, artifact: &Artifact, tag: &str) {
    let file = registry.dir.path().join("upload");
    for blob in &artifact.blobs {
        std::fs::write(&file, blob).unwrap();
        let script = "set -e; at=$(curl -sf -i -X POST $URL/blobs/uploads/ | tr -d '\\r' | sed -n 's/^Location: //Ip'); \
                      curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary @$FILE \"$at&digest=$DIGEST\"";
        curl(registry, script, &file, &[("DIGEST", Digest::of(blob).as_str())]);
    }
    put_manifest(registry, &artifact.manifest, tag);
}

fn put_manifest(registry: &Registry, manifest: &Value, tag: &str) {
    let file = registry.dir.path().join("upload");
    std::fs::write(&file, manifest.to_string()).unwrap();
    let script = "curl -sf -X PUT -H \"Content-Type: $TYPE\" --data-binary @$FILE $URL/manifests/$TAG";
    curl(registry, script, &file, &[("TAG", tag), ("TYPE", manifest["mediaType"].as_str().unwrap())]);
}

fn curl(registry: &Registry, script: &str, file: &Path, more: &[(&str, &str)]) {
    let url = format!("http://127.0.0.1:{}/v2/app", registry.port);
    let output =
        Command::new("sh").args(["-c", script]).env("URL", url).env("FILE", file).envs(more.iter().copied()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

#[tokio::test]
async fn a_signature_under_the_tag_lets_the_image_in_and_is_remembered() {
    let case = Case::new().await;
    let (key, other) = (Key::new(), Key::new());
    let digest = case.digest().await;
    // Somebody else signed it too, and one of the layers is nonsense.
    let nonsense = Evidence::Simple { payload: b"nonsense".to_vec(), signature: String::new() };
    let all = [other.simple(&digest), nonsense, key.simple(&digest)];
    push(&case.registry, &artifact(&all, None), &tag(&digest));
    let image = case.images.fetch(&case.fetch(&[&key]), silent()).await.unwrap();
    assert!(image.is_signed_by(&case.fetch(&[&key]).signers));
    assert!(!image.is_signed_by(&case.fetch(&[&other]).signers), "nobody asked for that one");
    let found = case.images.get(&image.reference).await.unwrap().unwrap();
    assert_eq!(found, image);
    // A second key is checked although the image is there, and then both are known.
    case.images.fetch(&case.fetch(&[&other]), silent()).await.unwrap();
    let found = case.images.get(&image.reference).await.unwrap().unwrap();
    assert!(found.is_signed_by(&case.fetch(&[&key, &other]).signers));
    // The tag moves on to something unsigned: what was said of the old digest is not said of the new one.
    case.registry.push(APP, &[random_layer("two", 40_000)]);
    assert!(case.images.fetch(&case.fetch(&[&key]), silent()).await.is_err());
    assert_eq!(case.images.get(&image.reference).await.unwrap().unwrap().digest, image.digest);
    let moved = case.images.fetch(&case.fetch(&[]), silent()).await.unwrap();
    assert_ne!(moved.digest, image.digest);
    assert_eq!(case.images.get(&image.reference).await.unwrap().unwrap().signed_by, Vec::<String>::new());
}

#[tokio::test]
async fn a_signature_that_refers_to_the_image_lets_it_in() {
    for bundle in [false, true] {
        let case = Case::new().await;
        let key = Key::new();
        let digest = case.digest().await;
        let evidence = if bundle { key.bundle(&digest) } else { key.simple(&digest) };
        let artifact = artifact(&[evidence], Some(&digest));
        // This registry does not list referrers itself: clients keep the list under a tag, as OCI says.
        push(&case.registry, &artifact, "signature");
        let manifest = artifact.manifest.to_string();
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": artifact.manifest["mediaType"], "size": manifest.len(),
                "digest": Digest::of(manifest.as_bytes()).as_str(), "artifactType": artifact.manifest["artifactType"],
            }],
        });
        put_manifest(&case.registry, &index, &format!("sha256-{}", digest.hex()));
        case.images.fetch(&case.fetch(&[&key]), silent()).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_right_signature_nothing_is_stored() {
    let case = Case::new().await;
    let (key, other) = (Key::new(), Key::new());
    let digest = case.digest().await;
    assert_eq!(case.refused(&[&key]).await, "no signature was found");
    let of_other_image = key.simple(&Digest::of(b"other"));
    let Evidence::Simple { payload, .. } = &of_other_image else { panic!("of that form") };
    let text = String::from_utf8(payload.clone()).unwrap();
    let forged = text.replace(Digest::of(b"other").as_str(), digest.as_str()).into_bytes();
    let Evidence::Simple { signature, .. } = of_other_image.clone() else { panic!("of that form") };
    for (evidence, said) in [
        (other.simple(&digest), "of another key"),
        (of_other_image, Digest::of(b"other").as_str()),
        (Evidence::Simple { payload: forged, signature }, "of another key"),
        (Evidence::Simple { payload: b"{}".to_vec(), signature: "?".to_owned() }, "not base64"),
        (key.sign_simple(b"{}"), "unusable"),
        (key.bundle(&Digest::of(b"other")), Digest::of(b"other").as_str()),
    ] {
        push(&case.registry, &artifact(&[evidence], None), &tag(&digest));
        let why = case.refused(&[&key]).await;
        assert!(why.contains(said), "{why}");
    }
    // One of two keys is not enough.
    push(&case.registry, &artifact(&[key.simple(&digest)], None), &tag(&digest));
    case.refused(&[&key, &other]).await;
    case.images.fetch(&case.fetch(&[&key]), silent()).await.unwrap();
}

#[tokio::test]
async fn an_archive_brings_its_signatures_along() {
    let case = Case::new().await;
    let key = Key::new();
    let layout = case.registry.dir.path().join("layout");
    skopeo(
        vec!["copy", "-q", "--src-tls-verify=false"],
        &[&format!("docker://{}", case.registry.name(APP)), &format!("oci:{}:{APP}", layout.display())],
    );
    let fetch = Fetch { signers: case.fetch(&[&key]).signers, ..from_archive("x.test/app:1", &layout) };
    let error = case.images.fetch(&fetch, silent()).await.unwrap_err();
    assert!(matches!(error, Error::Unsigned { .. }), "{error:?}");

    let mut index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = Digest::new(index["manifests"][0]["digest"].as_str().unwrap()).unwrap();
    let artifact = artifact(&[key.simple(&digest)], None);
    let manifest = artifact.manifest.to_string().into_bytes();
    for blob in artifact.blobs.iter().chain([&manifest]) {
        std::fs::write(layout.join("blobs/sha256").join(Digest::of(blob).hex()), blob).unwrap();
    }
    index["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": manifest.len(),
        "digest": Digest::of(&manifest).as_str(), "annotations": { "kind": "dev.cosignproject.cosign/sigs" },
    }));
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let image = case.images.fetch(&fetch, silent()).await.unwrap();
    assert!(image.is_signed_by(&fetch.signers));
}
