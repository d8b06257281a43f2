//! Published ports of SCTP, with real associations.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket, sockopt};

use super::world::*;
use crate::network::{Error, Networks, Protocol, PublishedPort};

/// A socket that is used as one of TCP is: one association, and a stream of bytes.
fn sctp(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, Some(ipproto::SCTP))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

fn listener(address: SocketAddr) -> TcpListener {
    let socket = sctp(&address).unwrap();
    bind(&socket, &address).unwrap();
    listen(&socket, 8).unwrap();
    socket.into()
}

/// Tells every client in a namespace its name and the client's address, by both families.
fn serve_sctp(netns: &Path, name: &str, port: u16) {
    for any in ["0.0.0.0", "::"] {
        let listener = inside(netns, || listener(SocketAddr::new(ip(any), port)));
        let name = name.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap();
                let _ = stream.write_all(format!("{name} {}", peer.ip().to_canonical()).as_bytes());
            }
        });
    }
}

fn ask_sctp(to: (&str, u16)) -> io::Result<String> {
    ask_within(to, Duration::from_secs(10))
}

fn ask_within(to: (&str, u16), patience: Duration) -> io::Result<String> {
    let to = SocketAddr::new(ip(to.0), to.1);
    let socket = sctp(&to)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    connect(&socket, &to)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn port(host_port: u16, target: &str) -> PublishedPort {
    PublishedPort { protocol: Protocol::Sctp, ..published(None, host_port, target, 80) }
}

#[test]
fn a_published_port_of_sctp_is_reached_from_everywhere() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        if sctp(&any).is_err() {
            return leave_out("SCTP");
        }
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        networks.ensure_network(&network("beside", &["10.90.0.0/24", "fd00:90::/64"])).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        let (b, _) = attach(&world, &networks, "b", "n", &["10.89.0.11", "fd00:89::11"]).await;
        let (c, _) = attach(&world, &networks, "c", "beside", &["10.90.0.10", "fd00:90::10"]).await;
        serve_sctp(&a, "a", 80);
        networks.set_ports(&sandbox("a"), &[port(8080, "10.89.0.10"), port(8080, "fd00:89::10")]).await.unwrap();
        let host = PathBuf::from("/proc/thread-self/ns/net");
        let mut wrong = Vec::new();
        for (way, from, to, expected) in [
            ("same network", &b, ("10.89.0.10", 80), "a 10.89.0.11"),
            ("same network", &b, ("fd00:89::10", 80), "a fd00:89::11"),
            ("from outside", &outside, ("192.0.2.1", 8080), "a 192.0.2.9"),
            ("from outside", &outside, ("fd00:2::1", 8080), "a fd00:2::9"),
            ("from the host", &host, ("192.0.2.1", 8080), "a 10.89.0.1"),
            ("from the host", &host, ("fd00:2::1", 8080), "a fd00:89::1"),
            ("localhost", &host, ("127.0.0.1", 8080), "a 10.89.0.1"),
            ("hairpin", &b, ("192.0.2.1", 8080), "a 10.89.0.1"),
            ("hairpin", &b, ("fd00:2::1", 8080), "a fd00:89::1"),
            ("hairpin to itself", &a, ("192.0.2.1", 8080), "a 10.89.0.1"),
            ("hairpin of another network", &c, ("192.0.2.1", 8080), "a 10.89.0.1"),
        ] {
            let answer = inside(from, || ask_sctp(to)).unwrap_or_else(|error| error.to_string());
            if answer != expected {
                wrong.push(format!("{way}, {to:?}: {answer} instead of {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // The same number is another port by TCP, and isolation holds for SCTP, too.
        assert!(inside(&outside, || is_closed(("192.0.2.1", 8080))));
        let briefly = Duration::from_millis(500);
        assert!(inside(&c, || ask_within(("10.89.0.10", 80), briefly)).is_err());
        assert!(inside(&outside, || ask_within(("10.89.0.10", 80), briefly)).is_err());

        networks.set_ports(&sandbox("a"), &[]).await.unwrap();
        assert!(inside(&outside, || ask_within(("192.0.2.1", 8080), briefly)).is_err());
    });
}

#[test]
fn a_port_of_sctp_that_a_program_of_the_node_has_is_not_published() {
    on_a_node(|world| async move {
        let any: SocketAddr = "0.0.0.0:9000".parse().unwrap();
        if sctp(&any).is_err() {
            return leave_out("SCTP");
        }
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        attach(&world, &networks, "a", "n", &["10.89.0.10"]).await;
        let program = listener(any);
        let refused = networks.set_ports(&sandbox("a"), &[port(9000, "10.89.0.10")]).await;
        assert!(matches!(refused, Err(Error::PortTaken { host_port: 9000, .. })), "{refused:?}");
        // That of TCP is free.
        networks.set_ports(&sandbox("a"), &[published(None, 9000, "10.89.0.10", 80)]).await.unwrap();
        drop(program);
        let both = [published(None, 9000, "10.89.0.10", 80), port(9000, "10.89.0.10")];
        networks.set_ports(&sandbox("a"), &both).await.unwrap();
        assert_eq!(networks.list_ports().await.unwrap().iter().filter(|(.., there)| *there).count(), 2);
    });
}
