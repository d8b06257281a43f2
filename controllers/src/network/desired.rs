//! From a Network's spec to what the driver makes of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use kube::ResourceExt;
use nodelet_crds::network::{Network, NetworkDriver, NetworkMode, Subnet as ApiSubnet};
use nodelet_drivers::ids::IfName;
use nodelet_drivers::network::{
    CniConfig, DnsSpec, Driver, IpvlanMode, MacvlanMode, NetworkSpec, PLUGIN_DIRS, Subnet, Tunnel, Vlan,
};

use crate::invalid::Invalid;
use crate::names;

/// A Network, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// It is for other nodes.
    NotHere,
    /// `host` and `none`.
    NothingToMake,
    /// A bridge, with or without a tunnel, links on a parent, or what plugins make.
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
        NetworkDriver::Vxlan => Driver::Vxlan(tunnel(spec)?),
        NetworkDriver::Cni => Driver::Cni(plugins(spec)?),
    };
    let finds_subnet = matches!(driver, Driver::Bridge if spec.vlan.is_none());
    if !finds_subnet && !matches!(driver, Driver::Cni(_)) && spec.subnets.is_empty() {
        let message = match driver {
            Driver::Bridge => {
                "is needed with a VLAN: its subnet, with a gateway and a range that nobody else there has"
            }
            Driver::Vxlan(_) => "is needed: the same on all nodes, each with a gateway and a range of its own",
            _ => "is needed with a parent: its subnet, with its router as gateway and a range that nobody else assigns",
        };
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
        vlan: spec.vlan.map(|id| Ok(Vlan { parent: parent(spec)?, id })).transpose()?,
    };
    let chooses = network.driver == Driver::Bridge && network.subnets.is_empty();
    Ok(if chooses { Desired::BridgeWithoutSubnet(network) } else { Desired::Made(network) })
}

fn parent(spec: &nodelet_crds::network::NetworkSpec) -> Result<IfName, Invalid> {
    let name = spec.parent.as_deref().unwrap_or_default();
    IfName::new(name).map_err(|error| Invalid::field("spec.parent", error))
}

fn tunnel(spec: &nodelet_crds::network::NetworkSpec) -> Result<Tunnel, Invalid> {
    let Some(vxlan) = &spec.vxlan else {
        return Err(Invalid::field("spec.vxlan", "is needed for the driver vxlan"));
    };
    let peers = addresses("spec.vxlan.peers", &vxlan.peers)?;
    Ok(Tunnel { vni: vxlan.vni, port: vxlan.port, peers })
}

fn plugins(spec: &nodelet_crds::network::NetworkSpec) -> Result<CniConfig, Invalid> {
    let Some(cni) = &spec.cni else {
        return Err(Invalid::field("spec.cni", "is needed for the driver cni"));
    };
    let declared = cni.plugin_dirs.iter().map(PathBuf::from).collect::<Vec<_>>();
    let plugin_dirs = if declared.is_empty() { PLUGIN_DIRS.map(PathBuf::from).to_vec() } else { declared };
    Ok(CniConfig { config: PathBuf::from(&cni.config), plugin_dirs })
}

fn addresses(path: &str, texts: &[String]) -> Result<Vec<IpAddr>, Invalid> {
    let parse = |(index, text): (usize, &String)| {
        text.parse().map_err(|_| Invalid::field(format!("{path}[{index}]"), format!("{text:?} is not an IP address")))
    };
    texts.iter().enumerate().map(parse).collect()
}

/// Whether the network has a name server of ours.
pub fn answers_names(spec: &nodelet_crds::network::NetworkSpec) -> bool {
    // Of the others the node is no part.
    matches!(spec.driver, NetworkDriver::Bridge | NetworkDriver::Vxlan)
        && spec.dns.as_ref().is_none_or(|dns| dns.enabled)
}

fn dns(spec: &nodelet_crds::network::NetworkSpec) -> Result<DnsSpec, Invalid> {
    let upstreams = spec.dns.as_ref().map(|dns| dns.upstreams.as_slice()).unwrap_or_default();
    Ok(DnsSpec { enabled: answers_names(spec), upstreams: addresses("spec.dns.upstreams", upstreams)? })
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
    let exclude = subnet
        .exclude
        .iter()
        .map(|text| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (ip("exclude", first)?, ip("exclude", last)?);
            if !cidr.contains(&first) || !cidr.contains(&last) || first > last {
                return Err(format!("exclude {text:?} is not an address or first-last within {cidr}"));
            }
            Ok((first, last))
        })
        .collect::<Result<_, _>>()?;
    Ok(Subnet { cidr: cidr.trunc(), gateway, range, exclude })
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
    fn a_tunnel_has_addresses_of_peers_and_its_own_subnets() {
        let subnets = serde_json::json!([{"cidr": "10.0.0.0/24"}]);
        let vxlan = serde_json::json!({"vni": 42, "peers": ["192.0.2.1", "192.0.2.9"]});
        let spec = serde_json::json!({"driver": "vxlan", "vxlan": vxlan, "subnets": subnets});
        let Desired::Made(made) = validate(&network(spec), &BTreeMap::new(), &[]).unwrap() else { panic!() };
        let peers = ["192.0.2.1", "192.0.2.9"].map(|peer| peer.parse().unwrap()).to_vec();
        assert_eq!(made.driver, Driver::Vxlan(Tunnel { vni: 42, port: 4789, peers }));
        for (spec, expected) in [
            (serde_json::json!({"driver": "vxlan", "vxlan": {"vni": 1}}), "the same on all nodes"),
            (serde_json::json!({"driver": "vxlan", "subnets": subnets}), "is needed for the driver vxlan"),
            (
                serde_json::json!({"driver": "vxlan", "subnets": subnets, "vxlan": {"vni": 1, "peers": ["b"]}}),
                "\"b\" is not an IP address",
            ),
        ] {
            let invalid = validate(&network(spec), &BTreeMap::new(), &[]).unwrap_err();
            assert!(invalid.message.contains(expected), "{}", invalid.message);
        }
    }

    #[test]
    fn a_vlan_is_of_a_parent_and_has_its_own_subnets() {
        let subnets = serde_json::json!([{"cidr": "10.0.0.0/24"}]);
        let spec = serde_json::json!({"parent": "eth0", "vlan": 100, "subnets": subnets});
        let Desired::Made(made) = validate(&network(spec), &BTreeMap::new(), &[]).unwrap() else { panic!() };
        assert_eq!(made.vlan, Some(Vlan { parent: IfName::new("eth0").unwrap(), id: 100 }));
        assert_eq!(made.driver, Driver::Bridge);
        let spec = serde_json::json!({"parent": "eth0", "vlan": 100});
        let invalid = validate(&network(spec), &BTreeMap::new(), &[]).unwrap_err();
        assert!(invalid.message.contains("is needed with a VLAN"), "{}", invalid.message);
    }

    #[test]
    fn a_chosen_subnet_is_kept() {
        let chosen = [ApiSubnet { cidr: "10.89.7.0/24".into(), ..Default::default() }];
        let desired = validate(&network(serde_json::json!({})), &BTreeMap::new(), &chosen).unwrap();
        let Desired::Made(spec) = desired else { panic!("{desired:?}") };
        assert_eq!(spec.subnets[0].cidr.to_string(), "10.89.7.0/24");
    }
}
