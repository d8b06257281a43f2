//! What has been promised: networks, addresses and ports, and whether a new wish fits. Pure; the kernel-backed
//! implementation and the fake keep the same book.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cni::Plugged;
use super::{AttachSpec, Attachment, Driver, Error, LinkWish, Names, NetworkSpec, Protocol, PublishedPort, ipam};
use crate::ids::{IfName, NetworkKey, SandboxId};

/// An attachment as promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) spec: AttachSpec,
    pub(super) addresses: Vec<IpNet>,
    /// What plugins did, in a network that they make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) plugged: Option<Plugged>,
}

impl Place {
    /// The link on the node's side: stable for sandbox and network.
    pub(super) fn host_link(&self) -> IfName {
        host_link(&self.spec.sandbox, &self.spec.network)
    }

    /// The hardware address inside: stable for network and address, so that nobody's neighbour table goes stale, be it
    /// after a repair or when a successor gets the address (the kernel would ask the old one for up to a minute).
    pub(super) fn mac(&self) -> [u8; 6] {
        if let Some(mac) = self.spec.link.mac {
            return mac;
        }
        let told = self.plugged.as_ref().and_then(|plugged| plugged.mac(self.spec.ifname.as_str()));
        told.unwrap_or_else(|| wanted_mac(&self.spec, self.addresses.first().map(IpNet::addr)))
    }

    /// Whether the other one is the same but for limits and whom it may speak for, which can be changed in place.
    pub(super) fn is_same_link(&self, other: &Place) -> bool {
        let mut other = other.clone();
        other.spec.link = LinkWish { mac: other.spec.link.mac, ..self.spec.link.clone() };
        *self == other
    }

    fn attachment(&self, complete: bool, resolvers: Vec<IpAddr>) -> Attachment {
        Attachment {
            spec: self.spec.clone(),
            addresses: self.addresses.clone(),
            mac: mac_text(self.mac()),
            host_link: self.host_link(),
            resolvers,
            complete,
        }
    }
}

/// The hardware address for the link inside: that of the network address, if it has one, else the sandbox's.
pub(super) fn wanted_mac(spec: &AttachSpec, address: Option<IpAddr>) -> [u8; 6] {
    let who = address.map_or_else(|| spec.sandbox.as_str().to_owned(), |address| address.to_string());
    local_mac(&digest(&["mac", &who, spec.network.as_str()]))
}

/// As it is written, `02:ab:…`.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// A locally administered unicast address out of a digest.
fn local_mac(digest: &[u8; 32]) -> [u8; 6] {
    let mut mac = [0x02, 0, 0, 0, 0, 0];
    mac[1..].copy_from_slice(&digest[..5]);
    mac
}

/// The link-local address that the kernel makes from a hardware address.
pub(super) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let part = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, part(a ^ 2, b), part(c, 0xff), part(0xfe, d), part(e, f))
}

fn name(prefix: &str, digest: &[u8; 32]) -> IfName {
    let hex: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    IfName::new(format!("{prefix}{hex}")).expect("at most 15 letters and digits are a link name")
}

/// See [`super::bridge_name`].
pub(super) fn bridge_name(key: &NetworkKey) -> IfName {
    name("nl", &digest(&["bridge", key.as_str()]))
}

/// The bridge's own hardware address. Without it a bridge changes its address with its ports.
pub(super) fn bridge_mac(spec: &NetworkSpec) -> [u8; 6] {
    let marks = super::vxlan::gateway_marks(spec);
    let parts: Vec<&str> = ["bridge", spec.key.as_str()].into_iter().chain(marks.iter().map(String::as_str)).collect();
    local_mac(&digest(&parts))
}

/// The link to the peers of a vxlan network: `nlx` and a hash.
pub(super) fn tunnel_name(key: &NetworkKey) -> IfName {
    name("nlx", &digest(&["vxlan", key.as_str()]))
}

/// The link to the VLAN of a bridge network: `nlq` and a hash.
pub(super) fn vlan_name(key: &NetworkKey) -> IfName {
    name("nlq", &digest(&["vlan", key.as_str()]))
}

/// `nlv` and a hash; 'v' is no hexadecimal digit, so no bridge has that name.
pub(super) fn host_link(sandbox: &SandboxId, network: &NetworkKey) -> IfName {
    name("nlv", &digest(&["veth", sandbox.as_str(), network.as_str()]))
}

/// Where the search for a free address begins.
fn seed(spec: &AttachSpec) -> u64 {
    let digest = digest(&["address", spec.sandbox.as_str(), spec.network.as_str()]);
    u64::from_be_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
}

/// All promises of one node.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) networks: BTreeMap<NetworkKey, NetworkSpec>,
    pub(super) places: BTreeMap<(SandboxId, NetworkKey), Place>,
    pub(super) ports: BTreeMap<SandboxId, Vec<PublishedPort>>,
    pub(super) names: BTreeMap<SandboxId, Names>,
}

impl Book {
    /// Whether a network can be made or changed to this.
    pub(super) fn check_network(&self, spec: &NetworkSpec) -> Result<(), Error> {
        let NetworkSpec { key, driver, subnets, internal, isolated: _, mtu, dns, vlan } = spec;
        let unsupported = |message: String| Error::Unsupported { network: key.clone(), message };
        if let Driver::Cni(_) = driver {
            return if subnets.is_empty() && !internal && mtu.is_none() && !dns.enabled {
                Ok(())
            } else {
                Err(unsupported("subnets, MTU, way out and names are the plugins' own".to_owned()))
            };
        }
        if subnets.is_empty() || subnets.len() > 2 {
            return Err(unsupported("one subnet, or one of each address family, is needed".to_owned()));
        }
        if let [a, b] = subnets.as_slice()
            && a.cidr.addr().is_ipv4() == b.cidr.addr().is_ipv4()
        {
            return Err(unsupported("only one subnet of each address family is possible".to_owned()));
        }
        if !driver.has_bridge() && (*internal || dns.enabled) {
            return Err(unsupported("on a parent it cannot be internal, and has no name server".to_owned()));
        }
        let smallest = if subnets.iter().any(|s| s.cidr.addr().is_ipv6()) { 1280 } else { 576 };
        if let Some(mtu) = mtu.filter(|mtu| !(smallest..=65_535).contains(mtu)) {
            return Err(unsupported(format!("MTU {mtu} is not between {smallest} and 65535")));
        }
        if vlan.is_some() && *driver != Driver::Bridge {
            return Err(unsupported("only a bridge is joined to a VLAN".to_owned()));
        }
        let others = || self.networks.values().filter(|other| other.key != *key);
        super::vxlan::check(spec, others()).map_err(unsupported)?;
        super::vlan::check(spec, others()).map_err(unsupported)?;
        super::parent::check(spec, others()).map_err(unsupported)?;
        for subnet in subnets {
            ipam::check_subnet(subnet).map_err(unsupported)?;
            for other in self.networks.values().filter(|other| other.key != *key) {
                if other.subnets.iter().any(|o| ipam::overlap(&o.cidr, &subnet.cidr)) {
                    let other = format!("network {}", other.key);
                    return Err(Error::Overlap { network: key.clone(), subnet: subnet.cidr, other });
                }
            }
        }
        if let Some(place) = self.places_in(key).find(|place| !fits(place, spec)) {
            let sandbox = &place.spec.sandbox;
            return Err(unsupported(format!("sandbox {sandbox} still has an address that the new subnets exclude")));
        }
        Ok(())
    }

    /// Whether the attachment is a link on a parent, without an end on the node.
    pub(super) fn is_on_parent(&self, place: &Place) -> bool {
        self.networks.get(&place.spec.network).is_some_and(|network| network.driver.parent().is_some())
    }

    /// Whether the attachment has a port on a bridge of ours.
    pub(super) fn has_port(&self, place: &Place) -> bool {
        // Of a network that is gone nobody knows, so its end on the node is looked for.
        self.networks.get(&place.spec.network).is_none_or(|network| network.driver.has_bridge())
    }

    /// Whether what the sandbox sends there is checked.
    pub(super) fn is_guarded(&self, place: &Place) -> bool {
        self.networks.get(&place.spec.network).is_some_and(|network| network.driver.has_bridge())
    }

    /// An attachment as others see it.
    pub(super) fn attachment(&self, place: &Place, complete: bool) -> Attachment {
        let network = self.networks.get(&place.spec.network).filter(|network| network.dns.enabled);
        // One is enough: whichever is asked knows all networks of the sandbox.
        let resolvers = network.and_then(|network| network.subnets.iter().map(ipam::gateway).min());
        let shares = |network: &NetworkSpec| matches!(network.driver, Driver::Ipvlan { .. });
        let told = place.plugged.as_ref().map(Plugged::resolvers).unwrap_or_default();
        let mut attachment = place.attachment(complete, resolvers.into_iter().chain(told).collect());
        if self.networks.get(&place.spec.network).is_some_and(shares) {
            attachment.mac.clear();
        }
        attachment
    }

    /// Keeps or forgets what sandboxes are called; returns whose names changed.
    pub(super) fn set_names(&mut self, changes: &[(SandboxId, Option<Names>)]) -> Vec<SandboxId> {
        let mut changed = Vec::new();
        for (sandbox, names) in changes {
            let before = match names {
                Some(names) => self.names.insert(sandbox.clone(), names.clone()),
                None => self.names.remove(sandbox),
            };
            if before != *names {
                changed.push(sandbox.clone());
            }
        }
        changed
    }

    /// The attachments to a network.
    pub(super) fn places_in<'a>(&'a self, key: &'a NetworkKey) -> impl Iterator<Item = &'a Place> {
        self.places.values().filter(move |place| place.spec.network == *key)
    }

    /// The attachments of a sandbox.
    pub(super) fn places_of<'a>(&'a self, sandbox: &'a SandboxId) -> impl Iterator<Item = &'a Place> {
        self.places.values().filter(move |place| place.spec.sandbox == *sandbox)
    }

    /// The place a sandbox gets: the one it has, as far as it agrees with the wish, else new addresses.
    pub(super) fn find_place(&self, spec: &AttachSpec) -> Result<Place, Error> {
        let network = self.networks.get(&spec.network).ok_or_else(|| Error::NotFound(spec.network.clone()))?;
        let current = self.places.get(&(spec.sandbox.clone(), spec.network.clone()));
        let refuse = |address, reason: String| Error::Address { network: spec.network.clone(), address, reason };
        if let Driver::Cni(_) = network.driver {
            let kept = current.filter(|place| place.spec == *spec).cloned();
            return Ok(kept.unwrap_or_else(|| Place { spec: spec.clone(), addresses: Vec::new(), plugged: None }));
        }
        if let Some(stray) = spec.addresses.iter().find(|a| !network.subnets.iter().any(|s| s.cidr.contains(*a))) {
            let subnets: Vec<String> = network.subnets.iter().map(|s| s.cidr.to_string()).collect();
            return Err(refuse(*stray, format!("is not in {}", subnets.join(" or "))));
        }
        self.check_mac(network, spec)?;
        let others = || self.places_in(&spec.network).filter(|place| place.spec.sandbox != spec.sandbox);
        let mut addresses = Vec::new();
        for subnet in &network.subnets {
            let holder = |address: IpAddr| others().find(|place| place.addresses.iter().any(|a| a.addr() == address));
            let mut wanted = spec.addresses.iter().filter(|address| subnet.cidr.contains(*address));
            let kept = current.and_then(|place| place.addresses.iter().find(|a| subnet.cidr.contains(&a.addr())));
            let address = match (wanted.next(), kept) {
                (Some(address), _) => {
                    if let Some(second) = wanted.next() {
                        return Err(refuse(*second, format!("is a second one in {}", subnet.cidr)));
                    }
                    ipam::check_wanted(subnet, *address).map_err(|reason| refuse(*address, reason))?;
                    if let Some(place) = holder(*address) {
                        return Err(refuse(*address, format!("is used by sandbox {}", place.spec.sandbox)));
                    }
                    *address
                }
                (None, Some(kept)) => kept.addr(),
                (None, None) => {
                    let taken: Vec<IpAddr> = others().flat_map(|p| p.addresses.iter().map(IpNet::addr)).collect();
                    ipam::pick(subnet, &taken, seed(spec)).map_err(|full| Error::Exhausted {
                        network: spec.network.clone(),
                        subnet: subnet.cidr,
                        used: full.used,
                        total: full.total,
                    })?
                }
            };
            addresses.push(ipam::with_prefix(address, subnet.cidr));
        }
        Ok(Place { spec: spec.clone(), addresses, plugged: None })
    }

    /// Whether a sandbox may have the hardware address that it wishes for.
    fn check_mac(&self, network: &NetworkSpec, spec: &AttachSpec) -> Result<(), Error> {
        let Some(mac) = spec.link.mac else { return Ok(()) };
        let unsupported = |message: String| Err(Error::Unsupported { network: spec.network.clone(), message });
        if let Driver::Ipvlan { .. } = network.driver {
            return unsupported("its sandboxes have their parent's hardware address and no other".to_owned());
        }
        let holder =
            self.places_in(&spec.network).find(|place| place.spec.sandbox != spec.sandbox && place.mac() == mac);
        match holder {
            Some(place) => unsupported(format!("{} is used by sandbox {}", mac_text(mac), place.spec.sandbox)),
            None => Ok(()),
        }
    }

    /// Whether a sandbox may have exactly these ports, as far as other sandboxes are concerned.
    pub(super) fn check_ports(&self, sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error> {
        self.check_ports_without(&[], sandbox, ports)
    }

    /// [`Book::check_ports`] as if the sandboxes `gone` had no ports.
    pub(super) fn check_ports_without(
        &self,
        gone: &[SandboxId],
        sandbox: &SandboxId,
        ports: &[PublishedPort],
    ) -> Result<(), Error> {
        let taken = |port: &PublishedPort, owner: String| Error::PortTaken {
            host_ip: host_ip(port),
            host_port: port.host_port,
            protocol: port.protocol,
            owner,
        };
        // What is wanted is few, what others have may be many: their ports are looked at once, and none is kept.
        let mut wanted: HashMap<(Protocol, u16), Vec<&PublishedPort>> = HashMap::new();
        for port in ports {
            if port.host_ip.is_some_and(|host| host.is_ipv4() != port.target_ip.is_ipv4()) {
                return Err(taken(port, format!("nobody, but leads to {} of the other family", port.target_ip)));
            }
            let same = wanted.entry((port.protocol, port.host_port)).or_default();
            if same.iter().any(|other| share_address(other, port)) {
                return Err(taken(port, format!("another port of sandbox {sandbox} itself")));
            }
            same.push(port);
        }
        for (owner, theirs) in self.ports.iter().filter(|(owner, _)| *owner != sandbox && !gone.contains(owner)) {
            for their in theirs {
                let rivals = wanted.get(&(their.protocol, their.host_port)).into_iter().flatten();
                if let Some(port) = rivals.into_iter().find(|port| share_address(their, port)) {
                    return Err(taken(port, format!("sandbox {owner}")));
                }
            }
        }
        Ok(())
    }

    /// Subnets that nobody of ours uses and that do not touch `elsewhere`.
    pub(super) fn free_subnet(&self, elsewhere: &[IpNet]) -> Option<IpNet> {
        let ours = self.networks.values().flat_map(|network| network.subnets.iter().map(|subnet| subnet.cidr));
        let taken: Vec<IpNet> = ours.chain(elsewhere.iter().copied()).collect();
        ipam::candidates().find(|candidate| !taken.iter().any(|t| ipam::overlap(t, candidate)))
    }
}

fn fits(place: &Place, spec: &NetworkSpec) -> bool {
    place.addresses.len() == spec.subnets.len()
        && place.addresses.iter().all(|address| {
            spec.subnets
                .iter()
                .any(|subnet| subnet.cidr == address.trunc() && ipam::check_wanted(subnet, address.addr()).is_ok())
        })
}

/// The address asked for, unspecified for all of them.
pub(super) fn host_ip(port: &PublishedPort) -> IpAddr {
    port.host_ip.filter(|ip| !ip.is_unspecified()).unwrap_or(match port.target_ip {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    })
}

/// Whether two ports of one number claim a common address of the node. As with sockets, "all addresses" includes
/// each one; the families are apart.
fn share_address(a: &PublishedPort, b: &PublishedPort) -> bool {
    let (ip_a, ip_b) = (host_ip(a), host_ip(b));
    ip_a.is_ipv4() == ip_b.is_ipv4() && (ip_a == ip_b || ip_a.is_unspecified() || ip_b.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_made_as_the_kernel_makes_it() {
        let made = link_local([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]);
        assert_eq!(made.to_string(), "fe80::42:acff:fe11:2");
    }
}
