//! From a Network's spec to what the driver makes of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::ResourceExt;
use nodelet_crds::network::{Network, NetworkDriver, NetworkMode, Subnet as ApiSubnet};
use nodelet_drivers::ids::IfName;
use nodelet_drivers::network::{DnsSpec, Driver, IpvlanMode, MacvlanMode, NetworkSpec, Subnet};

use crate::invalid::Invalid;
use crate::names;

/// A Network, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// It is for other nodes.
    NotHere,
    /// `host` and `none`.
    NothingToMake,
    /// A bridge, or links on a parent, with these subnets.
    Made(NetworkSpec),
    /// A bridge whose subnet is still to be chosen.
    BridgeWithoutSubnet(NetworkSpec),
}

/// Checks the spec for a node with these labels; `chosen` are the subnets that an earlier pass chose.
pub fn validate(
    object: &Network,
    node_labels: &BTreeMap<String, String>,
    chosen: &[ApiSubnet],
) -> Result<Desired, Invalid> {
    let spec = &object.spec;
    Invalid::unsupported(nodelet_crds::unsupported::unsupported(spec))?;
    if spec.node_selector.as_ref().is_some_and(|selector| !selector.matches(node_labels)) {
        return Ok(Desired::NotHere);
    }
    let driver = match spec.driver {
        NetworkDriver::Host | NetworkDriver::None => return Ok(Desired::NothingToMake),
        NetworkDriver::Bridge => Driver::Bridge,
        NetworkDriver::Macvlan => {
            let mode = match spec.mode {
                Some(NetworkMode::Private) => MacvlanMode::Private,
                Some(NetworkMode::Vepa) => MacvlanMode::Vepa,
                Some(NetworkMode::Passthru) => MacvlanMode::Passthru,
                _ => MacvlanMode::Bridge,
            };
            Driver::Macvlan { parent: parent(spec)?, mode }
        }
        NetworkDriver::Ipvlan => {
            let mode = match spec.mode {
                Some(NetworkMode::L3) => IpvlanMode::L3,
                Some(NetworkMode::L3s) => IpvlanMode::L3s,
                _ => IpvlanMode::L2,
            };
            Driver::Ipvlan { parent: parent(spec)?, mode }
        }
        NetworkDriver::Vxlan | NetworkDriver::Cni => {
            return Err(Invalid::field("spec.driver", "only bridge, macvlan, ipvlan, host and none can be made"));
        }
    };
    if driver.parent().is_some() && spec.subnets.is_empty() {
        let message =
            "is needed with a parent: its subnet, with its router as gateway and a range that nobody else assigns";
        return Err(Invalid::field("spec.subnets", message));
    }
    let key = names::network_key(&object.namespace().unwrap_or_default(), &object.name_any())
        .map_err(|error| Invalid::field("metadata.name", error))?;
    let declared = if spec.subnets.is_empty() { chosen } else { &spec.subnets };
    let subnets = declared
        .iter()
        .enumerate()
        .map(|(index, subnet)| parse_subnet(subnet).map_err(|e| Invalid::field(format!("spec.subnets[{index}]"), e)))
        .collect::<Result<Vec<_>, _>>()?;
    for v6 in [false, true] {
        if subnets.iter().filter(|s| s.cidr.addr().is_ipv6() == v6).count() > 1 {
            return Err(Invalid::field("spec.subnets", "at most one IPv4 and one IPv6 subnet"));
        }
    }
    let network = NetworkSpec {
        key,
        driver,
        subnets,
        internal: spec.internal,
        isolated: spec.isolated,
        mtu: spec.mtu,
        dns: dns(spec)?,
    };
    Ok(if network.subnets.is_empty() { Desired::BridgeWithoutSubnet(network) } else { Desired::Made(network) })
}

fn parent(spec: &nodelet_crds::network::NetworkSpec) -> Result<IfName, Invalid> {
    let name = spec.parent.as_deref().unwrap_or_default();
    IfName::new(name).map_err(|error| Invalid::field("spec.parent", error))
}

/// Whether the network has a name server of ours.
pub fn answers_names(spec: &nodelet_crds::network::NetworkSpec) -> bool {
    // Of the others the node is no part.
    spec.driver == NetworkDriver::Bridge && spec.dns.as_ref().is_none_or(|dns| dns.enabled)
}

fn dns(spec: &nodelet_crds::network::NetworkSpec) -> Result<DnsSpec, Invalid> {
    let upstreams = spec.dns.iter().flat_map(|dns| &dns.upstreams).enumerate().map(|(index, text)| {
        let path = format!("spec.dns.upstreams[{index}]");
        text.parse().map_err(|_| Invalid::field(path, format!("{text:?} is not an IP address")))
    });
    Ok(DnsSpec { enabled: answers_names(spec), upstreams: upstreams.collect::<Result<_, _>>()? })
}

fn parse_subnet(subnet: &ApiSubnet) -> Result<Subnet, String> {
    let ip = |what: &str, text: &str| {
        text.trim().parse::<IpAddr>().map_err(|_| format!("{what} {text:?} is not an IP address"))
    };
    let cidr: ipnet::IpNet =
        subnet.cidr.parse().map_err(|_| format!("cidr {:?} is not a network such as 10.89.1.0/24", subnet.cidr))?;
    let gateway = subnet.gateway.as_deref().map(|text| ip("gateway", text)).transpose()?;
    let range = match subnet.range.as_deref().map(|text| text.split_once('-').ok_or(text)) {
        None => None,
        Some(Err(text)) => return Err(format!("range {text:?} is not first-last")),
        Some(Ok((first, last))) => {
            let (first, last) = (ip("range", first)?, ip("range", last)?);
            if first > last {
                return Err(format!("range {first}-{last} ends before it begins"));
            }
            Some((first, last))
        }
    };
    let inside = gateway.iter().chain(range.iter().flat_map(|(a, b)| [a, b]));
    if let Some(stranger) = inside.into_iter().find(|ip| !cidr.contains(*ip)) {
        return Err(format!("{stranger} is not in {cidr}"));
    }
    Ok(Subnet { cidr: cidr.trunc(), gateway, range })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(yaml: serde_json::Value) -> Network {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Network",
            "metadata": {"name": "front", "namespace": "default"}, "spec": yaml,
        }))
        .unwrap()
    }

    #[test]
    fn subnets_are_checked() {
        for (spec, expected) in [
            (serde_json::json!({"subnets": [{"cidr": "10.0.0.0/33"}]}), "not a network"),
            (serde_json::json!({"subnets": [{"cidr": "10.0.0.0/24", "gateway": "10.0.1.1"}]}), "10.0.1.1 is not in"),
            (serde_json::json!({"subnets": [{"cidr": "10.0.0.0/24", "range": "10.0.0.9-10.0.0.2"}]}), "ends before"),
            (serde_json::json!({"subnets": [{"cidr": "10.0.0.0/24"}, {"cidr": "10.0.1.0/24"}]}), "at most one IPv4"),
        ] {
            let invalid = validate(&network(spec), &BTreeMap::new(), &[]).unwrap_err();
            assert!(invalid.message.contains(expected), "{}", invalid.message);
        }
    }

    #[test]
    fn a_chosen_subnet_is_kept() {
        let chosen = [ApiSubnet { cidr: "10.89.7.0/24".into(), ..Default::default() }];
        let desired = validate(&network(serde_json::json!({})), &BTreeMap::new(), &chosen).unwrap();
        let Desired::Made(spec) = desired else { panic!("{desired:?}") };
        assert_eq!(spec.subnets[0].cidr.to_string(), "10.89.7.0/24");
    }
}
