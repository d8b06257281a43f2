//! Networks on a link of the node: what is repaired, and what is told of the parent.

use super::world::*;
use crate::ids::IfName;
use crate::network::{Driver, Error, IpvlanMode, MacvlanMode, NetworkEvent, NetworkSpec, Networks, Subnet};

const V4: &str = "192.0.2.0/24";
const V6: &str = "fd00:2::/64";

pub(super) fn uplink() -> IfName {
    IfName::new("uplink").unwrap()
}

fn macvlan(mode: MacvlanMode) -> Driver {
    Driver::Macvlan { parent: uplink(), mode }
}

fn ipvlan(mode: IpvlanMode) -> Driver {
    Driver::Ipvlan { parent: uplink(), mode }
}

/// In the parent's own subnets, with the host outside as gateway; where packets are routed, in subnets that the host outside
/// reaches by this node.
pub(super) fn on_uplink(name: &str, driver: Driver) -> NetworkSpec {
    if let Driver::Ipvlan { mode: IpvlanMode::L3 | IpvlanMode::L3s, .. } = driver {
        return NetworkSpec { driver, ..network(name, &["10.89.0.0/24", "fd00:89::/64"]) };
    }
    let subnet = |cidr: &str, gateway: &str, range: (&str, &str)| Subnet {
        cidr: cidr.parse().unwrap(),
        gateway: Some(ip(gateway)),
        range: Some((ip(range.0), ip(range.1))),
        exclude: Vec::new(),
    };
    NetworkSpec {
        driver,
        subnets: vec![
            subnet(V4, "192.0.2.9", ("192.0.2.100", "192.0.2.200")),
            subnet(V6, "fd00:2::9", ("fd00:2::100", "fd00:2::200")),
        ],
        ..network(name, &[])
    }
}

/// Whether this kernel has the driver: not all are built with ipvlan.
pub(super) fn is_possible(driver: &Driver) -> bool {
    let kind = if matches!(driver, Driver::Ipvlan { .. }) { "ipvlan" } else { "macvlan" };
    let words = ["link", "add", "probe0", "link", "uplink", "type", kind];
    std::process::Command::new("ip").args(words).output().is_ok_and(|output| output.status.success()) && {
        run("ip", &["link", "del", "probe0"]);
        true
    }
}

#[test]
fn a_link_on_a_parent_is_repaired_and_removed() {
    for driver in
        [macvlan(MacvlanMode::Bridge), ipvlan(IpvlanMode::L2), ipvlan(IpvlanMode::L3), ipvlan(IpvlanMode::L3s)]
    {
        on_a_node(move |world| async move {
            let outside = world.outside();
            let networks = world.networks();
            if !is_possible(&driver) {
                leave_out("ipvlan");
                let refused = networks.ensure_network(&on_uplink("n", driver)).await.unwrap_err().to_string();
                assert!(refused.contains("this kernel has no ipvlan: install the module ipvlan"), "{refused}");
                assert!(networks.list_networks().await.unwrap().is_empty());
                return;
            }
            // As most nodes have; it is another than that of the sandbox.
            run("ip", &["link", "add", "eth0", "type", "bridge"]);
            let made = networks.ensure_network(&on_uplink("n", driver.clone())).await.unwrap();
            assert!(made.complete && made.link == uplink());
            let (a, first) = attach(&world, &networks, "a", "n", &[]).await;
            assert_eq!(first.mac.is_empty(), matches!(driver, Driver::Ipvlan { .. }));
            let listed = networks.attachments_of(&sandbox("a")).await.unwrap();
            assert_eq!(listed, std::slice::from_ref(&first), "{driver:?}");
            // What breaks inside is seen and put right, with the same addresses.
            run_inside(&a, &["link", "del", "eth0"]);
            assert!(!networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete);
            assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first);
            run_inside(&a, &["addr", "flush", "dev", "eth0"]);
            assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first);
            for (own, asker) in first.addresses.iter().zip(["192.0.2.9", "fd00:2::9"]) {
                let mine = own.addr().to_string();
                assert_eq!(inside(&outside, || ask((&mine, 80))).unwrap(), format!("a {asker}"), "{driver:?}");
            }

            assert_eq!(run("nft", &["list", "ruleset"]), "", "the node has no part in it");
            networks.detach_all(&sandbox("a")).await.unwrap();
            assert_eq!(inside(&a, || run("ip", &["-br", "link"])).lines().count(), 1, "only lo is left");
            networks.remove_network(&key("n")).await.unwrap();
            assert!(networks.list_networks().await.unwrap().is_empty());
        });
    }
}

fn run_inside(netns: &std::path::Path, arguments: &[&str]) {
    inside(netns, || run("ip", arguments));
}

/// What the kernel would let happen, and take from those that were there first.
#[test]
fn networks_that_cannot_share_a_parent_are_refused() {
    on_a_node(|world| async move {
        world.outside();
        let networks = world.networks();
        let first = on_uplink("first", macvlan(MacvlanMode::Bridge));
        networks.ensure_network(&first).await.unwrap();
        let other_mode = on_uplink("first", macvlan(MacvlanMode::Private));
        let refused = networks.ensure_network(&other_mode).await.unwrap_err().to_string();
        assert_eq!(refused, "network first: its driver, mode, parent and VLAN cannot change: remove it first");
        let beside = |driver| NetworkSpec { driver, ..network("second", &["198.51.100.0/24"]) };
        for (driver, reason) in [
            (
                ipvlan(IpvlanMode::L2),
                "its parent uplink carries macvlan of network first, and cannot carry ipvlan, too",
            ),
            (macvlan(MacvlanMode::Passthru), "its parent uplink carries network first, and passthru takes all of it"),
        ] {
            let refused = networks.ensure_network(&beside(driver)).await.unwrap_err().to_string();
            assert_eq!(refused, format!("network second: {reason}"));
        }
        networks.ensure_network(&beside(macvlan(MacvlanMode::Private))).await.unwrap();
        networks.remove_network(&key("second")).await.unwrap();
        networks.remove_network(&key("first")).await.unwrap();
        if !is_possible(&ipvlan(IpvlanMode::L2)) {
            return leave_out("ipvlan");
        }
        networks.ensure_network(&on_uplink("first", ipvlan(IpvlanMode::L2))).await.unwrap();
        let refused = networks.ensure_network(&beside(ipvlan(IpvlanMode::L3))).await.unwrap_err().to_string();
        let reason = "all ipvlan links of uplink have one mode, and those of network first have l2";
        assert_eq!(refused, format!("network second: {reason}"));
    });
}

#[test]
fn a_parent_that_is_missing_down_or_renamed_is_told() {
    on_a_node(|world| async move {
        let networks = world.networks();
        let spec = on_uplink("n", macvlan(MacvlanMode::Bridge));
        let refused = networks.ensure_network(&spec).await.unwrap_err().to_string();
        assert!(refused.contains("parent uplink is not on this node"), "{refused}");
        world.outside();
        let too_large = NetworkSpec { mtu: Some(9000), ..spec.clone() };
        let refused = networks.ensure_network(&too_large).await.unwrap_err().to_string();
        assert!(refused.contains("MTU 9000 does not fit its parent uplink, which has 1500"), "{refused}");
        networks.ensure_network(&spec).await.unwrap();
        let bridge = NetworkSpec { driver: Driver::Bridge, ..spec.clone() };
        assert!(matches!(networks.ensure_network(&bridge).await, Err(Error::Unsupported { .. })));
        let mut events = networks.events();
        assert_eq!(events.recv().await, Some(NetworkEvent::Resync));
        // Kernels before 6.2 rename no link that is up.
        for (break_it, repair, message) in [
            (&["uplink down"][..], &["uplink up"][..], "is down"),
            (
                &["uplink down", "uplink name other", "other up"],
                &["other down", "other name uplink", "uplink up"],
                "renamed",
            ),
        ] {
            let set = |changes: &[&str]| {
                for change in changes {
                    let words: Vec<&str> = ["link", "set"].into_iter().chain(change.split(' ')).collect();
                    run("ip", &words);
                }
            };
            set(break_it);
            let event = tokio::time::timeout(std::time::Duration::from_secs(5), events.recv()).await.unwrap();
            assert_eq!(event, Some(NetworkEvent::Link(uplink())));
            assert!(!networks.list_networks().await.unwrap()[0].complete);
            let refused = networks.ensure_network(&spec).await.unwrap_err().to_string();
            assert!(refused.contains(message), "{refused}");
            set(repair);
            networks.ensure_network(&spec).await.unwrap();
            while events.try_recv().is_ok() {}
        }
    });
}
