//! Ends what a test left: processes of its shims, mounts, cgroups.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::ids::CgroupPath;

/// Kills the shims of a containerd namespace with everything below them, and removes their sockets.
pub(super) fn end_shims(namespace: &str, state_dir: &Path) {
    let sockets = shim_sockets(&state_dir.join("io.containerd.runtime.v2.task").join(namespace));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let doomed = shim_trees(namespace);
        if doomed.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in doomed {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        wait_a_moment();
    }
    for socket in sockets {
        let _ = std::fs::remove_file(socket);
    }
}

/// Pids of the namespace's shims and of all their descendants, children first.
fn shim_trees(namespace: &str) -> Vec<i32> {
    let mut parents = Vec::new();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // "pid (name) state parent …", and the name may hold anything.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (Some(state), Some(parent)) = (fields.next(), fields.next().and_then(|p| p.parse::<i32>().ok())) else {
            continue;
        };
        if state == "Z" {
            continue;
        }
        parents.push((pid, parent));
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = command.split(|b| *b == 0).collect();
        let is_shim = arguments.first().is_some_and(|a| a.ends_with(b"containerd-shim-runc-v2"));
        if is_shim && arguments.windows(2).any(|w| w[0] == b"-namespace" && w[1] == namespace.as_bytes()) {
            found.insert(pid);
        }
    }
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|p| p.0)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.into_iter().rev().collect()
}

fn shim_sockets(bundles: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(bundles)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|bundle| std::fs::read_to_string(bundle.path().join("address")).ok())
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .collect()
}

/// Unmounts everything below `dir`, deepest first.
pub(super) fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    for point in points.filter(|p| p.starts_with(dir)).collect::<Vec<_>>().into_iter().rev() {
        let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH);
    }
}

/// Removes a cgroup and all below it in every hierarchy; its processes must have been killed.
pub(super) fn remove_cgroup(path: &CgroupPath) {
    let root = Path::new("/sys/fs/cgroup");
    let mut roots = vec![root.to_owned()];
    roots.extend(std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()));
    for root in roots {
        let top = root.join(path.as_str().trim_start_matches('/'));
        let deadline = Instant::now() + Duration::from_secs(2);
        while top.exists() && !remove_tree(&top) && Instant::now() < deadline {
            wait_a_moment();
        }
    }
}

fn remove_tree(dir: &Path) -> bool {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    std::fs::remove_dir(dir).is_ok()
}

/// The kernel gives no event for "the last process left", and a destructor cannot await.
#[allow(clippy::disallowed_methods)]
fn wait_a_moment() {
    std::thread::sleep(Duration::from_millis(5));
}
