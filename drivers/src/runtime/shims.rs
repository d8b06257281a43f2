//! Which shim a container gets: its sandbox's own, or one that several sandboxes share.
//!
//! A shim is a process of a few megabytes, and containerd starts one for each value of an annotation in the OCI
//! specification. Sharing saves memory; what it costs is that a shim that dies takes all of its containers with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::record::Journal;
use crate::ids::{ContainerId, SandboxId};

/// Who is in which shim, by the shim's name.
#[derive(Debug)]
pub(super) struct Shims {
    /// Sandboxes to a shim; 0 gives each its own.
    pool: usize,
    /// Shims with room that are kept, so that creations, which a shim makes one after the other, go on side by side.
    open: usize,
    members: Mutex<HashMap<String, Members>>,
}

/// The containers in one shim, by sandbox.
type Members = BTreeMap<SandboxId, BTreeSet<ContainerId>>;

impl Shims {
    pub(super) fn new(pool: usize, open: usize) -> Self {
        Self { pool, open: open.max(1), members: Mutex::default() }
    }

    /// Notes where a container is that an earlier agent made.
    pub(super) fn note(&self, id: &ContainerId, journal: &Journal) {
        if self.pool == 0 {
            return;
        }
        let sandbox = &journal.spec.sandbox;
        let shim = journal.shim.clone().unwrap_or_else(|| sandbox.to_string());
        self.members().entry(shim).or_default().entry(sandbox.clone()).or_default().insert(id.clone());
    }

    /// The shim for a new container, which counts as its member from now on. May be called twice.
    pub(super) fn join(&self, id: &ContainerId, sandbox: &SandboxId) -> String {
        if self.pool == 0 {
            return sandbox.to_string();
        }
        let mut members = self.members();
        let shim = choose(&members, sandbox, self.pool, self.open);
        members.entry(shim.clone()).or_default().entry(sandbox.clone()).or_default().insert(id.clone());
        shim
    }

    /// Notes that a container is gone.
    pub(super) fn leave(&self, id: &ContainerId) {
        self.members().retain(|_, sandboxes| {
            sandboxes.retain(|_, containers| {
                containers.remove(id);
                !containers.is_empty()
            });
            !sandboxes.is_empty()
        });
    }

    fn members(&self) -> MutexGuard<'_, HashMap<String, Members>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Containers of a sandbox stay together; a new sandbox goes where there are fewest.
fn choose(shims: &HashMap<String, Members>, sandbox: &SandboxId, pool: usize, open: usize) -> String {
    if let Some((shim, _)) = shims.iter().find(|(_, members)| members.contains_key(sandbox)) {
        return shim.clone();
    }
    let with_room = || shims.iter().filter(|(_, members)| members.len() < pool);
    if with_room().count() >= open
        && let Some((shim, _)) = with_room().min_by_key(|(name, members)| (members.len(), *name))
    {
        return shim.clone();
    }
    // A shim is named after the sandbox that it was started for, which may have come back since.
    let name = sandbox.to_string();
    let free = |name: &String| !shims.contains_key(name);
    std::iter::once(name.clone()).chain((1..).map(|n| format!("{name}-{n}"))).find(free).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(n: usize) -> SandboxId {
        SandboxId::new(format!("s{n}")).unwrap()
    }

    fn container(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    #[test]
    fn without_a_pool_every_sandbox_has_its_shim() {
        let shims = Shims::new(0, 4);
        assert_eq!(shims.join(&container("a"), &sandbox(1)), "s1");
        assert_eq!(shims.join(&container("b"), &sandbox(2)), "s2");
    }

    #[test]
    fn shims_fill_side_by_side_and_never_beyond_the_pool() {
        let shims = Shims::new(5, 4);
        for n in 0..100 {
            shims.join(&container(&format!("c{n}")), &sandbox(n));
            let members = shims.members();
            assert!(members.values().all(|sandboxes| sandboxes.len() <= 5));
            assert!(members.len() <= (n + 1).div_ceil(5) + 3, "{} shims for {n}", members.len());
        }
    }

    #[test]
    fn a_sandbox_stays_together_and_gives_its_place_back() {
        let shims = Shims::new(2, 1);
        let first = shims.join(&container("a1"), &sandbox(1));
        assert_eq!(shims.join(&container("b"), &sandbox(2)), first);
        assert_eq!(shims.join(&container("a2"), &sandbox(1)), first, "full, but it is in there");
        assert_ne!(shims.join(&container("c"), &sandbox(3)), first);
        shims.leave(&container("a1"));
        shims.leave(&container("a2"));
        assert_eq!(shims.join(&container("d"), &sandbox(4)), first);
        assert_eq!(shims.join(&container("e"), &sandbox(5)), "s3");
        // Its name is in use, and everything is full.
        assert_eq!(shims.join(&container("f"), &sandbox(1)), "s1-1");
    }
}
