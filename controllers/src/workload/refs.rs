//! Which Workloads a change of another object concerns, and the other way round. Pure look-ups in the stores.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use nodelet_crds::common::condition_type;
use nodelet_crds::image::Image;
use nodelet_crds::network::Network;
use nodelet_crds::resource_limit::ResourceLimit;
use nodelet_crds::volume::Volume;
use nodelet_crds::workload::Workload;

use super::fit;
use crate::context::Context;
use crate::controller::object_ref;

fn workloads_where(
    ctx: &Context,
    namespace: Option<String>,
    uses: impl Fn(&Workload) -> bool,
) -> Vec<ObjectRef<Workload>> {
    let state = ctx.stores.workloads.state();
    state.iter().filter(|w| w.namespace() == namespace && uses(w)).map(|w| ObjectRef::from_obj(&**w)).collect()
}

/// Workloads that take variables or files from the ConfigMap.
pub fn users_of_config_map(ctx: &Context, object: &ConfigMap) -> Vec<ObjectRef<Workload>> {
    let name = object.name_any();
    workloads_where(ctx, object.namespace(), |w| config_maps(w).any(|n| n == name))
}

/// Workloads that take variables or files from the Secret.
pub fn users_of_secret(ctx: &Context, object: &Secret) -> Vec<ObjectRef<Workload>> {
    let name = object.name_any();
    workloads_where(ctx, object.namespace(), |w| secrets(w).any(|n| n == name))
}

/// Workloads that mount the Volume.
pub fn users_of_volume(ctx: &Context, object: &Volume) -> Vec<ObjectRef<Workload>> {
    let name = object.name_any();
    workloads_where(ctx, object.namespace(), |w| volumes(w).any(|n| n == name))
}

/// Workloads attached to the Network.
pub fn users_of_network(ctx: &Context, object: &Network) -> Vec<ObjectRef<Workload>> {
    let name = object.name_any();
    workloads_where(ctx, object.namespace(), |w| networks(w).any(|n| n == name))
}

/// Workloads under the ResourceLimit.
pub fn users_of_limit(ctx: &Context, object: &ResourceLimit) -> Vec<ObjectRef<Workload>> {
    let name = object.name_any();
    workloads_where(ctx, object.namespace(), |w| w.spec.resource_limit.as_deref() == Some(&name))
}

/// Workloads that wait for this one or for its place, or live in its network namespace.
pub fn dependents_of(ctx: &Context, object: &Workload) -> Vec<ObjectRef<Workload>> {
    let (name, namespace) = (object.name_any(), object.namespace());
    let waits_for_it =
        |w: &Workload| w.spec.depends_on.iter().any(|d| d.name == name) || w.spec.network_of.as_deref() == Some(&name);
    let workloads = ctx.stores.workloads.state();
    let woken = workloads.iter().filter(|w| {
        let other = w.metadata.uid != object.metadata.uid;
        (w.namespace() == namespace && waits_for_it(w)) || (other && fit::is_waiting(w))
    });
    woken.map(|w| ObjectRef::from_obj(&**w)).collect()
}

/// The Volumes that a Workload mounts: their use changed.
pub fn volumes_of(object: &Workload) -> Vec<ObjectRef<Volume>> {
    let namespace = object.namespace().unwrap_or_default();
    volumes(object).map(|name| object_ref(&namespace, name)).collect()
}

/// The ResourceLimit that a Workload is under: its members changed.
pub fn limit_of(object: &Workload) -> Option<ObjectRef<ResourceLimit>> {
    let namespace = object.namespace().unwrap_or_default();
    object.spec.resource_limit.as_deref().map(|name| object_ref(&namespace, name))
}

/// ResourceLimits directly below this one, and the one above it: their place, or their members, changed.
pub fn limits_around(ctx: &Arc<Context>, object: &ResourceLimit) -> Vec<ObjectRef<ResourceLimit>> {
    let (namespace, name) = (object.namespace(), object.name_any());
    let state = ctx.stores.resource_limits.state();
    let below = state.iter().filter(|l| l.namespace() == namespace && l.spec.parent.as_deref() == Some(&name));
    let mut around: Vec<_> = below.map(|limit| ObjectRef::from_obj(&**limit)).collect();
    around.extend(object.spec.parent.as_deref().map(|parent| object_ref(&namespace.unwrap_or_default(), parent)));
    around
}

/// Images that take credentials or a key from the Secret.
pub fn images_with_secret(ctx: &Context, object: &Secret) -> Vec<ObjectRef<Image>> {
    let (namespace, name) = (object.namespace(), object.name_any());
    let state = ctx.stores.images.state();
    state
        .iter()
        .filter(|i| i.namespace() == namespace)
        .filter(|i| {
            let signs = i.spec.verify.as_ref().is_some_and(|verify| verify.public_key.secret_name == name);
            signs || i.spec.pull_secrets.iter().any(|s| s.name == name)
        })
        .map(|i| ObjectRef::from_obj(&**i))
        .collect()
}

/// Workloads that wait for an image of which the Image may say where it comes from, or who must have signed it.
pub fn held_by_image(ctx: &Context, object: &Image) -> Vec<ObjectRef<Workload>> {
    let waits = |workload: &Workload| {
        let conditions = workload.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == condition_type::IMAGES_READY && c.status != "True")
    };
    let state = ctx.stores.workloads.state();
    state
        .iter()
        .filter(|w| waits(w) && crate::image_users::uses(w, &object.spec.reference))
        .map(|w| ObjectRef::from_obj(&**w))
        .collect()
}

/// Images being deleted that the Workload may have held back.
pub fn leaving_images_of(ctx: &Context, object: &Workload) -> Vec<ObjectRef<Image>> {
    let state = ctx.stores.images.state();
    state
        .iter()
        .filter(|i| i.metadata.deletion_timestamp.is_some() && crate::image_users::uses(object, &i.spec.reference))
        .map(|i| ObjectRef::from_obj(&**i))
        .collect()
}

/// Names of the Volumes that the workload mounts.
pub fn volumes(workload: &Workload) -> impl Iterator<Item = &str> {
    workload.spec.volumes.iter().filter_map(|v| v.volume.as_ref()).map(|v| v.name.as_str())
}

/// Names of the Networks that the workload attaches to; `default` when it names none.
pub fn networks(workload: &Workload) -> impl Iterator<Item = &str> {
    let declared = workload.spec.networks.iter().map(|n| n.name.as_str());
    let none = workload.spec.networks.is_empty() && workload.spec.network_of.is_none();
    declared.chain(none.then_some("default"))
}

/// Names of the ConfigMaps that the workload reads.
pub fn config_maps(workload: &Workload) -> impl Iterator<Item = &str> {
    let spec = &workload.spec;
    let containers = spec.init_containers.iter().chain(&spec.containers);
    let variables = containers.flat_map(|c| {
        let keys = c.env.iter().filter_map(|e| e.value_from.as_ref()?.config_map_key_ref.as_ref());
        let whole = c.env_from.iter().filter_map(|e| e.config_map_ref.as_ref());
        keys.map(|k| k.name.as_str()).chain(whole.map(|r| r.name.as_str()))
    });
    let files = spec.volumes.iter().filter_map(|v| v.config_map.as_ref()).map(|c| c.name.as_str());
    let projected = spec.volumes.iter().filter_map(|v| v.projected.as_ref()).flat_map(|p| &p.sources);
    variables.chain(files).chain(projected.filter_map(|s| s.config_map.as_ref()).map(|c| c.name.as_str()))
}

/// Names of the Secrets that the workload reads.
pub fn secrets(workload: &Workload) -> impl Iterator<Item = &str> {
    let spec = &workload.spec;
    let containers = spec.init_containers.iter().chain(&spec.containers);
    let variables = containers.flat_map(|c| {
        let keys = c.env.iter().filter_map(|e| e.value_from.as_ref()?.secret_key_ref.as_ref());
        let whole = c.env_from.iter().filter_map(|e| e.secret_ref.as_ref());
        keys.map(|k| k.name.as_str()).chain(whole.map(|r| r.name.as_str()))
    });
    let files = spec.volumes.iter().filter_map(|v| v.secret.as_ref()).map(|s| s.secret_name.as_str());
    let projected = spec.volumes.iter().filter_map(|v| v.projected.as_ref()).flat_map(|p| &p.sources);
    variables.chain(files).chain(projected.filter_map(|s| s.secret.as_ref()).map(|s| s.name.as_str()))
}
