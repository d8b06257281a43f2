//! What is known at one moment: names and addresses by network, and who may ask about which. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ipnet::IpNet;

use super::super::book::Book;
use super::super::{NetworkSpec, Protocol};
use super::Service;
use crate::ids::NetworkKey;

/// Everything that the name server knows.
#[derive(Debug, Default)]
pub(in crate::network) struct View {
    zones: Vec<Zone>,
    by_key: HashMap<NetworkKey, usize>,
    /// The networks of each attached address, in the order of the links.
    clients: HashMap<IpAddr, Vec<usize>>,
    subnets: Vec<IpNet>,
}

/// One network.
#[derive(Debug)]
struct Zone {
    subnets: Vec<IpNet>,
    /// `None`: nothing beyond our own names is asked for.
    upstreams: Option<Arc<[IpAddr]>>,
    hosts: HashMap<String, Host>,
    reverse: HashMap<IpAddr, Vec<String>>,
}

/// A name and those who answer to it.
#[derive(Debug, Default)]
struct Host {
    instances: Vec<Instance>,
    /// Whose turn it is to be named first; IPv4 and IPv6 have turns of their own, since clients ask for both at once.
    turns: [AtomicUsize; 2],
}

#[derive(Debug, Clone)]
struct Instance {
    addresses: Vec<IpAddr>,
    name: Arc<str>,
    services: Arc<[Service]>,
}

/// What a name is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    V4,
    V6,
    /// SRV.
    Service,
    /// ANY and everything that we have none of.
    Other,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A name of ours, and its addresses of that family: perhaps none.
    Addresses(Vec<IpAddr>),
    /// A service of ours: port, name and addresses of each instance.
    Services(Vec<(u16, Arc<str>, Vec<IpAddr>)>),
    /// An address of ours has these names.
    Names(Vec<String>),
    /// Ours, and there is nothing now.
    Nothing,
    /// Not ours: these know, or the node's servers if there are none.
    Elsewhere(Arc<[IpAddr]>),
    /// Whoever asks has no business here.
    Refused,
}

impl View {
    /// From what is promised.
    pub(in crate::network) fn new(book: &Book) -> Self {
        let mut view = Self::default();
        for spec in book.networks.values().filter(|spec| spec.dns.enabled) {
            view.by_key.insert(spec.key.clone(), view.zones.len());
            view.zones.push(Zone::new(spec));
        }
        view.subnets = book.networks.values().flat_map(|spec| spec.subnets.iter().map(|s| s.cidr)).collect();
        let mut places: Vec<_> = book.places.values().collect();
        places.sort_by(|a, b| a.spec.ifname.as_str().cmp(b.spec.ifname.as_str()));
        let mut networks_of: HashMap<_, Vec<usize>> = HashMap::new();
        for place in &places {
            if let Some(zone) = view.by_key.get(&place.spec.network) {
                networks_of.entry(&place.spec.sandbox).or_default().push(*zone);
            }
        }
        for place in &places {
            let zones = networks_of.get(&place.spec.sandbox).cloned().unwrap_or_default();
            for address in &place.addresses {
                view.clients.insert(address.addr(), zones.clone());
            }
        }
        for (sandbox, names) in &book.names {
            let name: Arc<str> = names.everywhere.first().map_or("", String::as_str).into();
            let services: Arc<[Service]> = names.services.clone().into();
            for place in book.places_of(names.at.as_ref().unwrap_or(sandbox)) {
                let Some(zone) = view.by_key.get(&place.spec.network).and_then(|at| view.zones.get_mut(*at)) else {
                    continue;
                };
                let addresses: Vec<IpAddr> = place.addresses.iter().map(IpNet::addr).collect();
                let instance = Instance { addresses, name: name.clone(), services: services.clone() };
                zone.add(names, &place.spec.network, instance);
            }
        }
        view
    }

    /// The networks that whoever asks from `source` at the gateway of `network` may know about.
    fn zones_for(&self, network: &NetworkKey, source: IpAddr) -> Vec<&Zone> {
        let asked = self.by_key.get(network).copied();
        let indices = match self.clients.get(&source) {
            Some(own) if asked.is_some_and(|asked| own.contains(&asked)) => {
                // The network it asks in first.
                let mut indices: Vec<usize> = asked.into_iter().collect();
                indices.extend(own.iter().copied().filter(|index| Some(*index) != asked));
                indices
            }
            Some(_) => Vec::new(),
            // The node itself asks from the gateway's address, a client that is just being attached from its own.
            None => asked
                .filter(|asked| self.zones.get(*asked).is_some_and(|zone| zone.contains(source)))
                .into_iter()
                .collect(),
        };
        indices.into_iter().filter_map(|index| self.zones.get(index)).collect()
    }

    /// Looks up a name: lower case, without a final dot.
    pub(super) fn find(&self, network: &NetworkKey, source: IpAddr, name: &str, wanted: Wanted) -> Found {
        let zones = self.zones_for(network, source);
        if zones.is_empty() {
            return Found::Refused;
        }
        if let Some((service, protocol, host)) = service_name(name) {
            let hosts = || zones.iter().filter_map(|zone| zone.hosts.get(host));
            if hosts().next().is_some() {
                let found: Vec<_> = hosts().flat_map(|host| host.services(service, protocol)).collect();
                return match (found.is_empty(), wanted) {
                    (true, _) => Found::Nothing,
                    (false, Wanted::Service) => Found::Services(found),
                    (false, _) => Found::Addresses(Vec::new()),
                };
            }
        }
        let hosts = || zones.iter().filter_map(|zone| zone.hosts.get(name));
        if let Some(host) = hosts().find(|host| !host.instances.is_empty()) {
            return Found::Addresses(host.addresses(wanted));
        }
        if hosts().next().is_some() {
            return Found::Nothing;
        }
        if name == "localhost" {
            return Found::Addresses(match wanted {
                Wanted::V4 => vec![IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)],
                Wanted::V6 => vec![IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)],
                _ => Vec::new(),
            });
        }
        elsewhere(&zones)
    }

    /// Looks up what an address is called.
    pub(super) fn find_reverse(&self, network: &NetworkKey, source: IpAddr, address: IpAddr) -> Found {
        let zones = self.zones_for(network, source);
        if zones.is_empty() {
            return Found::Refused;
        }
        if let Some(names) = zones.iter().find_map(|zone| zone.reverse.get(&address)) {
            return Found::Names(names.clone());
        }
        // Addresses of ours are nobody's business but that of their own network.
        if self.subnets.iter().any(|subnet| subnet.contains(&address)) {
            return Found::Nothing;
        }
        elsewhere(&zones)
    }
}

fn elsewhere(zones: &[&Zone]) -> Found {
    let upstreams = zones.iter().find_map(|zone| zone.upstreams.clone());
    upstreams.map_or(Found::Nothing, Found::Elsewhere)
}

/// Splits `_http._tcp.web` into `http`, TCP and `web`.
fn service_name(name: &str) -> Option<(&str, Protocol, &str)> {
    let (service, rest) = name.strip_prefix('_')?.split_once('.')?;
    let (protocol, host) = rest.strip_prefix('_')?.split_once('.')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some((service, protocol, host))
}

impl Zone {
    fn new(spec: &NetworkSpec) -> Self {
        Self {
            subnets: spec.subnets.iter().map(|subnet| subnet.cidr).collect(),
            upstreams: (!spec.internal).then(|| spec.dns.upstreams.clone().into()),
            hosts: HashMap::new(),
            reverse: HashMap::new(),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(&address))
    }

    fn add(&mut self, names: &super::Names, network: &NetworkKey, instance: Instance) {
        for address in &instance.addresses {
            let known = self.reverse.entry(*address).or_default();
            known.extend(names.everywhere.first().cloned());
        }
        let mut all: Vec<&String> =
            names.everywhere.iter().chain(names.aliases.get(network).into_iter().flatten()).collect();
        all.sort();
        all.dedup();
        for name in all {
            let host = self.hosts.entry(name.clone()).or_default();
            if names.ready {
                host.instances.push(instance.clone());
            }
        }
    }
}

impl Host {
    /// The addresses of a family, each time beginning with another one.
    fn addresses(&self, wanted: Wanted) -> Vec<IpAddr> {
        let all = self.instances.iter().flat_map(|instance| &instance.addresses).copied();
        let (mut found, turn): (Vec<IpAddr>, _) = match wanted {
            Wanted::V4 => (all.filter(IpAddr::is_ipv4).collect(), &self.turns[0]),
            Wanted::V6 => (all.filter(IpAddr::is_ipv6).collect(), &self.turns[1]),
            _ => return Vec::new(),
        };
        if found.len() > 1 {
            let first = turn.fetch_add(1, Ordering::Relaxed) % found.len();
            found.rotate_left(first);
        }
        found
    }

    fn services(&self, name: &str, protocol: Protocol) -> Vec<(u16, Arc<str>, Vec<IpAddr>)> {
        let mut found = Vec::new();
        for instance in &self.instances {
            let matching = instance.services.iter().filter(|s| s.name == name && s.protocol == protocol);
            found.extend(matching.map(|s| (s.port, instance.name.clone(), instance.addresses.clone())));
        }
        found
    }
}
