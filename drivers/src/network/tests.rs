//! The kernel-backed networks on real namespaces, with real packets. Needs root.

mod crowd;
mod firewalls;
mod gateways;
#[cfg(feature = "failpoints")]
mod kills;
mod leaks;
mod matrix;
mod packets;
mod parents;
mod promises;
mod repair;
mod sctp;
mod senders;
mod speed;
mod tunnels;
mod vlans;
mod wishes;
pub(super) mod world;
