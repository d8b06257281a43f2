//! Sandboxes that may speak for others: one that routes for a network behind it, and one that bridges.

use std::path::Path;

use super::world::*;
use crate::network::{AttachSpec, LinkWish, LinuxNetworks, Networks};

/// Makes a namespace behind that of `gateway`: their links are `inner` and `eth0`, and it goes out by `via`.
fn behind(world: &World, gateway: &Path, inner: &str, address: &str, via: &str) -> std::path::PathBuf {
    let netns = world.netns(inner);
    let path = netns.to_str().unwrap();
    inside(gateway, || run("ip", &["link", "add", inner, "type", "veth", "peer", "name", "eth0", "netns", path]));
    inside(&netns, || {
        run("ip", &["addr", "add", address, "dev", "eth0"]);
        run("ip", &["link", "set", "eth0", "up"]);
        run("ip", &["route", "add", "default", "via", via]);
    });
    netns
}

async fn may_speak(networks: &LinuxNetworks, wish: &AttachSpec, for_others: bool) {
    let link = LinkWish { speaks_for_others: for_others, ..wish.link.clone() };
    networks.attach(&AttachSpec { link, ..wish.clone() }).await.unwrap();
}

async fn is_complete(networks: &LinuxNetworks) -> bool {
    networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete
}

#[test]
fn who_may_speak_for_others_routes_and_bridges_and_nobody_else_does() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let (a, made) = attach(&world, &networks, "a", "n", &["10.89.0.10"]).await;
        let (b, _) = attach(&world, &networks, "b", "n", &["10.89.0.11"]).await;
        let link = || run("ip", &["-o", "link", "show", made.host_link.as_str()]).split(':').next().map(str::to_owned);
        let before = link();
        let wish = wish("a", "n", &a, &["10.89.0.10"]);

        // A network behind it, as that of a VPN.
        let client = behind(&world, &a, "vpn", "10.200.0.2/24", "10.200.0.1");
        inside(&a, || {
            run("ip", &["addr", "add", "10.200.0.1/24", "dev", "vpn"]);
            run("ip", &["link", "set", "vpn", "up"]);
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        });
        inside(&b, || run("ip", &["route", "add", "10.200.0.0/24", "via", "10.89.0.10"]));
        assert!(inside(&client, || is_closed(("10.89.0.11", 80))), "nobody said that it may");
        may_speak(&networks, &wish, true).await;
        assert_eq!(inside(&client, || ask(("10.89.0.11", 80))).unwrap(), "b 10.200.0.2");

        // Something that is bridged to the network, as an engine within a container does it.
        let inner = behind(&world, &a, "inner", "10.89.0.50/24", "10.89.0.1");
        inside(&a, || {
            run("ip", &["link", "add", "br0", "type", "bridge", "forward_delay", "0"]);
            run("ip", &["link", "set", "br0", "up"]);
            run("ip", &["addr", "flush", "dev", "eth0"]);
            for port in ["eth0", "inner"] {
                run("ip", &["link", "set", port, "master", "br0", "up"]);
            }
            run("ip", &["addr", "add", "10.89.0.10/24", "dev", "br0"]);
            run("ip", &["route", "add", "default", "via", "10.89.0.1"]);
        });
        assert_eq!(inside(&inner, || ask(("10.89.0.11", 80))).unwrap(), "b 10.89.0.50");
        assert_eq!(inside(&a, || ask(("10.89.0.11", 80))).unwrap(), "b 10.89.0.10");
        assert!(is_complete(&networks).await, "how it uses its link is its own business");
        may_speak(&networks, &wish, true).await;
        assert_eq!(inside(&inner, || ask(("10.89.0.11", 80))).unwrap(), "b 10.89.0.50");
        assert_eq!(link(), before, "the link is the same");

        // It is taken back: what is inside is then put right as everywhere else, and speaks for itself only.
        inside(&a, || run("ip", &["link", "del", "br0"]));
        assert!(!is_complete(&networks).await, "its addresses went with the bridge");
        may_speak(&networks, &wish, false).await;
        assert!(is_complete(&networks).await);
        assert_eq!(inside(&a, || ask(("10.89.0.11", 80))).unwrap(), "b 10.89.0.10");
        assert!(inside(&client, || is_closed(("10.89.0.11", 80))));
        assert!(!networks.repair_rules().await.unwrap());
    });
}
