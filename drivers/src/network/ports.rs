//! Published ports: who may have which, and whether the kernel has them.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::node::{Node, PortsRecord, failed, refused};
use super::records::Kind;
use super::{Error, Protocol, PublishedPort, book, conntrack, nft};
use crate::ids::SandboxId;

impl Node {
    /// See [`super::Networks::set_ports`].
    pub(super) fn set_ports(&mut self, sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error> {
        let before = self.book.ports.get(sandbox).cloned();
        if before.as_deref().unwrap_or_default() == ports {
            // What another hand took away comes back with this too.
            return self.change_ports(&[], ports);
        }
        self.book.check_ports(sandbox, ports)?;
        self.check_listeners(before.iter().flatten(), ports)?;
        // What the kernel may hold until this is done is on disk at any time: first both, then only the new ones.
        let mut both: Vec<_> = before.iter().flatten().chain(ports).cloned().collect();
        both.sort();
        both.dedup();
        self.record_ports(sandbox, &both)?;
        self.remember_ports(sandbox, ports.to_vec());
        let change = self.change_ports(before.as_deref().unwrap_or_default(), ports);
        if let Err(error) = change {
            self.remember_ports(sandbox, before.clone().unwrap_or_default());
            self.record_ports(sandbox, before.as_deref().unwrap_or_default())?;
            return Err(error);
        }
        self.forget_connections(before.as_deref().unwrap_or_default(), ports);
        if both.len() == ports.len() {
            return Ok(());
        }
        self.record_ports(sandbox, ports)
    }

    /// See [`super::Networks::take_ports`].
    ///
    /// The one write of the new owner's record decides: it names those that it takes the ports from, so that their
    /// own records count for nothing from then on, whether or not we live to remove them.
    pub(super) fn take_ports(
        &mut self,
        from: &[SandboxId],
        sandbox: &SandboxId,
        ports: &[PublishedPort],
    ) -> Result<(), Error> {
        let from: Vec<SandboxId> =
            from.iter().filter(|other| *other != sandbox && self.book.ports.contains_key(other)).cloned().collect();
        if from.is_empty() || ports.is_empty() {
            for other in &from {
                self.set_ports(other, &[])?;
            }
            return self.set_ports(sandbox, ports);
        }
        self.book.check_ports_without(&from, sandbox, ports)?;
        let mut owners = from.clone();
        owners.push(sandbox.clone());
        let before: Vec<_> = owners.iter().map(|id| (id.clone(), self.book.ports.get(id).cloned())).collect();
        let held: Vec<PublishedPort> = before.iter().flat_map(|(_, ports)| ports.iter().flatten()).cloned().collect();
        self.check_listeners(held.iter(), ports)?;
        self.write_ports(&PortsRecord { sandbox: sandbox.clone(), ports: ports.to_vec(), taken_from: from.clone() })?;
        for other in &from {
            self.remember_ports(other, Vec::new());
        }
        self.remember_ports(sandbox, ports.to_vec());
        if let Err(error) = self.change_ports(&held, ports) {
            for (owner, ports) in before {
                self.record_ports(&owner, ports.as_deref().unwrap_or_default())?;
                self.remember_ports(&owner, ports.unwrap_or_default());
            }
            return Err(error);
        }
        self.forget_connections(&held, ports);
        for other in &from {
            self.record_ports(other, &[])?;
        }
        self.record_ports(sandbox, ports)
    }

    /// Changes the kernel's map from the ports before to those that the book has now.
    fn change_ports(&mut self, before: &[PublishedPort], now: &[PublishedPort]) -> Result<(), Error> {
        let elements = |ports: &[PublishedPort]| ports.iter().map(nft::port_element).collect();
        self.change_table(elements(before), elements(now))
    }

    /// Lets clients of changed UDP ports find their new way. Not essential enough to fail for: without it they do
    /// once they pause.
    fn forget_connections(&mut self, before: &[PublishedPort], now: &[PublishedPort]) {
        let changed = |a: &[PublishedPort], b: &[PublishedPort]| -> Vec<PublishedPort> {
            a.iter().filter(|port| port.protocol == Protocol::Udp && !b.contains(port)).cloned().collect()
        };
        let (gone, new) = (changed(before, now), changed(now, before));
        if gone.is_empty() && new.is_empty() {
            return;
        }
        let node = match self.links.addresses() {
            Ok(addresses) => addresses.into_iter().map(|(_, address)| address.addr()).collect(),
            Err(_) => HashSet::new(),
        };
        let ports = gone.iter().chain(&new).map(|port| port.host_port).collect();
        let targets = gone.iter().map(|port| port.target_ip).collect();
        if let Err(error) = conntrack::forget_udp(self.table.socket(), &ports, &node, &targets) {
            tracing::warn!(%error, "clients of changed UDP ports may keep their old way while they send");
        }
    }

    fn remember_ports(&mut self, sandbox: &SandboxId, ports: Vec<PublishedPort>) {
        if ports.is_empty() {
            self.book.ports.remove(sandbox);
        } else {
            self.book.ports.insert(sandbox.clone(), ports);
        }
    }

    fn record_ports(&self, sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error> {
        let path = self.records.path(Kind::Ports, sandbox.as_str());
        if ports.is_empty() {
            let removing = failed(format!("removing {}", path.display()));
            return self.records.remove(Kind::Ports, sandbox.as_str()).map_err(removing);
        }
        self.write_ports(&PortsRecord { sandbox: sandbox.clone(), ports: ports.to_vec(), taken_from: Vec::new() })
    }

    fn write_ports(&self, record: &PortsRecord) -> Result<(), Error> {
        let path = self.records.path(Kind::Ports, record.sandbox.as_str());
        self.records
            .write(Kind::Ports, record.sandbox.as_str(), record)
            .map_err(failed(format!("writing {}", path.display())))
    }

    /// See [`super::Networks::list_ports`] and [`super::Networks::ports_of`].
    pub(super) fn list_ports(
        &mut self,
        only: Option<&SandboxId>,
    ) -> Result<Vec<(SandboxId, PublishedPort, bool)>, Error> {
        let held = self.table.held().map_err(refused(format!("reading nftables table {}", nft::TABLE)))?;
        let mut list = Vec::new();
        for (sandbox, ports) in self.book.ports.iter().filter(|(s, _)| only.is_none_or(|only| only == *s)) {
            for port in ports {
                let (map, element) = nft::port_element(port);
                let there = held.and_then(|sets| sets.get(map)).is_some_and(|set| set.contains(&element));
                list.push((sandbox.clone(), port.clone(), there));
            }
        }
        Ok(list)
    }
}

impl Node {
    /// Fails if a program of the node listens at a port that is not among those held already. Our own name server does
    /// not count: its questions are never translated.
    fn check_listeners<'a>(
        &self,
        held: impl Iterator<Item = &'a PublishedPort>,
        ports: &[PublishedPort],
    ) -> Result<(), Error> {
        let held: HashSet<_> = held.map(claim).collect();
        let ours = |address: IpAddr, port: u16| port == 53 && self.name_server.is_at(address);
        match ports.iter().find(|port| !held.contains(&claim(port)) && has_listener(port, &ours)) {
            None => Ok(()),
            Some(port) => Err(Error::PortTaken {
                host_ip: book::host_ip(port),
                host_port: port.host_port,
                protocol: port.protocol,
                owner: "a listener on the node".to_owned(),
            }),
        }
    }
}

/// What a port claims of the node.
fn claim(port: &PublishedPort) -> (IpAddr, u16, Protocol) {
    (book::host_ip(port), port.host_port, port.protocol)
}

/// Whether a program of the node already listens there. Such a port would be taken away from it silently, since
/// translation comes before sockets.
///
/// Binding is the quick question; it also fails for a connection that merely happens to have this port on our side,
/// so its refusal is checked in the kernel's table of sockets.
fn has_listener(port: &PublishedPort, ours: &impl Fn(IpAddr, u16) -> bool) -> bool {
    match try_bind(port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => listed_listener(port, ours),
        // No right to ask, no SCTP in this kernel: there is nothing to find out.
        _ => false,
    }
}

fn try_bind(port: &PublishedPort) -> io::Result<()> {
    let host = book::host_ip(port);
    let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match port.protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?;
    if port.protocol != Protocol::Udp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if host.is_ipv4() {
        // The address may come to the node later.
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    Ok(bind(&socket, &SocketAddr::new(host, port.host_port))?)
}

/// Looks into `/proc/self/net`, where "self" is a process: the table of this thread's namespace is asked for.
fn listed_listener(port: &PublishedPort, ours: &impl Fn(IpAddr, u16) -> bool) -> bool {
    let (files, state) = match port.protocol {
        Protocol::Tcp => (["tcp", "tcp6"], "0A"),
        // An unconnected socket.
        Protocol::Udp => (["udp", "udp6"], "07"),
        // Its tables have another form; the refused bind has to do.
        Protocol::Sctp => return true,
    };
    files.iter().any(|file| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))
            .is_ok_and(|table| table.lines().skip(1).any(|line| line_listens(line, port, state, ours)))
    })
}

/// A line reads `0: 0100007F:1F90 00000000:0000 0A …`: number, local and remote address, state.
fn line_listens(line: &str, port: &PublishedPort, state: &str, ours: &impl Fn(IpAddr, u16) -> bool) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let (Some(local), Some(_), Some(held)) = (fields.next(), fields.next(), fields.next()) else { return false };
    let Some((address, local_port)) = local.split_once(':') else { return false };
    let (Ok(local_port), Some(address)) = (u16::from_str_radix(local_port, 16), parse_address(address)) else {
        return false;
    };
    let host = book::host_ip(port);
    held == state
        && local_port == port.host_port
        && !ours(address, local_port)
        && (address.is_unspecified() || host.is_unspecified() || address == host)
}

/// Hexadecimal words of four bytes, each in the machine's order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for part in 0..4 {
                bytes[part * 4..part * 4 + 4].copy_from_slice(&word(part * 8)?);
            }
            let address = std::net::Ipv6Addr::from(bytes);
            Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host_ip: Option<&str>, host_port: u16) -> PublishedPort {
        PublishedPort {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            protocol: Protocol::Tcp,
            target_ip: "10.89.0.2".parse().unwrap(),
            target_port: 80,
        }
    }

    fn nobody(_: IpAddr, _: u16) -> bool {
        false
    }

    #[test]
    fn a_listener_is_recognised_by_state_address_and_port() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert!(line_listens(line, &tcp(None, 8080), "0A", &nobody));
        assert!(line_listens(line, &tcp(Some("127.0.0.1"), 8080), "0A", &nobody));
        assert!(!line_listens(line, &tcp(Some("10.0.0.1"), 8080), "0A", &nobody));
        assert!(!line_listens(line, &tcp(None, 8081), "0A", &nobody));
        assert!(!line_listens(&line.replace("0A", "01"), &tcp(None, 8080), "0A", &nobody));
        let any6 = line.replace("0100007F", "00000000000000000000000000000000");
        assert!(line_listens(&any6, &tcp(Some("10.0.0.1"), 8080), "0A", &nobody));
        for broken in ["", "0:", "0: x 0 0A", "0: 0100007F:zz 0 0A", "0: 01:1F90 0 0A", "0: ä:1F90 0 0A"] {
            assert!(!line_listens(broken, &tcp(None, 8080), "0A", &nobody), "{broken}");
        }
    }

    #[test]
    fn a_listener_on_the_node_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(has_listener(&tcp(None, port), &nobody));
        assert!(has_listener(&tcp(Some("127.0.0.1"), port), &nobody));
        drop(listener);
        assert!(!has_listener(&tcp(Some("127.0.0.1"), port), &nobody));
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = PublishedPort { protocol: Protocol::Udp, ..tcp(None, udp.local_addr().unwrap().port()) };
        assert!(has_listener(&taken, &nobody));
    }
}
