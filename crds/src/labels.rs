//! The names under `nodelet.dev/` that nodelet puts on objects, containers and kernel things.
//!
//! They are a contract with the past: running containers carry them, and a newer agent adopts by them. A name is
//! never reused with another meaning.

/// The prefix of all of them.
pub const PREFIX: &str = "nodelet.dev/";

/// Finalizer on objects whose traces on the node must be gone before the object is.
pub const FINALIZER: &str = "nodelet.dev/cleanup";

/// Container label: uid of the Workload the container belongs to.
pub const WORKLOAD_UID: &str = "nodelet.dev/workload-uid";
/// Container label: namespace of the Workload.
pub const NAMESPACE: &str = "nodelet.dev/namespace";
/// Container label: name of the Workload.
pub const WORKLOAD: &str = "nodelet.dev/workload";
/// Container label: name of the container within its Workload.
pub const CONTAINER: &str = "nodelet.dev/container";
/// Container label: how often this container was created before, counted from 0; also the number of its log file.
pub const ATTEMPT: &str = "nodelet.dev/attempt";
/// Container label: hash of everything in the spec that makes this container what it is.
pub const SPEC_HASH: &str = "nodelet.dev/spec-hash";
/// Container label: `metadata.generation` of the Workload when the container was created.
pub const GENERATION: &str = "nodelet.dev/generation";
/// Container label: [`TYPE_INIT`] or [`TYPE_MAIN`].
pub const TYPE: &str = "nodelet.dev/type";
/// The sandbox that a container lives in.
pub const SANDBOX: &str = "nodelet.dev/sandbox";
/// Of a sidecar: its place among the init containers, in decimal.
pub const SIDECAR: &str = "nodelet.dev/sidecar";
/// The content of `onChange: Signal` volumes that a container was started with or told of, as a hash.
pub const HEARD: &str = "nodelet.dev/heard";
/// The preStop hook of a container, as JSON.
pub const PRE_STOP: &str = "nodelet.dev/pre-stop";
/// The probe that a container has by its image's HEALTHCHECK, as JSON.
pub const HEALTHCHECK: &str = "nodelet.dev/healthcheck";
/// How often the container was restarted before, in decimal.
pub const RESTARTS: &str = "nodelet.dev/restarts";
/// How often in a row its predecessors failed, in decimal; the back-off grows with it.
pub const FAILURES: &str = "nodelet.dev/failures";
/// What the containers' images were followed to when the sandbox was made, as JSON: a hash of the digest for each.
pub const FOLLOWS: &str = "nodelet.dev/follows";
/// Digest of the image that the container was made from.
pub const IMAGE_DIGEST: &str = "nodelet.dev/image-digest";

/// Digest of an image that the container mounts; the volume's name follows after a dot, see [`volume_image`].
pub const VOLUME_IMAGE: &str = "nodelet.dev/volume-image";

/// The label with the digest of the image that a volume shows.
pub fn volume_image(volume: &str) -> String {
    format!("{VOLUME_IMAGE}.{volume}")
}

/// The volume that a label made by [`volume_image`] is about.
pub fn volume_of_image(label: &str) -> Option<&str> {
    label.strip_prefix(VOLUME_IMAGE)?.strip_prefix('.')
}

/// Value of [`TYPE`]: runs to completion before the main containers start.
pub const TYPE_INIT: &str = "init";
/// Value of [`TYPE`]: one of `spec.containers`.
pub const TYPE_MAIN: &str = "main";

/// Label: the source an object was applied from, as the source's name. Objects of a vanished source are found by it.
pub const SOURCE: &str = "nodelet.dev/source";
/// Annotation: the file within the source that declares the object.
pub const SOURCE_FILE: &str = "nodelet.dev/source-file";
/// Annotation on a Workload: a point in time; when it changes, all containers are replaced once (`nodelet restart`).
pub const RESTARTED_AT: &str = "nodelet.dev/restarted-at";
/// Annotation on a Workload: `<revision>/<generation>`. While the object has this generation, the revision runs in its
/// place (`nodelet rollback`).
pub const ROLLBACK_TO: &str = "nodelet.dev/rollback-to";
/// Label on snapshots, leases and images in containerd: the object kept by them, as `kind/namespace/name`.
pub const OWNER: &str = "nodelet.dev/owner";
/// Label on images in containerd: never collected.
pub const PINNED: &str = "nodelet.dev/pinned";
/// Label on every object of the node in its v1 form: the node's name.
pub const NODE: &str = "nodelet.dev/node";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_bears_the_prefix() {
        for name in [
            FINALIZER,
            WORKLOAD_UID,
            NAMESPACE,
            WORKLOAD,
            CONTAINER,
            ATTEMPT,
            SPEC_HASH,
            GENERATION,
            TYPE,
            SANDBOX,
            SIDECAR,
            HEARD,
            PRE_STOP,
            HEALTHCHECK,
            RESTARTS,
            FAILURES,
            IMAGE_DIGEST,
            VOLUME_IMAGE,
            FOLLOWS,
            SOURCE,
            SOURCE_FILE,
            RESTARTED_AT,
            ROLLBACK_TO,
            OWNER,
            PINNED,
            NODE,
        ] {
            let local = name.strip_prefix(PREFIX).expect(name);
            assert!(
                !local.is_empty() && local.len() <= 63 && local.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            );
        }
    }
}
