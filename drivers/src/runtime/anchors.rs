//! Shims that several sandboxes share and that containerd is told to use: one program less to start for each container
//! that is made or removed, and some megabytes less for each sandbox.
//!
//! An anchor is a container of our own with a sleeping program in it. Its task keeps a shim; containers whose record
//! names it as their sandbox are put into that shim. containerd (1.7 and later) does not end the shim with them, and
//! where it dies does not end those that were started since its own start: they run on, and it denies them.
//!
//! # Contract
//! - Of the shim's process we hold a pidfd. When it ends, or is found gone by [`observe`], the members' processes are
//!   ended by their cgroups, then their state is [`super::TaskState::Exited`] with 137; until then it is unknown.
//!   What containerd and the OCI runtime keep of them goes with [`super::Runtime::remove`], which fails while one of
//!   their processes is left. So nothing is started beside its predecessor.
//! - An anchor is recorded under [`LABEL`] before anything of it is made, and its record is removed last. An agent
//!   that finds one takes it over if its shim runs, and clears it away otherwise.
//! - An anchor goes when it has no members and is not needed, some time after its last member. One that has died goes
//!   after the last of its members has been removed, so that no member comes to be in a shim of the same name.
//! - If somebody kills the anchor's program, nothing happens; if somebody deletes its task, the next creation makes it
//!   again in the same shim.
//! - They are in no list of containers, and in a cgroup of their own below [`super::Options::cgroup_parent`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::containerd::Shared;
use super::exits::pidfd;
use super::shims::{Place, Ready};
use super::{Error, info, orphans};
use crate::ids::{CgroupPath, ContainerId, SandboxId};

mod fallen;
mod make;

pub(super) use fallen::{end_before_removal, end_if_fallen, forget_by_runtime};

/// Marks the record of an anchor.
pub(super) const LABEL: &str = "nodelet.dev/anchor";
/// The only runtime whose shims take members.
const HANDLER: &str = "io.containerd.runc.v2";
/// The first containerd that puts containers into another's shim.
const SINCE: (u32, u32) = (1, 7);
/// How long an anchor without members is kept: a container that is replaced needs it again at once.
const LINGERS: Duration = Duration::from_secs(1);

/// What the keeper is told.
#[derive(Debug)]
pub(super) enum Word {
    /// The shim of the anchor of this name has ended.
    Fell(String),
    /// There may be anchors that nobody needs.
    Idle,
}

/// Wakes the task that looks after anchors, [`keep`].
#[derive(Debug)]
pub(super) struct Keeper {
    words: mpsc::UnboundedSender<Word>,
    /// Whether the containerd of now knows how; forgotten with the connection.
    possible: Mutex<Option<bool>>,
}

impl Keeper {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Word>) {
        let (words, receiver) = mpsc::unbounded_channel();
        (Self { words, possible: Mutex::default() }, receiver)
    }

    /// Anchors may have become superfluous.
    pub(super) fn tidy_later(&self) {
        // Without a receiver the runtime is going away.
        let _ = self.words.send(Word::Idle);
    }

    fn possible(&self) -> std::sync::MutexGuard<'_, Option<bool>> {
        self.possible.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after anchors until the runtime is dropped.
pub(super) async fn keep(shared: Weak<Shared>, mut words: mpsc::UnboundedReceiver<Word>) {
    let mut tidy_at: Option<Instant> = None;
    loop {
        let due = async {
            match tidy_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Both are cancel-safe: nothing is taken from the channel by a receive that is dropped.
        let word = tokio::select! {
            word = words.recv() => match word {
                Some(word) => Some(word),
                None => return,
            },
            () = due => None,
        };
        let Some(shared) = shared.upgrade() else { return };
        // In tasks of their own: one that cannot be killed delays nobody, and none is cut short.
        let tasks = shared.tasks.clone();
        match word {
            Some(Word::Fell(name)) => {
                tasks.spawn(async move { fallen::fell(&shared, &name).await });
            }
            Some(Word::Idle) => tidy_at = tidy_at.or_else(|| Some(Instant::now() + LINGERS)),
            None => {
                tidy_at = None;
                tasks.spawn(async move { tidy(&shared).await });
            }
        }
    }
}

/// Whether new containers go to anchors.
pub(super) async fn are_possible(shared: &Shared) -> Result<bool, Error> {
    if !shared.shims.are_shared() || shared.options.handler != HANDLER || !shared.sees_processes().await {
        return Ok(false);
    }
    let known = *shared.anchors.possible();
    if let Some(known) = known {
        return Ok(known);
    }
    let possible = info::at_least(&info::version(shared).await?, SINCE);
    *shared.anchors.possible() = Some(possible);
    Ok(possible)
}

/// Makes the anchor of a place unless it is there.
pub(super) async fn ensure(shared: &Shared, place: &Place<'_>) -> Result<(), Error> {
    let Some(ready) = &place.ready else { return Ok(()) };
    ready.get_or_try_init(|| make::make(shared, &place.shim)).await.map(|_| ())
}

/// containerd says that there is no task of the name that a container's record has for its sandbox.
pub(super) fn is_missing(status: &Status) -> bool {
    // The words of 1.7, and of 2.0 and later.
    ["can't find sandbox", "can't find shim for sandbox"].iter().any(|text| status.message().contains(text))
}

/// Somebody has deleted the task of this place's anchor: makes it again, into the same shim, which lives on by its other
/// members. False if the shim has died.
pub(super) async fn remake(shared: &Shared, place: &Place<'_>) -> Result<bool, Error> {
    let Some(ready) = place.ready.as_ref().filter(|_| !shared.shims.is_dead(&place.shim)) else { return Ok(false) };
    let ready: Ready = shared.shims.unmake_anchor(&place.shim, ready);
    ready.get_or_try_init(|| make::make(shared, &place.shim)).await?;
    Ok(true)
}

/// A container that is in an anchor's shim, as its record says.
pub(super) struct Member<'a> {
    pub(super) anchor: &'a str,
    pub(super) id: &'a ContainerId,
    pub(super) sandbox: &'a SandboxId,
    pub(super) cgroup: &'a CgroupPath,
}

/// Takes over what is recorded: `names` of anchors, and containers in their shims. Where a shim is gone, what its
/// members left is ended before this returns.
pub(super) async fn observe(shared: &Shared, names: BTreeSet<String>, members: &[Member<'_>]) {
    // Another containerd may answer since we looked.
    *shared.anchors.possible() = None;
    let named = members.iter().map(|member| member.anchor.to_owned());
    let unknown: BTreeSet<String> = names.into_iter().chain(named).filter(|n| !shared.shims.has_anchor(n)).collect();
    if !unknown.is_empty() && shared.sees_processes().await {
        let namespace = shared.containerd.namespace().to_owned();
        let running = tokio::task::spawn_blocking(move || orphans::running(&namespace)).await.unwrap_or_default();
        for name in &unknown {
            adopt(shared, name, &running);
        }
    }
    // Of the others we know by ourselves who comes and goes; what was listed may have gone since.
    for member in members.iter().filter(|member| unknown.contains(member.anchor)) {
        shared.shims.note(member.anchor, member.id, member.sandbox, member.cgroup);
    }
    let dead: BTreeSet<&str> = members.iter().map(|m| m.anchor).filter(|name| shared.shims.is_dead(name)).collect();
    futures::future::join_all(dead.into_iter().map(|name| fallen::fell(shared, name))).await;
    if !shared.shims.is_anchorless() {
        shared.anchors.tidy_later();
    }
}

fn adopt(shared: &Shared, name: &str, running: &BTreeMap<String, u32>) {
    shared.shims.adopt_anchor(name);
    let watched = running.get(name).is_some_and(|pid| watch(shared, name, *pid));
    if !watched {
        shared.shims.bury_anchor(name);
    }
    tracing::info!(anchor = name, shim = ?running.get(name), "found an anchor of an earlier agent");
}

/// Watches the shim of an anchor; false if this is not it any more.
fn watch(shared: &Shared, name: &str, pid: u32) -> bool {
    let opened = i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let Some(Ok(process)) = opened else { return false };
    // The number may have been given to another process since we looked.
    if !orphans::is_shim(pid, shared.containerd.namespace()) {
        return false;
    }
    let process = Arc::new(process);
    let task = tokio::spawn(tell_of_end(process.clone(), name.to_owned(), shared.anchors.words.clone()));
    shared.shims.watch_anchor(name, process, AbortOnDropHandle::new(task));
    true
}

async fn tell_of_end(process: Arc<OwnedFd>, name: String, words: mpsc::UnboundedSender<Word>) {
    let Ok(process) = pidfd::watch(process) else { return };
    if process.readable().await.is_ok() {
        let _ = words.send(Word::Fell(name));
    }
}

/// Removes the anchors that nobody needs.
async fn tidy(shared: &Shared) {
    for name in shared.shims.spare_anchors() {
        let closed = make::close(shared, &name).await;
        match &closed {
            Ok(()) => tracing::debug!(anchor = name, "removed an anchor without members"),
            // Tried again at the next look at everything.
            Err(error) => tracing::warn!(anchor = name, error = %chain(error), "removing an anchor"),
        }
        shared.shims.anchor_gone(&name, closed.is_ok());
    }
}

/// An error with its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
