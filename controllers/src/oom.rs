//! Events about processes that the kernel killed for want of memory: which one, what it had, whose limit was reached and
//! with which figures. Also when the container lives on.

use std::path::Path;
use std::sync::Arc;

use kube::runtime::events::EventType;
use nodelet_crds::{ResourceLimit, reasons};
use nodelet_drivers::ids::CgroupPath;
use nodelet_drivers::oom::{Constraint, KERNEL_LOG, KernelLog, Limited, OomKill};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use nodelet_drivers::room::size;

/// Tells of them until `stop`. Without the kernel's log there are only the ends of containers to tell of.
pub(crate) async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let mut log = match KernelLog::open(Path::new(KERNEL_LOG)) {
        Ok(log) => log,
        Err(error) => return tracing::info!("processes killed for memory are not named: {KERNEL_LOG}: {error}"),
    };
    loop {
        let kill = tokio::select! {
            // Both are cancel-safe.
            kill = log.next() => kill,
            () = stop.cancelled() => return,
        };
        match kill {
            Ok(kill) => tell(&ctx, &kill).await,
            Err(error) => return tracing::warn!("processes killed for memory are no longer named: {error}"),
        }
    }
}

async fn tell(ctx: &Context, kill: &OomKill) {
    let Ok(cgroup) = CgroupPath::new(kill.cgroup.clone()) else { return };
    let Some((sandbox, container)) = cgroup.as_container() else { return };
    let Some(workload) = ctx.sandboxes.owner(&sandbox).and_then(|uid| ctx.workload_by_uid(&uid)) else { return };
    let limit = shared_limit(ctx, &kill.constraint);
    let note = note(kill, container, limit.as_ref().and_then(|limit| limit.metadata.name.as_deref()));
    tracing::warn!(workload = %crate::controller::object_key(&*workload), "{note}");
    ctx.metrics.oom_kills.inc();
    ctx.event(&*workload, EventType::Warning, reasons::OOM_KILLED, note.clone()).await;
    // Whose limit is shared by several is told as well.
    if let Some(limit) = limit {
        let note = format!("Workload {}: {note}", crate::image_users::title(&workload));
        ctx.event(&*limit, EventType::Warning, reasons::OOM_KILLED, note).await;
    }
}

/// The ResourceLimit whose cgroup had reached its limit.
fn shared_limit(ctx: &Context, constraint: &Constraint) -> Option<Arc<ResourceLimit>> {
    let Constraint::Cgroup(limited) = constraint else { return None };
    let cgroup = CgroupPath::new(limited.cgroup.clone()).ok()?;
    ctx.stores.resource_limits.find(|limit: &ResourceLimit| {
        let metadata = &limit.metadata;
        let both = metadata.namespace.as_deref().zip(metadata.name.as_deref());
        both.is_some_and(|(namespace, name)| cgroup.is_limit(namespace, name))
    })
}

/// `shared` is the name of the ResourceLimit that was reached, if it was one.
fn note(kill: &OomKill, container: &str, shared: Option<&str>) -> String {
    let OomKill { pid, program, had, cgroup, constraint } = kill;
    let whose = match constraint {
        Constraint::Node => "the node had no memory left".to_owned(),
        Constraint::SomeCgroup => "a limit was reached, and the kernel had too many to report to say which".to_owned(),
        Constraint::Cgroup(Limited { cgroup: reached, used, limit }) => {
            let what = match shared {
                Some(name) => format!("ResourceLimit {name}"),
                None if reached == cgroup => "the container".to_owned(),
                None => format!("cgroup {reached}"),
            };
            format!("{what} used {} of {}", size(*used), size(*limit))
        }
    };
    format!("Killed process {pid} ({program}) of container {container} for memory: it had {}, {whose}", size(*had))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_is_named() {
        let own = "/nodelet/limit-default.tenants/web-1a2b/main.3";
        let reached =
            |cgroup: &str| Constraint::Cgroup(Limited { cgroup: cgroup.to_owned(), used: 24 << 20, limit: 24 << 20 });
        let told = |constraint: Constraint, shared: Option<&str>| {
            let kill =
                OomKill { pid: 7, program: "tail".to_owned(), had: 20 << 20, cgroup: own.to_owned(), constraint };
            note(&kill, "main", shared)
        };
        let begin = "Killed process 7 (tail) of container main for memory: it had 20.0 MiB, ";
        for (reached, shared, expected) in [
            (reached(own), None, "the container used 24.0 MiB of 24.0 MiB"),
            (
                reached("/nodelet/limit-default.tenants"),
                Some("tenants"),
                "ResourceLimit tenants used 24.0 MiB of 24.0 MiB",
            ),
            (reached("/nodelet"), None, "cgroup /nodelet used 24.0 MiB of 24.0 MiB"),
            (Constraint::Node, None, "the node had no memory left"),
            (Constraint::SomeCgroup, None, "a limit was reached, and the kernel had too many to report to say which"),
        ] {
            assert_eq!(told(reached, shared), format!("{begin}{expected}"));
        }
    }
}
