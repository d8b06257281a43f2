//! Transfers under way, in NodeState: at most once a second, however many bytes and images there are.

use std::sync::Arc;
use std::time::Duration;

use nodelet_crds::node_state::{ImagePhase, NodeImage, NodeTransfer};
use nodelet_drivers::images::normalize;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::node_state::image_phase;
use crate::pulls::Transfer;

/// Nobody reads faster, and flash wears out.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reports until `stop`.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    loop {
        tokio::select! {
            // Both cancel-safe: a lost wake-up is made up for by the next byte, or by the end of the transfer.
            () = ctx.pulls.progressed() => {}
            () = stop.cancelled() => return,
        }
        publish(&ctx);
        tokio::select! {
            // Cancel-safe: both only wait.
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn publish(ctx: &Context) {
    let transfers = ctx.pulls.transfers();
    ctx.report.set_transfers(transfers.iter().map(|(reference, transfer)| entry(reference, transfer)).collect());
    if transfers.is_empty() {
        return;
    }
    // An Image that has something already keeps saying so; what comes is among the transfers.
    ctx.report.update_images(|part| {
        let waits = !matches!(part.phase, ImagePhase::Ready | ImagePhase::Failed);
        let transfer = normalize(&part.reference).ok().and_then(|reference| transfers.get(&reference));
        match transfer {
            Some(transfer) if waits => Some(moving(part.clone(), transfer)),
            _ => None,
        }
    });
}

fn entry(reference: &str, transfer: &Transfer) -> NodeTransfer {
    NodeTransfer {
        reference: reference.to_owned(),
        phase: image_phase(transfer.progress.phase),
        bytes_done: transfer.progress.bytes_done,
        bytes_total: (transfer.progress.bytes_total > 0).then_some(transfer.progress.bytes_total),
        bytes_per_second: transfer.bytes_per_second,
        seconds_left: transfer.seconds_left,
    }
}

/// The part of an Image whose content is on its way.
pub fn moving(part: NodeImage, transfer: &Transfer) -> NodeImage {
    let NodeTransfer { phase, bytes_done, bytes_total, bytes_per_second, seconds_left, .. } = entry("", transfer);
    NodeImage { phase, bytes_done: Some(bytes_done), bytes_total, bytes_per_second, seconds_left, ..part }
}
