//! What is refused, what is kept, and what survives a restart of the agent.

use super::world::*;
use crate::network::{Error, LinuxNetworks, Networks, bridge_name};

#[test]
fn the_table_is_what_nft_would_write() {
    on_a_node(|world| async move {
        let networks = world.networks();
        let n = network("default/n", &["10.89.0.0/24", "fd00:89::/64"]);
        networks.ensure_network(&n).await.unwrap();
        networks
            .set_ports(
                &sandbox("a"),
                &[
                    published(None, 8080, "10.89.0.10", 80),
                    published(Some("192.0.2.1"), 81, "10.89.0.10", 80),
                    published(Some("fd00:2::1"), 82, "fd00:89::10", 80),
                ],
            )
            .await
            .unwrap();
        let netns = world.netns("a");
        let wish = wish("a", "default/n", &netns, &["10.89.0.10", "fd00:89::10"]);
        networks.attach(&wish).await.unwrap();
        let rules = run("nft", &["list", "ruleset"]);
        // Who saves all rules of the node can load them again; what `nft` adds to intervals goes again.
        let saved = world.run_dir().with_file_name("saved");
        std::fs::write(&saved, format!("flush ruleset\n{rules}")).unwrap();
        run("nft", &["-f", saved.to_str().unwrap()]);
        assert_eq!(run("nft", &["list", "ruleset"]), rules);
        networks.repair_rules().await.unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), rules);
        assert!(networks.list_networks().await.unwrap()[0].complete);
        insta::assert_snapshot!(rules);
    });
}

#[test]
fn addresses_are_kept_and_freed() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/29"])).await.unwrap();
        let netns = world.netns("a");
        let first = networks.attach(&wish("a", "n", &netns, &[])).await.unwrap();
        let again = networks.attach(&wish("a", "n", &netns, &[])).await.unwrap();
        assert_eq!(first, again);
        // The agent comes back and finds everything.
        drop(networks);
        let networks = world.networks();
        assert_eq!(networks.list_attachments().await.unwrap(), std::slice::from_ref(&first));
        assert!(networks.list_networks().await.unwrap()[0].complete);
        assert_eq!(networks.attach(&wish("a", "n", &netns, &[])).await.unwrap(), first);
        // A sandbox that comes again gets its address again.
        networks.detach_all(&sandbox("a")).await.unwrap();
        assert_eq!(networks.list_attachments().await.unwrap(), []);
        assert_eq!(networks.attach(&wish("a", "n", &netns, &[])).await.unwrap(), first);
        // Five can be given.
        for name in ["b", "c", "d", "e"] {
            networks.attach(&wish(name, "n", &world.netns(name), &[])).await.unwrap();
        }
        let full = networks.attach(&wish("f", "n", &world.netns("f"), &[])).await.unwrap_err();
        assert_eq!(full.to_string(), "network n: no free address in 10.89.0.0/29: 5 of 5 are used");
        networks.detach(&sandbox("c"), &key("n")).await.unwrap();
        networks.attach(&wish("f", "n", &world.netns("g"), &[])).await.unwrap();
    });
}

#[test]
fn subnets_that_overlap_are_refused_by_name() {
    on_a_node(|world| async move {
        world.outside();
        let networks = world.networks();
        networks.ensure_network(&network("a", &["10.89.0.0/24"])).await.unwrap();
        let refusal = |error: Error| error.to_string();
        let error = networks.ensure_network(&network("b", &["10.89.0.128/25"])).await.unwrap_err();
        assert_eq!(refusal(error), "network b: subnet 10.89.0.128/25 overlaps network a");
        let error = networks.ensure_network(&network("b", &["192.0.0.0/16"])).await.unwrap_err();
        assert_eq!(refusal(error), "network b: subnet 192.0.0.0/16 overlaps route 192.0.2.0/24 on uplink");
        let error = networks.ensure_network(&network("b", &["fd00::/16"])).await.unwrap_err();
        assert_eq!(refusal(error), "network b: subnet fd00::/16 overlaps route fd00:2::/64 on uplink");
        assert_eq!(networks.list_networks().await.unwrap().len(), 1);
        assert_eq!(networks.free_subnet().await.unwrap().to_string(), "10.89.1.0/24");
        run("ip", &["route", "add", "10.89.0.0/22", "via", "192.0.2.9"]);
        assert_eq!(networks.free_subnet().await.unwrap().to_string(), "10.89.4.0/24");
        // A network that is there stays there.
        networks.ensure_network(&network("a", &["10.89.0.0/24"])).await.unwrap();
    });
}

#[test]
fn a_port_has_one_owner() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:9090").unwrap();
        networks.set_ports(&sandbox("a"), &[published(None, 8080, "10.89.0.10", 80)]).await.unwrap();
        let ports = [published(None, 8081, "10.89.0.11", 80), published(Some("127.0.0.1"), 8080, "10.89.0.11", 80)];
        let error = networks.set_ports(&sandbox("b"), &ports).await.unwrap_err();
        assert_eq!(error.to_string(), "port Tcp 127.0.0.1:8080 is taken by sandbox a");
        let error = networks.set_ports(&sandbox("b"), &[published(None, 9090, "10.89.0.11", 80)]).await.unwrap_err();
        assert_eq!(error.to_string(), "port Tcp 0.0.0.0:9090 is taken by a listener on the node");
        // Nothing of it has happened.
        let listed = networks.list_ports().await.unwrap();
        assert_eq!(listed, [(sandbox("a"), published(None, 8080, "10.89.0.10", 80), true)]);
        drop(listener);
        networks.set_ports(&sandbox("b"), &[published(None, 9090, "10.89.0.11", 80)]).await.unwrap();
        networks.set_ports(&sandbox("a"), &[]).await.unwrap();
        networks.set_ports(&sandbox("b"), &ports).await.unwrap();
        // Ports are found again after a restart.
        drop(networks);
        let networks = world.networks();
        assert!(networks.list_ports().await.unwrap().iter().all(|(owner, _, there)| *owner == sandbox("b") && *there));
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let missing = world.run_dir().join("no-such-namespace");
        let error = networks.attach(&wish("a", "n", &missing, &[])).await.unwrap_err();
        assert!(error.to_string().starts_with("opening network namespace"), "{error}");
        let no_namespace = world.run_dir().join("file");
        std::fs::write(&no_namespace, "").unwrap();
        networks.attach(&wish("a", "n", &no_namespace, &[])).await.unwrap_err();
        let error = networks.attach(&wish("a", "no", &missing, &[])).await.unwrap_err();
        assert!(matches!(error, Error::NotFound(_)));
        assert_eq!(networks.list_attachments().await.unwrap(), []);
        assert!(!run("ip", &["link"]).contains("nlv"));
        let left = std::fs::read_dir(world.run_dir().join("network/attachments")).unwrap().count();
        assert_eq!(left, 0);
    });
}

#[test]
fn kernel_parameters_are_set_and_told() {
    on_a_node(|world| async move {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let networks: LinuxNetworks = world.networks();
        let n = network("n", &["10.89.0.0/24", "fd00:89::/64"]);
        networks.ensure_network(&n).await.unwrap();
        let value = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap();
        assert_eq!(value("ipv4/ip_forward"), "1\n");
        assert_eq!(value("ipv6/conf/all/forwarding"), "1\n");
        assert_eq!(value(&format!("ipv4/conf/{}/route_localnet", bridge_name(&n.key))), "1\n");
        let changed = networks.changed_sysctls().await.unwrap();
        let names: Vec<&str> = changed.iter().map(|change| change.name.as_str()).collect();
        assert!(names.contains(&"net.ipv4.ip_forward"), "{names:?}");
    });
}
