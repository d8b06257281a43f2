//! What is known of an anchor, and which of them have had their time.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio_util::task::AbortOnDropHandle;

use super::{Arc, CgroupPath, ContainerId, OnceCell, OwnedFd, Shims};

/// Set once an anchor is there; whoever needs it first makes it.
pub(in crate::runtime) type Ready = Arc<OnceCell<()>>;

/// An anchor: a container of ours that keeps a shim.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Anchor {
    pub(super) ready: Ready,
    condition: Condition,
    shim: Option<Watched>,
}

/// A shim's process, and who waits for its end.
#[derive(Debug)]
struct Watched {
    process: Arc<OwnedFd>,
    _watch: AbortOnDropHandle<()>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// Takes new containers.
    #[default]
    Open,
    /// Its shim has died.
    Dead,
    /// It is being removed.
    Closing,
    /// It could not be removed and takes no more containers.
    Left,
}

impl Anchor {
    pub(super) fn is_open(&self) -> bool {
        self.condition == Condition::Open && !self.has_ended()
    }

    fn is_dead(&self) -> bool {
        self.condition == Condition::Dead || self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.shim.as_ref().is_some_and(|shim| has_ended(&shim.process))
    }
}

/// The kernel says so at once, before anybody waiting for it has been woken.
fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0)
}

impl Shims {
    /// Whether there is an anchor of this name.
    pub(in crate::runtime) fn has_anchor(&self, name: &str) -> bool {
        self.lock().get(name).is_some_and(|shim| shim.anchor.is_some())
    }

    /// Takes over an anchor that an earlier agent made; to be followed by [`Shims::watch_anchor`] or
    /// [`Shims::bury_anchor`].
    pub(in crate::runtime) fn adopt_anchor(&self, name: &str) {
        let mut shims = self.lock();
        let anchor = shims.entry(name.to_owned()).or_default().anchor.get_or_insert_default();
        anchor.ready = Arc::new(OnceCell::new_with(Some(())));
    }

    /// Notes the process of an anchor's shim.
    pub(in crate::runtime) fn watch_anchor(&self, name: &str, process: Arc<OwnedFd>, watch: AbortOnDropHandle<()>) {
        if let Some(anchor) = self.lock().get_mut(name).and_then(|shim| shim.anchor.as_mut()) {
            anchor.shim = Some(Watched { process, _watch: watch });
        }
    }

    /// The process of an anchor's shim, where it is known.
    pub(in crate::runtime) fn anchor_process(&self, name: &str) -> Option<Arc<OwnedFd>> {
        let shims = self.lock();
        Some(shims.get(name)?.anchor.as_ref()?.shim.as_ref()?.process.clone())
    }

    /// Whether the shim of this anchor has died.
    pub(in crate::runtime) fn is_dead(&self, name: &str) -> bool {
        self.lock().get(name).and_then(|shim| shim.anchor.as_ref()).is_some_and(Anchor::is_dead)
    }

    /// The shim of an anchor has died: it takes no more containers. Those that it had.
    pub(in crate::runtime) fn bury_anchor(&self, name: &str) -> Vec<(ContainerId, CgroupPath)> {
        let mut shims = self.lock();
        let Some(shim) = shims.get_mut(name) else { return Vec::new() };
        if let Some(anchor) = shim.anchor.as_mut().filter(|anchor| anchor.condition != Condition::Closing) {
            anchor.condition = Condition::Dead;
        }
        let all = shim.sandboxes.values().flatten().filter(|(_, member)| member.ended.is_none());
        all.map(|(id, member)| (id.clone(), member.cgroup.clone())).collect()
    }

    /// Somebody found that the anchor is not there, having waited for `old`: the next one makes it again.
    pub(in crate::runtime) fn unmake_anchor(&self, name: &str, old: &Ready) -> Ready {
        let mut shims = self.lock();
        let Some(anchor) = shims.get_mut(name).and_then(|shim| shim.anchor.as_mut()) else { return old.clone() };
        if Arc::ptr_eq(&anchor.ready, old) {
            anchor.ready = Ready::default();
        }
        anchor.ready.clone()
    }

    /// Anchors to be removed: without members, and dead or more than are wanted. Each is to be followed by
    /// [`Shims::anchor_gone`].
    pub(in crate::runtime) fn spare_anchors(&self) -> Vec<String> {
        let mut shims = self.lock();
        let open = || shims.values().filter(|shim| shim.is_open(true));
        let sandboxes: usize = open().map(|shim| shim.sandboxes.len()).sum();
        let wanted = if self.are_shared() { sandboxes.div_ceil(self.pool) } else { 0 };
        let mut spare = open().count().saturating_sub(wanted);
        let mut names = Vec::new();
        for (name, shim) in shims.iter_mut().filter(|(_, shim)| shim.sandboxes.is_empty() && shim.creating == 0) {
            let Some(anchor) = shim.anchor.as_mut().filter(|anchor| anchor.condition != Condition::Closing) else {
                continue;
            };
            if anchor.is_open() {
                if spare == 0 {
                    continue;
                }
                spare -= 1;
            }
            anchor.condition = Condition::Closing;
            names.push(name.clone());
        }
        names
    }

    /// An anchor was removed, or could not be.
    pub(in crate::runtime) fn anchor_gone(&self, name: &str, is_gone: bool) {
        let mut shims = self.lock();
        if is_gone {
            shims.remove(name);
        } else if let Some(anchor) = shims.get_mut(name).and_then(|shim| shim.anchor.as_mut()) {
            anchor.condition = Condition::Left;
        }
    }
}
