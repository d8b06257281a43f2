//! Hints from the kernel: a thread that reads link, address and nftables notifications and passes on what concerns
//! us. What this process did itself is left out by the port id of its sockets where the kernel tells it, and by
//! [`Watched`], which holds only what should be there at the moment. A notification may be old when it is read, so it
//! only makes a link suspect; whether it is damaged is asked of the kernel.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_sys::{Socket as RawSocket, SocketAddr, protocols};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::mpsc;

use super::link::{Change, Link, Links, parse_change};
use super::netlink::split;
use super::{NetworkEvent, nft};
use crate::ids::IfName;

// Groups as bits, for `bind`: RTNLGRP_LINK 1, RTNLGRP_IPV4_IFADDR 5, RTNLGRP_IPV6_IFADDR 9, NFNLGRP_NFTABLES 7.
const ROUTE_GROUPS: u32 = 1 | 1 << 4 | 1 << 8;
const NFTABLES_GROUP: u32 = 1 << 6;
/// Room for the notifications of some hundred links at once.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// `NFNL_SUBSYS_NFTABLES`; the low byte is the verb.
const NFTABLES_SUBSYSTEM: u16 = 10;
const NFT_MSG_NEWGEN: u16 = 15;
/// Events a slow reader may be behind before it is told to look at everything.
const CHANNEL: usize = 256;
/// When a reader that was too slow is told so.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A link that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// A bridge, with its index, under which its addresses are announced.
    Bridge(u32),
    /// The node's end of an attachment, which has to be a port.
    Port,
    /// A further port of this bridge, which is told in its place.
    Member(IfName),
    /// Somebody else's link that networks build on, with its index, which it keeps when it is renamed.
    Parent(u32),
}

/// Shared between the worker, which says what should be there, and the listener.
#[derive(Debug, Default)]
struct Shared {
    links: HashMap<String, Role>,
    /// Port ids of the worker's own sockets.
    own_ports: Vec<u32>,
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    sender: mpsc::Sender<NetworkEvent>,
    behind: bool,
}

/// What the listener looks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Shared>>);

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this link should be there.
    pub(super) fn expect(&self, link: &IfName, role: Role) {
        self.lock().links.insert(link.as_str().to_owned(), role);
    }

    /// From now on this link may go. Called before removing it.
    pub(super) fn forget(&self, link: &IfName) {
        self.lock().links.remove(link.as_str());
    }

    /// A new reader; its first event is [`NetworkEvent::Resync`].
    pub(super) fn subscribe(&self) -> mpsc::Receiver<NetworkEvent> {
        let (sender, receiver) = mpsc::channel(CHANNEL);
        // A fresh channel has room.
        let _ = sender.try_send(NetworkEvent::Resync);
        self.lock().readers.push(Reader { sender, behind: false });
        receiver
    }

    /// Whether this link should be there and, in this state, is not as it should be.
    fn is_damaged(&self, name: &str, link: Option<&Link>) -> bool {
        match (self.lock().links.get(name), link) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(Role::Port | Role::Member(_)), Some(link)) => !link.up || link.master.is_none(),
            (Some(Role::Bridge(index) | Role::Parent(index)), Some(link)) => !link.up || *index != link.index,
        }
    }

    /// What is told when this link is damaged: itself, or the bridge that it belongs to.
    fn told_as(&self, name: IfName) -> IfName {
        match self.lock().links.get(name.as_str()) {
            Some(Role::Member(bridge)) => bridge.clone(),
            _ => name,
        }
    }

    fn publish(&self, events: &BTreeSet<Hint>) {
        self.lock().readers.retain_mut(|reader| reader.offer(events));
    }

    fn anybody_behind(&self) -> bool {
        self.lock().readers.iter().any(|reader| reader.behind)
    }
}

impl Reader {
    /// Sends without waiting. Returns whether anybody still listens.
    fn offer(&mut self, events: &BTreeSet<Hint>) -> bool {
        if self.behind {
            self.behind = self.sender.try_send(NetworkEvent::Resync).is_err();
        }
        for event in events {
            self.behind |= self.sender.try_send(event.to_event()).is_err();
        }
        !self.sender.is_closed()
    }
}

/// A [`NetworkEvent`] in an order, to fold a burst into one of each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    Resync,
    Table,
    /// A link that lost something for certain.
    Link(IfName),
    /// A link that is looked at before it is told.
    Suspect(IfName),
}

impl Hint {
    fn to_event(&self) -> NetworkEvent {
        match self {
            Hint::Resync => NetworkEvent::Resync,
            Hint::Table => NetworkEvent::Table,
            Hint::Link(name) | Hint::Suspect(name) => NetworkEvent::Link(name.clone()),
        }
    }
}

/// The running listener; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    stop: Arc<OwnedFd>,
}

impl Listener {
    /// Opens the sockets in the calling thread's network namespace and starts the thread.
    pub(super) fn start(watched: Watched, own_ports: Vec<u32>) -> io::Result<Self> {
        watched.lock().own_ports = own_ports;
        let links = Links::open()?;
        let route = open(protocols::NETLINK_ROUTE, ROUTE_GROUPS)?;
        let netfilter = open(protocols::NETLINK_NETFILTER, NFTABLES_GROUP)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new().name("net-events".into()).spawn(move || {
            if let Err(error) = listen(&watched, links, &route, &netfilter, &stopped) {
                tracing::error!(%error, "network events end; only the periodic pass repairs the network from now on");
            }
        })?;
        Ok(Self { stop })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }
}

fn open(protocol: isize, groups: u32) -> io::Result<RawSocket> {
    let mut socket = RawSocket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    socket.set_non_blocking(true)?;
    // Without the privilege the usual buffer does; an overrun is told as Resync.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
    Ok(socket)
}

fn listen(
    watched: &Watched,
    mut links: Links,
    route: &RawSocket,
    netfilter: &RawSocket,
    stop: &OwnedFd,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(route.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(netfilter.as_fd(), PollFlags::IN),
        ];
        let timeout = watched.anybody_behind().then_some(&RETRY);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        let mut hints = BTreeSet::new();
        drain(route, &mut buffer, &mut hints, |bytes, hints| route_hints(watched, bytes, hints))?;
        drain(netfilter, &mut buffer, &mut hints, |bytes, hints| nftables_hints(watched, bytes, hints))?;
        hints.retain(|hint| match hint {
            // What cannot be asked is told: a needless look costs little.
            Hint::Suspect(name) => {
                links.find(name.as_str()).map_or(true, |l| watched.is_damaged(name.as_str(), l.as_ref()))
            }
            _ => true,
        });
        let told = |hint| match hint {
            Hint::Link(name) | Hint::Suspect(name) => Hint::Link(watched.told_as(name)),
            other => other,
        };
        let hints = hints.into_iter().map(told).collect();
        watched.publish(&hints);
    }
}

fn drain(
    socket: &RawSocket,
    buffer: &mut Vec<u8>,
    hints: &mut BTreeSet<Hint>,
    read: impl Fn(&[u8], &mut BTreeSet<Hint>),
) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => read(buffer, hints),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                hints.insert(Hint::Resync);
            }
            Err(error) => return Err(error),
        }
    }
}

fn route_hints(watched: &Watched, bytes: &[u8], hints: &mut BTreeSet<Hint>) {
    let messages = split(bytes);
    let shared = watched.lock();
    for message in messages.iter().filter(|message| !shared.own_ports.contains(&message.port)) {
        let suspect = |name: &str| shared.links.contains_key(name).then(|| IfName::new(name).ok())?.map(Hint::Suspect);
        hints.extend(match parse_change(message) {
            Some(Change::Gone(name)) => suspect(&name),
            Some(Change::Link(link)) => suspect(&link.name).or_else(|| {
                let parent = shared.links.iter().find(|(_, role)| **role == Role::Parent(link.index));
                suspect(parent?.0)
            }),
            Some(Change::AddressGone(index)) => {
                let bridge = shared.links.iter().find(|(_, role)| **role == Role::Bridge(index));
                bridge.and_then(|(name, _)| IfName::new(name.as_str()).ok()).map(Hint::Link)
            }
            None => None,
        });
    }
}

fn nftables_hints(watched: &Watched, bytes: &[u8], hints: &mut BTreeSet<Hint>) {
    let messages = split(bytes);
    let shared = watched.lock();
    let foreign = messages.iter().any(|message| {
        let verb = message.kind & 0xff;
        message.kind >> 8 == NFTABLES_SUBSYSTEM
            && verb != NFT_MSG_NEWGEN
            && !shared.own_ports.contains(&message.port)
            // The table's name is the first attribute's value in every message of the subsystem.
            && nft::decode::attributes(message.payload()).text(1) == Some(nft::TABLE)
    });
    if foreign {
        hints.insert(Hint::Table);
    }
}
