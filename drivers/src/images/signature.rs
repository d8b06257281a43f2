//! Signatures of images, as cosign makes them with a key pair: checked before anything of an image is stored.
//!
//! # Promises
//! - What is signed is the digest of what the reference points at, computed here from the bytes that came.
//! - Every wanted key must have signed it; other signatures, right or wrong, do not matter.
//! - A signature that cannot be found or checked is a failure: nothing is trusted for want of an answer.
//!
//! The mathematics are `rustls-webpki`'s. `payload` reads what was signed, `find` gets it.

mod find;
mod key;
mod payload;
#[cfg(test)]
pub(super) mod testing;

use std::collections::HashMap;

pub(super) use find::check;
pub use key::{KeyError, Signer};
#[cfg(test)]
pub(super) use payload::Evidence;

/// Start of an image record's label: the rest is a key's fingerprint, the value the digest that it signed.
const SIGNED_LABEL: &str = "nodelet.dev/signed-by.";

/// Labels of the record of an image that these keys signed.
pub(super) fn labels(signers: &[Signer], digest: &str) -> impl Iterator<Item = (String, String)> {
    signers.iter().map(move |signer| (format!("{SIGNED_LABEL}{}", signer.fingerprint()), digest.to_owned()))
}

/// Fingerprints of the keys that signed what the record points at now, in order.
pub(super) fn signed_by(labels: &HashMap<String, String>, digest: &str) -> Vec<String> {
    let of_this = labels.iter().filter(|(_, signed)| *signed == digest);
    let mut keys: Vec<String> =
        of_this.filter_map(|(key, _)| Some(key.strip_prefix(SIGNED_LABEL)?.to_owned())).collect();
    keys.sort();
    keys
}
