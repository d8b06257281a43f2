//! A network of the bridge driver: the bridge with the node's addresses, its kernel parameters, and its ports.

use ipnet::{IpNet, Ipv6Net};

use super::book::{Place, bridge_mac, link_local};
use super::events::Role;
use super::link::{Request, add_address, create_bridge, delete, remove_address, set_bridge, set_hairpin, set_port};
use super::node::{Node, Snapshot, failed, refused};
use super::records::Kind;
use super::{Error, Network, NetworkSpec, bridge_name, ipam, sysctl};
use crate::ids::NetworkKey;

/// MTU of a network that does not name one.
const DEFAULT_MTU: u32 = 1500;

/// The MTU of a network's links.
pub(super) fn mtu(spec: &NetworkSpec) -> u32 {
    spec.mtu.unwrap_or(DEFAULT_MTU)
}

/// Whether the network has an IPv6 subnet.
pub(super) fn has_ipv6(spec: &NetworkSpec) -> bool {
    spec.subnets.iter().any(|subnet| subnet.cidr.addr().is_ipv6())
}

/// The node's addresses on the bridge.
///
/// The link-local one is not left to the kernel, which gives it when the first port comes and keeps it in doubt from a
/// moment to two seconds. Meanwhile it looks for no neighbour of forwarded packets (ndisc_solicit, net/ipv6/ndisc.c): a
/// published port would not answer.
fn addresses(spec: &NetworkSpec) -> Vec<IpNet> {
    let gateways = spec.subnets.iter().map(ipam::gateway_net);
    let own = has_ipv6(spec).then(|| Ipv6Net::new_assert(link_local(bridge_mac(spec)), 64).into());
    gateways.chain(own).collect()
}

/// Whether bridge and addresses are as they should be.
pub(super) fn is_complete(spec: &NetworkSpec, snapshot: &Snapshot) -> bool {
    if let Some(parent) = spec.driver.parent() {
        return super::parent::is_complete(parent, snapshot);
    }
    if !spec.driver.has_bridge() {
        return true;
    }
    snapshot.links.get(bridge_name(&spec.key).as_str()).is_some_and(|bridge| {
        bridge.up
            && bridge.mtu == mtu(spec)
            && addresses(spec).iter().all(|address| snapshot.addresses.contains(&(bridge.index, *address)))
            && super::vxlan::is_complete(spec, bridge, snapshot)
            && super::vlan::is_complete(spec, bridge, snapshot)
    })
}

/// The requests that make the node's end of an attachment a port of the bridge with index `bridge`.
pub(super) fn port_requests(place: &Place, spec: &NetworkSpec, bridge: u32) -> Vec<Request> {
    let host = place.host_link();
    let alias = format!("nodelet {} {}", place.spec.sandbox, place.spec.network);
    let mut requests = vec![set_port(host.as_str(), bridge, mtu(spec), &alias)];
    // With br_netfilter on, destinations are translated while a frame is still on the bridge, which then has to send
    // it back where it came from when a sandbox calls its own published port. To one that bridges, its own broadcasts must
    // not come back: its bridge would look for those behind it outside.
    if matches!(sysctl::read("bridge/bridge-nf-call-iptables"), Ok(Some(value)) if value == "1") {
        requests.push(set_hairpin(host.as_str(), !place.spec.link.speaks_for_others));
    }
    requests
}

impl Node {
    /// See [`super::Networks::ensure_network`].
    pub(super) fn ensure_network(&mut self, spec: &NetworkSpec) -> Result<Network, Error> {
        self.book.check_network(spec)?;
        let before = self.book.networks.get(&spec.key).cloned();
        let other_kind = |before: &NetworkSpec| {
            std::mem::discriminant(&before.driver) != std::mem::discriminant(&spec.driver)
                || (spec.driver.parent().is_some() && before.driver != spec.driver)
                || before.vlan != spec.vlan
        };
        if before.as_ref().is_some_and(other_kind) {
            let message = "its driver, mode, parent and VLAN cannot change: remove it first".to_owned();
            return Err(Error::Unsupported { network: spec.key.clone(), message });
        }
        match spec.driver.parent() {
            Some(parent) => self.check_parent(spec, parent)?,
            // Of networks of plugins the subnets are empty.
            None if before.as_ref().map(|before| &before.subnets) != Some(&spec.subnets) => self.check_routes(spec)?,
            None => {}
        }
        let spec = &self.fit_tunnel(spec)?;
        let spec = &self.fit_vlan(spec)?;
        let name = bridge_name(&spec.key);
        let path = self.records.path(Kind::Networks, name.as_str());
        self.records
            .write(Kind::Networks, name.as_str(), spec)
            .map_err(failed(format!("writing {}", path.display())))?;
        self.book.networks.insert(spec.key.clone(), spec.clone());
        let made = if spec.driver.has_bridge() { self.make_bridge(spec) } else { Ok(()) };
        let made = made.and_then(|()| self.sync_table().map(|_| ()));
        let made = made.and_then(|()| self.listen_for_names(spec));
        self.publish_names();
        if let (Err(_), None) = (&made, &before) {
            // The first error is the one to tell; what is left stays on record and is found again.
            if let Err(error) = self.remove_network(&spec.key) {
                tracing::warn!(network = %spec.key, error = &error as &dyn std::error::Error, "undoing a failed network");
            }
        }
        let link = spec.driver.parent().cloned().unwrap_or(name);
        made.map(|()| Network { spec: spec.clone(), link, complete: true })
    }

    /// Refuses subnets that are already behind some other link of the node.
    fn check_routes(&mut self, spec: &NetworkSpec) -> Result<(), Error> {
        let routes = self.links.routes().map_err(refused("listing routes"))?;
        let links = self.links.list().map_err(refused("listing links"))?;
        let name_of = |index| links.iter().find(|link| Some(link.index) == index).map(|link| link.name.as_str());
        let own = bridge_name(&spec.key);
        for subnet in &spec.subnets {
            let other = routes.iter().find(|route| {
                route.destination.prefix_len() > 0
                    && ipam::overlap(&route.destination, &subnet.cidr)
                    && name_of(route.link) != Some(own.as_str())
            });
            if let Some(route) = other {
                let link = name_of(route.link).map_or_else(String::new, |name| format!(" on {name}"));
                let other = format!("route {}{link}", route.destination);
                return Err(Error::Overlap { network: spec.key.clone(), subnet: subnet.cidr, other });
            }
        }
        Ok(())
    }

    fn make_bridge(&mut self, spec: &NetworkSpec) -> Result<(), Error> {
        let name = bridge_name(&spec.key);
        let mut found = self.links.find(name.as_str()).map_err(refused(format!("looking for bridge {name}")))?;
        if found.is_none() {
            self.watched.forget(&name);
            self.links
                .apply(vec![create_bridge(name.as_str(), bridge_mac(spec), mtu(spec))])
                .map_err(refused(format!("creating bridge {name}")))?;
            found = self.links.find(name.as_str()).map_err(refused(format!("looking for bridge {name}")))?;
        }
        let Some(bridge) = found else {
            let source = std::io::Error::from_raw_os_error(libc::ENODEV);
            return Err(Error::Io { doing: format!("finding the bridge {name} just made"), source });
        };
        self.set_bridge_parameters(spec)?;
        let alias = format!("nodelet {}", spec.key);
        let snapshot = self.snapshot()?;
        let wanted = addresses(spec);
        let mut requests = vec![set_bridge(name.as_str(), mtu(spec), &alias)];
        for (_, stale) in
            snapshot.addresses.iter().filter(|(index, address)| *index == bridge.index && !wanted.contains(address))
        {
            requests.push(remove_address(bridge.index, *stale));
        }
        requests.extend(wanted.iter().map(|address| add_address(bridge.index, *address)));
        // Ports of a bridge that was removed are still there, without master.
        for place in self.book.places_in(&spec.key) {
            let host = snapshot.links.get(place.host_link().as_str());
            if host.is_some_and(|link| link.master != Some(bridge.index) || !link.up || link.mtu != mtu(spec)) {
                requests.extend(port_requests(place, spec, bridge.index));
            }
        }
        self.links.apply(requests).map_err(refused(format!("setting up bridge {name}")))?;
        self.watched.expect(&name, Role::Bridge(bridge.index));
        self.make_tunnel(spec, bridge.index)?;
        self.make_vlan(spec, bridge.index)
    }

    /// Forwarding on the node, and 127.0.0.1 as a source on the bridge for ports published there.
    fn set_bridge_parameters(&mut self, spec: &NetworkSpec) -> Result<(), Error> {
        let name = bridge_name(&spec.key);
        let doing = |parameter: &str| format!("setting {}", sysctl::path(parameter).display());
        let forwarding = "ipv4/ip_forward";
        let mut changes: Vec<_> =
            sysctl::ensure(forwarding, "1").map_err(failed(doing(forwarding)))?.into_iter().collect();
        if has_ipv6(spec) {
            changes.extend(sysctl::ensure_ipv6_forwarding().map_err(failed(doing("ipv6/conf/all/forwarding")))?);
        }
        for change in changes {
            tracing::info!(name = change.name, before = change.before, now = change.now, "kernel parameter changed");
            self.changed_sysctls.push(change);
        }
        let route_localnet = format!("ipv4/conf/{name}/route_localnet");
        sysctl::ensure(&route_localnet, "1").map_err(failed(doing(&route_localnet)))?;
        if has_ipv6(spec) {
            for (parameter, value) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
                let parameter = format!("ipv6/conf/{name}/{parameter}");
                sysctl::ensure(&parameter, value).map_err(failed(doing(&parameter)))?;
            }
        }
        Ok(())
    }

    /// See [`super::Networks::remove_network`].
    pub(super) fn remove_network(&mut self, key: &NetworkKey) -> Result<(), Error> {
        let name = bridge_name(key);
        if let Some(place) = self.book.places_in(key).next() {
            let message = format!("sandbox {} is still attached: detach it first", place.spec.sandbox);
            return Err(Error::Unsupported { network: key.clone(), message });
        }
        if let Some(spec) = self.book.networks.get(key).cloned() {
            self.forget_parent(&spec);
            if spec.vlan.is_some() {
                self.remove_vlan(key)?;
            }
        }
        self.remove_tunnel(key)?;
        self.watched.forget(&name);
        match self.links.apply(vec![delete(name.as_str())]) {
            Err(error) if !error.is_absence() => return Err(refused(format!("removing bridge {name}"))(error)),
            _ => {}
        }
        self.name_server.close(key);
        self.book.networks.remove(key);
        self.publish_names();
        self.sync_table()?;
        let path = self.records.path(Kind::Networks, name.as_str());
        self.records.remove(Kind::Networks, name.as_str()).map_err(failed(format!("removing {}", path.display())))
    }
}
