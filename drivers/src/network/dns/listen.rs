//! The sockets of a name server.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

/// The port of name servers.
const PORT: u16 = 53;
/// Questions that may wait while the server is not scheduled.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
const BACKLOG: i32 = 128;

/// Both sockets of one address.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Binds them, whether the address is there or not: they outlive a bridge that somebody removes.
    pub(super) fn bind(address: IpAddr) -> io::Result<Self> {
        let at = SocketAddr::new(address, PORT);
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let open = |kind, protocol| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(family, kind, flags, Some(protocol))?;
            if address.is_ipv4() {
                sockopt::set_ip_freebind(&socket, true)?;
            } else {
                sockopt::set_ipv6_v6only(&socket, true)?;
                sockopt::set_ipv6_freebind(&socket, true)?;
            }
            Ok::<_, rustix::io::Errno>(socket)
        };
        let udp = open(SocketType::DGRAM, ipproto::UDP)?;
        // Without the privilege the usual buffer does.
        let _ = sockopt::set_socket_recv_buffer_size_force(&udp, RECEIVE_BUFFER);
        bind(&udp, &at)?;
        let tcp = open(SocketType::STREAM, ipproto::TCP)?;
        // Connections of an earlier agent may not have ended yet.
        sockopt::set_socket_reuseaddr(&tcp, true)?;
        bind(&tcp, &at)?;
        listen(&tcp, BACKLOG)?;
        Ok(Self { udp: udp.into(), tcp: tcp.into() })
    }
}
