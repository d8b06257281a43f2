//! Shims that serve no container.
//!
//! They come from a client or a containerd that went away while a task was being made, and nothing else ever ends
//! them. While tasks are being made, a shim looks like one for a moment: until containerd has written down its address.
//! So one is ended then only if two looks, some time apart, found it like that; and one that still has a child, such as
//! an OCI runtime that finishes what it was told, is looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::containerd::Shared;
use super::exits::pidfd;

/// How long an orphan shim may take to end by itself after SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Shims that served no container when we looked last.
#[derive(Debug, Default)]
pub(super) struct Suspects(Mutex<BTreeSet<Shim>>);

/// A process, and the socket that it listens on: together they are no other shim's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shim {
    pid: u32,
    id: String,
    socket: PathBuf,
    has_children: bool,
}

/// Ends those there are. For when no task is being made.
pub(super) async fn end_at_once(shared: &Shared) -> Vec<String> {
    let namespace = shared.containerd.namespace();
    end(namespace, look(namespace).await).await
}

/// Ends those that the last call saw as well.
pub(super) async fn end_old(shared: &Shared) -> Vec<String> {
    let namespace = shared.containerd.namespace();
    let found = look(namespace).await;
    let seen =
        |shims: &BTreeSet<Shim>, shim: &Shim| shims.iter().any(|s| (s.pid, &s.socket) == (shim.pid, &shim.socket));
    let old = {
        let mut suspects = shared.suspects.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = found.iter().filter(|shim| seen(&suspects, shim)).cloned().collect();
        *suspects = found;
        old
    };
    end(namespace, old).await
}

/// Ends this one if it serves no container.
pub(super) async fn end_one(shared: &Shared, pid: u32) -> Vec<String> {
    let namespace = shared.containerd.namespace();
    let found = look(namespace).await;
    end(namespace, found.into_iter().filter(|shim| shim.pid == pid).collect()).await
}

/// Pids of the namespace's shims, by the container that each was started for. Blocking.
pub(super) fn running(namespace: &str) -> BTreeMap<String, u32> {
    let shims = processes().into_iter().filter(|pid| is_shim(*pid, namespace) && !is_brief(*pid));
    shims.filter_map(|pid| Some((argument(pid, b"-id")?, pid))).collect()
}

/// A shim's program started for one deed, which may be the start of a shim.
fn is_brief(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let last = command.split(|b| *b == 0).rfind(|argument| !argument.is_empty());
    matches!(last, Some(b"start" | b"delete"))
}

async fn look(namespace: &str) -> BTreeSet<Shim> {
    let namespace = namespace.to_owned();
    tokio::task::spawn_blocking(move || unserved(&namespace)).await.unwrap_or_default()
}

async fn end(namespace: &str, shims: BTreeSet<Shim>) -> Vec<String> {
    let mut freed = Vec::new();
    for shim in shims.into_iter().filter(|shim| !shim.has_children) {
        let Some(pid) = i32::try_from(shim.pid).ok().and_then(Pid::from_raw) else { continue };
        let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { continue };
        // The number may have been given to another process since we looked.
        if !is_shim(shim.pid, namespace) {
            continue;
        }
        let _ = kill_process(pid, Signal::TERM);
        if !pidfd::ends_within(&handle, ENDS_WITHIN).await {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = std::fs::remove_file(&shim.socket);
        freed.push(format!("shim {} (process {}), which served no container", shim.id, shim.pid));
    }
    freed
}

/// Shims of the namespace whose socket no bundle names. Blocking; reads little for a shim that serves the bundle it was
/// started in, which nearly all do.
fn unserved(namespace: &str) -> BTreeSet<Shim> {
    let pids = processes();
    // The working directory is the bundle of its first container, below that of all bundles of the namespace; the
    // kernel marks a directory that is gone.
    let mut by_bundle: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
    for pid in pids.iter().filter(|pid| is_shim(**pid, namespace)) {
        let Ok(bundle) = std::fs::read_link(format!("/proc/{pid}/cwd")) else { continue };
        by_bundle.entry(bundle).or_default().push(*pid);
    }
    by_bundle.retain(|bundle, shims| shims.len() > 1 || named_socket(bundle).is_none());
    let mut served: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut unserved = Vec::new();
    for (bundle, shims) in by_bundle {
        let Some(bundles) = bundle.parent() else { continue };
        let served = served.entry(bundles.to_owned()).or_insert_with(|| served_sockets(bundles));
        for pid in shims {
            let sockets = listening_sockets(pid);
            let Some(socket) = sockets.first().filter(|_| sockets.is_disjoint(served)) else { continue };
            unserved.push((pid, socket.clone()));
        }
    }
    if unserved.is_empty() {
        return BTreeSet::new();
    }
    // A log is written for as long as its shim lives, so a writer says nothing of containers.
    let parents: BTreeSet<u32> = pids.iter().filter(|pid| !is_logger(**pid)).filter_map(|pid| parent(*pid)).collect();
    let shim = |(pid, socket): (u32, PathBuf)| {
        let id = argument(pid, b"-id").unwrap_or_default();
        Shim { pid, id, socket, has_children: parents.contains(&pid) }
    };
    unserved.into_iter().map(shim).collect()
}

/// All processes that we see. Blocking.
pub(super) fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect()
}

pub(super) fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state parent …", and the name may hold anything.
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

pub(super) fn is_shim(pid: u32, namespace: &str) -> bool {
    // The beginning of the program's name, which is far cheaper to read than a command line.
    if std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| !name.starts_with(b"containerd-shim")) {
        return false;
    }
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = command.split(|b| *b == 0).next().unwrap_or_default();
    program.ends_with(b"containerd-shim-runc-v2") && argument(pid, b"-namespace").as_deref() == Some(namespace)
}

fn is_logger(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = command.split(|b| *b == 0).next().unwrap_or_default();
    program.rsplit(|b| *b == b'/').next().is_some_and(|name| name.starts_with(b"nodelet-logger"))
}

fn argument(pid: u32, name: &[u8]) -> Option<String> {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = command.split(|b| *b == 0);
    arguments.find(|argument| *argument == name)?;
    arguments.next().and_then(|value| String::from_utf8(value.to_vec()).ok())
}

/// Paths of the unix sockets that the process has open.
fn listening_sockets(pid: u32) -> BTreeSet<PathBuf> {
    let inodes: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let inode = fields.nth(6)?;
            let path = fields.next()?;
            (inodes.contains(inode) && path.starts_with('/')).then(|| PathBuf::from(path))
        })
        .collect()
}

/// Sockets that bundles name as their shim's.
fn served_sockets(bundles: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(bundles).into_iter().flatten().flatten();
    entries.filter_map(|bundle| named_socket(&bundle.path())).collect()
}

/// The socket that a bundle names as its shim's; newer daemons keep it in a JSON file.
fn named_socket(bundle: &Path) -> Option<PathBuf> {
    ["address", "bootstrap.json"].iter().find_map(|name| {
        let text = std::fs::read_to_string(bundle.join(name)).ok()?;
        let start = text.find("unix://")? + "unix://".len();
        let end = text[start..].find(['"', '\n']).map_or(text.len(), |length| start + length);
        Some(PathBuf::from(text[start..end].trim()))
    })
}
