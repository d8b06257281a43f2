//! Another hand breaks something of ours; it is told, and put back without touching what is sound.

use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::world::*;
use crate::network::{NetworkEvent, Networks, bridge_name};

/// Waits until this event comes; others before it are allowed.
async fn wait_for(events: &mut Receiver<NetworkEvent>, wanted: &NetworkEvent) {
    let search = async { while events.recv().await.as_ref() != Some(wanted) {} };
    timeout(Duration::from_secs(2), search).await.unwrap_or_else(|_| panic!("{wanted:?} was not told"));
}

/// Everything told until now.
fn drain(events: &mut Receiver<NetworkEvent>) -> Vec<NetworkEvent> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

#[test]
fn a_deleted_bridge_comes_back_with_its_ports() {
    on_a_node(|world| async move {
        let networks = world.networks();
        let mut events = networks.events();
        assert_eq!(events.recv().await, Some(NetworkEvent::Resync));
        let spec = network("n", &["10.89.0.0/24", "fd00:89::/64"]);
        networks.ensure_network(&spec).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        attach(&world, &networks, "b", "n", &["10.89.0.11", "fd00:89::11"]).await;
        let bridge = bridge_name(&spec.key);
        run("ip", &["link", "del", bridge.as_str()]);
        wait_for(&mut events, &NetworkEvent::Link(bridge.clone())).await;
        assert!(!networks.list_networks().await.unwrap()[0].complete);
        assert!(networks.list_attachments().await.unwrap().iter().all(|attachment| !attachment.complete));
        networks.ensure_network(&spec).await.unwrap();
        assert!(networks.list_networks().await.unwrap()[0].complete);
        assert!(networks.list_attachments().await.unwrap().iter().all(|attachment| attachment.complete));
        assert_eq!(inside(&a, || ask(("10.89.0.11", 80))).unwrap(), "b 10.89.0.10");
        assert_eq!(inside(&a, || ask(("fd00:89::11", 80))).unwrap(), "b fd00:89::10");
        assert_eq!(ask(("fd00:89::10", 80)).unwrap(), "a fd00:89::1");

        run("ip", &["link", "set", bridge.as_str(), "down"]);
        wait_for(&mut events, &NetworkEvent::Link(bridge.clone())).await;
        networks.ensure_network(&spec).await.unwrap();
        run("ip", &["addr", "flush", "dev", bridge.as_str()]);
        wait_for(&mut events, &NetworkEvent::Link(bridge.clone())).await;
        assert!(!networks.list_networks().await.unwrap()[0].complete);
        networks.ensure_network(&spec).await.unwrap();
        assert!(networks.list_networks().await.unwrap()[0].complete);
    });
}

#[test]
fn attach_repairs_either_end_and_the_bridge() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        let (a, first) = attach(&world, &networks, "a", "n", &[]).await;
        let target = first.addresses[0].addr().to_string();
        let mut events = networks.events();
        let host = first.host_link.as_str();
        let breaks: [&dyn Fn(); 7] = [
            &|| drop(run("ip", &["link", "del", host])),
            &|| drop(inside(&a, || run("ip", &["link", "del", "eth0"]))),
            &|| drop(run("ip", &["link", "set", host, "nomaster"])),
            &|| drop(run("ip", &["link", "set", host, "down"])),
            &|| drop(inside(&a, || run("ip", &["addr", "flush", "dev", "eth0"]))),
            &|| drop(inside(&a, || run("ip", &["route", "del", "default"]))),
            &|| drop(run("ip", &["link", "del", bridge_name(&key("n")).as_str()])),
        ];
        for (number, break_it) in breaks.into_iter().enumerate() {
            break_it();
            // What happens inside a namespace is not told to us, but it is seen.
            if number < 4 {
                wait_for(&mut events, &NetworkEvent::Link(first.host_link.clone())).await;
            }
            assert!(!networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete, "case {number}");
            assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first, "case {number}");
            assert!(networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete, "case {number}");
            assert!(ask((&target, 80)).unwrap().starts_with("a "), "case {number}");
        }
        // The sandbox is made anew under the same id: another namespace at the same path.
        world.drop_netns(&a);
        let a = world.netns("a");
        assert!(!networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete);
        assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first);
        serve(&a, "reborn", 80);
        assert!(ask((&target, 80)).unwrap().starts_with("reborn "));
    });
}

#[test]
fn flushed_rules_come_back_whole() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        attach(&world, &networks, "a", "n", &["10.89.0.10"]).await;
        let port = published(None, 8080, "10.89.0.10", 80);
        networks.set_ports(&sandbox("a"), std::slice::from_ref(&port)).await.unwrap();
        let before = run("nft", &["list", "ruleset"]);
        assert!(!networks.repair_rules().await.unwrap());
        run("nft", &["add", "table", "inet", "foreign"]);
        assert!(!networks.repair_rules().await.unwrap(), "what others do with their own tables is not ours");
        run("nft", &["delete", "table", "inet", "foreign"]);

        let mut events = networks.events();
        // And whether the published port is still in the map of a table that can be relied on.
        let breaks: [(&[&str], bool); 9] = [
            (&["flush", "ruleset"], false),
            (&["delete", "table", "inet", "nodelet"], false),
            (&["flush", "chain", "inet", "nodelet", "forward"], false),
            (&["flush", "map", "inet", "nodelet", "ports4"], false),
            (&["flush", "set", "inet", "nodelet", "masquerade6"], true),
            (&["insert", "rule", "inet", "nodelet", "forward", "drop"], false),
            (&["add", "element", "inet", "nodelet", "ports4", "{ tcp . 9999 : 10.89.0.99 . 1 }"], true),
            (&["chain", "inet", "nodelet", "forward", "{ policy drop; }"], false),
            (&["add", "table", "inet", "nodelet", "{ flags dormant; }"], false),
        ];
        for (arguments, there) in breaks {
            run("nft", arguments);
            wait_for(&mut events, &NetworkEvent::Table).await;
            assert_eq!(networks.list_ports().await.unwrap()[0].2, there, "{arguments:?}");
            assert!(!networks.list_networks().await.unwrap()[0].complete, "{arguments:?}");
            assert!(networks.repair_rules().await.unwrap(), "{arguments:?}");
            assert_eq!(run("nft", &["list", "ruleset"]), before, "{arguments:?}");
            assert!(networks.list_ports().await.unwrap()[0].2);
            assert!(!networks.repair_rules().await.unwrap());
            assert_eq!(ask(("127.0.0.1", 8080)).unwrap(), "a 10.89.0.1");
        }
    });
}

#[test]
fn our_own_changes_wake_nobody() {
    on_a_node(|world| async move {
        let networks = world.networks();
        let spec = network("n", &["10.89.0.0/24", "fd00:89::/64"]);
        networks.ensure_network(&spec).await.unwrap();
        let mut events = networks.events();
        assert_eq!(events.recv().await, Some(NetworkEvent::Resync));
        for round in 0..5 {
            let (a, _) = attach(&world, &networks, &format!("a{round}"), "n", &["10.89.0.10"]).await;
            let id = sandbox(&format!("a{round}"));
            networks.set_ports(&id, &[published(None, 8080, "10.89.0.10", 80)]).await.unwrap();
            networks.set_ports(&id, &[published(None, 8081, "10.89.0.10", 80)]).await.unwrap();
            networks.ensure_network(&spec).await.unwrap();
            networks.repair_rules().await.unwrap();
            networks.detach_all(&id).await.unwrap();
            world.drop_netns(&a);
        }
        networks.remove_network(&spec.key).await.unwrap();
        // A change of another hand comes after all of ours.
        networks.ensure_network(&spec).await.unwrap();
        run("nft", &["flush", "ruleset"]);
        let mut told = Vec::new();
        while told.last() != Some(&NetworkEvent::Table) {
            told.push(timeout(Duration::from_secs(2), events.recv()).await.unwrap().unwrap());
        }
        assert_eq!(told, [NetworkEvent::Table]);
        assert_eq!(drain(&mut events), []);
    });
}
