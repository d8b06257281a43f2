//! Networks on a link of the node: who reaches whom, by each driver, mode and address family.

use super::world::*;
use crate::ids::IfName;
use crate::network::{Driver, Error, IpvlanMode, MacvlanMode, NetworkEvent, NetworkSpec, Networks, Subnet};

const V4: &str = "192.0.2.0/24";
const V6: &str = "fd00:2::/64";

fn uplink() -> IfName {
    IfName::new("uplink").unwrap()
}

fn macvlan(mode: MacvlanMode) -> Driver {
    Driver::Macvlan { parent: uplink(), mode }
}

fn ipvlan(mode: IpvlanMode) -> Driver {
    Driver::Ipvlan { parent: uplink(), mode }
}

/// In the parent's own subnets, with the host outside as gateway.
fn on_uplink(name: &str, driver: Driver) -> NetworkSpec {
    let subnet = |cidr: &str, gateway: &str, range: (&str, &str)| Subnet {
        cidr: cidr.parse().unwrap(),
        gateway: Some(ip(gateway)),
        range: Some((ip(range.0), ip(range.1))),
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
fn is_possible(driver: &Driver) -> bool {
    let kind = if matches!(driver, Driver::Ipvlan { .. }) { "ipvlan" } else { "macvlan" };
    let words = ["link", "add", "probe0", "link", "uplink", "type", kind];
    std::process::Command::new("ip").args(words).output().is_ok_and(|output| output.status.success()) && {
        run("ip", &["link", "del", "probe0"]);
        true
    }
}

#[test]
fn every_driver_reaches_what_it_should_and_nothing_else() {
    // Same network, outside, from outside; the node is never reached from a link on its own.
    for (driver, same) in [
        (macvlan(MacvlanMode::Bridge), true),
        (macvlan(MacvlanMode::Private), false),
        (ipvlan(IpvlanMode::L2), true),
        (ipvlan(IpvlanMode::L3), true),
    ] {
        on_a_node(move |world| async move {
            let outside = world.outside();
            if !is_possible(&driver) {
                println!("{driver:?} is left out: this kernel does not have it");
                return;
            }
            serve(&outside, "outside", 7000);
            let networks = world.networks();
            let made = networks.ensure_network(&on_uplink("n", driver.clone())).await.unwrap();
            assert!(made.complete && made.link == uplink());
            let node = std::net::TcpListener::bind("[::]:7001").unwrap();
            let (a, first) = attach(&world, &networks, "a", "n", &[]).await;
            let (_, second) = attach(&world, &networks, "b", "n", &["192.0.2.150", "fd00:2::150"]).await;
            assert_eq!(first.mac.is_empty(), matches!(driver, Driver::Ipvlan { .. }));
            assert_eq!(
                networks.attachments_of(&sandbox("a")).await.unwrap(),
                std::slice::from_ref(&first),
                "{driver:?}"
            );
            for (family, gateway, host) in [(0, "192.0.2.9", "192.0.2.1"), (1, "fd00:2::9", "fd00:2::1")] {
                let (mine, other) = (first.addresses[family].addr(), second.addresses[family].addr());
                assert_eq!(inside(&a, || ask((gateway, 7000))).unwrap(), format!("outside {mine}"), "{driver:?}");
                assert_eq!(inside(&outside, || ask((&mine.to_string(), 80))).unwrap(), format!("a {gateway}"));
                let reached = inside(&a, || ask_shortly((&other.to_string(), 80))).ok();
                assert_eq!(reached, same.then(|| format!("b {mine}")), "{driver:?}");
                assert!(inside(&a, || is_closed((host, 7001))), "{driver:?}: the node is not a neighbour");
            }
            drop(node);
            // What breaks inside is seen and put right, with the same addresses.
            run_inside(&a, &["link", "del", "eth0"]);
            assert!(!networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete);
            assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first);
            run_inside(&a, &["addr", "flush", "dev", "eth0"]);
            assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first);
            let mine = first.addresses[0].addr().to_string();
            assert_eq!(inside(&outside, || ask((&mine, 80))).unwrap(), "a 192.0.2.9", "{driver:?}");

            assert_eq!(run("nft", &["list", "ruleset"]), "", "the node has no part in it");
            for name in ["a", "b"] {
                networks.detach_all(&sandbox(name)).await.unwrap();
            }
            assert_eq!(inside(&a, || run("ip", &["-br", "link"])).lines().count(), 1, "only lo is left");
            networks.remove_network(&key("n")).await.unwrap();
            assert!(networks.list_networks().await.unwrap().is_empty());
        });
    }
}

fn run_inside(netns: &std::path::Path, arguments: &[&str]) {
    inside(netns, || run("ip", arguments));
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
        for (break_it, repair, message) in [
            (&["link", "set", "uplink", "down"][..], &["link", "set", "uplink", "up"][..], "is down"),
            (&["link", "set", "uplink", "name", "other"], &["link", "set", "other", "name", "uplink"], "renamed"),
        ] {
            run("ip", break_it);
            let event = tokio::time::timeout(std::time::Duration::from_secs(5), events.recv()).await.unwrap();
            assert_eq!(event, Some(NetworkEvent::Link(uplink())));
            assert!(!networks.list_networks().await.unwrap()[0].complete);
            let refused = networks.ensure_network(&spec).await.unwrap_err().to_string();
            assert!(refused.contains(message), "{refused}");
            run("ip", repair);
            networks.ensure_network(&spec).await.unwrap();
            while events.try_recv().is_ok() {}
        }
    });
}
