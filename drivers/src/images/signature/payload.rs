//! What a signature says, and whether it says it of an image. Pure.
//!
//! cosign has two forms. The older is a "simple signing" document, with the signature of its bytes beside it. The newer
//! is a sigstore bundle: an envelope (DSSE) around an in-toto statement. Transparency logs and certificates are for
//! signatures without a key pair, and are not looked at here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::manifest::Digest;
use super::key::Signer;

/// Something that may be a signature of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::images) enum Evidence {
    /// A simple signing document and its signature in base64.
    Simple {
        /// As it was signed.
        payload: Vec<u8>,
        /// From the layer's annotation.
        signature: String,
    },
    /// A sigstore bundle in JSON.
    Bundle(Vec<u8>),
}

/// Why it is no signature of the image by the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::images) enum Problem {
    /// Somebody else's, or tampered with.
    OtherKey,
    /// A signature of that key, but of something else.
    OtherImage(String),
    /// It cannot be read.
    Malformed(String),
}

#[derive(Deserialize)]
struct SimpleSigning {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: SignedImage,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    #[serde(default)]
    sha256: String,
}

/// What cosign calls a signature, apart from attestations of other things.
const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const SIMPLE_SIGNING_TYPE: &str = "cosign container image signature";

/// Whether the evidence shows that `signer` signed the image of that digest.
pub(in crate::images) fn judge(evidence: &Evidence, signer: &Signer, digest: &Digest) -> Result<(), Problem> {
    match evidence {
        Evidence::Simple { payload, signature } => simple(payload, signature, signer, digest),
        Evidence::Bundle(bytes) => bundle(bytes, signer, digest),
    }
}

fn simple(payload: &[u8], signature: &str, signer: &Signer, digest: &Digest) -> Result<(), Problem> {
    let signature = decode("the signature", signature)?;
    // Nothing of the payload is believed, nor even read, before it is known whose it is.
    if !signer.signed(payload, &signature) {
        return Err(Problem::OtherKey);
    }
    let document: SimpleSigning = parse("the signed document", payload)?;
    if document.critical.kind != SIMPLE_SIGNING_TYPE {
        return Err(Problem::Malformed(format!("the signed document is a {:?}", document.critical.kind)));
    }
    is_of(digest, document.critical.image.digest)
}

fn bundle(bytes: &[u8], signer: &Signer, digest: &Digest) -> Result<(), Problem> {
    let Bundle { dsse_envelope: Envelope { payload, payload_type, signatures } } = parse("the bundle", bytes)?;
    let payload = decode("the bundle's payload", &payload)?;
    let message = pre_authentication(&payload_type, &payload);
    let is_ours = signatures.iter().any(|signature| {
        STANDARD.decode(signature.sig.trim()).is_ok_and(|signature| signer.signed(&message, &signature))
    });
    if !is_ours {
        return Err(Problem::OtherKey);
    }
    if payload_type != IN_TOTO {
        return Err(Problem::Malformed(format!("the bundle holds {payload_type:?}")));
    }
    let statement: Statement = parse("the bundle's statement", &payload)?;
    if statement.predicate_type != SIGN_PREDICATE {
        return Err(Problem::Malformed(format!("the bundle states {:?}", statement.predicate_type)));
    }
    let mut subjects = statement.subject.into_iter().map(|subject| format!("sha256:{}", subject.digest.sha256));
    let Some(first) = subjects.next() else {
        return Err(Problem::Malformed("the bundle's statement is about nothing".to_owned()));
    };
    let found = std::iter::once(first.clone()).chain(subjects).find(|subject| subject == digest.as_str());
    is_of(digest, found.unwrap_or(first))
}

fn is_of(digest: &Digest, signed: String) -> Result<(), Problem> {
    if signed == digest.as_str() { Ok(()) } else { Err(Problem::OtherImage(signed)) }
}

/// What an envelope's signatures are made of: `DSSEv1`, and length and bytes of both parts.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, Problem> {
    STANDARD.decode(text.trim()).map_err(|error| Problem::Malformed(format!("{what} is not base64: {error}")))
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::Malformed(format!("{what} is unusable: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::signature::testing::Key;

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    #[test]
    fn every_kind_of_key_is_understood() {
        for key in Key::of_each_kind() {
            let signer = Signer::new("test", key.pem().as_bytes()).unwrap();
            for evidence in [key.simple(&digest("image")), key.bundle(&digest("image"))] {
                assert_eq!(judge(&evidence, &signer, &digest("image")), Ok(()), "{key:?}");
            }
        }
    }

    /// Made by OpenSSL, so that a mistake here and in `testing` alike does not go unnoticed.
    #[test]
    fn keys_and_signatures_of_another_program_are_understood() {
        for (pem, signature) in [
            (include_str!("testdata/ecdsa.pub"), include_str!("testdata/ecdsa.sig")),
            (include_str!("testdata/rsa.pub"), include_str!("testdata/rsa.sig")),
        ] {
            let signer = Signer::new("test", pem.as_bytes()).unwrap();
            let payload = include_bytes!("testdata/payload.json").to_vec();
            let evidence = Evidence::Simple { payload, signature: signature.to_owned() };
            assert_eq!(judge(&evidence, &signer, &digest("image")), Ok(()));
        }
        let signer = Signer::new("Secret a/b", include_bytes!("testdata/ecdsa.pub")).unwrap();
        assert_eq!(
            signer.to_string(),
            "the key sha256:1b41ba856fc07abd21fa4e6053fa302fd5e92ff03337d5f0af60ab95a79f81b9 of Secret a/b"
        );
    }

    #[test]
    fn what_is_no_key_says_so() {
        for (bad, expected) in [
            ("", "PEM"),
            ("ssh-ed25519 AAAA", "PEM"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "kind"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM"),
        ] {
            let error = Signer::new("x", bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad:?}: {error}");
        }
    }

    #[test]
    fn what_is_no_signature_of_the_image_says_why() {
        let (key, other) = (Key::new(), Key::new());
        let signer = Signer::new("test", key.pem().as_bytes()).unwrap();
        let is = |evidence: &Evidence| judge(evidence, &signer, &digest("image")).unwrap_err();
        for evidence in [other.simple(&digest("image")), other.bundle(&digest("image"))] {
            assert_eq!(is(&evidence), Problem::OtherKey);
        }
        for evidence in [key.simple(&digest("other")), key.bundle(&digest("other"))] {
            assert_eq!(is(&evidence), Problem::OtherImage(digest("other").to_string()));
        }
        // Tampered with: the digest was exchanged after signing.
        let Evidence::Simple { payload, signature } = key.simple(&digest("other")) else { panic!("of that form") };
        let text = String::from_utf8(payload.clone()).unwrap();
        let forged = text.replace(digest("other").as_str(), digest("image").as_str()).into_bytes();
        assert_ne!(forged, payload);
        assert_eq!(is(&Evidence::Simple { payload: forged, signature: signature.clone() }), Problem::OtherKey);
        // Malformed, each in its own way.
        for (evidence, expected) in [
            (Evidence::Simple { payload, signature: "%%".to_owned() }, "base64"),
            (key.sign_simple(b"{}"), "unusable"),
            (key.sign_simple(b"\xff\x00"), "unusable"),
            (key.sign_simple(br#"{"critical":{"type":"x","image":{"docker-manifest-digest":"y"}}}"#), "is a \"x\""),
            (Evidence::Bundle(b"{}".to_vec()), "unusable"),
            (key.sign_bundle("text/plain", b"{}"), "text/plain"),
            (key.sign_bundle(IN_TOTO, b"[]"), "unusable"),
            (key.sign_bundle(IN_TOTO, br#"{"subject":[],"predicateType":"slsa"}"#), "slsa"),
            (
                key.sign_bundle(
                    IN_TOTO,
                    format!("{{\"subject\":[],\"predicateType\":\"{SIGN_PREDICATE}\"}}").as_bytes(),
                ),
                "about nothing",
            ),
        ] {
            match is(&evidence) {
                Problem::Malformed(message) => assert!(message.contains(expected), "{message}"),
                other => panic!("{other:?} instead of {expected:?}"),
            }
        }
    }
}
