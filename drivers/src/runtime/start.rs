//! Starting a created task.

use containerd_client::services::v1::StartRequest;

use super::containerd::Shared;
use super::{Error, Started, TaskState, list, record};
use crate::containerd::is_not_found;
use crate::ids::ContainerId;

/// See [`super::Runtime::start`].
pub(super) async fn start(shared: &Shared, id: &ContainerId) -> Result<Started, Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(StartRequest { container_id: id.to_string(), ..Default::default() });
    let status = match containerd.tasks().start(request).await {
        // The watch began at creation: a process that dies at once is noticed, too.
        Ok(answer) => return Ok(Started { pid: answer.into_inner().pid }),
        Err(status) => status,
    };
    // Perhaps it was started before and the answer was lost.
    if let Ok(Some(container)) = list::get(shared, id).await
        && let TaskState::Running { pid } = container.state
    {
        return Ok(Started { pid });
    }
    if is_not_found(&status) {
        return Err(record::absent(id));
    }
    Err(super::create::bad_command(&status)
        .unwrap_or_else(|| containerd.error(format!("starting container {id}"), status)))
}
