//! Names of sandboxes, answered on the gateway addresses of their networks.
//!
//! # What it promises
//! - A sandbox is told about the networks it is attached to, by whichever of their gateways it asks, and about no other;
//!   who is attached to none is refused.
//! - Names of ours are answered from memory, in the task that received the question: no upstream can delay them.
//! - A change is another [`View`] in the place of the old one. Sockets are opened when a network gets its name server and
//!   closed when it loses it; they survive the removal and repair of bridge and address.
//! - What the sandboxes are called is on record, so that the next agent answers before anybody told it anything.
//!
//! It has a thread of its own: neither netlink nor whatever the agent is busy with delays an answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Protocol;
use crate::ids::{NetworkKey, SandboxId};

mod answer;
mod listen;
mod serve;
mod upstream;
mod view;

#[cfg(test)]
pub(super) mod tests;

pub(super) use self::serve::NameServer;
pub(super) use self::view::View;

/// Name resolution of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// Answer names on the gateway addresses.
    pub enabled: bool,
    /// Who answers all other names; empty: the servers of the node's resolv.conf.
    pub upstreams: Vec<IpAddr>,
}

impl Default for DnsSpec {
    /// Off: a network that was recorded before names were answered had no name server.
    fn default() -> Self {
        Self { enabled: false, upstreams: Vec::new() }
    }
}

/// What a sandbox is called in its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Whose addresses they stand for, if not its own: the sandbox whose network it shares.
    pub at: Option<SandboxId>,
    /// In all its networks; the first one is what its addresses are called. Lower case, without a final dot.
    pub everywhere: Vec<String>,
    /// In one network each.
    pub aliases: BTreeMap<NetworkKey, Vec<String>>,
    /// Its named ports.
    pub services: Vec<Service>,
    /// `false`: the names are known and lead nowhere.
    pub ready: bool,
}

/// A named port: `_<name>._<protocol>.<sandbox's name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number in the sandbox.
    pub port: u16,
}
