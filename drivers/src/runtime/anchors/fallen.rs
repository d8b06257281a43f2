//! The end of a shared shim: its containers run on, and containerd denies them. Here they are ended.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::Container as Record;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::super::containerd::Shared;
use super::super::exits::pidfd;
use super::super::record::RuncOptions;
use super::super::{Error, orphans, remove};
use crate::cgroups::Version;
use crate::ids::{CgroupPath, ContainerId};

/// Where the OCI runtime keeps its state unless it is told otherwise.
const STATE: &str = "/run/containerd/runc";
/// How long the OCI runtime may take to forget a container that is gone.
const FORGETS_WITHIN: Duration = Duration::from_secs(20);
/// How long a first process may take to end that was killed; longer only in uninterruptible sleep.
const DIES_WITHIN: Duration = Duration::from_secs(10);

/// The shim of this anchor has died: ends what its members left, and tells of it.
pub(super) async fn fell(shared: &Shared, name: &str) {
    let members = shared.shims.bury_anchor(name);
    if members.is_empty() {
        shared.anchors.tidy_later();
        return;
    }
    tracing::warn!(anchor = name, members = members.len(), "a shared shim has died; ending its containers");
    let ends = members.iter().map(|(id, cgroup)| async move {
        if let Err(error) = end(shared, id, cgroup).await {
            tracing::warn!(container = %id, error = %super::chain(&error), "its shim has died");
        }
        shared.exits.tell(id);
    });
    futures::future::join_all(ends).await;
}

/// When the processes of a container were ended that is in the shim of this anchor; `None` while the shim serves it.
///
/// # Errors
/// One of its processes may still be there.
pub(in super::super) async fn end_if_fallen(
    shared: &Shared,
    anchor: &str,
    id: &ContainerId,
    cgroup: &CgroupPath,
) -> Result<Option<SystemTime>, Error> {
    if anchor.is_empty() || !shared.shims.is_dead(anchor) {
        return Ok(None);
    }
    match shared.shims.member(id).and_then(|member| member.ended) {
        Some(at) => Ok(Some(at)),
        None => end(shared, id, cgroup).await.map(Some),
    }
}

/// The same before the container is removed: looks again for what the shim may have started as it died.
pub(in super::super) async fn end_before_removal(
    shared: &Shared,
    anchor: &str,
    id: &ContainerId,
    cgroup: &CgroupPath,
) -> Result<Option<SystemTime>, Error> {
    match end_if_fallen(shared, anchor, id, cgroup).await? {
        Some(_) => end(shared, id, cgroup).await.map(Some),
        None => Ok(None),
    }
}

/// Ends everything of a container without help of its shim. May be called at any time and twice at once.
async fn end(shared: &Shared, id: &ContainerId, cgroup: &CgroupPath) -> Result<SystemTime, Error> {
    let namespace = shared.containerd.namespace().to_owned();
    let (root, version) = (shared.node.cgroup_root.clone(), shared.node.cgroup_version);
    let (name, path) = (id.to_string(), cgroup.clone());
    let _ = tokio::task::spawn_blocking(move || {
        // First who might put another process there.
        end_runtimes(&namespace, &name);
        thaw(&root, version, &path);
    })
    .await;
    let first = shared.exits.process(id);
    if let Some(process) = &first {
        // It may be in no cgroup of ours by now.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    remove::remove_cgroup(shared, id, cgroup.clone()).await?;
    if let Some(process) = first
        && !pidfd::ends_within(&process, DIES_WITHIN).await
    {
        let doing = format!("ending container {id}, whose shim has died");
        return Err(Error::Failed { doing, source: "its first process does not die".into() });
    }
    let at = SystemTime::now();
    shared.shims.ended(id, at);
    Ok(at)
}

/// What is frozen does not die, but by the kill of a whole cgroup of version 2. Blocking.
fn thaw(root: &Path, version: Version, cgroup: &CgroupPath) {
    if version == Version::V1 {
        let directory = root.join("freezer").join(cgroup.as_str().trim_start_matches('/'));
        // Where it is not frozen, or not there, all is well.
        let _ = std::fs::write(directory.join("freezer.state"), "THAWED");
    }
}

/// Ends OCI runtimes that the shim has started for this container, and that go on without it. Blocking.
fn end_runtimes(namespace: &str, id: &str) {
    for pid in orphans::processes() {
        let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        if !is_runtime_of(pid, namespace, id) {
            continue;
        }
        // The number may have been given to another process since we looked.
        let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        if is_runtime_of(pid, namespace, id) {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

/// An OCI runtime that brings processes into this container of this namespace.
fn is_runtime_of(pid: u32, namespace: &str, id: &str) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    is_runtime_command(&command, namespace, id)
}

fn is_runtime_command(command: &[u8], namespace: &str, id: &str) -> bool {
    let mut arguments = command.split(|b| *b == 0);
    let adds = |argument: &[u8]| matches!(argument, b"create" | b"start" | b"run" | b"exec");
    arguments.by_ref().any(|argument| argument == b"--root")
        && arguments.next().is_some_and(|root| root.rsplit(|b| *b == b'/').next() == Some(namespace.as_bytes()))
        && arguments.by_ref().any(adds)
        && arguments.any(|argument| argument == id.as_bytes())
}

/// Has the OCI runtime forget a container whose processes are gone, as the shim would have.
pub(in super::super) async fn forget_by_runtime(shared: &Shared, record: &Record) {
    let options = record.runtime.as_ref().and_then(|runtime| runtime.options.as_ref());
    let options = options.and_then(|any| <RuncOptions as prost::Message>::decode(any.value.as_slice()).ok());
    let root = options.as_ref().map(|options| options.root.as_str()).filter(|root| !root.is_empty()).unwrap_or(STATE);
    let root = Path::new(root).join(shared.containerd.namespace());
    let directory: PathBuf = root.join(&record.id);
    if !directory.exists() {
        return;
    }
    // Not the record's: that may be a stand-in which wants the container's input.
    let program = shared.options.oci_runtime.as_deref().unwrap_or("runc");
    let mut command = tokio::process::Command::new(program);
    command.arg("--root").arg(&root).args(["delete", "-f", &record.id]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(FORGETS_WITHIN, command.status()).await;
    if !matches!(ended, Ok(Ok(status)) if status.success()) {
        tracing::debug!(container = record.id, ?ended, program, "the OCI runtime does not forget a container");
    }
    // It may have been made by another runtime, or half.
    let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runtimes_of_the_container_are_ended() {
        let is = |command: &str| is_runtime_command(command.replace(' ', "\0").as_bytes(), "nodelet", "web-1");
        assert!(is("runc --root /run/containerd/runc/nodelet --log l create --bundle /b/web-1 --pid-file p web-1"));
        assert!(is("/usr/bin/crun --root /x/nodelet start web-1"));
        assert!(!is("runc --root /run/containerd/runc/nodelet start web-10"));
        assert!(!is("runc --root /run/containerd/runc/k8s.io start web-1"));
        assert!(!is("runc --root /run/containerd/runc/nodelet delete --force web-1"), "that one helps");
        assert!(!is("containerd-shim-runc-v2 -namespace nodelet -id web-1 -address a"));
        assert!(!is("grep web-1"));
    }
}
