//! The status of an Image: the sum over the nodes' parts.

use nodelet_crds::common::{condition_type, now, set_condition};
use nodelet_crds::image::{Image, ImageStatus};
use nodelet_crds::node_state::{ImagePhase, NodeImage};
use nodelet_crds::reasons;

use crate::context::Context;

/// The reason constant for a transfer in this phase.
pub fn reason_of(phase: ImagePhase) -> &'static str {
    match phase {
        ImagePhase::Resolving => reasons::RESOLVING,
        ImagePhase::Pulling => reasons::PULLING,
        ImagePhase::Unpacking => reasons::UNPACKING,
        ImagePhase::Ready => reasons::PULLED,
        ImagePhase::Failed => reasons::PULL_FAILED,
    }
}

/// Computes and, if it changed, writes the status; `part` is this node's, `None` when it is not selected.
pub async fn write(
    ctx: &Context,
    object: &Image,
    part: Option<&NodeImage>,
    reason: &'static str,
) -> Result<(), kube::Error> {
    let status = status(object, part, reason);
    ctx.write_status(object, object.status.as_ref(), &status).await.map(|_| ())
}

fn status(object: &Image, part: Option<&NodeImage>, reason: &'static str) -> ImageStatus {
    let generation = object.metadata.generation;
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.desired_nodes = u32::from(part.is_some());
    status.ready_nodes = u32::from(part.is_some_and(|p| p.phase == ImagePhase::Ready));
    status.failed_nodes = u32::from(part.is_some_and(|p| p.phase == ImagePhase::Failed));
    status.digest = part.and_then(|p| p.digest.clone());
    let (ready, message) = match part {
        None => (true, "no node is selected".to_owned()),
        Some(part) if part.phase == ImagePhase::Ready => (true, part.message.clone()),
        // Progress in bytes belongs into NodeState: here it would be a write a second.
        Some(part) => (false, part.message.clone()),
    };
    set_condition(&mut status.conditions, condition_type::READY, ready, reason, message, generation, now());
    status
}
