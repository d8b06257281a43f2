//! Which files of ephemeral volumes are on the node, so that they are written when they change and only then.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use nodelet_drivers::ids::{ContainerId, SandboxId};
use nodelet_drivers::volumes::Ephemeral;
use sha2::{Digest, Sha256};

/// Fingerprints of what was written, by sandbox and volume. Empty after a restart of the agent: everything is then
/// written once more, which changes nothing where nothing changed.
#[derive(Default)]
pub struct Written {
    prints: Mutex<HashMap<SandboxId, HashMap<String, [u8; 32]>>>,
    /// What containers were told by a signal. Forgotten with the agent: they are then told once more.
    heard: Mutex<HashMap<ContainerId, String>>,
}

impl Written {
    /// `volume` of `sandbox` was written with this fingerprint.
    pub fn remember(&self, sandbox: &SandboxId, volume: &str, print: [u8; 32]) {
        self.lock().entry(sandbox.clone()).or_default().insert(volume.to_owned(), print);
    }

    /// Whether `volume` of `sandbox` has this fingerprint.
    pub fn is_current(&self, sandbox: &SandboxId, volume: &str, print: &[u8; 32]) -> bool {
        self.lock().get(sandbox).and_then(|volumes| volumes.get(volume)) == Some(print)
    }

    /// The container was told of this content.
    pub fn tell(&self, id: &ContainerId, content: String) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), content);
    }

    /// The content that the container was told of last.
    pub fn heard(&self, id: &ContainerId) -> Option<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// The container is gone.
    pub fn forget_container(&self, id: &ContainerId) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The sandbox is gone.
    pub fn forget(&self, sandbox: &SandboxId) {
        self.lock().remove(sandbox);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, HashMap<String, [u8; 32]>>> {
        self.prints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fingerprint of what is wanted and can change while containers run.
pub fn fingerprint(kind: &Ephemeral) -> [u8; 32] {
    let mut hash = Sha256::new();
    if let Ephemeral::Disk { size_limit: Some(limit) } = kind {
        hash.update(limit.to_le_bytes());
    }
    if let Ephemeral::Files { files, in_memory, gid } = kind {
        hash.update([u8::from(*in_memory)]);
        hash.update(gid.unwrap_or(u32::MAX).to_le_bytes());
        for (path, file) in files {
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path.as_bytes());
            hash.update(file.mode.to_le_bytes());
            hash.update((file.data.len() as u64).to_le_bytes());
            hash.update(&file.data);
        }
    }
    hash.finalize().into()
}
