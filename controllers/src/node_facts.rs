//! The facts of the node in NodeState: versions, capacity, addresses.

use nodelet_crds::node_state::{CgroupMode, NodeStateStatus, NodeVersions};
use nodelet_drivers::cgroups::Version;

use crate::context::Context;

/// Fills in what is the node's own; what cannot be read keeps its old value.
pub async fn fill(ctx: &Context, status: &mut NodeStateStatus) {
    status.cgroup_mode = Some(match ctx.drivers.cgroups.version() {
        Version::V1 => CgroupMode::V1,
        Version::V2 => CgroupMode::V2,
    });
    let mut versions: NodeVersions = status.versions.clone().unwrap_or_default();
    versions.nodelet.clone_from(&ctx.settings.version);
    if let Ok(info) = ctx.drivers.runtime.info().await {
        versions.containerd = info.version;
        versions.runtime = info.oci_runtime;
    }
    status.versions = Some(versions);
}
