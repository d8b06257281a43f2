//! What crashes leave behind and no record names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::snapshots::ListSnapshotsRequest;
use rustix::process::{Pid, Signal, kill_process};

use super::containerd::Shared;
use super::create::SNAPSHOT_LABEL;
use super::exits::pidfd;
use super::{Error, exec, list, remove, stdin};
use crate::ids::ContainerId;

/// How long an orphan shim may take to end by itself after SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// See [`super::Runtime::sweep`].
pub(super) async fn sweep(owned: Arc<Shared>) -> Result<Vec<String>, Error> {
    let shared = &*owned;
    let containerd = &shared.containerd;
    // Before the records, so that the input of a container made meanwhile is not taken for one without.
    let inputs = stdin::list(&shared.options.run_dir);
    let request = containerd.request(ListContainersRequest::default());
    let records = containerd.containers().list(request).await;
    let records = records.map_err(|status| containerd.error("listing containers", status))?.into_inner().containers;
    let records: BTreeSet<String> = records.into_iter().map(|record| record.id).collect();
    let mut freed = Vec::new();
    for id in list::tasks(shared).await?.into_keys().filter(|id| !records.contains(id)) {
        let Ok(id) = ContainerId::new(id) else { continue };
        remove::remove(shared, &id).await?;
        freed.push(format!("task {id}, which had no container record"));
    }
    for id in snapshots(shared).await?.into_iter().filter(|id| !records.contains(id.as_str())) {
        remove::remove_snapshot(shared, &id).await?;
        freed.push(format!("snapshot {id}, which had no container record"));
    }
    for id in inputs.into_iter().filter(|id| !records.contains(id.as_str())) {
        stdin::remove(&shared.options.run_dir, &id);
        freed.push(format!("input of container {id}, which had no record"));
    }
    freed.extend(exec::clear_leftovers(owned.clone()).await);
    freed.extend(end_orphan_shims(containerd.namespace()).await);
    Ok(freed)
}

/// Ids of containers that have or had a snapshot of ours.
async fn snapshots(shared: &Shared) -> Result<Vec<ContainerId>, Error> {
    let containerd = &shared.containerd;
    let failed = |status| containerd.error("listing snapshots", status);
    let request = containerd.request(ListSnapshotsRequest {
        snapshotter: containerd.snapshotter().to_owned(),
        filters: vec![format!("labels.\"{SNAPSHOT_LABEL}\"")],
    });
    let mut stream = containerd.snapshots().list(request).await.map_err(failed)?.into_inner();
    let mut ids = Vec::new();
    while let Some(part) = stream.message().await.map_err(failed)? {
        ids.extend(part.info.into_iter().filter_map(|info| ContainerId::new(info.name).ok()));
    }
    Ok(ids)
}

/// Ends shims that serve no container. They come from clients that went away while a task was being made, and
/// nothing else ever ends them.
async fn end_orphan_shims(namespace: &str) -> Vec<String> {
    let wanted = namespace.to_owned();
    let orphans = tokio::task::spawn_blocking(move || orphan_shims(&wanted)).await.unwrap_or_default();
    let mut freed = Vec::new();
    for orphan in orphans {
        let Some(pid) = i32::try_from(orphan.pid).ok().and_then(Pid::from_raw) else { continue };
        let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { continue };
        // The number may have been given to another process since we looked.
        if !is_shim(orphan.pid, namespace) {
            continue;
        }
        let _ = kill_process(pid, Signal::TERM);
        if !ended(handle).await {
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Some(socket) = orphan.socket {
            let _ = std::fs::remove_file(socket);
        }
        freed.push(format!("shim {} (process {}), which served no container", orphan.id, orphan.pid));
    }
    freed
}

async fn ended(process: std::os::fd::OwnedFd) -> bool {
    let Ok(process) = pidfd::watch(std::sync::Arc::new(process)) else { return false };
    tokio::time::timeout(ENDS_WITHIN, process.readable()).await.is_ok()
}

struct Orphan {
    pid: u32,
    id: String,
    socket: Option<PathBuf>,
}

/// Shims of the namespace that have no child but writers of logs, and whose socket no bundle names. Blocking.
fn orphan_shims(namespace: &str) -> Vec<Orphan> {
    let pids: Vec<u32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    // A log is written for as long as its shim lives, so a writer says nothing of containers.
    let parents: BTreeSet<u32> = pids.iter().filter(|pid| !is_logger(**pid)).filter_map(|pid| parent(*pid)).collect();
    let shims = pids.iter().filter(|pid| !parents.contains(pid) && is_shim(**pid, namespace));
    shims.filter_map(|pid| orphan(*pid)).collect()
}

fn orphan(pid: u32) -> Option<Orphan> {
    let sockets = listening_sockets(pid);
    // The working directory is the bundle of its first container, below that of all bundles of the namespace; the
    // kernel marks a directory that is gone.
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let bundles = cwd.parent()?;
    let served = served_sockets(bundles);
    if sockets.is_empty() || sockets.iter().any(|socket| served.contains(socket)) {
        return None;
    }
    let id = argument(pid, b"-id").unwrap_or_default();
    Some(Orphan { pid, id, socket: sockets.into_iter().next() })
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state parent …", and the name may hold anything.
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn is_shim(pid: u32, namespace: &str) -> bool {
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
    let texts = entries.flat_map(|bundle| {
        // Newer daemons keep the address in a JSON file.
        ["address", "bootstrap.json"].map(|name| std::fs::read_to_string(bundle.path().join(name)).unwrap_or_default())
    });
    texts
        .filter_map(|text| {
            let start = text.find("unix://")? + "unix://".len();
            let end = text[start..].find(['"', '\n']).map_or(text.len(), |length| start + length);
            Some(PathBuf::from(text[start..end].trim()))
        })
        .collect()
}
