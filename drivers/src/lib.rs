//! Everything that touches the node: containerd, the kernel's namespaces, links, mounts and cgroups, registries,
//! log files. Knows no Kubernetes types.
//!
//! Each concern is a trait in `<concern>.rs` with its contract, the real implementation below `<concern>/`, an
//! in-memory fake (`fake.rs`) that is a real implementation of the same contract, and one conformance suite that
//! runs on both. Verbs: `ensure_x` creates or corrects and may be called twice, `remove_x` accepts absence,
//! `list_x` reads everything of ours and nothing else.

pub mod cgroups;
pub mod containerd;
pub mod failpoint;
pub mod host;
mod idmap;
pub mod ids;
pub mod images;
pub mod logs;
pub mod memory;
mod mounts;
pub mod network;
pub mod oom;
pub mod pressure;
pub mod room;
pub mod runtime;
pub mod sandbox;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod volumes;
