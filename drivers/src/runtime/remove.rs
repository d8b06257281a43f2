//! Clearing away a container, whatever state it is in: the reverse of its making, record last.

use std::time::Duration;

use containerd_client::services::v1::container::Runtime as Handler;
use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, DeleteContainerRequest, DeleteTaskRequest, ResumeTaskRequest,
    WaitRequest,
};
use containerd_client::types::v1::Status as TaskStatus;

use super::containerd::Shared;
use super::record::{self, Journal, SPEC_TYPE, json_any};
use super::{Error, Namespace, anchors, list, reaper, signal, stdin, users};
use crate::cgroups::Cgroups as _;
use crate::containerd::{absent_ok, is_already_exists, is_not_found};
use crate::failpoint::passed;
use crate::ids::{CgroupPath, ContainerId};

/// How long a killed process may take to disappear; longer only in uninterruptible sleep.
const DIES_WITHIN: Duration = Duration::from_secs(10);
/// Tries to delete a task that containerd still takes for running.
const TRIES: u32 = 20;

/// See [`super::Runtime::remove`].
pub(super) async fn remove(shared: &Shared, id: &ContainerId) -> Result<(), Error> {
    let record = record::get(shared, id).await?;
    if record.is_none() {
        if !list::tasks(shared).await?.contains_key(id.as_str()) {
            remove_snapshot(shared, id).await?;
            forget(shared, id);
            return Ok(());
        }
        // Without a record nobody can reach the task.
        readd_record(shared, id).await?;
    }
    let journal = record.as_ref().and_then(Journal::of);
    let ended = match (&record, &journal) {
        (Some(record), Some(journal)) => {
            anchors::end_before_removal(shared, &record.sandbox, id, &journal.spec.cgroup).await?
        }
        _ => None,
    };
    remove_task(shared, id).await?;
    passed("removing a task");
    if let Some(record) = record.as_ref().filter(|_| ended.is_some()) {
        anchors::forget_by_runtime(shared, record).await;
        passed("removing the state of a container whose shim died");
    }
    if let Some(journal) = journal {
        remove_cgroup(shared, id, journal.spec.cgroup.clone()).await?;
        passed("removing the cgroup of a container");
        if journal.spec.namespaces.user.is_some() {
            let (run_dir, spec) = (shared.options.run_dir.clone(), journal.spec.clone());
            let doing = format!("removing the mounts of container {id}");
            let removed = tokio::task::spawn_blocking(move || users::remove(&run_dir, &spec)).await;
            let removed = removed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            removed.map_err(|source| Error::Failed { doing, source: Box::new(source) })?;
            passed("removing the mounts of a container");
        }
        if journal.spec.namespaces.pid == Namespace::Sandbox {
            reaper::leave(shared, id, &journal.spec.sandbox).await?;
        }
    }
    remove_snapshot(shared, id).await?;
    passed("removing a root file system");
    remove_record(shared, id).await?;
    forget(shared, id);
    Ok(())
}

/// Removes the record of a container, the last that is left of it.
pub(super) async fn remove_record(shared: &Shared, id: &ContainerId) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(DeleteContainerRequest { id: id.to_string() });
    absent_ok(containerd.containers().delete(request).await)
        .map_err(|status| containerd.error(format!("removing the record of container {id}"), status))?;
    passed("removing the record of a container");
    Ok(())
}

fn forget(shared: &Shared, id: &ContainerId) {
    shared.exits.forget(id);
    shared.known.forget(id);
    if shared.shims.leave(id) {
        shared.anchors.tidy_later();
    }
    stdin::remove(&shared.options.run_dir, id);
}

/// Puts a bare record in the place of one that somebody deleted while its task was there.
async fn readd_record(shared: &Shared, id: &ContainerId) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let record = Record {
        id: id.to_string(),
        runtime: Some(Handler { name: shared.options.handler.clone(), options: None }),
        spec: Some(json_any(SPEC_TYPE, &serde_json::json!({"ociVersion": "1.0.2"}))?),
        snapshotter: containerd.snapshotter().to_owned(),
        snapshot_key: id.to_string(),
        ..Default::default()
    };
    let request = containerd.request(CreateContainerRequest { container: Some(record) });
    match containerd.containers().create(request).await {
        Err(status) if !is_already_exists(&status) => {
            Err(containerd.error(format!("reaching the task of container {id}"), status))
        }
        _ => Ok(()),
    }
}

pub(super) async fn remove_task(shared: &Shared, id: &ContainerId) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let doing = || format!("removing the task of container {id}");
    let Some(task) = list::task(shared, id).await? else {
        // containerd 2 keeps the bundle, and so the shim, of a task whose deletion was cut short, and lists it no more.
        let request = containerd.request(DeleteTaskRequest { container_id: id.to_string() });
        return match absent_ok(containerd.tasks().delete(request).await) {
            // Its shim has died: containerd is clearing away what was there.
            Err(status) if !status.message().contains("ttrpc: closed") => Err(containerd.error(doing(), status)),
            _ => Ok(()),
        };
    };
    if matches!(task.status(), TaskStatus::Paused | TaskStatus::Pausing) {
        // A frozen process does not die.
        let request = containerd.request(ResumeTaskRequest { container_id: id.to_string() });
        let _ = containerd.tasks().resume(request).await;
    }
    if task.status() != TaskStatus::Stopped {
        signal::kill_all(shared, id, libc::SIGKILL).await?;
        passed("killing a task to be removed");
        let request = containerd.request(WaitRequest { container_id: id.to_string(), ..Default::default() });
        match tokio::time::timeout(DIES_WITHIN, containerd.tasks().wait(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) if is_not_found(&status) => return Ok(()),
            Ok(Err(status)) => return Err(containerd.error(doing(), status)),
            Err(elapsed) => return Err(Error::Failed { doing: doing(), source: Box::new(elapsed) }),
        }
    }
    let mut tries = 0;
    loop {
        let request = containerd.request(DeleteTaskRequest { container_id: id.to_string() });
        match containerd.tasks().delete(request).await {
            Ok(_) => return Ok(()),
            Err(status) if is_not_found(&status) => return Ok(()),
            // The exit is on its way to containerd. (It has no code of its own for this.)
            Err(status) if status.message().contains("running process") && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(5) * tries).await;
            }
            Err(status) => {
                // A shim that died in between: the error is about the shim, the task is gone all the same.
                if list::task(shared, id).await?.is_none() {
                    return Ok(());
                }
                return Err(containerd.error(doing(), status));
            }
        }
    }
}

/// Removes what the OCI runtime leaves when it is killed in the middle of a creation, as happens with containerd: a
/// process that waits for it for ever, and the cgroup that the process is in. Nobody else knows of them.
pub(super) async fn remove_cgroup(shared: &Shared, id: &ContainerId, cgroup: CgroupPath) -> Result<(), Error> {
    // One at the top is not ours alone.
    let Some(above) = cgroup.above() else { return Ok(()) };
    let cgroups = shared.node.cgroups(above);
    let removed = tokio::task::spawn_blocking(move || cgroups.remove(&cgroup));
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Failed {
        doing: format!("removing the cgroup of container {id}"),
        source,
    };
    removed.await.map_err(|e| failed(Box::new(e)))?.map_err(|e| failed(Box::new(e)))
}

/// Removes the writable layer of a container.
pub(super) async fn remove_snapshot(shared: &Shared, id: &ContainerId) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let snapshotter = containerd.snapshotter().to_owned();
    let request = containerd.request(RemoveSnapshotRequest { snapshotter, key: id.to_string() });
    absent_ok(containerd.snapshots().remove(request).await)
        .map_err(|status| containerd.error(format!("removing the root file system of container {id}"), status))?;
    Ok(())
}
