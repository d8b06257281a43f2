//! The facts of the node in NodeState: capacity, versions, addresses.

use nodelet_crds::common::now;
use nodelet_crds::node_state::{
    CgroupMode, NodeAddress, NodeAddressType, NodeResources, NodeStateStatus, NodeVersions,
};
use nodelet_crds::quantity::Quantity;
use nodelet_drivers::cgroups::Version;
use nodelet_drivers::host::{self, Facts};

use crate::context::{Context, chain};

/// Fills in what is the node's own; what cannot be read keeps its old value.
pub async fn fill(ctx: &Context, status: &mut NodeStateStatus) {
    let data_dir = ctx.settings.data_dir.clone();
    let read = crate::blocking(move || Reading {
        facts: host::facts(),
        disk: host::disk(&data_dir),
        addresses: host::addresses(),
    });
    let reading = read.await;
    status.cgroup_mode = Some(match ctx.drivers.cgroups.version() {
        Version::V1 => CgroupMode::V1,
        Version::V2 => CgroupMode::V2,
    });
    status.boot_id = Some(reading.facts.boot_id.clone());
    status.agent_start_time.get_or_insert_with(now);
    let capacity = capacity(&reading);
    let allocatable = ctx.settings.allocatable();
    status.allocatable = Some(NodeResources {
        cpu: Some(Quantity::from_milli_cpu(allocatable.cpu_millis)),
        memory: Some(Quantity::from_bytes(allocatable.memory_bytes)),
        ..capacity.clone()
    });
    status.capacity = Some(capacity);
    status.versions = Some(versions(ctx, &reading.facts, status.versions.take()).await);
    match &reading.addresses {
        Ok(found) => status.addresses = addresses(&ctx.settings.node_name, found),
        Err(error) => tracing::warn!("reading the node's addresses: {}", chain(error)),
    }
}

struct Reading {
    facts: Facts,
    disk: std::io::Result<host::Disk>,
    addresses: std::io::Result<Vec<host::Address>>,
}

fn capacity(reading: &Reading) -> NodeResources {
    NodeResources {
        cpu: Some(Quantity::from_milli_cpu(u64::from(reading.facts.cpus) * 1000)),
        memory: Some(Quantity::from_bytes(reading.facts.memory_bytes)),
        ephemeral_storage: reading.disk.as_ref().ok().map(|disk| Quantity::from_bytes(disk.capacity_bytes)),
        pids: None,
    }
}

async fn versions(ctx: &Context, facts: &Facts, before: Option<NodeVersions>) -> NodeVersions {
    let before = before.unwrap_or_default();
    let (containerd, runtime) = match ctx.drivers.runtime.info().await {
        Ok(info) => (info.version, info.oci_runtime),
        Err(_) => (before.containerd, before.runtime),
    };
    NodeVersions {
        nodelet: ctx.settings.version.clone(),
        containerd,
        runtime,
        kernel: facts.kernel.clone(),
        os_image: facts.os_image.clone(),
        platform: format!("{}/{}", facts.os, facts.arch),
    }
}

/// The node's own addresses: those of our bridges are not where it is reached.
fn addresses(node: &str, found: &[host::Address]) -> Vec<NodeAddress> {
    let mut all = vec![NodeAddress { type_: NodeAddressType::Hostname, address: node.to_owned() }];
    for ip in reachable(found) {
        let address = NodeAddress { type_: NodeAddressType::InternalIP, address: ip.to_string() };
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// Those by which the node is reached from elsewhere.
pub(crate) fn reachable(found: &[host::Address]) -> Vec<std::net::IpAddr> {
    let leads_here = |address: &&host::Address| {
        let link_local = match address.ip {
            std::net::IpAddr::V4(ip) => ip.is_link_local(),
            std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !address.ip.is_loopback() && !link_local && !address.interface.starts_with("nl")
    };
    found.iter().filter(leads_here).map(|address| address.ip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_lead_to_the_node_are_told() {
        let of = |interface: &str, ip: &str| host::Address { interface: interface.into(), ip: ip.parse().unwrap() };
        let found = [of("lo", "127.0.0.1"), of("eth0", "192.0.2.7"), of("nl0a1b", "10.89.0.1"), of("eth0", "fe80::1")];
        let told: Vec<String> = addresses("edge", &found).into_iter().map(|a| a.address).collect();
        assert_eq!(told, ["edge", "192.0.2.7"]);
    }
}
