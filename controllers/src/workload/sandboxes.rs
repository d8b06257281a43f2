//! Which sandboxes each workload has on the node, those of earlier revisions included.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use nodelet_crds::labels;
use nodelet_drivers::ids::SandboxId;
use nodelet_drivers::sandbox::{Error, Sandboxes};

/// Sandboxes by workload uid. Filled once at start, kept current by the only writer, `apply`.
#[derive(Default)]
pub struct SandboxIndex {
    by_uid: Mutex<HashMap<String, BTreeSet<SandboxId>>>,
}

impl SandboxIndex {
    /// Reads all sandboxes of the node.
    pub async fn load(&self, sandboxes: &dyn Sandboxes) -> Result<(), Error> {
        for sandbox in sandboxes.list().await? {
            if let Some(uid) = sandbox.spec.labels.get(labels::WORKLOAD_UID) {
                self.remember(uid, &sandbox.spec.id);
            }
        }
        Ok(())
    }

    /// The workload has (or is about to have) this sandbox.
    pub fn remember(&self, uid: &str, id: &SandboxId) {
        self.lock().entry(uid.to_owned()).or_default().insert(id.clone());
    }

    /// The sandbox is gone.
    pub fn forget(&self, id: &SandboxId) {
        let mut all = self.lock();
        for ids in all.values_mut() {
            ids.remove(id);
        }
        all.retain(|_, ids| !ids.is_empty());
    }

    /// The sandboxes of one workload.
    pub fn of_workload(&self, uid: &str) -> BTreeSet<SandboxId> {
        self.lock().get(uid).cloned().unwrap_or_default()
    }

    /// The workload that a sandbox belongs to.
    pub fn owner(&self, id: &SandboxId) -> Option<String> {
        self.lock().iter().find(|(_, ids)| ids.contains(id)).map(|(uid, _)| uid.clone())
    }

    /// Every workload uid that has sandboxes.
    pub fn owners(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, BTreeSet<SandboxId>>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
