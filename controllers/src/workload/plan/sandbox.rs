//! Rule 4: the sandbox and its network come before containers and are repaired without touching them.

use nodelet_drivers::ids::NetworkKey;
use nodelet_drivers::network::Attachment;

use super::{Planner, Step};
use crate::workload::model::Desired;

impl Planner<'_> {
    /// Rule 4. The ports are left to whoever has them unless `publish`.
    pub(super) fn ensure_sandbox(&mut self, publish: bool) {
        let wish = &self.desired.sandbox;
        let seen = self.observed.sandbox.as_ref();
        let fresh = seen.is_none_or(|s| !s.complete);
        if fresh {
            self.plan.steps.push(Step::EnsureSandbox);
        }
        let attachments = seen.map_or(&[][..], |s| &s.attachments);
        let mut attached = false;
        for attach in &wish.attachments {
            let fine = |a: &Attachment| a.spec.network == attach.network && a.complete && a.spec.link == attach.link;
            let fine = attachments.iter().any(fine);
            if fresh || !fine {
                self.plan.steps.push(Step::Attach { network: attach.network.clone() });
                attached = true;
            }
        }
        for gone in attachments.iter().filter(|a| !wish.attachments.iter().any(|w| w.network == a.spec.network)) {
            self.plan.steps.push(Step::Detach { network: gone.spec.network.clone() });
        }
        if publish && (attached || self.ports_differ()) {
            self.plan.steps.push(Step::SetPorts);
        }
        if fresh || attached || !self.observed.outdated_files.is_empty() {
            self.plan.steps.push(Step::WriteFiles);
        }
    }

    fn ports_differ(&self) -> bool {
        let Some(seen) = &self.observed.sandbox else { return !self.desired.sandbox.ports.is_empty() };
        let wanted = published_ports(self.desired, seen.attachments.iter());
        seen.ports.iter().any(|(_, in_kernel)| !in_kernel)
            || wanted.len() != seen.ports.len()
            || wanted.iter().any(|port| !seen.ports.iter().any(|(p, _)| p == port))
    }
}

/// The published ports of a workload, given where it is attached: its first attachment of the right family
/// that the node is a part of.
pub fn published_ports<'a>(
    desired: &Desired,
    attachments: impl Iterator<Item = &'a Attachment> + Clone,
) -> Vec<nodelet_drivers::network::PublishedPort> {
    let order = |key: &NetworkKey| desired.sandbox.attachments.iter().position(|a| a.network == *key && a.through_node);
    let mut places: Vec<_> = attachments.filter_map(|a| order(&a.spec.network).map(|n| (n, a))).collect();
    places.sort_by_key(|(n, _)| *n);
    let address =
        |v6: bool| places.iter().flat_map(|(_, a)| &a.addresses).map(ipnet::IpNet::addr).find(|ip| ip.is_ipv6() == v6);
    let mut ports = Vec::new();
    for wish in &desired.sandbox.ports {
        // Without a host address the port is published in every family the workload has.
        let families: &[bool] = match wish.host_ip {
            Some(ip) if ip.is_ipv6() => &[true],
            Some(_) => &[false],
            None => &[false, true],
        };
        for target_ip in families.iter().filter_map(|v6| address(*v6)) {
            ports.push(nodelet_drivers::network::PublishedPort {
                host_ip: wish.host_ip,
                host_port: wish.host_port,
                protocol: wish.protocol,
                target_ip,
                target_port: wish.target_port,
            });
        }
    }
    ports
}
