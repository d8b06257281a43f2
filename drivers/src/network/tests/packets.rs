//! What `matrix` does not ask: ports of one address, and what changes while packets flow.

use super::world::*;
use crate::network::{NetworkSpec, Networks, Protocol, PublishedPort};

#[test]
fn a_port_of_one_address_answers_there_only_and_only_while_it_is_published() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        let ports = [
            published(None, 8080, "10.89.0.10", 80),
            published(Some("192.0.2.1"), 8081, "10.89.0.10", 80),
            published(Some("127.0.0.1"), 8082, "10.89.0.10", 80),
            published(Some("fd00:2::1"), 8083, "fd00:89::10", 80),
            published(None, 8084, "fd00:89::10", 80),
        ];
        networks.set_ports(&sandbox("a"), &ports).await.unwrap();
        assert_eq!(inside(&outside, || ask(("192.0.2.1", 8081))).unwrap(), "a 192.0.2.9");
        assert_eq!(inside(&outside, || ask(("fd00:2::1", 8083))).unwrap(), "a fd00:2::9");
        assert!(inside(&outside, || is_closed(("192.0.2.1", 8082))), "published on 127.0.0.1 only");
        for to in [("10.89.0.1", 8080), ("192.0.2.1", 8081), ("127.0.0.1", 8082)] {
            assert_eq!(ask(to).unwrap_or_else(|e| panic!("{to:?}: {e}")), "a 10.89.0.1", "{to:?}");
        }
        assert!(is_closed(("127.0.0.1", 8081)), "published on 192.0.2.1 only");
        for to in [("fd00:2::1", 8083), ("fd00:89::1", 8084)] {
            assert_eq!(ask(to).unwrap_or_else(|e| panic!("{to:?}: {e}")), "a fd00:89::1", "{to:?}");
        }
        // The kernel routes nothing that came by another link to ::1, so this is refused at once, not left hanging.
        assert_eq!(ask(("::1", 8084)).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

        networks.set_ports(&sandbox("a"), &ports[..1]).await.unwrap();
        assert_eq!(inside(&outside, || ask(("192.0.2.1", 8080))).unwrap(), "a 192.0.2.9");
        assert!(inside(&outside, || is_closed(("192.0.2.1", 8081))));
        assert!(inside(&outside, || is_closed(("fd00:2::1", 8083))));
    });
}

#[test]
fn a_bridge_forwards_ipv6_as_soon_as_it_has_a_port() {
    on_a_node(|world| async move {
        let networks = world.networks();
        let spec = network("n", &["fd00:89::/64"]);
        networks.ensure_network(&spec).await.unwrap();
        attach(&world, &networks, "a", "n", &["fd00:89::10"]).await;
        let bridge = crate::network::bridge_name(&key("n")).to_string();
        let addresses = || run("ip", &["-6", "addr", "show", "dev", &bridge]);
        // One, by us: the kernel's own would be in doubt for a moment at least.
        let are_settled = |shown: &str| shown.matches("fe80:").count() == 1 && !shown.contains("tentative");
        assert!(are_settled(&addresses()), "{}", addresses());
        run("ip", &["-6", "addr", "flush", "dev", &bridge, "scope", "link"]);
        assert!(!networks.list_networks().await.unwrap()[0].complete);
        networks.ensure_network(&spec).await.unwrap();
        assert!(are_settled(&addresses()), "{}", addresses());
    });
}

#[test]
fn the_first_packet_after_an_attachment_is_not_lost() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        let gateway = std::net::TcpListener::bind("[::]:7").unwrap();
        std::thread::spawn(move || gateway.incoming().for_each(drop));
        for n in 0..20 {
            let netns = world.netns(&format!("s{n}"));
            networks.attach(&wish(&format!("s{n}"), "n", &netns, &[])).await.unwrap();
            for to in ["10.89.0.1:7", "[fd00:89::1]:7"] {
                inside(&netns, || std::net::TcpStream::connect(to)).unwrap();
            }
            assert_eq!(inside(&netns, segments_sent_again), 0, "sandbox {n}");
        }
    });
}

/// `RetransSegs` of RFC 4022, for the calling thread's network namespace.
fn segments_sent_again() -> u64 {
    let counters = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut tcp = counters.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let at = names.split(' ').position(|name| name == "RetransSegs").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

#[test]
fn isolation_and_ways_out_change_while_sandboxes_run() {
    on_a_node(|world| async move {
        let outside = world.outside();
        serve(&outside, "outside", 7000);
        let networks = world.networks();
        let open = |name, subnets: &[&str]| NetworkSpec { isolated: false, ..network(name, subnets) };
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:a::/64"])).await.unwrap();
        networks.ensure_network(&open("open", &["10.89.1.0/24", "fd00:b::/64"])).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:a::10"]).await;
        let (b, _) = attach(&world, &networks, "b", "open", &["10.89.1.10", "fd00:b::10"]).await;
        // One side alone opens nothing.
        assert!(inside(&b, || is_closed(("10.89.0.10", 80))));
        assert!(inside(&a, || is_closed(("fd00:b::10", 80))));
        networks.ensure_network(&open("n", &["10.89.0.0/24", "fd00:a::/64"])).await.unwrap();
        assert_eq!(inside(&b, || ask(("10.89.0.10", 80))).unwrap(), "a 10.89.1.10");
        assert_eq!(inside(&a, || ask(("192.0.2.9", 7000))).unwrap(), "outside 192.0.2.1");
        // An internal network is not left by the route of before, either.
        let internal = NetworkSpec { internal: true, ..open("n", &["10.89.0.0/24", "fd00:a::/64"]) };
        networks.ensure_network(&internal).await.unwrap();
        assert!(inside(&a, || run("ip", &["route"])).contains("default"));
        assert!(inside(&a, || is_closed(("192.0.2.9", 7000))));
        assert!(inside(&b, || is_closed(("10.89.0.10", 80))));
    });
}

#[test]
fn who_gets_an_address_next_is_reached_at_once() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        let (neighbour, _) = attach(&world, &networks, "neighbour", "n", &["10.89.0.11", "fd00:89::11"]).await;
        for name in ["first", "second"] {
            attach(&world, &networks, name, "n", &["10.89.0.10", "fd00:89::10"]).await;
            // Neither the node nor a neighbour may go on sending to the hardware address of the first.
            assert_eq!(ask(("10.89.0.10", 80)).unwrap(), format!("{name} 10.89.0.1"));
            assert_eq!(ask(("fd00:89::10", 80)).unwrap(), format!("{name} fd00:89::1"));
            assert_eq!(inside(&neighbour, || ask(("10.89.0.10", 80))).unwrap(), format!("{name} 10.89.0.11"));
            assert_eq!(inside(&neighbour, || ask(("fd00:89::10", 80))).unwrap(), format!("{name} fd00:89::11"));
            networks.detach_all(&sandbox(name)).await.unwrap();
        }
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
