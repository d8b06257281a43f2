//! TCP connections from within a sandbox's network namespace, for probes and forwarded ports: no process is started
//! there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;
use tokio::net::{TcpSocket, TcpStream};

/// Connects to `address` from the network namespace pinned at `netns`, or from the node's own with `None`.
///
/// A socket belongs for ever to the namespace it was made in, so only its making happens there, on a thread of its
/// own that ends right after (`network_namespaces(7)`); connecting and everything later is ordinary async I/O.
/// Dropping the future abandons the attempt.
pub async fn connect(netns: Option<&Path>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match netns {
        None => new_socket(address)?,
        Some(netns) => socket_in(netns.to_owned(), address).await?,
    };
    socket.connect(address).await
}

async fn socket_in(netns: PathBuf, address: SocketAddr) -> io::Result<TcpSocket> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("probe-socket".to_owned()).spawn(move || {
        // Registering the socket needs the reactor.
        let _guard = runtime.enter();
        let made = rustix::fs::open(&netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|namespace| {
                use std::os::fd::AsFd;
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            })
            .map_err(io::Error::from)
            .and_then(|()| new_socket(address));
        // Nobody waits any more: the socket closes.
        let _ = send.send(made);
    })?;
    receive.await.map_err(|_| io::Error::other("the thread that makes the socket ended"))?
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// Connects to `port` on the loopback address of a network namespace: 127.0.0.1, and if that fails, ::1.
///
/// # Errors
/// What 127.0.0.1 said.
pub async fn connect_loopback(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    match connect(netns, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(stream) => Ok(stream),
        Err(error) => connect(netns, SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.map_err(|_| error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_loopback_addresses_are_tried() {
        let v4 = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        assert!(connect_loopback(None, port).await.unwrap().peer_addr().unwrap().is_ipv4());
        drop(v4);
        assert_eq!(connect_loopback(None, port).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        if let Ok(v6) = tokio::net::TcpListener::bind("[::1]:0").await {
            let port = v6.local_addr().unwrap().port();
            assert!(connect_loopback(None, port).await.unwrap().peer_addr().unwrap().is_ipv6());
        }
    }
}
