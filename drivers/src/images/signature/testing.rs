//! Signatures as cosign makes them, for tests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::json;

use super::super::manifest::Digest;
use super::payload::Evidence;

/// A key pair.
#[derive(Debug)]
pub(in crate::images) struct Key(KeyPair);

impl Key {
    /// Of the kind that cosign makes.
    pub(in crate::images) fn new() -> Self {
        Self(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap())
    }

    pub(in crate::images) fn of_each_kind() -> Vec<Self> {
        let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        kinds.into_iter().map(|kind| Self(KeyPair::generate_for(kind).unwrap())).collect()
    }

    /// `cosign.pub`.
    pub(in crate::images) fn pem(&self) -> String {
        let der = STANDARD.encode(self.0.subject_public_key_info());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    pub(in crate::images) fn simple(&self, digest: &Digest) -> Evidence {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": "registry.test/app" },
                "image": { "docker-manifest-digest": digest.as_str() },
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        self.sign_simple(payload.to_string().as_bytes())
    }

    pub(in crate::images) fn sign_simple(&self, payload: &[u8]) -> Evidence {
        Evidence::Simple { payload: payload.to_vec(), signature: STANDARD.encode(self.0.sign(payload).unwrap()) }
    }

    pub(in crate::images) fn bundle(&self, digest: &Digest) -> Evidence {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{ "digest": { "sha256": digest.hex() }, "annotations": {} }],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        });
        self.sign_bundle("application/vnd.in-toto+json", statement.to_string().as_bytes())
    }

    pub(in crate::images) fn sign_bundle(&self, payload_type: &str, payload: &[u8]) -> Evidence {
        let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
        message.extend_from_slice(payload);
        let bundle = json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": { "publicKey": { "hint": "" } },
            "dsseEnvelope": {
                "payload": STANDARD.encode(payload),
                "payloadType": payload_type,
                "signatures": [{ "sig": STANDARD.encode(self.0.sign(&message).unwrap()) }],
            },
        });
        Evidence::Bundle(bundle.to_string().into_bytes())
    }
}
