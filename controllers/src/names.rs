//! The names that objects get on the node. All are derived, so that they are found again after a restart; labels,
//! not names, say what a thing belongs to.

use nodelet_drivers::ids::{CgroupPath, ContainerId, InvalidId, NetworkKey, SandboxId, VolumeKey};
use sha2::{Digest, Sha256};

/// The first `len` hexadecimal digits of the SHA-256 of `text`.
pub fn short_hash(text: &str, len: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mut hex = String::with_capacity(64);
    for byte in digest {
        use std::fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex.truncate(len);
    hex
}

/// At most `max` bytes of a Kubernetes name, without a separator at its end.
fn clip(name: &str, max: usize) -> &str {
    let end = name.len().min(max);
    // Kubernetes names are ASCII; `get` keeps this total for anything else.
    name.get(..end).unwrap_or("x").trim_end_matches(['.', '-'])
}

/// Runs of separators become one '-', as containerd's identifiers want it.
fn squeeze(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
    }
    let trimmed = out.trim_end_matches('-');
    if trimmed.is_empty() { "x".to_owned() } else { trimmed.to_owned() }
}

/// `<workload>-<8 of uid and revision>`: one sandbox per workload object and sandbox revision.
pub fn sandbox_id(workload: &str, uid: &str, revision: &str) -> Result<SandboxId, InvalidId> {
    SandboxId::new(format!("{}-{}", squeeze(clip(workload, 40)), short_hash(&format!("{uid} {revision}"), 10)))
}

/// Whether a sandbox can be one of a workload of this name, by its id alone.
pub fn is_sandbox_of(id: &SandboxId, workload: &str) -> bool {
    id.as_str().rsplit_once('-').is_some_and(|(name, _hash)| name == squeeze(clip(workload, 40)))
}

/// `<sandbox>-<container>-<attempt>`, at most 76 characters.
pub fn container_id(sandbox: &SandboxId, container: &str, attempt: u32) -> Result<ContainerId, InvalidId> {
    let tail = format!("{}-{attempt}", squeeze(clip(container, 24)));
    let head = if container.len() > 24 {
        // Two long names with the same beginning must not collide.
        short_hash(&format!("{sandbox} {container}"), 12)
    } else {
        sandbox.as_str().to_owned()
    };
    let id = format!("{head}-{tail}");
    if id.len() <= 76 {
        return ContainerId::new(id);
    }
    ContainerId::new(format!("{}-{tail}", short_hash(sandbox.as_str(), 12)))
}

/// `<namespace>/<name>`.
pub fn network_key(namespace: &str, name: &str) -> Result<NetworkKey, InvalidId> {
    NetworkKey::new(format!("{namespace}/{name}"))
}

/// `<namespace>/<name>`.
pub fn volume_key(namespace: &str, name: &str) -> Result<VolumeKey, InvalidId> {
    VolumeKey::new(format!("{namespace}/{name}"))
}

/// The cgroup of a container of a workload whose own cgroup is `workload`. A successor gets a path of its own, so
/// that it need not wait for its predecessor's removal.
pub fn container_cgroup(workload: &CgroupPath, container: &str, attempt: u32) -> Result<CgroupPath, InvalidId> {
    workload.container(&if attempt == 0 { container.to_owned() } else { format!("{container}.{attempt}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_kubernetes_name_gives_valid_ids(
            workload in "[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?",
            container in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
            attempt: u32,
        ) {
            let sandbox = sandbox_id(&workload, "3e1c1b5e-uid", "rev").unwrap();
            container_id(&sandbox, &container, attempt).unwrap();
        }
    }

    #[test]
    fn long_names_with_the_same_beginning_differ() {
        let sandbox = sandbox_id("w", "uid", "r").unwrap();
        let a = container_id(&sandbox, &format!("{}a", "x".repeat(40)), 0).unwrap();
        let b = container_id(&sandbox, &format!("{}b", "x".repeat(40)), 0).unwrap();
        assert_ne!(a, b);
    }
}
