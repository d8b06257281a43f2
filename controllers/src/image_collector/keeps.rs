//! Who on this node needs which image.

use std::collections::BTreeMap;

use nodelet_drivers::images::normalize;

use crate::context::Context;
use crate::image_users;

/// Normalised references and who needs them, in words for people.
pub(super) type Keeps = BTreeMap<String, String>;

/// Everything that is needed; `None` while the containers have not been read. The objects must have been.
pub(super) fn keeps(ctx: &Context) -> Option<Keeps> {
    let mut keeps = Keeps::new();
    let mut keep = |reference: &str, why: String| {
        // What is no reference names no image.
        if let Ok(reference) = normalize(reference) {
            keeps.entry(reference).or_insert(why);
        }
    };
    let here = &ctx.settings.node_labels;
    for image in ctx.stores.images.state() {
        let selected = image.spec.node_selector.as_ref().is_none_or(|selector| selector.matches(here));
        if selected && image.metadata.deletion_timestamp.is_none() {
            keep(&image.spec.reference, format!("Image {}", crate::controller::object_key(&*image)));
        }
    }
    for workload in ctx.stores.workloads.state() {
        let elsewhere = workload.spec.node_name.as_deref().is_some_and(|node| node != ctx.settings.node_name);
        if elsewhere || workload.metadata.deletion_timestamp.is_some() {
            continue;
        }
        for reference in image_users::references(&workload) {
            keep(reference, format!("Workload {}", image_users::title(&workload)));
        }
    }
    for (reference, file) in ctx.archives.images()? {
        keep(&reference, format!("archive {file}"));
    }
    for container in ctx.containers.all()?.iter() {
        keep(&container.image, format!("container {}", container.id));
    }
    for reference in ctx.pulls.running() {
        keep(&reference, "being pulled".to_owned());
    }
    Some(keeps)
}
