//! TCP connections from within a sandbox's network namespace, for probes: no process is started there.

use std::io;
use std::net::SocketAddr;
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
