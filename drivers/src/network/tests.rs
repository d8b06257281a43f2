//! The kernel-backed networks on real namespaces, with real packets. Needs root.

mod leaks;
mod packets;
mod parents;
mod promises;
mod repair;
mod speed;
pub(super) mod world;
