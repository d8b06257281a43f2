//! Networks of the node, the attachments of sandboxes to them, and published ports.
//!
//! # Contract
//! - Only links with our prefix (`nl` + hash) and the nftables tables `nodelet` are touched.
//! - Address assignments are recorded in `<runDir>/network/` before an address is used and freed after its link is
//!   gone; after a crash [`Networks::list_attachments`] shows what is left.
//! - All calls use netlink; no program is run, but for networks whose driver is that: CNI.
//!
//! # Shape
//! `book` holds the promises and decides, purely; `records` keeps them on disk; `node` owns the state and is extended
//! by `bridge`, `vxlan`, `vlan`, `parent`, `veth`, `cni` and `ports`, one kind of thing each; `link` and `nft` speak to the kernel over
//! `netlink`; `events` listens to it; `dns` answers names from what the book holds; `linux` is the handle that the rest of the program holds.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::ids::{IfName, NetworkKey, SandboxId};

mod bandwidth;
mod book;
mod bridge;
pub(crate) mod checks;
mod cni;
mod conntrack;
mod dns;
mod events;
pub mod fake;
mod ipam;
mod link;
mod linux;
mod mtu;
mod netlink;
mod netns;
mod nft;
mod node;
mod parent;
mod ports;
mod records;
mod sysctl;
mod veth;
mod vlan;
mod vxlan;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

pub use self::cni::{CniConfig, PLUGIN_DIRS, PluginError};
pub use self::dns::{DnsSpec, Names, Service};
pub use self::linux::LinuxNetworks;
pub use self::sysctl::ChangedSysctl;

/// The name of a network's bridge: `nl` and twelve hexadecimal digits, the same for the same key on every node.
pub fn bridge_name(key: &NetworkKey) -> IfName {
    book::bridge_name(key)
}

/// What went wrong in the network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink request was refused.
    #[error("{doing}")]
    Netlink {
        /// What we were doing, with the link or address.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or namespace could not be opened.
    #[error("{doing}")]
    Io {
        /// What we were doing, with the path.
        doing: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// No address is left.
    #[error("network {network}: no free address in {subnet}: {used} of {total} are used")]
    Exhausted {
        /// The network.
        network: NetworkKey,
        /// Its subnet.
        subnet: IpNet,
        /// Addresses in use.
        used: u64,
        /// Addresses that can be given.
        total: u64,
    },
    /// The address asked for belongs to somebody else, or is not in the network.
    #[error("network {network}: address {address} {reason}")]
    Address {
        /// The network.
        network: NetworkKey,
        /// The address.
        address: IpAddr,
        /// "is used by sandbox x", "is not in 10.0.0.0/24", …
        reason: String,
    },
    /// The subnet collides with something on the node.
    #[error("network {network}: subnet {subnet} overlaps {other}")]
    Overlap {
        /// The network.
        network: NetworkKey,
        /// Its subnet.
        subnet: IpNet,
        /// "route 10.0.0.0/8 on eth0", "network default/back".
        other: String,
    },
    /// A published port is taken.
    #[error("port {protocol:?} {host_ip}:{host_port} is taken by {owner}")]
    PortTaken {
        /// Address asked for; unspecified = all.
        host_ip: IpAddr,
        /// Port asked for.
        host_port: u16,
        /// Protocol.
        protocol: Protocol,
        /// "sandbox x" or "a listener on the node".
        owner: String,
    },
    /// A CNI plugin did not do what it was asked to.
    #[error("network {network}: plugin {plugin} failed to {command}")]
    Plugin {
        /// The network.
        network: NetworkKey,
        /// The plugin's program.
        plugin: String,
        /// `ADD`, `CHECK`, `DEL`, `GC` or `VERSION`.
        command: &'static str,
        /// Why.
        #[source]
        source: PluginError,
    },
    /// The network is not there.
    #[error("network {0} does not exist")]
    NotFound(NetworkKey),
    /// Not possible on this node or with this driver.
    #[error("network {network}: {message}")]
    Unsupported {
        /// The network.
        network: NetworkKey,
        /// What and what to do.
        message: String,
    },
}

/// What a network should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Its key; the bridge's name is derived from it, see [`bridge_name`].
    pub key: NetworkKey,
    /// How it is made.
    pub driver: Driver,
    /// Its subnets, at most one of each family. Never empty, since the caller has chosen one, but with plugins, which have
    /// their own.
    pub subnets: Vec<Subnet>,
    /// No way out of the node.
    pub internal: bool,
    /// No traffic to or from other networks of ours.
    pub isolated: bool,
    /// MTU of its links; `None`: 1500, or what its parent or the way to its peers has room for.
    pub mtu: Option<u32>,
    /// Name resolution.
    #[serde(default)]
    pub dns: DnsSpec,
    /// A VLAN that its bridge is joined to; for the driver `Bridge` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
}

/// A VLAN behind a link of the node, by 802.1Q.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan {
    /// The node's link.
    pub parent: IfName,
    /// Its number, from 1 to 4094.
    pub id: u16,
}

/// How a network is made. (`host` and `none` need no driver.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// A Linux bridge on the node with the gateway address on it.
    Bridge,
    /// Links with a hardware address of their own on a link of the node; the gateway is somebody else's.
    Macvlan {
        /// The node's link.
        parent: IfName,
        /// Who reaches whom.
        mode: MacvlanMode,
    },
    /// Links that share the hardware address of a link of the node.
    Ipvlan {
        /// The node's link.
        parent: IfName,
        /// How packets find their way.
        mode: IpvlanMode,
    },
    /// A bridge as `Bridge` makes it that reaches the bridges of other nodes through a VXLAN tunnel.
    Vxlan(Tunnel),
    /// By plugins and a configuration of the node.
    Cni(CniConfig),
}

/// A VXLAN tunnel to other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The VXLAN network number, the same on all nodes.
    pub vni: u32,
    /// The UDP port, the same on all nodes.
    pub port: u16,
    /// Addresses of the nodes, all of one family; this node's own are left out.
    pub peers: Vec<IpAddr>,
}

impl Driver {
    /// The node's link that it builds on.
    pub fn parent(&self) -> Option<&IfName> {
        match self {
            Driver::Bridge | Driver::Vxlan(_) | Driver::Cni(_) => None,
            Driver::Macvlan { parent, .. } | Driver::Ipvlan { parent, .. } => Some(parent),
        }
    }
}

impl Driver {
    /// Whether sandboxes are ports of a bridge of ours, on which the node has the gateway address.
    pub fn has_bridge(&self) -> bool {
        matches!(self, Driver::Bridge | Driver::Vxlan(_))
    }
}

/// Who reaches whom among the links of one parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MacvlanMode {
    /// They reach each other.
    Bridge,
    /// They do not.
    Private,
    /// They do if the switch behind the parent sends their packets back.
    Vepa,
    /// There is one, and it takes the parent over.
    Passthru,
}

/// How packets find their way among the links of one parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpvlanMode {
    /// By switching; the gateway is a neighbour.
    L2,
    /// By the parent's routes, without broadcasts.
    L3,
    /// As `L3`, and through the node's packet filter.
    L3s,
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet.
    pub cidr: IpNet,
    /// The node's own address in it; `None`: the first one.
    pub gateway: Option<IpAddr>,
    /// First and last address to give; `None`: all but network, broadcast and gateway.
    pub range: Option<(IpAddr, IpAddr)>,
    /// First and last address of parts that are not given unless asked for.
    #[serde(default)]
    pub exclude: Vec<(IpAddr, IpAddr)>,
}

/// A network that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// What it was made from.
    pub spec: NetworkSpec,
    /// The bridge, or the parent. With plugins nothing has this name.
    pub link: IfName,
    /// Bridge, addresses and rules are all in place. `false`: `ensure_network` repairs it.
    pub complete: bool,
}

/// A wish to attach a sandbox to a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// The network.
    pub network: NetworkKey,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Its pinned network namespace.
    pub netns: PathBuf,
    /// Name of the link inside: `eth0`, `eth1`, ….
    pub ifname: IfName,
    /// Wanted addresses; for a family without one, a free one is taken (the one it had before, if it is free).
    pub addresses: Vec<IpAddr>,
    /// Whether the default route goes through this network.
    pub default_route: bool,
    /// What its link should be like.
    #[serde(default)]
    pub link: LinkWish,
}

/// What the link of an attachment should be like; by default as the network's driver makes it, without limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkWish {
    /// The hardware address inside.
    pub mac: Option<[u8; 6]>,
    /// What the sandbox may receive, in bits per second. Changes take place on the link as it is.
    pub ingress: Option<u64>,
    /// What the sandbox may send, in bits per second. Changes take place on the link as it is.
    pub egress: Option<u64>,
    /// The sandbox may send by addresses that are not its own, as one that routes or bridges does. Changes take place on
    /// the link as it is; without a bridge of ours it has no meaning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub speaks_for_others: bool,
}

impl LinkWish {
    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }
}

/// A sandbox's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it was made from.
    pub spec: AttachSpec,
    /// Addresses inside.
    pub addresses: Vec<IpNet>,
    /// MAC address of the link inside, `aa:bb:…`; empty if it is its parent's.
    pub mac: String,
    /// The link on the node's side.
    pub host_link: IfName,
    /// Where it can ask for names; empty without a name server of ours.
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
    /// Both ends, the address and the bridge port are in place. `false`: `attach` repairs it in place.
    pub complete: bool,
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP; the kernel has it as a module that not every node loads.
    Sctp,
}

/// A port of the node that leads to a port of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address on the node; `None`: all of them.
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Address of the sandbox.
    pub target_ip: IpAddr,
    /// Port in the sandbox.
    pub target_port: u16,
}

/// The kernel's state of something of ours changed by another hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkEvent {
    /// A link of ours (bridge or host end), or a parent, changed or went.
    Link(IfName),
    /// Our nftables table changed or went.
    Table,
    /// Events may have been missed: look at everything.
    Resync,
}

/// The node's networks. See the module's contract.
#[async_trait]
pub trait Networks: Send + Sync {
    /// All networks of ours.
    async fn list_networks(&self) -> Result<Vec<Network>, Error>;

    /// Makes or repairs it: bridge, gateway addresses, forwarding, masquerading, isolation.
    async fn ensure_network(&self, spec: &NetworkSpec) -> Result<Network, Error>;

    /// Removes bridge and rules; the caller has detached everybody. Absence is success.
    async fn remove_network(&self, key: &NetworkKey) -> Result<(), Error>;

    /// A free private /24 (10.89.x.0/24 upwards) that overlaps no route of the node and no network of ours.
    async fn free_subnet(&self) -> Result<IpNet, Error>;

    /// All attachments on record, also those whose kernel objects are gone.
    async fn list_attachments(&self) -> Result<Vec<Attachment>, Error>;

    /// The attachments of one sandbox, checked against the kernel.
    async fn attachments_of(&self, sandbox: &SandboxId) -> Result<Vec<Attachment>, Error>;

    /// The same as they are on record, for who only asks for addresses: the kernel need not be asked, and `complete` says
    /// nothing.
    async fn recorded_of(&self, sandbox: &SandboxId) -> Result<Vec<Attachment>, Error> {
        self.attachments_of(sandbox).await
    }

    /// The published ports on record of one sandbox, and whether each is in the kernel's map.
    async fn ports_of(&self, sandbox: &SandboxId) -> Result<Vec<(PublishedPort, bool)>, Error>;

    /// Makes or repairs it; an existing one keeps its addresses.
    async fn attach(&self, spec: &AttachSpec) -> Result<Attachment, Error>;

    /// Removes one attachment and frees its addresses; absence is success.
    async fn detach(&self, sandbox: &SandboxId, network: &NetworkKey) -> Result<(), Error>;

    /// Removes all attachments and published ports of the sandbox; absence is success.
    async fn detach_all(&self, sandbox: &SandboxId) -> Result<(), Error>;

    /// Makes the sandbox's published ports exactly these; all or nothing.
    async fn set_ports(&self, sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error>;

    /// Makes the sandbox's published ports exactly these, and takes all ports of `from` away from these sandboxes: in
    /// one change of the kernel's rules, so that at no moment a port leads nowhere. Connections that are open keep
    /// their way. All or nothing, also through a crash.
    async fn take_ports(&self, from: &[SandboxId], sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error>;

    /// All published ports on record, with their owner, and whether they are in the kernel's map.
    async fn list_ports(&self) -> Result<Vec<(SandboxId, PublishedPort, bool)>, Error>;

    /// What sandboxes are called from now on, all at once; `None` forgets one. Kept until the sandbox is detached from
    /// all networks, also through a restart of the agent.
    async fn set_names(&self, changes: &[(SandboxId, Option<Names>)]) -> Result<(), Error>;

    /// What sandboxes are called.
    async fn list_names(&self) -> Result<std::collections::BTreeMap<SandboxId, Names>, Error>;

    /// Puts back everything of ours that should be in nftables and is not. Cheap when nothing is missing.
    async fn repair_rules(&self) -> Result<bool, Error>;

    /// Removes all rules of ours from nftables if no network is left, so that nothing stays behind.
    async fn remove_rules(&self) -> Result<(), Error>;

    /// Hints from the kernel from now on, beginning with [`NetworkEvent::Resync`].
    fn events(&self) -> mpsc::Receiver<NetworkEvent>;
}
