//! Who on the node needs an image beside the Image object that is being deleted.

use kube::ResourceExt;
use nodelet_crds::image::Image;
use nodelet_crds::workload::Workload;
use nodelet_drivers::images::normalize;

use crate::context::Context;

/// The other users of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// Nobody.
    None,
    /// Only Workloads that are being deleted, or containers without a Workload.
    Leaving,
    /// Somebody who stays.
    Staying,
}

/// Looks at the Workloads, the other Images, the drop-in directory and the containers.
pub fn users(ctx: &Context, object: &Image) -> Users {
    let Ok(reference) = normalize(&object.spec.reference) else { return Users::None };
    let same = |other: &str| normalize(other).is_ok_and(|other| other == reference);
    let other_image = ctx.stores.images.state().iter().any(|other| {
        other.metadata.uid != object.metadata.uid
            && other.metadata.deletion_timestamp.is_none()
            && same(&other.spec.reference)
    });
    if other_image {
        return Users::Staying;
    }
    if ctx.archives.holds(&reference) {
        return Users::Staying;
    }
    let mut users = Users::None;
    for workload in ctx.stores.workloads.state().iter().filter(|w| references(w).any(same)) {
        if workload.metadata.deletion_timestamp.is_none() {
            return Users::Staying;
        }
        users = Users::Leaving;
    }
    match ctx.containers.all() {
        Some(containers) if containers.iter().any(|c| same(&c.image)) => Users::Leaving,
        // Not read yet: nothing is removed on partial knowledge.
        None => Users::Leaving,
        Some(_) => users,
    }
}

/// The image references of a Workload's containers and volumes.
pub fn references(workload: &Workload) -> impl Iterator<Item = &str> {
    let spec = &workload.spec;
    let containers = spec.init_containers.iter().chain(&spec.containers).map(|c| c.image.as_str());
    containers.chain(spec.volumes.iter().filter_map(|v| v.image.as_ref()).map(|image| image.reference.as_str()))
}

/// Whether the workload has a container or volume of that (not normalised) reference.
pub fn uses(workload: &Workload, reference: &str) -> bool {
    let Ok(wanted) = normalize(reference) else { return false };
    references(workload).any(|other| other == reference || normalize(other).is_ok_and(|other| other == wanted))
}

/// `<namespace>/<name>` of a workload.
pub fn title(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace().unwrap_or_default(), workload.name_any())
}
