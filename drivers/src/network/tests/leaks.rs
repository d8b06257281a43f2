//! Nothing stays behind.

use super::world::*;
use crate::network::{Networks, Protocol, PublishedPort};

/// Everything of the node that we could have left something in.
pub(super) fn traces(world: &World) -> Vec<String> {
    let mut traces = vec![run("ip", &["-o", "addr"]), run("ip", &["route"]), run("ip", &["-6", "route"])];
    // Counters and times of addresses are no traces.
    traces.push(run("nft", &["list", "ruleset"]));
    let files = walk(&world.run_dir());
    traces.push(files.join("\n"));
    traces
}

pub(super) fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        found.extend(walk(&entry.path()));
    }
    found
}

#[test]
fn everything_is_removed() {
    on_a_node(|world| async move {
        let networks = world.networks();
        std::fs::remove_dir_all(world.run_dir().join("network")).unwrap();
        let before = traces(&world);
        for round in 0..3 {
            networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
            networks.ensure_network(&network("m", &["10.89.1.0/24"])).await.unwrap();
            for name in ["a", "b", "c"] {
                let (_, attachment) = attach(&world, &networks, &format!("{name}{round}"), "n", &[]).await;
                let port = PublishedPort {
                    host_ip: None,
                    host_port: u16::from(name.as_bytes()[0]),
                    protocol: Protocol::Udp,
                    target_ip: attachment.addresses[0].addr(),
                    target_port: 80,
                };
                networks.set_ports(&attachment.spec.sandbox, &[port]).await.unwrap();
            }
            assert_eq!(networks.list_ports().await.unwrap().len(), 3);
            // One goes by its attachment, one by its sandbox, and one lost its namespace before.
            networks.detach(&sandbox(&format!("a{round}")), &key("n")).await.unwrap();
            assert_eq!(networks.list_ports().await.unwrap().len(), 2, "a port of a freed address is closed");
            networks.detach_all(&sandbox(&format!("b{round}"))).await.unwrap();
            let refused = networks.remove_network(&key("n")).await.unwrap_err();
            assert!(refused.to_string().contains("still attached"), "{refused}");
            networks.detach_all(&sandbox(&format!("c{round}"))).await.unwrap();
            networks.detach_all(&sandbox(&format!("c{round}"))).await.unwrap();
            networks.remove_network(&key("n")).await.unwrap();
            networks.remove_network(&key("n")).await.unwrap();
            networks.remove_network(&key("m")).await.unwrap();
            networks.remove_rules().await.unwrap();
            assert_eq!(traces(&world), before);
        }
    });
}

#[test]
fn what_a_crash_left_is_found_and_removed() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &[]).await;
        attach(&world, &networks, "b", "n", &[]).await;
        networks.set_ports(&sandbox("a"), &[published(None, 8080, "10.89.0.10", 80)]).await.unwrap();
        drop(networks);
        // The node lost the namespace and the table meanwhile, and a record was half written.
        world.drop_netns(&a);
        run("nft", &["flush", "ruleset"]);
        let records = world.run_dir().join("network/attachments");
        std::fs::write(records.join("nlv0.tmp"), "{").unwrap();
        std::fs::write(records.join("nlv1.json"), "{").unwrap();
        let networks = world.networks();
        let found = networks.list_attachments().await.unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found.iter().filter(|attachment| attachment.complete).count(), 1);
        for attachment in found {
            networks.detach_all(&attachment.spec.sandbox).await.unwrap();
        }
        networks.remove_network(&key("n")).await.unwrap();
        networks.remove_rules().await.unwrap();
        assert!(!run("ip", &["-o", "link"]).contains("nl"));
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        let left: Vec<_> = walk(&world.run_dir()).into_iter().filter(|path| !path.ends_with("broken")).collect();
        assert!(left.iter().all(|path| path.ends_with("network") || path.ends_with("attachments")), "{left:?}");
    });
}
