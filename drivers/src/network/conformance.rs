//! What every implementation of [`Networks`] has to do, run on the fake and on the kernel.

use std::path::PathBuf;

use super::fake::FakeNetworks;
use super::tests::world::{key, network, on_a_node, published, sandbox, wish};
use super::{Attachment, Error, NetworkEvent, Networks, PublishedPort};

/// The suite. `netns` makes a namespace to attach.
async fn suite(networks: &impl Networks, netns: impl Fn(&str) -> PathBuf) {
    let mut events = networks.events();
    assert_eq!(events.recv().await, Some(NetworkEvent::Resync), "the first event is always this");

    // Absence is success, and nothing is there.
    assert_eq!(networks.list_networks().await.unwrap(), []);
    assert!(!networks.repair_rules().await.unwrap());
    networks.remove_network(&key("n")).await.unwrap();
    networks.detach(&sandbox("a"), &key("n")).await.unwrap();
    networks.detach_all(&sandbox("a")).await.unwrap();
    networks.set_ports(&sandbox("a"), &[]).await.unwrap();
    networks.remove_rules().await.unwrap();

    // Networks: made twice is made once; a collision is named.
    let cidr = networks.free_subnet().await.unwrap().to_string();
    let n = network("n", &[&cidr]);
    let made = networks.ensure_network(&n).await.unwrap();
    assert!(made.complete);
    assert_eq!(made.link, super::bridge_name(&n.key));
    assert_eq!(networks.ensure_network(&n).await.unwrap(), made);
    assert_eq!(networks.list_networks().await.unwrap(), [made]);
    let overlap = networks.ensure_network(&network("m", &[&cidr])).await.unwrap_err();
    assert!(matches!(&overlap, Error::Overlap { other, .. } if other == "network n"), "{overlap}");
    assert_ne!(networks.free_subnet().await.unwrap().to_string(), cidr);
    for bad in [&[][..], &["10.1.0.0/24", "10.2.0.0/24"], &["10.1.0.1/24"], &["10.1.0.0/32"]] {
        let refused = networks.ensure_network(&network("m", bad)).await.unwrap_err();
        assert!(matches!(refused, Error::Unsupported { .. }), "{bad:?}: {refused}");
    }

    // Attachments: sticky, static, refused by name.
    let (a, b) = (netns("a"), netns("b"));
    let first = networks.attach(&wish("a", "n", &a, &[])).await.unwrap();
    assert!(first.complete && first.addresses.len() == 1 && first.host_link.as_str().len() <= 15);
    assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first);
    let mine = first.addresses[0].addr().to_string();
    let taken = networks.attach(&wish("b", "n", &b, &[&mine])).await.unwrap_err();
    assert_eq!(taken.to_string(), format!("network n: address {mine} is used by sandbox a"));
    let stray = networks.attach(&wish("b", "n", &b, &["172.31.255.1"])).await.unwrap_err();
    assert_eq!(stray.to_string(), format!("network n: address 172.31.255.1 is not in {cidr}"));
    let second = networks.attach(&wish("b", "n", &b, &[])).await.unwrap();
    assert_ne!(first.addresses, second.addresses);
    assert_ne!(first.mac, second.mac);
    assert_eq!(networks.list_attachments().await.unwrap(), [first.clone(), second.clone()]);
    let recorded = networks.recorded_of(&sandbox("b")).await.unwrap();
    assert_eq!(recorded, [Attachment { complete: recorded[0].complete, ..second.clone() }]);
    assert_eq!(networks.attachments_of(&sandbox("b")).await.unwrap(), [second]);
    let missing = networks.attach(&wish("a", "none", &a, &[])).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound(_)));
    assert!(networks.remove_network(&key("n")).await.is_err(), "somebody is attached");

    // Ports: all or nothing, one owner.
    let ports: Vec<PublishedPort> = [8080, 8081].map(|port| published(None, port, &mine, 80)).to_vec();
    networks.set_ports(&sandbox("a"), &ports).await.unwrap();
    networks.set_ports(&sandbox("a"), &ports).await.unwrap();
    let wanted = [published(None, 8082, "10.89.0.9", 80), published(Some("127.0.0.1"), 8080, "10.89.0.9", 80)];
    let taken = networks.set_ports(&sandbox("b"), &wanted).await.unwrap_err();
    assert!(matches!(&taken, Error::PortTaken { owner, .. } if owner == "sandbox a"), "{taken}");
    let twice = networks.set_ports(&sandbox("b"), &[wanted[0].clone(), wanted[0].clone()]).await;
    assert!(matches!(twice, Err(Error::PortTaken { .. })));
    let crossed = networks.set_ports(&sandbox("b"), &[published(Some("::1"), 1, "10.89.0.9", 80)]).await;
    assert!(matches!(crossed, Err(Error::PortTaken { .. })));
    assert_eq!(networks.ports_of(&sandbox("b")).await.unwrap(), []);
    let listed: Vec<_> = ports.iter().map(|port| (port.clone(), true)).collect();
    assert_eq!(networks.ports_of(&sandbox("a")).await.unwrap(), listed);
    networks.set_ports(&sandbox("a"), &ports[1..]).await.unwrap();
    networks.set_ports(&sandbox("b"), &[wanted[1].clone()]).await.unwrap();
    assert_eq!(networks.list_ports().await.unwrap().len(), 2);

    // Ports move from one sandbox to another at once, or not at all.
    let moved = [published(None, 8081, "10.89.0.9", 80), published(None, 8083, "10.89.0.9", 80)];
    let foreign = networks.take_ports(&[sandbox("c")], &sandbox("b"), &moved).await.unwrap_err();
    assert!(matches!(&foreign, Error::PortTaken { owner, .. } if owner == "sandbox a"), "{foreign}");
    assert_eq!(networks.list_ports().await.unwrap().len(), 2);
    networks.take_ports(&[sandbox("a")], &sandbox("b"), &moved).await.unwrap();
    networks.take_ports(&[sandbox("a")], &sandbox("b"), &moved).await.unwrap();
    let listed: Vec<_> = moved.iter().map(|port| (sandbox("b"), port.clone(), true)).collect();
    assert_eq!(networks.list_ports().await.unwrap(), listed);
    networks.take_ports(&[sandbox("b")], &sandbox("a"), &ports[1..]).await.unwrap();
    assert_eq!(networks.list_ports().await.unwrap(), [(sandbox("a"), ports[1].clone(), true)]);

    // Removal: ports go with their address, addresses with their attachment.
    networks.detach(&sandbox("a"), &key("n")).await.unwrap();
    assert_eq!(networks.ports_of(&sandbox("a")).await.unwrap(), []);
    assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first, "the same address as before");
    networks.detach_all(&sandbox("a")).await.unwrap();
    networks.detach_all(&sandbox("b")).await.unwrap();
    assert_eq!(networks.list_attachments().await.unwrap(), []);
    assert_eq!(networks.list_ports().await.unwrap(), []);
    networks.remove_network(&key("n")).await.unwrap();
    networks.remove_rules().await.unwrap();
    assert_eq!(networks.list_networks().await.unwrap(), []);
}

#[tokio::test]
async fn the_fake_conforms() {
    suite(&FakeNetworks::new(), |name| PathBuf::from(name)).await;
}

#[test]
fn the_kernel_conforms() {
    on_a_node(|world| async move {
        suite(&world.networks(), |name| world.netns(name)).await;
    });
}
