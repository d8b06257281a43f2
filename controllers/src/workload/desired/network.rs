//! What a sandbox is attached to, and which of its ports are published. Pure.

use std::net::IpAddr;

use kube::ResourceExt;
use nodelet_crds::common::{condition_type, find_condition, is_true};
use nodelet_crds::network::NetworkDriver;
use nodelet_crds::reasons;
use nodelet_crds::workload::{Protocol as ApiProtocol, Workload};
use nodelet_drivers::network::Protocol;
use nodelet_drivers::sandbox::NetNamespace;

use super::super::dereference::References;
use super::super::model::{About, AttachWish, PortWish, Wait};
use super::wait_for;
use crate::invalid::Invalid;
use crate::names;

/// The network side of the sandbox.
pub(super) struct Net {
    pub(super) namespace: NetNamespace,
    pub(super) attachments: Vec<AttachWish>,
}

pub(super) fn network(object: &Workload, references: &References, waits: &mut Vec<Wait>) -> Result<Net, Invalid> {
    let none = |namespace| Net { namespace, attachments: Vec::new() };
    if let Some(other) = &object.spec.network_of {
        return Ok(match &references.network_of {
            Some(id) => none(NetNamespace::Of(id.clone())),
            None => {
                waits.push(wait_for(format!("networkOf: Workload {other:?} has no network yet")));
                none(NetNamespace::New)
            }
        });
    }
    let mut net = none(NetNamespace::New);
    for (index, attachment) in object.spec.attachments().iter().enumerate() {
        let path = format!("spec.networks[{index}]");
        let found = references.networks.get(&attachment.name).and_then(Option::as_ref);
        let driver = match (found, attachment.name.as_str()) {
            (Some(network), _) => network.spec.driver,
            (None, "host") => NetworkDriver::Host,
            (None, "none") => NetworkDriver::None,
            (None, name) => {
                waits.push(Wait {
                    reason: reasons::NOT_FOUND,
                    message: format!("{path}: Network {name:?} does not exist in this namespace"),
                    about: About::Networks,
                });
                continue;
            }
        };
        match driver {
            NetworkDriver::Host => return Ok(none(NetNamespace::Host)),
            NetworkDriver::None => return Ok(none(NetNamespace::New)),
            _ => {}
        }
        if let Some(network) = found {
            let conditions = network.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            if !is_true(conditions, condition_type::READY) {
                let why = find_condition(conditions, condition_type::READY).map_or("", |c| c.message.as_str());
                waits.push(Wait {
                    reason: reasons::NETWORKS_PENDING,
                    message: format!("Network {:?} is not ready: {why}", attachment.name)
                        .trim_end_matches(": ")
                        .to_owned(),
                    about: About::Networks,
                });
            }
        }
        let addresses = match &attachment.ip {
            None => Vec::new(),
            Some(ip) => vec![parse_ip(&format!("{path}.ip"), ip)?],
        };
        let network = names::network_key(&object.namespace().unwrap_or_default(), &attachment.name)
            .map_err(|error| Invalid::field(format!("{path}.name"), error))?;
        let through_node = matches!(driver, NetworkDriver::Bridge | NetworkDriver::Vxlan);
        let link = super::super::link_wish::link_wish(&path, attachment)?;
        net.attachments.push(AttachWish { network, addresses, link, through_node });
    }
    Ok(net)
}

pub(super) fn parse_ip(path: &str, text: &str) -> Result<IpAddr, Invalid> {
    text.parse().map_err(|_| Invalid::field(path, format!("{text:?} is not an IP address")))
}

/// The ports that are published at the node.
pub(super) fn ports(object: &Workload, net: &Net) -> Result<Vec<PortWish>, Invalid> {
    let mut ports: Vec<PortWish> = Vec::new();
    for (c, container) in object.spec.containers.iter().enumerate() {
        for (p, port) in container.ports.iter().enumerate() {
            let path = format!("spec.containers[{c}].ports[{p}]");
            let Some(host_port) = port.host_port else { continue };
            if net.namespace == NetNamespace::Host {
                // The container listens on the node itself.
                if host_port != port.container_port {
                    let message = "with the network host it must equal containerPort, or be left out";
                    return Err(Invalid::field(format!("{path}.hostPort"), message));
                }
                continue;
            }
            if net.attachments.is_empty()
                && net.namespace == NetNamespace::New
                && !object.spec.networks.is_empty()
                && object.spec.networks.iter().any(|n| n.name == "none")
            {
                let message = "a workload on the network none has no address to publish";
                return Err(Invalid::field(format!("{path}.hostPort"), message));
            }
            if !net.attachments.is_empty() && !net.attachments.iter().any(|attachment| attachment.through_node) {
                let message = "cannot be published: on a macvlan, ipvlan or cni network it is reached at the Workload's own address";
                return Err(Invalid::field(format!("{path}.hostPort"), message));
            }
            let host_ip = match port.host_ip.as_deref() {
                None | Some("" | "0.0.0.0" | "::") => None,
                Some(text) => Some(parse_ip(&format!("{path}.hostIP"), text)?),
            };
            let first = host_port;
            let last = port.host_port_end.unwrap_or(host_port);
            let fits = last.checked_sub(host_port).is_some_and(|more| port.container_port.checked_add(more).is_some());
            if !fits {
                let message = "is before hostPort, or the ports from containerPort on are not as many";
                return Err(Invalid::field(format!("{path}.hostPortEnd"), message));
            }
            let wish = |host_port: u16| PortWish {
                host_ip,
                host_port,
                protocol: match port.protocol {
                    ApiProtocol::Tcp => Protocol::Tcp,
                    ApiProtocol::Udp => Protocol::Udp,
                    ApiProtocol::Sctp => Protocol::Sctp,
                },
                target_port: port.container_port + (host_port - first),
            };
            let wish_of_first = wish(first);
            let clash = |other: &&PortWish| {
                (first..=last).contains(&other.host_port)
                    && other.protocol == wish_of_first.protocol
                    && (other.host_ip.is_none() || host_ip.is_none() || other.host_ip == host_ip)
            };
            if let Some(other) = ports.iter().find(clash) {
                let message = format!("{} is published twice by this workload", other.host_port);
                return Err(Invalid::field(format!("{path}.hostPort"), message));
            }
            ports.extend((first..=last).map(wish));
        }
    }
    Ok(ports)
}
