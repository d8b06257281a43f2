//! What our tables should hold, the one for IP here and the one for bridges in `guard`: fixed chains, rules and sets, and elements that follow from networks and ports.
//!
//! The rules never change. A network is some set elements and a published port is one map element, so their number
//! costs nothing per packet and a change is one small transaction.
//!
//! | chain | does |
//! | --- | --- |
//! | `spoofed` | drops packets from our networks to 127.0.0.0/8, which `route_localnet` would let in |
//! | `prerouting`, `output` | for the node's own addresses: `ports` |
//! | `ports` | translates published ports, first those of one address, then those of all |
//! | `postrouting` | masquerades what leaves, what the node itself sends through a published port, and hairpins |
//! | `forward` | isolation between networks; nothing but published ports from outside; nothing out of internal ones |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::encode::Family;
use super::expr::{Expr, Field, Verdict, has_bit, in_set, is, is_masked, masquerade, translate_destination, verdict};
use super::guard;
use crate::network::book::{self, Place};
use crate::network::{NetworkSpec, Protocol, PublishedPort, bridge_name, ipam};

/// The name of our tables.
pub(in crate::network) const TABLE: &str = "nodelet";

const IPV4: &[u8] = &[2];
const IPV6: &[u8] = &[10];
/// `IPS_DST_NAT`.
const STATUS_TRANSLATED: u32 = 1 << 5;
/// Established or related.
const STATE_KNOWN: u32 = 1 << 1 | 1 << 2;
/// `RTN_LOCAL` in the machine's byte order.
const TYPE_LOCAL: [u8; 4] = 2u32.to_ne_bytes();

/// Data types of keys and values as `nft` numbers them, so that it can print our table.
pub(super) const T_IPV4: u32 = 7;
pub(super) const T_IPV6: u32 = 8;
const T_PROTO: u32 = 12;
const T_PORT: u32 = 13;
pub(super) const T_LINK: u32 = 41;

pub(super) const fn concat(types: &[u32]) -> u32 {
    let (mut value, mut at) = (0, 0);
    while at < types.len() {
        value = value << 6 | types[at];
        at += 1;
    }
    value
}

/// A chain; without hook it is jumped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) family: Family,
    pub(super) name: &'static str,
    pub(super) hook: Option<Hook>,
}

/// Where a chain is called. The policy is always to accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

/// A set or, with data, a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) family: Family,
    pub(super) name: &'static str,
    pub(super) key: (u32, u32),
    pub(super) data: Option<(u32, u32)>,
    pub(super) interval: bool,
}

/// A rule; its comment is what it is recognised by.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) chain: &'static str,
    pub(super) comment: &'static str,
    pub(super) exprs: Vec<Expr>,
}

/// One element of a set. `end` marks the first key behind an interval.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Element {
    pub(in crate::network) key: Vec<u8>,
    pub(in crate::network) end: bool,
    pub(in crate::network) data: Option<Vec<u8>>,
}

/// The elements of each set.
pub(in crate::network) type Elements = BTreeMap<&'static str, BTreeSet<Element>>;

const fn hook(name: &'static str, kind: &'static str, number: u32, priority: i32) -> Chain {
    Chain { family: Family::Inet, name, hook: Some(Hook { kind, number, priority }) }
}

/// Chains for IP, callee first.
const CHAINS: [Chain; 6] = [
    Chain { family: Family::Inet, name: "ports", hook: None },
    hook("spoofed", "filter", 0, -300),
    hook("prerouting", "nat", 0, -100),
    hook("output", "nat", 3, -100),
    hook("postrouting", "nat", 4, 100),
    hook("forward", "filter", 2, 0),
];

const fn set(name: &'static str, kind: u32, length: u32) -> Set {
    Set { family: Family::Inet, name, key: (kind, length), data: None, interval: false }
}

const fn subnets(name: &'static str, kind: u32, length: u32) -> Set {
    Set { family: Family::Inet, name, key: (kind, length), data: None, interval: true }
}

const fn map(name: &'static str, key: (u32, u32), data: (u32, u32)) -> Set {
    Set { family: Family::Inet, name, key, data: Some(data), interval: false }
}

const TARGET4: (u32, u32) = (concat(&[T_IPV4, T_PORT]), 8);
const TARGET6: (u32, u32) = (concat(&[T_IPV6, T_PORT]), 20);

/// Sets and maps for IP.
const SETS: [Set; 14] = [
    set("bridges", T_LINK, 16),
    set("within", concat(&[T_LINK, T_LINK]), 32),
    set("internal", T_LINK, 16),
    set("open", T_LINK, 16),
    subnets("subnets4", T_IPV4, 4),
    subnets("subnets6", T_IPV6, 16),
    subnets("masquerade4", T_IPV4, 4),
    subnets("masquerade6", T_IPV6, 16),
    set("resolvers4", T_IPV4, 4),
    set("resolvers6", T_IPV6, 16),
    map("ports4", (concat(&[T_PROTO, T_PORT]), 8), TARGET4),
    map("ports6", (concat(&[T_PROTO, T_PORT]), 8), TARGET6),
    map("hostports4", (concat(&[T_IPV4, T_PROTO, T_PORT]), 12), TARGET4),
    map("hostports6", (concat(&[T_IPV6, T_PROTO, T_PORT]), 24), TARGET6),
];

/// All chains, callee first. Their names are unique.
pub(super) fn chains() -> impl Iterator<Item = &'static Chain> {
    CHAINS.iter().chain(&guard::CHAINS)
}

/// All sets and maps. Their names are unique.
pub(super) fn sets() -> impl Iterator<Item = &'static Set> {
    SETS.iter().chain(&guard::SETS)
}

/// A rule of these parts.
pub(super) fn rule(chain: &'static str, comment: &'static str, parts: &[Vec<Expr>]) -> Rule {
    Rule { chain, comment, exprs: parts.concat() }
}

/// All rules, in order.
pub(super) fn rules() -> Vec<Rule> {
    let mut rules = for_ip();
    rules.extend(guard::rules());
    rules
}

fn for_ip() -> Vec<Rule> {
    use Field::*;
    let from_ours = || in_set(&[InputLink], "bridges", true);
    let to_ours = || in_set(&[OutputLink], "bridges", true);
    let to_elsewhere = || in_set(&[OutputLink], "bridges", false);
    let translated = || has_bit(TrackStatus, STATUS_TRANSLATED);
    let ip = |version: &[u8]| is(Family, version);
    let accept = || verdict(Verdict::Accept);
    let drop = || verdict(Verdict::Drop);
    let to_ports = || [is(DestinationType, &TYPE_LOCAL), verdict(Verdict::Jump("ports"))].concat();
    let to_names = || is(DestinationPort, &53u16.to_be_bytes());
    let to_loopback = || is_masked(Destination4, [0xff, 0, 0, 0], [127, 0, 0, 0]);
    vec![
        rule(
            "spoofed",
            "loopback addresses never come from a sandbox",
            &[from_ours(), ip(IPV4), to_loopback(), drop()],
        ),
        rule(
            "ports",
            "IPv4 sandboxes ask for names here, whoever publishes port 53",
            &[from_ours(), ip(IPV4), in_set(&[Destination4], "resolvers4", true), to_names(), accept()],
        ),
        rule(
            "ports",
            "IPv6 sandboxes ask for names here, whoever publishes port 53",
            &[from_ours(), ip(IPV6), in_set(&[Destination6], "resolvers6", true), to_names(), accept()],
        ),
        rule(
            "ports",
            "ports published on one IPv4 address",
            &[ip(IPV4), translate_destination(&[Destination4, Transport, DestinationPort], "hostports4", false)],
        ),
        rule(
            "ports",
            "ports published on all IPv4 addresses",
            &[ip(IPV4), translate_destination(&[Transport, DestinationPort], "ports4", false)],
        ),
        rule(
            "ports",
            "ports published on one IPv6 address",
            &[ip(IPV6), translate_destination(&[Destination6, Transport, DestinationPort], "hostports6", true)],
        ),
        rule(
            "ports",
            "ports published on all IPv6 addresses",
            &[ip(IPV6), translate_destination(&[Transport, DestinationPort], "ports6", true)],
        ),
        rule("prerouting", "published ports, from outside", &[to_ports()]),
        // Answers could not be routed back to ::1; clients go on to 127.0.0.1 when refused.
        rule(
            "output",
            "not by the IPv6 loopback address",
            &[ip(IPV6), is(Destination6, &std::net::Ipv6Addr::LOCALHOST.octets()), accept()],
        ),
        rule("output", "published ports, from the node", &[to_ports()]),
        rule(
            "postrouting",
            "the node through a published port",
            &[to_ours(), translated(), is(SourceType, &TYPE_LOCAL), masquerade()],
        ),
        rule(
            "postrouting",
            "IPv4 sandboxes through a published port",
            &[to_ours(), translated(), ip(IPV4), in_set(&[Source4], "subnets4", true), masquerade()],
        ),
        rule(
            "postrouting",
            "IPv6 sandboxes through a published port",
            &[to_ours(), translated(), ip(IPV6), in_set(&[Source6], "subnets6", true), masquerade()],
        ),
        rule(
            "postrouting",
            "IPv4 sandboxes to outside",
            &[to_elsewhere(), ip(IPV4), in_set(&[Source4], "masquerade4", true), masquerade()],
        ),
        rule(
            "postrouting",
            "IPv6 sandboxes to outside",
            &[to_elsewhere(), ip(IPV6), in_set(&[Source6], "masquerade6", true), masquerade()],
        ),
        rule("forward", "known connections", &[has_bit(TrackState, STATE_KNOWN), accept()]),
        // Bridged frames come here too where br_netfilter is on.
        rule("forward", "inside one network", &[in_set(&[InputLink, OutputLink], "within", true), accept()]),
        rule("forward", "out of internal networks", &[in_set(&[InputLink], "internal", true), drop()]),
        rule("forward", "into internal networks", &[in_set(&[OutputLink], "internal", true), drop()]),
        rule("forward", "published ports", &[translated(), to_ours(), accept()]),
        rule(
            "forward",
            "between networks that are not isolated",
            &[in_set(&[InputLink], "open", true), in_set(&[OutputLink], "open", true), accept()],
        ),
        rule("forward", "into isolated networks and unpublished ports", &[to_ours(), drop()]),
    ]
}

/// The elements that these networks, their attachments and ports need.
pub(in crate::network) fn elements<'a>(
    networks: impl Iterator<Item = &'a NetworkSpec>,
    places: impl Iterator<Item = &'a Place>,
    ports: impl Iterator<Item = &'a PublishedPort>,
) -> Elements {
    let mut elements: Elements = sets().map(|set| (set.name, BTreeSet::new())).collect();
    let mut add = |set: &'static str, element: Element| {
        elements.entry(set).or_default().insert(element);
    };
    for network in networks.filter(|network| network.driver.has_bridge()) {
        let link = link_key(bridge_name(&network.key).as_str());
        add("bridges", key(link.clone()));
        add("within", key([link.clone(), link.clone()].concat()));
        if network.internal {
            add("internal", key(link.clone()));
        }
        if !network.isolated {
            add("open", key(link));
        }
        for gateway in network.subnets.iter().filter(|_| network.dns.enabled).map(ipam::gateway) {
            let set = if gateway.is_ipv4() { "resolvers4" } else { "resolvers6" };
            add(set, key(address_bytes(gateway)));
        }
        for subnet in &network.subnets {
            let (all, outgoing) =
                if subnet.cidr.addr().is_ipv4() { ("subnets4", "masquerade4") } else { ("subnets6", "masquerade6") };
            for element in interval(subnet.cidr) {
                add(all, element.clone());
                if !network.internal {
                    add(outgoing, element);
                }
            }
        }
    }
    for (set, element) in places.flat_map(guard::of_place).chain(ports.map(port_element)) {
        add(set, element);
    }
    elements
}

pub(super) fn key(key: Vec<u8>) -> Element {
    Element { key, end: false, data: None }
}

/// A link's name as a key.
pub(super) fn link_key(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

pub(super) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// First address and the one behind the last; a subnet at the very end of the address space has no end.
fn interval(cidr: IpNet) -> Vec<Element> {
    let mut elements = vec![key(address_bytes(cidr.network()))];
    let behind = match cidr.broadcast() {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|n| n.to_be_bytes().to_vec()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|n| n.to_be_bytes().to_vec()),
    };
    elements.extend(behind.map(|key| Element { key, end: true, data: None }));
    elements
}

/// The map of a published port and its element there.
pub(in crate::network) fn port_element(port: &PublishedPort) -> (&'static str, Element) {
    let protocol: u8 = match port.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let padded = |port: u16| [port.to_be_bytes(), [0, 0]].concat();
    let mut key = vec![protocol, 0, 0, 0];
    key.extend(padded(port.host_port));
    let host = book::host_ip(port);
    let map = match (host.is_unspecified(), host.is_ipv4()) {
        (true, true) => "ports4",
        (true, false) => "ports6",
        (false, true) => "hostports4",
        (false, false) => "hostports6",
    };
    if !host.is_unspecified() {
        key.splice(0..0, address_bytes(host));
    }
    let data = [address_bytes(port.target_ip), padded(port.target_port)].concat();
    (map, Element { key, end: false, data: Some(data) })
}
