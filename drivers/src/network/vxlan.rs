//! The way of a vxlan network to its peers: a VXLAN link that is a port of the network's bridge.
//!
//! What is for everybody, or for nobody known, is copied to each peer; from the answers the link learns who is where. Each
//! node routes for its own sandboxes by its own gateway. Nodes may share one gateway address: then they share its hardware
//! address too, and each answers for itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_route::link::InfoKind;

use super::book::tunnel_name;
use super::events::Role;
use super::link::{Link, Links, Request, add_peer, create_vxlan, delete, set_port};
use super::node::{Node, Snapshot, refused};
use super::{Driver, Error, NetworkSpec, Tunnel, bridge_name, ipam};
use crate::ids::NetworkKey;

/// What the headers around a frame take: Ethernet, VXLAN, UDP and IPv4 or IPv6.
const OVERHEAD4: u32 = 50;
const OVERHEAD6: u32 = 70;
/// MTU of the way to a peer that the node knows no way to yet.
const UNKNOWN_WAY: u32 = 1500;

/// The tunnel of a vxlan network.
fn tunnel(spec: &NetworkSpec) -> Option<&Tunnel> {
    match &spec.driver {
        Driver::Vxlan(tunnel) => Some(tunnel),
        _ => None,
    }
}

fn is_ipv6(tunnel: &Tunnel) -> bool {
    tunnel.peers.iter().any(IpAddr::is_ipv6)
}

/// Whether the link to the peers, if there should be one, is a port of the bridge and sends to all of them.
pub(super) fn is_complete(spec: &NetworkSpec, bridge: &Link, snapshot: &Snapshot) -> bool {
    let Some(tunnel) = tunnel(spec) else { return true };
    let Some(link) = snapshot.links.get(tunnel_name(&spec.key).as_str()) else { return false };
    let wanted = peers(tunnel, &snapshot.addresses);
    // Without an answer the next pass looks again.
    let held = Links::open().ok().and_then(|mut links| links.peers(link.index).ok()).unwrap_or_default();
    link.up && link.master == Some(bridge.index) && link.vxlan == Some((tunnel.vni, tunnel.port)) && held == wanted
}

/// All peers but this node itself, so that all nodes can have one list.
fn peers(tunnel: &Tunnel, own: &[(u32, ipnet::IpNet)]) -> BTreeSet<IpAddr> {
    tunnel.peers.iter().copied().filter(|peer| !own.iter().any(|(_, address)| address.addr() == *peer)).collect()
}

impl Node {
    /// The network with the MTU that its way to the peers has room for; unchanged without a tunnel.
    pub(super) fn fit_tunnel(&mut self, spec: &NetworkSpec) -> Result<NetworkSpec, Error> {
        let Some(tunnel) = tunnel(spec) else { return Ok(spec.clone()) };
        let unsupported = |message: String| Error::Unsupported { network: spec.key.clone(), message };
        if !self.links.can_make(InfoKind::Vxlan).map_err(refused("asking for VXLAN"))? {
            return Err(unsupported(super::parent::without_module("vxlan", "CONFIG_VXLAN")));
        }
        let routes = self.links.routes().map_err(refused("listing routes"))?;
        let links = self.links.list().map_err(refused("listing links"))?;
        let overhead = if is_ipv6(tunnel) { OVERHEAD6 } else { OVERHEAD4 };
        let way = tunnel.peers.iter().filter_map(|peer| {
            let route = routes.iter().filter(|route| route.destination.contains(peer));
            let index = route.max_by_key(|route| route.destination.prefix_len())?.link?;
            links.iter().find(|link| link.index == index && link.name != "lo")
        });
        let narrowest = way.min_by_key(|link| link.mtu);
        let room = narrowest.map_or(UNKNOWN_WAY, |link| link.mtu).saturating_sub(overhead);
        if let (Some(mtu), Some(link)) = (spec.mtu.filter(|mtu| *mtu > room), narrowest) {
            return Err(unsupported(format!(
                "MTU {mtu} does not fit: {} on the way to its peers has {}, of which VXLAN needs {overhead}",
                link.name, link.mtu
            )));
        }
        Ok(NetworkSpec { mtu: Some(spec.mtu.unwrap_or(room)), ..spec.clone() })
    }

    /// Makes or repairs the link to the peers as a port of the bridge with index `bridge`.
    pub(super) fn make_tunnel(&mut self, spec: &NetworkSpec, bridge: u32) -> Result<(), Error> {
        let Some(tunnel) = tunnel(spec) else { return Ok(()) };
        let name = tunnel_name(&spec.key);
        let mtu = super::bridge::mtu(spec);
        let looking = || refused(format!("looking for {name}"));
        let mut found = self.links.find(name.as_str()).map_err(looking())?;
        let own = self.links.addresses().map_err(refused("listing addresses"))?;
        let wanted = peers(tunnel, &own);
        if let Some(link) = &found {
            let held = self.links.peers(link.index).map_err(refused(format!("listing the peers of {name}")))?;
            // Number and port cannot be changed, and what was learned of a peer that is gone would live on.
            if link.vxlan != Some((tunnel.vni, tunnel.port)) || !held.is_subset(&wanted) {
                self.remove_tunnel(&spec.key)?;
                found = None;
            }
        }
        if found.is_none() {
            let create = create_vxlan(name.as_str(), tunnel.vni, tunnel.port, is_ipv6(tunnel), mtu);
            self.links.apply(vec![create]).map_err(refused(format!(
                "creating {name} with VNI {} at port {} (is it used on this node already?)",
                tunnel.vni, tunnel.port
            )))?;
            found = self.links.find(name.as_str()).map_err(looking())?;
        }
        let Some(link) = found else {
            let source = std::io::Error::from_raw_os_error(libc::ENODEV);
            return Err(Error::Io { doing: format!("finding the link {name} just made"), source });
        };
        let held = self.links.peers(link.index).map_err(refused(format!("listing the peers of {name}")))?;
        let alias = format!("nodelet {}", spec.key);
        let mut requests: Vec<Request> = vec![set_port(name.as_str(), bridge, mtu, &alias)];
        requests.extend(wanted.difference(&held).map(|peer| add_peer(link.index, *peer)));
        self.links.apply(requests).map_err(refused(format!("setting up {name}")))?;
        self.watched.expect(&name, Role::Member(bridge_name(&spec.key)));
        Ok(())
    }

    /// Removes the link to the peers; absence is success.
    pub(super) fn remove_tunnel(&mut self, key: &NetworkKey) -> Result<(), Error> {
        let name = tunnel_name(key);
        self.watched.forget(&name);
        match self.links.apply(vec![delete(name.as_str())]) {
            Err(error) if !error.is_absence() => Err(refused(format!("removing {name}"))(error)),
            _ => Ok(()),
        }
    }
}

/// Why this tunnel cannot be, beside those of `others`.
pub(super) fn check<'a>(spec: &NetworkSpec, mut others: impl Iterator<Item = &'a NetworkSpec>) -> Result<(), String> {
    let Some(own) = tunnel(spec) else { return Ok(()) };
    if own.vni == 0 || own.vni >= 1 << 24 {
        return Err(format!("VNI {} is not between 1 and 16777215", own.vni));
    }
    if own.peers.iter().any(|peer| peer.is_ipv6() != own.peers[0].is_ipv6()) {
        return Err("its peers are of both address families: name them all by the same one".to_owned());
    }
    let same = |other: &&NetworkSpec| tunnel(other).is_some_and(|other| (other.vni, other.port) == (own.vni, own.port));
    match others.find(same) {
        Some(other) => Err(format!("VNI {} at port {} is that of network {}", own.vni, own.port, other.key)),
        None => Ok(()),
    }
}

/// What tells a network's gateway on this node from its gateway on others, where they are neighbours in a tunnel or a VLAN:
/// nodes that share it share its hardware address.
pub(super) fn gateway_marks(spec: &NetworkSpec) -> Vec<String> {
    if tunnel(spec).is_none() && spec.vlan.is_none() {
        return Vec::new();
    }
    spec.subnets.iter().map(|subnet| ipam::gateway(subnet).to_string()).collect()
}
