//! Public keys.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use sha2::Digest as _;
use webpki::RawPublicKeyEntity;
use webpki::ring::{ECDSA_P256_SHA256, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519, RSA_PKCS1_2048_8192_SHA256};

/// What cosign signs with: P-256 when it makes the key itself, the others when it was given one.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] =
    &[ECDSA_P256_SHA256, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519, RSA_PKCS1_2048_8192_SHA256];

/// A key that an image must be signed with. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signer(Arc<Key>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    fingerprint: String,
    name: String,
    spki: Vec<u8>,
}

/// A public key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a PEM file with a public key.
    #[error("it is not a public key in PEM form (-----BEGIN PUBLIC KEY-----)")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// A key of a kind that no algorithm here is for.
    #[error(
        "the key is of a kind that is not supported: use ECDSA (P-256, P-384), Ed25519 or RSA of 2048 bits or more"
    )]
    Kind,
}

impl Signer {
    /// The key in `pem`, which people know as `name`: `Secret default/signer`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn new(name: impl Into<String>, pem: &[u8]) -> Result<Self, KeyError> {
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(KeyError::Pem)?;
        let key = RawPublicKeyEntity::try_from(&spki).map_err(|_| KeyError::Kind)?;
        // With a key of the right kind a wrong signature is wrong; with another kind it is not even looked at.
        let suits = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            let refused = key.verify_signature(**algorithm, b"", b"");
            matches!(refused, Err(webpki::Error::InvalidSignatureForPublicKey))
        };
        if ALGORITHMS.iter().find(suits).is_none() {
            return Err(KeyError::Kind);
        }
        let hash = sha2::Sha256::digest(&spki);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(Arc::new(Key { fingerprint: format!("sha256:{hex}"), name: name.into(), spki: spki.to_vec() })))
    }

    /// SHA-256 of the key in DER form, as `openssl pkey -pubin -outform der | sha256sum` prints it.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// Whether the key made this signature of `message`.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let spki = SubjectPublicKeyInfoDer::from(self.0.spki.as_slice());
        let Ok(key) = RawPublicKeyEntity::try_from(&spki) else { return false };
        ALGORITHMS.iter().any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key {} of {}", self.0.fingerprint, self.0.name)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.to_string()).finish()
    }
}
