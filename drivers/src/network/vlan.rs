//! The way of a bridge network to a VLAN behind a link of the node: a VLAN link that is a port of the network's bridge.
//!
//! Sandboxes are then neighbours of everything in that VLAN, and of the node's gateway address. What leaves is tagged on
//! the parent, what comes in loses its tag.

use netlink_packet_route::link::InfoKind;

use super::book::vlan_name;
use super::events::Role;
use super::link::{Link, create_vlan, delete, set_port};
use super::node::{Node, Snapshot, refused};
use super::{Error, NetworkSpec, bridge_name};
use crate::ids::NetworkKey;

/// Whether the VLAN's link, if there should be one, is a port of the bridge.
pub(super) fn is_complete(spec: &NetworkSpec, bridge: &Link, snapshot: &Snapshot) -> bool {
    let Some(vlan) = &spec.vlan else { return true };
    let Some(link) = snapshot.links.get(vlan_name(&spec.key).as_str()) else { return false };
    link.up && link.master == Some(bridge.index) && link.vlan == Some(vlan.id)
}

/// Why this VLAN cannot be, beside those of `others`.
pub(super) fn check<'a>(spec: &NetworkSpec, mut others: impl Iterator<Item = &'a NetworkSpec>) -> Result<(), String> {
    let Some(own) = &spec.vlan else { return Ok(()) };
    if own.id == 0 || own.id > 4094 {
        return Err(format!("VLAN {} is not between 1 and 4094", own.id));
    }
    match others.find(|other| other.vlan.as_ref() == Some(own)) {
        Some(other) => Err(format!("VLAN {} of {} is that of network {}", own.id, own.parent, other.key)),
        None => Ok(()),
    }
}

impl Node {
    /// The network with the MTU of its VLAN's parent; unchanged without one.
    pub(super) fn fit_vlan(&mut self, spec: &NetworkSpec) -> Result<NetworkSpec, Error> {
        let Some(vlan) = &spec.vlan else { return Ok(spec.clone()) };
        if !self.links.can_make(InfoKind::Vlan).map_err(refused("asking for VLANs"))? {
            let message = super::parent::without_module("8021q", "CONFIG_VLAN_8021Q");
            return Err(Error::Unsupported { network: spec.key.clone(), message });
        }
        let parent = self.parent(spec, &vlan.parent)?;
        Ok(NetworkSpec { mtu: Some(spec.mtu.unwrap_or(parent.mtu)), ..spec.clone() })
    }

    /// Makes or repairs the VLAN's link as a port of the bridge with index `bridge`.
    pub(super) fn make_vlan(&mut self, spec: &NetworkSpec, bridge: u32) -> Result<(), Error> {
        let Some(vlan) = &spec.vlan else { return Ok(()) };
        let name = vlan_name(&spec.key);
        let mtu = super::bridge::mtu(spec);
        let found = self.links.find(name.as_str()).map_err(refused(format!("looking for {name}")))?;
        if found.as_ref().is_some_and(|link| link.vlan != Some(vlan.id)) {
            self.remove_vlan(&spec.key)?;
        }
        let parent = self.parent(spec, &vlan.parent)?;
        let mut requests = Vec::new();
        if found.is_none_or(|link| link.vlan != Some(vlan.id)) {
            requests.push(create_vlan(name.as_str(), parent.index, vlan.id, mtu));
        }
        requests.push(set_port(name.as_str(), bridge, mtu, &format!("nodelet {}", spec.key)));
        let doing =
            format!("making {name} of VLAN {} of {} a port (is it used on this node already?)", vlan.id, vlan.parent);
        self.links.apply(requests).map_err(refused(doing))?;
        self.watched.expect(&name, Role::Member(bridge_name(&spec.key)));
        Ok(())
    }

    /// Removes the VLAN's link; absence is success.
    pub(super) fn remove_vlan(&mut self, key: &NetworkKey) -> Result<(), Error> {
        let name = vlan_name(key);
        self.watched.forget(&name);
        match self.links.apply(vec![delete(name.as_str())]) {
            Err(error) if !error.is_absence() => Err(refused(format!("removing {name}"))(error)),
            _ => Ok(()),
        }
    }
}
