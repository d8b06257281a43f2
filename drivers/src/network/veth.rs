//! Attachments: a veth pair with one end as a port of the bridge and the other, with address and route, in the
//! sandbox's network namespace.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use super::book::Place;
use super::bridge::{has_ipv6, mtu, port_requests};
use super::cni::Attaching;
use super::events::Role;
use super::link::{
    Link, Links, add_address, create_veth, delete, set_default_link, set_default_route, set_local_route, set_up,
};
use super::netlink::Refused;
use super::netns::Netns;
use super::node::{Node, failed, refused};
use super::records::Kind;
use super::{AttachSpec, Attachment, Driver, Error, IpvlanMode, NetworkSpec, bridge_name, ipam, nft, sysctl};
use crate::ids::{IfName, NetworkKey, SandboxId};

impl Node {
    /// See [`super::Networks::attach`].
    pub(super) fn attach(&mut self, spec: &AttachSpec) -> Result<Attaching, Error> {
        let network = self.network(&spec.network)?.clone();
        if let Driver::Cni(source) = &network.driver {
            return self.begin_plugging(spec, source);
        }
        if network.driver.parent().is_some() && spec.link.ingress.is_some() {
            let message = "what a sandbox receives on a parent cannot be limited: limit what it sends".to_owned();
            return Err(Error::Unsupported { network: network.key.clone(), message });
        }
        let place = self.book.find_place(spec)?;
        let host = place.host_link();
        let key = (spec.sandbox.clone(), spec.network.clone());
        self.leaving.remove(&key);
        let before = self.book.places.get(&key).cloned();
        if before.as_ref() != Some(&place) {
            let path = self.records.path(Kind::Attachments, host.as_str());
            self.records
                .write(Kind::Attachments, host.as_str(), &place)
                .map_err(failed(format!("writing {}", path.display())))?;
            self.book.places.insert(key, place.clone());
        }
        let made = match network.driver.parent() {
            Some(parent) => self.make_child(&network, parent, &place, before.as_ref()),
            // From its first frame on it can only be itself.
            None => self
                .guard(before.as_ref(), Some(&place))
                .and_then(|()| self.make_veth(&network, &place, before.as_ref())),
        };
        let made = made.and_then(|()| self.limit(&network, &place, before.as_ref()));
        match made {
            Ok(()) => {
                if network.driver.has_bridge() {
                    self.watched.expect(&host, Role::Port);
                }
                if self.is_told_more(&spec.sandbox) {
                    self.publish_names();
                }
                Ok(Attaching::Done(Box::new(self.book.attachment(&place, true))))
            }
            Err(error) => {
                if before.is_none() {
                    // The first error is the one to tell; what is left stays on record and is found again.
                    if let Err(error) = self.detach_now(&spec.sandbox, &spec.network) {
                        tracing::warn!(link = %host, error = &error as &dyn std::error::Error, "undoing a failed attach");
                    }
                }
                Err(error)
            }
        }
    }

    /// Whether the sandbox is told more than whoever is unknown in its network, or answers to a name: what is attached for
    /// the first time gets its names after that.
    fn is_told_more(&self, sandbox: &SandboxId) -> bool {
        let names = &self.book.names;
        self.book.places_of(sandbox).count() > 1
            || names.contains_key(sandbox)
            || names.values().any(|names| names.at.as_ref() == Some(sandbox))
    }

    /// Lets the sandbox send by the addresses of its place `now`, and no longer by those of `before`.
    fn guard(&mut self, before: Option<&Place>, now: Option<&Place>) -> Result<(), Error> {
        let (before, now) = (before.map(nft::of_place), now.map(nft::of_place));
        self.change_table(before.unwrap_or_default(), now.unwrap_or_default())
    }

    fn make_veth(&mut self, network: &NetworkSpec, place: &Place, before: Option<&Place>) -> Result<(), Error> {
        let path = place.spec.netns.display();
        let netns = Netns::open(&place.spec.netns).map_err(failed(format!("opening network namespace {path}")))?;
        let bridge = self.bridge_index(network)?;
        let host = place.host_link();
        if let Some(before) = before.filter(|before| before.is_same_link(place))
            && self.keep_veth(network, place, before, &netns, bridge)?
        {
            return Ok(());
        }
        let create = |links: &mut Links| {
            let mut requests =
                vec![create_veth(host.as_str(), place.spec.ifname.as_str(), netns.fd(), place.mac(), mtu(network))];
            requests.extend(port_requests(place, network, bridge));
            links.apply(requests)
        };
        let doing = || format!("creating {} in {path} and attaching {host}", place.spec.ifname);
        match create(&mut self.links) {
            // A damaged pair of ours, or one whose other end is in a namespace that is gone from the path.
            Err(Refused { errno: libc::EEXIST, .. }) => {
                self.delete_links(vec![host.as_str()])?;
                create(&mut self.links)
            }
            other => other,
        }
        .map_err(refused(doing()))?;
        let outcome = netns.run(|| configure(network, place));
        outcome
            .map_err(failed(format!("entering {path}")))?
            .map_err(refused(format!("setting up {} in {path}", place.spec.ifname)))?;
        self.settle(&[host.as_str(), bridge_name(&network.key).as_str()])
    }

    /// Makes the kernel take notice of carriers that came up. It does so by itself, but only when its worker gets
    /// around to it, and until then a bridge drops the first packets. Asking for a link does it at once.
    fn settle(&mut self, names: &[&str]) -> Result<(), Error> {
        for name in names {
            self.links.find(name).map_err(refused(format!("looking for {name}")))?;
        }
        Ok(())
    }

    /// Leaves a sound pair alone but for its port on the bridge. Returns whether it is sound now.
    fn keep_veth(
        &mut self,
        network: &NetworkSpec,
        place: &Place,
        before: &Place,
        netns: &Netns,
        bridge: u32,
    ) -> Result<bool, Error> {
        let host = place.host_link();
        let Some(link) = self.links.find(host.as_str()).map_err(refused(format!("looking for {host}")))? else {
            return Ok(false);
        };
        if !is_sound_inside(network, place, netns) {
            self.watched.forget(&host);
            self.delete_links(vec![host.as_str()])?;
            return Ok(false);
        }
        let speaks_as_before = before.spec.link.speaks_for_others == place.spec.link.speaks_for_others;
        if link.master != Some(bridge) || !link.up || link.mtu != mtu(network) || !speaks_as_before {
            let requests = port_requests(place, network, bridge);
            self.links.apply(requests).map_err(refused(format!("attaching {host}")))?;
        }
        super::mtu::fit(network, place, netns)?;
        Ok(true)
    }

    fn bridge_index(&mut self, network: &NetworkSpec) -> Result<u32, Error> {
        let name = bridge_name(&network.key);
        for repaired in [false, true] {
            let found = self.links.find(name.as_str()).map_err(refused(format!("looking for bridge {name}")))?;
            match found {
                Some(bridge) if bridge.up || repaired => return Ok(bridge.index),
                _ => self.ensure_network(network)?,
            };
        }
        Err(Error::Io { doing: format!("repairing bridge {name}"), source: io::ErrorKind::NotFound.into() })
    }

    fn delete_links(&mut self, names: Vec<&str>) -> Result<(), Error> {
        let doing = format!("removing {}", names.join(", "));
        match self.links.apply(names.into_iter().map(delete).collect()) {
            Err(error) if !error.is_absence() => Err(refused(doing)(error)),
            _ => Ok(()),
        }
    }

    /// See [`super::Networks::list_attachments`] and [`super::Networks::attachments_of`].
    pub(super) fn list_attachments(&mut self, only: Option<&SandboxId>) -> Result<Vec<Attachment>, Error> {
        let places = self.book.places.values().filter(|place| only.is_none_or(|only| place.spec.sandbox == *only));
        let places: Vec<Place> = places.cloned().collect();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let links = self.links_of(&places, only.is_none())?;
        let check = |place: &Place| {
            let Some(network) = self.book.networks.get(&place.spec.network) else { return false };
            if let Driver::Cni(_) = network.driver {
                let key = (place.spec.sandbox.clone(), place.spec.network.clone());
                return !self.doubted.contains(&key) && super::cni::is_sound(place);
            }
            let bridge = links.get(bridge_name(&network.key).as_str());
            let host = links.get(place.host_link().as_str());
            if let Some(parent) = network.driver.parent() {
                return links.get(parent.as_str()).is_some_and(|link| link.up)
                    && Netns::open(&place.spec.netns).is_ok_and(|netns| is_sound(network, place, &netns));
            }
            let port = host.is_some_and(|host| host.up && bridge.is_some_and(|b| host.master == Some(b.index)));
            port && Netns::open(&place.spec.netns).is_ok_and(|netns| is_sound(network, place, &netns))
        };
        Ok(places.iter().map(|place| self.book.attachment(place, check(place))).collect())
    }

    /// The links of the node that these attachments need, as far as they are there. To ask for each is dear for many and
    /// cheap for few: a list takes the kernel as long as there are links.
    fn links_of(&mut self, places: &[Place], are_all: bool) -> Result<HashMap<String, Link>, Error> {
        if are_all {
            return Ok(self.snapshot()?.links);
        }
        let mut links = HashMap::new();
        for place in places {
            let parent =
                self.book.networks.get(&place.spec.network).and_then(|network| network.driver.parent().cloned());
            for name in [parent.unwrap_or_else(|| bridge_name(&place.spec.network)), place.host_link()] {
                let found = self.links.find(name.as_str()).map_err(refused(format!("looking for link {name}")))?;
                links.extend(found.map(|link| (link.name.clone(), link)));
            }
        }
        Ok(links)
    }

    /// The first part of [`super::Networks::detach`] and [`super::Networks::detach_all`]: closes the ports that lead
    /// there, and returns what is left to do without us.
    pub(super) fn begin_detach(
        &mut self,
        sandbox: &SandboxId,
        network: Option<&NetworkKey>,
    ) -> Result<Departure, Error> {
        let chosen = |place: &&Place| network.is_none_or(|network| place.spec.network == *network);
        let places: Vec<Place> = self.book.places_of(sandbox).filter(chosen).cloned().collect();
        // A port must never lead to an address that somebody else gets.
        let gone: Vec<_> = places.iter().flat_map(|place| &place.addresses).map(ipnet::IpNet::addr).collect();
        let mut left = self.book.ports.get(sandbox).cloned().unwrap_or_default();
        left.retain(|port| network.is_some() && !gone.contains(&port.target_ip));
        self.set_ports(sandbox, &left)?;
        if network.is_none() {
            self.set_names(&[(sandbox.clone(), None)])?;
        }
        let on_parent = places.iter().filter(|place| self.book.is_on_parent(place));
        // By the name that it is born with, too, see `Node::make_child`.
        let names = |place: &Place| [place.spec.ifname.clone(), place.host_link()];
        let inside = on_parent.flat_map(|place| names(place).map(|name| (place.spec.netns.clone(), name))).collect();
        let plugged = places.iter().filter(|place| place.plugged.is_some()).cloned().collect();
        let mut networks: Vec<NetworkKey> = places.into_iter().map(|place| place.spec.network).collect();
        // Even without a record, a link under this name is ours.
        if let Some(network) = network.filter(|network| !networks.contains(network)) {
            networks.push(network.clone());
        }
        let mut hosts = Vec::new();
        for network in &networks {
            let host = super::book::host_link(sandbox, network);
            self.watched.forget(&host);
            hosts.push(host);
            self.leaving.insert((sandbox.clone(), network.clone()));
        }
        let links = Links::open().map_err(failed("opening a netlink socket for links"))?;
        Ok(Departure { sandbox: sandbox.clone(), networks, hosts, inside, plugged, links })
    }

    /// The last part: frees the addresses. An attachment that was made again meanwhile is left alone.
    pub(super) fn end_detach(&mut self, sandbox: &SandboxId, networks: Vec<NetworkKey>) -> Result<(), Error> {
        let mut gone = networks.into_iter().map(|network| (sandbox.clone(), network));
        let outcome = gone.try_for_each(|key| match self.leaving.remove(&key) {
            true => self.forget_place(&key),
            false => Ok(()),
        });
        self.publish_names();
        outcome
    }

    /// All of it at once, to undo an attachment that failed.
    fn detach_now(&mut self, sandbox: &SandboxId, network: &NetworkKey) -> Result<(), Error> {
        let networks = self.begin_detach(sandbox, Some(network))?.delete_links()?;
        self.end_detach(sandbox, networks)
    }

    fn forget_place(&mut self, key: &(SandboxId, NetworkKey)) -> Result<(), Error> {
        let guarded = self.book.places.get(key).is_some_and(|place| self.book.is_guarded(place));
        if let Some(place) = self.book.places.remove(key)
            && guarded
            && let Err(error) = self.guard(Some(&place), None)
        {
            self.book.places.insert(key.clone(), place);
            return Err(error);
        }
        let name = super::book::host_link(&key.0, &key.1);
        let path = self.records.path(Kind::Attachments, name.as_str());
        self.records
            .remove(Kind::Attachments, name.as_str())
            .map_err(failed(format!("removing {}", path.display())))?;
        self.doubted.remove(key);
        Ok(())
    }
}

/// Links of a sandbox that are to be removed. The kernel waits for all processors before a link is gone, some 20 ms,
/// so this is done beside the worker, with a socket of its own.
pub(super) struct Departure {
    sandbox: SandboxId,
    networks: Vec<NetworkKey>,
    hosts: Vec<IfName>,
    /// Links without an end on the node, and where they are.
    inside: Vec<(PathBuf, IfName)>,
    /// Places that plugins made, which [`Departure::delete_links`] leaves to them.
    pub(super) plugged: Vec<Place>,
    links: Links,
}

impl Departure {
    /// Removes the links and returns the networks that the sandbox has left.
    pub(super) fn delete_links(mut self) -> Result<Vec<NetworkKey>, Error> {
        for host in &self.hosts {
            match self.links.apply(vec![delete(host.as_str())]) {
                Err(error) if !error.is_absence() => {
                    return Err(refused(format!("removing {host} of sandbox {}", self.sandbox))(error));
                }
                _ => {}
            }
        }
        for (netns, ifname) in &self.inside {
            super::parent::delete_inside(netns, ifname)?;
        }
        Ok(self.networks)
    }
}

/// The gateways that become default routes inside. An internal network has no way out, so it promises none.
fn default_routes(network: &NetworkSpec, place: &Place) -> Vec<std::net::IpAddr> {
    if place.spec.default_route && !network.internal {
        network.subnets.iter().map(ipam::gateway).collect()
    } else {
        Vec::new()
    }
}

fn has_no_neighbours(network: &NetworkSpec) -> bool {
    matches!(network.driver, Driver::Ipvlan { mode: IpvlanMode::L3 | IpvlanMode::L3s, .. })
}

/// Sets up the link inside; runs in the sandbox's namespace. The outer error is about files, the inner about links.
pub(super) fn configure(network: &NetworkSpec, place: &Place) -> io::Result<Result<(), Refused>> {
    let mut links = Links::open()?;
    if has_ipv6(network) {
        // A namespace may be born with IPv6 off.
        sysctl::ensure(&format!("ipv6/conf/{}/disable_ipv6", place.spec.ifname), "0")?;
    }
    let link = match links.find(place.spec.ifname.as_str()) {
        Ok(Some(link)) => link.index,
        Ok(None) => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
        Err(refused) => return Ok(Err(refused)),
    };
    let mut requests = vec![set_up(link, has_ipv6(network))];
    requests.extend(place.addresses.iter().map(|address| add_address(link, *address)));
    requests.extend(place.addresses.iter().filter_map(|address| match address.addr() {
        std::net::IpAddr::V6(v6) => Some(set_local_route(link, v6)),
        std::net::IpAddr::V4(_) => None,
    }));
    let gateways = default_routes(network, place).into_iter();
    requests.extend(gateways.map(|gateway| match has_no_neighbours(network) {
        // Whatever is sent is the parent's business.
        true => set_default_link(link, gateway.is_ipv6()),
        false => set_default_route(link, gateway),
    }));
    // The last question makes the kernel notice the carrier, see `Node::settle`.
    Ok(links.apply(requests).and_then(|()| links.find(place.spec.ifname.as_str())).map(|_| ()))
}

/// Whether the link inside, its MTU and its limits are as they should be.
fn is_sound(network: &NetworkSpec, place: &Place, netns: &Netns) -> bool {
    is_as_wished(network, place, netns, super::mtu::wanted(network))
        && super::bandwidth::is_right(network, place, netns)
}

/// Whether the link inside is there with its addresses and routes. What cannot be read is not sound. A sandbox that may speak
/// for others may make its link part of something else, which then has the addresses.
pub(super) fn is_sound_inside(network: &NetworkSpec, place: &Place, netns: &Netns) -> bool {
    is_as_wished(network, place, netns, None)
}

/// [`is_sound_inside`], and the link has this MTU.
fn is_as_wished(network: &NetworkSpec, place: &Place, netns: &Netns, mtu: Option<u32>) -> bool {
    let check = || -> io::Result<Result<bool, Refused>> {
        let mut links = Links::open()?;
        Ok((|| {
            let Some(link) = links.find(place.spec.ifname.as_str())? else { return Ok(false) };
            let for_others = place.spec.link.speaks_for_others;
            let own_mac = !for_others && !matches!(network.driver, Driver::Ipvlan { .. });
            let fits = mtu.is_none_or(|wanted| link.mtu == wanted);
            if !link.up || !fits || (own_mac && link.mac != Some(place.mac())) {
                return Ok(false);
            }
            let held = links.addresses()?;
            let holds = |address| held.iter().any(|(at, held)| held == address && (for_others || *at == link.index));
            if !place.addresses.iter().all(holds) {
                return Ok(false);
            }
            let gateways = default_routes(network, place);
            if gateways.is_empty() {
                return Ok(true);
            }
            let routes = links.routes()?;
            Ok(gateways.iter().all(|gateway| {
                routes.iter().any(|route| {
                    route.destination.prefix_len() == 0
                        && route.destination.addr().is_ipv4() == gateway.is_ipv4()
                        && (route.gateway == Some(*gateway)
                            || has_no_neighbours(network) && route.link == Some(link.index))
                })
            }))
        })())
    };
    matches!(netns.run(check), Ok(Ok(true)))
}
