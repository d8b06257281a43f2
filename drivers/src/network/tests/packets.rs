//! Who reaches whom, and from which address it seems to come.

use super::world::*;
use crate::network::{NetworkSpec, Networks, Protocol, PublishedPort};

#[test]
fn sandboxes_of_a_network_reach_each_other_the_node_and_outside() {
    on_a_node(|world| async move {
        let outside = world.outside();
        serve(&outside, "outside", 7000);
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        let (b, _) = attach(&world, &networks, "b", "n", &["10.89.0.11", "fd00:89::11"]).await;
        for (from, to, answer) in [
            (&a, "10.89.0.11", "b 10.89.0.10"),
            (&b, "10.89.0.10", "a 10.89.0.11"),
            (&a, "fd00:89::11", "b fd00:89::10"),
            (&b, "fd00:89::10", "a fd00:89::11"),
        ] {
            assert_eq!(inside(from, || ask((to, 80))).unwrap(), answer);
            assert_eq!(inside(from, || ask_udp((to, 80))).unwrap(), answer);
        }
        // The node comes from the gateway's address; outside sees the node's.
        assert_eq!(ask(("10.89.0.10", 80)).unwrap(), "a 10.89.0.1");
        assert_eq!(ask(("fd00:89::10", 80)).unwrap(), "a fd00:89::1");
        assert_eq!(inside(&a, || ask(("192.0.2.9", 7000))).unwrap(), "outside 192.0.2.1");
        assert_eq!(inside(&a, || ask(("fd00:2::9", 7000))).unwrap(), "outside fd00:2::1");
        // Outside knows the way in, but nothing is published.
        assert!(inside(&outside, || is_closed(("10.89.0.10", 80))));
        assert!(inside(&outside, || is_closed(("fd00:89::10", 80))));
    });
}

#[test]
fn published_ports_answer_from_everywhere() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        networks.ensure_network(&network("other", &["10.89.1.0/24", "fd00:90::/64"])).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        let (b, _) = attach(&world, &networks, "b", "n", &["10.89.0.11", "fd00:89::11"]).await;
        let (c, _) = attach(&world, &networks, "c", "other", &["10.89.1.10", "fd00:90::10"]).await;
        let udp = |port: PublishedPort| PublishedPort { protocol: Protocol::Udp, ..port };
        let ports = [
            published(None, 8080, "10.89.0.10", 80),
            published(None, 8080, "fd00:89::10", 80),
            published(Some("192.0.2.1"), 8081, "10.89.0.10", 80),
            published(Some("127.0.0.1"), 8082, "10.89.0.10", 80),
            published(Some("fd00:2::1"), 8083, "fd00:89::10", 80),
            udp(published(None, 5353, "10.89.0.10", 80)),
            udp(published(None, 5353, "fd00:89::10", 80)),
        ];
        networks.set_ports(&sandbox("a"), &ports).await.unwrap();

        // Outside keeps its own address.
        assert_eq!(inside(&outside, || ask(("192.0.2.1", 8080))).unwrap(), "a 192.0.2.9");
        assert_eq!(inside(&outside, || ask(("fd00:2::1", 8080))).unwrap(), "a fd00:2::9");
        assert_eq!(inside(&outside, || ask(("192.0.2.1", 8081))).unwrap(), "a 192.0.2.9");
        assert_eq!(inside(&outside, || ask(("fd00:2::1", 8083))).unwrap(), "a fd00:2::9");
        assert_eq!(inside(&outside, || ask_udp(("192.0.2.1", 5353))).unwrap(), "a 192.0.2.9");
        assert_eq!(inside(&outside, || ask_udp(("fd00:2::1", 5353))).unwrap(), "a fd00:2::9");
        assert!(inside(&outside, || is_closed(("192.0.2.1", 8082))), "published on 127.0.0.1 only");

        // The node itself, by each of its addresses.
        for to in
            [("127.0.0.1", 8080), ("192.0.2.1", 8080), ("10.89.0.1", 8080), ("192.0.2.1", 8081), ("127.0.0.1", 8082)]
        {
            assert_eq!(ask(to).unwrap_or_else(|e| panic!("{to:?}: {e}")), "a 10.89.0.1", "{to:?}");
        }
        assert_eq!(ask_udp(("127.0.0.1", 5353)).unwrap(), "a 10.89.0.1");
        assert!(is_closed(("127.0.0.1", 8081)), "published on 192.0.2.1 only");
        for to in [("fd00:2::1", 8080), ("fd00:89::1", 8080), ("fd00:2::1", 8083)] {
            assert_eq!(ask(to).unwrap_or_else(|e| panic!("{to:?}: {e}")), "a fd00:89::1", "{to:?}");
        }

        // The kernel routes nothing that came by another link to ::1, so this is refused at once, not left hanging.
        assert_eq!(ask(("::1", 8080)).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

        // Hairpins: a neighbour, the sandbox itself, and a sandbox of another network through the node's address.
        for from in [&b, &a] {
            assert_eq!(inside(from, || ask(("192.0.2.1", 8080))).unwrap(), "a 10.89.0.1");
            assert_eq!(inside(from, || ask(("10.89.0.1", 8080))).unwrap(), "a 10.89.0.1");
            assert_eq!(inside(from, || ask(("fd00:2::1", 8080))).unwrap(), "a fd00:89::1");
            assert_eq!(inside(from, || ask_udp(("192.0.2.1", 5353))).unwrap(), "a 10.89.0.1");
        }
        assert_eq!(inside(&c, || ask(("192.0.2.1", 8080))).unwrap(), "a 10.89.0.1");
        assert_eq!(inside(&c, || ask(("fd00:2::1", 8080))).unwrap(), "a fd00:89::1");

        // What is no longer published is closed.
        networks.set_ports(&sandbox("a"), &ports[..1]).await.unwrap();
        assert_eq!(inside(&outside, || ask(("192.0.2.1", 8080))).unwrap(), "a 192.0.2.9");
        assert!(inside(&outside, || is_closed(("192.0.2.1", 8081))));
        assert!(inside(&outside, || is_closed(("fd00:2::1", 8080))));
    });
}

#[test]
fn networks_are_isolated_unless_both_say_otherwise() {
    on_a_node(|world| async move {
        let networks = world.networks();
        let open = |name, subnets: &[&str]| NetworkSpec { isolated: false, ..network(name, subnets) };
        networks.ensure_network(&network("closed", &["10.89.0.0/24", "fd00:a::/64"])).await.unwrap();
        networks.ensure_network(&open("open1", &["10.89.1.0/24", "fd00:b::/64"])).await.unwrap();
        networks.ensure_network(&open("open2", &["10.89.2.0/24", "fd00:c::/64"])).await.unwrap();
        let (closed, _) = attach(&world, &networks, "closed", "closed", &["10.89.0.10", "fd00:a::10"]).await;
        let (one, _) = attach(&world, &networks, "one", "open1", &["10.89.1.10", "fd00:b::10"]).await;
        let (two, _) = attach(&world, &networks, "two", "open2", &["10.89.2.10", "fd00:c::10"]).await;
        assert_eq!(inside(&one, || ask(("10.89.2.10", 80))).unwrap(), "two 10.89.1.10");
        assert_eq!(inside(&two, || ask(("fd00:b::10", 80))).unwrap(), "one fd00:c::10");
        for (from, to) in [
            (&closed, "10.89.1.10"),
            (&closed, "fd00:b::10"),
            (&one, "10.89.0.10"),
            (&one, "fd00:a::10"),
            (&two, "10.89.0.10"),
        ] {
            assert!(inside(from, || is_closed((to, 80))), "{to} from {}", from.display());
        }
        // Turned around while everything runs.
        networks.ensure_network(&open("closed", &["10.89.0.0/24", "fd00:a::/64"])).await.unwrap();
        assert_eq!(inside(&one, || ask(("10.89.0.10", 80))).unwrap(), "closed 10.89.1.10");
    });
}

#[test]
fn an_internal_network_has_no_way_out_but_the_node_has_a_way_in() {
    on_a_node(|world| async move {
        let outside = world.outside();
        serve(&outside, "outside", 7000);
        let networks = world.networks();
        let internal = NetworkSpec { internal: true, ..network("inner", &["10.89.0.0/24", "fd00:89::/64"]) };
        networks.ensure_network(&internal).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "inner", &["10.89.0.10", "fd00:89::10"]).await;
        let (b, _) = attach(&world, &networks, "b", "inner", &["10.89.0.11"]).await;
        networks.set_ports(&sandbox("a"), &[published(None, 8080, "10.89.0.10", 80)]).await.unwrap();
        assert_eq!(inside(&b, || ask(("10.89.0.10", 80))).unwrap(), "a 10.89.0.11");
        assert_eq!(ask(("127.0.0.1", 8080)).unwrap(), "a 10.89.0.1");
        assert!(inside(&outside, || is_closed(("192.0.2.1", 8080))));
        // Even with a route of its own making.
        inside(&a, || run("ip", &["route", "add", "default", "via", "10.89.0.1"]));
        assert!(inside(&a, || is_closed(("192.0.2.9", 7000))));
    });
}

#[test]
fn a_sandbox_does_not_reach_the_loopback_of_the_node() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10"]).await;
        let secret = std::net::UdpSocket::bind("127.0.0.1:9999").unwrap();
        secret.set_nonblocking(true).unwrap();
        inside(&a, || {
            run("ip", &["addr", "del", "127.0.0.1/8", "dev", "lo"]);
        });
        // With 127.0.0.1 routed to the gateway, a packet does leave the sandbox.
        let sent = inside(&a, || {
            let _ = std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1");
            run("ip", &["route", "add", "127.0.0.1/32", "via", "10.89.0.1", "dev", "eth0"]);
            let socket = std::net::UdpSocket::bind("10.89.0.10:0")?;
            socket.send_to(b"?", "127.0.0.1:9999")
        });
        assert!(sent.is_ok(), "{sent:?}");
        std::thread::yield_now();
        assert!(secret.recv(&mut [0; 8]).is_err());
    });
}

#[test]
fn a_udp_client_that_never_pauses_follows_its_port() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        attach(&world, &networks, "a", "n", &["10.89.0.10"]).await;
        attach(&world, &networks, "b", "n", &["10.89.0.11"]).await;
        let udp = |target| PublishedPort { protocol: Protocol::Udp, ..published(None, 5353, target, 80) };
        let client = inside(&outside, || std::net::UdpSocket::bind("192.0.2.9:4000").unwrap());
        client.connect("192.0.2.1:5353").unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let ask = || {
            client.send(b"?").map_err(|e| e.to_string())?;
            let mut buffer = [0; 64];
            let length = client.recv(&mut buffer).map_err(|e| e.to_string())?;
            Ok::<_, String>(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        // Before it is published nobody answers, but the kernel remembers the connection.
        assert!(ask().is_err());
        networks.set_ports(&sandbox("a"), &[udp("10.89.0.10")]).await.unwrap();
        assert_eq!(ask().unwrap(), "a 192.0.2.9");
        networks.set_ports(&sandbox("a"), &[]).await.unwrap();
        networks.set_ports(&sandbox("b"), &[udp("10.89.0.11")]).await.unwrap();
        assert_eq!(ask().unwrap(), "b 192.0.2.9");
    });
}
