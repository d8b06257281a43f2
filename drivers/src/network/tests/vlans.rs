//! Bridges joined to a VLAN of a link of the node.

use std::path::Path;
use std::process::Command;

use super::world::*;
use crate::ids::IfName;
use crate::network::{LinuxNetworks, NetworkEvent, NetworkSpec, Networks, Subnet, Vlan, book};

fn joined(name: &str, cidr: &str, id: u16) -> NetworkSpec {
    NetworkSpec { vlan: Some(Vlan { parent: IfName::new("uplink").unwrap(), id }), ..network(name, &[cidr]) }
}

/// Whether this kernel has VLANs: not all are built with them.
fn are_possible() -> bool {
    let words = ["link", "add", "link", "uplink", "name", "tagged", "type", "vlan", "id", "100"];
    Command::new("ip").args(words).output().unwrap().status.success() && {
        run("ip", &["link", "del", "tagged"]);
        true
    }
}

/// Gives the host outside the VLAN `id` as link `tagged`, with this address.
fn join_outside(outside: &Path, id: &str, address: &str) {
    inside(outside, || {
        run("ip", &["link", "add", "link", "eth0", "name", "tagged", "type", "vlan", "id", id]);
        run("ip", &["addr", "add", address, "dev", "tagged"]);
        run("ip", &["link", "set", "tagged", "up"]);
    });
}

#[test]
fn a_bridge_is_joined_to_a_vlan_or_the_missing_module_is_named() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let networks = world.networks();
        let spec = joined("n", "10.89.0.0/24", 100);
        if !are_possible() {
            leave_out("VLANs");
            let refused = networks.ensure_network(&spec).await.unwrap_err().to_string();
            let wanted = "network n: this kernel has no 8021q: install the module 8021q (modprobe 8021q), or a kernel with \
                          CONFIG_VLAN_8021Q";
            assert_eq!(refused, wanted);
            assert!(networks.list_networks().await.unwrap().is_empty());
            assert!(!run("ip", &["-o", "link"]).contains("nl"));
            return;
        }
        join_outside(&outside, "100", "10.89.0.99/24");
        serve(&outside, "neighbour", 7000);
        let mut events = networks.events();
        assert_eq!(events.recv().await, Some(NetworkEvent::Resync));
        let made = networks.ensure_network(&spec).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10"]).await;
        assert_eq!(inside(&a, || ask(("10.89.0.99", 7000))).unwrap(), "neighbour 10.89.0.10");
        assert_eq!(inside(&outside, || ask(("10.89.0.10", 80))).unwrap(), "a 10.89.0.99");
        let twice = networks.ensure_network(&joined("m", "10.90.0.0/24", 100)).await.unwrap_err().to_string();
        assert_eq!(twice, "network m: VLAN 100 of uplink is that of network n");

        let link = book::vlan_name(&key("n"));
        run("ip", &["link", "del", link.as_str()]);
        assert_eq!(events.recv().await, Some(NetworkEvent::Link(made.link)), "told as the network's link");
        assert!(!networks.list_networks().await.unwrap()[0].complete);
        networks.ensure_network(&spec).await.unwrap();
        assert_eq!(inside(&a, || ask(("10.89.0.99", 7000))).unwrap(), "neighbour 10.89.0.10");
        networks.detach_all(&sandbox("a")).await.unwrap();
        networks.remove_network(&key("n")).await.unwrap();
        assert!(!run("ip", &["-o", "link"]).contains("nl"));
    });
}

/// The network of both nodes in VLAN 100 of this parent: node `n` is its gateway with the address that ends with `n`.
fn of_both(parent: &str, node: u8) -> NetworkSpec {
    let subnet = |cidr: &str, gateway: String| Subnet {
        cidr: cidr.parse().unwrap(),
        gateway: Some(ip(&gateway)),
        range: None,
        exclude: Vec::new(),
    };
    NetworkSpec {
        subnets: vec![
            subnet("10.89.0.0/24", format!("10.89.0.{node}")),
            subnet("fd00:89::/64", format!("fd00:89::{node}")),
        ],
        vlan: Some(Vlan { parent: IfName::new(parent).unwrap(), id: 100 }),
        ..network("n", &[])
    }
}

#[test]
fn nodes_in_one_vlan_share_a_network_with_nobody_else() {
    on_a_node(|world| async move {
        let outside = world.outside();
        if !are_possible() {
            return leave_out("VLANs");
        }
        let first = world.networks();
        let second_dir = world.run_dir().with_file_name("second");
        let second = inside(&outside, || LinuxNetworks::new(&second_dir).unwrap());
        first.ensure_network(&of_both("uplink", 1)).await.unwrap();
        second.ensure_network(&of_both("eth0", 2)).await.unwrap();
        let (a, _) = attach(&world, &first, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        let (b, _) = attach(&world, &second, "b", "n", &["10.89.0.20", "fd00:89::20"]).await;
        for (from, to, answer) in [
            (&a, "10.89.0.20", "b 10.89.0.10"),
            (&a, "fd00:89::20", "b fd00:89::10"),
            (&b, "10.89.0.10", "a 10.89.0.20"),
            (&b, "fd00:89::10", "a fd00:89::20"),
        ] {
            assert_eq!(inside(from, || ask((to, 80))).unwrap(), answer);
            assert_eq!(inside(from, || ask_udp((to, 80))).unwrap(), answer);
        }
        // A node and the other's sandbox, too: their gateways differ.
        assert_eq!(ask(("10.89.0.20", 80)).unwrap(), "b 10.89.0.1");
        // A port that the first one publishes, by its address in the VLAN.
        first.set_ports(&sandbox("a"), &[published(None, 8080, "10.89.0.10", 80)]).await.unwrap();
        assert_eq!(inside(&b, || ask(("10.89.0.1", 8080))).unwrap(), "a 10.89.0.1");

        // The same host with the same address in another VLAN, and without one, is no neighbour.
        second.detach_all(&sandbox("b")).await.unwrap();
        second.remove_network(&key("n")).await.unwrap();
        let forget = || inside(&a, || run("ip", &["neigh", "flush", "all"]));
        forget();
        join_outside(&outside, "200", "10.89.0.20/24");
        serve(&outside, "stranger", 80);
        assert!(inside(&a, || is_closed(("10.89.0.20", 80))), "VLAN 200");
        assert!(inside(&outside, || is_closed(("10.89.0.10", 80))), "VLAN 200");
        inside(&outside, || {
            run("ip", &["link", "del", "tagged"]);
            run("ip", &["addr", "add", "10.89.0.20/24", "dev", "eth0"]);
        });
        assert!(inside(&a, || is_closed(("10.89.0.20", 80))), "untagged");
        assert!(inside(&outside, || is_closed(("10.89.0.10", 80))), "untagged");
        // It is there all the same: in VLAN 100 it is reached.
        inside(&outside, || run("ip", &["addr", "del", "10.89.0.20/24", "dev", "eth0"]));
        forget();
        join_outside(&outside, "100", "10.89.0.20/24");
        assert_eq!(inside(&a, || ask(("10.89.0.20", 80))).unwrap(), "stranger 10.89.0.10");
    });
}
