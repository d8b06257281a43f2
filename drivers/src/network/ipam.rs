//! Choosing addresses: pure arithmetic over a subnet and what is taken in it.
//!
//! The search for a free address begins at a place computed from network and sandbox, so the same sandbox finds the
//! same address again as long as nobody else took it, without any memory of it; and an address just freed is not
//! the next one given away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Subnet;

/// An address as a number, and back.
fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn to_address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // The number came from an IPv4 subnet, so it fits.
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// First and last usable address of a subnet, network and broadcast address excluded where they exist.
fn usable(cidr: IpNet) -> (u128, u128) {
    let (first, last) = (to_number(cidr.network()), to_number(cidr.broadcast()));
    match cidr {
        IpNet::V4(v4) if v4.prefix_len() >= 31 => (first, last),
        IpNet::V4(_) => (first + 1, last - 1),
        IpNet::V6(v6) if v6.prefix_len() >= 127 => (first, last),
        // The first one is the anycast address of all routers.
        IpNet::V6(_) => (first + 1, last),
    }
}

/// The node's own address in the subnet.
pub(super) fn gateway(subnet: &Subnet) -> IpAddr {
    subnet.gateway.unwrap_or_else(|| to_address(usable(subnet.cidr).0, subnet.cidr.addr()))
}

/// The node's own address with the subnet's prefix length, as it is set on the bridge.
pub(super) fn gateway_net(subnet: &Subnet) -> IpNet {
    with_prefix(gateway(subnet), subnet.cidr)
}

/// An address with the prefix length of its subnet.
pub(super) fn with_prefix(address: IpAddr, cidr: IpNet) -> IpNet {
    IpNet::new(address, cidr.prefix_len()).unwrap_or(cidr)
}

/// First and last address that are given without being asked for.
fn pool(subnet: &Subnet) -> (u128, u128) {
    let (first, last) = usable(subnet.cidr);
    match subnet.range {
        Some((from, to)) => (first.max(to_number(from)), last.min(to_number(to))),
        None => (first, last),
    }
}

/// The parts of the pool that are left of exclusions and gateway, in order, as first and last.
fn spans(subnet: &Subnet) -> Vec<(u128, u128)> {
    let own = gateway(subnet);
    let mut holes: Vec<(u128, u128)> =
        subnet.exclude.iter().map(|(from, to)| (to_number(*from), to_number(*to))).collect();
    holes.push((to_number(own), to_number(own)));
    holes.sort_unstable();
    let (mut next, last) = pool(subnet);
    let mut spans = Vec::new();
    for (from, to) in holes {
        if from > next && next <= last {
            spans.push((next, last.min(from - 1)));
        }
        next = next.max(to.saturating_add(1));
    }
    if next <= last {
        spans.push((next, last));
    }
    spans
}

/// Why a subnet cannot be used.
pub(super) fn check_subnet(subnet: &Subnet) -> Result<(), String> {
    let inside = |address: IpAddr| subnet.cidr.contains(&address);
    if subnet.cidr.trunc() != subnet.cidr {
        return Err(format!("{} has host bits set: write {}", subnet.cidr, subnet.cidr.trunc()));
    }
    if subnet.cidr.prefix_len() == 0 || subnet.cidr.prefix_len() == subnet.cidr.max_prefix_len() {
        return Err(format!("{} has no room for a gateway and a sandbox", subnet.cidr));
    }
    let gateway = gateway(subnet);
    let (first, last) = usable(subnet.cidr);
    if !inside(gateway) || to_number(gateway) < first || to_number(gateway) > last {
        return Err(format!("gateway {gateway} is not a usable address of {}", subnet.cidr));
    }
    if let Some((from, to)) = subnet.range
        && (!inside(from) || !inside(to) || from > to)
    {
        return Err(format!("range {from}-{to} is not inside {}", subnet.cidr));
    }
    if let Some((from, to)) = subnet.exclude.iter().find(|(from, to)| !inside(*from) || !inside(*to) || from > to) {
        return Err(format!("exclusion {from}-{to} is not inside {}", subnet.cidr));
    }
    Ok(())
}

/// Why a wanted address of a subnet cannot be given; who else uses it is the caller's knowledge. It may lie outside
/// of the range, which is only for addresses nobody asked for.
pub(super) fn check_wanted(subnet: &Subnet, address: IpAddr) -> Result<(), String> {
    let (first, last) = usable(subnet.cidr);
    let number = to_number(address);
    if number < first || number > last {
        return Err(format!("is the network or broadcast address of {}", subnet.cidr));
    }
    if address == gateway(subnet) {
        return Err("is the gateway".to_owned());
    }
    Ok(())
}

/// No address is left: how many there are, and how many of them are used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted {
    pub(super) used: u64,
    pub(super) total: u64,
}

/// A free address of the subnet, searched from the place that `seed` names.
pub(super) fn pick(subnet: &Subnet, taken: &[IpAddr], seed: u64) -> Result<IpAddr, Exhausted> {
    let spans = spans(subnet);
    let size = spans.iter().fold(0u128, |sum, (from, to)| sum.saturating_add((to - from).saturating_add(1)));
    // The place among the spans' addresses, in order, and back.
    let nth = |mut n: u128| {
        spans.iter().find_map(|(from, to)| match n.checked_sub(to - from + 1) {
            Some(rest) => {
                n = rest;
                None
            }
            None => Some(from + n),
        })
    };
    let is_given = |number: &u128| spans.iter().any(|(from, to)| (from..=to).contains(&number));
    let mut blocked: Vec<u128> = taken.iter().filter(|a| subnet.cidr.contains(*a)).map(|a| to_number(*a)).collect();
    blocked.retain(is_given);
    blocked.sort_unstable();
    blocked.dedup();
    if size > blocked.len() as u128 {
        let start = u128::from(seed) % size;
        // Each blocked address can spoil one try.
        for step in 0..=blocked.len() as u128 {
            if let Some(candidate) = nth((start + step) % size)
                && blocked.binary_search(&candidate).is_err()
            {
                return Ok(to_address(candidate, subnet.cidr.addr()));
            }
        }
    }
    let clamp = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    Err(Exhausted { used: clamp(blocked.len() as u128), total: clamp(size) })
}

/// The private /24 subnets that a network without a wish can have, in order.
pub(super) fn candidates() -> impl Iterator<Item = IpNet> {
    let net = |a, b, c| IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), 24));
    (0..=255).map(move |c| net(10, 89, c)).chain((90..=99).flat_map(move |b| (0..=255).map(move |c| net(10, b, c))))
}

/// Whether two subnets share an address.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subnet(cidr: &str) -> Subnet {
        Subnet { cidr: cidr.parse().unwrap(), gateway: None, range: None, exclude: Vec::new() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_gateway_is_the_first_usable_address() {
        assert_eq!(gateway(&subnet("10.89.0.0/24")), ip("10.89.0.1"));
        assert_eq!(gateway(&subnet("10.89.0.0/31")), ip("10.89.0.0"));
        assert_eq!(gateway(&subnet("fd00:89::/64")), ip("fd00:89::1"));
        assert_eq!(gateway_net(&subnet("fd00:89::/64")).to_string(), "fd00:89::1/64");
    }

    #[test]
    fn a_full_subnet_says_how_full_it_is() {
        let small = subnet("10.0.0.0/29");
        let mut taken = Vec::new();
        for _ in 0..5 {
            taken.push(pick(&small, &taken, 7).unwrap());
        }
        taken.sort();
        assert_eq!(taken, [2, 3, 4, 5, 6].map(|n| ip(&format!("10.0.0.{n}"))));
        assert_eq!(pick(&small, &taken, 7), Err(Exhausted { used: 5, total: 5 }));
    }

    #[test]
    fn a_range_is_kept_to_and_may_hold_the_gateway() {
        let ranged = Subnet { range: Some((ip("10.0.0.1"), ip("10.0.0.3"))), ..subnet("10.0.0.0/24") };
        let first = pick(&ranged, &[], 0).unwrap();
        let second = pick(&ranged, &[first], 0).unwrap();
        assert_eq!([first, second], [ip("10.0.0.2"), ip("10.0.0.3")]);
        assert_eq!(pick(&ranged, &[first, second], 0), Err(Exhausted { used: 2, total: 2 }));
        // An address outside of the range does not count.
        assert_eq!(pick(&ranged, &[ip("10.0.0.9"), first], 0), Ok(second));
    }

    #[test]
    fn excluded_parts_are_not_given() {
        let exclude = vec![(ip("10.0.0.3"), ip("10.0.0.4")), (ip("10.0.0.6"), ip("10.0.0.6"))];
        let holed = Subnet { exclude, ..subnet("10.0.0.0/29") };
        let mut taken = Vec::new();
        for seed in 0..2 {
            taken.push(pick(&holed, &taken, seed).unwrap());
        }
        taken.sort();
        assert_eq!(taken, [ip("10.0.0.2"), ip("10.0.0.5")]);
        assert_eq!(pick(&holed, &taken, 3), Err(Exhausted { used: 2, total: 2 }));
        assert!(check_wanted(&holed, ip("10.0.0.3")).is_ok(), "who asks for one has it");
        let none = Subnet { exclude: vec![(ip("10.0.0.0"), ip("10.0.0.7"))], ..subnet("10.0.0.0/29") };
        assert_eq!(pick(&none, &[], 3), Err(Exhausted { used: 0, total: 0 }));
        let astray = Subnet { exclude: vec![(ip("10.0.1.0"), ip("10.0.1.7"))], ..subnet("10.0.0.0/29") };
        assert!(check_subnet(&astray).unwrap_err().contains("exclusion 10.0.1.0-10.0.1.7"));
    }

    #[test]
    fn the_same_seed_finds_the_same_address_again() {
        let net = subnet("10.89.0.0/24");
        let mine = pick(&net, &[], 1234).unwrap();
        let other = pick(&net, &[mine], 1234).unwrap();
        assert_ne!(mine, other);
        assert_eq!(pick(&net, &[other], 1234), Ok(mine));
    }

    #[test]
    fn bad_subnets_and_wishes_are_named() {
        assert!(check_subnet(&subnet("10.0.0.1/24")).unwrap_err().contains("10.0.0.0/24"));
        assert!(check_subnet(&subnet("10.0.0.1/32")).is_err());
        assert!(check_subnet(&Subnet { gateway: Some(ip("10.1.0.1")), ..subnet("10.0.0.0/24") }).is_err());
        assert!(check_subnet(&Subnet { gateway: Some(ip("fd00::1")), ..subnet("10.0.0.0/24") }).is_err());
        let backwards = Subnet { range: Some((ip("10.0.0.9"), ip("10.0.0.3"))), ..subnet("10.0.0.0/24") };
        assert!(check_subnet(&backwards).is_err());
        assert!(check_wanted(&subnet("10.0.0.0/24"), ip("10.0.0.255")).unwrap_err().contains("broadcast"));
        assert!(check_wanted(&subnet("10.0.0.0/24"), ip("10.0.0.1")).unwrap_err().contains("gateway"));
        assert!(check_wanted(&subnet("10.0.0.0/24"), ip("10.0.0.77")).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_picked_is_free_and_inside(seed: u64, taken in prop::collection::vec(2u8..250, 0..200)) {
            let net = subnet("10.89.3.0/24");
            let taken: Vec<IpAddr> = taken.iter().map(|n| ip(&format!("10.89.3.{n}"))).collect();
            let picked = pick(&net, &taken, seed).unwrap();
            prop_assert!(!taken.contains(&picked));
            prop_assert!(check_wanted(&net, picked).is_ok());
        }

        #[test]
        fn ipv6_subnets_of_any_size_work(seed: u64, prefix in 8u8..=126) {
            let net = subnet(&format!("fd00::/{prefix}"));
            let first = pick(&net, &[], seed).unwrap();
            prop_assert!(net.cidr.contains(&first) && first != gateway(&net));
        }
    }
}
