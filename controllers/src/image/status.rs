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
    let status = status(object, part.map_or(&[], std::slice::from_ref), reason);
    ctx.write_status(object, object.status.as_ref(), &status).await.map(|_| ())
}

/// The sum over the parts of all selected nodes; `reason` is the one of a single node.
fn status(object: &Image, parts: &[NodeImage], reason: &'static str) -> ImageStatus {
    let generation = object.metadata.generation;
    let count = |phase| parts.iter().filter(|part| part.phase == phase).count();
    let (all, ready, failed) = (parts.len(), count(ImagePhase::Ready), count(ImagePhase::Failed));
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.desired_nodes = number(all);
    status.ready_nodes = number(ready);
    status.failed_nodes = number(failed);
    // While nodes differ, the digest is that of most of them.
    let digests: Vec<&String> = parts.iter().filter_map(|part| part.digest.as_ref()).collect();
    let votes = |digest: &String| digests.iter().filter(|other| ***other == *digest).count();
    status.digest =
        digests.iter().max_by_key(|digest| (votes(digest), std::cmp::Reverse(**digest))).map(|d| (*d).clone());
    let problem = parts.iter().find(|part| part.phase == ImagePhase::Failed);
    let (is_ready, reason, message) = match (parts, problem) {
        ([], _) => (true, reason, "no node is selected".to_owned()),
        // Progress in bytes belongs into NodeState: here it would be a write a second.
        ([part], _) => (ready == 1, reason, part.message.clone()),
        (_, None) if ready == all => (true, reason, String::new()),
        (_, None) => (false, reasons::PARTIALLY_READY, format!("{ready} of {all} nodes have it")),
        (_, Some(part)) => (false, reasons::NODES_FAILED, format!("{failed} of {all} nodes failed: {}", part.message)),
    };
    set_condition(&mut status.conditions, condition_type::READY, is_ready, reason, message, generation, now());
    status
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_sum_of_the_nodes() {
        use ImagePhase::{Failed, Pulling, Ready};
        let part = |(phase, digest): &(ImagePhase, &str)| NodeImage {
            phase: *phase,
            digest: Some((*digest).to_owned()).filter(|digest| !digest.is_empty()),
            message: if *phase == Failed { "no route".to_owned() } else { String::new() },
            ..NodeImage::default()
        };
        for (parts, ready, reason, message, digest) in [
            (&[][..], "True", reasons::PULLED, "no node is selected", ""),
            (&[(Ready, "a")], "True", reasons::PULLED, "", "a"),
            (&[(Pulling, "")], "False", reasons::PULLED, "", ""),
            (&[(Failed, "a")], "False", reasons::PULLED, "no route", "a"),
            (&[(Ready, "a"), (Ready, "a")], "True", reasons::PULLED, "", "a"),
            (
                &[(Ready, "b"), (Pulling, "a"), (Ready, "b")],
                "False",
                reasons::PARTIALLY_READY,
                "2 of 3 nodes have it",
                "b",
            ),
            (&[(Ready, "a"), (Failed, "")], "False", reasons::NODES_FAILED, "1 of 2 nodes failed: no route", "a"),
        ] {
            let parts: Vec<NodeImage> = parts.iter().map(part).collect();
            let status = status(&Image::new("app", Default::default()), &parts, reasons::PULLED);
            let condition = &status.conditions[0];
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), (ready, reason), "{parts:?}");
            assert_eq!((condition.message.as_str(), status.digest.as_deref().unwrap_or_default()), (message, digest));
            assert_eq!(status.desired_nodes as usize, parts.len());
        }
    }
}
