//! What containers there are and what they do: records joined with tasks, two calls however many there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::{
    Container as Record, GetRequest, ListContainersRequest, ListTasksRequest, WaitRequest,
};
use containerd_client::types::v1::{Process, Status as TaskStatus};

use super::anchors::{self, Member};
use super::containerd::Shared;
use super::exits::{Ended, OomFile};
use super::record::{self, Journal};
use super::{Container, Error, Exit, TaskState};
use crate::containerd::{absent_ok, is_not_found};
use crate::ids::ContainerId;

/// How long containerd may need to learn of an exit that the kernel told us.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// Exit status of what was ended by SIGKILL.
const KILLED: u32 = 137;

/// See [`super::Runtime::list`].
pub(super) async fn list(shared: &Shared) -> Result<Vec<Container>, Error> {
    let containerd = &shared.containerd;
    let settled = shared.shims.settled();
    // Records first: a task without a record is then one whose record was taken away, not one just made.
    let request = containerd.request(ListContainersRequest::default());
    let records = containerd.containers().list(request).await;
    let records = records.map_err(|status| containerd.error("listing containers", status))?.into_inner().containers;
    let mut tasks = tasks(shared).await?;
    let mut found = Vec::with_capacity(records.len());
    let mut anchors = BTreeSet::new();
    for record in records {
        let task = tasks.remove(&record.id);
        if let Some((id, journal)) = ours(&record) {
            found.push((id, record, journal, task));
        } else if record.labels.contains_key(anchors::LABEL) {
            anchors.insert(record.id);
        }
    }
    note_shims(shared, anchors, &found).await;
    // Whose record and task somebody has deleted, so that nobody will have it removed.
    let kept = |id: &ContainerId| tasks.contains_key(id.as_str()) || found.iter().any(|(found, ..)| found == id);
    for id in settled.iter().filter(|id| !kept(id)) {
        shared.shims.leave(id);
    }
    let mut containers = Vec::with_capacity(found.len());
    for (id, record, journal, task) in found {
        containers.push(join(shared, id, record, journal, task).await?);
    }
    // Only a task that we knew with a record: a foreign one is none of our business, and what was lost while no
    // agent ran is swept at start.
    for id in tasks.into_keys().filter_map(|id| ContainerId::new(id).ok()) {
        if let Some(lost) = without_record(shared, &id).await? {
            containers.push(lost);
        }
    }
    shared.known.replace(&containers);
    shared.exits.retain(&containers.iter().map(|c| c.id.clone()).collect::<BTreeSet<_>>());
    Ok(containers)
}

/// Notes which containers are in which shared shim.
async fn note_shims(
    shared: &Shared,
    anchors: BTreeSet<String>,
    found: &[(ContainerId, Record, Journal, Option<Process>)],
) {
    let mut members = Vec::new();
    for (id, record, journal, _) in found {
        let spec = &journal.spec;
        if !record.sandbox.is_empty() {
            members.push(Member { anchor: &record.sandbox, id, sandbox: &spec.sandbox, cgroup: &spec.cgroup });
        } else if shared.shims.are_shared() {
            let shim = journal.shim.as_deref().unwrap_or(spec.sandbox.as_str());
            shared.shims.note(shim, id, &spec.sandbox, &spec.cgroup);
        }
    }
    anchors::observe(shared, anchors, &members).await;
}

/// See [`super::Runtime::get`].
pub(super) async fn get(shared: &Shared, id: &ContainerId) -> Result<Option<Container>, Error> {
    let Some(record) = record::get(shared, id).await? else {
        if shared.known.get(id).is_some() && tasks(shared).await?.contains_key(id.as_str()) {
            return without_record(shared, id).await;
        }
        return Ok(None);
    };
    let Some((id, journal)) = ours(&record) else { return Ok(None) };
    let task = task(shared, &id).await?;
    let container = join(shared, id, record, journal, task).await?;
    shared.known.insert(&container);
    Ok(Some(container))
}

/// A container that has a task and, as it seems, no record. Perhaps it was made between two calls; else somebody
/// deleted the record, the task cannot be reached, and the id must be cleared before it is used again.
async fn without_record(shared: &Shared, id: &ContainerId) -> Result<Option<Container>, Error> {
    let Some(known) = shared.known.get(id) else { return Ok(None) };
    if let Some(record) = record::get(shared, id).await? {
        let Some((id, journal)) = ours(&record) else { return Ok(None) };
        let task = task(shared, &id).await?;
        return join(shared, id, record, journal, task).await.map(Some);
    }
    Ok(Some(Container { state: TaskState::Unknown, ..known }))
}

/// Containers as last seen.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<ContainerId, Container>>);

impl Known {
    fn get(&self, id: &ContainerId) -> Option<Container> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn insert(&self, container: &Container) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(container.id.clone(), container.clone());
    }

    fn replace(&self, containers: &[Container]) {
        let seen = containers.iter().map(|container| (container.id.clone(), container.clone())).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// To be called once nothing of it is left.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// All tasks of the namespace by id.
pub(super) async fn tasks(shared: &Shared) -> Result<HashMap<String, Process>, Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(ListTasksRequest::default());
    let answer = containerd.tasks().list(request).await;
    let tasks = answer.map_err(|status| containerd.error("listing tasks", status))?.into_inner().tasks;
    // `container_id` is empty in these answers.
    Ok(tasks.into_iter().map(|task| (task.id.clone(), task)).collect())
}

/// One task; `None` if there is none.
pub(super) async fn task(shared: &Shared, id: &ContainerId) -> Result<Option<Process>, Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(GetRequest { container_id: id.to_string(), ..Default::default() });
    let answer = absent_ok(containerd.tasks().get(request).await)
        .map_err(|status| containerd.error(format!("reading the task of container {id}"), status))?;
    Ok(answer.and_then(|answer| answer.process))
}

fn ours(record: &Record) -> Option<(ContainerId, Journal)> {
    Some((ContainerId::new(record.id.clone()).ok()?, Journal::of(record)?))
}

async fn join(
    shared: &Shared,
    id: ContainerId,
    record: Record,
    journal: Journal,
    task: Option<Process>,
) -> Result<Container, Error> {
    let state = match task {
        None => lost(shared, &id, &record.sandbox, &journal).await,
        Some(task) => state(shared, &id, &journal, task).await?,
    };
    Ok(Container {
        id,
        labels: record.labels.into_iter().collect(),
        image: record.image,
        created_at: record.created_at.as_ref().map_or(UNIX_EPOCH, time),
        limits: journal.spec.limits,
        state,
    })
}

/// There is no task. If we saw its process end, this is how. If its shim has died, it is as with any shim that dies, but
/// that we have to see to it.
async fn lost(shared: &Shared, id: &ContainerId, anchor: &str, journal: &Journal) -> TaskState {
    let ended = anchors::end_if_fallen(shared, anchor, id, &journal.spec.cgroup).await;
    let Ok(ended) = ended else { return TaskState::Unknown };
    match (shared.exits.ended(id, None), ended) {
        (Some(Ended { code: Some(code), at, oom_killed }), _) => TaskState::Exited(Exit { code, at, oom_killed }),
        (_, Some(at)) => TaskState::Exited(Exit { code: KILLED, at, oom_killed: false }),
        (_, None) => TaskState::Absent,
    }
}

async fn state(shared: &Shared, id: &ContainerId, journal: &Journal, task: Process) -> Result<TaskState, Error> {
    let pid = task.pid;
    let status = task.status();
    if status == TaskStatus::Stopped {
        let oom_killed = oom_killed(shared, id, journal);
        let at = task.exited_at.as_ref().map_or_else(SystemTime::now, time);
        return Ok(TaskState::Exited(Exit { code: task.exit_status, at, oom_killed }));
    }
    if status != TaskStatus::Unknown {
        shared.watch(id, pid, &journal.spec.cgroup).await;
        if let Some(ended) = shared.exits.ended(id, Some(pid)) {
            return settle(shared, id, journal, ended).await;
        }
    }
    Ok(match status {
        TaskStatus::Created => TaskState::Created { pid },
        TaskStatus::Running => TaskState::Running { pid },
        TaskStatus::Paused | TaskStatus::Pausing => TaskState::Paused { pid },
        TaskStatus::Unknown | TaskStatus::Stopped => TaskState::Unknown,
    })
}

/// The kernel says that the process has ended and containerd does not know yet.
async fn settle(shared: &Shared, id: &ContainerId, journal: &Journal, ended: Ended) -> Result<TaskState, Error> {
    if let Ended { code: Some(code), at, oom_killed } = ended {
        return Ok(TaskState::Exited(Exit { code, at, oom_killed }));
    }
    let containerd = &shared.containerd;
    let request = containerd.request(WaitRequest { container_id: id.to_string(), ..Default::default() });
    match tokio::time::timeout(SETTLES_WITHIN, containerd.tasks().wait(request)).await {
        Ok(Ok(answer)) => {
            let answer = answer.into_inner();
            let at = answer.exited_at.as_ref().map_or(ended.at, time);
            let oom_killed = ended.oom_killed || oom_killed(shared, id, journal);
            Ok(TaskState::Exited(Exit { code: answer.exit_status, at, oom_killed }))
        }
        Ok(Err(status)) if is_not_found(&status) => Ok(TaskState::Absent),
        Ok(Err(status)) => Err(containerd.error(format!("waiting for the exit of container {id}"), status)),
        // Its process is gone and containerd does not notice: whatever is left needs cleaning up.
        Err(_elapsed) => Ok(TaskState::Unknown),
    }
}

fn oom_killed(shared: &Shared, id: &ContainerId, journal: &Journal) -> bool {
    let seen = shared.exits.ended(id, None);
    // Of a scope everything was read when it ended.
    if let Some(ended) = seen.filter(|ended| ended.oom_killed || journal.spec.cgroup.is_systemd()) {
        return ended.oom_killed;
    }
    OomFile::of(&shared.node, &journal.spec.cgroup).happened()
}

/// containerd's time; its unset one is in the year 1.
pub(super) fn time(stamp: &prost_types::Timestamp) -> SystemTime {
    let seconds = u64::try_from(stamp.seconds).unwrap_or(0);
    let nanos = u32::try_from(stamp.nanos).unwrap_or(0).min(999_999_999);
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(UNIX_EPOCH)
}
