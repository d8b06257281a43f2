//! What `emptyDir`s on disk hold, where no filesystem holds them to their `sizeLimit`: they are measured now and then, as
//! the kubelet does, and a Workload of which one holds more has to go, with the numbers. Its directories go with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nodelet_crds::reasons;
use nodelet_crds::workload::{EmptyDirMedium, Workload};
use tokio_util::sync::CancellationToken;

use super::Evicted;
use super::uses::size_of;
use crate::context::Context;
use crate::controller::object_key;
use nodelet_drivers::room::size;

/// As often as the kubelet looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After a look at large trees, a pause of so many times as long.
const REST: u32 = 20;

/// Measures until `stop`.
pub(crate) async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let mut pause = LOOK_EVERY;
    loop {
        tokio::select! {
            // Cancel-safe: both only wait.
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        let begun = Instant::now();
        for object in ctx.stores.workloads.state() {
            if let Some(message) = excess(&ctx, &object).await {
                tracing::warn!(workload = %object_key(&*object), "evicted: {message}");
                ctx.evictions.evict(&object, Evicted { reason: reasons::EVICTED, message });
                ctx.metrics.evictions.inc();
            }
        }
        pause = LOOK_EVERY.max(begun.elapsed().saturating_mul(REST));
    }
}

/// Which limit the Workload has passed, and by how much.
async fn excess(ctx: &Context, object: &Workload) -> Option<String> {
    let limits = limits(object);
    if limits.is_empty() || ctx.evictions.of(object).is_some() {
        return None;
    }
    let sandboxes = ctx.sandboxes.of_workload(object.metadata.uid.as_deref().unwrap_or_default());
    for sandbox in sandboxes {
        let directory = ctx.drivers.volumes.ephemeral_dir(&sandbox);
        for (name, limit) in &limits {
            let place = directory.join(name);
            let held = crate::blocking(move || size_of(&place)).await;
            if held > *limit {
                return Some(format!("volume {name} holds {}, its sizeLimit is {}", size(held), size(*limit)));
            }
        }
    }
    None
}

/// The volumes on disk that have a limit.
fn limits(object: &Workload) -> Vec<(String, u64)> {
    let volumes = object.spec.volumes.iter();
    volumes
        .filter_map(|volume| {
            let source = volume.empty_dir.as_ref().filter(|source| source.medium == EmptyDirMedium::Disk)?;
            Some((volume.name.clone(), source.size_limit.as_ref()?.bytes().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_or_without_a_limit_is_not_measured() {
        let object = serde_json::json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "w"},
            "spec": {"containers": [], "volumes": [
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "free", "emptyDir": {}},
                {"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "data", "volume": {"name": "data"}},
            ]},
        });
        let object: Workload = serde_json::from_value(object).unwrap();
        assert_eq!(limits(&object), [("cache".to_owned(), 1 << 20)]);
    }
}
