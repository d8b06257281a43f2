//! Everything that end-to-end tests, the demo and the benchmarks need to run nodelet for real: images, a registry, and
//! a node, that is a containerd and an agent in namespaces of their own.
//!
//! Nothing here touches a containerd, an agent, a network or a mount of the machine, and whatever a test leaves behind
//! ends with its namespaces.

use std::path::{Path, PathBuf};

pub mod containerd;
pub mod fault_proxy;
pub mod forward_proxy;
pub mod images;
pub mod namespaces;
pub mod node;
pub mod wait;

/// The directory for what is slow to make and may be thrown away: `.cache` of the source tree.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache")
}
