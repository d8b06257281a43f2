//! Who sends by an address that is not its own. Each attack is tried with our rules, without them, which shows that it is
//! one, and with them put back.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, ipproto, sendto, socket, sockopt};

use super::world::*;
use crate::network::{NetworkEvent, Networks};

const OTHER_MAC: &str = "02:00:00:00:66:66";

/// The attacker, the one it tries to deceive, and the one it poses as, all on one network with both families.
struct Cast {
    attacker: std::path::PathBuf,
    attacker_mac: String,
    deceived: std::path::PathBuf,
}

/// Tries to deceive; says whether it did.
type Attack = fn(&Cast) -> bool;

impl Cast {
    /// Whether a datagram with this source, an address of the attacker's loopback, arrives.
    fn arrives_from(&self, source: &str, to: &str) -> bool {
        let receiver = inside(&self.deceived, || UdpSocket::bind("[::]:0")).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let to = SocketAddr::new(ip(to), receiver.local_addr().unwrap().port());
        inside(&self.attacker, || {
            run("ip", &["addr", "replace", source, "dev", "lo", "nodad"]);
            UdpSocket::bind((ip(source), 0)).unwrap().send_to(b"?", to).unwrap();
        });
        receiver.recv(&mut [0; 8]).is_ok()
    }

    /// The hardware address that the deceived one has for an address, after asking for it.
    fn neighbour(&self, address: &str) -> String {
        inside(&self.deceived, || {
            let _ = ask_shortly((address, 80));
            run("ip", &["neigh", "show", address])
        })
    }

    /// Sends an ICMPv6 packet to everybody, as only packets that were never routed are believed.
    fn shout(&self, source: Ipv6Addr, packet: &[u8]) {
        inside(&self.attacker, || {
            let index = inside_index("eth0");
            let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
            sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
            rustix::net::bind(&socket, &SocketAddrV6::new(source, 0, 0, index)).unwrap();
            let everybody = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
            sendto(&socket, packet, rustix::net::SendFlags::empty(), &everybody).unwrap();
        });
    }
}

fn inside_index(link: &str) -> u32 {
    let shown = run("ip", &["-o", "link", "show", link]);
    shown.split(':').next().unwrap().trim().parse().unwrap()
}

/// The link-local address of a namespace's `eth0`, when it may be used: a second after the link is up.
fn link_local(netns: &Path) -> Ipv6Addr {
    let start = Instant::now();
    loop {
        let shown = inside(netns, || run("ip", &["-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"]));
        if !shown.contains("tentative") {
            return shown.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{shown}");
        std::thread::yield_now();
    }
}

/// Whether it becomes so within a moment.
fn soon(check: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        if check() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

fn advertise_neighbour(cast: &Cast) -> bool {
    // The true one is known.
    let before = cast.neighbour("fd00:89::12");
    assert!(before.contains("lladdr"), "{before}");
    let mac: Vec<u8> = cast.attacker_mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let target: Ipv6Addr = "fd00:89::12".parse().unwrap();
    // Type 136, the flag to override what is known, the target, and its hardware address.
    let packet = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &mac].concat();
    cast.shout("fd00:89::10".parse().unwrap(), &packet);
    let deceived =
        soon(|| inside(&cast.deceived, || run("ip", &["neigh", "show", "fd00:89::12"])).contains(&cast.attacker_mac));
    inside(&cast.deceived, || run("ip", &["neigh", "flush", "all"]));
    deceived
}

fn advertise_router(cast: &Cast) -> bool {
    // Type 134, a router for half an hour.
    cast.shout(link_local(&cast.attacker), &[134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0]);
    let deceived = soon(|| inside(&cast.deceived, || run("ip", &["-6", "route"])).contains("proto ra"));
    inside(&cast.deceived, || run("ip", &["-6", "route", "flush", "proto", "ra"]));
    deceived
}

fn answer_for_another(cast: &Cast) -> bool {
    inside(&cast.attacker, || run("ip", &["addr", "replace", "10.89.0.66/24", "dev", "eth0"]));
    let deceived = cast.neighbour("10.89.0.66").contains(&cast.attacker_mac);
    inside(&cast.attacker, || run("ip", &["addr", "del", "10.89.0.66/24", "dev", "eth0"]));
    inside(&cast.deceived, || run("ip", &["neigh", "flush", "all"]));
    deceived
}

fn change_hardware_address(cast: &Cast) -> bool {
    inside(&cast.attacker, || run("ip", &["link", "set", "eth0", "address", OTHER_MAC]));
    let reached = inside(&cast.attacker, || ask_shortly(("10.89.0.11", 80))).is_ok();
    inside(&cast.attacker, || run("ip", &["link", "set", "eth0", "address", &cast.attacker_mac]));
    inside(&cast.deceived, || run("ip", &["neigh", "flush", "all"]));
    reached
}

#[test]
fn a_sandbox_speaks_for_nobody_else() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        let (attacker, made) = attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        let (deceived, _) = attach(&world, &networks, "b", "n", &["10.89.0.11", "fd00:89::11"]).await;
        attach(&world, &networks, "c", "n", &["10.89.0.12", "fd00:89::12"]).await;
        let cast = Cast { attacker, attacker_mac: made.mac, deceived };
        let attacks: [(&str, Attack); 7] = [
            ("IPv4 source", |cast| cast.arrives_from("10.89.0.12", "10.89.0.11")),
            ("source of another network", |cast| cast.arrives_from("192.0.2.77", "10.89.0.11")),
            ("IPv6 source", |cast| cast.arrives_from("fd00:89::66", "fd00:89::11")),
            ("ARP answer", answer_for_another),
            ("neighbour advertisement", advertise_neighbour),
            ("router advertisement", advertise_router),
            ("hardware address", change_hardware_address),
        ];
        for (name, attack) in attacks {
            assert!(!attack(&cast), "{name}");
        }
        // What it says for itself arrives: by each family, and by its link-local address.
        for (to, answer) in [("10.89.0.11", "b 10.89.0.10"), ("fd00:89::11", "b fd00:89::10")] {
            assert_eq!(inside(&cast.attacker, || ask((to, 80))).unwrap(), answer);
        }
        let neighbour = link_local(&cast.deceived);
        let connected = inside(&cast.attacker, || -> io::Result<()> {
            let to = SocketAddrV6::new(neighbour, 80, 0, inside_index("eth0"));
            std::net::TcpStream::connect_timeout(&to.into(), Duration::from_secs(4)).map(drop)
        });
        connected.unwrap();
        inside(&cast.attacker, || run("ip", &["addr", "flush", "dev", "lo", "scope", "global"]));

        let before = run("nft", &["list", "ruleset"]);
        let mut events = networks.events();
        assert_eq!(events.recv().await, Some(NetworkEvent::Resync));
        run("nft", &["delete", "table", "bridge", "nodelet"]);
        for (name, attack) in attacks {
            assert!(attack(&cast), "{name} is no attack");
        }
        let told = tokio::time::timeout(Duration::from_secs(5), events.recv()).await.unwrap();
        assert_eq!(told, Some(NetworkEvent::Table));
        assert!(networks.repair_rules().await.unwrap());
        assert_eq!(run("nft", &["list", "ruleset"]), before);
        for (name, attack) in attacks {
            assert!(!attack(&cast), "{name} after the repair");
        }
        // Its rules go with it.
        networks.detach_all(&sandbox("a")).await.unwrap();
        assert!(!run("nft", &["list", "table", "bridge", "nodelet"]).contains(made.host_link.as_str()));
        assert!(!networks.repair_rules().await.unwrap());
    });
}
