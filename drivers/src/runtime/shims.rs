//! Which shim a container gets: its sandbox's own, or one that several sandboxes share.
//!
//! A shim is a process of a few megabytes. Sharing saves memory; what it costs is that a shim that dies takes all of its
//! containers with it, and that it makes them one after the other. There are two ways to share: by an annotation in the
//! OCI specification, for which containerd still starts a program for each container and which every version knows, and
//! by an [anchor](super::anchors), which containerd 1.7 and later is told to use. This module only knows who is where.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::OnceCell;

use crate::ids::{CgroupPath, ContainerId, SandboxId};

mod anchor;

pub(super) use anchor::{Anchor, Ready};

/// Who is in which shim, by the shim's name.
#[derive(Debug)]
pub(super) struct Shims {
    /// Sandboxes to a shim; 0 gives each its own.
    pool: usize,
    /// Shims with room that there should be, so that creations go on side by side.
    at_once: usize,
    /// Containers that are being made or wait for their turn.
    demand: AtomicUsize,
    shims: Mutex<HashMap<String, Shim>>,
}

#[derive(Debug, Default)]
struct Shim {
    sandboxes: BTreeMap<SandboxId, BTreeMap<ContainerId, Member>>,
    /// Containers that are being made in it.
    creating: usize,
    /// Without one it ends by itself with its last container.
    anchor: Option<Anchor>,
}

/// A container in a shared shim.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Where its processes are.
    pub(super) cgroup: CgroupPath,
    /// When its processes were ended because its shim had died.
    pub(super) ended: Option<SystemTime>,
}

/// A place in a shim. While it is held, a container is being made there.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// The shim's name.
    pub(super) shim: String,
    /// Set if the shim is an anchor's; see [`super::anchors::ensure`].
    pub(super) ready: Option<Ready>,
    shims: &'a Shims,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(shim) = self.shims.lock().get_mut(&self.shim) {
            shim.creating = shim.creating.saturating_sub(1);
        }
    }
}

/// Says that a container is going to be made, for as long as it is held.
#[derive(Debug)]
pub(super) struct Demand<'a>(&'a AtomicUsize);

impl Drop for Demand<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shims {
    pub(super) fn new(pool: usize, at_once: usize) -> Self {
        Self { pool, at_once: at_once.max(1), demand: AtomicUsize::new(0), shims: Mutex::default() }
    }

    /// Whether sandboxes share shims.
    pub(super) fn are_shared(&self) -> bool {
        self.pool > 0
    }

    /// To be called before the container's turn has come.
    pub(super) fn demand(&self) -> Demand<'_> {
        self.demand.fetch_add(1, Ordering::Relaxed);
        Demand(&self.demand)
    }

    /// Whether there is no anchor.
    pub(super) fn is_anchorless(&self) -> bool {
        self.lock().values().all(|shim| shim.anchor.is_none())
    }

    /// Notes where a container is that an earlier agent made.
    pub(super) fn note(&self, shim: &str, id: &ContainerId, sandbox: &SandboxId, cgroup: &CgroupPath) {
        let mut shims = self.lock();
        let shim = shims.entry(shim.to_owned()).or_default();
        shim.add(id, sandbox, cgroup);
    }

    /// The shim for a new container, which counts as its member from now on. May be called twice.
    pub(super) fn join(&self, id: &ContainerId, sandbox: &SandboxId, cgroup: &CgroupPath, anchored: bool) -> Place<'_> {
        if self.pool == 0 {
            return Place { shim: sandbox.to_string(), ready: None, shims: self };
        }
        let mut shims = self.lock();
        // Who is being made is in a shim already.
        let creating: usize = shims.values().map(|shim| shim.creating).sum();
        let waiting = self.demand.load(Ordering::Relaxed).saturating_sub(creating).max(1);
        let wish = Wish { sandbox, pool: self.pool, at_once: self.at_once.min(waiting), waiting, anchored };
        let name = wish.choose(&shims);
        let shim = shims.entry(name.clone()).or_default();
        if anchored && shim.anchor.is_none() {
            shim.anchor = Some(Anchor::default());
        }
        shim.add(id, sandbox, cgroup);
        shim.creating += 1;
        let ready = shim.anchor.as_ref().map(|anchor| anchor.ready.clone());
        Place { shim: name, ready, shims: self }
    }

    /// Notes that a container is gone. Whether an anchor lost its last member by that.
    pub(super) fn leave(&self, id: &ContainerId) -> bool {
        let mut emptied = false;
        self.lock().retain(|_, shim| {
            let before = shim.sandboxes.len();
            shim.sandboxes.retain(|_, containers| {
                containers.remove(id);
                !containers.is_empty()
            });
            emptied |= shim.anchor.is_some() && before > 0 && shim.sandboxes.is_empty();
            !shim.sandboxes.is_empty() || shim.anchor.is_some()
        });
        emptied
    }

    /// What is known of a container in a shared shim.
    pub(super) fn member(&self, id: &ContainerId) -> Option<Member> {
        self.lock().values().flat_map(|shim| shim.sandboxes.values()).find_map(|containers| containers.get(id)).cloned()
    }

    /// Notes that the processes of a member have been ended.
    pub(super) fn ended(&self, id: &ContainerId, at: SystemTime) {
        let mut shims = self.lock();
        let all = shims.values_mut().flat_map(|shim| shim.sandboxes.values_mut());
        for member in all.filter_map(|containers| containers.get_mut(id)) {
            member.ended.get_or_insert(at);
        }
    }

    /// Containers in anchors' shims of which none is being made.
    pub(super) fn settled(&self) -> Vec<ContainerId> {
        let shims = self.lock();
        let quiet = shims.values().filter(|shim| shim.anchor.is_some() && shim.creating == 0);
        quiet.flat_map(|shim| shim.sandboxes.values().flat_map(|containers| containers.keys().cloned())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Shim>> {
        self.shims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shim {
    fn add(&mut self, id: &ContainerId, sandbox: &SandboxId, cgroup: &CgroupPath) {
        let containers = self.sandboxes.entry(sandbox.clone()).or_default();
        containers.entry(id.clone()).or_insert_with(|| Member { cgroup: cgroup.clone(), ended: None });
    }

    /// Takes new containers of this kind.
    fn is_open(&self, anchored: bool) -> bool {
        match &self.anchor {
            Some(anchor) => anchored && anchor.is_open(),
            None => !anchored,
        }
    }
}

/// What a place is looked for with.
struct Wish<'a> {
    sandbox: &'a SandboxId,
    pool: usize,
    /// [`Shims::at_once`], but no more than wait.
    at_once: usize,
    /// Containers that wait for a place, this one included.
    waiting: usize,
    anchored: bool,
}

impl Wish<'_> {
    /// Containers of a sandbox stay together. A new sandbox goes where least is being made, so that creations go on
    /// side by side, and there where fewest are. There are as many shims as all who are and who wait need, and with
    /// room as many as [`Wish::at_once`].
    fn choose(&self, shims: &HashMap<String, Shim>) -> String {
        let open: Vec<(&String, &Shim)> = shims.iter().filter(|(_, shim)| shim.is_open(self.anchored)).collect();
        if let Some((name, _)) = open.iter().find(|(_, shim)| shim.sandboxes.contains_key(self.sandbox)) {
            return (*name).clone();
        }
        let sandboxes: usize = open.iter().map(|(_, shim)| shim.sandboxes.len()).sum();
        let wanted = (sandboxes + self.waiting).div_ceil(self.pool);
        let count = open.len();
        let with_room: Vec<_> = open.into_iter().filter(|(_, shim)| shim.sandboxes.len() < self.pool).collect();
        if count >= wanted
            && with_room.len() >= self.at_once
            && let Some((name, _)) =
                with_room.into_iter().min_by_key(|(name, shim)| (shim.creating, shim.sandboxes.len(), *name))
        {
            return name.clone();
        }
        if self.anchored {
            // Never again the name of one that died: its containers may still be on their way out.
            return format!("anchor-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        }
        // A shim is named after the sandbox that it was started for, which may have come back since.
        let name = self.sandbox.to_string();
        let free = |name: &String| !shims.contains_key(name);
        std::iter::once(name.clone()).chain((1..).map(|n| format!("{name}-{n}"))).find(free).unwrap_or(name)
    }
}

#[cfg(test)]
mod tests;
