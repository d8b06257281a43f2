//! Networks over several nodes: the host outside is a second node with networks of its own.

use std::path::Path;

use super::world::*;
use crate::network::{Driver, LinuxNetworks, NetworkEvent, NetworkSpec, Networks, Subnet, Tunnel, book};

/// The network of both nodes: node `n` is its gateway with the address that ends with `n`.
fn spec(name: &str, vni: u32, peers: [&str; 2], node: u8) -> NetworkSpec {
    let net = vni % 250;
    let subnet = |cidr: String, gateway: String| Subnet {
        cidr: cidr.parse().unwrap(),
        gateway: Some(ip(&gateway)),
        range: None,
        exclude: Vec::new(),
    };
    NetworkSpec {
        driver: Driver::Vxlan(Tunnel { vni, port: 4789, peers: peers.map(ip).to_vec() }),
        subnets: vec![
            subnet(format!("10.100.{net}.0/24"), format!("10.100.{net}.{node}")),
            subnet(format!("fd00:100:{net}::/64"), format!("fd00:100:{net}::{node}")),
        ],
        ..network(name, &[])
    }
}

async fn member(world: &World, node: &LinuxNetworks, name: &str, network: &str, v4: &str, v6: &str) -> Member {
    let (netns, _) = attach(world, node, name, network, &[v4, v6]).await;
    Member { netns, v4: v4.to_owned(), v6: v6.to_owned() }
}

struct Member {
    netns: std::path::PathBuf,
    v4: String,
    v6: String,
}

fn mtu(netns: &Path) -> String {
    inside(netns, || run("ip", &["-o", "link", "show", "eth0"]))
        .split_whitespace()
        .skip_while(|word| *word != "mtu")
        .nth(1)
        .unwrap()
        .to_owned()
}

#[test]
fn sandboxes_of_two_nodes_share_a_network() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let first = world.networks();
        let second_dir = world.run_dir().with_file_name("second");
        let second = inside(&outside, || LinuxNetworks::new(&second_dir).unwrap());
        // Each node's list names both, over IPv4 and over IPv6.
        for (name, vni, peers, room) in
            [("four", 42, ["192.0.2.1", "192.0.2.9"], "1450"), ("six", 43, ["fd00:2::1", "fd00:2::9"], "1430")]
        {
            first.ensure_network(&spec(name, vni, peers, 1)).await.unwrap();
            second.ensure_network(&spec(name, vni, peers, 2)).await.unwrap();
            let address = |host: u8| (format!("10.100.{vni}.{host}"), format!("fd00:100:{vni}::{host}"));
            let (here, there) = (address(10), address(20));
            let (mine, theirs) = (format!("a{name}"), format!("b{name}"));
            let a = member(&world, &first, &mine, name, &here.0, &here.1).await;
            let b = member(&world, &second, &theirs, name, &there.0, &there.1).await;
            assert_eq!(mtu(&a.netns), room);
            for (from, to, answer) in [
                (&a, &b.v4, format!("{theirs} {}", a.v4)),
                (&a, &b.v6, format!("{theirs} {}", a.v6)),
                (&b, &a.v4, format!("{mine} {}", b.v4)),
                (&b, &a.v6, format!("{mine} {}", b.v6)),
            ] {
                assert_eq!(inside(&from.netns, || ask((to, 80))).unwrap(), answer, "{name}");
                assert_eq!(inside(&from.netns, || ask_udp((to, 80))).unwrap(), answer, "{name}");
            }
            // A node and the other's sandbox, too: their gateways differ.
            assert_eq!(ask((&b.v4, 80)).unwrap(), format!("{theirs} 10.100.{vni}.1"));
            // The way out is each node's own.
            assert!(run("ip", &["-d", "link", "show", "type", "vxlan"]).contains("dstport 4789"));
        }
        assert!(first.list_networks().await.unwrap().iter().all(|network| network.complete));

        // A number is used once on a node.
        let twice = first.ensure_network(&spec("twice", 42, ["192.0.2.1", "192.0.2.9"], 1)).await;
        let twice = twice.unwrap_err().to_string();
        assert!(twice.contains("VNI 42 at port 4789 is that of network four"), "{twice}");
        let wide = NetworkSpec { mtu: Some(1500), ..spec("four", 42, ["192.0.2.1", "192.0.2.9"], 1) };
        let wide = first.ensure_network(&wide).await.unwrap_err().to_string();
        assert!(
            wide.contains("MTU 1500 does not fit: uplink") && wide.contains("1500, of which VXLAN needs 50"),
            "{wide}"
        );

        for (network, owner) in [("four", &first), ("six", &first), ("four", &second), ("six", &second)] {
            for sandbox_name in [format!("a{network}"), format!("b{network}")] {
                owner.detach_all(&sandbox(&sandbox_name)).await.unwrap();
            }
            owner.remove_network(&key(network)).await.unwrap();
        }
        assert_eq!(run("ip", &["link", "show", "type", "vxlan"]), "");
        assert_eq!(run("ip", &["link", "show", "type", "bridge"]), "");
    });
}

#[test]
fn a_lost_tunnel_is_told_and_comes_back_and_a_removed_peer_is_reached_no_more() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let first = world.networks();
        let second_dir = world.run_dir().with_file_name("second");
        let second = inside(&outside, || LinuxNetworks::new(&second_dir).unwrap());
        let peers = ["192.0.2.1", "192.0.2.9"];
        let made = first.ensure_network(&spec("n", 42, peers, 1)).await.unwrap();
        second.ensure_network(&spec("n", 42, peers, 2)).await.unwrap();
        let a = member(&world, &first, "a", "n", "10.100.42.10", "fd00:100:42::10").await;
        let b = member(&world, &second, "b", "n", "10.100.42.20", "fd00:100:42::20").await;
        assert_eq!(inside(&a.netns, || ask((&b.v4, 80))).unwrap(), "b 10.100.42.10");

        let mut events = first.events();
        assert_eq!(events.recv().await, Some(NetworkEvent::Resync));
        let tunnel = book::tunnel_name(&key("n"));
        run("ip", &["link", "del", tunnel.as_str()]);
        assert_eq!(events.recv().await, Some(NetworkEvent::Link(made.link.clone())), "told as the network's link");
        assert!(!first.list_networks().await.unwrap()[0].complete);
        first.ensure_network(&spec("n", 42, peers, 1)).await.unwrap();
        assert!(first.list_networks().await.unwrap()[0].complete);
        assert_eq!(inside(&a.netns, || ask((&b.v4, 80))).unwrap(), "b 10.100.42.10");

        run("bridge", &["fdb", "del", "00:00:00:00:00:00", "dev", tunnel.as_str(), "dst", "192.0.2.9"]);
        assert!(!first.list_networks().await.unwrap()[0].complete);
        first.ensure_network(&spec("n", 42, peers, 1)).await.unwrap();
        assert_eq!(inside(&a.netns, || ask((&b.v4, 80))).unwrap(), "b 10.100.42.10");

        // Another port; then nobody any more.
        let elsewhere = |peers: &[&str], port| NetworkSpec {
            driver: Driver::Vxlan(Tunnel { vni: 42, port, peers: peers.iter().map(|peer| ip(peer)).collect() }),
            ..spec("n", 42, ["192.0.2.1", "192.0.2.9"], 1)
        };
        first.ensure_network(&elsewhere(&peers, 4790)).await.unwrap();
        assert!(inside(&a.netns, || is_closed((&b.v4, 80))));
        first.ensure_network(&elsewhere(&peers, 4789)).await.unwrap();
        assert_eq!(inside(&a.netns, || ask((&b.v4, 80))).unwrap(), "b 10.100.42.10");
        first.ensure_network(&elsewhere(&["192.0.2.1"], 4789)).await.unwrap();
        assert!(inside(&a.netns, || is_closed((&b.v4, 80))));
    });
}
