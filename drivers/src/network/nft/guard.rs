//! What a sandbox may send onto its bridge: frames from its own hardware address and with its own addresses.
//!
//! A container with the right to send raw packets or to change its link could otherwise speak for its neighbours or for
//! the gateway. The rules look at a frame as it enters a bridge by the node's end of an attachment; frames of other ports
//! (a tunnel's, or those of a sandbox that may speak for others) pass. A sandbox is some set elements, so their number costs nothing per frame.
//!
//! | frame | passes if |
//! | --- | --- |
//! | IPv4 | hardware and source address are the sandbox's own, or the source is 0.0.0.0 |
//! | ARP | the same of the frame and of what it tells |
//! | IPv6 | hardware and source address are the sandbox's own, its link-local one included, or the source is `::` (as while an address is checked for duplicates); what a neighbour advertisement is about, too |
//! | router advertisements, redirects | never |
//! | tagged, others | never |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::encode::Family;
use super::expr::{Field, Verdict, in_set, is, verdict};
use super::ruleset::{
    Chain, Element, Hook, Rule, Set, T_IPV4, T_IPV6, T_LINK, address_bytes, concat, key, link_key, rule,
};
use crate::network::book::{Place, link_local};

/// `ether_addr` as `nft` numbers it, and what has no type of its own.
const T_ETHER: u32 = 9;
const T_INTEGER: u32 = 4;

const IPV4: [u8; 2] = 0x0800u16.to_be_bytes();
const ARP: [u8; 2] = 0x0806u16.to_be_bytes();
const IPV6: [u8; 2] = 0x86ddu16.to_be_bytes();
const ICMPV6: [u8; 1] = [58];
const ROUTER_ADVERTISEMENT: [u8; 1] = [134];
const NEIGHBOUR_ADVERTISEMENT: [u8; 1] = [136];
const REDIRECT: [u8; 1] = [137];

/// Where frames enter a bridge, before everything else there.
pub(super) const CHAINS: [Chain; 1] =
    [Chain { family: Family::Bridge, name: "senders", hook: Some(Hook { kind: "filter", number: 0, priority: -300 }) }];

const fn set(name: &'static str, key: (u32, u32)) -> Set {
    Set { family: Family::Bridge, name, key, data: None, interval: false }
}

/// The guarded links, and which addresses go with each.
pub(super) const SETS: [Set; 4] = [
    set("guarded", (T_LINK, 16)),
    set("senders4", (concat(&[T_LINK, T_ETHER, T_IPV4]), 28)),
    set("senders6", (concat(&[T_LINK, T_ETHER, T_IPV6]), 40)),
    set(ADVERTISED, (concat(&[T_LINK, T_ETHER, T_INTEGER]), 40)),
];

/// The set of what neighbour advertisements may be about. `nft` has no name for that field, so that it takes the set for
/// another type than that of addresses.
const ADVERTISED: &str = "advertised";

/// The rules, in order.
pub(super) fn rules() -> Vec<Rule> {
    use Field::*;
    let rule = |comment, parts: &[Vec<_>]| rule("senders", comment, parts);
    let frame = |kind: &[u8]| is(FrameType, kind);
    let icmp = |kind: &[u8]| [frame(&IPV6), is(Transport, &ICMPV6), is(IcmpType, kind)].concat();
    let own4 = |mac, address| in_set(&[InputLink, mac, address], "senders4", true);
    let accept = || verdict(Verdict::Accept);
    let drop = || verdict(Verdict::Drop);
    vec![
        // Most frames end here.
        rule("IPv4 by its own addresses", &[frame(&IPV4), own4(FrameSource, Source4), accept()]),
        rule("what does not come from a sandbox", &[in_set(&[InputLink], "guarded", false), accept()]),
        rule(
            "ARP about its own addresses",
            &[frame(&ARP), own4(FrameSource, ArpAddress), own4(ArpSource, ArpAddress), accept()],
        ),
        rule("a sandbox is no router", &[icmp(&ROUTER_ADVERTISEMENT), drop()]),
        rule("a sandbox redirects nobody", &[icmp(&REDIRECT), drop()]),
        rule(
            "another's address advertised",
            &[icmp(&NEIGHBOUR_ADVERTISEMENT), in_set(&[InputLink, FrameSource, Advertised], ADVERTISED, false), drop()],
        ),
        rule(
            "IPv6 by its own addresses",
            &[frame(&IPV6), in_set(&[InputLink, FrameSource, Source6], "senders6", true), accept()],
        ),
        rule("everything else of a sandbox", &[drop()]),
    ]
}

/// The elements of an attachment with a port on a bridge: none if it may speak for others.
pub(in crate::network) fn of_place(place: &Place) -> Vec<(&'static str, Element)> {
    if place.spec.link.speaks_for_others {
        return Vec::new();
    }
    let (link, mac) = (link_key(place.host_link().as_str()), place.mac());
    let member = |set, address: IpAddr| (set, key([&link[..], &mac, &[0; 2], &address_bytes(address)].concat()));
    let sender = |address: IpAddr| member(if address.is_ipv4() { "senders4" } else { "senders6" }, address);
    let unspecified = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let own = || place.addresses.iter().map(ipnet::IpNet::addr).chain([link_local(mac).into()]);
    let advertised = own().filter(IpAddr::is_ipv6).map(|address| member(ADVERTISED, address));
    own().chain(unspecified).map(sender).chain(advertised).chain([("guarded", key(link.clone()))]).collect()
}

/// What `nft` needs to know about the key of a set beyond its type, so that it can load again what it prints.
pub(super) fn key_notes(set: &Set) -> Option<Vec<u8>> {
    /// Kind and length of a list, or kind and value of a number.
    enum Note {
        List(u8, u8),
        Number(u8, u32),
    }
    use Note::{List, Number};
    // No byte order; the key is a concatenation (13) of what meta (9) tells as the link's name, of a field by name
    // (7: Ethernet's source), and of 128 bits behind the first 64 of the transport header.
    let link = [List(0, 14), Number(0, 9), List(1, 6), Number(0, 6)];
    let mac = [List(1, 20), Number(0, 7), List(1, 12), Number(0, 17), Number(1, 2)];
    let target = [List(2, 38), Number(0, 7), List(1, 30), Number(0, 0), Number(1, 0), Number(2, 3), Number(3, 64)];
    let notes = [Number(0, 0), List(3, 86), Number(0, 13), List(1, 78)];
    let notes = notes.into_iter().chain(link).chain(mac).chain(target).chain([Number(4, 128)]);
    let bytes = notes.flat_map(|note| match note {
        List(kind, length) => vec![kind, length],
        Number(kind, value) => [&[kind, 4][..], &value.to_ne_bytes()].concat(),
    });
    (set.name == ADVERTISED).then(|| bytes.collect())
}
