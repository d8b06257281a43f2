//! Exits of containers, noticed by the kernel's own handle on a process (pidfd): some milliseconds before any event
//! of containerd, and also while it is away.
//!
//! # Contract
//! - Every running first process that create, start, list or get meets is watched once; its end is broadcast.
//! - What is known of an end is remembered until the container is removed: containerd 1.7 and 2 forget the status of
//!   a container that ends while they are away.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, PidfdFlags};
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use super::node::Node;
use crate::cgroups::Version;
use crate::ids::{CgroupPath, ContainerId};
use crate::oom;

pub(super) mod pidfd;

/// How long to wait for the shim to reap an ended process, after which the kernel tells its status.
const REAPED_WITHIN: Duration = Duration::from_secs(2);
/// Notices that a slow listener may be behind before it is told to look at everything.
const BACKLOG: usize = 1024;

/// The watched processes.
#[derive(Debug)]
pub(super) struct Exits {
    watched: Mutex<HashMap<ContainerId, Watched>>,
    notices: broadcast::Sender<ContainerId>,
}

#[derive(Debug)]
struct Watched {
    pid: u32,
    process: Option<Arc<OwnedFd>>,
    seen: watch::Receiver<Seen>,
    _task: Option<AbortOnDropHandle<()>>,
}

/// What is known of a watched process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// It runs.
    Running,
    /// It has ended.
    Ended(Ended),
}

/// What is known of an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// Exit status, where the kernel tells it to others than the parent (Linux 6.15).
    pub(super) code: Option<u32>,
    /// When we noticed.
    pub(super) at: SystemTime,
    /// The kernel killed a process of the container for memory.
    pub(super) oom_killed: bool,
}

impl Default for Exits {
    fn default() -> Self {
        Self { watched: Mutex::default(), notices: broadcast::Sender::new(BACKLOG) }
    }
}

impl Exits {
    /// Watches the first process of a container, unless it is watched already.
    pub(super) fn watch(&self, node: &Node, id: &ContainerId, pid: u32, cgroup: &CgroupPath) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if pid == 0 || watched.get(id).is_some_and(|w| w.pid == pid) {
            return;
        }
        let oom = OomFile::of(node, cgroup);
        let opened = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .map(|p| rustix::process::pidfd_open(p, PidfdFlags::empty()));
        match opened {
            Some(Ok(process)) => {
                let process = Arc::new(process);
                let (seen_sender, seen) = watch::channel(Seen::Running);
                let task = tokio::spawn(follow(process.clone(), id.clone(), oom, seen_sender, self.notices.clone()));
                let task = Some(AbortOnDropHandle::new(task));
                watched.insert(id.clone(), Watched { pid, process: Some(process), seen, _task: task });
            }
            // Gone before we looked.
            Some(Err(rustix::io::Errno::SRCH)) => {
                let ended = Ended { code: None, at: SystemTime::now(), oom_killed: oom.happened() };
                let (_, seen) = watch::channel(Seen::Ended(ended));
                watched.insert(id.clone(), Watched { pid, process: None, seen, _task: None });
                // No receivers is no error.
                let _ = self.notices.send(id.clone());
            }
            // A kernel without pidfds: the events of containerd have to do.
            Some(Err(_)) | None => {}
        }
    }

    /// The handle of the watched process, for signals.
    pub(super) fn process(&self, id: &ContainerId) -> Option<Arc<OwnedFd>> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.get(id).and_then(|w| w.process.clone())
    }

    /// What is known of the end of a container's process; with a pid, only if it was that one.
    pub(super) fn ended(&self, id: &ContainerId, pid: Option<u32>) -> Option<Ended> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.get(id).filter(|w| pid.is_none_or(|pid| pid == w.pid))?;
        match &*entry.seen.borrow() {
            Seen::Running => None,
            Seen::Ended(ended) => Some(ended.clone()),
        }
    }

    /// Tells of the end of a container whose first process need not be watched.
    pub(super) fn tell(&self, id: &ContainerId) {
        // No receivers is no error.
        let _ = self.notices.send(id.clone());
    }

    /// Forgets a container.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Forgets all containers but these.
    pub(super) fn retain(&self, ids: &BTreeSet<ContainerId>) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id));
    }

    /// Ids of containers whose process ended, from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<ContainerId> {
        self.notices.subscribe()
    }
}

async fn follow(
    process: Arc<OwnedFd>,
    id: ContainerId,
    oom: OomFile,
    seen: watch::Sender<Seen>,
    notices: broadcast::Sender<ContainerId>,
) {
    let Ok(process) = pidfd::watch(process) else { return };
    // Readable: the process is a zombie.
    let Ok(mut ready) = process.readable().await else { return };
    let mut ended =
        Ended { code: pidfd::exit_code(process.get_ref()), at: SystemTime::now(), oom_killed: oom.happened() };
    seen.send_replace(Seen::Ended(ended.clone()));
    let _ = notices.send(id);
    // Its status is told once the shim has reaped it, which wakes us again.
    let deadline = tokio::time::Instant::now() + REAPED_WITHIN;
    while ended.code.is_none() && pidfd::is_supported() && tokio::time::Instant::now() < deadline {
        ready.clear_ready();
        let wait = tokio::time::timeout(Duration::from_millis(100), process.readable());
        match wait.await {
            Ok(Ok(again)) => ready = again,
            Ok(Err(_)) => return,
            Err(_elapsed) => {
                let Ok(again) = process.readable().await else { return };
                ready = again;
            }
        }
        ended.code = pidfd::exit_code(process.get_ref());
    }
    seen.send_replace(Seen::Ended(ended));
}

/// Where the kernel counts processes of a cgroup that it killed for memory.
#[derive(Debug, Clone)]
pub(super) struct OomFile {
    file: PathBuf,
    /// A scope, which systemd removes as soon as nothing runs in it: what the kernel logged stays.
    scope: Option<CgroupPath>,
}

impl OomFile {
    pub(super) fn of(node: &Node, cgroup: &CgroupPath) -> Self {
        let relative = cgroup.as_str().trim_start_matches('/');
        let file = match node.cgroup_version {
            Version::V1 => node.cgroup_root.join("memory").join(relative).join("memory.oom_control"),
            Version::V2 => node.cgroup_root.join(relative).join("memory.events"),
        };
        Self { file, scope: Some(cgroup.clone()).filter(CgroupPath::is_systemd) }
    }

    /// Whether it happened; `false` also when the cgroup is gone and the kernel's log does not tell.
    pub(super) fn happened(&self) -> bool {
        match (std::fs::read_to_string(&self.file), &self.scope) {
            (Ok(text), _) => oom_kills(&text) > 0,
            (Err(_), Some(scope)) => oom::was_killed_in(Path::new(oom::KERNEL_LOG), scope.as_str()),
            (Err(_), None) => false,
        }
    }
}

/// Both versions have a line "oom_kill N".
fn oom_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}
